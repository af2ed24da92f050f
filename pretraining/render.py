"""Pictures of label maps: random contrast, texture, shading, blur, noise, colour and borders.

One label map has as many appearances as one wants. Regions share a palette of few intensities, so that an intensity
alone seldom names a region, as in the body. Values are 0..255, as `samadapt.transforms.Window` makes them.

Shapes: `N` maps, `S` side, `R` regions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.draw import Draw
from pretraining.shapes import OUTSIDE, REGIONS
from samadapt.types import IGNORED
from samadapt.views.prepare import NANO_MEAN, NANO_STD

TEXTURES = 4
COLUMNS = 1 + 3 + TEXTURES  # of a palette: intensity, colour offset, amplitude of each texture


def palettes(draw: Draw, n: int) -> Tensor:
    """(n, R, COLUMNS): an intensity, a colour and a texture for each region."""
    shades = draw.uniform(n, 6)
    shared = shades.gather(1, draw.integers(0, 6, n, REGIONS))
    few = draw.integers(2, 7, n)[:, None]  # how many of the shades this picture knows
    shared = torch.where(
        draw.chance(0.5, n)[:, None], shades.gather(1, draw.integers(0, 60, n, REGIONS) % few), shared
    )
    own = draw.uniform(n, REGIONS)
    free = draw.chance(0.35, n)[:, None] | draw.chance(0.25, n, REGIONS)
    shade = torch.where(free, own, shared + 0.02 * draw.normal(n, REGIONS))
    spread = draw.uniform(n, 1, low=0.4, high=1.0)  # low contrast between organs, seen against a wide range
    shade = shade * spread + draw.uniform(n, 1) * (1 - spread)
    bright = draw.chance(0.08, n, REGIONS)
    shade = torch.where(bright, draw.chance(0.5, n, REGIONS).float(), shade)
    dark = draw.chance(0.5, n)  # air around the body
    shade[:, 0] = torch.where(dark, 0.05 * draw.uniform(n), shade[:, 0])
    shade[:, OUTSIDE] = torch.where(draw.chance(0.85, n), 0.0, draw.uniform(n))
    colour = 0.16 * draw.normal(n, REGIONS, 3) * draw.uniform(n, 1, 1) ** 2
    kind = draw.integers(0, TEXTURES, n, REGIONS)
    kind = torch.where(draw.chance(0.5, n)[:, None], draw.integers(0, TEXTURES, n)[:, None], kind)
    strength = draw.uniform(n, REGIONS) * draw.uniform(n, 1) ** 2 * 0.22
    strength[:, OUTSIDE] = 0.0
    strength[:, 0] = torch.where(dark, 0.0, strength[:, 0])
    texture = F.one_hot(kind, TEXTURES) * strength[..., None]
    return torch.cat([shade[..., None], colour, texture], 2)


@dataclass
class Style:
    """How pictures were acquired; the first axis is the picture."""

    palette: Tensor  # (n, R, COLUMNS)
    coloured: Tensor  # (n,)
    chroma: Tensor  # (n,) strength of the palette's colours
    cast: Tensor  # (n, 3) gain of each channel
    blur: Tensor  # (n,) 0 none .. 2
    noise: Tensor  # (n,) standard deviation, of 1
    kind: Tensor  # (n,) of noise: Gaussian, Rician, speckle, correlated
    inverted: Tensor  # (n,)
    gamma: Tensor  # (n,)
    contrast: Tensor  # (n,)
    offset: Tensor  # (n,)

    def pick(self, rows: Tensor) -> Style:
        """Some pictures."""
        return Style(**{name: value[rows] for name, value in vars(self).items()})


def draw_style(draw: Draw, n: int) -> Style:
    """n independent acquisitions."""
    reddest = torch.tensor([1.0, 0.7, 0.45], device=draw.device)  # skin, retina: red above green above blue
    return Style(
        palette=palettes(draw, n),
        coloured=draw.chance(0.28, n),
        chroma=draw.uniform(n, low=0.3, high=1.3),
        cast=1.0 - draw.uniform(n, 3) * (1.1 - reddest),
        blur=draw.uniform(n, high=2.0),
        noise=0.1 * draw.uniform(n) ** 2,
        kind=draw.choice((0.4, 0.2, 0.2, 0.2), n),
        inverted=draw.chance(0.25, n),
        gamma=draw.log_uniform(n, low=0.5, high=2.0),
        contrast=draw.log_uniform(n, low=0.45, high=1.25),
        offset=draw.uniform(n, low=-0.5, high=0.5),
    )


def _textures(draw: Draw, n: int, side: int) -> Tensor:
    """(N, TEXTURES, S, S): fine grain, medium and coarse noise, and stripes."""
    grain = draw.normal(n, 1, side, side)
    small = draw.normal(n, 1, side // 2, side // 2)
    grain = torch.where(draw.chance(0.5, n)[:, None, None, None], grain, _size(small, side) * 1.5)
    medium = _size(draw.normal(n, 1, max(side // 5, 8), max(side // 5, 8)), side) * 1.5
    coarse = draw.smooth(n, 1, int(draw.integers(5, 14, 1)), side)
    steps = torch.linspace(-1, 1, side, device=draw.device)
    angle = draw.uniform(n, 1, 1, high=math.pi)
    along = steps[None, None] * angle.cos() + steps[None, :, None] * angle.sin()
    period = draw.log_uniform(n, 1, 1, low=12.0, high=side / 2.0)
    stripes = torch.sin(period * along + 1.5 * coarse[:, 0] + 6 * medium[:, 0] * draw.uniform(n, 1, 1) ** 3)
    return torch.cat([grain, medium, coarse, stripes[:, None]], 1)


def _size(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def _paint(draw: Draw, labels: Tensor, style: Style, channels: int) -> Tensor:
    """-> (n, channels, S, S): each region in its shade, texture and, with three channels, colour."""
    n, side = labels.shape[0], labels.shape[-1]
    index = labels.flatten(1)[:, None].expand(-1, COLUMNS, -1)
    look = style.palette.transpose(1, 2).gather(2, index).unflatten(2, (side, side))  # (n, COLUMNS, S, S)
    grey = look[:, :1] + (look[:, 4:] * _textures(draw, n, side)).sum(1, keepdim=True)
    if channels == 1:
        return grey
    return grey + look[:, 1:4] * style.chroma[:, None, None, None]


def _soften(draw: Draw, x: Tensor, style: Style) -> Tensor:
    """Partial volume and blur; for some pictures a coarser sampling than the grid, along one axis or both."""
    n, side = x.shape[0], x.shape[-1]
    near = _blurred(x, 1)
    wide = _blurred(near, 2)
    amount = style.blur[:, None, None, None]
    soft = torch.where(amount < 1, x + amount * (near - x), near + (amount - 1) * (wide - near))
    rows = draw.chance(0.15, n).nonzero()[:, 0]
    if len(rows):
        shape = [max(16, int(side * s)) for s in draw.uniform(2, low=0.3, high=1.0).tolist()]
        small = F.interpolate(soft[rows], size=shape, mode="area")
        soft = soft.index_copy(0, rows, _size(small, side))
    return soft


def _blurred(x: Tensor, reach: int) -> Tensor:
    """Binomial 1 2 1 along both axes, its taps `reach` pixels apart. Sums of slices: faster than a convolution."""
    x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = (x[..., : -2 * reach] + x[..., 2 * reach :]) / 4 + x[..., reach:-reach] / 2
    return (x[..., : -2 * reach, :] + x[..., 2 * reach :, :]) / 4 + x[..., reach:-reach, :] / 2


def _shade(draw: Draw, x: Tensor) -> Tensor:
    """A smooth gain over the picture: coil sensitivity, depth, vignette."""
    n, side = x.shape[0], x.shape[-1]
    field = draw.smooth(n, 1, 3, side) + 0.5 * draw.smooth(n, 1, 5, side)
    strength = 0.28 * draw.uniform(n, 1, 1, 1) ** 1.5
    return x * (strength * field).exp()


def _litter(draw: Draw, x: Tensor) -> Tensor:
    """Things that are no region: hairs, scratches, highlights."""
    n, side = x.shape[0], x.shape[-1]
    rows = draw.chance(0.15, n).nonzero()[:, 0]
    if not len(rows):
        return x
    field = draw.smooth(len(rows), 1, int(draw.integers(4, 8, 1)), side)
    width = draw.uniform(len(rows), 1, 1, 1, low=0.015, high=0.06)
    hair = (field.abs() < width) & (draw.smooth(len(rows), 1, 6, side) > 0)
    ink = draw.uniform(len(rows), 1, 1, 1).round() * 0.9
    return x.index_copy(0, rows, torch.where(hair, ink, x[rows]))


def _noise(draw: Draw, x: Tensor, style: Style) -> Tensor:
    """Gaussian, Rician, speckle or correlated noise; one draw serves the three channels, with a little of their own."""
    n, side = x.shape[0], x.shape[-1]
    sigma, kind = style.noise[:, None, None, None], style.kind[:, None, None, None]
    white = draw.normal(n, 1, side, side)
    cell = draw.integers(1, 4, 2).tolist()
    grains = F.interpolate(
        draw.normal(n, 1, side // cell[0] + 1, side // cell[1] + 1), size=(side, side), mode="bilinear"
    )
    rician = torch.hypot(x + sigma * white, sigma * grains) - x
    speckle = x * (2.5 * sigma * grains * 1.4).clamp(-0.9)
    noise = torch.where(kind == 0, sigma * white, torch.where(kind == 1, rician, speckle))
    return x + torch.where(kind == 3, sigma * 1.2 * grains, noise)


def _tone(x: Tensor, style: Style) -> Tensor:
    """Window to 0..1 as `transforms.Window` does, then gamma, inversion, contrast, and a cast for colour pictures."""
    n = x.shape[0]
    sample = x[:, :, ::4, ::4].flatten(1).sort(1).values
    low = sample[:, int(0.005 * sample.shape[1])]
    high = sample[:, int(0.995 * sample.shape[1]) - 1]
    shape = (n, 1, 1, 1)
    x = ((x - low.view(shape)) / (high - low).clamp(min=0.05).view(shape)).clamp(0, 1)
    x = torch.where(style.inverted.view(shape), 1 - x, x)
    x = x.clamp(min=1e-3) ** style.gamma.view(shape)
    contrast = style.contrast.view(shape)
    x = (x - 0.5) * contrast + 0.5 + (1 - contrast).abs() * style.offset.view(shape)
    if x.shape[1] == 3:
        x = x * style.cast[:, :, None, None]
    return x.clamp(0, 1)


def field_of_view(draw: Draw, labels: Tensor) -> Tensor:
    """Some pictures show a disc, a fan or a smaller rectangle; beyond it lies the region OUTSIDE."""
    n, side = labels.shape[0], labels.shape[-1]
    steps = torch.linspace(-1, 1, side, device=labels.device)
    centre = 0.06 * draw.normal(n, 2, 1, 1)
    x, y = steps[None, None] - centre[:, 0], steps[None, :, None] - centre[:, 1]
    kind = draw.choice((0.84, 0.06, 0.04, 0.06), n)[:, None, None]
    disc = torch.hypot(x, y) < draw.uniform(n, 1, 1, low=0.75, high=1.1)
    slope = draw.uniform(n, 1, 1, low=0.5, high=1.1)
    fan = (x.abs() < slope * (y + 1.15)) & (torch.hypot(x, y + 1.15) < 2.0)
    size = draw.uniform(n, 2, 1, 1, low=0.65, high=1.1)
    frame = (x.abs() < size[:, 0]) & (y.abs() < size[:, 1])
    seen = torch.where(kind == 1, disc, torch.where(kind == 2, fan, frame)) | (kind == 0)
    return torch.where(seen, labels, OUTSIDE)


def _pad(draw: Draw, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Some pictures are not square: padded at the bottom or the right as `resize_and_pad` does, not labelled."""
    n, side = labels.shape[0], labels.shape[-1]
    keep = torch.where(draw.chance(0.3, n), draw.uniform(n, low=0.6, high=1.0), 1.0) * side
    at = torch.arange(side, device=labels.device)
    tall = draw.chance(0.5, n)[:, None, None]
    padded = (torch.where(tall, at[None, None, :], at[None, :, None]) >= keep[:, None, None]).expand(
        n, side, side
    )
    return x.masked_fill(padded[:, None], 0.0), labels.masked_fill(padded, IGNORED)


def render(draw: Draw, labels: Tensor, style: Style) -> tuple[Tensor, Tensor]:
    """(N, S, S) region numbers, N styles -> (N, 3, S, S) normalised pictures, (N, S, S) labels.

    The labels come back because the borders of a picture hide some: OUTSIDE, or IGNORED where it is padded.
    """
    n, side = labels.shape[0], labels.shape[-1]
    labels = field_of_view(draw, labels)
    images = torch.empty(n, 3, side, side, device=labels.device)
    for rows, channels in (((~style.coloured).nonzero()[:, 0], 1), (style.coloured.nonzero()[:, 0], 3)):
        if len(rows):
            images[rows] = _picture(draw, labels[rows], style.pick(rows), channels).expand(-1, 3, -1, -1)
    return _pad(draw, images, labels)


def _picture(draw: Draw, labels: Tensor, style: Style, channels: int) -> Tensor:
    """-> (n, channels, S, S) normalised; channels 1 (grey) or 3 (colour)."""
    x = _litter(draw, _paint(draw, labels, style, channels))
    x = _noise(draw, _shade(draw, _soften(draw, x, style)), style)
    return (255.0 * _tone(x, style) - NANO_MEAN) / NANO_STD
