"""One thread that answers one request after the other, and small pictures that wait together in one go."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from samadapt.ensemble import class_answers, label_answers
from samadapt.prediction import Classifier, Segmenter
from samadapt.serving.answers import Computed
from samadapt.serving.asked import Asked
from samadapt.serving.refusals import RefusedError
from samadapt.types import Case

T = TypeVar("T")
#: Told the number of requests that were answered in one go, and the seconds.
Observe = Callable[[int, float], None]


class Places:
    """So many requests are taken at a time, from their first byte until their answer is read; used by one thread."""

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place for the time of the block."""
        if self.taken >= self.count:
            raise RefusedError(
                429, f"{self.taken} requests are received, wait or are computed, and no more are taken; try again in a few seconds",
                {"Retry-After": "5"},
            )  # fmt: skip
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Beside:
    """Threads beside that of the server, for work that takes long.

    Args:
        count: of threads.
    """

    def __init__(self, count: int) -> None:
        self.count, self.pool = count, ThreadPoolExecutor(count, "samadapt-beside")
        self._begun: dict[int, float] = {}  # thread -> when its work began

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do it when a thread is free."""
        return self.pool.submit(self._do, work)

    def _do(self, work: Callable[[], T]) -> T:
        self._begun[threading.get_ident()] = time.perf_counter()
        try:
            return work()
        finally:
            del self._begun[threading.get_ident()]

    @property
    def busy_seconds(self) -> float:
        """For how long no thread has been free; 0 where one is."""
        begun = list(self._begun.values())
        return time.perf_counter() - max(begun) if len(begun) == self.count else 0.0


class Engine:
    """Answers in the order of asking.

    Args:
        folder: where an answer may stand for a moment, as a file.
    """

    def __init__(self, folder: Path, observe: Observe) -> None:
        self.folder, self._observe = folder, observe
        self._row: deque[Asked] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._begun: float | None = None  # when it began with what it computes
        self._thread = threading.Thread(target=self._run, name="samadapt-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request that is computed; what waits is given up."""
        with self._changed:
            self._stopped = True
            for asked in self._row:
                asked.answer.cancel()
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._row)

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """For how long it has been at what it computes; 0 where that is nothing."""
        begun = self._begun
        return 0.0 if begun is None else time.perf_counter() - begun

    def submit(self, asked: Asked) -> None:
        """Let it wait for its answer."""
        with self._changed:
            self._row.append(asked)
            self._changed.notify()

    def withdraw(self, asked: Asked) -> None:
        """Nobody waits for its answer: its place in the row is free."""
        with self._changed:
            if asked in self._row:
                self._row.remove(asked)

    def _run(self) -> None:
        while several := self._next():
            self._begun = begun = time.perf_counter()
            try:
                answer_together(several, self.folder)
            except Exception as error:
                for asked in several:
                    asked.fail(error)
            self._begun = None
            self._observe(len(several), time.perf_counter() - begun)

    def _next(self) -> list[Asked]:
        """The first that waits and, if it is small, the small ones behind it for the same model; none when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._row or self._stopped)
            if self._stopped:
                return []
            first = self._row.popleft()
            if not first.is_small:
                return [first]
            alike = [asked for asked in self._row if asked.model is first.model and asked.is_small]
            alike = alike[: first.model.most_together - 1]
            for asked in alike:
                self._row.remove(asked)
            return [first, *alike]


def answer_together(several: list[Asked], folder: Path) -> None:
    """Answer requests to one model, each by itself: what is wrong with one stops no other.

    Args:
        folder: where an answer may stand for a moment, as a file.
    """
    members = several[0].model.members
    read: dict[int, tuple[Asked, Case]] = {}  # by the identity of the case, which is kept for it

    def cases() -> Iterator[Case]:
        for asked in several:
            if (case := asked.read()) is not None:
                read[id(case)] = asked, case
                yield case

    if isinstance(members[0], Segmenter):
        segmenters = [each for each in members if isinstance(each, Segmenter)]
        for case, slices, agreement in label_answers(segmenters, cases(), flips=False):
            asked = read.pop(id(case))[0]
            with asked.told():
                asked.finish(Computed(asked.model, case, asked.unless_gone(slices), agreement, folder))
            if all(asked.gone.is_set() for asked in several):
                return
        return
    classifiers = [each for each in members if isinstance(each, Classifier)]

    def watch(case: Case, logits: Iterable[T]) -> Iterator[T]:
        return read[id(case)][0].unless_gone(logits)

    for case, compute in class_answers(classifiers, cases(), flips=False, watch=watch):
        asked = read[id(case)][0]
        with asked.told():
            asked.finish(Computed(asked.model, case, compute(), None, folder))
        del read[id(case)]
        if all(asked.gone.is_set() for asked in several):
            return
