"""Our own head: every stride of the encoder and the pixels themselves, fused from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.heads.options import loss_name, tap_shape
from samadapt.losses import LOSSES, to_grid
from samadapt.transforms import pooled_size
from samadapt.types import LABEL_GRID, PIXELS, Head, SamAdaptError, Taps, Task, by_encoder, tap_of


class FeatureJitter(nn.Module):
    """Augmentation of stored maps while training: noise, lost channels, gains of the coarse and fine bands.

    A store holds few views of a slice; what cannot be redrawn in the image is redrawn here (compare the
    wavelet augmentation of frozen features in DINO-AugSeg, arXiv 2601.08078; ours splits into two bands).

    Args:
        strength: 0 is nothing, 1 is the full range of each.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.noise, self.drop, self.gain = 0.2 * strength, 0.2 * strength, 0.4 * strength

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), channels of about unit variance -> the same shape."""
        if not self.training or self.noise == 0:
            return x
        device = x.device.type
        if torch.is_autocast_enabled(
            device
        ):  # what reads it rounds it anyway, and half the bytes take half the time
            x = x.to(torch.get_autocast_dtype(device))
        coarse = x
        if min(x.shape[-2:]) >= 4:
            coarse = to_grid(F.avg_pool2d(x, 2, ceil_mode=True), x.shape[-2:])
        of_channel = torch.ones(x.shape[:2], device=x.device)[..., None, None]
        low, high = (1 + self.gain * (2 * torch.rand_like(of_channel) - 1) for _ in range(2))
        sigma = self.noise * torch.rand_like(of_channel[:, :1])
        noise = _noise_like(x)
        kept = F.dropout2d(of_channel, self.drop)
        # (low coarse + high (x - coarse) + sigma noise) kept, with few passes over the maps.
        gains = ((low - high) * kept, sigma * kept)
        jittered = x * (high * kept).to(x.dtype)
        return jittered.addcmul_(coarse, gains[0].to(x.dtype)).addcmul_(noise, gains[1].to(x.dtype))


def _noise_like(x: Tensor) -> Tensor:
    """Evenly distributed noise of mean 0 and variance 1, from eight numbers to one draw of 64 bits.

    A normal distribution takes ten times as long to draw on a CPU, which was a tenth of a training step.
    """
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    steps = draws.view(torch.int8)[: x.numel()].view(x.shape).to(x.dtype)  # -128 to 127
    return (steps + 0.5) * ((256**2 - 1) / 12) ** -0.5


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class Lateral(nn.Module):
    """A tap of any width and scale -> `width` channels."""

    def __init__(self, channels: int, width: int, jitter: float) -> None:
        super().__init__()
        # Taps differ in scale by orders of magnitude. Without weights of its own: the projection has them.
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.jitter = FeatureJitter(jitter)
        self.project = _conv(channels, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.jitter(self.norm(x)))


class Stem(nn.Module):
    """Pixels (B, C, S, S) -> (B, 32, cells, cells), each cell reading its 2 x 2 pixels.

    Where the pixels are finer than that they are averaged. Nothing is computed at the grid of the answer, where
    most of a head's time would go: 2 x 2 pixels are folded into channels.
    """

    WIDTH = 32

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        self.size = (2 * cells, 2 * cells)
        self.layers = nn.Sequential(_conv(4 * channels, self.WIDTH), _conv(self.WIDTH, self.WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] > self.size[-1]:
            pixels = F.adaptive_avg_pool2d(pixels, self.size)
        return self.layers(F.pixel_unshuffle(to_grid(pixels, self.size), 2))


@final
class Fused(Head):
    """Reads maps of several strides and the pixels, and fuses them from coarse to fine.

    It answers at the label's grid, or at that of the pixels where it is coarser.

    Args:
        taps: the encoder's taps.
        n_classes: classes with the background.
        read: taps to read, "pixels" for the stem, "stride1@4" for a map averaged over 4 x 4 cells; None chooses, see
            `choose_reads`.
        width: channels of the fusion.
        jitter: strength of the augmentation in feature space; 0 is none.
        loss: a name in `losses.LOSSES`.
        context: whether the coarsest map is also read averaged over 16 x 16 and 8 x 8 cells, where it is finer than
            that. An encoder that attends within windows does not tell a cell where in the picture it is.
    """

    name: ClassVar[str] = "fused"
    task: ClassVar[Task] = "segmentation"
    #: ImageNet's maps are as good as LiteMedSAM's so far, and much cheaper (decision 015).
    encoders: ClassVar[tuple[str, ...]] = ("imagenet_lite0", "lite_medsam", "sam_nano")
    lr: ClassVar[float] = 3e-3  # the one with which it was developed (pretraining/README.md)

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        read: Sequence[str] | None = None,
        width: int = 64,
        jitter: float = 0.5,
        loss: str = "dice_ce",
        context: bool = True,
    ) -> None:
        super().__init__()
        if width % 8 or width < 8:
            raise SamAdaptError(f"head 'fused' cannot have a width of {width!r}; give a multiple of 8")
        if not 0 <= jitter <= 5:  # at 5 every channel is lost
            raise SamAdaptError(f"head 'fused' cannot have a jitter of {jitter!r}; give 0 (none) to 5")
        self.reads = choose_reads(taps) if read is None else dict(_parse_read(tap) for tap in read)
        shapes = {tap: tap_shape(self.name, taps, tap) for tap in self.reads}
        stem = shapes.pop(PIXELS, None)
        if not shapes:
            raise SamAdaptError(
                f"head 'fused' needs a map beside {PIXELS!r}, and the encoder gives {sorted(taps)}; "
                "for pixels alone use head 'unet'"
            )
        self.describe(
            n_classes,
            read=list(read) if read else None,
            width=width,
            jitter=jitter,
            loss=loss_name(self.name, "fixed", loss),
            context=context,
        )
        self.loss_fn = LOSSES[loss]
        self.levels = _levels(shapes, self.reads)
        self.laterals = nn.ModuleDict(
            {_key(tap): Lateral(shape[0], width, jitter) for tap, shape in shapes.items()}
        )
        self.merge = nn.ModuleList(_conv(width, width) for _ in self.levels)
        self.coarsest = self.levels[0][-1]
        cells = min(pooled_size(shapes[self.coarsest][1:], self.reads[self.coarsest]))
        self.context_sizes = [n for n in (8, 16) if context and 2 * n <= cells]
        self.context = nn.ModuleList(
            Lateral(shapes[self.coarsest][0], width, jitter) for _ in self.context_sizes
        )
        self.context_merge = nn.ModuleList(_conv(width, width) for _ in self.context_sizes)
        # Half the grid of the answer: finer than the encoder saw would cost time and tell nothing.
        self.cells = (min(LABEL_GRID, taps[PIXELS][-1] if PIXELS in taps else LABEL_GRID) + 1) // 2
        self.stem = Stem(stem[0], self.cells) if stem else None
        self.narrow = _conv(width, Stem.WIDTH, kernel=1)
        inputs = Stem.WIDTH * (2 if stem else 1)
        self.last = nn.Sequential(_conv(inputs, Stem.WIDTH), _conv(Stem.WIDTH, Stem.WIDTH))
        # With the pixels at hand each cell answers for its own four (sub-pixel convolution, Shi et al. 2016).
        self.classify = nn.Conv2d(Stem.WIDTH, n_classes * (4 if stem else 1), 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster, see `encoders/nano.py`

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x = self._see_context(features[self.coarsest])
        for names, merge in zip(self.levels, self.merge, strict=True):
            level = torch.stack([self.laterals[_key(tap)](features[tap]) for tap in names]).sum(0)
            x = merge(level if x is None else level + to_grid(x, level.shape[-2:]))
        assert x is not None
        x = to_grid(self.narrow(x), (self.cells, self.cells))
        if self.stem is None:
            return self.classify(self.last(x))  # (B, K, cells, cells)
        x = torch.cat([x, self.stem(features[PIXELS])], dim=1)
        return F.pixel_shuffle(self.classify(self.last(x)), 2)  # (B, K, 2 cells, 2 cells)

    def _see_context(self, coarsest: Tensor) -> Tensor | None:
        """From 8 x 8 cells of the whole picture to 16 x 16; None where the encoder's own maps are as coarse."""
        x = None
        for n, lateral, merge in zip(self.context_sizes, self.context, self.context_merge, strict=True):
            level = lateral(F.adaptive_avg_pool2d(coarsest, (n, n)))
            x = merge(level if x is None else level + to_grid(x, level.shape[-2:]))
        return x


def _key(tap: str) -> str:
    return tap.replace(".", "_")  # a module's name may not have a dot


def _parse_read(text: str) -> tuple[str, int]:
    """ "stride1@4" -> ("stride1", 4)."""
    tap, at, window = text.partition("@")
    if at and not (window.isdecimal() and int(window) > 0):
        raise SamAdaptError(
            f"head 'fused' cannot read {text!r}; after @ give how many cells are averaged along a side, as stride1@4"
        )
    return tap, int(window or 1)


def choose_reads(taps: Taps, most: int = 4) -> dict[str, int]:
    """{tap: window}: the pixels, and every map, with three exceptions that keep a store small.

    Of a run of maps of one shape (a ViT's blocks) four evenly spaced ones, the last one in, averaged over 2 x 2: for a
    SAM ViT the outputs of its global-attention blocks. A map of less than four pixels to a cell is averaged to that:
    the stem reads what is finer. A single map right before the neck and of its grid is left out: the neck is two
    convolutions of it. Of several encoders, each one's maps are chosen so.
    """
    side = taps[PIXELS][-1] if PIXELS in taps else LABEL_GRID
    reads = {PIXELS: 1} if PIXELS in taps else {}
    for encoder, own in by_encoder(taps).items():
        reads |= {tap_of(encoder, tap): window for tap, window in _choose(own, side, most).items()}
    return reads


def _choose(taps: Taps, side: int, most: int) -> dict[str, int]:
    """Of the maps of one encoder, on a square of this side."""
    reads: dict[str, int] = {}
    runs = [list(run) for _, run in groupby(taps, key=lambda tap: taps[tap])]
    for i, names in enumerate(runs):
        after = runs[i + 1] if i + 1 < len(runs) else []
        if len(names) > most:
            reads |= {names[(k + 1) * (len(names) - 1) // most]: 2 for k in range(most)}
        elif len(names) > 1 or after != ["neck"] or taps[names[0]][1:] != taps["neck"][1:]:
            reads |= {tap: max(4 * taps[tap][-1] // side, 1) for tap in names}
    return reads


def _levels(shapes: Mapping[str, tuple[int, int, int]], reads: Mapping[str, int]) -> list[list[str]]:
    """The taps of each grid, the coarsest grid first."""

    def cells(tap: str) -> int:
        return math.prod(pooled_size(shapes[tap][1:], reads[tap]))

    return [list(names) for _, names in groupby(sorted(shapes, key=cells), key=cells)]
