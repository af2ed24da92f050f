"""What there is to choose from, by name, and nothing loaded: a name that is mistyped is refused before torch is.

The tables themselves stand where the things are; tests/test_cli.py holds these lists to them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection

from samadapt.records import SamAdaptError

SEGMENTATION_HEADS = ("autosam", "cnn", "fused", "linear", "probe", "unet", "unet_pretrained")
CLASSIFICATION_HEADS = ("attentive_probe", "cbam", "linear_probe", "plain", "se", "slca")
ENCODERS = (
    "dinov3_vitb16",
    "dinov3_vits16",
    "imagenet_lite0",
    "imagenet_lite2",
    "lite_medsam",
    "medsam_vit_b",
    "mobile_sam",
    "pixels",
    "sam2_base_plus",
    "sam2_small",
    "sam2_tiny",
    "sam_nano",
    "sam_vit_b",
    "sam_vit_h",
    "sam_vit_l",
)
BACKBONES = (
    "densenet121",
    "efficientnet_lite0",
    "efficientnet_lite2",
    "resnet152",
    "resnet18",
    "resnet50",
    "senet154",
    "swinv2_base",
    "swinv2_tiny",
)
AUGMENTATIONS = ("default", "mirror", "none")
DEVICES = ("auto", "cpu", "cuda", "gpu", "mps")
PRECISIONS = ("auto", "32", "bf16")
TUNINGS = ("none", "all")
LOGS = ("mlflow", "tensorboard")
TASKS = ("segmentation", "classification")
SUBSETS = ("train", "select", "val", "test", "all")

CHOICES: dict[str, Collection[str]] = {
    "head": (*SEGMENTATION_HEADS, *CLASSIFICATION_HEADS),
    "encoder": ENCODERS,
    "backbone": BACKBONES,
    "augment": AUGMENTATIONS,
    "device": DEVICES,
    "precision": PRECISIONS,
    "tune": TUNINGS,
    "task": TASKS,
    "subset": SUBSETS,
}


def demand_known(**chosen: str | None) -> None:
    """Refuse what is not among `CHOICES`; None is what was not given."""
    for option, value in chosen.items():
        known = CHOICES[option]
        if value is None or value in known:
            continue
        near = difflib.get_close_matches(value, known, n=1)
        raise SamAdaptError(
            f"--{option} is {value!r}; known: {', '.join(sorted(known))}"
            + (f" (did you mean {near[0]}?)" if near else "")
        )


def demand_numbers(least: float, **given: float | None) -> None:
    """Refuse numbers below `least`, and what is not a finite number; None is what was not given."""
    for option, value in given.items():
        if value is not None and not least <= value < math.inf:
            raise SamAdaptError(
                f"--{option.replace('_', '-')} is {value}; expected a number from {least:g} on"
            )
