"""Where a classifier looked: Grad-CAM of any of its stages, and how much of a map lies inside a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

#: The title of the map that is about the answer, beside those of the stages.
GRAD_CAM = "Grad-CAM"


class SaliencyHead(ABC):
    """The interface of heads that can say where they looked."""

    @abstractmethod
    def saliency(self, features: Mapping[str, Tensor], target: Tensor | None = None) -> dict[str, Tensor]:
        """{title: (B, h, w)} over the encoder's square, larger where the head looked.

        Args:
            target: (B,) class that a map about the answer follows; None: the likeliest one.
        """


def grad_cam(stage_map: Tensor, score: Tensor) -> Tensor:
    """Selvaraju et al. 2017: ReLU of the map's channels, weighted by the mean gradient of the score.

    Args:
        stage_map: (B, C, h, w) with a gradient graph.
        score: (B,), computed from it.

    Returns:
        (B, h, w), not negative.
    """
    (gradient,) = torch.autograd.grad(score.sum(), stage_map)
    weights = gradient.mean((-2, -1), keepdim=True)
    return (weights * stage_map).sum(1).clamp_min(0).detach()


def outside_inference(compute: Callable[[], Tensor]) -> Tensor:
    """Run with gradients, even from code that predicts without."""
    with torch.inference_mode(False), torch.enable_grad():
        return compute()


def share_inside(attention: Tensor, mask: Tensor) -> float:
    """The part of an attention map that lies in a mask: 1 is all of it, the mask's own area is chance.

    Args:
        attention: (h, w) over the image; its smallest value counts as nothing, so that gates (near one
            everywhere) and Grad-CAM (zero where nothing is) can be compared.
        mask: (H, W), nonzero inside; the map is resized to it.

    Returns:
        nan where the map is flat or the mask is empty.
    """
    resized = F.interpolate(
        attention[None, None].float(), size=tuple(mask.shape), mode="bilinear", align_corners=False
    )[0, 0]
    rest = resized - resized.min()
    total = float(rest.sum())
    # Below the rounding of the numbers a map is flat: its differences are noise.
    if total <= 1e-6 * float(resized.abs().sum()) or not bool((mask != 0).any()):
        return float("nan")
    return float(rest[mask != 0].sum()) / total
