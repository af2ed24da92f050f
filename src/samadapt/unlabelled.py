"""Scans without labels that a training learns from too: which ones they are, and who may not be among them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from samadapt.datasets import Dataset, Split
from samadapt.files import file_sha256
from samadapt.inputs import Taken, find_unlabelled
from samadapt.opening import Opening
from samadapt.types import Case, SamAdaptError, SamAdaptWarning

POOL = "pool"


def unlabelled_cases(source: str, data: Dataset, split: Split) -> Dataset:
    """The cases that may be learned from without their labels, which are taken away.

    Args:
        source: "pool", or a folder of scans or a data set.

    Raises:
        SamAdaptError: the folder has patients whose labels select or are scored; or no case is left.
    """
    labelled = {data.groups[i] for i in (*split.train, *split.select)}
    if source == POOL:
        chosen = tuple(i for i in split.pool if data.groups[i] not in labelled and data.is_alike(i))
        if not chosen:
            raise SamAdaptError(
                f"--unlabelled pool: all {len(labelled)} patients of {data.name!r} that are not held out are labelled, so no "
                "unlabelled scan is left; ask for fewer --labels, or give a folder of other scans"
            )
        return data.without_labels(chosen)
    told = data.opening.modality if data.modality_told else None
    taken = Taken(modality=told, allow_outside=data.outside)
    found = find_unlabelled(Path(source), data.opening, split.patient_of, taken)
    held_out = {*split.select, *(i for i in data.ids if i not in split.pool)}
    apart = {data.groups[i] for i in held_out}
    copies = _copies(found, data[[i for i in data.ids if i in held_out]])
    if shared := sorted(apart & set(found.groups.values()) | set(copies.values())):
        raise SamAdaptError(
            f"--unlabelled {source} has scans of {len(shared)} patients that are held out for scoring or choose a step "
            f"({', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}{_in_words(copies)}), and a model that has seen them "
            "cannot be scored on them; leave them out of that folder, or rename the scans if they are of other patients"
        )
    chosen = tuple(i for i in found.ids if found.groups[i] not in labelled and i not in data.ids)
    if not chosen:
        raise SamAdaptError(
            f"--unlabelled {source} has no scan that the training does not know: all {len(found)} have the names of cases or of "
            f"labelled patients of {data.name!r}; if they are cases of it without a label, give --unlabelled {POOL}, else give "
            "other scans, or rename these"
        )
    if len(chosen) < len(found):
        warnings.warn(
            f"{len(found) - len(chosen)} of the {len(found)} scans of --unlabelled {source} are left out: they have the names "
            f"of cases or of labelled patients of {data.name!r}",
            SamAdaptWarning,
            stacklevel=2,
        )
    return found[chosen]


def _copies(found: Dataset, held_out: Dataset) -> dict[str, str]:
    """Case of the folder -> patient held out, where an image file of the two has the same bytes under whatever name."""
    sizes: dict[int, list[tuple[Path, str]]] = {}
    for case in held_out.ids:
        if held_out.entry(case).row is None:
            for file in held_out.entry(case).images:
                sizes.setdefault(file.stat().st_size, []).append((file, held_out.groups[case]))
    copies: dict[str, str] = {}
    for case in found.ids:
        if found.entry(case).row is None:
            for file in found.entry(case).images:
                alike = sizes.get(file.stat().st_size, [])
                digest = file_sha256(file) if alike else ""
                for other, patient in alike:
                    if file_sha256(other) == digest:
                        copies[case] = patient
    return copies


def _in_words(copies: Mapping[str, str]) -> str:
    return "".join(
        f"; the scan {case} is a copy of one of {patient}" for case, patient in list(copies.items())[:3]
    )


@final
@dataclass(frozen=True)
class Blank:
    """Unlabelled cases as `Pairs` reads cases: each with a label of zeros, which says where the image is and nothing else.

    Args:
        cases: as `unlabelled_cases` gives them.
    """

    cases: Dataset

    @property
    def ids(self) -> Sequence[str]:
        return self.cases.ids

    def demand_unchanged(self) -> None:
        """As of the cases."""
        self.cases.demand_unchanged()

    @property
    def window(self) -> str:
        return self.cases.window

    @property
    def classes(self) -> Sequence[str]:
        return self.cases.classes

    @property
    def name(self) -> str:
        return self.cases.name

    @property
    def hash(self) -> str:
        return self.cases.hash

    @property
    def opening(self) -> Opening:
        return self.cases.opening

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, case_id: str) -> Case:
        case = self.cases.case(case_id)
        dense = self.cases.task == "segmentation"
        return dataclasses.replace(
            case, label=torch.zeros(case.image.shape[1:], dtype=torch.uint8) if dense else self.label(case_id)
        )

    def label(self, case_id: str) -> Tensor:
        """Of a case that is classified."""
        return torch.zeros(len(self.classes)) if self.cases.multilabel else torch.tensor(0)


def describe(cases: Dataset) -> dict[str, Any]:
    """What `config.json` says of them."""
    return {
        "cases": list(cases.ids),
        "patients": sorted(set(cases.groups.values())),
        "hash": cases.hash,
    }


def in_words(described: Mapping[str, Any]) -> str:
    """What `describe` says, for a table."""
    return f"{len(described['cases'])} unlabelled cases of {len(described['patients'])} patients"
