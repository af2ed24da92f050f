"""From a stored slice to the encoder's square and back: windows, resizing, pooling, seeded augmentation."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samadapt.types import IDENTITY, IGNORED, LABEL_GRID, Case, Frame, SamAdaptError

# ---------------------------------------------------------------- intensities


@dataclass(frozen=True)
class Window:
    """Which stored intensities become 0..255. Fitted on a whole volume, applied to each slice.

    Percentiles, because one bright vessel must not darken a whole MR volume; fixed Hounsfield limits
    for CT; nothing for 8-bit pictures.
    """

    name: str
    limits: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    @staticmethod
    def parse(spec: str) -> Window:
        """`percentile`, `ct`, `ct-lung`, `ct-bone`, `ct-brain`, `none`, or `LOW,HIGH` in stored units."""
        known = {
            "percentile": Window("percentile", percentiles=(0.5, 99.5)),
            "ct": Window("ct", limits=(-160.0, 240.0)),  # soft tissue, level 40 width 400, as MedSAM
            "ct-lung": Window("ct-lung", limits=(-1350.0, 150.0)),  # level -600, width 1500
            "ct-bone": Window("ct-bone", limits=(-500.0, 1300.0)),  # level 400, width 1800
            "ct-brain": Window("ct-brain", limits=(0.0, 80.0)),  # level 40, width 80
            "none": Window("none", limits=(0.0, 255.0)),
        }
        if spec in known:
            return known[spec]
        try:
            low, high = (float(part) for part in spec.split(","))
        except ValueError:
            low, high = math.nan, math.nan
        if not low < high:
            raise SamAdaptError(
                f"window {spec!r} is not understood; give one of {', '.join(sorted(known))} or LOW,HIGH "
                "in stored units with LOW < HIGH, e.g. --window -160,240"
            )
        return Window(spec, limits=(low, high))

    def fit(self, image: Tensor) -> Tensor:
        """(C, D, H, W) -> (C, 2): the stored values that become 0 and 255."""
        if self.limits is not None:
            return torch.tensor([self.limits] * image.shape[0])
        assert self.percentiles is not None
        return torch.stack([_percentiles(channel, self.percentiles) for channel in image])


def _percentiles(channel: Tensor, percentiles: tuple[float, float]) -> Tensor:
    values = channel.flatten()
    # A regular subsample bounds the time and memory on large volumes; the limits hardly move.
    values = values[:: max(1, values.numel() // 4_000_000)]
    low, high = (
        float(torch.kthvalue(values, 1 + round(p / 100 * (values.numel() - 1))).values) for p in percentiles
    )
    if not low < high:  # nearly constant: fall back to the full range
        low, high = float(values.min()), float(values.max())
    return torch.tensor([low, high if high > low else low + 1.0])


def apply_window(image: Tensor, limits: Tensor) -> Tensor:
    """(C, H, W) or (C, D, H, W) stored values, (C, 2) limits -> same shape, 0..255, clipped."""
    shape = (-1,) + (1,) * (image.dim() - 1)
    low, high = limits[:, 0].view(shape), limits[:, 1].view(shape)
    return ((image - low) * (255.0 / (high - low))).clamp_(0.0, 255.0)


# ---------------------------------------------------------------- geometry


def fit_longest(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) scaled so that the longer one is `side`; the aspect ratio is kept up to rounding."""
    scale = side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size), bilinear, without aliasing when it shrinks."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def resize_and_pad(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """(C, H, W) -> ((C, S, S), Frame): the longer side becomes S, zeros fill the right and the bottom.

    Normalise before: the padding is then zero in the units that the network sees.
    """
    height, width = image.shape[-2:]
    size = fit_longest((height, width), side)
    square = F.pad(resize(image, size), (0, side - size[1], 0, side - size[0]))
    return square, Frame((height, width), size, side)


def stretch(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """(C, H, W) -> ((C, S, S), Frame): the aspect ratio is not kept (MedSAM)."""
    height, width = image.shape[-2:]
    return resize(image, (side, side)), Frame((height, width), (side, side), side)


def place_label(label: Tensor, frame: Frame, n_classes: int, grid: int = LABEL_GRID) -> Tensor:
    """(H, W) integer -> (K, grid, grid) float32: the share of each class in the area of each cell.

    The slice lies where the frame puts it, to a fraction of a cell, so that `to_original` puts it back without a shift:
    one value a cell, of whichever pixel lies at its middle, moved labels by half a pixel where two pixels made a cell
    (benchmarks/README.md, "Targets"). The shares of a cell add up to one; all are zero where less than half of the cell
    is known, the rest of it being outside of the slice or IGNORED.
    """
    (height, width), (rows, columns) = label.shape, (n * grid / frame.side for n in frame.input_size)
    down, across = _shares(height, rows, grid), _shares(width, columns, grid)  # (grid, H), (grid, W)
    known = down.sum(1)[:, None] * across.sum(1)
    present = torch.bincount(label.flatten().int(), minlength=IGNORED + 1).nonzero()[:, 0].tolist()
    if IGNORED in present:
        known = known - _area(label == IGNORED, down, across)
    shares = torch.zeros(n_classes, grid, grid)
    for value in present:
        if 0 < value < n_classes:
            shares[value] = _area(label == value, down, across)
    shares[0] = (known - shares[1:].sum(0)).clamp_min_(0.0)
    shares[0][shares[0] < 1e-5] = 0.0  # rounding
    return torch.where(known >= 0.5, shares / known.clamp_min(0.5), 0.0)


@functools.lru_cache(maxsize=64)
def _shares(pixels: int, extent: float, grid: int) -> Tensor:
    """(grid, pixels): how much of each cell each pixel covers, where the pixels fill the first `extent` cells."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) * (extent / pixels)
    cells = torch.arange(grid, dtype=torch.float64)[:, None]
    return (torch.minimum(cells + 1, edges[1:]) - torch.maximum(cells, edges[:-1])).clamp_min_(0.0).float()


def _area(mask: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(H, W) bool -> (grid, grid): which share of each cell the mask covers; worked out where the mask is, for speed."""
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return down[:, box[0]] @ mask[box].float() @ across[:, box[1]].T


def to_original(maps: Tensor, frame: Frame) -> Tensor:
    """(K, h, w) over the whole square, any grid -> (K, H, W) over the slice, as SAM postprocesses."""
    # Maps finer than the square, as a small encoder's labels are, must not be read at single points of it.
    finer = maps.shape[-1] > frame.side
    size = (frame.side, frame.side)
    square = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False, antialias=finer)
    inner = square[:, :, : frame.input_size[0], : frame.input_size[1]]
    return F.interpolate(inner, size=frame.original_size, mode="bilinear", align_corners=False)[0]


def pooled_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """(h, w) of a map after averaging over windows of so many cells; 0: over the whole map."""
    if window == 0:
        return 1, 1
    return -(-size[0] // min(window, size[0])), -(-size[1] // min(window, size[1]))


def pool(x: Tensor, window: int) -> Tensor:
    """(B, C, h, w) -> (B, C, *pooled_size): every cell counts, in windows of equal extent.

    Where the window does not divide the map its cells are shared out evenly, neighbours having some in common: windows
    that left out the last rows never read two thirds of a map of 7 x 7.
    """
    size = pooled_size((x.shape[-2], x.shape[-1]), window)
    return x if size == tuple(x.shape[-2:]) else F.adaptive_avg_pool2d(x, size)


def pool_taps(features: Mapping[str, Tensor], reads: Mapping[str, int]) -> dict[str, Tensor]:
    """{tap: (B, C, h, w)} -> the taps of `reads`, each averaged over its window (0: over the whole map)."""
    return {tap: features[tap] if tap == IDENTITY else pool(features[tap], w) for tap, w in reads.items()}


def image_hash(case: Case) -> str:
    """sha256 of the voxels and their shape, as stored."""
    array = np.ascontiguousarray(case.image.numpy())
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def identity_of(case: Case) -> Tensor:
    """(1,) float32, a whole number below 2^24 that depends on the voxels alone: what a head reads as IDENTITY."""
    return torch.tensor([float(int(image_hash(case)[:6], 16))])


# ---------------------------------------------------------------- augmentation


def seeded(*key: object) -> torch.Generator:
    """A random generator that depends on the key alone: not on the process, the order or what ran before."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def drawing_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) at which a view for a square of `side` is drawn.

    At most twice what will be seen of it: a photograph of 12 megapixels would take a second. And not tiny, for warping
    a tiny label by nearest neighbour would shred it.
    """
    longest = min(max(*size, LABEL_GRID), 2 * side)
    return size if longest == max(size) else fit_longest(size, longest)


@dataclass(frozen=True)
class Augmentation:
    """A seeded random view of a slice and its label. Ranges are symmetric around "nothing happens".

    The ranges are wide because labels are few: see "Augmentation" in benchmarks/README.md.
    """

    name: str
    rotate_degrees: float = 45.0
    scale: float = 1.6  # zoom between 1/scale and scale
    shift: float = 0.15  # of the side
    bend: float = 0.05  # smooth displacement, of the side
    gamma: float = 2.5
    contrast: float = 2.0
    brightness: float = 50.0  # of 255
    noise: float = 25.0  # largest standard deviation, of 255
    mirror: bool = False  # both axes

    def __call__(
        self, image: Tensor, label: Tensor | None, rng: torch.Generator, side: int
    ) -> tuple[Tensor, Tensor | None]:
        """(C, H, W) 0..255 and (H, W) -> warped alike, at the size of `drawing_size`; what comes from outside is IGNORED.

        The label is looked up in its own pixels, so that it is resampled once.

        Args:
            side: of the square that the view is made for.
        """
        image = resize(image, drawing_size((image.shape[-2], image.shape[-1]), side))
        field = self._field(image.shape[-2:], rng)
        image = F.grid_sample(
            image[None], field, mode="bilinear", padding_mode="border", align_corners=False
        )[0]
        if label is not None:
            lifted = label[None, None].float() + 1.0  # grid_sample fills with 0: kept apart from background
            warped = F.grid_sample(lifted, field, mode="nearest", padding_mode="zeros", align_corners=False)
            warped = warped[0, 0] - 1.0
            label = torch.where(warped < 0, float(IGNORED), warped).to(label.dtype)
        return self._intensity(image, rng), label

    def _field(self, size: torch.Size, rng: torch.Generator) -> Tensor:
        """(1, H, W, 2) sampling positions in [-1, 1]."""

        def uniform(half_width: float) -> float:
            return float((torch.rand((), generator=rng) * 2 - 1) * half_width)

        angle, zoom = math.radians(uniform(self.rotate_degrees)), math.exp(uniform(math.log(self.scale)))
        flips = torch.rand(2, generator=rng) < (0.5 if self.mirror else 0.0)
        sx, sy = (-1.0 if flips[0] else 1.0), (-1.0 if flips[1] else 1.0)
        height, width = size
        aspect = height / width  # rotate in pixels, not in the normalised square
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        theta = torch.tensor(
            [
                [sx * cos, -sy * sin * aspect, uniform(2 * self.shift)],
                [sx * sin / aspect, sy * cos, uniform(2 * self.shift)],
            ]
        )
        field = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
        knots = (torch.rand(1, 2, 5, 5, generator=rng) * 2 - 1) * (2 * self.bend)
        bent = F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True)
        return field + bent.permute(0, 2, 3, 1)

    def _intensity(self, image: Tensor, rng: torch.Generator) -> Tensor:
        draws = torch.rand(6, generator=rng) * 2 - 1
        x = image / 255.0
        x = x.clamp(0, 1) ** float(self.gamma ** draws[0])
        x = (
            (x - x.mean()) * float(self.contrast ** draws[1])
            + x.mean()
            + float(draws[2]) * self.brightness / 255.0
        )
        if draws[3] > 0:
            sigma = self.noise / 255.0 * float(draws[4] * 0.5 + 0.5)
            x = x + sigma * torch.randn(x.shape, generator=rng)
        if draws[5] > 0.5:
            x = F.avg_pool2d(x[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        return (x * 255.0).clamp_(0.0, 255.0)


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "default": Augmentation("default"),
    "mirror": Augmentation("mirror", mirror=True),
}


def build_augmentation(name: str) -> Augmentation | None:
    """By name; "none" gives None."""
    if name not in AUGMENTATIONS:
        raise SamAdaptError(f"unknown augmentation {name!r}; known: {', '.join(sorted(AUGMENTATIONS))}")
    return AUGMENTATIONS[name]
