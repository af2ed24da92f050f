"""Who runs the cells of a study: this process, processes beside it, or what else is given as an `Executor`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import final

from samadapt.experiment.cells import Study, prepare_cell, run_cell
from samadapt.experiment.grid import Cell
from samadapt.files import write_json

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_DIED = "its process died (out of memory?); run the experiment again, with fewer --jobs if it stays so"


class Executor(ABC):
    """Runs cells, in any order. A cell depends on nothing but itself, so its numbers are the same wherever it runs."""

    @property
    @abstractmethod
    def places(self) -> str:
        """How many cells run at once, in words."""

    @abstractmethod
    def prepare(self, study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
        """Each with what was made of what it shares with others, in words; "" where it shares nothing."""

    @abstractmethod
    def run(self, study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
        """Each, as it ends, with "done" or the message of what went wrong, which is recorded in its folder too."""


@final
class LocalExecutor(Executor):
    """This process, or so many processes of this machine.

    Args:
        jobs: cells side by side.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    @property
    def places(self) -> str:
        return f"{self.jobs} at a time"

    def prepare(self, study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
        return ((cell, prepared(study, cell)) for cell in cells)

    def run(self, study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
        return _results(study, cells, self.jobs)


def prepared(study: Study, cell: Cell) -> str:
    """What was made of what a cell shares with others of its method and seed, or why it could not be, in words."""
    try:
        return prepare_cell(study, cell) or ""
    except Exception as error:  # its cells will fail with it, each recorded; the others go on
        return f"could not be prepared: {error}"


def record_death(study: Study, cell: Cell, message: str) -> str:
    """Of a cell that could not say itself what went wrong; the message."""
    folder = study.out / cell.digest
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "failed.json", {"message": message, "traceback": ""})
    return message


# ---------------------------------------------------------------- one after the other, or side by side


def _results(study: Study, cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, str]]:
    if jobs == 1:
        for cell in cells:
            yield cell, run_cell(study, cell)
        return
    waiting = list(cells)
    while waiting:
        with _few_threads(study.threads), _pool(min(jobs, len(waiting))) as pool:
            running: dict[Future[str], Cell] = {}
            broken = False
            while (waiting and not broken) or running:
                while waiting and not broken and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[pool.submit(run_cell, study, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    try:
                        yield cell, future.result()
                    except BrokenProcessPool:
                        # Which of the cells killed it cannot be told; the others run again with the next call.
                        broken = True
                        yield cell, record_death(study, cell, _DIED)


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl+C to this one, which ends them when it is stopped: their cells are resumed later."""
    others = set(multiprocessing.active_children())
    # Not fork: a forked child of a process that has used OpenMP can hang.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        with _interrupts_ignored():  # what is started here inherits it
            for _ in range(jobs):
                pool.submit(int)
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others may not say
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _few_threads(threads: int) -> AbstractContextManager[None]:
    """Children inherit the number of threads, so that cells side by side do not fight over the cores."""
    return variables(dict.fromkeys(_THREAD_VARIABLES, str(threads)))


@contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Variables of this process and its children while the block runs; None: not set."""

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    before = {name: os.environ.get(name) for name in values}
    put(values)
    try:
        yield
    finally:
        put(before)
