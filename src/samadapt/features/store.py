"""FeatureStore: maps on disk, encoded once.

    features/<key>/<case id>-<hash>/neck@1.npy     # (V, D, C, h, w) float16; view 0 is the image itself
    features/<key>/<case id>-<hash>/frame.json     # Frame, hash of the image, list of maps; written last

The key covers everything that changes the numbers except the image; the image's own hash ends the name of its
folder (two data sets may both have a `train_00000`) and stands in `frame.json` in full: whatever differs is a
miss, never a warning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from samadapt.features.encoding import CaseDraft, EncodeReport, Encoding, Load
from samadapt.features.maps import MapSpec
from samadapt.features.notes import folder_of, map_file, missing_maps
from samadapt.features.remote import remote_of
from samadapt.files import Drafts, demand_writable
from samadapt.transforms import image_hash
from samadapt.types import Case, Frame, SamAdaptError, tap_of

_CURE = "make room or choose another --store, then rerun: finished cases are kept"


#: `FeatureStore.encode` as others do it: cases, maps, progress -> what was done.
Spread = Callable[[Iterable[Case], MapSpec, Callable[[EncodeReport], None] | None], EncodeReport]


class FeatureStore:
    """A folder of feature maps. Safe to kill, to rerun and to share between runs and machines.

    Args:
        root: the folder, or the URL of one (`s3://bucket/features`), of which this machine then keeps a mirror.
        load: gives the network of an encoder; a long-lived process may keep it. None: it is loaded for each `encode`.
        spread: encodes in place of this process, as on a cluster.

    Raises:
        SamAdaptError: `root` is a URL that nothing here can read.
    """

    def __init__(self, root: str | Path, load: Load | None = None, spread: Spread | None = None) -> None:
        self._remote = remote_of(root)
        self.root = Path(root) if self._remote is None else self._remote.mirror
        #: By which another process opens the same store: an absolute path, or the URL.
        self.place = self.root.absolute() if self._remote is None else self._remote.url
        self._load, self._spread = load, spread

    def encode(
        self,
        cases: Iterable[Case],
        maps: MapSpec,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        progress: Callable[[EncodeReport], None] | None = None,
    ) -> EncodeReport:
        """Write the maps that are missing. Running it twice writes nothing the second time, and loads no network.

        Of several encoders one runs after the other, and each has its own folder, as if it were read alone.

        Args:
            batch_size: slices that the network sees at once, of several cases where they have few; None: 4 of a side
                of 256, more of smaller ones.
            progress: called after each batch with the running report.
        """
        if self._spread is not None:
            return self._spread(cases, maps, progress)
        parts = maps.parts.values()
        if len(parts) > 1 and isinstance(cases, Iterator):
            cases = list(cases)  # it can be gone through only once
        runs = [Encoding(part, device, batch_size, progress, self._load) for part in parts]
        begun: list[set[Path]] = [set() for _ in runs]
        for run, folders in zip(runs, begun, strict=True):
            try:
                with Drafts(_CURE) as drafts:
                    run.encode(self._incomplete(cases, run, folders, drafts), drafts)
            finally:  # what is finished is kept, whatever happened
                self._send(folders)
            run.tell()
        written = len({folder.name for folders in begun for folder in folders})
        return EncodeReport.together([run.report for run in runs], written)

    def _incomplete(
        self, cases: Iterable[Case], run: Encoding, begun: set[Path], drafts: Drafts
    ) -> Iterator[CaseDraft]:
        """A draft for each case of which maps are missing; their folders are noted in `begun`."""
        maps, report = run.maps, run.report
        for case in cases:
            digest = image_hash(case)
            folder = folder_of(self.root / maps.key, case, digest)
            missing = {} if folder in begun else self._missing(folder, digest, maps)
            if not missing:
                report.cases += 1
                continue
            if report.written == 0:
                demand_writable(self.root, "--store")  # one that is complete may be read-only
            report.written += 1
            begun.add(folder)
            yield CaseDraft(case, digest, folder, dataclasses.replace(maps, reads=missing), drafts)

    def _missing(self, folder: Path, digest: str, maps: MapSpec) -> dict[str, int]:
        """Tap -> window of the maps of a case that are nowhere."""
        if self._remote is not None:
            self._remote.sync(folder)
        return missing_maps(folder, digest, maps)

    def _send(self, folders: Iterable[Path]) -> None:
        """Of a mirror: what was encoded of these cases."""
        if self._remote is not None:
            for folder in sorted(folders):
                self._remote.sync(folder, fresh=True)

    def disk_note(self, size: int) -> str:
        """How much of the disk feature maps take, of which some may be there already.

        Args:
            size: in bytes.
        """
        amount = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
        return (
            f"feature maps take {amount} of disk in {self.root}; those that are there already are used again"
        )

    def holds(self, case: Case, maps: MapSpec) -> bool:
        """Whether all of these maps of the case are there, so that `read` gives them."""
        digest = image_hash(case)
        return not any(
            missing_maps(folder_of(self.root / part.key, case, digest), digest, part)
            for part in maps.parts.values()
        )

    def read(self, case: Case, maps: MapSpec) -> tuple[dict[str, np.ndarray], Frame]:
        """{tap: (V, D, C, h, w) float16, memory-mapped}, and the frame of view 0, which is the same for all encoders."""
        digest, found = image_hash(case), dict[str, np.ndarray]()
        for name, part in maps.parts.items():
            own, frame = self._read(case, digest, part)
            found |= {tap_of(name, tap): values for tap, values in own.items()}
        return found, frame

    def _read(self, case: Case, digest: str, maps: MapSpec) -> tuple[dict[str, np.ndarray], Frame]:
        """As `read`, of one encoder."""
        folder = folder_of(self.root / maps.key, case, digest)
        if self._missing(folder, digest, maps):
            names = sorted(map_file(folder, tap, window).stem for tap, window in maps.taps.items())
            raise SamAdaptError(
                f"case {case.id!r} has no stored maps {names} for this encoder, window and augmentation under {self.root}; "
                "run `samadapt encode` (or store.encode) with the same options"
            )
        found = {
            tap: np.load(map_file(folder, tap, window), mmap_mode="r", allow_pickle=False)
            for tap, window in maps.taps.items()
        }
        frame = json.loads((folder / "frame.json").read_text())["frame"]
        return found, Frame(tuple(frame["original_size"]), tuple(frame["input_size"]), frame["side"])
