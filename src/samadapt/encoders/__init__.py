"""Frozen image encoders: a table of builders, and the function that loads one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from samadapt.encoders.checkpoints import SHA256
from samadapt.encoders.dinov3 import DINOV3_MODELS
from samadapt.encoders.imagenet import IMAGENET_MODELS
from samadapt.encoders.nano import build_sam_nano
from samadapt.encoders.pixels import build_pixels
from samadapt.encoders.sam import SAM_MODELS
from samadapt.encoders.sam2 import SAM2_MODELS
from samadapt.encoders.tiny_vit import TINY_VITS
from samadapt.types import Encoder, SamAdaptError
from samadapt.weights import PublishedFile

LARGEST_SIDE = 4096  # pixels; attention over more takes hundreds of gigabytes
Builder = Callable[..., Encoder]

ENCODERS: dict[str, Builder] = {
    "pixels": build_pixels,
    "sam_nano": build_sam_nano,
    **IMAGENET_MODELS,
    **SAM_MODELS,
    **SAM2_MODELS,
    **DINOV3_MODELS,
    **TINY_VITS,
}
#: Encoders that take less time for a picture than a head's training step does: there is no need to store its views.
LIVE = ("imagenet_lite0", "imagenet_lite2", "sam_nano")
#: Weights that a package or the user's cache holds as a file; those of others come with samadapt or from the hub.
PUBLISHED: dict[str, PublishedFile] = {
    **{name: model.published for name, model in TINY_VITS.items()},
    **{name: model.published for name, model in IMAGENET_MODELS.items()},
}


def is_published(name: str, checkpoint: str | Path) -> bool:
    """Whether a checkpoint bears the name of a file that the encoder's authors published; loading it checks its hash."""
    known = set(SHA256) | ({PUBLISHED[name].file} if name in PUBLISHED else set())
    return Path(checkpoint).name in known


def first_with_weights(names: Iterable[str]) -> str:
    """Of the encoders that a head would rather read, the first one whose weights are on this machine.

    Those whose weights come with samadapt, or from the hub, count as being there.
    """
    return next(name for name in names if name not in PUBLISHED or PUBLISHED[name].find() is not None)


def load_encoder(
    name: str,
    checkpoint: str | Path | None = None,
    side: int | None = None,
    device: str | torch.device = "cpu",
    prepare: str | None = None,
    seed: int = 0,
) -> Encoder:
    """An encoder with its weights, frozen; its `spec` loads it again.

    Args:
        name: a key of `ENCODERS`.
        checkpoint: a `.pth` file or a folder of transformers; the word "random" for untrained weights; None
            for the encoder's own (from the hub, or from the package).
        side: S in pixels; None is the encoder's own.
        device: where to put it.
        prepare: a name in `prepare.PREPARES`; None is the way that the weights were trained.
        seed: draws the weights when the checkpoint is "random".

    Example:
        >>> load_encoder("pixels", side=64).taps
        {'pixels': (3, 64, 64)}
    """
    if name not in ENCODERS:
        raise SamAdaptError(f"unknown encoder {name!r}; known: {', '.join(sorted(ENCODERS))}")
    if side is not None and not 1 <= side <= LARGEST_SIDE:
        raise SamAdaptError(f"side is {side}; expected 1 to {LARGEST_SIDE} pixels")
    options: dict[str, Any] = {"checkpoint": checkpoint, "side": side, "prepare": prepare, "seed": seed}
    if "prepare" not in inspect.signature(ENCODERS[name]).parameters and options.pop("prepare") is not None:
        raise SamAdaptError(f"encoder {name!r} has one way to prepare images; leave out prepare {prepare!r}")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been drawn
        torch.manual_seed(seed)
        encoder = ENCODERS[name](**options)
    encoder.spec = {
        "name": name,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "side": encoder.side,
        "prepare": prepare,
        "seed": seed,
    }
    return encoder.requires_grad_(False).eval().to(device)


__all__ = ["ENCODERS", "LIVE", "PUBLISHED", "first_with_weights", "is_published", "load_encoder"]
