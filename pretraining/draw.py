"""Seeded random draws, and smooth random fields, for whole batches on any device."""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Draw:
    """A source of random tensors that depends on its key alone (seed, step, ...), so that a run can resume."""

    def __init__(self, *key: object, device: torch.device | str = "cpu") -> None:
        digest = hashlib.sha256(repr(key).encode()).digest()
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high)."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Uniform in the logarithm, between low and high."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, p: float, *shape: int) -> Tensor:
        """True with probability p."""
        return self.uniform(*shape) < p

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def choice(self, weights: tuple[float, ...], *shape: int) -> Tensor:
        """Indices with these relative weights."""
        count = math.prod(shape)
        p = torch.tensor(weights, device=self.device)
        return torch.multinomial(p, count, replacement=True, generator=self.generator).view(shape)

    def smooth(self, n: int, channels: int, knots: int, size: int) -> Tensor:
        """(n, channels, size, size): normal at knots x knots points, smooth between them."""
        grid = self.normal(n, channels, knots, knots)
        return F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=True)
