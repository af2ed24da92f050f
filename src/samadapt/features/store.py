"""MapSpec: which maps are meant. FeatureStore: maps on disk, encoded once.

    features/<key>/<case id>-<hash>/neck@1.npy     # (V, D, C, h, w) float16; view 0 is the image itself
    features/<key>/<case id>-<hash>/frame.json     # Frame, hash of the image, list of maps; written last

The key covers everything that changes the numbers except the image; the image's own hash ends the name of its
folder (two data sets may both have a `train_00000`) and stands in `frame.json` in full: whatever differs is a
miss, never a warning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
import torch
from torch import Tensor

from samadapt.encoders import EncoderSpec, Extractor
from samadapt.files import demand_writable, open_draft, replacing, write_json
from samadapt.transforms import build_augmentation, image_hash
from samadapt.types import Case, Frame, SamAdaptError, encoder_taps
from samadapt.views import View

_CURE = "make room or choose another --store, then rerun: finished cases are kept"
_FORMAT = 3  # change it when the meaning of the stored numbers changes


@dataclass(frozen=True)
class MapSpec:
    """Which maps of a case are meant: everything that decides their numbers except the image.

    Args:
        encoder: whose maps.
        reads: tap -> pooling window, as a head declares it; `pixels` is never stored, for it is computed from the
            image faster than it would be read.
        window: of the intensities.
        views: how many views of a slice are stored; view 0 is the image itself.
        augmentation: draws the other views; without a store, a new one every time.
    """

    encoder: EncoderSpec
    reads: Mapping[str, int]
    window: str = "percentile"
    views: int = 1
    augmentation: str = "none"

    def __post_init__(self) -> None:
        self.encoder.view(self.window, self.augmentation)  # refuses unknown names
        if self.views < 1:
            raise SamAdaptError(f"views is {self.views}; expected at least 1 (view 0 is the image itself)")
        if self.views > 1 and self.augmentation == "none":
            raise SamAdaptError(
                f"{self.views} views without augmentation are {self.views} times the same image"
            )
        unknown = sorted(set(self.taps) - set(self.encoder.taps))
        if unknown:
            raise SamAdaptError(f"the encoder does not give {unknown}; it gives {sorted(self.encoder.taps)}")

    @property
    def taps(self) -> dict[str, int]:
        """Those of `reads` that are stored."""
        return encoder_taps(self.reads)

    @property
    def view(self) -> View:
        """How its slices are seen."""
        return self.encoder.view(self.window, self.augmentation)

    @property
    def unaugmented(self) -> MapSpec:
        """View 0 alone, as for cases that are scored."""
        return dataclasses.replace(self, views=1, augmentation="none")

    @property
    def key(self) -> str:
        """Names the folder of a store: whatever differs in the numbers differs in here."""
        augmentation = repr(build_augmentation(self.augmentation if self.views > 1 else "none"))
        text = json.dumps([_FORMAT, self.encoder.fingerprint, self.window, augmentation])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class EncodeReport:
    """What `encode` did."""

    cases: int = 0
    written: int = 0
    bytes: int = 0
    slices: int = 0
    seconds: float = 0.0

    def summary(self, store: Path) -> str:
        """In words."""
        if self.written == 0:
            return f"nothing to do: all {self.cases} cases are in {store} already"
        return (
            f"encoded {self.written} of {self.cases} cases ({self.slices} slices, {self.bytes / 2**20:.1f} MiB) "
            f"into {store} in {self.seconds:.1f} s"
        )


class FeatureStore:
    """A folder of feature maps. Safe to kill, to rerun and to share between runs."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def encode(
        self,
        cases: Iterable[Case],
        maps: MapSpec,
        device: str | torch.device = "cpu",
        batch_size: int = 4,
        progress: Callable[[EncodeReport], None] | None = None,
    ) -> EncodeReport:
        """Write the maps that are missing. Running it twice writes nothing the second time, and loads no network.

        Args:
            progress: called after each batch and each case with the running report.
        """
        report, start = EncodeReport(), time.monotonic()
        root, extractor = self.root / maps.key, None
        for case in cases:
            digest = image_hash(case)
            folder = _folder_of(root, case, digest)
            missing = {
                t: w for t, w in maps.taps.items() if not _complete(folder, digest, {t: w}, maps.views)
            }
            if missing:
                if extractor is None:
                    demand_writable(self.root, "--store")  # one that is complete may be read-only
                    extractor = maps.encoder.load(maps.taps, device)
                job = _Encoding(folder, case, digest, dataclasses.replace(maps, reads=missing))
                job.run(extractor, batch_size, report, progress)
                report.written += 1
            report.cases += 1
            report.seconds = time.monotonic() - start
            if progress:
                progress(report)
        return report

    def read(self, case: Case, maps: MapSpec) -> tuple[dict[str, np.ndarray], Frame]:
        """{tap: (V, D, C, h, w) float16, memory-mapped}, and the frame of view 0."""
        digest = image_hash(case)
        folder = _folder_of(self.root / maps.key, case, digest)
        if not _complete(folder, digest, maps.taps, maps.views):
            raise SamAdaptError(
                f"case {case.id!r} has no stored maps {sorted(_map_names(maps.taps))} for this encoder, window and "
                f"augmentation under {self.root}; run `samadapt encode` (or store.encode) with the same options"
            )
        found = {
            tap: np.load(folder / f"{tap}@{window}.npy", mmap_mode="r") for tap, window in maps.taps.items()
        }
        frame = json.loads((folder / "frame.json").read_text())["frame"]
        return found, Frame(tuple(frame["original_size"]), tuple(frame["input_size"]), frame["side"])


def _folder_of(root: Path, case: Case, digest: str) -> Path:
    # Both: the case's name seeds its views, and is not the only one of that name.
    return root / f"{case.id}-{digest[:12]}"


def _map_names(reads: Mapping[str, int]) -> dict[str, str]:
    return {f"{tap}@{window}": tap for tap, window in reads.items()}


def _read_note(folder: Path, digest: str) -> dict[str, Any]:
    """What stands in `frame.json`; nothing where it is missing, broken or about another image."""
    try:
        note = json.loads((folder / "frame.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    about = (
        isinstance(note, dict) and isinstance(note.get("maps"), dict) and isinstance(note.get("frame"), dict)
    )
    return note if about and note.get("image_sha256") == digest else {}


def _complete(folder: Path, digest: str, reads: Mapping[str, int], views: int) -> bool:
    note = _read_note(folder, digest)
    maps = note.get("maps", {})
    try:
        return bool(note) and all(
            maps[name]["views"] >= views and (folder / f"{name}.npy").stat().st_size == maps[name]["bytes"]
            for name in _map_names(reads)
        )
    except (KeyError, TypeError, FileNotFoundError):  # a map is missing, or the note is not as we write it
        return False


@final
@dataclass(frozen=True)
class _Encoding:
    """All views of one case. Files get their names when all of them are complete; frame.json is the last."""

    folder: Path
    case: Case
    digest: str
    maps: MapSpec

    def run(
        self,
        extractor: Extractor,
        batch_size: int,
        report: EncodeReport,
        progress: Callable[[EncodeReport], None] | None,
    ) -> None:
        names = _map_names(self.maps.taps)
        with ExitStack() as stack:
            paths = {n: stack.enter_context(replacing(self.folder / f"{n}.npy", cure=_CURE)) for n in names}
            frame = self._write(paths, extractor, batch_size, report, progress)
            sizes = {name: path.stat().st_size for name, path in paths.items()}
        report.bytes += sum(sizes.values())
        # Read again: another process may have added to it.
        stored = dict(_read_note(self.folder, self.digest).get("maps", {}))
        stored |= {name: {"views": self.maps.views, "bytes": size} for name, size in sizes.items()}
        note = {"image_sha256": self.digest, "frame": dataclasses.asdict(frame), "maps": stored}
        write_json(self.folder / "frame.json", note)

    def _write(
        self,
        paths: Mapping[str, Path],
        extractor: Extractor,
        batch_size: int,
        report: EncodeReport,
        progress: Callable[[EncodeReport], None] | None,
    ) -> Frame:
        """The maps of all views into these files; the frame of the first."""
        tap_of, frame = _map_names(self.maps.taps), None
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {n: stack.enter_context(open_draft(p)) for n, p in paths.items()}
            for batch, first_frame in _batches(self._inputs(), batch_size):
                frame = frame or first_frame
                maps = _encode_batch(extractor, batch)
                for name, file in files.items():
                    if file.tell() == 0:
                        shape = (self.maps.views, self.case.image.shape[1], *maps[tap_of[name]].shape[1:])
                        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(maps[tap_of[name]].tobytes())
                report.slices += len(batch)
                if progress:
                    progress(report)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        assert frame is not None
        return frame

    def _inputs(self) -> Iterator[tuple[Tensor, Frame]]:
        """Every view of every slice as the encoder's input, views outermost."""
        seen = self.maps.view.of(self.case)
        for view in range(self.maps.views):
            for index in range(self.case.image.shape[1]):
                pixels, frame, _ = seen(index, (self.case.id, index, view) if view else None)
                yield pixels, frame


def _batches(items: Iterator[tuple[Tensor, Frame]], size: int) -> Iterator[tuple[Tensor, Frame]]:
    while batch := list(itertools.islice(items, size)):
        yield torch.stack([x for x, _ in batch]), batch[0][1]


@torch.inference_mode()
def _encode_batch(extractor: Extractor, batch: Tensor) -> dict[str, np.ndarray]:
    maps = extractor(batch.to(next(extractor.parameters()).device))
    arrays = {tap: maps[tap].float().cpu().numpy().astype(np.float16) for tap in extractor.reads}
    for tap, array in arrays.items():
        if not np.isfinite(array).all():
            raise SamAdaptError(
                f"the encoder's map {tap!r} has values that float16 cannot hold; check the checkpoint and the image"
            )
    return arrays
