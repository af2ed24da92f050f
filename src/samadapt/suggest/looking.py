"""What is known of a patient without a label: a vector of its feature maps, and how unsure a model is of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samadapt.datasets import Dataset
from samadapt.encoders import EncoderSpec, is_cheap
from samadapt.ensemble import Agreement
from samadapt.features import EncodeReport, FeatureStore, MapSpec
from samadapt.prediction import Classifier, Maps, Segmenter, load_run
from samadapt.runs import read_config
from samadapt.tuning import TUNINGS
from samadapt.types import Case, encoder_taps

#: A voxel is looked at where the foreground is at least so likely: elsewhere all models are sure of the background.
PLAUSIBLE = 0.1
#: Of a patient in whom nothing is found: a structure that is missed is the largest doubt there is.
NOTHING_FOUND = 1.0

Progress = Callable[[int], Callable[[EncodeReport], None]]


@dataclass(frozen=True)
class Look:
    """Patient -> what is known.

    Args:
        features: (F,) mean and deviation, over all slices of a patient, of the channels of the encoder's coarsest map.
        uncertainty: from 0 to 1; empty without a model.
    """

    features: Mapping[str, np.ndarray]
    uncertainty: Mapping[str, float]


# ---------------------------------------------------------------- feature maps


def coarsest(spec: EncoderSpec, reads: Mapping[str, int] | None = None) -> dict[str, int]:
    """The coarsest map of each encoder, the last of equals: {tap: pooling window}.

    Args:
        reads: of a head, of whose maps it is one, so that it is stored already; None: of all.
    """
    read = encoder_taps(reads or {}) or encoder_taps(dict.fromkeys(spec.taps, 1))
    best: dict[str, str] = {}
    for tap in read:
        encoder = tap.rpartition(":")[0]
        _, h, w = spec.taps[tap]
        if encoder not in best or h * w <= math.prod(spec.taps[best[encoder]][1:]):
            best[encoder] = tap
    return {tap: read[tap] for tap in best.values()}


class FeatureVectors:
    """Vectors of cases, from stored maps; what is not stored is encoded once.

    Args:
        maps: which map.
        store: where it stands, or will.
        stored_already: maps under which a training may have stored it too, with further views.
    """

    def __init__(self, maps: MapSpec, store: FeatureStore, stored_already: Sequence[MapSpec] = ()) -> None:
        self.maps, self.store, self.others = maps, store, tuple(stored_already)

    def encode(self, data: Dataset, device: torch.device, progress: Progress | None = None) -> None:
        """Store what is missing."""
        lacking = (case for case in data if not any(self.store.holds(case, each) for each in self.others))
        self.store.encode(lacking, self.maps, device, progress=progress(len(data)) if progress else None)

    def __call__(self, case: Case) -> np.ndarray:
        """(D, C) of the slices of a case, each averaged over its places."""
        held = next((each for each in self.others if self.store.holds(case, each)), self.maps)
        found = self.store.read(case, held)[0]
        return np.concatenate([found[tap][0].astype(np.float32).mean((-2, -1)) for tap in self.maps.taps], 1)


def patient_vector(slices: Sequence[np.ndarray]) -> np.ndarray:
    """(D, C) of each case of a patient -> (2 C,)."""
    rows = np.concatenate(slices)
    return np.concatenate([rows.mean(0), rows.std(0)])


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Member:
    """A model, and the maps that it reads from a store; None: it runs its encoder itself."""

    model: Segmenter | Classifier
    maps: MapSpec | None

    def read(self, case: Case, store: FeatureStore) -> Maps | None:
        """The maps of a case."""
        return None if self.maps is None else store.read(case, self.maps)[0]


def load_members(runs: Sequence[Path], device: str, checkpoint: str | None = None) -> list[Member]:
    """The models of these run folders.

    Frozen encoders that are dear to run give their maps through the store, where a training will read them again.
    """
    members = []
    for run in runs:
        frozen = TUNINGS[read_config(run)["train"]["tune"]].frozen
        model = load_run(run, device, checkpoint, maps_stored=frozen)
        spec, head = model.model.spec, model.head
        through_store = frozen and not head.pixels_only and not is_cheap(spec.name)
        members.append(
            Member(model, MapSpec(spec, head.reads, model.opening.window) if through_store else None)
        )
    return members


def uncertainty_of(members: Sequence[Member], cases: Sequence[Case], store: FeatureStore) -> float:
    """How unsure models are of the cases of a patient, from 0 to 1.

    Segmentation by one model: the mean entropy of its probabilities, as a share of the largest one, over the voxels whose
    foreground is likelier than `PLAUSIBLE`. By several: one minus the mean Dice of all pairs of their label maps.
    Classification: the entropy of their mean probabilities.
    """
    first = members[0].model
    if isinstance(first, Classifier):
        return float(np.mean([_of_classes(members, case, store) for case in cases]))
    if len(members) > 1:
        return float(np.mean([_of_disagreement(members, case, store) for case in cases]))
    total = np.zeros(2)
    for case in cases:
        for logits in _answers(members[0], case, store):
            total += entropy_sum(logits.softmax(0))
    return float(total[0] / total[1]) if total[1] else NOTHING_FOUND


def entropy_sum(probabilities: Tensor) -> np.ndarray:
    """Of (K, H, W): the sum of the entropies of the voxels that may be foreground, and their number.

    An entropy is a share of that of K equal probabilities.
    """
    looked_at = probabilities[:, 1 - probabilities[0] >= PLAUSIBLE].double()
    return np.array([float(_entropy(looked_at).sum()), looked_at.shape[1]])


def _entropy(p: Tensor) -> Tensor:
    """(K, ...) -> (...), from 0 to 1."""
    return torch.special.entr(p).sum(0) / math.log(max(2, len(p)))


def _answers(member: Member, case: Case, store: FeatureStore) -> Iterator[Tensor]:
    assert isinstance(member.model, Segmenter)
    return member.model.answers(case, member.read(case, store))


def _of_disagreement(members: Sequence[Member], case: Case, store: FeatureStore) -> float:
    agreement = Agreement(len(members), members[0].model.classes)
    for slices in zip(*(_answers(member, case, store) for member in members), strict=True):
        agreement.add([answer.argmax(0) for answer in slices])
    known = [value for value in agreement.dice().values() if not math.isnan(value)]
    return 1 - float(np.mean(known)) if known else NOTHING_FOUND


def _of_classes(members: Sequence[Member], case: Case, store: FeatureStore) -> float:
    each = []
    for member in members:
        assert isinstance(member.model, Classifier)
        each.append(member.model.predict_slices(case, member.read(case, store)).mean(0))
    p = torch.stack(each).mean(0).double()
    if members[0].model.opening.multilabel:  # each class is a question of its own
        return float(_entropy(torch.stack([p, 1 - p])).mean())
    return float(_entropy(p))


# ---------------------------------------------------------------- both


def look_at(
    data: Dataset,
    patients: Mapping[str, Sequence[str]],
    vectors: FeatureVectors | None,
    members: Sequence[Member],
    store: FeatureStore,
    progress: Callable[[str], None] | None = None,
) -> Look:
    """Read each case of these patients once.

    Args:
        data: its cases; no label is read where it has none.
        patients: patient -> cases.
        vectors: None: no features are asked for.
        members: none: no uncertainty is.
        progress: told each patient.
    """
    features, uncertainty = dict[str, np.ndarray](), dict[str, float]()
    for patient, ids in patients.items():
        cases = [data.case(i) for i in ids]
        if vectors is not None:
            features[patient] = patient_vector([vectors(case) for case in cases])
        if members:
            uncertainty[patient] = uncertainty_of(members, cases, store)
        if progress:
            progress(patient)
    return Look(features, uncertainty)
