"""FeatureStore: maps on disk, encoded once. Pairs: what a learner sees.

    features/<key>/<case id>-<hash>/neck@1.npy     # (V, D, C, h, w) float16; view 0 is the image itself
    features/<key>/<case id>-<hash>/frame.json     # Frame, hash of the image, list of maps; written last

The key covers everything that changes the numbers except the image; the image's own hash ends the name of its
folder (two data sets may both have a `train_00000`) and stands in `frame.json` in full: whatever differs is a
miss, never a warning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from samadapt.files import demand_writable, write_json
from samadapt.transforms import (
    Augmentation,
    Window,
    apply_window,
    build_augmentation,
    identity_of,
    image_hash,
    place_label,
    pool_taps,
    seeded,
)
from samadapt.types import IDENTITY, PIXELS, Case, Encoder, Frame, SamAdaptError, encoder_taps

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
class Recipe:
    """How slices become what the encoder sees: the intensity window and the augmented views."""

    window: str = "percentile"
    views: int = 1
    augmentation: str = "none"

    def __post_init__(self) -> None:
        build_augmentation(self.augmentation)
        Window.parse(self.window)
        if self.views < 1:
            raise SamAdaptError(f"views is {self.views}; expected at least 1 (view 0 is the image itself)")
        if self.views > 1 and self.augmentation == "none":
            raise SamAdaptError(
                f"{self.views} views without augmentation are {self.views} times the same image"
            )


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


def view_of(
    slice_: Tensor,
    label: Tensor | None,
    key: tuple[object, ...],
    augmentation: Augmentation | None,
    side: int,
) -> tuple[Tensor, Tensor | None]:
    """One seeded view of a windowed slice (C, H, W) and its label (H, W), for a square of `side`."""
    return (
        (slice_, label) if augmentation is None else augmentation(slice_, label, seeded("view", *key), side)
    )


class FeatureStore:
    """A folder of feature maps. Safe to kill, to rerun and to share between runs."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, encoder: Encoder, recipe: Recipe) -> Path:
        """Where the maps of this encoder and recipe lie."""
        views = recipe.augmentation if recipe.views > 1 else "none"
        spec = repr(build_augmentation(views))
        text = json.dumps([_FORMAT, encoder.fingerprint, recipe.window, spec])
        return self.root / hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(
        self,
        cases: Iterable[Case],
        encoder: Encoder,
        reads: Mapping[str, int],
        recipe: Recipe | None = None,
        batch_size: int = 4,
        progress: Callable[[EncodeReport], None] | None = None,
    ) -> EncodeReport:
        """Write the maps that are missing. Running it twice writes nothing the second time.

        Args:
            reads: tap -> pooling window, as a head declares it; `pixels` is never stored, for it is
                computed from the image faster than it would be read.
            progress: called after each batch and each case with the running report.
        """
        recipe = recipe or Recipe()
        wanted = encoder_taps(reads)
        unknown = sorted(set(wanted) - set(encoder.taps))
        if unknown:
            raise SamAdaptError(f"the encoder does not give {unknown}; it gives {sorted(encoder.taps)}")
        report, start = EncodeReport(), time.monotonic()
        root = self.folder(encoder, recipe)
        for case in cases:
            digest = image_hash(case)
            folder = _folder_of(root, case, digest)
            missing = {t: w for t, w in wanted.items() if not _complete(folder, digest, {t: w}, recipe)}
            if missing:
                if not report.written:  # a store that is complete may be read-only
                    demand_writable(self.root, "--store")
                _encode_case(folder, case, digest, encoder, missing, recipe, batch_size, report, progress)
                report.written += 1
            report.cases += 1
            report.seconds = time.monotonic() - start
            if progress:
                progress(report)
        return report

    def read(
        self, case: Case, encoder: Encoder, reads: Mapping[str, int], recipe: Recipe | None = None
    ) -> tuple[dict[str, np.ndarray], Frame]:
        """{tap: (V, D, C, h, w) float16, memory-mapped}, and the frame of view 0."""
        recipe = recipe or Recipe()
        digest = image_hash(case)
        folder = _folder_of(self.folder(encoder, recipe), case, digest)
        wanted = encoder_taps(reads)
        if not _complete(folder, digest, wanted, recipe):
            raise SamAdaptError(
                f"case {case.id!r} has no stored maps {sorted(_map_names(wanted))} for this encoder, window and "
                f"augmentation under {self.root}; run `samadapt encode` (or store.encode) with the same options"
            )
        maps = {tap: np.load(folder / f"{tap}@{window}.npy", mmap_mode="r") for tap, window in wanted.items()}
        frame = json.loads((folder / "frame.json").read_text())["frame"]
        return maps, Frame(tuple(frame["original_size"]), tuple(frame["input_size"]), frame["side"])


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


def _complete(folder: Path, digest: str, reads: Mapping[str, int], recipe: Recipe) -> bool:
    note = _read_note(folder, digest)
    maps = note.get("maps", {})
    try:
        return bool(note) and all(
            maps[name]["views"] >= recipe.views
            and (folder / f"{name}.npy").stat().st_size == maps[name]["bytes"]
            for name in _map_names(reads)
        )
    except (KeyError, TypeError, FileNotFoundError):  # a map is missing, or the note is not as we write it
        return False


def _encode_case(
    folder: Path,
    case: Case,
    digest: str,
    encoder: Encoder,
    reads: Mapping[str, int],
    recipe: Recipe,
    batch_size: int,
    report: EncodeReport,
    progress: Callable[[EncodeReport], None] | None,
) -> None:
    """All views of one case. Files get their names when all of them are complete; frame.json is the last."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = _prepared(case, encoder, recipe)
    depth, frame = case.image.shape[1], None
    names = _map_names(reads)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names}
    try:
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {n: stack.enter_context(open(p, "wb")) for n, p in temporary.items()}
            for batch, first_frame in _batches(inputs, batch_size):
                frame = frame or first_frame
                maps = _encode_batch(encoder, batch, reads)
                for name, tap in names.items():
                    if files[name].tell() == 0:
                        shape = (recipe.views, depth, *maps[tap].shape[1:])
                        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(files[name], header)
                    files[name].write(maps[tap].tobytes())
                report.slices += len(batch)
                if progress:
                    progress(report)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        assert frame is not None
        stored = dict(
            _read_note(folder, digest).get("maps", {})
        )  # read again: another process may have added to it
        for name, path in temporary.items():
            stored[name] = {"views": recipe.views, "bytes": path.stat().st_size}
            report.bytes += path.stat().st_size
            path.replace(folder / f"{name}.npy")
        note = {"image_sha256": digest, "frame": dataclasses.asdict(frame), "maps": stored}
        write_json(folder / "frame.json", note)
    except OSError as error:
        raise SamAdaptError(
            f"could not write the maps of case {case.id!r} to {folder}: {error.strerror or error}; "
            "make room or choose another --store, then rerun: finished cases are kept"
        ) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _prepared(case: Case, encoder: Encoder, recipe: Recipe) -> Iterator[tuple[Tensor, Frame]]:
    """Every view of every slice as the encoder's input, views outermost."""
    limits = Window.parse(recipe.window).fit(case.image)
    for view in range(recipe.views):
        augmentation = build_augmentation(recipe.augmentation) if view else None
        for index in range(case.image.shape[1]):
            slice_ = apply_window(case.image[:, index], limits)
            yield encoder.prepare(
                view_of(slice_, None, (case.id, index, view), augmentation, encoder.side)[0]
            )


def _batches(items: Iterator[tuple[Tensor, Frame]], size: int) -> Iterator[tuple[Tensor, Frame]]:
    batch: list[Tensor] = []
    frame = None
    for x, item_frame in items:
        frame = frame or item_frame
        batch.append(x)
        if len(batch) == size:
            yield torch.stack(batch), frame
            batch = []
    if batch and frame:
        yield torch.stack(batch), frame


@torch.inference_mode()
def _encode_batch(encoder: Encoder, batch: Tensor, reads: Mapping[str, int]) -> dict[str, np.ndarray]:
    device = next(encoder.parameters()).device
    maps = pool_taps(encoder(batch.to(device)), reads)
    arrays = {tap: x.float().cpu().numpy().astype(np.float16) for tap, x in maps.items()}
    for tap, array in arrays.items():
        if not np.isfinite(array).all():
            raise SamAdaptError(
                f"the encoder's map {tap!r} has values that float16 cannot hold; check the checkpoint and the image"
            )
    return arrays


# ---------------------------------------------------------------- pairs


class _CaseCache:
    """The cases used last, up to a number of bytes: few-label training sets stay in memory as a whole."""

    def __init__(self, data: Cases, limit_bytes: int = 1 << 30) -> None:
        self.data, self.limit, self.size = data, limit_bytes, 0
        self.kept: OrderedDict[str, tuple[Case, Tensor]] = OrderedDict()

    def __call__(self, case_id: str) -> tuple[Case, Tensor]:
        """The case and its fitted intensity limits (C, 2)."""
        if case_id in self.kept:
            self.kept.move_to_end(case_id)
            return self.kept[case_id]
        case = self.data.case(case_id)
        entry = case, Window.parse(self.data.window).fit(case.image)
        self.kept[case_id] = entry
        self.size += case.image.nbytes
        while self.size > self.limit and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1][0].image.nbytes
        return entry


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

    With a store, the taps come from disk, one of `views` drawn per item. Without, `pixels` alone is given and
    `live` says which encoder the learner must send them through (None where the head reads only pixels).

    Args:
        data: the cases; labelled ones for training.
        reads: tap -> pooling window, as the head declares it.
        store: where `encode` put the maps with the same encoder, window, views and augmentation.
        augmentation: name; with a store it says how views 1.. were made.
    """

    def __init__(
        self,
        data: Cases,
        encoder: Encoder,
        reads: Mapping[str, int],
        store: FeatureStore | None = None,
        views: int = 1,
        augmentation: str = "none",
    ) -> None:
        if len(data) == 0:
            raise SamAdaptError("no cases: a learner needs at least one labelled case")
        self.data, self.encoder, self.reads = data, encoder, dict(reads)
        mapped = bool(encoder_taps(reads))
        self.store = store if mapped else None
        self.live = encoder if mapped and store is None else None
        self.recipe = Recipe(data.window, views if self.store else 1, augmentation)
        self.augmentation = build_augmentation(augmentation)
        self._cases = _CaseCache(data)
        self.items: list[tuple[str, int]] = []  # (case id, slice)
        self._drawn = _DrawnCache()
        self._identities: dict[str, Tensor] = {}
        self._maps: dict[str, dict[str, np.ndarray]] = {}
        for case_id in data.ids:
            case, _ = self._cases(case_id)
            if self.store:
                self._maps[case_id] = self.store.read(case, encoder, self.reads, self.recipe)[0]
            self.items += [(case_id, index) for index in range(case.image.shape[1])]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """The item as it is, not augmented."""
        return self.item(index, None)

    def item(self, index: int, key: tuple[object, ...] | None) -> tuple[dict[str, Tensor], Tensor]:
        """({tap: (C, h, w)}, target). The key draws the view; None is the image itself."""
        case_id, slice_index = self.items[index]
        number = 0
        if key is not None and self.augmentation is not None and self.store is not None:
            number = int(torch.randint(self.recipe.views, (), generator=seeded("draw", *key)))
        live = key if self.store is None and self.augmentation is not None else None
        place = (case_id, slice_index, number)
        pixels, target = self._drawn.kept.get(place) or self._draw(place, live)
        features: dict[str, Tensor] = {} if pixels is None else {PIXELS: pixels}
        for tap, maps in self._maps.get(case_id, {}).items():
            features[tap] = torch.from_numpy(maps[number, slice_index].astype(np.float32))
        if IDENTITY in self.reads:
            case, _ = self._cases(case_id)
            features[IDENTITY] = self._identities.setdefault(case_id, identity_of(case))
        return features, target

    def _draw(
        self, place: tuple[str, int, int], live: tuple[object, ...] | None
    ) -> tuple[Tensor | None, Tensor]:
        """The picture, where it is read, and the target of one view of a slice; `live` draws a new one."""
        case_id, slice_index, number = place
        case, limits = self._cases(case_id)
        if case.label is None:
            raise SamAdaptError(f"case {case_id!r} has no label: it cannot be trained on")
        dense, reads_pixels = case.label.dim() == 3, self.store is None or PIXELS in self.reads
        slice_, label = view_of(
            apply_window(case.image[:, slice_index], limits),
            case.label[slice_index] if dense else None,
            live or place,
            self.augmentation if number or live else None,
            self.encoder.side,
        )
        pixels, frame = self.encoder.prepare(slice_) if dense or reads_pixels else (None, None)
        if dense:
            assert frame is not None and label is not None
            target = place_label(label, frame, len(self.data.classes))
        else:
            target = case.label
        pixels = pixels if reads_pixels else None
        if live is None:
            self._drawn.keep(place, pixels, target)
        return pixels, target

    def batch(
        self, indices: Sequence[int], key: tuple[object, ...] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Items stacked: ({tap: (B, C, h, w)}, (B, ...)); item i of the batch draws its view with (*key, i)."""
        items = [self.item(n, None if key is None else (*key, i)) for i, n in enumerate(indices)]
        features = {tap: torch.stack([f[tap] for f, _ in items]) for tap in items[0][0]}
        return features, torch.stack([target for _, target in items])
