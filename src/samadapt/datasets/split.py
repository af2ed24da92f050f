"""Which patients to learn from, to select on and to score on.

One seeded order of the patients decides: the first N are the labelled ones, so that N=1 lies within N=2.
The order is by hash, so one more patient in the folder does not shuffle the others. The scored patients
depend on `fold` alone and not on `seed`: several seeds are scored on the same patients.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samadapt.types import SamAdaptError

if TYPE_CHECKING:
    from samadapt.datasets.dataset import Dataset

ValLabels = int | Literal["official"] | None


@dataclass(frozen=True)
class Split:
    """Case names by use. `train` and `select` are all that a learner may see the labels of."""

    train: tuple[str, ...]  # to learn from
    select: tuple[str, ...]  # to choose the best step on; empty: no selection
    val: tuple[str, ...]  # to score on, never to learn or select
    pool: tuple[str, ...]  # everything that is not for scoring, labelled or not: images for pre-training
    patients: tuple[str, ...]  # whose labels are used in `train` and `select`: the label budget
    labels: int | float | None  # as asked for: patients, or a share of them; None: all
    seed: int
    rule: str  # in words, for the report
    #: Case -> patient, where the two are not the same.
    patient_of: Mapping[str, str] = field(default_factory=dict)
    #: Cases that a model learned from without their labels, of these data or of others; known once it is trained.
    unlabelled: tuple[str, ...] = ()

    def part(self, case: str) -> str:
        """ "train", "select" or "val"; "" for a case that it does not name."""
        return self._part_of.get(case, "")

    def learned(self, case: str) -> bool:
        """Whether a model that is trained on it sees a case of this name, with its label or without."""
        return self.part(case) in ("train", "select") or case in self._unlabelled

    @cached_property
    def _part_of(self) -> dict[str, str]:
        parts = ("val", "select", "train")  # a name in two of them is of the last one
        return {case: part for part in parts for case in getattr(self, part)}

    @cached_property
    def _unlabelled(self) -> frozenset[str]:
        return frozenset(self.unlabelled)

    @cached_property
    def hash(self) -> str:
        """sha256 of the lists of cases."""
        lists = [sorted(self.train), sorted(self.select), sorted(self.val)]
        lists += [sorted(self.unlabelled)] if self.unlabelled else []
        return hashlib.sha256(json.dumps(lists).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON-able, the hash with it."""
        return {**asdict(self), "hash": self.hash}

    @staticmethod
    def read(path: Path) -> Split:
        """The split of a run folder; a file that was edited is an error."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored = content.pop("hash")
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            split = Split(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SamAdaptError(
                f"{path} is not a split that samadapt wrote ({error}); copy the whole run folder again"
            ) from error
        if stored != split.hash:
            raise SamAdaptError(
                f"the lists of {path} do not fit its hash: it was changed after it was written; copy the whole run folder again"
            )
        return split


def make_split(
    data: Dataset,
    labels: int | float | None = None,
    seed: int = 0,
    select: int = 0,
    val_labels: ValLabels = None,
    fold: int = 0,
    val_fraction: float = 0.2,
) -> Split:
    """Which cases to learn from, select on and score on, by patient: the method `split` of a data set.

    Args:
        labels: how many patients' labels may be used; a float up to 1.0 is a share; None is all.
            Classification draws them evenly over the classes.
        seed: draws the labelled patients, not the scored ones.
        select: how many of the labelled patients are set aside for selection.
        val_labels: further labelled patients for selection, beyond `labels`; "official": the data set's own
            validation part. None: that part where there is one, nobody asked for few labels and a test part
            remains for scoring (MedMNIST's protocol), else nobody.
        fold: which entry of splits_final.json, or which block of patients is scored on.
        val_fraction: share of the patients to score on where the data set does not say.
    """
    labelled = set(data.labelled_ids)
    if not labelled:
        raise SamAdaptError(
            f"data set {data.name!r} has no labels; labelled cases are needed to train: see its layout"
        )
    parts, source = _parts(data, fold, val_fraction)
    _demand_whole_patients(data, parts, source)
    order = _order(data, [i for i in parts["pool"] if i in labelled], seed)
    if not order:
        raise SamAdaptError(
            f"data set {data.name!r}: none of the {len(parts['pool'])} cases to learn from has a label"
        )
    budget, whole = _budget(labels, len(order), data.name)
    extra = _extra(data, parts["official"], val_labels, whole)
    _demand_enough(budget, select, extra, len(order))
    chosen = order[:budget]
    beyond = order[budget : budget + extra] if isinstance(extra, int) else []
    train = _cases(data, chosen[: budget - select], parts["pool"], labelled)
    selected = _cases(data, chosen[budget - select :] + beyond, parts["pool"], labelled)
    if not isinstance(extra, int):
        selected += tuple(i for i in extra if i in labelled)
    val = tuple(i for i in parts["val"] if i in labelled)
    for name, ids in (("train", train), ("select", selected), ("val", val)):
        _demand_two_classes(data, name, ids)
    used = {data.groups[i] for i in (*train, *selected)}
    return Split(
        train=train,
        select=selected,
        val=val,
        pool=tuple(parts["pool"]),
        patients=tuple(g for g in [*order, *sorted(used - set(order))] if g in used),
        labels=labels,
        seed=seed,
        rule=f"{_drawn(data, budget, len(order), seed)}; {_selection(select, beyond, extra)}; "
        f"scored on {source}",
        patient_of={case: patient for case, patient in data.groups.items() if case != patient},
    )


def unit_of(data: Dataset) -> str:
    """The unit of sampling: "patient", or "case" where every case is a patient of its own."""
    return "case" if all(case == group for case, group in data.groups.items()) else "patient"


def _drawn(data: Dataset, budget: int, available: int, seed: int) -> str:
    return f"{budget} of {available} labelled {unit_of(data)}s" + (
        f", drawn with seed {seed}" if budget < available else ""
    )


def _selection(select: int, beyond: list[str], extra: int | tuple[str, ...]) -> str:
    ways = [f"{select} of them"] if select else []
    ways += [f"{len(beyond)} further labelled patients"] if beyond else []
    ways += [f"the official validation part ({len(extra)} cases)"] if not isinstance(extra, int) else []
    return f"checkpoint selection on {' and '.join(ways)}" if ways else "no checkpoint selection"


# ---------------------------------------------------------------- who is for what


def _parts(data: Dataset, fold: int, val_fraction: float) -> tuple[dict[str, list[str]], str]:
    """{"pool", "val", "official"}: case names; and where the scored ones come from."""
    if data.folds:
        if not 0 <= fold < len(data.folds):
            raise SamAdaptError(
                f"fold is {fold}; splits_final.json of {data.name!r} has folds 0..{len(data.folds) - 1}"
            )
        train, val = data.folds[fold]
        for name, ids in (("train", train), ("val", val)):
            if not ids:
                raise SamAdaptError(
                    f"splits_final.json of {data.name!r}: fold {fold} has no case in {name}; expected cases in both lists: "
                    "choose another --fold or correct the file"
                )
        return {"pool": list(train), "val": list(val), "official": []}, f"fold {fold} of splits_final.json"
    by_part: dict[str | None, list[str]] = defaultdict(list)
    for case_id in data.ids:
        by_part[data.parts[case_id]].append(case_id)
    labelled = set(data.labelled_ids)
    scored: Literal["test", "val"] = "test" if labelled & set(by_part["test"]) else "val"
    if labelled & set(by_part[scored]):
        pool = by_part["train"] + by_part[None]
        official = by_part["val"] if scored == "test" else []
        return {"pool": pool, "val": by_part[scored], "official": official}, f"the official {scored} part"
    return _random_parts(data, fold, val_fraction, by_part["test"])


def _random_parts(
    data: Dataset, fold: int, val_fraction: float, unlabelled_test: list[str]
) -> tuple[dict[str, list[str]], str]:
    apart = {data.groups[i] for i in unlabelled_test}
    blocks = _blocks(data, val_fraction, apart)
    if not 0 <= fold < len(blocks):
        raise SamAdaptError(
            f"fold is {fold}; with val_fraction {val_fraction} there are folds 0..{len(blocks) - 1}"
        )
    scored = set(blocks[fold])
    not_ours = scored | apart  # once: for each case it would take as long as there are patients
    rest = [i for i in data.ids if data.groups[i] not in not_ours]
    val = [i for i in data.ids if data.groups[i] in scored]
    source = f"{len(scored)} patient{'s'[: len(scored) != 1]} held out for testing (fold {fold}, the same for every seed)"
    return {"pool": rest, "val": val, "official": []}, source


def _blocks(data: Dataset, val_fraction: float, apart: set[str]) -> list[list[str]]:
    """Of each random fold the patients that it holds out.

    Args:
        apart: patients of an official test part without labels, who stay out: they are not ours to learn from.
    """
    if not 0 < val_fraction < 1:
        raise SamAdaptError(f"val_fraction is {val_fraction}; expected a share between 0 and 1, e.g. 0.2")
    groups = _order(data, [i for i in data.labelled_ids if data.groups[i] not in apart], seed=0, salt="val")
    if len(groups) < 2:
        raise SamAdaptError(
            f"data set {data.name!r} has {len(groups)} labelled patients; expected at least 2, one to learn from and "
            "one to score on: see the rule that assigns cases to patients (--group)"
        )
    folds = max(2, round(1 / val_fraction))
    size = max(1, round(len(groups) * val_fraction))
    blocks = [groups[fold * size : (fold + 1) * size] for fold in range(folds)]
    return [block for block in blocks if block]


def count_folds(data: Dataset, val_fraction: float = 0.2) -> int:
    """How many folds a data set has.

    Raises:
        SamAdaptError: it has an official part to score on, and so no folds.
    """
    if data.folds:
        return len(data.folds)
    official = sorted({data.parts[i] or "" for i in data.labelled_ids} & {"test", "val"})
    if official:
        raise SamAdaptError(
            f"data set {data.name!r} has an official {official[0]} part to score on, and so no folds; leave out --fold all"
        )
    apart = {data.groups[i] for i in data.ids if data.parts[i] == "test"}
    return len(_blocks(data, val_fraction, apart))


def _demand_whole_patients(data: Dataset, parts: Mapping[str, Sequence[str]], source: str) -> None:
    where: dict[str, tuple[str, str]] = {}
    for part, ids in parts.items():
        for case_id in ids:
            group = data.groups.get(case_id)
            if group is None:
                raise SamAdaptError(
                    f"{source} names the case {case_id!r}, which data set {data.name!r} does not have"
                )
            before, other = where.setdefault(group, (part, case_id))
            if before != part:
                raise SamAdaptError(
                    f"{source} cuts through patient {group!r}: {other!r} is in {before}, {case_id!r} in {part}; a "
                    "patient must be on one side: correct the split, or the rule that assigns cases to patients (--group)"
                )


def _budget(labels: int | float | None, available: int, name: str) -> tuple[int, bool]:
    """How many patients, and whether that is all of them as far as the user asked."""
    if labels is None:
        return available, True
    if isinstance(labels, float) and not labels.is_integer():
        if not 0 < labels < 1:
            raise SamAdaptError(
                f"labels is {labels}; expected a number of patients, or a share between 0 and 1"
            )
        return max(1, round(labels * available)), False
    if isinstance(labels, float) and labels == 1.0:  # 1.0 is all of them, 1 is one patient
        return available, True
    if labels < 1:
        raise SamAdaptError(f"labels is {labels}; expected at least 1 patient, or a share between 0 and 1")
    if labels > available:
        raise SamAdaptError(
            f"{int(labels)} labelled patients were asked for, but data set {name!r} has {available} to learn from; "
            f"ask for at most {available} (--labels)"
        )
    return int(labels), False


def _demand_enough(budget: int, select: int, extra: int | tuple[str, ...], available: int) -> None:
    if not 0 <= select < budget:
        raise SamAdaptError(
            f"select is {select} of {budget} labelled patients; expected 0..{budget - 1}: one at least must train"
        )
    further = available - budget
    if isinstance(extra, int) and extra > further:
        raise SamAdaptError(
            f"{extra} patients for selection beyond {budget} labelled ones were asked for, but {further} are left "
            f"of {available}; ask for fewer (--val-labels)"
        )


def _extra(data: Dataset, listed: Sequence[str], val_labels: ValLabels, whole: bool) -> int | tuple[str, ...]:
    """Selection beyond the budget: a number of patients, or the official validation cases."""
    official = tuple(listed)
    if val_labels is None:
        return official if whole and official else 0
    if val_labels == "official":
        if not official:
            raise SamAdaptError(
                f"data set {data.name!r} has no validation part apart from the scored cases; give a number of patients"
            )
        return official
    if val_labels < 0:
        raise SamAdaptError(f"val_labels is {val_labels}; expected 0 or more patients")
    return val_labels


def _cases(data: Dataset, groups: Iterable[str], pool: Sequence[str], labelled: set[str]) -> tuple[str, ...]:
    chosen = set(groups)
    return tuple(i for i in pool if data.groups[i] in chosen and i in labelled)


def _demand_two_classes(data: Dataset, part: str, ids: Sequence[str]) -> None:
    if data.task != "classification" or not ids:
        return
    wanted = set(ids)
    targets = {entry.target for entry in data.entries if entry.id in wanted}
    if len(targets) < 2:
        (target,) = targets
        what = target if isinstance(target, tuple) else data.classes[target or 0]
        raise SamAdaptError(
            f"all {len(ids)} cases of the {part} part are of class {what!r}; expected two classes at least: "
            "ask for more labels (--labels), or check the label column and the split"
        )


# ---------------------------------------------------------------- the order


def _order(data: Dataset, ids: Sequence[str], seed: int, salt: str = "labels") -> list[str]:
    """The patients of these cases, in seeded order; classes evenly spread, so that every beginning is stratified."""
    groups = sorted({data.groups[i] for i in ids}, key=lambda g: _rank(salt, seed, g))
    if data.task == "segmentation":
        return groups
    wanted = set(ids)
    targets: dict[str, Counter[object]] = defaultdict(Counter)
    for entry in data.entries:
        if entry.id in wanted:
            targets[data.groups[entry.id]][entry.target] += 1
    strata: dict[object, list[str]] = defaultdict(list)
    for group in groups:
        strata[max(targets[group].items(), key=lambda item: (item[1], str(item[0])))[0]].append(group)
    place = {
        group: ((number + 0.5) / len(members), _rank(salt, seed, group))
        for members in strata.values()
        for number, group in enumerate(members)
    }
    return sorted(groups, key=place.__getitem__)


def _rank(*key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()
