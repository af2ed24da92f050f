"""The batches that a training draws from its examples, by step number alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from samadapt.features import Pairs
from samadapt.transforms import seeded

Batch = tuple[dict[str, Tensor], Tensor]
Batches = tuple[Batch, ...]


class Stream(IterableDataset):
    """Batches by step number alone, so that a resumed run sees what an undisturbed one would."""

    def __init__(
        self, pairs: Pairs, steps: int, size: int, seed: int, balance: bool = False, start: int = 0
    ) -> None:
        self.pairs, self.steps, self.size, self.seed = pairs, steps, size, seed
        self.balance, self.start = balance, start

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        share = self.size // (torch.distributed.get_world_size() if distributed else 1)
        for step in range(self.start + first, self.steps, stride):
            number, own = step * self.size, rank * share  # several processes together see the batch of one
            indices = [self.item_at(number + n) for n in range(own, own + share)]
            yield self.pairs.batch(indices, key=(self.seed, number), first=own)

    def item_at(self, number: int) -> int:
        """The item of the `number`-th draw: every item once in each round, in a new order; or balanced."""
        if self.balance:
            generator = seeded("balance", self.seed, number)
            return int(torch.multinomial(self._weights, 1, generator=generator))
        total = len(self.pairs)
        return int(_order(total, self.seed, number // total)[number % total])

    @functools.cached_property
    def _weights(self) -> Tensor:
        """One over the number of items that have the item's class; of several labels, the mean over them."""
        labels = [self.pairs.data.label(case_id) for case_id, _ in self.pairs.items]
        targets = torch.stack(labels).long()  # type: ignore[arg-type]  # the cases that train have labels
        columns = targets[:, None] if targets.dim() == 1 else targets  # (items, labels)
        shares = [1.0 / torch.bincount(column)[column].float() for column in columns.T]
        return torch.stack(shares).mean(0)


class Streams(IterableDataset):
    """A batch of each stream in every step."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = streams

    def __iter__(self) -> Iterator[Batches]:
        return zip(*self.streams, strict=True)


@functools.lru_cache(maxsize=4)
def _order(total: int, seed: int, round_: int) -> Tensor:
    return torch.randperm(total, generator=seeded("order", seed, round_))
