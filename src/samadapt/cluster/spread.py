"""Work -> tasks of a Ray cluster. Numbers, files and messages are those of one machine."""

from __future__ import annotations

import dataclasses
import functools
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

from samadapt.answering import Answered, PredictJob
from samadapt.cluster.tasks import (
    LostError,
    Worker,
    as_they_end,
    remote,
    result_of,
    work_on_one_cell,
    work_on_shard,
)
from samadapt.cluster.worker import EncodeWorker, Home, PredictWorker, keys_of, sizes_of
from samadapt.datasets import Dataset
from samadapt.experiment import Cell, Executor, Study, record_death
from samadapt.experiment.grid import fingerprints
from samadapt.features import EncodeReport, FeatureStore, MapSpec, demand_store
from samadapt.files import marker
from samadapt.inputs import Input
from samadapt.types import Case, SamAdaptError

S = TypeVar("S", tuple[str, ...], range)
R = TypeVar("R")
#: Tasks for each worker that are sent before they can begin, so that no worker waits, and machines that join find work.
_AHEAD = 10
#: Shards for each worker, so that all end at nearly the same time; and cases of a shard, which a lost worker may have to do again.
_SHARDS, _MOST_CASES = 8, 256


@final
class Cluster(Executor):
    """A connected cluster, which runs the cells of a study and shards of cases.

    Args:
        device: of all its workers, cpu or cuda.
        threads: of a worker that encodes or predicts: as many as this process would use, since they change the last digits.
        nodes: the resources of each machine, as Ray names them.
    """

    def __init__(self, device: str, threads: int, nodes: Sequence[Mapping[str, float]]) -> None:
        self.device, self.threads, self.nodes = device, threads, nodes
        self.processors: set[str] = set()  # that took part

    # ------------------------------------------------ what fits

    def _resources(self, threads: int) -> dict[str, float]:
        return {"num_cpus": threads, "num_gpus": 1 if self.device == "cuda" else 0}

    def room(self, threads: int) -> int:
        """How many workers of so many threads work at once; refused where it is none, for Ray would wait for ever."""
        each = [math.floor(node.get("CPU", 0) / threads) for node in self.nodes]
        if self.device == "cuda":
            each = [min(n, math.floor(node.get("GPU", 0))) for n, node in zip(each, self.nodes, strict=True)]
        if not sum(each):
            most = max((math.floor(node.get("CPU", 0)) for node in self.nodes), default=0)
            raise SamAdaptError(
                f"a worker takes {threads} cores{' and a GPU' * (self.device == 'cuda')}, and no machine of the Ray cluster has them (at most "
                f"{most} cores): set OMP_NUM_THREADS (or --threads, of an experiment) to fewer, or add a machine"
            )
        return sum(each)

    @property
    def places(self) -> str:
        return "on the Ray cluster"

    @property
    def description(self) -> str:
        """What it has, in words."""
        cores = sum(math.floor(node.get("CPU", 0)) for node in self.nodes)
        return f"Ray cluster of {len(self.nodes)} machine{'s'[: len(self.nodes) != 1]} with {cores} cores ({self.device})"

    def note(self) -> str | None:
        """What to say at the end, if anything."""
        if self.device == "cuda" or len(self.processors) < 2:
            return None
        return (
            f"processors of several kinds took part ({'; '.join(sorted(self.processors))}): the last digits depend on which of them "
            "computed what"
        )

    # ------------------------------------------------ cells of a study

    def prepare(self, study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
        return self._cells(study, cells, "prepare")

    def run(self, study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
        return self._cells(study, cells, "run")

    def _cells(self, study: Study, cells: list[Cell], kind: str) -> Iterator[tuple[Cell, str]]:
        import ray

        room = self.room(study.threads)
        if not cells:
            return
        plain = dataclasses.replace(study, out=study.out.absolute(), store=FeatureStore(study.store.place))
        weights = fingerprints({cell.learner: cell.method for cell in cells})
        task = remote(work_on_one_cell, self._resources(study.threads))
        with marker(study.out) as mark:
            home, shared = Home.of_driver(mark), ray.put(plain)

            def send(cell: Cell) -> Any:
                return task.options(name=str(cell)).remote(
                    home, shared, cell, self.device, weights.get(cell.learner), kind
                )

            for cell, reference in as_they_end(send, cells, _AHEAD * room):
                try:
                    result, processor = result_of(reference)
                    self.processors.add(processor)
                except LostError as error:
                    more = "with more --threads, so that fewer cells share a machine, if it stays so"
                    result = record_death(plain, cell, f"{error}; run the experiment again, {more}")
                yield cell, result

    # ------------------------------------------------ shards of cases

    def store(self, root: Path) -> FeatureStore:
        """The store at `root`, which all machines encode into."""
        return FeatureStore(root, spread=functools.partial(self.encode, root))

    def encode(
        self, root: Path, cases: Iterable[Case], maps: MapSpec, progress: Callable[[EncodeReport], None] | None
    ) -> EncodeReport:  # fmt: skip
        """`FeatureStore.encode` of a data set into the store at `root`, by all machines."""
        assert isinstance(cases, Dataset)
        room = self.room(self.threads)
        demand_store(root)
        store = FeatureStore(root)
        shared = store.place == store.root.absolute()  # else each machine has a mirror of its own
        store.root.mkdir(parents=True, exist_ok=True)
        report, start = EncodeReport(), time.monotonic()
        with marker(store.root if shared else Path.cwd()) as mark:
            fixed = (
                Home.of_driver(mark),
                cases,
                maps,
                keys_of(maps),
                store.place,
                self.device,
                self.threads,
            )
            shards = _shards(cases.ids, room)
            for _, one in self._results("encoding", EncodeWorker, fixed, shards):
                for name in ("cases", "written", "bytes", "slices"):
                    setattr(report, name, getattr(report, name) + getattr(one, name))
                report.seconds = time.monotonic() - start
                if progress:
                    progress(report)
        return report

    def predict(self, job: PredictJob, cases: Sequence[Input], together: int) -> Iterator[Answered]:
        """`PredictJob.answer` by all machines, in the order of the cases.

        Args:
            together: how many pictures pass the network at once; the last digits depend on it, so no shard cuts a batch.
        """
        if not cases:
            return
        there = dataclasses.replace(job, device=self.device, out=job.out.absolute())
        shards = _shards(range(len(cases)), self.room(self.threads), together)
        with marker(job.out) as mark:
            fixed = Home.of_driver(mark), there, there.identity(), list(cases), sizes_of(cases), self.threads
            ended: dict[int, list[Answered]] = {}
            begin = 0  # of the next shard in order
            for shard, answers in self._results("prediction", PredictWorker, fixed, shards):
                ended[shard.start] = answers
                while begin in ended:
                    yield from (answers := ended.pop(begin))
                    begin += len(answers)

    def _results(
        self, what: str, kind: Callable[..., Worker[S, tuple[R, str]]], arguments: Sequence[Any], shards: Sequence[S]
    ) -> Iterator[tuple[S, R]]:  # fmt: skip
        """Each shard with its result, as it ends.

        Args:
            what: the work, in words, for messages.
            kind: of the workers, and what they are made with.
        """
        import ray

        made_of = ray.put((kind, arguments))
        task = remote(work_on_shard, self._resources(self.threads)).options(name=what)
        key = secrets.token_hex(8)

        def send(shard: S) -> Any:
            return task.remote(key, [made_of], shard)

        for shard, reference in as_they_end(send, shards, _AHEAD * self.room(self.threads)):
            try:
                result, processor = result_of(reference)
            except LostError as error:
                raise SamAdaptError(
                    f"{what} of {len(shard)} cases failed: {error}; what was finished is kept, and the same command goes on: give the "
                    "workers more memory, or have fewer of them on a machine (OMP_NUM_THREADS is the number of cores of each)"
                ) from error
            self.processors.add(processor)
            yield shard, result


def _shards(items: S, workers: int, multiple: int = 1) -> list[S]:
    """The items in their order, in parts of about the same size.

    Args:
        multiple: the size of a part is one of it.
    """
    size = min(max(math.ceil(len(items) / (_SHARDS * workers)), 1), _MOST_CASES)
    size = math.ceil(size / multiple) * multiple
    return [items[start : start + size] for start in range(0, len(items), size)]
