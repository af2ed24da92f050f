"""The methods of a study: anything that, given a split, learns and then answers for a case."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import nn

from samadapt.datasets import Dataset, Split
from samadapt.features import FeatureStore, MapSpec
from samadapt.heads import HEADS
from samadapt.learner import FitOptions, Learner, fit
from samadapt.prediction import Classifier, Maps, Saliency, load_run
from samadapt.records import Role
from samadapt.runs import read_config
from samadapt.settings import UnlabelledOptions
from samadapt.training import TrainConfig
from samadapt.tuning import TUNINGS
from samadapt.types import PIXELS, Case, Head, SamAdaptError
from samadapt.unlabelled import in_words


@dataclass(frozen=True)
class Job:
    """What every method is given: the same for all in one cell of the grid."""

    data: Dataset
    split: Split
    config: TrainConfig  # its seed is the cell's
    out: Path  # the cell's folder; becomes a run folder
    store: FeatureStore

    @property
    def shared(self) -> Path:
        """A folder for what several cells of the study use, such as a pre-training."""
        return self.out.parent / "shared"


#: Cases -> each with its answer, in their order: (D, H, W) uint8 label map, or (K,) probabilities.
Answers = Callable[[Iterable[Case]], Iterator[tuple[Case, np.ndarray]]]


def one_by_one(predict: Callable[[Case], np.ndarray]) -> Answers:
    """The answers of a method that takes one case at a time."""
    return lambda cases: ((case, predict(case)) for case in cases)


@dataclass(frozen=True)
class Fitted:
    """A method that has learnt."""

    answers: Answers
    parameters: int  # trained ones
    #: For the fairness table: steps, selection, augmentation.
    notes: Mapping[str, Any] = field(default_factory=dict)
    saliency: Callable[[Case], Saliency] | None = None  # None: it has no saliency maps


#: What stands in the fairness table of a method whose steps are not chosen among.
NO_SELECTION = "no checkpoint selection: the averaged final weights are used"


class Method(ABC):
    """A method that a study compares. Two methods with equal `spec` are the same."""

    #: False: learns nothing, so one cell stands for all numbers of labels and seeds.
    learns: ClassVar[bool] = True

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able; everything that changes its answers."""

    @property
    @abstractmethod
    def role(self) -> Role:
        """Its part in the study, declared where the method is defined, so that the report need not guess."""

    @property
    def starts_from(self) -> Learner | None:
        """The learner whose encoder it starts from, if any; `spec` names only the place of its weights."""
        return None

    @abstractmethod
    def fit(self, job: Job) -> Fitted:
        """Learn from `job.split.train`; leave everything in `job.out`."""

    @property
    def seeded_encoder(self) -> bool:
        """Whether its encoder differs from seed to seed."""
        return False

    def prepare(self, job: Job) -> str | None:
        """Make what its cells of one seed share; the study asks for it before them. In words, what was done."""
        return None

    def encode(self, data: Dataset, seed: int) -> tuple[Encode, ...]:
        """The maps that it will read from the store; the study encodes them once for all."""
        return ()


@dataclass(frozen=True)
class Encode:
    """Maps that a method wants: of its training cases (views) or of the scored ones (view 0).

    Args:
        pool: whether of all cases that are not held out, in place of those that train.
    """

    maps: MapSpec
    scored: bool
    pool: bool = False


def default_role(learner: Learner, whole: bool) -> Role:
    """The role of a learner where none is declared: by what it reads, and by whether its encoder was ever trained.

    Args:
        whole: whether all of the encoder is trained.
    """
    head = HEADS.get(learner.head, Head)
    if learner.encoder == PIXELS or not head.uses_encoder:
        return "baseline"
    if head.is_control(learner.options):
        return "control"
    if learner.checkpoint == "random":  # all of it trained with the head: a network from scratch
        return "baseline" if whole else "control"
    return "contender"


@final
@dataclass(frozen=True)
class TrainedMethod(Method):
    """A head (and perhaps its encoder) trained on the labelled cases.

    Args:
        train: fields of the study's `TrainConfig` that differ for this one, e.g. {"tune": "all"}.
        declared: its role; None: what `default_role` says of such a learner.
        unlabelled: which scans without labels it learns from too, and how.
    """

    learner: Learner
    train: Mapping[str, Any] = field(default_factory=dict)
    declared: Role | None = None
    unlabelled: UnlabelledOptions = field(default_factory=UnlabelledOptions)

    @property
    def role(self) -> Role:
        whole = TUNINGS[self.train.get("tune", TrainConfig.tune)].whole
        return self.declared or default_role(self.learner, whole)

    @property
    def spec(self) -> dict[str, Any]:
        spec = {"kind": "trained", **self.learner.identity(), "train": dict(self.train)}
        return spec if self.unlabelled.unlabelled is None else spec | dataclasses.asdict(self.unlabelled)

    @property
    def starts_from(self) -> Learner:
        return self.learner

    def config(self, common: TrainConfig) -> TrainConfig:
        """The study's, with what differs for this one."""
        return dataclasses.replace(common, **self.train)

    @property
    def seeded_encoder(self) -> bool:
        return self.learner.checkpoint == "random"

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is, so that its maps can be stored."""
        return TUNINGS[self.train.get("tune", TrainConfig.tune)].frozen

    def encode(self, data: Dataset, seed: int) -> tuple[Encode, ...]:
        if not self.frozen:
            return ()
        head = self.learner.build(len(data.classes), seed, started=False).head
        if head.pixels_only:
            return ()
        maps = self.learner.maps(head.reads, data.window, seed)
        scored = (Encode(maps.unaugmented, scored=True),)
        if not self.learner.views:  # its training draws a new view in every step
            return scored
        return Encode(maps, scored=False, pool=self.unlabelled.unlabelled is not None), *scored

    def fit(self, job: Job) -> Fitted:
        config = self.config(job.config)
        more = FitOptions(unlabelled=self.unlabelled)
        fit(self.learner, job.data, job.split, config, job.out, job.store, more)
        return fitted_run(job, config, self.learner)


def fitted_run(job: Job, config: TrainConfig, learner: Learner) -> Fitted:
    """A finished run folder as a method; a frozen encoder's maps come from the store."""
    model = load_run(job.out, config.device, maps_stored=True)
    check_finite(model.head)
    stored = TUNINGS[config.tune].frozen and not model.head.pixels_only
    wanted = MapSpec(model.model.spec, model.head.reads, job.data.window)

    def maps(case: Case) -> Maps | None:
        if not stored:
            return None
        job.store.encode([case], wanted, model.model.device)  # nothing to do, as a rule
        return job.store.read(case, wanted)[0]

    trained = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
    trained += model.model.encoder_trained
    kept = stored and learner.views
    views = f"{learner.views} stored views of a slice" if kept else "new views in every step"
    unlabelled = read_config(job.out).get("unlabelled")
    notes = {
        "steps": config.steps * (2 if unlabelled else 1),
        "batch_size": config.batch_size,
        "selection": NO_SELECTION if not job.split.select else "the best step on the selection cases",
        "augmentation": "none" if learner.augment == "none" else f"{learner.augment}, {views}",
        "device": str(next(model.head.parameters()).device),
        **({"unlabelled": in_words(unlabelled)} if unlabelled else {}),
    }
    if not isinstance(model, Classifier):
        return Fitted(one_by_one(lambda case: model.predict(case, maps(case))), trained, notes)
    classifier = model

    def saliency(case: Case) -> Saliency:
        read = maps(case)
        return classifier.saliency_maps(case, classifier.predict_slices(case, read), read)

    def answers(cases: Iterable[Case]) -> Iterator[tuple[Case, np.ndarray]]:
        found = classifier.predict_all(
            ((case, maps(case)) for case in cases), read_ahead=False
        )  # it is timed
        return ((case, slices.mean(0).numpy()) for case, slices in found)

    return Fitted(answers, trained, notes, saliency if classifier.has_saliency else None)


def check_finite(module: nn.Module) -> None:
    """Weights that are not numbers would give a label map that looks like one."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SamAdaptError(
                f"after training, {name} of the head holds values that are not finite; lower --lr, or use --precision 32"
            )
