"""A discrete-event model of `samadapt encode --ray`: workers, the driver, and the file system that all of them share.

What is simulated is a task, a shard of cases, as `cluster.spread` makes them. A worker computes the maps of its shard, then
writes them and waits for the disk. The driver and each limit of the file system are queues of one server: what arrives waits
until what came before is served. A worker that is lost keeps what it has written, and the rest of its shard is sent again.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import simpy

LISTING = "listing the cases"


@dataclass(frozen=True)
class Work:
    """What is to be encoded.

    Args:
        cases: how many.
        slices: of a case.
        seconds: of one core or GPU, for a slice: reading, preparing and the network.
        spread: standard deviation of the logarithm of the seconds, from task to task.
        bytes_read: of a case, compressed as it is stored.
        bytes_written: of a case, all its maps.
        files: that a case takes in the store.
        changes: calls for a case that change the store's folders: making, naming and awaiting its files and folder.
        look_ups: calls for a case that only ask.
    """

    cases: int
    slices: int
    seconds: float
    spread: float
    bytes_read: float
    bytes_written: float
    files: float
    changes: float
    look_ups: float

    def packed(self, cases: int) -> Work:
        """The same with so many cases in each file: a change that is proposed, not one that is made."""
        return dataclasses.replace(
            self, files=self.files / cases, changes=self.changes / cases, look_ups=self.look_ups / cases
        )


@dataclass(frozen=True)
class Workers:
    """Who works, and what happens to them.

    Args:
        number: of workers, one core or one GPU each.
        plan: seconds of the driver for a case before the first task is sent: listing, names, patients.
        send: seconds of the driver for a task.
        start: seconds until a worker has imported everything and loaded the network.
        losses: of a worker, for each hour.
        slow: share of the workers that are slow, and how many times as long they take.
        shards, most: as in `cluster.spread`: shards for each worker, and at most so many cases in one.
        retries: how often a shard is sent again.
    """

    number: int
    plan: float = 0.0
    send: float = 0.0
    start: float = 0.0
    losses: float = 0.0
    slow: tuple[float, float] = (0.0, 1.0)
    shards: int = 8
    most: int = 256
    retries: int = 3


@dataclass(frozen=True)
class Storage:
    """What all workers share. Rates are of all of it together: calls or bytes per second; waits are seconds of one call."""

    changes: float = math.inf
    look_ups: float = math.inf
    written: float = math.inf
    read: float = math.inf
    change_wait: float = 0.0
    look_up_wait: float = 0.0


@dataclass
class Outcome:
    """What came of it.

    Args:
        planning: seconds before the first task is sent, in which all workers wait.
        encoding: seconds from then on.
        again: shards that were sent again.
        use: the share of the encoding that each resource was in use.
    """

    planning: float = 0.0
    encoding: float = 0.0
    cases: int = 0
    failed: int = 0
    lost: int = 0
    again: int = 0
    tasks: int = 0
    use: dict[str, float] = field(default_factory=dict)

    @property
    def bottleneck(self) -> str:
        """What took most of the time: listing the cases, else the resource that was in use most."""
        return LISTING if self.planning > self.encoding else max(self.use, key=self.use.__getitem__)

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.planning + self.encoding


class Line:
    """A queue of one server. `use` gives the time at which it is through with what is asked of it now."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free, self.busy = rate, 0.0, 0.0

    def use(self, now: float, amount: float) -> float:
        taken = amount / self.rate
        self.free = max(self.free, now) + taken
        self.busy += taken
        return self.free


@dataclass
class _Shard:
    cases: int
    tries: int = 0


class Simulation:
    """One run.

    Args:
        seed: of how long tasks take and who is lost.
        most_tasks: where there are more, several are simulated as one that takes as much of everything.
    """

    def __init__(
        self, work: Work, workers: Workers, storage: Storage, seed: int = 0, most_tasks: int = 40_000
    ) -> None:
        self.work, self.workers, self.storage = work, workers, storage
        self.random, self.env, self.outcome = random.Random(seed), simpy.Environment(), Outcome()
        self.driver = Line(1.0)
        self.lines = {
            "changes of folders": Line(storage.changes),
            "look-ups": Line(storage.look_ups),
            "bytes written": Line(storage.written),
            "bytes read": Line(storage.read),
        }
        size = min(max(math.ceil(work.cases / (workers.shards * workers.number)), 1), workers.most)
        self.outcome.tasks = math.ceil(work.cases / size)
        self.together = math.ceil(self.outcome.tasks / most_tasks)
        size *= self.together
        sizes = [min(size, work.cases - start) for start in range(0, work.cases, size)]
        self.waiting = deque(_Shard(cases) for cases in sizes)
        self.running, self.ended = 0, 0.0
        self.computing, self.waited = 0.0, 0.0
        self.changed = self.env.event()

    def run(self) -> Outcome:
        """Until every case is encoded or has failed."""
        out, work = self.outcome, self.work
        out.planning = self.driver.use(0.0, work.cases * self.workers.plan)
        slow = round(self.workers.slow[0] * self.workers.number)
        for number in range(self.workers.number):
            self.env.process(self._worker(self.workers.slow[1] if number < slow else 1.0))
        self.env.run()
        out.encoding = self.ended - out.planning
        whole = max(out.encoding, 1e-9)
        of_workers = whole * self.workers.number
        out.use = {
            "computing": self.computing / of_workers,
            "waits for single calls": self.waited / of_workers,
        }
        out.use["driver"] = (self.driver.busy - out.planning) / whole
        out.use |= {name: line.busy / whole for name, line in self.lines.items()}
        return out

    # ------------------------------------------------ one worker

    def _worker(self, pace: float) -> Iterator[Any]:
        workers, env = self.workers, self.env
        loss = self._next_loss()
        yield env.timeout(self.outcome.planning + workers.start)
        while self.waiting or self.running:
            if not self.waiting:
                yield self.changed  # what another one has may come back
                continue
            shard = self.waiting.popleft()
            self.running += 1
            yield env.timeout(self.driver.use(env.now, workers.send * self.together) - env.now)
            left = yield from self._shard(shard, pace, loss)
            self.running -= 1
            if left:
                self._send_again(shard, left)
            self.ended = env.now
            self.changed.succeed()
            self.changed = env.event()
            if left or env.now >= loss:
                self.outcome.lost += 1
                yield env.timeout(workers.start)
                loss = env.now + self._next_loss()

    def _shard(self, shard: _Shard, pace: float, loss: float) -> Iterator[Any]:
        """Encode and write; how many cases are left where the worker is lost before."""
        env, work, storage = self.env, self.work, self.storage
        begin = env.now
        seconds = (
            shard.cases * work.slices * work.seconds * pace * self.random.lognormvariate(0.0, work.spread)
        )
        there = max(
            self._use("look-ups", shard.cases * work.look_ups),
            self._use("bytes read", shard.cases * work.bytes_read),
        )
        waits = (
            shard.cases * work.look_ups * storage.look_up_wait
        )  # in a second thread, while the network computes
        ready = begin + max(seconds, there - begin, waits)
        done = shard.cases
        if ready > loss:
            ready = max(loss, begin)
            done = math.floor(shard.cases * (ready - begin) / max(seconds, 1e-9))
            done = min(done, shard.cases - 1)
            seconds *= done / shard.cases
        self.computing += seconds
        yield env.timeout(ready - begin)
        written = max(
            self._use("changes of folders", done * work.changes),
            self._use("bytes written", done * work.bytes_written),
        )
        waits = done * work.changes * storage.change_wait
        self.waited += waits
        yield env.timeout(written - env.now + waits)
        self.outcome.cases += done
        return shard.cases - done

    def _use(self, name: str, amount: float) -> float:
        return self.lines[name].use(self.env.now, amount)

    def _next_loss(self) -> float:
        losses = self.workers.losses / 3600
        return self.random.expovariate(losses) if losses else math.inf

    def _send_again(self, shard: _Shard, left: int) -> None:
        if shard.tries >= self.workers.retries:
            self.outcome.failed += left
            return
        self.outcome.again += 1
        self.waiting.append(_Shard(left, shard.tries + 1))


def simulate(
    work: Work, workers: Workers, storage: Storage, seed: int = 0, most_tasks: int = 40_000
) -> Outcome:
    """See `Simulation`."""
    return Simulation(work, workers, storage, seed, most_tasks).run()
