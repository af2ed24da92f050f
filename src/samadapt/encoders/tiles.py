"""Wide layers a tile at a time: on a processor their results fit no cache as a whole, and a tile's do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 1 << 19  # floats of the widest map of a tile: two megabytes, which stay in a processor's cache


def tiled(x: Tensor) -> bool:
    """Whether to work by tiles: a graphics card keeps its own order, and gradients need the whole map anyway."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def fitting(floats: int) -> int:
    """How many parts of so many floats fit a tile; at least one."""
    return max(TILE // floats, 1)


def each_cell(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """`function` of every cell by itself, (..., C) -> (..., C), a tile at a time; `width` is its widest map's."""
    if not tiled(x):
        return function(x)
    flat = x.reshape(-1, x.shape[-1])
    cells = fitting(width)
    return torch.cat([function(flat[i : i + cells]) for i in range(0, len(flat), cells)]).view(
        *x.shape[:-1], -1
    )
