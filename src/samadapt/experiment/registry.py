"""Methods by name: how each is made, and what it is there for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samadapt.baselines.nnunet import NnUNetConfig
from samadapt.encoders import ENCODERS
from samadapt.experiment.baselines import NnUNetMethod, SimclrMethod, ZeroShotMethod
from samadapt.experiment.methods import Method, TrainedMethod
from samadapt.heads import HEADS
from samadapt.learner import Learner
from samadapt.simclr import SimclrConfig
from samadapt.types import Head, SamAdaptError


@dataclass(frozen=True)
class BaselineOptions:
    """The settings of the baselines that have some of their own."""

    unet: Mapping[str, Any] = field(default_factory=dict)  # options of the head, for SimCLR's too
    simclr: SimclrConfig = field(default_factory=SimclrConfig)
    nnunet: NnUNetConfig = field(default_factory=NnUNetConfig)


@dataclass(frozen=True)
class NamedMethod:
    """A method by its name.

    Args:
        make: from the learner that the user's options describe (encoder, checkpoint, side, views, ...), and the
            baselines' own.
        suits: the head whose encoders suit it; None where it reads no encoder.
    """

    make: Callable[[Learner, BaselineOptions], Method]
    suits: str | None = None


def _unet(base: Learner, baselines: BaselineOptions) -> TrainedMethod:
    side = min(base.side or 256, 256)  # what is finer than the labels only costs time
    return TrainedMethod(
        Learner("unet", "pixels", side=side, options=baselines.unet, views=base.views, augment=base.augment),
        declared="baseline",
    )


def _unet_pretrained(base: Learner) -> TrainedMethod:
    side = max(min(base.side or 256, 256), 64)
    return TrainedMethod(
        Learner("unet_pretrained", "pixels", side=side, views=base.views, augment=base.augment),
        declared="baseline",
    )


def _faithful(base: Learner) -> TrainedMethod:
    """The authors' preparation too, where the encoder has more ways than one."""
    fixed = base.encoder not in ENCODERS or ENCODERS[base.encoder].one_preparation
    prepare = base.prepare if fixed else "autosam"
    return TrainedMethod(
        dataclasses.replace(base, head="autosam", options={"preset": "faithful"}, prepare=prepare)
    )


def _scratch(base: Learner) -> TrainedMethod:
    """All of it new, so all of it at the head's learning rate."""
    lr = HEADS[base.head].lr if base.head in HEADS else Head.lr
    learner = dataclasses.replace(base, checkpoint="random")
    return TrainedMethod(learner, {"tune": "all", "encoder_lr": lr}, declared="baseline")


_ALWAYS = {
    "random": NamedMethod(
        lambda base, _: TrainedMethod(dataclasses.replace(base, checkpoint="random"), declared="control"),
        Learner.head,
    ),
    "scratch": NamedMethod(lambda base, _: _scratch(base), Learner.head),
    "tuned": NamedMethod(lambda base, _: TrainedMethod(base, {"tune": "all"}), Learner.head),
}
#: task -> name -> method; beside them, every head is a learner under its own name. Zero-shot SAM needs the decoder that
#: the head `autosam` starts from.
METHODS: dict[str, dict[str, NamedMethod]] = {
    "segmentation": {
        "autosam_faithful": NamedMethod(lambda base, _: _faithful(base), "autosam"),
        "unet": NamedMethod(_unet),
        "unet_pretrained": NamedMethod(lambda base, _: _unet_pretrained(base)),
        "simclr": NamedMethod(lambda base, options: SimclrMethod(_unet(base, options), options.simclr)),
        "zero_shot": NamedMethod(lambda base, _: ZeroShotMethod(base, "box"), "autosam"),
        "zero_shot_points": NamedMethod(lambda base, _: ZeroShotMethod(base, "points"), "autosam"),
        "nnunet": NamedMethod(lambda _, options: NnUNetMethod(options.nnunet)),
        **_ALWAYS,
    },
    "classification": _ALWAYS,
}


def reading_heads(names: Sequence[str], own: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The heads that read maps of the study's common encoder, which must suit them all.

    Args:
        names: of the methods.
        own: tables of the user's own learners among them; those that name an encoder need not agree with the others.
    """
    heads = set()
    for name in names:
        if name in own:
            head = None if own[name].get("encoder") else own[name].get("head", Learner.head)
        else:
            head = next((of[name].suits for of in METHODS.values() if name in of), name)
        if head in HEADS and HEADS[head].uses_encoder:
            heads.add(head)
    return sorted(heads)


def known_methods(task: str) -> list[str]:
    """The names that `build_methods` takes for a task: the heads, and the table above."""
    return sorted({name for name, head in HEADS.items() if head.task == task} | set(METHODS[task]))


def build_methods(
    names: Sequence[str],
    task: str,
    base: Learner | None = None,
    options: BaselineOptions | None = None,
) -> dict[str, Method]:
    """Methods by name: a key of `METHODS`, or any head, on the encoder of `base`.

    Args:
        base: encoder, checkpoint, side, views and augmentation for all; its head is the one of `random`,
            `scratch` and `tuned`.
        options: of U-Net, SimCLR and nnU-Net.
    """
    base, options = base or Learner(), options or BaselineOptions()
    known = known_methods(task)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SamAdaptError(f"unknown learner {unknown[0]!r} for {task}; known: {', '.join(known)}")
    if len(set(names)) != len(names):
        raise SamAdaptError(f"learners {', '.join(names)}: a name stands there twice; give each once")
    return {name: _build(name, task, base, options) for name in names}


def _build(name: str, task: str, base: Learner, options: BaselineOptions) -> Method:
    if name in METHODS[task]:
        return METHODS[task][name].make(base, options)
    return TrainedMethod(dataclasses.replace(base, head=name, options={}))
