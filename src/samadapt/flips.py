"""Test-time flips: the probabilities of a case, averaged over its slices flipped along each axis and both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from samadapt.prediction import Classifier, Segmenter
from samadapt.transforms import build_augmentation, to_original
from samadapt.types import Case, SamAdaptError

#: The axes of a slice (K, H, W) that are flipped: none, one, the other, both, as the augmentation draws them.
_FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))


def demand_flips(augmentation: str, where: str) -> None:
    """Refuse flips where the training saw no flipped slices: the answers to them would mean little."""
    found = build_augmentation(augmentation)
    if found is None or not found.mirror:
        raise SamAdaptError(
            f"{where} was trained with the augmentation {augmentation!r}, which flips no slices, so its answers to flipped "
            "slices mean little; leave out --flips, or train with --augment mirror"
        )


def answers_over_flips(model: Segmenter, case: Case) -> Iterator[Tensor]:
    """Per slice, in order: the logarithm of the mean probabilities (K, H, W), which takes the place of logits."""
    ways = [(axes, model.logits(_flipped(case, axes))) for axes in _FLIPS]
    for slices in zip(*(logits for _, logits in ways), strict=True):
        turned_back = [
            to_original(*answer).softmax(0).flip(axes) for (axes, _), answer in zip(ways, slices, strict=True)
        ]
        yield torch.stack(turned_back).mean(0).clamp_min(1e-12).log()


def probabilities_over_flips(model: Classifier, case: Case) -> Tensor:
    """(D, K) of the slices of a case."""
    return torch.stack([model.predict_slices(_flipped(case, axes)) for axes in _FLIPS]).mean(0)


def _flipped(case: Case, axes: Sequence[int]) -> Case:
    """Its image flipped, without its label."""
    image = case.image.flip([axis + 1 for axis in axes]) if axes else case.image
    return dataclasses.replace(case, image=image, label=None)
