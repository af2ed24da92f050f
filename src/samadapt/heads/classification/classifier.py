"""A staged network on the pixels, with or without blocks between its stages: what all its forms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.backbones import RANDOM, Backbone, build_backbone, published_weights
from samadapt.heads.classification.attention import GRAD_CAM, SaliencyHead, grad_cam, outside_inference
from samadapt.heads.classification.gates import Block
from samadapt.heads.options import one_of, pictures_of_three
from samadapt.types import PIXELS, UNCERTAIN, ZERO_TO_ONE, Head, SamAdaptError, Taps, Task, Units

Seen = dict[str, tuple[Tensor, Tensor]]  # stage -> its map before and after the block


def classification_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, or binary cross-entropy of every class where the target has a number for each.

    Args:
        logits: (B, K).
        target: (B,) class numbers, UNCERTAIN for images that do not count, or (B, K) of 0 and 1.
        weights: (K,), larger for classes that shall count more; for several labels, of their positives.
    """
    if target.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), target.float(), pos_weight=weights)
    if bool((target == UNCERTAIN).all()):
        return logits.float().sum() * 0  # a mean over no image would be nan
    return F.cross_entropy(logits.float(), target.long(), weight=weights, ignore_index=UNCERTAIN)


@final
class WeightedLoss(nn.Module):
    """`classification_loss` with the weights of a head's classes, checked; None: all count alike."""

    weights: Tensor | None

    def __init__(self, head: str, n_classes: int, weights: Sequence[float] | None) -> None:
        super().__init__()
        if weights is not None and (len(weights) != n_classes or any(not w > 0 for w in weights)):
            raise SamAdaptError(
                f"head {head!r} cannot weigh {n_classes} classes by {list(weights)}; give one number above 0 for each"
            )
        tensor = None if weights is None else torch.tensor([float(w) for w in weights])
        self.register_buffer("weights", tensor, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return classification_loss(logits, target, self.weights)


@dataclass(frozen=True)
class BackboneOptions:
    """The network itself, as the options of every head with one name it."""

    backbone: str = "resnet18"
    weights: str | None = None
    image_size: int | None = None
    small_input: bool = False
    class_weights: Sequence[float] | None = None
    weights_of: str | None = None
    units: Units | None = None  # of the pixels that the encoder prepared; None: 0..1

    def build(self, head: str) -> Backbone:
        """The network; its input size is checked."""
        if self.image_size is not None and self.image_size < 16:
            raise SamAdaptError(f"head {head!r}: image_size is {self.image_size!r}; give at least 16 pixels")
        own = None if self.weights or self.weights_of else published_weights(self.backbone)
        weights = self.weights if own is None else str(own.locate("--set weights="))
        return build_backbone(self.backbone, weights, self.small_input)

    @property
    def origin(self) -> str | None:
        """Name of the weights that it begins with: those asked for, else the network's published ones, if any."""
        own = published_weights(self.backbone)
        return self.weights or self.weights_of or (own.file if own else None)

    @property
    def pretrained(self) -> bool:
        """Whether it begins with weights that were trained."""
        return self.origin not in (None, RANDOM)

    def spec(self) -> dict[str, object]:
        """Of a head with this trunk. A run folder holds its own weights and must load without the first ones,
        so only their name is kept."""
        return {
            "backbone": self.backbone,
            "image_size": self.image_size,
            "small_input": self.small_input,
            "class_weights": list(self.class_weights) if self.class_weights is not None else None,
            "weights_of": self.origin,
            "units": self.units,
        }


def gated_stages(head: str, backbone: Backbone, stages: Sequence[str] | None) -> list[str]:
    """The chosen stages in the network's order; None is all."""
    known = list(backbone.stages)
    for stage in stages or []:
        one_of(head, "stage", stage, known)
    return [stage for stage in known if stages is None or stage in stages]


def hidden_width(head: str, channels: int, reduction: int) -> int:
    """Between the two convolutions of a block."""
    if reduction < 1:
        raise SamAdaptError(f"head {head!r}: reduction is {reduction!r}; give a whole number from 1")
    return max(channels // reduction, 1)


class BackboneClassifier(Head, SaliencyHead):
    """Stages, blocks after some of them, global average, one linear layer.

    A subclass calls `start` in its constructor, puts a `Block` into `blocks` for every stage it gates, and says
    in `sources` what they read besides their stage.
    """

    task: ClassVar[Task] = "classification"
    tiny: ClassVar[Mapping[str, Any]] = {"small_input": True, "image_size": 16}
    backbone: Backbone
    blocks: nn.ModuleDict
    classify: nn.Linear
    image_size: int
    units: Units
    starts_pretrained: bool

    def start(self, trunk: BackboneOptions, taps: Taps, n_classes: int) -> Backbone:
        """Build everything but the blocks, which come after: with one seed all heads start from one network."""
        pictures_of_three(self.name, taps)
        self.reads = {PIXELS: 1}
        self.describe(n_classes, **trunk.spec())
        self.starts_pretrained = trunk.pretrained
        self.backbone = trunk.build(self.name)
        self.units = trunk.units or ZERO_TO_ONE
        self.classify = nn.Linear(self.backbone.channels, n_classes)
        self.blocks = nn.ModuleDict()
        self.image_size = trunk.image_size or self.backbone.side
        self.loss_fn = WeightedLoss(self.name, n_classes, trunk.class_weights)
        return self.backbone

    def starts_as_plain(self, asked: bool | None) -> bool:
        """Whether blocks start as nothing: as asked, else where the network starts from given weights."""
        return self.starts_pretrained if asked is None else asked

    def sources(self, features: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Stage -> the tap that its block reads; none for blocks that read their own stage."""
        return {}

    def picture(self, features: Mapping[str, Tensor]) -> Tensor:
        """(B, 3, S, S) as the encoder prepared it -> the network's own size and units."""
        pixels = self.backbone.in_units(features[PIXELS], self.units)
        if pixels.shape[-1] == self.image_size:
            return pixels
        size, smaller = (self.image_size, self.image_size), pixels.shape[-1] > self.image_size
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=smaller)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self._run(features)

    def pretrained(self) -> list[nn.Parameter]:
        return list(self.backbone.parameters()) if self.starts_pretrained else []

    def attention(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{stage: (B, h, w)}: where the blocks look, over the encoder's square; empty without blocks."""
        seen: Seen = {}
        self._run(features, seen)
        given = self.sources(features)
        return {
            stage: cast(Block, block).attention(seen[stage][0], given.get(stage)).detach()
            for stage, block in self.blocks.items()
        }

    def grad_cam(
        self, features: Mapping[str, Tensor], stage: str | None = None, target: Tensor | None = None
    ) -> Tensor:
        """(B, h, w) over the encoder's square, not negative: what the answer rests on.

        Args:
            stage: of the network; None: the last one.
            target: (B,) class whose logit is followed; None: the likeliest one.
        """
        stage = stage or list(self.backbone.stages)[-1]
        one_of(self.name, "stage", stage, self.backbone.stages)
        copies = {tap: x.detach() for tap, x in features.items()}

        def compute() -> Tensor:
            inputs = {tap: x.clone() for tap, x in copies.items()}
            inputs[PIXELS].requires_grad_()  # so that there is a graph where all weights are frozen
            seen: Seen = {}
            logits = self._run(inputs, seen)
            # A class chosen in inference mode is copied too: gradients cannot go through such tensors.
            chosen = logits.argmax(1) if target is None else target.clone().to(logits.device).long()
            return grad_cam(seen[stage][1], logits.gather(1, chosen[:, None])[:, 0])

        return outside_inference(compute)

    def saliency(self, features: Mapping[str, Tensor], target: Tensor | None = None) -> dict[str, Tensor]:
        """The attention of every block, and Grad-CAM of the last stage."""
        return self.attention(features) | {GRAD_CAM: self.grad_cam(features, target=target)}

    def _run(self, features: Mapping[str, Tensor], seen: Seen | None = None) -> Tensor:
        """Logits (B, K); notes the maps of every stage where there is somewhere to note them."""
        given = self.sources(features)

        def after(stage: str, x: Tensor) -> Tensor:
            changed = self.blocks[stage](x, given.get(stage)) if stage in self.blocks else x
            if seen is not None:
                seen[stage] = (x, changed)
            return changed

        x = self.backbone(self.picture(features), after)
        return self.classify(x.mean((-2, -1)))
