"""What runs on the workers. Nothing here imports Ray: a worker is any process that the functions below are called in.

Before it works, a worker looks whether its machine is like the driver's, and refuses where it is not: other versions of
the packages, other weights under the same name or other files under the same path would give other numbers in silence.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch

from samadapt.answering import Answered, PredictJob
from samadapt.datasets import Dataset
from samadapt.encoders import EncoderSpec, Extractor
from samadapt.experiment import Cell, Study, run_cell
from samadapt.experiment import prepared as prepare
from samadapt.features import EncodeReport, FeatureStore, MapSpec
from samadapt.inputs import Input
from samadapt.runs import environment
from samadapt.types import SamAdaptError

T = TypeVar("T")


@dataclass(frozen=True)
class Home:
    """Where the driver is, for its workers to be alike.

    Args:
        folder: its current folder, which relative paths begin at.
        marker: a file that it made in the folder that all write into.
        packages: name -> version, as in `environment`.
    """

    folder: Path
    marker: Path
    packages: Mapping[str, str]

    @staticmethod
    def of_driver(marker: Path) -> Home:
        """Of this process."""
        return Home(Path.cwd(), marker.absolute(), environment()["packages"])

    def enter(self) -> None:
        """Go to the driver's folder; refuse to work where results would be lost or be others.

        Raises:
            SamAdaptError: with the name of this machine, and what is not alike.
        """
        here = platform.node()
        if not self.marker.is_file():
            raise SamAdaptError(
                f"the machine {here} does not see {self.marker.parent} as the driver does; expected a folder on a file system that "
                "all machines of the cluster share: choose such a one for --out and --store"
            )
        if not self.folder.is_dir():
            raise SamAdaptError(
                f"the machine {here} has no folder {self.folder}, where the driver was started; start it in a folder on a file "
                "system that all machines of the cluster share"
            )
        os.chdir(self.folder)
        own = environment()["packages"]
        for name, wanted in self.packages.items():
            if own[name] != wanted:
                raise SamAdaptError(
                    f"the machine {here} has {name} {own[name]} and the driver {wanted}; the numbers could differ: install the same "
                    "versions on all machines of the cluster"
                )


@functools.cache
def processor() -> str:
    """What computes here. Processors of several kinds round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


# ---------------------------------------------------------------- cells


def work_on_cell(
    home: Home, study: Study, cell: Cell, device: str, weights: str | None, kind: str
) -> tuple[str, str]:
    """Run a cell, or prepare what it shares; the result as `Executor.run` gives it, and the processor.

    Args:
        weights: the fingerprint of what its method starts from, as the driver finds it.
        kind: a key of `_KINDS`.
    """
    home.enter()
    _demand_data(study.data)
    _demand_weights(cell, weights)
    cell = dataclasses.replace(cell, config=dataclasses.replace(cell.config, device=device))
    return _KINDS[kind](study, cell), processor()


_KINDS: Mapping[str, Callable[[Study, Cell], str]] = {"run": run_cell, "prepare": prepare}
_checked: set[str] = set()  # hashes of data sets that this process has found to be the driver's


def _demand_data(data: Dataset) -> None:
    """Refuse files that are not those that the driver has seen, once in each process."""
    if data.hash in _checked:
        return
    if dataclasses.replace(data, name=data.name).hash != data.hash:  # a fresh one, which reads the files
        raise SamAdaptError(
            f"the machine {platform.node()} has other files in {data.root} than the driver; put the data set on a file system that "
            "all machines of the cluster share, or copy it again"
        )
    _checked.add(data.hash)


def _demand_weights(cell: Cell, wanted: str | None) -> None:
    learner = cell.method.starts_from
    if wanted is None or learner is None:
        return
    if (own := learner.spec().fingerprint) != wanted:
        raise SamAdaptError(
            f"the machine {platform.node()} has other weights of encoder {learner.encoder!r} than the driver ({own} in place of "
            f"{wanted}); put the checkpoint on a file system that all machines of the cluster share"
        )


# ---------------------------------------------------------------- encoding


@final
class EncodeWorker:
    """Encodes shards of a data set; the network is loaded once.

    Args:
        key: of the maps, as the driver finds it.
        threads: that the network computes with.
    """

    def __init__(
        self, home: Home, data: Dataset, maps: MapSpec, key: Sequence[str], root: str | Path, device: str, threads: int
    ) -> None:  # fmt: skip
        self.home, self.data, self.maps, self.key, self.root = home, data, maps, key, root
        self.device, self.threads = device, threads
        self._networks: dict[Any, Extractor] = {}

    def ready(self) -> None:
        """Refuse to work on a machine that is not like the driver's."""
        self.home.enter()
        torch.set_num_threads(self.threads)
        if (own := keys_of(self.maps)) != tuple(self.key):
            raise SamAdaptError(
                f"the machine {platform.node()} has other weights of encoder {self.maps.encoder.name!r} than the driver (its maps would be "
                f"stored under {', '.join(own)} in place of {', '.join(self.key)}); put the checkpoint on a file system that all machines of the "
                "cluster share"
            )

    def work(self, shard: Sequence[str]) -> tuple[EncodeReport, str]:
        """Encode these cases, as far as they are not stored; and the processor."""
        store = FeatureStore(self.root, load=self._network)
        return store.encode(self.data[list(shard)], self.maps, self.device), processor()

    def _network(
        self, encoder: EncoderSpec, taps: Mapping[str, int], device: str | torch.device
    ) -> Extractor:
        key = (encoder, tuple(sorted(taps.items())))
        if key not in self._networks:
            self._networks[key] = encoder.load(taps, device)
        return self._networks[key]


def keys_of(maps: MapSpec) -> tuple[str, ...]:
    """The folders of a store that the maps lie in, one for each encoder."""
    return tuple(part.key for part in maps.parts.values())


# ---------------------------------------------------------------- prediction

Sizes = tuple[int | None, ...]


def sizes_of(cases: Sequence[Input]) -> list[Sizes]:
    """Of each case the bytes of its files; None for one that is not there."""
    return [tuple(path.stat().st_size if path.is_file() else None for path in case.files) for case in cases]


@final
class PredictWorker:
    """Answers for shards of cases; the models are loaded once.

    Args:
        identity: of the job, as the driver finds it.
        cases: all of them, in order.
        sizes: of their files, as the driver finds them.
        threads: that the networks compute with.
    """

    def __init__(
        self, home: Home, job: PredictJob, identity: str, cases: Sequence[Input], sizes: Sequence[Sizes], threads: int
    ) -> None:  # fmt: skip
        self.home, self.job, self.identity, self.threads = home, job, identity, threads
        self.cases, self.sizes = cases, sizes
        self._members: list[Any] = []

    def ready(self) -> None:
        """Refuse to work on a machine that is not like the driver's."""
        self.home.enter()
        torch.set_num_threads(self.threads)
        if self.job.identity() != self.identity:
            raise SamAdaptError(
                f"the machine {platform.node()} has another model in {', '.join(map(str, self.job.runs))} than the driver; put the run "
                "folder on a file system that all machines of the cluster share, or copy it again"
            )

    def work(self, shard: range) -> tuple[list[Answered], str]:
        """Answer for the cases of these numbers; and the processor."""
        for i in shard:
            if sizes_of([self.cases[i]]) != [self.sizes[i]]:
                raise SamAdaptError(
                    f"the machine {platform.node()} has other files of case {self.cases[i].id!r} than the driver; put the scans on a "
                    "file system that all machines of the cluster share"
                )
        self._members = self._members or list(self.job.load())
        return list(self.job.answer(self._members, [self.cases[i] for i in shard])), processor()
