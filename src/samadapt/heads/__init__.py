"""Trainable heads: a table of classes, and the function that builds one by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samadapt.heads.autosam import AutoSAM
from samadapt.heads.classification import CLASSIFIERS
from samadapt.heads.cnn import CNN
from samadapt.heads.fused import Fused
from samadapt.heads.linear import Linear, Probe
from samadapt.heads.options import options_of
from samadapt.heads.unet import UNet
from samadapt.heads.unet_pretrained import UNetPretrained
from samadapt.options import read_table
from samadapt.types import Head, SamAdaptError, Units

HEADS: dict[str, type[Head]] = {
    "autosam": AutoSAM,
    "cnn": CNN,
    "fused": Fused,
    "linear": Linear,
    "probe": Probe,
    "unet": UNet,
    "unet_pretrained": UNetPretrained,
    **CLASSIFIERS,
}


def build_head(
    name: str,
    taps: Mapping[str, tuple[int, int, int]],
    n_classes: int,
    pretrained: Mapping[str, Tensor] | None = None,
    units: Units | None = None,
    **options: Any,
) -> Head:
    """A fresh head on an encoder's taps; its `spec` builds it again.

    Args:
        name: a key of `HEADS`.
        taps: of the encoder, name -> (C, h, w).
        n_classes: classes with the background.
        pretrained: the encoder's `decoder_state()`; heads that cannot start from it ignore it.
        units: the encoder's, for heads with a network of their own on the pixels; None: pixels are in 0..1.
        options: of the head; see its class.

    Example:
        >>> head = build_head("cnn", {"neck": (256, 64, 64)}, n_classes=4, preset="faithful")
        >>> head.spec["depth"]
        4
    """
    if name not in HEADS:
        raise SamAdaptError(f"unknown head {name!r}; known: {', '.join(sorted(HEADS))}")
    if HEADS[name].task == "segmentation" and n_classes < 2:
        raise SamAdaptError(
            f"a head needs at least 2 classes (in segmentation the background is one), not {n_classes}"
        )
    check_options(name, options)
    for key, given in (("pretrained", pretrained), ("units", units)):
        if key in inspect.signature(HEADS[name]).parameters:
            options[key] = given
    try:
        return HEADS[name](taps, n_classes, **options)  # type: ignore[call-arg]
    except SamAdaptError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # options that do not fit each other
        shown = {key: value for key, value in options.items() if key not in ("pretrained", "units")}
        raise SamAdaptError(
            f"head {name!r} cannot be built with the options {shown} ({error}); leave out what you set, or choose other values "
            "(samadapt list heads)"
        ) from error


def starts_from_decoder(name: str) -> bool:
    """Whether the head can start from the mask decoder that was trained behind its encoder."""
    return name in HEADS and "pretrained" in inspect.signature(HEADS[name]).parameters


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the head does not have, and values of another type."""
    read_table(f"head {name!r}", options, options_of(HEADS[name]), what="option", prefix=f"head {name!r}: ")


def read_options(name: str, typed: Mapping[str, str]) -> dict[str, Any]:
    """The head's options that were typed as text, each as its type; what is wrong with them is an error."""
    known = options_of(HEADS[name])
    options = {
        key: known[key].read(text, f"--set {key}") if key in known else text for key, text in typed.items()
    }
    check_options(name, options)
    return options
