"""Work -> tasks of a Ray cluster. Numbers, files and messages are those of one machine."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

from samadapt.answering import Answered, PredictJob
from samadapt.cluster.pool import RETRIES, Pool, cause_of
from samadapt.cluster.worker import EncodeWorker, Home, PredictWorker, keys_of, work_on_cell
from samadapt.datasets import Dataset
from samadapt.experiment import Cell, Executor, Study, record_death
from samadapt.experiment.grid import fingerprints
from samadapt.features import EncodeReport, FeatureStore, MapSpec
from samadapt.files import demand_writable, marker
from samadapt.inputs import Input
from samadapt.types import Case, SamAdaptError

S = TypeVar("S", tuple[str, ...], range)
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

        self.room(study.threads)
        if not cells:
            return
        plain = dataclasses.replace(
            study, out=study.out.absolute(), store=FeatureStore(study.store.root.absolute())
        )
        weights = fingerprints({cell.learner: cell.method for cell in cells})
        settings: Any = {**self._resources(study.threads), "max_retries": RETRIES, "max_calls": 0}
        task: Any = ray.remote(**settings)(work_on_cell)
        with marker(study.out) as mark:
            home, shared = Home.of_driver(mark), ray.put(plain)
            running = {
                task.options(name=str(cell)).remote(
                    home, shared, cell, self.device, weights.get(cell.learner), kind
                ): cell
                for cell in cells
            }
            try:
                while running:
                    (reference,), _ = ray.wait(list(running), num_returns=1)
                    cell = running.pop(reference)
                    yield cell, self._ended(plain, cell, reference)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

    def _ended(self, study: Study, cell: Cell, reference: Any) -> str:
        import ray
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

        try:
            result, processor = ray.get(reference)
        except (
            RayTaskError
        ) as error:  # not of the cell, which records its own: the machine is not like the others
            raise cause_of(error) from error
        except (WorkerCrashedError, OutOfMemoryError) as error:
            why = "out of memory" if isinstance(error, OutOfMemoryError) else "out of memory?"
            return record_death(
                study,
                cell,
                f"its process died {RETRIES + 1} times ({why}); run the experiment again, with more --threads, so that fewer cells share "
                "a machine, if it stays so",
            )
        except RayError as error:
            return record_death(study, cell, f"Ray lost it: {str(error).strip().splitlines()[0]}")
        self.processors.add(processor)
        return str(result)

    # ------------------------------------------------ shards of cases

    def store(self, root: Path) -> FeatureStore:
        """The store at `root`, which all machines encode into."""
        return FeatureStore(root, spread=functools.partial(self.encode, root))

    def encode(
        self, root: Path, cases: Iterable[Case], maps: MapSpec, progress: Callable[[EncodeReport], None] | None
    ) -> EncodeReport:  # fmt: skip
        """`FeatureStore.encode` of a data set into the store at `root`, by all machines."""
        import ray

        assert isinstance(cases, Dataset)
        room = self.room(self.threads)
        demand_writable(root, "--store")
        root.mkdir(parents=True, exist_ok=True)
        report = EncodeReport()
        with marker(root) as mark:
            given = ray.put(cases), ray.put(maps)
            fixed = Home.of_driver(mark), *given, keys_of(maps), root.absolute(), self.device, self.threads
            settings: Any = self._resources(self.threads)
            actor: Any = ray.remote(**settings)(EncodeWorker)
            pool = Pool[tuple[str, ...]](lambda: actor.remote(*fixed), room, "encoding")
            start = time.monotonic()
            for _, (one, processor) in pool.results(_shards(cases.ids, room)):
                self.processors.add(processor)
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
        import ray

        if not cases:
            return
        room = self.room(self.threads)
        there = dataclasses.replace(job, device=self.device, out=job.out.absolute())
        with marker(job.out) as mark:
            fixed = Home.of_driver(mark), ray.put(there), ray.put(list(cases)), self.threads
            settings: Any = self._resources(self.threads)
            actor: Any = ray.remote(**settings)(PredictWorker)
            pool = Pool[range](lambda: actor.remote(*fixed), room, "prediction")
            ended: dict[int, list[Answered]] = {}
            begin = 0  # of the next shard in order
            for shard, (answers, processor) in pool.results(_shards(range(len(cases)), room, together)):
                self.processors.add(processor)
                ended[shard.start] = answers
                while begin in ended:
                    yield from (answers := ended.pop(begin))
                    begin += len(answers)


def _shards(items: S, workers: int, multiple: int = 1) -> list[S]:
    """The items in their order, in parts of about the same size.

    Args:
        multiple: the size of a part is one of it.
    """
    size = min(max(math.ceil(len(items) / (_SHARDS * workers)), 1), _MOST_CASES)
    size = math.ceil(size / multiple) * multiple
    return [items[start : start + size] for start in range(0, len(items), size)]
