"""The network of SAM's ViT image encoders: attention within windows, and in a few blocks over the whole picture.

Written after the published network (Segment Anything, arXiv 2304.02643; `image_encoder.py` of
facebookresearch/segment-anything). Module names are the original ones. Each pair of cells has a bias that depends on the
query and on how far apart the two are, down and across (decomposed relative positions, MViTv2, arXiv 2112.01526). Over a
picture of 64 x 64 cells these biases are a matrix of 4096 x 4096 for each head, which costs more time to write and to
read than the products beside it. It is never made: see `attend`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.encoders.tiles import each_cell, fitting, tiled


@dataclass(frozen=True)
class Architecture:
    """A SAM ViT. `side` is the one that the positions were trained for."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    side: int = 1024
    patch: int = 16
    window: int = 14
    neck: int = 256


VIT_B = Architecture(768, 12, 12, (2, 5, 8, 11))
VIT_L = Architecture(1024, 24, 16, (5, 11, 17, 23))
VIT_H = Architecture(1280, 32, 16, (7, 15, 23, 31))


# ---------------------------------------------------------------- attention


def attend(q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Scaled dot-product attention over a square of cells, with decomposed relative positions.

    Args:
        q, k, v: (G, n * n, c), G heads of regions of n x n cells. On a processor without gradients the scores are computed in float32.
        down, across: (n, n, c), for each pair of rows, or of columns, of query and key.

    Returns: (G, n * n, c) in the type of v.
    """
    groups, cells, width = q.shape
    n = len(down)
    with torch.autocast(q.device.type, enabled=False):
        q, k = q.float(), k.float()
        grid = q.view(groups, n, n, width)
        rows = torch.einsum("gyxc,ykc->gyxk", grid, down.float()).reshape(groups, cells, n)
        columns = torch.einsum("gyxc,xkc->gyxk", grid, across.float()).reshape(groups, cells, n)
        return (_by_tiles if tiled(q) else _folded)(q, k, v, rows, columns)


def _by_tiles(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Some queries at a time, as many as have their scores in the cache: the biases are where the product begins."""
    groups, cells, width = q.shape
    n = rows.shape[-1]
    out, keys, scale = torch.empty_like(v), k.transpose(1, 2), width**-0.5
    regions = fitting(cells**2)
    queries = min(fitting(cells * n) * n, cells)
    shape = (min(regions, groups), queries, n, n)
    scores, shares = (
        q.new_empty(shape),
        q.new_empty(shape).flatten(2),
    )  # made once: to ask for memory takes time
    for first in range(0, groups, regions):
        some = slice(first, first + regions)
        for top in range(0, cells, queries):
            part = slice(top, top + queries)
            count, rest = len(q[some]), len(q[0, part])
            tile, share = scores[:count, :rest], shares[:count, :rest]
            torch.add(rows[some, part, :, None], columns[some, part, None, :], out=tile)
            flat = tile.flatten(2)
            if count == 1:  # the product of two matrices is faster than a batch of one
                flat[0].addmm_(q[first, part], keys[first], alpha=scale)
                torch.softmax(flat, -1, out=share)
                torch.mm(share[0].to(v.dtype), v[first], out=out[first, part])
            else:
                flat.baddbmm_(q[some, part], keys[some], alpha=scale)
                torch.softmax(flat, -1, out=share)
                torch.bmm(share.to(v.dtype), v[some], out=out[some, part])
    return out


def _folded(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The biases as further channels: a query's biases against a key that says in which row and column it stands."""
    groups, cells, width = q.shape
    n = rows.shape[-1]
    one = torch.eye(n, device=q.device)
    places = torch.cat([one.repeat_interleave(n, 0), one.repeat(n, 1)], 1).expand(groups, cells, 2 * n)
    queries = torch.cat([q * width**-0.5, rows, columns], -1).to(v.dtype)
    keys = torch.cat([k, places], -1).to(v.dtype)
    return F.scaled_dot_product_attention(queries[None], keys[None], v[None], scale=1.0)[0]


def relative(table: Tensor, n: int) -> Tensor:
    """(2 n - 1, c), a row for each distance -> (n, n, c), for each pair of places."""
    places = torch.arange(n, device=table.device)
    return table[places[:, None] - places[None, :] + n - 1]


class Attention(nn.Module):
    """Multi-head attention within windows, or, with a window of 0, over the whole picture of `cells` x `cells`."""

    def __init__(self, width: int, heads: int, cells: int, window: int) -> None:
        super().__init__()
        self.heads, self.region = heads, window or cells
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * self.region - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * self.region - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> the same shape."""
        batch, height, width, channels = x.shape
        n, qkv = self.region, self._padded(self.qkv(x))
        down, across = qkv.shape[1] // n, qkv.shape[2] // n
        parts = qkv.view(batch, down, n, across, n, 3, self.heads, channels // self.heads)
        q, k, v = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, n * n, channels // self.heads)
        y = attend(q, k, v, relative(self.rel_pos_h, n), relative(self.rel_pos_w, n))
        y = y.view(batch, down, across, self.heads, n, n, -1).permute(0, 1, 4, 2, 5, 3, 6)
        # Contiguous: of a part of a map, a linear layer makes one product for each row, with a copy of its weights each.
        return self.proj(y.reshape(batch, down * n, across * n, channels)[:, :height, :width].contiguous())

    def _padded(self, qkv: Tensor) -> Tensor:
        """Filled to whole windows, right and bottom, with what cells of zeros would give: the original pads first."""
        height, width = qkv.shape[1:3]
        below, right = (-size % self.region for size in (height, width))
        if not (below or right):
            return qkv
        filled = self.qkv.bias.to(qkv.dtype).repeat(qkv.shape[0], height + below, width + right, 1)
        filled[:, :height, :width] = qkv
        return filled


# ---------------------------------------------------------------- the network


class MLP(nn.Module):
    """Widen fourfold, narrow: (B, h, w, C) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return each_cell(lambda y: self.lin2(F.gelu(self.lin1(y))), x, self.lin1.out_features)


class Block(nn.Module):
    """Attention, then a perceptron, each beside a shortcut: (B, h, w, C) -> the same shape."""

    def __init__(self, width: int, heads: int, cells: int, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, cells, window)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """(B, 3, S, S) -> (B, h, w, C)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SamViT(nn.Module):
    """SAM's ViT. Maps: `patch` (embedded patches with their positions), `block0`.. (outputs), `neck`."""

    def __init__(self, architecture: Architecture, side: int) -> None:
        super().__init__()
        a, cells = architecture, side // architecture.patch
        self.patch_embed = PatchEmbed(a.width, a.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, cells, cells, a.width))
        self.blocks = nn.ModuleList(
            Block(a.width, a.heads, cells, 0 if i in a.global_blocks else a.window) for i in range(a.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(a.width, a.neck, 1, bias=False),
            ChannelNorm(a.neck),
            nn.Conv2d(a.neck, a.neck, 3, padding=1, bias=False),
            ChannelNorm(a.neck),
        )

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """(B, 3, S, S) -> {tap: (B, C, h, w)} for the taps that are wanted; nothing is computed beyond them."""
        found: dict[str, Tensor] = {}
        tokens = self.patch_embed(x) + self.pos_embed  # (B, h, w, C)
        if "patch" in wanted:
            found["patch"] = tokens.permute(0, 3, 1, 2)
        for i, block in enumerate(self.blocks):
            if len(found) == len(wanted):
                return found
            tokens = block(tokens)
            if f"block{i}" in wanted:
                found[f"block{i}"] = tokens.permute(0, 3, 1, 2)
        if "neck" in wanted:
            found["neck"] = self.neck(tokens.permute(0, 3, 1, 2))
        return found

    def draw(self) -> SamViT:
        """Untrained weights: normal, of a spread at which the maps differ from picture to picture; biases zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        return self
