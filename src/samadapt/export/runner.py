"""Predict with a model that samadapt exported. This file stands beside model.json and needs no samadapt and no torch,
only Python 3.10 or newer and four packages.

    pip install numpy onnxruntime nibabel pillow
    python runner.py SCAN_OR_FOLDER ... --out predictions

or from Python:

    from runner import Model
    model = Model("exported_folder")
    label = model.predict("scan.nii.gz")              # segmentation: (D, H, W) uint8, classes by number
    model.predict_to("scan.nii.gz", "label.nii.gz")   # the same with the grid and the header of the scan
    probabilities = model.predict("picture.png")      # classification: (K,) float32

What it does with a scan, each step a function below: it reads the file (`read_image`), turns it to the orientation of the
training (`place`), maps its intensities to 0..255 (`fit_window`), puts each slice into the network's square (`PREPARES`),
runs the network, brings the logits back to the slice's own pixels (`to_original`), averages probabilities over neighbouring
slices where model.json says so (`smoothed`), takes the likeliest class, keeps the largest component where model.json says
so (`keep_largest`), and writes the label map in the grid of the file.

Shapes: C channels, D slices, H rows, W columns, S side of the network's square, K classes.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NIFTI = (".nii.gz", ".nii")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
HERE = Path(__file__).resolve().parent
BATCH = 4  # slices that pass the network together
Network = Callable[[np.ndarray], np.ndarray]  # (B, channels, S, S) float32 -> logits (B, K, h, w) or (B, K)


class RunnerError(ValueError):
    """A file or a folder that cannot be used: what is wrong, and what to do."""


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class Scan:
    """A file as it is stored."""

    path: Path
    image: np.ndarray  # (C, i, j, k) float32; a picture is (C, rows, columns, 1)
    affine: np.ndarray | None = None  # (4, 4) index -> RAS; None for a picture
    spacing: tuple[float, ...] | None = None  # of i, j, k in mm; None where the file does not say
    oriented: bool = False  # whether the header says how the axes lie in the body
    depth: str | None = None  # of a picture: "uint8", ...


def suffix_of(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in (*NIFTI, *PICTURES) if name.endswith(suffix)), "")


def read_image(path: Path) -> Scan:
    """A NIfTI volume or a picture, values as stored."""
    suffix = suffix_of(path)
    if not path.is_file() or not suffix:
        raise RunnerError(
            f"{path} is no NIfTI file or picture; convert it (DICOM: dcm2niix) and give its path"
        )
    try:
        return _read_nifti(path) if suffix in NIFTI else _read_picture(path)
    except RunnerError:
        raise
    except Exception as error:  # nibabel and Pillow raise whatever the bytes happen to mean
        raise RunnerError(f"{path} cannot be read ({error}); copy or export it again") from error


def _read_nifti(path: Path) -> Scan:
    import nibabel as nib

    image: Any = nib.load(path, mmap=False)
    array = np.asanyarray(image.dataobj, dtype=np.float32)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim not in (3, 4):
        raise RunnerError(f"{path} has {array.ndim} axes; expected a volume of 3")
    affine, header = np.asarray(image.affine), image.header
    if not np.isfinite(affine).all() or not _fills_space(affine):
        raise RunnerError(f"{path} has an affine that says no place; correct the header")
    oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    zooms = np.array([*header.get_zooms()[:3], 1.0, 1.0][:3], float)
    unit = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) % 8, 1.0)
    sizes = np.linalg.norm(affine[:3, :3], axis=0) if oriented else zooms
    said = oriented or int(header["xyzt_units"]) % 8 in (1, 2, 3) or not np.all(zooms == 1)
    known = said and bool(np.all(np.isfinite(sizes)) and np.all(sizes > 0))
    spacing = tuple(float(size) * unit for size in sizes) if known else None
    stacked = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    return Scan(path, stacked, affine, spacing, oriented)


def _fills_space(affine: np.ndarray) -> bool:
    """Whether no two axes run the same way."""
    sides = np.prod(np.linalg.norm(affine[:3, :3], axis=0))
    return bool(abs(np.linalg.det(affine[:3, :3])) > 1e-4 * sides)


def _read_picture(path: Path) -> Scan:
    from PIL import Image

    with Image.open(path) as image:
        depths = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        several = getattr(image, "n_frames", 1) > 1
        clear = image.mode in ("1", "L", "P", "RGB", *depths) and "transparency" not in image.info
        if not clear or turned or several:
            raise RunnerError(
                f"{path} ({image.mode}) has transparency, a colour profile, several pictures or an EXIF tag that turns it; "
                "expected one upright 8- or 16-bit grey or 8-bit RGB picture: convert it"
            )
        depth = depths.get(image.mode, "uint8")
        shown = image.convert({"1": "L", "P": "RGB"}[image.mode]) if image.mode in ("1", "P") else image
        array = np.asarray(shown, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return Scan(path, array[..., None], depth=depth)


def write_label(path: Path, label: np.ndarray, source: Path) -> None:
    """(i, j, k) uint8 with the header of the scan, or as an indexed PNG for a picture."""
    if suffix_of(source) in PICTURES:
        from PIL import Image

        picture = Image.fromarray(np.ascontiguousarray(label[..., 0]))
        picture.putpalette([part for value in range(256) for part in _colour(value)])
        _replace(path, lambda temporary: picture.save(temporary, format="PNG"))
        return
    import nibabel as nib

    original: Any = nib.load(source, mmap=False)
    header = original.header.copy()
    header.extensions.clear()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1.0, 0.0)
    header.set_intent("none")
    header["cal_max"], header["cal_min"] = 0, 0
    for name in ("descrip", "aux_file", "db_name"):  # texts that may name the patient
        if name in list(header.keys()):
            header[name] = b""
    flat = len(original.shape) == 2
    volume = type(original)(label[..., 0] if flat else label, original.affine, header)
    _replace(path, lambda temporary: nib.save(volume, temporary))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Written under a temporary name, then renamed: nobody reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _colour(value: int) -> tuple[int, ...]:
    """Red, green and blue of a class: the colours of PASCAL VOC."""
    return tuple(sum((value >> (3 * bit + part) & 1) << (7 - bit) for bit in range(8)) for part in range(3))


# ---------------------------------------------------------------- orientation


def place(plane: dict[str, Any], scan: Scan) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The file's axes that lie along D, H, W, and which of them run the other way; no patient is mirrored."""
    shape = scan.image.shape[1:]
    if plane["directions"] is None or not scan.oriented or scan.affine is None:
        return _stored_axes(scan, plane["slice_axis"]), (False, False, False)
    own = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    reference = np.array(plane["directions"])
    cosines = reference @ own
    thick = _thick_axis(scan) if plane["thick"] else None
    best: tuple[float, tuple[int, ...], np.ndarray] | None = None
    for order in itertools.permutations(range(3)):
        if thick not in (None, order[0]):
            continue
        along = cosines[[0, 1, 2], order]
        signs = np.where(along < 0, -1.0, 1.0)
        if np.linalg.det(own[:, order] * signs) * np.linalg.det(reference) < 0:
            signs[np.abs(along).argmin()] *= -1
        found = (float((signs * along).sum()), order, signs)
        if best is None or (found[0], found[1], tuple(found[2])) > (best[0], best[1], tuple(best[2])):
            best = found
    assert best is not None
    axes = best[1]
    if shape[axes[0]] > 1 and 1 in (shape[axes[1]], shape[axes[2]]):
        raise RunnerError(
            f"{scan.path} has {shape} voxels and no slices of the plane that the model was trained on"
        )
    return axes, tuple(bool(sign < 0) for sign in best[2])


def _stored_axes(scan: Scan, slice_axis: int | None) -> tuple[int, ...]:
    if scan.affine is None:
        return 2, 0, 1
    if slice_axis is None:
        single = [axis for axis in range(3) if scan.image.shape[1 + axis] == 1]
        spacing = scan.spacing or (0.0, 0.0, 0.0)
        thickest = max(axis for axis in range(3) if spacing[axis] >= max(spacing) * (1 - 1e-3))
        slice_axis = single[0] if len(single) == 1 else thickest
    width, height = (axis for axis in range(3) if axis != slice_axis)
    return slice_axis, height, width


def _thick_axis(scan: Scan) -> int | None:
    """The axis along which the file has its only, or clearly thickest, slices."""
    single = [axis for axis in range(3) if scan.image.shape[1 + axis] == 1]
    if len(single) == 1:
        return single[0]
    if scan.spacing is None:
        return None
    _, second, largest = sorted(scan.spacing)
    return scan.spacing.index(largest) if largest >= 2.0 * second else None


# ---------------------------------------------------------------- intensities and the square


def fit_window(image: np.ndarray, window: dict[str, Any]) -> np.ndarray:
    """(C, D, H, W) -> (C, 2) float32: the stored values that become 0 and 255."""
    if window["limits"] is not None:
        return np.array([window["limits"]] * len(image), np.float32)
    rows = []
    for channel in image:
        values = channel.reshape(-1)
        values = values[:: max(1, values.size // 4_000_000)]
        places = [round(p / 100 * (values.size - 1)) for p in window["percentiles"]]
        low, high = (float(np.partition(values, at)[at]) for at in places)
        if not low < high:
            low, high = float(values.min()), float(values.max())
        rows.append([low, high if high > low else low + 1.0])
    return np.array(rows, np.float32)


def apply_window(image: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(C, H, W) stored values -> 0..255, clipped."""
    low, high = (limits[:, n, None, None] for n in (0, 1))
    return np.clip((image - low) * (np.float32(255) / (high - low)), np.float32(0), np.float32(255))


@functools.cache
def smooth(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): linear interpolation that averages where it shrinks, as torch's with antialias=True."""
    scale = np.float32(n_in) / np.float32(n_out)
    support = max(scale, np.float32(1))
    centres = scale * (np.arange(n_out, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centres - support + np.float32(0.5)).astype(int), 0)
    last = np.minimum((centres + support + np.float32(0.5)).astype(int), n_in)
    cells = np.arange(n_in)
    weights = 1 - np.abs((cells - centres[:, None] + np.float32(0.5)) / support)
    weights = np.where((cells >= first[:, None]) & (cells < last[:, None]), weights.clip(0), 0).astype(
        np.float64
    )
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@functools.cache
def linear(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): linear interpolation at the middles of the cells, as torch's with align_corners=False."""
    scale = np.float32(n_in) / np.float32(n_out)
    at = np.maximum((np.arange(n_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(at.astype(int), n_in - 1)
    high, part = np.minimum(low + 1, n_in - 1), at - low
    found, rows = np.zeros((n_out, n_in), np.float32), np.arange(n_out)
    found[rows, low] += 1 - part
    found[rows, high] += part
    return found


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W) -> (C, *size)."""
    if image.shape[1:] == size:
        return image
    return smooth(image.shape[1], size[0]) @ (image @ smooth(image.shape[2], size[1]).T)


@dataclass(frozen=True)
class Frame:
    """How a slice lies in the square: it fills the top left `inner`, the rest is padding."""

    original: tuple[int, int]
    inner: tuple[int, int]
    side: int


def fit_longest(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _pad(image: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    """The longer side becomes S, zeros fill the right and the bottom."""
    inner = fit_longest(image.shape[1:], side)  # type: ignore[arg-type]
    square = np.zeros((len(image), side, side), np.float32)
    square[:, : inner[0], : inner[1]] = resize(image, inner)
    return square, Frame(image.shape[1:], inner, side)  # type: ignore[arg-type]


def _stretch(image: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    return resize(image, (side, side)), Frame(image.shape[1:], (side, side), side)  # type: ignore[arg-type]


def _min_max(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return (image - low) / max(high - low, np.float32(1e-8))


def _imagenet(image: np.ndarray) -> np.ndarray:
    mean, std = (np.array(x, np.float32) for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    return (image - mean[:, None, None]) / std[:, None, None]


def _standardise(image: np.ndarray) -> np.ndarray:
    return ((image - image.mean(dtype=np.float64)) / max(image.std(dtype=np.float64, ddof=1), 1e-3)).astype(
        np.float32
    )


def _lite_medsam(image: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    square, frame = _pad(_min_max(resize(image, fit_longest(image.shape[1:], side))), side)  # type: ignore[arg-type]
    return square, Frame(image.shape[1:], frame.inner, side)  # type: ignore[arg-type]


def _medsam(image: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    square, frame = _stretch(image, side)
    return _min_max(square), frame


def _autosam(image: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    small, frame = _stretch(_min_max(image), 224)
    return _stretch(small, side)[0], Frame(frame.original, (side, side), side)


#: How each encoder wants a slice: (3, H, W) in 0..255 and S -> ((3, S, S), where the slice lies).
PREPARES: dict[str, Callable[[np.ndarray, int], tuple[np.ndarray, Frame]]] = {
    "autosam": _autosam,
    "imagenet_lite": lambda x, side: _pad((x - np.float32(127)) / np.float32(128), side),
    "imagenet_stretched": lambda x, side: _stretch(_imagenet(x), side),
    "lite_medsam": _lite_medsam,
    "medsam": _medsam,
    "sam": lambda x, side: _pad(_imagenet(x), side),
    "sam_nano": lambda x, side: _pad((x - np.float32(114)) / np.float32(62), side),
    "standardise": lambda x, side: _pad(_standardise(x), side),
    "unit": lambda x, side: _pad(x / np.float32(255), side),
}


def prepare(image: np.ndarray, names: Sequence[str], side: int) -> tuple[np.ndarray, Frame]:
    """(1 or 3, H, W) in 0..255 -> ((3 for each name, S, S), where the slice lies)."""
    colours = np.broadcast_to(image, (3, *image.shape[1:]))
    squares, frames = zip(*(PREPARES[name](colours, side) for name in names), strict=True)
    return np.concatenate(squares).astype(np.float32, copy=False), frames[0]


def to_original(maps: np.ndarray, frame: Frame) -> np.ndarray:
    """(K, h, w) over the whole square -> (K, H, W) over the slice."""
    way = smooth if maps.shape[2] > frame.side else linear
    down, across = (
        linear(inner, original) @ way(cells, frame.side)[:inner]
        for inner, original, cells in zip(frame.inner, frame.original, maps.shape[1:], strict=True)
    )
    return down @ (maps @ across.T)


def smoothed(answers: Iterable[np.ndarray], sigma: float) -> Iterator[np.ndarray]:
    """Logits (K, H, W) of the slices in order; where `sigma` is not 0, probabilities averaged over neighbouring slices."""
    if not sigma:
        yield from answers
        return
    radius = math.ceil(3 * sigma)
    weights = {step: math.exp(-0.5 * (step / sigma) * (step / sigma)) for step in range(-radius, radius + 1)}
    waiting = enumerate(softmax(answer, 0) for answer in answers)
    near = list(itertools.islice(waiting, radius))
    for middle in itertools.count():
        near = [*near, *itertools.islice(waiting, 1)]
        near = [(n, p) for n, p in near if n >= middle - radius]
        if not near or near[-1][0] < middle:
            return
        total = sum(weights[n - middle] for n, _ in near)
        yield np.stack([weights[n - middle] / total * p for n, p in near]).sum(0)


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    """Probabilities."""
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def keep_largest(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """One connected component (faces, edges, corners) left of each of these classes."""
    kept = label.copy()
    for value in values:
        roots = _components(np.pad(label == value, 1))
        found, counts = np.unique(roots[roots >= 0], return_counts=True)
        if len(found) > 1:
            kept[(roots >= 0) & (roots != found[counts.argmax()])] = 0
    return kept


def _components(mask: np.ndarray) -> np.ndarray:
    """Padded mask -> without the padding: of each voxel the first voxel of its component, -1 outside of it."""
    places, number = np.flatnonzero(mask), np.full(mask.size, -1)
    number[places] = np.arange(len(places))
    steps = np.array([offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)])
    pairs = []
    for step in steps @ [mask.shape[1] * mask.shape[2], mask.shape[2], 1]:
        other = number[places + step]
        pairs.append(np.stack([np.flatnonzero(other >= 0), other[other >= 0]]))
    a, b = np.concatenate(pairs, axis=1)
    root = np.arange(len(places))
    while len(a):
        np.minimum.at(root, np.maximum(root[a], root[b]), np.minimum(root[a], root[b]))
        while not np.array_equal(root, root[root]):
            root = root[root]
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
    found = np.full(mask.shape, -1)
    found.ravel()[places] = root
    return found[1:-1, 1:-1, 1:-1]


# ---------------------------------------------------------------- the model


def onnx_network(folder: Path, files: Sequence[str], providers: Sequence[str] | None = None) -> Network:
    """The exported network: one file, or an encoder and a head that reads its maps by their names."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing it tells Microsoft of this machine
    import onnxruntime

    chosen = list(providers or ["CPUExecutionProvider"])
    sessions = [onnxruntime.InferenceSession(str(folder / name), providers=chosen) for name in files]

    def run(pixels: np.ndarray) -> np.ndarray:
        values = {"pixels": pixels}
        for session in sessions:
            names = [output.name for output in session.get_outputs()]
            given = {each.name: values[each.name] for each in session.get_inputs()}
            values |= dict(zip(names, session.run(names, given), strict=True))
        return values["logits"]

    return run


def torch_module(path: str | Path, device: str = "cpu") -> Any:
    """The network as a program of torch.export, for those who have torch."""
    import torch
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(path)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    return program.module()


def of_module(module: Any, device: str = "cpu") -> Network:
    """A module of torch as a network of arrays."""
    import torch

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(pixels).to(device)).float().cpu().numpy()

    return run


class Model:
    """An exported model, ready to predict.

    Args:
        folder: that holds model.json and the files that it names.
        network: computes logits in place of the ONNX files, for other runtimes.
        providers: of ONNX Runtime, such as ["CUDAExecutionProvider"]; the processor unless told.
    """

    def __init__(
        self,
        folder: str | Path = HERE,
        network: Network | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads((self.folder / "model.json").read_text(encoding="utf-8"))
        self.classes: list[str] = self.about["classes"]
        self.segments: bool = self.about["task"] == "segmentation"
        for name, digest in self.about["files"].items():
            if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != digest:
                raise RunnerError(
                    f"{self.folder / name} is not the file that was exported; copy the folder again"
                )
        files: list[str] = self.about["network"]
        if network is None and files[0].endswith(".onnx"):
            network = onnx_network(self.folder, files, providers)
        self.network = network or of_module(torch_module(self.folder / files[0]))

    def predict(self, scan: str | Path | Sequence[str | Path]) -> np.ndarray:
        """A scan's file, or one file for each channel -> (D, H, W) uint8 label map, or (K,) float32 probabilities."""
        return self.predict_image(self.read(scan)[0])

    def predict_image(self, image: np.ndarray) -> np.ndarray:
        """The same of (C, D, H, W) float32, values as stored, in the orientation of the training."""
        return self.label(image) if self.segments else self.probabilities(image).mean(0)

    def predict_to(self, scan: str | Path | Sequence[str | Path], path: str | Path) -> np.ndarray:
        """Write the label map of a scan in the grid of its file; the label map (D, H, W)."""
        if not self.segments:
            raise RunnerError("this model classifies; its answers are probabilities and no label maps")
        image, source, axes, flips = self.read(scan)
        label = self.label(image)
        stored = np.flip(label, tuple(axis for axis, flip in enumerate(flips) if flip)).transpose(
            np.argsort(axes)
        )
        write_label(Path(path), np.ascontiguousarray(stored), source.path)
        return label

    def label(self, image: np.ndarray) -> np.ndarray:
        """(C, D, H, W) -> (D, H, W) uint8."""
        answers = (to_original(logits, frame) for logits, frame in self.logits(image))
        slices = [answer.argmax(0) for answer in smoothed(answers, self.about["smooth_slices"])]
        values = [self.classes.index(name) for name in self.about["keep_largest"]]
        return keep_largest(np.stack(slices).astype(np.uint8), values)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(C, D, H, W) -> (D, K) float32."""
        logits = np.stack([row for row, _ in self.logits(image)])
        if self.about["multilabel"]:
            return 1 / (1 + np.exp(-logits))
        return softmax(logits, 1)

    def logits(self, image: np.ndarray) -> Iterator[tuple[np.ndarray, Frame]]:
        """Of each slice, in order: the network's answer, and where the slice lies in the square."""
        limits = fit_window(image, self.about["window"])
        for start in range(0, image.shape[1], BATCH):
            seen = [
                prepare(self._shown(image, index, limits), self.about["prepare"], self.about["side"])
                for index in range(start, min(start + BATCH, image.shape[1]))
            ]
            yield from zip(
                self.network(np.stack([x for x, _ in seen])), [frame for _, frame in seen], strict=True
            )

    def _shown(self, image: np.ndarray, index: int, limits: np.ndarray) -> np.ndarray:
        """A slice in 0..255; where the model was trained so, with the one before and the one after it as colours."""
        if self.about["slices"] == 1:
            return apply_window(image[:, index], limits)
        near = [min(max(i, 0), image.shape[1] - 1) for i in (index - 1, index, index + 1)]
        return np.concatenate([apply_window(image[:, i], limits) for i in near])

    def read(
        self, scan: str | Path | Sequence[str | Path]
    ) -> tuple[np.ndarray, Scan, tuple[int, ...], tuple[bool, ...]]:
        """(C, D, H, W) as the training saw its scans; the (first) file; its axes along D, H, W, and which are mirrored."""
        paths = [Path(scan)] if isinstance(scan, str | Path) else [Path(path) for path in scan]
        scans = [read_image(path) for path in paths]
        first = scans[0]
        if self.about["window"]["name"] != "percentile" and first.depth != self.about["depth"]:
            kinds = (first.depth or "a volume", self.about["depth"] or "a volume")
            raise RunnerError(
                f"{first.path} is {kinds[0]}; expected {kinds[1]}, whose intensities the window is for"
            )
        for other in scans[1:]:
            if not _together(first, other):
                raise RunnerError(f"{other.path} lies elsewhere than {first.path}; resample it onto that")
        image = self._chosen(scans)
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)) or low == high:
            raise RunnerError(f"{first.path} is constant, or holds NaN or infinite values; expected an image")
        axes, flips = place(self.about["plane"], first)
        turned = image.transpose(0, *(1 + axis for axis in axes))
        return (
            np.ascontiguousarray(np.flip(turned, tuple(1 + n for n in range(3) if flips[n]))),
            first,
            axes,
            flips,
        )

    def _chosen(self, scans: Sequence[Scan]) -> np.ndarray:
        """The channels that the network reads; grey and colour pictures are told apart by their pixels."""
        image = np.concatenate([scan.image for scan in scans])
        names: list[str] = self.about["channels"]["names"]
        used: list[int] = self.about["channels"]["used"]
        if len(image) == len(names):
            picked = self.about["channels"]["chosen"]
            if len(scans) == 1 and len(image) > 1 and not picked and scans[0].affine is not None:
                raise RunnerError(
                    f"{scans[0].path} has a fourth axis; save each channel as a file of its own"
                )
            return image[used]
        picture = scans[0].affine is None and len(scans) == 1
        if picture and (len(image), len(used)) == (3, 1) and (image == image[:1]).all():
            return image[:1]  # grey, saved as colours
        if picture and (len(image), len(used)) == (1, 3):
            return np.repeat(image, 3, axis=0)
        if len(scans) == 1 and len(image) == len(used):
            return image  # the channel alone that is used of several
        raise RunnerError(
            f"{scans[0].path}: {len(image)} channels; expected {len(names)} ({', '.join(names)}), as the model was trained on"
        )


def _together(a: Scan, b: Scan) -> bool:
    """Whether the voxels of two files coincide, to a tenth of a voxel."""
    if a.image.shape[1:] != b.image.shape[1:] or (a.affine is None) != (b.affine is None):
        return False
    if a.affine is None or b.affine is None:
        return True
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in a.image.shape[1:]))], float)
    apart = np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max()
    return bool(apart <= 0.1 * np.linalg.norm(a.affine[:3, :3], axis=0).min())


# ---------------------------------------------------------------- the command


def find_scans(inputs: Sequence[Path]) -> dict[str, list[Path]]:
    """Name of a case -> its files; `case_0000.nii.gz`, `case_0001.nii.gz` are channels of one case, as in nnU-Net."""
    files = []
    for given in inputs:
        inside = sorted(given.iterdir()) if given.is_dir() else [given]
        files += [path for path in inside if suffix_of(path) and not path.name.startswith(".")] or [given]
    names = [path.name[: len(path.name) - len(suffix_of(path))] for path in files]
    matches = [re.fullmatch(r"(.+)_(\d{4})", name) for name in names]
    cases: dict[str, list[Path]] = {}
    for path, name, match in zip(files, names, matches, strict=True):
        cases.setdefault(match[1] if match and all(matches) else name, []).append(path)
    pictures = any(suffix_of(path) in PICTURES for path in files)
    if all(matches) and (max(map(len, cases.values())) > (1 if pictures else 8) or not _numbered(cases)):
        return {name: [path] for name, path in zip(names, files, strict=True)}
    return {name: sorted(paths) for name, paths in cases.items()}


def _numbered(cases: dict[str, list[Path]]) -> bool:
    """Whether every case has a first channel; else the numbers are those of pictures or frames."""
    return all(any("_0000." in path.name for path in paths) for paths in cases.values())


def main() -> int:
    """What `python runner.py` does; the exit status."""
    parser = argparse.ArgumentParser(description="Predict with the model of this folder.")
    parser.add_argument("inputs", nargs="+", type=Path, help="scans, or folders of scans")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--model", type=Path, default=HERE, help="folder of model.json")
    typed = parser.parse_args()
    done, failed = predict_all(Model(typed.model), typed.inputs, typed.out)
    print(f"{done} predicted, {failed} not", file=sys.stderr)
    return 1 if failed or not done else 0


def predict_all(model: Model, inputs: Sequence[str | Path], out: str | Path) -> tuple[int, int]:
    """Scans and folders of scans -> a label map for each, or predictions.csv; how many were predicted, and how many not.

    What is wrong with a scan is said on stderr, and the others go on.
    """
    rows, done, failed = [], 0, 0
    for name, paths in find_scans([Path(each) for each in inputs]).items():
        try:
            if model.segments:
                ending = ".png" if suffix_of(paths[0]) in PICTURES else ".nii.gz"
                model.predict_to(paths, Path(out) / f"{name}{ending}")
            else:
                rows.append(_row(model, name, model.predict(paths)))
            done += 1
        except RunnerError as error:
            failed += 1
            print(f"{name} was not predicted: {error}", file=sys.stderr)
    if rows:
        columns = ["case", "split", "prediction", *(f"prob_{name}" for name in model.classes)]
        _replace(Path(out) / "predictions.csv", lambda temporary: _write_table(temporary, columns, rows))
    return done, failed


def _row(model: Model, name: str, values: np.ndarray) -> list[str]:
    likely = model.classes[int(values.argmax())]
    if model.about["multilabel"]:
        likely = "|".join(each for each, value in zip(model.classes, values, strict=True) if value >= 0.5)
    return [name, "", likely, *(f"{value:.7g}" for value in values)]


def _write_table(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RunnerError, OSError) as error:
        sys.exit(f"runner.py: {error}")
