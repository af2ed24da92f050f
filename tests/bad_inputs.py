"""Functions that write bad inputs, and the table of them: what is written, the command, and words that its message must have."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from samadapt.phantom import make_phantom

RNG = np.random.default_rng(0)
UNET = "--head unet --set width=4 --side 64 --steps 1 --device cpu -q"
TRAIN = f"train IN --out OUT --live {UNET}"
CLASSIFY = (
    "train IN --out OUT --live --head linear_probe --encoder sam_nano --side 64 --steps 1 --device cpu -q"
)
PREDICT = "predict RUN IN --out OUT --device cpu"


@dataclass(frozen=True)
class Bad:
    """A bad input.

    Args:
        write: writes it to or into a path, which is IN of the command; a folder is made before.
        command: as typed; IN, OUT and RUN (a good run folder) are replaced.
        words: a regular expression that the message must match.
    """

    write: Callable[[Path], Any]
    command: str
    words: str


# ---------------------------------------------------------------- good inputs, of which a part is then broken


def scan(
    path: Path, shape: tuple[int, ...] = (16, 16, 3), dtype: type = np.float32, affine: Any = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(
        nib.Nifti1Image((RNG.normal(size=shape) * 50).astype(dtype), np.eye(4) if affine is None else affine),
        path,
    )
    return path


_PHANTOM: list[Path] = []


def volumes(folder: Path) -> Path:
    """nnU-Net raw, three patients."""
    if not _PHANTOM:
        _PHANTOM.append(
            make_phantom(Path(os.environ["BAD_INPUTS"]) / "phantom", patients=3, size=48, slices=3)
        )
    shutil.copytree(_PHANTOM[0], folder, dirs_exist_ok=True)
    return folder


def about(folder: Path, **changes: Any) -> None:
    """Of a phantom, `dataset.json` with other values; None deletes one."""
    content = json.loads((volumes(folder) / "dataset.json").read_text()) | changes
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def first(folder: Path, kind: str = "imagesTr") -> Path:
    return sorted((volumes(folder) / kind).iterdir())[0]


def label(change: Callable[[np.ndarray], np.ndarray], affine: Any = None) -> Callable[[Path], None]:
    """The first label map of a phantom, changed."""

    def write(folder: Path) -> None:
        path = first(folder, "labelsTr")
        image = nib.load(path)
        array = change(np.asarray(image.dataobj).astype(np.float32))
        nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)

    return write


def msd(folder: Path, **changes: Any) -> Path:
    """MSD, three cases."""
    items = []
    for n in range(3):
        scan(folder / "imagesTr" / f"c{n}.nii.gz")
        values = np.zeros((16, 16, 3), np.uint8)
        values[4:9, 4:9] = 1
        scan(folder / "labelsTr" / f"c{n}.nii.gz")
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "labelsTr" / f"c{n}.nii.gz")
        items.append({"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"})
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "training": items} | changes
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def item(image: str, label_file: str = "./labelsTr/c0.nii.gz") -> list[dict[str, str]]:
    """A list of training cases of MSD whose first one lies elsewhere."""
    rest = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in (1, 2)]
    return [{"image": image, "label": label_file}, *rest]


def pairs(folder: Path, count: int = 4) -> Path:
    """images/ and masks/ of PNG."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for n in range(count):
        Image.fromarray(RNG.integers(0, 255, (24, 24), dtype=np.uint8)).save(folder / "images" / f"p{n}.png")
        values = np.zeros((24, 24), np.uint8)
        values[4:12, 4:12] = 255
        Image.fromarray(values).save(folder / "masks" / f"p{n}.png")
    return folder


def picture(write: Callable[[Path], Any], name: str = "images/p0.png") -> Callable[[Path], None]:
    """Pairs of which one file is written by a function."""

    def all_(folder: Path) -> None:
        place = pairs(folder) / name
        (place.parent / "p0.png").unlink()
        write(place)

    return all_


def table(folder: Path, text: str | None = None, encoding: str = "utf-8") -> Path:
    """Six pictures and labels.csv."""
    for n in range(6):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (24, 24), dtype=np.uint8)).save(folder / "images" / f"p{n}.png")
    rows = "".join(f"p{n}.png,{'ab'[n % 2]}\n" for n in range(6))
    (folder / "labels.csv").write_text("image,label\n" + rows if text is None else text, encoding=encoding)
    return folder


def rows(extra: str = "", head: str = "image,label", count: int = 6) -> str:
    return f"{head}\n" + "".join(f"p{n}.png,{'ab'[n % 2]}\n" for n in range(count)) + extra


def npz(path: Path, **changes: Any) -> None:
    """MedMNIST, tiny; None leaves an array out."""
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = RNG.integers(0, 255, (4, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    np.savez_compressed(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


def npz_raw(path: Path, claimed: tuple[int, ...], content: bytes) -> None:
    """An archive whose first array claims a shape and has other bytes."""
    npz(path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": claimed})
    members["train_images.npy"] = head.getvalue() + content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, member in members.items():
            new.writestr(name, member)


def npz_bomb(path: Path) -> None:
    """Half a gigabyte of zeros."""
    npz(path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (512, 1024, 1024)}
    )
    del members["train_images.npy"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, member in members.items():
            new.writestr(name, member)
        with new.open("train_images.npy", "w", force_zip64=True) as file:
            file.write(head.getvalue())
            for _ in range(512):
                file.write(bytes(1 << 20))


# ---------------------------------------------------------------- broken headers


def header(path: Path, patch: Callable[[bytearray], Any], packed: bool = False, after: bytes = b"") -> None:
    """A NIfTI-1 file whose 352 bytes before the voxels are changed."""
    image = nib.Nifti1Image(np.arange(96, dtype=np.int16).reshape(6, 4, 4), np.eye(4))
    content = bytearray(image.to_bytes())
    patch(content)
    content = bytes(content) + after
    path.write_bytes(gzip.compress(content) if packed else content)


def dims(*sizes: int) -> Callable[[bytearray], None]:
    return lambda head: struct.pack_into(f"<{len(sizes) + 1}h", head, 40, len(sizes), *sizes)


def gzip_bomb(path: Path) -> None:
    """A small header and a gigabyte of zeros after it, in 130 members."""
    small, zeros = io.BytesIO(), gzip.compress(bytes(8 << 20), 1)
    small.write(gzip.compress(nib.Nifti1Image(np.ones((4, 4, 2), np.uint8), np.eye(4)).to_bytes()))
    path.write_bytes(small.getvalue() + zeros * 130)


def extension(path: Path, size: int, offset: float = 1024.0, packed: bool = True) -> None:
    """One extension of such a size, which it may not have."""

    def patch(head: bytearray) -> None:
        struct.pack_into("<f", head, 108, offset)
        head[348] = 1
        head += bytes(2048)
        struct.pack_into("<ii", head, 352, size, 6)

    header(path, patch, packed)


def nifti2(path: Path) -> None:
    """NIfTI-2 has 64 bits for each size."""
    content = bytearray(nib.Nifti2Image(np.ones((4, 4, 2), np.uint8), np.eye(4)).to_bytes())
    struct.pack_into("<4q", content, 16, 3, 10**6, 10**6, 10**6)
    path.write_bytes(bytes(content))


def png_chunks(path: Path, width: int, height: int, *chunks: tuple[bytes, bytes]) -> None:
    """An 8-bit grey PNG of such a header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    every = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(bytes(25 * 24))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in every))


def tiff(path: Path, width: int, next_ifd: int = 0) -> None:
    """A TIFF of one directory, which says such a width and where the next directory is."""
    tags = [
        (256, 4, width),
        (257, 4, 24),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 24),
        (279, 4, 576),
    ]
    body = b"II*\0" + struct.pack("<I", 8 + 576) + bytes(range(256)) * 2 + bytes(64)
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    path.write_bytes(body + ifd + struct.pack("<I", next_ifd or 0))


def saved(path: Path, mode: str, **options: Any) -> None:
    Image.fromarray(RNG.integers(0, 255, (24, 24, 3), dtype=np.uint8)).convert(mode).save(path, **options)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(path, "RGB", exif=exif)


def animated(path: Path) -> None:
    frames = [Image.fromarray(RNG.integers(0, 255, (24, 24), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut(path: Path, by: int = 40) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def png16(path: Path) -> None:
    """16 bits for each of three colours, which PIL cannot write."""
    raw = b"".join(b"\0" + RNG.integers(0, 255, 24 * 6, dtype=np.uint8).tobytes() for _ in range(24))
    png_chunks(path, 24, 24)
    content = path.read_bytes()
    head = struct.pack(">IIBBBBB", 24, 24, 16, 2, 0, 0, 0)
    data = zlib.compress(raw)
    parts = [(b"IHDR", head), (b"IDAT", data), (b"IEND", b"")]
    chunks = b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts
    )
    path.write_bytes(content[:8] + chunks)


# ---------------------------------------------------------------- links and lists that lead elsewhere


def outside(folder: Path) -> Path:
    """A scan beside the data folder."""
    return scan(folder.parent / "private" / "c0.nii.gz")


def link(folder: Path, kind: str = "imagesTr", target: Path | None = None) -> None:
    """A case of a phantom is a link to a file elsewhere."""
    path = first(folder, kind)
    place = folder.parent / "private" / path.name
    place.parent.mkdir()
    path.rename(place)
    path.symlink_to(place if target is None else target)


def linked_folder(folder: Path) -> None:
    volumes(folder)
    (folder / "imagesTr").rename(folder.parent / "elsewhere")
    (folder / "imagesTr").symlink_to(folder.parent / "elsewhere")


def linked_scans(folder: Path) -> None:
    """A folder of scans to predict."""
    folder.mkdir()
    (folder / "a.nii.gz").symlink_to(outside(folder))


def grid(path: Path, text: str) -> None:
    path.write_text(text)


def many_columns(path: Path) -> None:
    with open(table(path) / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerow(["image", "label", "x" * 200_000])
