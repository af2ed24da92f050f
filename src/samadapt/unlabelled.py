"""Self-training: scans without labels are given pseudo-labels by a model, and the next model learns from these too.

    runs/<name>/pseudo-labels-1.npz   # <case>/label.npy, <case>/confidence.npy, and least.npy; of the first round

A pseudo-label lies in the case's own geometry and is warped with its image like any other label, so every augmented view
has the answer for the plain image. After Lee, "Pseudo-Label" (2013) and Xie et al., "Self-training with Noisy Student"
(arXiv 1911.04252); a share of each class is kept, as in Zou et al. (arXiv 1810.07911), since rare ones are less certain.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from samadapt.adapted import AdaptedModel
from samadapt.datasets import Dataset, Split
from samadapt.features import FeatureStore, MapSpec, Pairs
from samadapt.files import replacing
from samadapt.inputs import find_unlabelled
from samadapt.prediction import Maps, Predictor, build_predictor
from samadapt.settings import UnlabelledOptions
from samadapt.training import Mixture
from samadapt.types import IGNORED, Case, SamAdaptError, SamAdaptWarning

POOL = "pool"
_LEAST = "least"  # no case is called so: the entries of cases have two parts


def unlabelled_cases(source: str, data: Dataset, split: Split) -> Dataset:
    """The cases that may be learned from without their labels, which are taken away.

    Args:
        source: "pool", or a folder of scans or a data set.

    Raises:
        SamAdaptError: the folder has patients whose labels select or are scored; or no case is left.
    """
    labelled = {data.groups[i] for i in (*split.train, *split.select)}
    if source == POOL:
        chosen = tuple(i for i in split.pool if data.groups[i] not in labelled)
        if not chosen:
            raise SamAdaptError(
                f"--unlabelled pool: all {len(labelled)} patients of {data.name!r} that are not held out are labelled, so no "
                "unlabelled scan is left; ask for fewer --labels, or give a folder of other scans"
            )
        return data.without_labels(chosen)
    found = find_unlabelled(Path(source), data.opening, split.patient_of)
    apart = {data.groups[i] for i in (*split.select, *split.val)}
    if shared := sorted(apart & set(found.groups.values())):
        raise SamAdaptError(
            f"--unlabelled {source} has scans of {len(shared)} patients that are held out for scoring or choose a step "
            f"({', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}), and a model that has seen them cannot be "
            "scored on them; leave them out of that folder, or rename the scans if they are of other patients"
        )
    chosen = tuple(i for i in found.ids if found.groups[i] not in labelled and i not in data.ids)
    if not chosen:
        raise SamAdaptError(f"--unlabelled {source} has no scan that the training does not know; give others")
    if len(chosen) < len(found):
        warnings.warn(
            f"{len(found) - len(chosen)} of the {len(found)} scans of --unlabelled {source} are left out: they have the names "
            f"of cases or of labelled patients of {data.name!r}",
            SamAdaptWarning,
            stacklevel=2,
        )
    return found[chosen]


# ---------------------------------------------------------------- what a model says


@dataclass(frozen=True)
class _Answer:
    """Of one case: a label, and how certain each of its elements is."""

    label: np.ndarray  # as a `Case` has it
    kind: np.ndarray  # what is compared in confidence: the class of each element
    confidence: np.ndarray  # 0..255, of the same shape


def _segment(predictor: Any, case: Case, maps: Maps | None) -> _Answer:
    sure = [logits.softmax(0).max(0) for logits in predictor.answers(case, maps)]
    label = torch.stack([x.indices for x in sure]).to(torch.uint8).numpy()
    return _Answer(label, label, _levels(torch.stack([x.values for x in sure])))


def _classify(predictor: Any, case: Case, maps: Maps | None) -> _Answer:
    p = torch.from_numpy(predictor.predict(case, maps))
    if predictor.opening.multilabel:  # one question for each class
        label = (p > 0.5).float().numpy()
        return _Answer(label, 2 * np.arange(len(p)) + label.astype(int), _levels(torch.maximum(p, 1 - p)))
    label = np.asarray(int(p.argmax()), np.int64)
    return _Answer(label, label, _levels(p.max()))


_ANSWERS: dict[str, Callable[[Predictor, Case, Maps | None], _Answer]] = {
    "segmentation": _segment,
    "classification": _classify,
}


def _levels(probability: Tensor) -> np.ndarray:
    return (probability * 255).round().to(torch.uint8).numpy()


def least_confidence(counts: np.ndarray, keep: float) -> np.ndarray:
    """(kinds, 256) how often each confidence was given -> (kinds,) the least that is kept, so that `keep` of each are."""
    from_above = counts[:, ::-1].cumsum(1)  # at n: those of the n + 1 highest levels
    enough = from_above >= keep * counts.sum(1, keepdims=True)
    return (255 - enough.argmax(1)).astype(np.uint8)


# ---------------------------------------------------------------- the cases with their pseudo-labels


@final
@dataclass(frozen=True)
class _Both:
    """Labelled cases, then those of the others that have a pseudo-label."""

    labelled: Dataset
    unlabelled: Dataset
    file: Path

    window = property(lambda self: self.labelled.window)
    classes = property(lambda self: self.labelled.classes)
    name = property(lambda self: self.labelled.name)
    hash = property(lambda self: self.labelled.hash)
    opening = property(lambda self: self.labelled.opening)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        certain = (i for i in self.unlabelled.ids if self._pseudo_label(i) is not None)
        return (*self.labelled.ids, *certain)

    def __len__(self) -> int:
        return len(self.ids)

    def case(self, case_id: str) -> Case:
        if case_id in self.labelled.groups:
            return self.labelled.case(case_id)
        return dataclasses.replace(self.unlabelled.case(case_id), label=self._pseudo_label(case_id))

    def label(self, case_id: str) -> Tensor | None:
        if case_id in self.labelled.groups:
            return self.labelled.label(case_id)
        return self._pseudo_label(case_id)

    def _pseudo_label(self, case_id: str) -> Tensor | None:
        """Pixels that are not certain are IGNORED; None: the case is not certain."""
        with np.load(self.file) as archive:
            label, kind, confidence = (
                archive[f"{case_id}/{part}"] for part in ("label", "kind", "confidence")
            )
            certain = confidence >= archive[_LEAST][kind]
        if self.labelled.task == "classification":
            return torch.from_numpy(label) if certain.all() else None
        return torch.from_numpy(np.where(certain, label, np.uint8(IGNORED)))


# ---------------------------------------------------------------- what training asks for


@final
class SelfTraining:
    """What `training.train` is given of the unlabelled scans.

    Args:
        options: see `settings.UnlabelledOptions`.
        cases: as `unlabelled_cases` gives them.
        labelled: the cases that train.
        maps: which maps the head reads.
        store: where they are, of the unlabelled cases too; None: the encoder runs.
    """

    def __init__(
        self,
        options: UnlabelledOptions,
        cases: Dataset,
        labelled: Dataset,
        maps: MapSpec,
        store: FeatureStore | None,
    ) -> None:
        self.options, self.cases, self.labelled = options, cases, labelled
        self.maps, self.store = maps, store

    @property
    def rounds(self) -> int:
        """How often a new model is trained after the first one."""
        return self.options.pseudo_rounds

    def describe(self) -> dict[str, Any]:
        """What `config.json` says of it."""
        return {
            **dataclasses.asdict(self.options),
            "cases": list(self.cases.ids),
            "patients": sorted(set(self.cases.groups.values())),
            "hash": self.cases.hash,
        }

    def answer(self, model: AdaptedModel, file: Path) -> None:
        """Write the pseudo-labels of all unlabelled cases as this model gives them."""
        predictor = build_predictor(model, self.labelled.opening)
        kinds = len(self.labelled.classes) * (2 if self.labelled.multilabel else 1)
        counts = np.zeros((kinds, 256), np.int64)
        with replacing(file, finished=True) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for case in self.cases:
                answer = _ANSWERS[model.head.task](predictor, case, self._stored(case))
                np.add.at(counts, (answer.kind.ravel(), answer.confidence.ravel()), 1)
                for part, array in vars(answer).items():
                    _write(archive, f"{case.id}/{part}", array)
            _write(archive, _LEAST, least_confidence(counts, self.options.pseudo_keep))

    def _stored(self, case: Case) -> Maps | None:
        return self.store.read(case, self.maps)[0] if self.store is not None else None

    def mixture(self, file: Path) -> Mixture:
        """What is learned from with the pseudo-labels of this file."""
        pairs = Pairs(_Both(self.labelled, self.cases, file), self.maps, self.store)
        labelled = sum(case_id in self.labelled.groups for case_id, _ in pairs.items)
        return Mixture(pairs, labelled, self.options.pseudo_share)


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")  # of no date, so that equal answers make equal files
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)
    archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED)


def in_words(described: Mapping[str, Any]) -> str:
    """What `SelfTraining.describe` says, for a table."""
    rounds = described["pseudo_rounds"]
    return (
        f"{len(described['cases'])} unlabelled cases of {len(described['patients'])} patients, {rounds} "
        f"round{'s'[: rounds != 1]} of pseudo-labels"
    )
