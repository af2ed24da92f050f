"""MapSpec: which maps are meant. FeatureStore: maps on disk, encoded once. Pairs: what a learner sees.

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
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, final

import numpy as np
import torch
from torch import Tensor

from samadapt.encoders import EncoderSpec, Extractor
from samadapt.files import demand_writable, replacing, write_json
from samadapt.transforms import build_augmentation, identity_of, image_hash, place_label, seeded
from samadapt.types import IDENTITY, PIXELS, Case, Frame, SamAdaptError, encoder_taps
from samadapt.views import CaseView, View

_CURE = "make room or choose another --store, then rerun: finished cases are kept"
_FORMAT = 3  # change it when the meaning of the stored numbers changes


class Cases(Protocol):
    """What `Pairs` and the store need of a data set: cases by position, loaded when asked for."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def window(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def case(self, case_id: str) -> Case: ...


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
            paths = {n: stack.enter_context(replacing(self.folder / f"{n}.npy", _CURE)) for n in names}
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
            files: dict[str, BinaryIO] = {n: stack.enter_context(open(p, "wb")) for n, p in paths.items()}
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


# ---------------------------------------------------------------- pairs


class _CaseCache:
    """The cases used last, up to a number of bytes: few-label training sets stay in memory as a whole."""

    def __init__(self, data: Cases, view: View, limit_bytes: int = 1 << 30) -> None:
        self.data, self.view, self.limit, self.size = data, view, limit_bytes, 0
        self.kept: OrderedDict[str, CaseView] = OrderedDict()

    def __call__(self, case_id: str) -> CaseView:
        """The case, its window fitted."""
        if case_id in self.kept:
            self.kept.move_to_end(case_id)
            return self.kept[case_id]
        seen = self.view.of(self.data.case(case_id))
        self.kept[case_id] = seen
        self.size += seen.case.image.nbytes
        while self.size > self.limit and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].case.image.nbytes
        return seen


class _DrawnCache:
    """Pictures and targets of the views that were drawn: stored views repeat. Half a gigabyte; full, it keeps what it has.

    No eviction: views are drawn evenly, so none is likelier to come again than another.
    """

    def __init__(self, limit_bytes: int = 1 << 29) -> None:
        self.left = limit_bytes
        self.kept: dict[object, tuple[Tensor | None, Tensor]] = {}

    def keep(self, key: object, pixels: Tensor | None, target: Tensor) -> None:
        size = target.nbytes + (pixels.nbytes if pixels is not None else 0)
        if size <= self.left:
            self.left -= size
            self.kept[key] = pixels, target


class Pairs:
    """(features, target) of every slice of every case, deterministic given a key.

    With a store, the taps come from disk, one of the stored views drawn per item. Without, `pixels` alone is given, and
    `encoder_in_loop` says whether they must pass the encoder (not where the head reads only pixels).

    Args:
        data: the cases; labelled ones for training.
        maps: which maps, views and augmentation.
        store: where `encode` put these maps.
    """

    def __init__(self, data: Cases, maps: MapSpec, store: FeatureStore | None = None) -> None:
        if len(data) == 0:
            raise SamAdaptError("no cases: a learner needs at least one labelled case")
        self.store = store if maps.taps else None
        self.encoder_in_loop = bool(maps.taps) and store is None
        self.data, self.maps = data, maps if self.store else dataclasses.replace(maps, views=1)
        self._cases = _CaseCache(data, maps.view)
        self.items: list[tuple[str, int]] = []  # (case id, slice)
        self._drawn = _DrawnCache()
        self._identities: dict[str, Tensor] = {}
        self._maps: dict[str, dict[str, np.ndarray]] = {}
        for case_id in data.ids:
            case = self._cases(case_id).case
            if self.store:
                self._maps[case_id] = self.store.read(case, self.maps)[0]
            self.items += [(case_id, index) for index in range(case.image.shape[1])]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """The item as it is, not augmented."""
        return self.item(index, None)

    def item(self, index: int, key: tuple[object, ...] | None) -> tuple[dict[str, Tensor], Tensor]:
        """({tap: (C, h, w)}, target). The key draws the view; None is the image itself."""
        case_id, slice_index = self.items[index]
        number, augmented = 0, key is not None and self.maps.augmentation != "none"
        if augmented and self.store is not None:
            number = int(torch.randint(self.maps.views, (), generator=seeded("draw", *key)))  # type: ignore[misc]
        place = (case_id, slice_index, number)
        if augmented and self.store is None:
            pixels, target = self._draw(place, key)
        elif place in self._drawn.kept:
            pixels, target = self._drawn.kept[place]
        else:
            pixels, target = self._draw(place, place if number else None)
            self._drawn.keep(place, pixels, target)
        features: dict[str, Tensor] = {} if pixels is None else {PIXELS: pixels}
        for tap, maps in self._maps.get(case_id, {}).items():
            features[tap] = torch.from_numpy(maps[number, slice_index].astype(np.float32))
        if IDENTITY in self.maps.reads:
            case = self._cases(case_id).case
            features[IDENTITY] = self._identities.setdefault(case_id, identity_of(case))
        return features, target

    def _draw(
        self, place: tuple[str, int, int], key: tuple[object, ...] | None
    ) -> tuple[Tensor | None, Tensor]:
        """The picture, where it is read, and the target of a slice; the key draws the augmentation, if any."""
        case_id, slice_index, _ = place
        seen = self._cases(case_id)
        label = seen.case.label
        if label is None:
            raise SamAdaptError(f"case {case_id!r} has no label: it cannot be trained on")
        dense, reads_pixels = label.dim() == 3, self.store is None or PIXELS in self.maps.reads
        if not dense and not reads_pixels:
            return None, label
        pixels, frame, drawn = seen(slice_index, key)
        target = label if drawn is None else place_label(drawn, frame, len(self.data.classes))
        return pixels if reads_pixels else None, target

    def batch(
        self, indices: Sequence[int], key: tuple[object, ...] | None = None, first: int = 0
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Items stacked: ({tap: (B, C, h, w)}, (B, ...)); item i of the batch draws its view with (*key, first + i)."""
        items = [self.item(n, None if key is None else (*key, first + i)) for i, n in enumerate(indices)]
        features = {tap: torch.stack([f[tap] for f, _ in items]) for tap in items[0][0]}
        return features, torch.stack([target for _, target in items])
