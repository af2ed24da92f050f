"""The batches that a training draws from its examples, by step number alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from samadapt.features import Pairs
from samadapt.transforms import seeded

Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Mixture:
    """Examples with labels, and others with pseudo-labels that have a share of each batch.

    Args:
        labelled: how many of the items, from the first on, have labels.
        share: of the items that are drawn, of those after them; spread evenly, so that processes that share a batch
            have the same of both.
    """

    pairs: Pairs
    labelled: int
    share: float = 0.0

    def part_at(self, number: int) -> tuple[range, int]:
        """Which items the `number`-th draw is from, and how many draws from them came before."""
        before = int(number * self.share)
        if int((number + 1) * self.share) > before and self.labelled < len(self.pairs):
            return range(self.labelled, len(self.pairs)), before
        return range(self.labelled), number - before


class Stream(IterableDataset):
    """Batches by step number alone, so that a resumed run sees what an undisturbed one would.

    Args:
        examples: what is drawn from.
        steps: where it ends, counted from the training's beginning.
        size: of a batch.
        start: the step to begin with.
    """

    def __init__(
        self,
        examples: Pairs | Mixture,
        steps: int,
        size: int,
        seed: int,
        balance: bool = False,
        start: int = 0,
    ) -> None:
        self.mixture = examples if isinstance(examples, Mixture) else Mixture(examples, len(examples))
        self.pairs, self.steps, self.size, self.seed = self.mixture.pairs, steps, size, seed
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
        part, count = self.mixture.part_at(number)
        if self.balance:
            generator, weights = seeded("balance", self.seed, number), self._weights[part.start : part.stop]
            return part[int(torch.multinomial(weights, 1, generator=generator))]
        round_, place = divmod(count, len(part))
        return part[int(_order(len(part), self.seed, round_)[place])]

    @functools.cached_property
    def _weights(self) -> Tensor:
        """One over the number of items that have the item's class; of several labels, the mean over them."""
        labels = [self.pairs.data.label(case_id) for case_id, _ in self.pairs.items]
        targets = torch.stack(labels).long()  # type: ignore[arg-type]  # the cases that train have labels
        columns = targets[:, None] if targets.dim() == 1 else targets  # (items, labels)
        shares = [1.0 / torch.bincount(column)[column].float() for column in columns.T]
        return torch.stack(shares).mean(0)


@functools.lru_cache(maxsize=4)
def _order(total: int, seed: int, round_: int) -> Tensor:
    return torch.randperm(total, generator=seeded("order", seed, round_))
