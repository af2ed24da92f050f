"""From a slice in 0..255 to an encoder's square: one function for each way that weights were trained.

All take (C, H, W) with C 1 or 3 and the side S, and return ((3, S, S) float32, Frame). Encoders that are read together
get three channels each of one square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from samadapt.transforms import fit_longest, resize, resize_and_pad, stretch
from samadapt.types import TOGETHER, ZERO_TO_ONE, Frame, SamAdaptError, Units

Prepare = Callable[[Tensor, int], tuple[Tensor, Frame]]

# Of 0..255 RGB: `Sam.pixel_mean` and `pixel_std` of facebookresearch/segment-anything; they are ImageNet's.
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)
NANO_MEAN, NANO_STD = 114.0, 62.0  # of 0..255, in which `sam_nano` was trained
AUTOSAM_SIDE = 224  # the authors' data set is squeezed to this before it is enlarged


def rgb(image: Tensor) -> Tensor:
    """(1 or 3, H, W) -> (3, H, W) float32; grey is repeated."""
    if image.shape[0] not in (1, 3):
        raise SamAdaptError(
            f"an image of {image.shape[0]} channels cannot be shown to an encoder of three; "
            "choose one channel or three of them (--channels)"
        )
    return image.float().expand(3, -1, -1)


def _normalise(image: Tensor) -> Tensor:
    """(1 or 3, H, W) of 0..255 -> (3, H, W) by SAM's channel means and deviations."""
    mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (SAM_MEAN, SAM_STD))
    return (rgb(image) - mean) / std


def _min_max(image: Tensor) -> Tensor:
    low, high = image.amin(), image.amax()
    return (image - low) / (high - low).clamp_min(1e-8)


def prepare_unit(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """0..255 -> 0..1, aspect ratio kept, padding black. For networks from scratch: the volume's window has
    already made the intensities comparable, and a scale of its own for each slice would blow up empty ones."""
    return resize_and_pad(rgb(image) / 255.0, side)


def prepare_standardise(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """Each slice to mean 0 and standard deviation 1, aspect ratio kept, padding 0."""
    x = rgb(image)
    return resize_and_pad((x - x.mean()) / x.std().clamp_min(1e-3), side)


def prepare_sam(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As SAM: channel means and deviations, the longer side to S, padding 0 *after* normalising."""
    return resize_and_pad(_normalise(image), side)


def prepare_imagenet_stretched(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As SAM 2 and DINOv3: ImageNet's channel means and deviations, the slice stretched to the square.

    Sources: `SAM2Transforms` of facebookresearch/sam2, `make_transform` in the README of facebookresearch/dinov3, and
    transformers' `Sam2ImageProcessor` and `DINOv3ViTImageProcessor`: bilinear, without aliasing.
    """
    return stretch(_normalise(image), side)


def prepare_medsam(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As MedSAM: stretched to the square, then each slice to 0..1 by its own extremes."""
    x, frame = stretch(rgb(image), side)
    return _min_max(x), frame


def prepare_lite_medsam(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As LiteMedSAM's inference: the longer side to S, each slice to 0..1 by its own extremes, then zeros around."""
    size = fit_longest((image.shape[-2], image.shape[-1]), side)
    x, frame = resize_and_pad(_min_max(resize(rgb(image), size)), side)
    return x, Frame((image.shape[-2], image.shape[-1]), frame.input_size, side)


def prepare_imagenet_lite(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As EfficientNet-Lite was trained: (x - 127) / 128 of 0..255, then the longer side to S and zeros around."""
    return resize_and_pad((rgb(image) - 127) / 128, side)


def prepare_autosam(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As AutoSAM's code: 0..1 by the slice's own extremes, squeezed to 224 x 224, enlarged, no SAM mean or
    deviation. Kept for faithful comparison: SAM's weights never saw such input (METHODS A.8)."""
    small, frame = stretch(_min_max(rgb(image)), AUTOSAM_SIDE)
    return stretch(small, side)[0], Frame(frame.original_size, (side, side), side)


def prepare_sam_nano(image: Tensor, side: int) -> tuple[Tensor, Frame]:
    """As `sam_nano` was trained: one mean and deviation for all channels (grey must stay grey), then zeros around."""
    return resize_and_pad((rgb(image) - NANO_MEAN) / NANO_STD, side)


PREPARES: dict[str, Prepare] = {
    "autosam": prepare_autosam,
    "imagenet_lite": prepare_imagenet_lite,
    "imagenet_stretched": prepare_imagenet_stretched,
    "lite_medsam": prepare_lite_medsam,
    "medsam": prepare_medsam,
    "sam": prepare_sam,
    "sam_nano": prepare_sam_nano,
    "standardise": prepare_standardise,
    "unit": prepare_unit,
}


#: Where it is not 0..1. Of `standardise` the picture's own mean and deviation are lost; those of a usual one are taken.
UNITS: dict[str, Units] = {
    "imagenet_lite": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    "imagenet_stretched": (SAM_MEAN, SAM_STD),
    "sam": (SAM_MEAN, SAM_STD),
    "sam_nano": ((NANO_MEAN,) * 3, (NANO_STD,) * 3),
    "standardise": (SAM_MEAN, SAM_STD),
}


def units_of(name: str) -> Units:
    """In which units a preparation leaves the picture; of several, the first three channels."""
    return UNITS.get(name.split(TOGETHER)[0], ZERO_TO_ONE)


def find_prepare(name: str) -> Prepare:
    """By name; of several joined by "+", all of them, one after the other along the channels."""
    unknown = [one for one in name.split(TOGETHER) if one not in PREPARES]
    if unknown:
        raise SamAdaptError(f"unknown prepare {unknown[0]!r}; known: {', '.join(sorted(PREPARES))}")
    parts = tuple(PREPARES[one] for one in name.split(TOGETHER))
    return parts[0] if len(parts) == 1 else _joined(parts, name)


@functools.cache
def _joined(parts: tuple[Prepare, ...], name: str) -> Prepare:
    """(C, H, W) -> (3 * parts, S, S); they must put a slice at the same place of the square."""

    def prepare(image: Tensor, side: int) -> tuple[Tensor, Frame]:
        squares, frames = zip(*(part(image, side) for part in parts), strict=True)
        if len(set(frames)) > 1:
            raise SamAdaptError(
                f"the preparations {name!r} put a picture at different places of the square (one keeps its aspect ratio, another "
                "one stretches it), so their encoders cannot be read together; name encoders that agree, or one of them"
            )
        return torch.cat(squares), frames[0]

    prepare(torch.zeros(1, 4, 2), 8)  # before any picture is read
    return prepare
