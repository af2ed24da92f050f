"""A learner: which encoder, which head, how the images are seen. And how one is fitted to a split."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from samadapt.adapted import AdaptedModel
from samadapt.datasets import Dataset, Split
from samadapt.encoders import ENCODERS, EncoderSpec, first_with_weights, is_cheap, side_for
from samadapt.features import EncodeReport, FeatureStore, MapSpec, Pairs
from samadapt.files import demand_writable
from samadapt.heads import HEADS, build_head, starts_from_decoder
from samadapt.overlap import Overlap, of_own_weights, overlaps_of
from samadapt.runs import pick_device
from samadapt.settings import LearnerSettings, UnlabelledOptions
from samadapt.training import TrainConfig, Unlabelled, train
from samadapt.tuning import TUNINGS
from samadapt.types import Head, SamAdaptError, SamAdaptWarning
from samadapt.unlabelled import Blank, describe, unlabelled_cases
from samadapt.weights import RANDOM

STORED_VIEWS = 6
Progress = Callable[[EncodeReport], None]


@dataclass(frozen=True)
class Learner(LearnerSettings):
    """What a few-label study compares. Two learners with equal fields are the same learner.

    Where no encoder is named, see `default_encoder`; where no number of views is given, see `default_views`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.encoder and self.checkpoint is not None:
            raise SamAdaptError(
                f"checkpoint {self.checkpoint!r} is given and no encoder; say which network it is for (--encoder; "
                "samadapt list encoders)"
            )
        if not self.encoder:
            object.__setattr__(self, "encoder", default_encoder(self.head))
        if self.views is None:
            object.__setattr__(self, "views", default_views(self.encoder, self.augment))

    def suited_to(self, data: Dataset) -> Learner:
        """The same learner; where no side was asked for, with the one that suits the slices of a segmentation.

        `samadapt train`, `encode` and `experiment` use it. See `encoders.side_for`; twenty cases are looked at.
        """
        if self.side is not None or data.task != "segmentation":
            return self
        looked_at = data.ids[:: max(1, len(data) // 20)]
        extent = max(max(data.shape(case)[1:]) for case in looked_at)
        return dataclasses.replace(self, side=side_for(self.encoder, extent))

    def spec(self, seed: int = 0) -> EncoderSpec:
        """Which encoder; the seed draws its weights where the checkpoint is "random"."""
        side: Any = self.side  # None is the encoder's own, as of the next one
        prepare: Any = self.prepare
        return EncoderSpec(self.encoder, self.checkpoint, side, prepare, seed, self.dtype, self.slices)

    def identity(self) -> dict[str, Any]:
        """Its fields, by which a study knows it again. A field that came later is there where it is not its default."""
        fields = dataclasses.asdict(self)
        for name in ("encoder_precision", "slices"):
            if fields[name] == getattr(LearnerSettings, name):
                del fields[name]
        return fields

    def build(self, n_classes: int, seed: int = 0, started: bool = True) -> AdaptedModel:
        """A fresh head on the encoder, from whose own decoder it starts where it can. No encoder's network is loaded.

        Args:
            seed: draws the head's weights, and the encoder's where the checkpoint is "random".
            started: False where only the head's form is asked for; no weights' file is then read.
        """
        spec = self.spec(seed)
        start = self._start(spec) if started else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            units = spec.view("none").units
            head = build_head(self.head, spec.taps, n_classes, pretrained=start, units=units, **self.options)
        return AdaptedModel(spec, head)

    def _start(self, spec: EncoderSpec) -> Mapping[str, torch.Tensor]:
        """The weights of the encoder's own decoder, where the head would start from them."""
        asked = starts_from_decoder(self.head) and self.options.get("start") != RANDOM
        if not asked or not spec.pretrained or len(spec.parts) > 1:  # such a head refuses several encoders
            return {}
        found = spec.decoder_state()
        if not found:
            warnings.warn(
                f"the weights of encoder {self.encoder!r} come without a mask decoder, so head {self.head!r} starts from "
                "random weights",
                SamAdaptWarning,
                stacklevel=3,
            )
        return found

    def maps(self, reads: Mapping[str, int], window: str, seed: int = 0) -> MapSpec:
        """Which maps of the training slices it reads, and stores where it stores any."""
        views = 1 if self.augment == "none" else self.views or STORED_VIEWS
        return MapSpec(self.spec(seed), reads, window, views, self.augment)

    def overlaps(self, data: Dataset, cases: Sequence[str] | None = None) -> list[Overlap]:
        """What the training of its encoder saw of these cases (all, unless told); nothing where weights are drawn."""
        used = self.head not in HEADS or HEADS[self.head].uses_encoder
        if not used or self.checkpoint == RANDOM:
            return []
        entry = ENCODERS.get(self.encoder)
        if self.checkpoint is not None and not (entry and entry.is_published(self.checkpoint)):
            return [of_own_weights(self.encoder, self.checkpoint, len(data.ids if cases is None else cases))]
        return overlaps_of(self.encoder, data, cases)


def default_views(encoder: str, augment: str) -> int:
    """None stored (a new view in every step) where the encoder is cheap and views differ, else `STORED_VIEWS`.

    Few pictures with few stored views are learned by heart (decision 016).
    """
    return 0 if is_cheap(encoder) and augment != "none" else STORED_VIEWS


def default_encoder(*heads: str, here: bool = True) -> str:
    """The encoder that is read where none is named: the first one with weights that all of these heads would read.

    Args:
        heads: names; none for any head.
        here: whether its weights must be on this machine.
    """
    wanted = [HEADS[head].encoders if head in HEADS else Head.encoders for head in heads] or [Head.encoders]
    common = [name for name in wanted[0] if all(name in names for names in wanted)]
    names = common or Head.encoders
    return first_with_weights(names) if here else names[0]


def default_note(encoder: str, *heads: str) -> str:
    """Says that nobody named this encoder, and which one would be preferred if its weights were here."""
    wanted = default_encoder(*heads, here=False)
    start = f"encoder {encoder}, since none was named (--encoder)"
    missing = ENCODERS[wanted].missing_file
    if encoder == wanted or missing is None:
        return start + (f"; it suits {' and '.join(heads)}, which read the same" if len(heads) > 1 else "")
    return f"{start} and the weights of {wanted} are not on this machine; to use it, {missing.how()}"


def side_note(asked: Learner, chosen: Learner) -> str | None:
    """Says that the square follows the slices; None where it does not."""
    if chosen.side == asked.side:
        return None
    return f"side {chosen.side}, since the slices are small (--side; the own side of {chosen.encoder} is {asked.spec().side})"


def _stores(learner: Learner, config: TrainConfig, head: Head) -> bool:
    return bool(learner.views) and TUNINGS[config.tune].frozen and not head.pixels_only


def stored_maps(
    learner: Learner, data: Dataset, config: TrainConfig, store: FeatureStore | None
) -> MapSpec | None:
    """The maps that a training reads from a store; None where the encoder runs in every step, or is not needed."""
    head = learner.build(max(2, len(data.classes)), config.seed, started=False).head
    if store is None or not _stores(learner, config, head):
        return None
    return learner.maps(head.reads, data.window, config.seed)


def encode(
    learner: Learner,
    data: Dataset,
    store: FeatureStore,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> EncodeReport:
    """Put into the store what this learner reads of these cases."""
    model = learner.build(max(2, len(data.classes)), seed, started=False)
    maps = learner.maps(model.head.reads, data.window, seed)
    return store.encode(data, maps, pick_device(device), progress=progress)


@dataclass(frozen=True)
class FitOptions:
    """What `fit` is rarely asked.

    Args:
        overwrite: whether a run folder of another configuration is replaced.
        progress: given how many cases are encoded, what is called meanwhile.
        start: puts weights into the fresh head before the first step, e.g. from a pre-training.
        unlabelled: which scans without labels are learned from too, and how.
    """

    overwrite: bool = False
    progress: Callable[[int], Progress] | None = None
    start: Callable[[Head], None] | None = None
    unlabelled: UnlabelledOptions = field(default_factory=UnlabelledOptions)


def fit(
    learner: Learner,
    data: Dataset,
    split: Split,
    config: TrainConfig,
    out: str | Path,
    store: FeatureStore | None = None,
    more: FitOptions | None = None,
) -> Path:
    """Train on the labelled patients of the split and leave a run folder.

    With a store (and a frozen encoder), what is missing in it is encoded first; without, the encoder runs in
    every step. Selection uses `split.select`, which lies within the label budget unless the user widened it.
    """
    more = more or FitOptions()
    demand_writable(out, "--out")
    model = learner.build(len(data.classes), config.seed)
    head = model.head
    if head.task != data.task:
        raise SamAdaptError(
            f"head {learner.head!r} is for {head.task}, data set {data.name!r} is opened for {data.task}; choose another "
            "head (samadapt list heads), or open the data set with --task where it has labels for both"
        )
    if not TUNINGS[config.tune].frozen and learner.encoder_precision != Learner.encoder_precision:
        raise SamAdaptError(
            f"tune={config.tune!r} trains the encoder, in the precision of the training (--precision); leave out "
            f"--encoder-precision {learner.encoder_precision}"
        )
    if more.start is not None:
        more.start(head)
    device = pick_device(config.device)
    training, selection = data[split.train], data[split.select] if split.select else None
    stored = store if _stores(learner, config, head) else None
    maps = learner.maps(head.reads, data.window, config.seed)
    source = more.unlabelled.unlabelled
    cases = (
        None if source is None else unlabelled_cases(source, data, split)
    )  # refused before hours of encoding
    if stored is not None:
        _encode(stored, training, maps, device, more)
        if selection is not None:
            _encode(stored, selection, maps.unaugmented, device, more)
    unlabelled = None
    if cases is not None:
        if stored is not None:
            _encode(stored, cases, maps, device, more)
        split = dataclasses.replace(split, unlabelled=cases.ids)
        told = {**dataclasses.asdict(more.unlabelled), **describe(cases)}
        unlabelled = Unlabelled(Pairs(Blank(cases), maps, stored), more.unlabelled, told)
    pairs = Pairs(training, maps, stored)
    select = Pairs(selection, maps.unaugmented, stored) if selection is not None else None
    return train(model, pairs, select, config, out, split, more.overwrite, unlabelled=unlabelled)


def _encode(
    store: FeatureStore, data: Dataset, maps: MapSpec, device: torch.device, more: FitOptions
) -> None:
    store.encode(data, maps, device, progress=more.progress(len(data)) if more.progress else None)
