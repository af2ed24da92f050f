"""SLCA and its controls: one network, the same place for whatever gates it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from torch import Tensor

from samadapt.backbones import Backbone
from samadapt.heads.classification.classifier import (
    BackboneClassifier,
    BackboneOptions,
    gated_stages,
    hidden_width,
)
from samadapt.heads.classification.gates import BLOCKS, GATES, Block, CbamBlock, GateOptions, WeightBlock
from samadapt.heads.classification.shuffled import ShuffledTaps
from samadapt.heads.options import one_of, tap_shape
from samadapt.transforms import pooled_size
from samadapt.types import IDENTITY, PIXELS, SamAdaptError, Taps, Units

SOURCES = ("taps", "own", "matched")
RESIZES = ("nearest", "bilinear")


def check_window(head: str, window: int) -> None:
    """Refuse what is not a number of cells."""
    if not isinstance(window, int) or isinstance(window, bool) or window < 0:
        raise SamAdaptError(
            f"head {head!r}: window is {window!r}; give cells of a map: 1, 2, 4, ..., or 0 for the whole map"
        )


@final
class Plain(BackboneClassifier):
    """The network without any gate: what every other head is compared with.

    Args:
        taps: the encoder's taps; only its pixels are read.
        n_classes: number of classes.
        backbone: a name in `backbones.BACKBONES`.
        weights: of the network at the start: a file, a folder, a pinned hub id; None: random.
        image_size: side of what the network sees; None: its own (224, 256 for Swin V2, 28 for small inputs).
        small_input: a first layer for pictures of about 28 px.
        class_weights: of the loss, one for each class.
        weights_of: name of the first weights, kept by run folders; does nothing.
        units: of the pixels that the encoder prepared; None: 0..1. For networks that have units of their own.
    """

    name: ClassVar[str] = "plain"
    encoders: ClassVar[tuple[str, ...]] = ("sam_nano",)  # for its preparation of the pixels
    uses_encoder: ClassVar[bool] = False

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        backbone: str = "resnet18",
        weights: str | None = None,
        image_size: int | None = None,
        small_input: bool = False,
        class_weights: Sequence[float] | None = None,
        weights_of: str | None = None,
        units: Units | None = None,
    ) -> None:
        super().__init__()
        trunk = BackboneOptions(backbone, weights, image_size, small_input, class_weights, weights_of, units)
        self.start(trunk, taps, n_classes)


class OwnGated(BackboneClassifier):
    """The stages gate themselves, after the same stages that SLCA gates: no encoder is read.

    Args:
        reduction: channels of a stage over channels of its bottleneck.
        gate: `sigmoid2` (2 * sigmoid, around one), `sigmoid` or `softmax`.
        stages: names of the gated stages; None: all.
        identity: whether a block changes nothing before it is trained; None: where the network starts from given
            weights, which open gates would ruin. From random ones, gates that start at one hardly leave it in a few
            hundred steps (docs/classification.md).
        others: as `Plain`.
    """

    encoders: ClassVar[tuple[str, ...]] = ("sam_nano",)  # for its preparation of the pixels
    uses_encoder: ClassVar[bool] = False

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        backbone: str = "resnet18",
        weights: str | None = None,
        image_size: int | None = None,
        small_input: bool = False,
        class_weights: Sequence[float] | None = None,
        weights_of: str | None = None,
        units: Units | None = None,
        reduction: int = 16,
        gate: str = "sigmoid2",
        stages: Sequence[str] | None = None,
        identity: bool | None = None,
    ) -> None:
        super().__init__()
        one_of(self.name, "gate", gate, GATES)
        trunk = BackboneOptions(backbone, weights, image_size, small_input, class_weights, weights_of, units)
        network = self.start(trunk, taps, n_classes)
        gated = gated_stages(self.name, network, stages)
        identity = self.starts_as_plain(identity)
        own = {"reduction": reduction, "gate": gate, "stages": gated, "identity": identity}
        self.spec = {**self.spec, **own}
        for stage in gated:
            width = network.stages[stage]
            hidden = hidden_width(self.name, width, reduction)
            self.blocks[stage] = self.block(width, hidden, gate, identity)

    @abstractmethod
    def block(self, channels: int, hidden: int, gate: str, identity: bool) -> Block:
        """What follows a stage of so many channels."""


@final
class SE(OwnGated):
    """Squeeze-and-Excitation (Hu et al. 2018): SLCA on the own map with a window as large as the map."""

    name: ClassVar[str] = "se"

    def block(self, channels: int, hidden: int, gate: str, identity: bool) -> Block:
        return WeightBlock(channels, None, hidden, GateOptions(gate, window=0, identity=identity))


@final
class CBAM(OwnGated):
    """Convolutional Block Attention Module (Woo et al. 2018)."""

    name: ClassVar[str] = "cbam"

    def block(self, channels: int, hidden: int, gate: str, identity: bool) -> Block:
        one_of(self.name, "gate", gate, ("sigmoid2", "sigmoid"))  # a softmax over one place map is always one
        return CbamBlock(channels, hidden, gate, identity)


@final
class SLCA(BackboneClassifier):
    """Taps of the frozen encoder, pooled over windows, weigh the channels of the network's maps place by place.

    The published description leaves most of this open; the defaults are a reconstruction (docs/classification.md).

    Args:
        read: the encoder's maps that gate: one for each gated stage, or one for all; None: patch, early, middle,
            late and neck, by position.
        window: cells of a tap (or of the own map) that are averaged; 1: every cell, 0: the whole map (as SE).
        reduction: channels of the source over channels of the bottleneck.
        gate: `sigmoid2` (2 * sigmoid, around one), `sigmoid` or `softmax` (over the channels).
        resize: `nearest` or `bilinear`, of the weights to the stage's grid.
        fusion: `multiply` X * A, `residual` X * (1 + s A), `add` X + s W(F * A), `concat` W'[X, W(F * A)].
        stages: names of the gated stages; None: all.
        source: `taps`; `own`: the stage's own map; `matched`: the own map, with about as many parameters as the
            taps would take.
        shuffle: give every image the gates of another one (a control); at least two images must train.
        identity: whether a block changes nothing before it is trained; None: where the network starts from given
            weights, which open gates would ruin. From random ones, gates that start at one hardly leave it in a few
            hundred steps (docs/classification.md).
        others: as `Plain`.
    """

    name: ClassVar[str] = "slca"

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        backbone: str = "resnet18",
        weights: str | None = None,
        image_size: int | None = None,
        small_input: bool = False,
        class_weights: Sequence[float] | None = None,
        weights_of: str | None = None,
        units: Units | None = None,
        read: Sequence[str] | None = None,
        window: int = 4,
        reduction: int = 16,
        gate: str = "sigmoid2",
        resize: str = "nearest",
        fusion: str = "multiply",
        stages: Sequence[str] | None = None,
        source: str = "taps",
        shuffle: bool = False,
        identity: bool | None = None,
    ) -> None:
        super().__init__()
        one_of(self.name, "gate", gate, GATES)
        one_of(self.name, "resize", resize, RESIZES)
        one_of(self.name, "fusion", fusion, BLOCKS)
        one_of(self.name, "source", source, SOURCES)
        check_window(self.name, window)
        if shuffle and source != "taps":
            raise SamAdaptError(f"head 'slca' cannot shuffle with source {source!r}; shuffle the taps")
        trunk = BackboneOptions(backbone, weights, image_size, small_input, class_weights, weights_of, units)
        network = self.start(trunk, taps, n_classes)
        gated = gated_stages(self.name, network, stages)
        identity = self.starts_as_plain(identity)
        options = GateOptions(gate, fusion, resize, window, identity)
        self.stage_taps = {} if source == "own" else taps_of_stages(taps, list(network.stages), gated, read)
        widths = self._hidden(network, gated, taps, reduction, source)
        self.spec = dict(self.spec) | {
            "read": list(read) if read else None, "window": window, "reduction": reduction, "gate": gate,
            "resize": resize, "fusion": fusion, "stages": gated, "source": source, "shuffle": shuffle,
            "identity": identity,
        }  # fmt: skip
        if source != "taps":
            self.stage_taps = {}
        for stage in gated:
            given = taps[self.stage_taps[stage]][0] if self.stage_taps else None
            self.blocks[stage] = BLOCKS[fusion](network.stages[stage], given, widths[stage], options)
        wanted = sorted(set(self.stage_taps.values()), key=list(taps).index)
        self.reads = {PIXELS: 1} | {tap: window for tap in wanted}
        self.shuffled = ShuffledTaps({t: pooled_shape(taps[t], window) for t in wanted}) if shuffle else None
        if shuffle:
            self.reads |= {IDENTITY: 1}
            self.min_cases = 2

    @staticmethod
    def is_control(options: Mapping[str, Any]) -> bool:
        """With gates from another picture's maps, or from none of the encoder's."""
        return bool(options.get("shuffle")) or options.get("source", "taps") != "taps"

    def _hidden(
        self, network: Backbone, gated: Sequence[str], taps: Taps, reduction: int, source: str
    ) -> dict[str, int]:
        """Width between the two convolutions of each block."""
        widths = {}
        for stage in gated:
            own = network.stages[stage]
            if source == "own":
                widths[stage] = hidden_width(self.name, own, reduction)
                continue
            given = taps[self.stage_taps[stage]][0]
            widths[stage] = hidden_width(self.name, given, reduction)
            if source == "matched":  # the width at which two layers on C channels have as many numbers
                widths[stage] = max(1, round(widths[stage] * (given + 1 + own) / (2 * own + 1)))
        return widths

    def sources(self, features: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = {tap: features[tap] for tap in self.stage_taps.values()}
        if self.shuffled is not None:
            given = self.shuffled(given, features[PIXELS], features[IDENTITY])
        return {stage: given[tap] for stage, tap in self.stage_taps.items()}


# ---------------------------------------------------------------- which map gates which stage


def five_taps(taps: Taps) -> list[str]:
    """Patch, early, middle, late, neck: by position in the encoder's own order.

    The last map is the neck. Of the maps before it come the first, those a quarter and a half of the way up,
    and the last: for a SAM ViT its patch embedding and, of four global-attention blocks, the first, the second
    and the fourth. An encoder of five maps gives all of them, one of fewer repeats some.
    """
    maps = [tap for tap in taps if tap != PIXELS]
    if not maps:
        raise SamAdaptError(
            f"head 'slca' needs a map of the encoder, which gives {sorted(taps)}; choose an encoder such as "
            "sam_nano, or the head 'se', which gates with its own maps"
        )
    if len(maps) == 5:
        return maps
    body = maps[:-1] or maps
    top = len(body) - 1
    return [body[0], body[top // 4], body[top // 2], body[top], maps[-1]]


def taps_of_stages(
    taps: Taps, stages: Sequence[str], gated: Sequence[str], chosen: Sequence[str] | None
) -> dict[str, str]:
    """{gated stage: tap}.

    Args:
        stages: all stages of the network: a stage keeps its tap whichever others are gated.
        chosen: one tap for all gated stages, or one for each in order; None: `five_taps`, spread over `stages`.
    """
    if chosen is None:
        five = five_taps(taps)
        last = max(len(stages) - 1, 1)
        spread = {stage: five[round(4 * i / last)] for i, stage in enumerate(stages)}
        return {stage: spread[stage] for stage in gated}
    for tap in chosen:
        tap_shape("slca", taps, tap)
    names = list(chosen) * len(gated) if len(chosen) == 1 else list(chosen)
    if len(names) != len(gated) or PIXELS in names:
        raise SamAdaptError(
            f"head 'slca' gates {len(gated)} stages ({', '.join(gated)}) and was given the taps {list(chosen)}; "
            f"give one map for each, or one for all, of {', '.join(t for t in taps if t != PIXELS)}"
        )
    return dict(zip(gated, names, strict=True))


def pooled_shape(shape: tuple[int, int, int], window: int) -> tuple[int, int, int]:
    """(C, h, w) of a tap after pooling, as every head receives it."""
    channels, height, width = shape
    return channels, *pooled_size((height, width), window)
