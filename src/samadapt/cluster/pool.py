"""Shards of work for workers that stay: each takes the next one when it is free; what a lost worker had is given to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from samadapt.types import SamAdaptError

if TYPE_CHECKING:
    from ray.exceptions import RayActorError, RayTaskError

S = TypeVar("S")
#: How often work is given out again that a worker was lost with.
RETRIES = 3


def cause_of(error: RayTaskError) -> Exception:
    """What went wrong in a task: a user's mistake is one here too."""
    cause = error.cause
    return cause if isinstance(cause, SamAdaptError) else error


class Pool(Generic[S]):
    """Workers that are started at once, as many as there are shards and room for them.

    Args:
        start: starts a worker: an actor with the methods `ready()`, which loads nothing heavy, and `work(shard)`.
        number: how many at most.
        what: the work, in words, for messages.
    """

    def __init__(self, start: Callable[[], Any], number: int, what: str) -> None:
        self.start, self.number, self.what = start, number, what

    def results(self, shards: Sequence[S]) -> Iterator[tuple[S, Any]]:
        """Each shard with its result, as it ends.

        Raises:
            SamAdaptError: a shard failed, or lost its worker more often than it is given out again.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        waiting = deque((shard, 0) for shard in shards)
        running: dict[Any, tuple[Any, tuple[S, int] | None]] = {}  # reference -> worker and what it works on
        left, failures = len(waiting), 0
        try:
            for _ in range(min(self.number, left)):
                self._begin(running)
            while left:
                (reference,), _ = ray.wait(list(running), num_returns=1)
                worker, given = running.pop(reference)
                try:
                    result = ray.get(reference)
                except RayTaskError as error:
                    raise cause_of(error) from error
                except RayActorError as error:  # its process or its machine is gone
                    failures = self._again(waiting, given, failures, error)
                    self._begin(running)
                    continue
                if given is not None:
                    left, failures = left - 1, 0
                    yield given[0], result
                if waiting:
                    given = waiting.popleft()
                    running[worker.work.remote(given[0])] = worker, given
        finally:
            for worker, _ in running.values():
                ray.kill(worker)

    def _begin(self, running: dict[Any, tuple[Any, tuple[S, int] | None]]) -> None:
        worker = self.start()
        running[worker.ready.remote()] = worker, None  # no shard waits for a worker that finds no room

    def _again(
        self, waiting: deque[tuple[S, int]], given: tuple[S, int] | None, failures: int, error: RayActorError
    ) -> int:
        """Put back what a lost worker had; how many were lost since the last success that had nothing."""
        if given is None:
            if failures >= RETRIES:
                raise SamAdaptError(
                    f"no worker for {self.what} could be started: {_first_line(error)}; expected machines with the same Python, samadapt "
                    "and folders as this one: look at `ray status` and Ray's logs"
                ) from error
            return failures + 1
        shard, tries = given
        if tries >= RETRIES:
            raise SamAdaptError(
                f"{self.what} lost its worker {tries + 1} times with the same cases (out of memory?): {_first_line(error)}; what was "
                "finished is kept, and the same command goes on: give the workers more memory, or fewer of them a machine "
                "(OMP_NUM_THREADS is the number of cores of each)"
            ) from error
        waiting.appendleft((shard, tries + 1))
        return failures


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
