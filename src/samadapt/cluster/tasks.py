"""Tasks of Ray: sent as there is room, taken as they end. Ray sends a task again whose worker or machine is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from samadapt.cluster.worker import Home, work_on_cell
from samadapt.experiment import Cell, Study
from samadapt.types import SamAdaptError

S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
#: How often a task is sent again whose worker was lost.
RETRIES = 3


class Worker(Protocol[S_contra, R_co]):
    """What stays in a process from one shard to the next: loaded networks, for example."""

    def ready(self) -> None:
        """Refuse to work on a machine that is not like the driver's; asked before the first shard."""

    def work(self, shard: S_contra) -> R_co:
        """The result of one shard."""


#: In a worker process: the worker of the last work that it was given, and which work that was.
_worker: dict[str, Worker[Any, Any]] = {}


def work_on_shard(key: str, made_of: Sequence[Any], shard: Any) -> Any:
    """What runs in a worker process.

    Args:
        key: names the work; while it stays the same, so does the worker.
        made_of: one reference to the worker's class and arguments. In a list, Ray leaves it as it is, and it is fetched once.
    """
    import ray

    if key not in _worker:
        _worker.clear()  # what another work has loaded
        kind, arguments = ray.get(made_of[0])
        worker = kind(*arguments)
        worker.ready()
        _worker[key] = worker
    return _worker[key].work(shard)


def work_on_one_cell(home: Home, study: Study, cell: Cell, device: str, weights: str | None, kind: str) -> tuple[str, str]:  # fmt: skip
    """What runs in a worker process."""
    _worker.clear()  # networks of an encoding that is over
    return work_on_cell(home, study, cell, device, weights, kind)


def remote(function: Callable[..., Any], resources: Mapping[str, float]) -> Any:
    """The function as a task."""
    import ray

    # max_calls: a worker with a GPU would else end after each task, with all that it has loaded.
    settings: Any = {**resources, "max_retries": RETRIES, "max_calls": 0}
    return ray.remote(**settings)(function)


def as_they_end(send: Callable[[S], Any], items: Sequence[S], most: int) -> Iterator[tuple[S, Any]]:
    """Each item with the reference of its task, which has ended. What still runs when the caller stops is cancelled.

    Args:
        most: tasks that are sent and not ended, at a time.
    """
    import ray

    waiting, running = deque(items), dict[Any, S]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                item = waiting.popleft()
                running[send(item)] = item
            (reference,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(reference), reference
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


class LostError(SamAdaptError):
    """A task was sent as often as it is, and its worker was lost each time."""


def result_of(reference: Any) -> Any:
    """What a task gave.

    Raises:
        LostError: its worker was lost too often.
        SamAdaptError: what the task itself raised as a user's mistake.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, SamAdaptError) else error) from error
    except RayError as error:
        memory = "out of memory" if isinstance(error, OutOfMemoryError) else "out of memory?"
        raise LostError(
            f"its process died {RETRIES + 1} times ({memory}; Ray says: {first_line(error)})"
        ) from error


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
