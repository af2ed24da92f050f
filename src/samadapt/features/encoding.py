"""Cases in, files of feature maps out: read ahead, computed in batches that run across cases, written together.

A batch always has the same number of slices, the last one filled up, so that a map has the same digits whatever else
was encoded with it, and an encode that was killed and went on leaves what an undisturbed one leaves.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import torch
from torch import Tensor

from samadapt.ahead import ahead
from samadapt.encoders import EncoderSpec, Extractor
from samadapt.features.maps import MapSpec
from samadapt.features.notes import map_file, write_note
from samadapt.files import Drafts
from samadapt.progress import Progress
from samadapt.types import Case, Frame, SamAdaptError

_TOGETHER = 64  # slices: files are awaited on the disk for so many at once, which takes as long as for one
_SECONDS = 5.0  # and no finished case waits longer for its name, for a process may be killed
T = TypeVar("T")
#: The network of an encoder with the maps that are read of it: {tap: pooling window}, device.
Load = Callable[[EncoderSpec, Mapping[str, int], str | torch.device], Extractor]


@dataclass
class EncodeReport:
    """What `encode` did."""

    cases: int = 0
    written: int = 0
    bytes: int = 0
    slices: int = 0
    seconds: float = 0.0

    @staticmethod
    def together(reports: Sequence[EncodeReport], written: int) -> EncodeReport:
        """Of several encoders that ran over the same cases, one after the other.

        Args:
            written: of how many cases any of them wrote maps.
        """
        return EncodeReport(
            max((one.cases for one in reports), default=0),
            written,
            sum(one.bytes for one in reports),
            sum(one.slices for one in reports),
            sum(one.seconds for one in reports),
        )

    def summary(self, store: Path) -> str:
        """In words."""
        if self.written == 0:
            return f"nothing to do: all {self.cases} cases are in {store} already"
        return (
            f"encoded {self.written} of {self.cases} cases ({self.slices} slices, {self.bytes / 2**20:.1f} MiB) "
            f"into {store} in {self.seconds:.1f} s"
        )


def encode_line(total: int, encoder: str = "", quiet: bool = False) -> Callable[[EncodeReport], None]:
    """A progress callback of `FeatureStore.encode`: says on stderr how far an encoder is.

    Args:
        total: how many cases there are.
        encoder: its name, where several run one after the other.
    """
    line, by = Progress(quiet), f" with {encoder}" if encoder else ""

    def text(report: EncodeReport) -> str:
        rate = report.slices / max(report.seconds, 1e-9)
        return f"encoding{by}: {report.cases} of {total} cases, {rate:.1f} slices/s, {report.bytes / 2**20:.0f} MiB"

    return lambda report: line(lambda: text(report), report.cases / max(total, 1))


@final
class CaseDraft:
    """The maps of one case that are missing, while they are written.

    Args:
        case: whose maps.
        digest: the hash of its image.
        folder: where they will stand.
        maps: those that are missing.
        drafts: their files, and those of other cases.
    """

    def __init__(self, case: Case, digest: str, folder: Path, maps: MapSpec, drafts: Drafts) -> None:
        self.digest, self.folder, self.maps, self.drafts = digest, folder, maps, drafts
        self.depth = case.image.shape[1]
        self.slices = maps.views * self.depth  # as the encoder sees them
        self._case: Case | None = case
        self.left = self.slices
        self.sizes: dict[Path, int] = {}
        self._frame: Frame | None = None

    def inputs(self) -> Iterator[tuple[Tensor, Frame]]:
        """Every view of every slice as the encoder's input, views outermost."""
        assert self._case is not None
        seen, name = self.maps.view.of(self._case), self._case.id
        for view in range(self.maps.views):
            for index in range(self.depth):
                pixels, frame, _ = seen(index, (name, index, view) if view else None)
                yield pixels, frame
        self._case = None  # a large image is not kept while its maps are waited for

    def take(self, maps: Mapping[str, np.ndarray], frame: Frame) -> None:
        """The maps (C, h, w) of the next of its inputs."""
        first, self._frame = self._frame is None, self._frame or frame
        self.left -= 1
        for tap, window in self.maps.taps.items():
            path = map_file(self.folder, tap, window)
            if first:
                self.drafts.write(path, self._header(maps[tap].shape))
            self.drafts.write(path, maps[tap].tobytes())
            if self.left == 0:
                self.sizes[path] = self.drafts.end(path)

    def _header(self, shape: tuple[int, ...]) -> bytes:
        views, header = self.maps.views, io.BytesIO()
        whole = (views, self.depth, *shape)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": whole})
        return header.getvalue()

    def note(self) -> None:
        """Say in `frame.json` that its maps are there, once they are."""
        assert self._frame is not None
        write_note(self.folder, self.digest, self._frame, self.sizes, self.maps.views)


@final
class Encoding:
    """One pass over cases.

    Args:
        maps: what is wanted of them.
        batch_size: slices that the network sees at once; None: see `default_batch`.
        progress: called after each batch with the running report.
        load: gives the network; None: it is loaded.
    """

    def __init__(
        self,
        maps: MapSpec,
        device: str | torch.device,
        batch_size: int | None,
        progress: Callable[[EncodeReport], None] | None,
        load: Load | None = None,
    ) -> None:
        self.maps, self.device, self.progress = maps, device, progress
        self.load = load or EncoderSpec.load
        self.batch_size = batch_size or default_batch(maps.encoder.side, device)
        self.report, self._start = EncodeReport(), time.monotonic()

    def encode(self, cases: Iterator[CaseDraft], drafts: Drafts) -> None:
        """Write the maps of all of them; the network is loaded when there is a first one."""
        inputs = ((draft, *item) for draft in cases for item in draft.inputs())
        first = next(inputs, None)
        if first is None:
            return
        extractor = self.load(
            self.maps.encoder, self.maps.taps, self.device
        )  # before there is a second thread
        made = ahead(itertools.chain([first], inputs), 2 * self.batch_size)
        finished: list[CaseDraft] = []
        placed = time.monotonic()
        try:
            for batch in _batches(made, self.batch_size):
                arrays = self._maps(extractor, torch.stack([pixels for _, pixels, _ in batch]))
                for row, (draft, _, frame) in enumerate(batch):
                    draft.take({tap: array[row] for tap, array in arrays.items()}, frame)
                    if draft.left == 0:
                        finished.append(draft)
                self.report.slices += len(batch)
                many = sum(draft.slices for draft in finished) >= _TOGETHER
                if many or time.monotonic() - placed > _SECONDS:
                    self._place(finished, drafts)
                    placed = time.monotonic()
                self.tell()
        finally:  # what is finished is kept, whatever happened
            made.close()
            self._place(finished, drafts)

    def _maps(self, extractor: Extractor, batch: Tensor) -> dict[str, np.ndarray]:
        """{tap: (B, C, h, w) float16}, from a batch that is filled up to its full size."""
        missing = self.batch_size - len(batch)
        full = torch.cat([batch, batch[-1:].expand(missing, -1, -1, -1)]) if missing else batch
        return {tap: array[: len(batch)] for tap, array in _encode_batch(extractor, full).items()}

    def _place(self, finished: list[CaseDraft], drafts: Drafts) -> None:
        """The files of finished cases get their names; then, and not before, their notes say so."""
        drafts.place()
        while finished:
            draft = finished.pop()
            draft.note()
            self.report.bytes += sum(draft.sizes.values())
            self.report.cases += 1

    def tell(self) -> None:
        """The report as it stands, to whoever wants to know."""
        self.report.seconds = time.monotonic() - self._start
        if self.progress:
            self.progress(self.report)


def default_batch(side: int, device: str | torch.device = "cpu") -> int:
    """Four slices at a side of 256, more of smaller ones, one of larger ones, which fill a processor by themselves.

    A graphics card takes four times as many: it needs them to be busy, and a slice at 1024 takes it half a gigabyte.
    """
    cells = 4 * 256**2 // side**2
    return min(max(cells, 1), 32) * (1 if torch.device(device).type == "cpu" else 4)


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time; where making one fails, those before it come first."""
    problem: Exception | None = None
    done = False
    while not done:
        batch: list[T] = []
        try:
            for item in itertools.islice(items, size):
                batch.append(item)  # one by one: what came before an error stays
        except Exception as error:
            problem = error
        done = len(batch) < size
        if batch:
            yield batch
    if problem is not None:
        raise problem


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
