"""The network of TinyViT as LiteMedSAM and MobileSAM use it: convolutions, then attention within windows.

Written after the published network (TinyViT, arXiv 2207.10666; MobileSAM, arXiv 2306.14289; LiteMedSAM, branch
`LiteMedSAM` of bowang-lab/MedSAM). Module names are the original ones. Batch normalisations are folded into the
convolutions before them, see `tiny_vit.fold_norms`. Maps travel as (B, h, w, C): convolutions of one cell are matrix
products then. On a processor wide layers are computed tile by tile, since their results fit no cache as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.encoders.tiles import each_cell, fitting, tiled


@dataclass(frozen=True)
class Architecture:
    """A TinyViT. `kernel` and `step` are those of both convolutions of the patch embedding."""

    side: int
    kernel: int
    step: int
    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    neck: int = 256

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Of the four stages: the last two share one."""
        first = self.step**2
        return first, 2 * first, 4 * first, 4 * first

    def taps(self, side: int) -> dict[str, tuple[int, int, int]]:
        """Name -> (C, h, w), in the order in which the maps are computed."""
        names = [f"stride{stride}" for stride in self.strides[:3]] + [f"stride{self.strides[3]}_last"]
        maps = {
            name: (width, side // stride, side // stride)
            for name, width, stride in zip(names, self.widths, self.strides, strict=True)
        }
        cells = side // self.strides[3]
        return {**maps, "neck": (self.neck, cells, cells)}


LITE_MEDSAM = Architecture(256, kernel=1, step=1)
MOBILE_SAM = Architecture(1024, kernel=3, step=2)


# ---------------------------------------------------------------- convolutions


def _conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)


def convolve(layer: nn.Conv2d, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
    """A convolution of (B, h, w, C); of one cell it is a matrix product, which is faster."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
        return F.linear(x, layer.weight.flatten(1), layer.bias)
    padding = layer.padding if padding is None else padding  # type: ignore[assignment]
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, padding, groups=layer.groups)  # type: ignore[arg-type]
    return y.permute(0, 2, 3, 1)


# ---------------------------------------------------------------- the network


class PatchEmbed(nn.Module):
    """(B, S, S, 3) -> (B, S / step^2, S / step^2, C)."""

    def __init__(self, width: int, kernel: int, step: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            _conv(3, width // 2, kernel, step), nn.GELU(), _conv(width // 2, width, kernel, step)
        )

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.seq[2], F.gelu(convolve(self.seq[0], x)))  # type: ignore[arg-type]


class Inverted(nn.Module):
    """One cell, then its neighbourhood channel by channel, then one cell again: (B, h, w, C) -> (B, h', w', C')."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, hidden)
        self.conv2 = _conv(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = _conv(hidden, outputs)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        hidden, stride = self.conv1.out_channels, self.stride
        if not tiled(x):
            return self._strip(x, 0, height)
        rows = fitting(hidden * width * len(x) * stride) * stride
        return torch.cat([self._strip(x, i, min(i + rows, height)) for i in range(0, height, rows)], 1)

    def _strip(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """The answer for some rows of the input; the 3 x 3 convolution reads one more on either side."""
        above, below = int(top > 0), int(bottom < x.shape[1])
        y = F.gelu(convolve(self.conv1, x[:, top - above : bottom + below]))
        if not (above and below):  # the edge of the picture: zeros, after this first layer
            y = F.pad(y, (0, 0, 0, 0, 1 - above, 1 - below))
        y = convolve(self.conv3, F.gelu(convolve(self.conv2, y, padding=(0, 1))))
        return self.finish(y, x[:, top:bottom])

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        """What becomes of the answer `y` for the rows `x`."""
        return y


class MBConv(Inverted):
    """Widen, look around, narrow: beside a shortcut."""

    def __init__(self, width: int, expand: int = 4) -> None:
        super().__init__(width, width * expand, width)

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        return F.gelu(y + x)


class PatchMerging(Inverted):
    """(B, h, w, C) -> (B, h / stride, w / stride, C')."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, outputs, stride)


class Attention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each offset within a window."""

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("offsets", offset_numbers(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> the same shape."""
        batch, height, width, channels = x.shape
        qkv = self._padded(self.qkv(self.norm(x)))
        down, across = qkv.shape[1] // self.window, qkv.shape[2] // self.window
        parts = qkv.view(batch, down, self.window, across, self.window, self.heads, 3, -1)
        q, k, v = parts.permute(6, 0, 1, 3, 5, 2, 4, 7).reshape(
            3, batch * down * across, self.heads, self.window**2, -1
        )
        bias = self.attention_biases[
            None, :, self.offsets
        ]  # (1, heads, n, n): of three axes it takes twice the time
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y = y.view(batch, down, across, self.heads, self.window, self.window, -1)
        y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, *qkv.shape[1:3], channels)
        return self.proj(y[:, :height, :width])

    def _padded(self, qkv: Tensor) -> Tensor:
        """Filled to whole windows, right and bottom, with what cells of zeros would give: the original pads first."""
        height, width = qkv.shape[1:3]
        down, across = (-size % self.window for size in (height, width))
        if not (down or across):
            return qkv
        empty = self.qkv(self.norm.bias).to(qkv.dtype)
        filled = empty.repeat(qkv.shape[0], height + down, width + across, 1)
        filled[:, :height, :width] = qkv
        return filled


def offset_numbers(window: int) -> Tensor:
    """(n, n) for the n cells of a window: the number of the bias of each pair of cells, counted as the authors do."""
    cells = list(itertools.product(range(window), range(window)))
    numbers: dict[tuple[int, int], int] = {}
    rows = [
        [numbers.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(numbers)) for b in cells] for a in cells
    ]
    return torch.tensor(rows)


class MLP(nn.Module):
    """Normalise, widen fourfold, narrow: beside a shortcut."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return each_cell(self._cell, x, self.fc1.out_features)

    def _cell(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Attention, a depthwise convolution, a perceptron: (B, h, w, C) -> the same shape."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads, window)
        self.local_conv = _conv(width, width, 3, groups=width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return self.mlp(convolve(self.local_conv, x))


class Stage(nn.Module):
    """Blocks, and the merging that leads to the next stage, if there is one."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (B, h, w, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-6)


class TinyViT(nn.Module):
    """The network; `forward` gives the maps that are asked for, and computes none beyond them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        widths, strides = architecture.widths, architecture.strides
        self.names = list(architecture.taps(architecture.side))
        self.patch_embed = PatchEmbed(widths[0], architecture.kernel, architecture.step)
        self.layers = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, architecture.depths, strict=True)):
            heads, window = architecture.heads[i], architecture.windows[i]
            blocks = [MBConv(width) if i == 0 else Block(width, heads, window) for _ in range(depth)]
            last = i == len(widths) - 1
            merging = None if last else PatchMerging(width, widths[i + 1], strides[i + 1] // strides[i])
            self.layers.append(Stage(blocks, merging))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], architecture.neck, 1, bias=False),
            ChannelNorm(architecture.neck),
            nn.Conv2d(architecture.neck, architecture.neck, 3, padding=1, bias=False),
            ChannelNorm(architecture.neck),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, wanted: Iterable[str]) -> dict[str, Tensor]:
        """(B, 3, S, S) -> {name: (B, C, h, w)} for the names that are wanted."""
        wanted, found = set(wanted), {}
        last = max((self.names.index(name) for name in wanted), default=-1)
        x = self.patch_embed(x.permute(0, 2, 3, 1).contiguous())
        for i, stage in enumerate(self.layers):
            if i > last:
                break
            for block in stage.blocks:  # type: ignore[union-attr]
                x = block(x)
            if self.names[i] in wanted:
                found[self.names[i]] = x
            if stage.downsample is not None and i < last:
                x = stage.downsample(x)  # type: ignore[operator]
        if "neck" in wanted:
            narrow, first, wide, second = self.neck
            found["neck"] = second(convolve(wide, first(convolve(narrow, x))))  # type: ignore[arg-type]
        return {name: y.permute(0, 3, 1, 2) for name, y in found.items()}
