"""Random label maps: a base partition and layers of shapes, painted over one another.

Every shape is a smooth field over the plane and up to three thresholds on it, so that one field gives nested
regions (rings, walls, cup in disc, bands). Fields are computed at half resolution, interpolated, and only then
thresholded: sharp borders at a quarter of the cost.

Shapes: `N` maps of side `S`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.draw import Draw

BASE_REGIONS = 4  # numbers 0..3: the base partition
LEVELS = 3  # nested regions of one layer; two numbers each, for left and right of a mirrored pair
LAYERS = 9
OUTSIDE = BASE_REGIONS + LAYERS * LEVELS * 2  # beyond the field of view
REGIONS = OUTSIDE + 1
FAR = 9.0  # a field's value where there is certainly no shape

#: Relative frequency of each kind of layer, in the order of `FIELDS` below.
KIND_WEIGHTS = (6.0, 1.5, 0.9, 0.7, 0.9, 0.5, 0.9)


@dataclass
class Layer:
    """Parameters of one layer, for N maps (first axis)."""

    kind: Tensor  # (N,) index into FIELDS
    centre: Tensor  # (N, 2) x y in [-1, 1]
    radius: Tensor  # (N,)
    stretch: Tensor  # (N,) aspect
    angle: Tensor  # (N,)
    waves: Tensor  # (N, 5) amplitude of the radius's waves 2..6
    phases: Tensor  # (N, 5)
    corners: Tensor  # (N,) 0: round, else a polygon's corners
    noise: Tensor  # (N, 2, 12, 12) knots of a random field
    zoom: Tensor  # (N,) of that field
    cells: Tensor  # (N, 4, 12, 12) per cell of a crowd
    segments: Tensor  # (N, 14, 5) x0 y0 x1 y1 width of a tree
    thresholds: Tensor  # (N, 3) descending; -inf: no such level
    paired: Tensor  # (N,) mirrored about x = 0
    split: Tensor  # (N,) left and right are two regions
    inside: Tensor  # (N,) painted only over the previous layer
    present: Tensor  # (N,)

    def pick(self, rows: Tensor) -> Layer:
        """The parameters of some maps."""
        return Layer(**{name: value[rows] for name, value in vars(self).items()})


# ---------------------------------------------------------------- fields: (n, h, h), small inside the shape


def _local(p: Layer, xy: Tensor) -> tuple[Tensor, Tensor]:
    d = xy - p.centre[:, None, None]
    cos, sin = p.angle.cos()[:, None, None], p.angle.sin()[:, None, None]
    u, v = cos * d[..., 0] + sin * d[..., 1], cos * d[..., 1] - sin * d[..., 0]
    a = p.stretch[:, None, None]
    return u / a, v * a


def _star(p: Layer, xy: Tensor) -> Tensor:
    """Ellipses, blobs, stars and polygons: the distance from the centre over the radius in that direction."""
    u, v = _local(p, xy)
    theta = torch.atan2(v, u)
    wave = torch.ones_like(theta)
    for k in range(p.waves.shape[1]):
        wave = wave + p.waves[:, k, None, None] * torch.cos((k + 2) * theta + p.phases[:, k, None, None])
    n = p.corners.clamp(min=3)[:, None, None]
    edge = math.pi / n
    polygon = torch.cos(edge) / torch.cos(torch.remainder(theta, 2 * edge) - edge)
    wave = torch.where(p.corners[:, None, None] > 0, wave * polygon, wave)
    return torch.hypot(u, v) / (p.radius[:, None, None] * wave.clamp(min=0.25))


def _crescent(p: Layer, xy: Tensor) -> Tensor:
    """A blob with a bite: inside the first, outside a shifted second."""
    whole = _star(p, xy)
    u, v = _local(p, xy)
    shift = (0.35 + 0.5 * p.waves[:, 0].abs()) * p.radius
    bite = torch.hypot(u - shift[:, None, None], v) / (0.95 * p.radius[:, None, None])
    return torch.maximum(whole, 2.0 - bite)


def _knots(p: Layer, xy: Tensor) -> Tensor:
    """(n, 2, h, h): a smooth random field."""
    at = (xy - p.centre[:, None, None] * 0.3) * p.zoom[:, None, None, None]
    return F.grid_sample(p.noise, at, mode="bicubic", padding_mode="reflection", align_corners=False)


def _curves(p: Layer, xy: Tensor) -> Tensor:
    """Curves of changing width: near the zero line of a random field."""
    field = _knots(p, xy)
    width = 0.16 * p.radius[:, None, None] * (1.0 + 0.5 * torch.tanh(field[:, 1]))
    return field[:, 0].abs() / width.clamp(min=0.03)


def _tree(p: Layer, xy: Tensor) -> Tensor:
    """A branching tree: distance to the nearest of its segments over that segment's width."""
    s = p.segments
    a, b = s[:, :, None, None, 0:2], s[:, :, None, None, 2:4]
    d, ab = xy[:, None] - a, b - a
    t = ((d * ab).sum(-1) / (ab * ab).sum(-1).clamp(min=1e-6)).clamp(0, 1)
    gap = d - t[..., None] * ab
    return (torch.hypot(gap[..., 0], gap[..., 1]) / s[:, :, None, None, 4]).amin(1)


def _bands(p: Layer, xy: Tensor) -> Tensor:
    """Layers: a bent half-plane; its nested levels are bands."""
    u, _ = _local(p, xy)
    return u / p.radius[:, None, None] + 0.4 * _knots(p, xy)[:, 0] + 1.0


def _crowd(p: Layer, xy: Tensor) -> Tensor:
    """Discs in a crowd: one in each cell of a jittered lattice, some missing."""
    u, v = _local(p, xy)
    scale = (1.2 / p.radius).clamp(2.0, 8.0)[:, None, None]
    grid = torch.stack([u, v], 1) * scale[:, None]
    cell = grid.floor()
    side = p.cells.shape[-1]
    index = torch.remainder(cell[:, 1], side).long() * side + torch.remainder(cell[:, 0], side).long()
    index = index.flatten(1)[:, None].expand(-1, 4, -1)
    dx, dy, size, there = p.cells.flatten(2).gather(2, index).unflatten(2, u.shape[-2:]).unbind(1)
    gap = grid - cell - 0.5
    field = torch.hypot(gap[:, 0] - 0.2 * (dx - 0.5), gap[:, 1] - 0.2 * (dy - 0.5)) / (0.15 + 0.27 * size)
    return torch.where(there < 0.75, field, FAR)


def _blobs(p: Layer, xy: Tensor) -> Tensor:
    """Irregular blobs: the low parts of a random field."""
    return _knots(p, xy)[:, 0] + 1.6


FIELDS = (_star, _crescent, _curves, _tree, _bands, _crowd, _blobs)


# ---------------------------------------------------------------- parameters


def _segments(draw: Draw, count: int, parts: int = 14) -> Tensor:
    """(count, parts, 5): each segment starts at the end of an earlier one and is thinner."""
    start = draw.uniform(count, 2, low=-1.1, high=1.1)
    heading = torch.atan2(-start[:, 1], -start[:, 0]) + 0.6 * draw.normal(count)
    width = draw.log_uniform(count, low=0.02, high=0.11)
    length = draw.uniform(count, low=0.25, high=0.7)
    rows: list[Tensor] = []
    ends, headings, widths = [start], [heading], [width]
    pick = torch.arange(count, device=draw.device)
    for i in range(parts):
        parent = (draw.uniform(count) * len(ends) * 0.99).long() if i else torch.zeros_like(pick)
        parent = torch.maximum(parent, torch.full_like(pick, (len(ends) - 1) // 2))  # young branches grow
        origin = torch.stack(ends, 1)[pick, parent]
        angle = torch.stack(headings, 1)[pick, parent] + 0.55 * draw.normal(count)
        thick = torch.stack(widths, 1)[pick, parent]
        step = length * 0.9 ** (i / 2) * draw.uniform(count, low=0.5, high=1.0)
        end = origin + step[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        rows.append(torch.cat([origin, end, thick[:, None].clamp(min=0.018)], 1))
        ends.append(end)
        headings.append(angle)
        widths.append(thick * 0.86)
    return torch.stack(rows, 1)


def _thresholds(draw: Draw, count: int) -> Tensor:
    """(count, 3): 1, and with some probability one or two nested levels."""
    inner = draw.uniform(count, low=0.3, high=0.9)
    core = inner * draw.uniform(count, low=0.35, high=0.85)
    levels = draw.choice((0.5, 0.36, 0.14), count)
    never = torch.full_like(inner, -math.inf)
    return torch.stack(
        [
            torch.ones_like(inner),
            torch.where(levels >= 1, inner, never),
            torch.where(levels >= 2, core, never),
        ],
        1,
    )


def draw_layer(draw: Draw, count: int, before: Layer | None) -> Layer:
    """Parameters of a new layer for `count` maps; often beside or within the layer before."""
    centre = draw.uniform(count, 2, low=-0.75, high=0.75)
    radius = draw.log_uniform(count, low=0.07, high=0.75)
    inside = draw.chance(0.0, count)
    if before is not None:
        near = draw.chance(0.55, count)
        direction = draw.uniform(count, high=2 * math.pi)
        gap = before.radius * draw.uniform(count, low=0.0, high=1.6)
        beside = before.centre + gap[:, None] * torch.stack([direction.cos(), direction.sin()], 1)
        centre = torch.where(near[:, None], beside.clamp(-0.95, 0.95), centre)
        radius = torch.where(
            near, (before.radius * draw.uniform(count, low=0.3, high=1.1)).clamp(0.06), radius
        )
        inside = draw.chance(0.25, count)
    wavy = draw.choice((0.35, 0.4, 0.25), count)  # plain ellipse, blob, ragged
    amplitude = torch.tensor([0.0, 0.12, 0.3], device=draw.device)[wavy]
    decay = torch.tensor([1.0, 0.8, 0.6, 0.45, 0.4], device=draw.device)
    polygon = draw.chance(0.15, count)
    paired = draw.chance(0.12, count)
    return Layer(
        kind=draw.choice(KIND_WEIGHTS, count),
        centre=centre,
        radius=radius,
        stretch=draw.log_uniform(count, low=0.6, high=1.65),
        angle=draw.uniform(count, high=2 * math.pi),
        waves=amplitude[:, None] * decay * draw.normal(count, 5),
        phases=draw.uniform(count, 5, high=2 * math.pi),
        corners=torch.where(polygon, draw.integers(3, 7, count), 0),
        noise=draw.normal(count, 2, 12, 12),
        zoom=draw.log_uniform(count, low=0.25, high=1.0),
        cells=draw.uniform(count, 4, 12, 12),
        segments=_segments(draw, count),
        thresholds=_thresholds(draw, count),
        paired=paired,
        split=draw.chance(0.6, count),
        inside=inside,
        present=draw.chance(0.85, count),
    )


# ---------------------------------------------------------------- the map


def warped_grid(draw: Draw, n: int, size: int) -> Tensor:
    """(N, size, size, 2): where each cell of each map lies in the plane of its shapes."""
    steps = (torch.arange(size, device=draw.device) + 0.5) * (2.0 / size) - 1.0
    plane = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)  # (size, size, 2), x then y
    angle = torch.where(draw.chance(0.35, n), 0.7, 0.3) * draw.normal(n)
    zoom = draw.log_uniform(n, low=0.5, high=1.9)
    aspect = (0.08 * draw.normal(n)).exp()
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack([cos * aspect, -sin, sin, cos / aspect], 1).view(n, 2, 2)
    shift = draw.uniform(n, 2, low=-0.6, high=0.6)
    bend = 0.06 * draw.smooth(n, 2, 4, size) + 0.018 * draw.smooth(n, 2, 9, size)
    strength = draw.uniform(n, 1, 1, 1, low=0.2, high=1.3)
    xy = plane.view(1, -1, 2) @ matrix.transpose(1, 2) + shift[:, None]
    return xy.view(n, size, size, 2) + (strength * bend).permute(0, 2, 3, 1)


def _enlarge(fields: Tensor, side: int) -> Tensor:
    return F.interpolate(fields, size=(side, side), mode="bilinear", align_corners=False)


def _base(draw: Draw, n: int, xy: Tensor, side: int) -> Tensor:
    """(N, S, S): one region, or a partition by the largest of several random fields."""
    knots = draw.normal(n, BASE_REGIONS, 8, 8)
    zoom = draw.log_uniform(n, low=0.2, high=1.0)
    fields = F.grid_sample(
        knots, xy * zoom[:, None, None, None], mode="bicubic", padding_mode="reflection", align_corners=False
    )
    regions = draw.choice((0.5, 0.2, 0.15, 0.15), n) + 1
    active = torch.arange(BASE_REGIONS, device=xy.device) < regions[:, None]
    fields = _enlarge(fields.masked_fill(~active[:, :, None, None], -1e4), side)
    best, labels = fields[:, 0], torch.zeros(fields[:, 0].shape, dtype=torch.long, device=xy.device)
    for region in range(1, BASE_REGIONS):  # argmax over a strided axis is slow on a CPU
        labels = torch.where(fields[:, region] > best, region, labels)
        best = torch.maximum(best, fields[:, region])
    return labels


def _field(layer: Layer, xy: Tensor) -> Tensor:
    mirrored = torch.stack([xy[..., 0].abs(), xy[..., 1]], -1)
    at = torch.where(layer.paired[:, None, None, None], mirrored, xy)
    field = xy.new_full(xy.shape[:3], FAR)
    for kind, function in enumerate(FIELDS):
        rows = (layer.kind == kind).nonzero()[:, 0]
        if len(rows):
            field[rows] = function(layer.pick(rows), at[rows])
    return field.clamp(max=FAR)


def label_maps(draw: Draw, n: int, side: int) -> Tensor:
    """(N, S, S) int64 region numbers below REGIONS; S even."""
    xy = warped_grid(draw, n, side // 2)
    labels = _base(draw, n, xy, side)
    labels = labels.to(torch.uint8)  # a byte a pixel: painting is bound by memory
    right = _enlarge(xy[..., 0][:, None], side)[:, 0] > 0
    count = draw.integers(3, LAYERS + 1, n)
    before: Layer | None = None
    covered = torch.ones_like(labels, dtype=torch.bool)
    for index in range(LAYERS):
        layer = draw_layer(draw, n, before)
        if index == 0:
            _outline(draw, layer)
        before = layer
        rows = (layer.present & (count > index)).nonzero()[:, 0]
        layer = layer.pick(rows)
        painted, number = _layer_numbers(layer, xy[rows], right[rows], side)
        painted &= covered[rows] | ~layer.inside[:, None, None]
        labels[rows] = torch.where(painted, number + (BASE_REGIONS + index * LEVELS * 2), labels[rows])
        covered = torch.zeros_like(covered).index_copy_(0, rows, painted)
    return labels.long()


def _layer_numbers(layer: Layer, xy: Tensor, right: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where a layer paints, (n, S, S) bool, and which of its numbers 0..5."""
    field = _enlarge(_field(layer, xy)[:, None], side)[:, 0]
    outer, middle, core = (field < t[:, None, None] for t in layer.thresholds.unbind(1))
    level = middle.to(torch.uint8) + core.to(torch.uint8)
    other = right & (layer.paired & layer.split)[:, None, None]
    return outer, level * 2 + other.to(torch.uint8)


def _outline(draw: Draw, layer: Layer) -> None:
    """Often the first layer is a body's outline: large, central, plain."""
    n = layer.radius.shape[0]
    body = draw.chance(0.45, n)
    layer.kind = torch.where(body, 0, layer.kind)
    layer.centre = torch.where(body[:, None], layer.centre * 0.2, layer.centre)
    layer.radius = torch.where(body, draw.uniform(n, low=0.7, high=1.1), layer.radius)
    layer.corners = torch.where(body, 0, layer.corners)
    layer.waves = torch.where(body[:, None], layer.waves * 0.5, layer.waves)
    layer.paired = layer.paired & ~body
