"""Splits: by patient, nested, reproducible, never beyond the label budget."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.datasets import Dataset, Entry, Split
from samadapt.opening import Opening
from samadapt.types import SamAdaptError

NOWHERE = Path("nowhere")


def scans(patients: int = 10, frames: int = 2, labelled: bool = True, **fields: Any) -> Dataset:
    """Entries alone: a split reads no file."""
    entries = tuple(
        Entry(f"p{p}_f{f}", (NOWHERE,), (NOWHERE,) if labelled else (), group=f"p{p}")
        for p in range(patients)
        for f in range(frames)
    )
    return Dataset("scans", NOWHERE, Opening("segmentation", ("background", "a")), entries, **fields)


def pictures(
    counts: tuple[int, ...] = (30, 12, 6), parts: tuple[Any, ...] = (None,), **fields: Any
) -> Dataset:
    """`counts` cases of each class in each part."""
    entries = tuple(
        Entry(f"{part or 'x'}{k}_{n}", (NOWHERE,), target=k, part=part)
        for part in parts
        for k, count in enumerate(counts)
        for n in range(count)
    )
    names = tuple(map(str, range(len(counts))))
    return Dataset("pictures", NOWHERE, Opening("classification", names), entries, **fields)


# ---------------------------------------------------------------- laws


@given(
    patients=st.integers(3, 15),
    frames=st.integers(1, 3),
    seed=st.integers(0, 5),
    fold=st.integers(0, 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_laws_of_a_split(patients: int, frames: int, seed: int, fold: int, data: st.DataObject) -> None:
    dataset = scans(patients, frames)
    whole = dataset.split(seed=seed, fold=fold, val_fraction=0.34)
    pool = len(whole.patients)
    labels = data.draw(st.integers(1, pool))
    select = data.draw(st.integers(0, labels - 1))
    split = dataset.split(labels, seed, select=select, fold=fold, val_fraction=0.34)
    group = dataset.groups

    sides = [{group[i] for i in ids} for ids in (split.train, split.select, split.val)]
    assert not sides[0] & sides[1] and not sides[2] & (sides[0] | sides[1])  # no patient on two sides
    assert len(sides[0] | sides[1]) == labels == len(split.patients) and len(sides[1]) == select
    assert all(
        Counter(group[i] for i in ids)[g] == frames
        for ids in (split.train, split.val)
        for g in map(group.get, ids)
    )
    assert split.val == whole.val  # neither seed nor budget moves what is scored
    assert dataset.split(labels, seed, select=select, fold=fold, val_fraction=0.34) == split
    if labels > select + 1:
        fewer = dataset.split(labels - 1, seed, select=select, fold=fold, val_fraction=0.34)
        assert set(fewer.train) <= set(split.train) and set(fewer.patients) <= set(split.patients)


def test_another_seed_labels_other_patients() -> None:
    drawn = {scans(20).split(labels=2, seed=seed).patients for seed in range(6)}
    assert len(drawn) > 3
    assert len({scans(20).split(labels=2, seed=seed).val for seed in range(6)}) == 1


def test_a_new_patient_does_not_shuffle_the_others() -> None:
    before = scans(10, parts_of := 1).split(labels=None, seed=1)
    after = scans(11, parts_of).split(labels=None, seed=1)
    kept = [p for p in after.patients if p in before.patients]
    assert kept == [p for p in before.patients if p in after.patients]


def test_folds_share_no_scored_patient() -> None:
    data = scans(10)
    scored = [set(data.split(fold=fold).val) for fold in range(5)]
    assert set.union(*scored) == set(data.ids) and sum(map(len, scored)) == len(data)
    with pytest.raises(SamAdaptError, match=r"fold is 5; with val_fraction 0\.2 there are folds 0\.\.4"):
        data.split(fold=5)
    with pytest.raises(SamAdaptError, match=r"val_fraction is 1\.5"):
        data.split(val_fraction=1.5)


# ---------------------------------------------------------------- budgets


def test_selection_stays_within_the_budget() -> None:
    data = scans()
    plain = data.split(labels=3)
    assert (
        not plain.select
        and "no checkpoint selection" in plain.rule
        and "3 of 8 labelled patients" in plain.rule
    )
    inside = data.split(labels=3, select=1)
    assert set(inside.train + inside.select) == set(plain.train) and len(inside.patients) == 3
    assert "selection on 1 of them" in inside.rule
    told = data.split(labels=3, val_labels=2)
    assert told.train == plain.train and len(told.select) == 4 and len(told.patients) == 5
    assert "selection on 2 further labelled patients" in told.rule
    assert not {data.groups[i] for i in told.select} & {data.groups[i] for i in told.train + told.val}
    all_of_them = data.split(labels=6, val_labels=2)
    assert not set(all_of_them.select) & set(all_of_them.train) and len(all_of_them.patients) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 9}, "9 labelled patients were asked for, but data set 'scans' has 8 to learn from"),
        ({"labels": 0}, "labels is 0; expected at least 1 patient"),
        ({"labels": -0.5}, r"labels is -0\.5"),
        ({"labels": 2, "select": 2}, r"select is 2 of 2 labelled patients; expected 0\.\.1"),
        ({"labels": 2, "select": -1}, "select is -1"),
        ({"labels": 6, "val_labels": 3}, "3 patients for selection beyond 6 .*but 2 are left of 8"),
        ({"val_labels": -1}, "val_labels is -1"),
        ({"val_labels": "official"}, "has no validation part apart from the scored cases"),
    ],
)
def test_budgets_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SamAdaptError, match=message):
        scans().split(**options)


def test_shares() -> None:
    data = scans()
    assert len(data.split(labels=0.5).patients) == 4 and len(data.split(labels=0.01).patients) == 1
    assert len(data.split(labels=1.0).patients) == 8 and len(data.split(labels=1).patients) == 1
    assert len(data.split(labels=3.0).patients) == 3


def test_no_labels() -> None:
    with pytest.raises(SamAdaptError, match="'scans' has no labels"):
        scans(labelled=False).split()
    with pytest.raises(SamAdaptError, match="has 1 labelled patients; expected at least 2"):
        scans(1).split()


def test_unlabelled_cases_are_images_to_pretrain_on() -> None:
    data = scans(6)
    entries = [dataclasses.replace(e, labels=()) if e.id.endswith("f1") else e for e in data.entries]
    data = dataclasses.replace(data, entries=tuple(entries))
    split = data.split(labels=2)
    assert all(i.endswith("f0") for i in split.train + split.val) and len(split.train) == 2
    assert set(split.pool) == {
        i for i in data.ids if data.groups[i] not in {data.groups[j] for j in split.val}
    }


# ---------------------------------------------------------------- given splits


def test_splits_final() -> None:
    ids = scans(4).ids
    data = scans(4, folds=((ids[:4], ids[4:]), (ids[4:], ids[:4])))
    assert data.split().val == ids[4:] and data.split(fold=1).val == ids[:4]
    assert data.split(labels=1).rule.endswith("scored on fold 0 of splits_final.json")
    with pytest.raises(SamAdaptError, match=r"fold is 2; splits_final\.json of 'scans' has folds 0\.\.1"):
        data.split(fold=2)


def test_a_given_split_that_cuts_a_patient() -> None:
    ids = scans(4).ids
    with pytest.raises(SamAdaptError, match=r"cuts through patient 'p1': 'p1_f0' is in pool, 'p1_f1' in val"):
        scans(4, folds=((ids[:3], ids[3:]),)).split()
    with pytest.raises(SamAdaptError, match="names the case 'ghost', which data set 'scans' does not have"):
        scans(4, folds=((ids[:4], ("ghost",)),)).split()
    data = pictures(parts=("train", "test"))
    entries = tuple(
        dataclasses.replace(e, group="same" if e.id.endswith("0_0") else e.id) for e in data.entries
    )
    with pytest.raises(SamAdaptError, match="the official test part cuts through patient 'same'"):
        dataclasses.replace(data, entries=entries).split()


def test_official_parts() -> None:
    data = pictures(parts=("train", "val", "test"))
    full = data.split()
    assert all(i.startswith("test") for i in full.val) and len(full.val) == 48
    assert (
        all(i.startswith("val") for i in full.select)
        and "the official validation part (48 cases)" in full.rule
    )
    assert data.split(labels=1.0).select == full.select
    assert not data.split(val_labels=0).select
    few = data.split(labels=0.25)
    assert not few.select and len(few.train) == 12  # few labels: the validation part is beyond the budget
    assert data.split(labels=0.25, val_labels="official").select == full.select
    two = pictures(parts=("train", "val")).split()
    assert all(i.startswith("val") for i in two.val) and not two.select  # the val part is what is scored


# ---------------------------------------------------------------- classes


@given(seed=st.integers(0, 3), count=st.integers(3, 48))
@settings(max_examples=40, deadline=None)
def test_every_beginning_is_stratified(seed: int, count: int) -> None:
    data = pictures(parts=("train", "test"))
    split = data.split(labels=count, seed=seed)
    drawn = Counter(data.entry(i).target for i in split.train)
    for target, share in ((0, 30 / 48), (1, 12 / 48), (2, 6 / 48)):
        assert abs(drawn[target] - count * share) <= 1.0
    assert set(data.split(labels=count - 1, seed=seed).train) <= set(split.train) if count > 3 else True


def test_groups_are_whole_in_classification() -> None:
    data = pictures((12, 12))
    entries = tuple(
        dataclasses.replace(e, group=e.id.rsplit("_")[-1]) for e in data.entries
    )  # one of each class
    split = dataclasses.replace(data, entries=entries).split(labels=3)
    assert len(split.train) == 6 and len(split.patients) == 3


@pytest.mark.parametrize("options", [{"labels": 1}, {"labels": 3, "select": 1}])
def test_one_class_only_in_a_part(options: dict[str, Any]) -> None:
    with pytest.raises(
        SamAdaptError, match=r"all \d cases of the (train|select) part are of class '\d'; expected two"
    ):
        pictures(parts=("train", "test")).split(**options)


def test_one_class_only_in_the_scored_part() -> None:
    data = pictures(parts=("train", "test"))
    entries = tuple(dataclasses.replace(e, target=1) if e.part == "test" else e for e in data.entries)
    with pytest.raises(SamAdaptError, match="all 48 cases of the val part are of class '1'"):
        dataclasses.replace(data, entries=entries).split()


def test_several_labels_are_stratified_by_their_combination() -> None:
    data = pictures((40, 20, 20), parts=("train", "test"))
    targets = {0: (0.0, 0.0), 1: (1.0, 0.0), 2: (0.0, 1.0)}
    entries = tuple(dataclasses.replace(e, target=targets[e.target]) for e in data.entries)  # type: ignore[index]
    opening = Opening("classification", ("a", "b"), multilabel=True)
    data = dataclasses.replace(data, entries=entries, opening=opening)
    drawn = Counter(data.entry(i).target for i in data.split(labels=0.1).train)
    assert drawn == {(0.0, 0.0): 4, (1.0, 0.0): 2, (0.0, 1.0): 2}


# ---------------------------------------------------------------- on disk


def test_json_round_trip(tmp_path: Path) -> None:
    split = scans().split(labels=3, select=1)
    path, stored = tmp_path / "split.json", split.to_json()
    path.write_text(json.dumps(stored))
    assert Split.read(path) == split and stored["hash"] == split.hash
    assert scans().split(labels=2).hash != split.hash
    path.write_text(json.dumps(stored | {"train": stored["train"][1:]}))
    with pytest.raises(SamAdaptError, match="changed after it was written"):
        Split.read(path)
    for content in ('{"train": []}', '{"hash": "1", "train": []}', "[]", "{"):
        path.write_text(content)
        with pytest.raises(SamAdaptError, match=r"split\.json is not a split that samadapt wrote"):
            Split.read(path)


def test_time_grows_with_the_cases_and_not_with_their_square() -> None:
    """Four times as many patients took 40 times as long to split, for a set of them was made anew for each case."""

    def seconds(patients: int) -> float:
        data = scans(patients, frames=1)
        _ = data.groups, data.labelled_ids, data.parts
        start = time.process_time()
        split = data.split(labels=10)
        assert sum(split.learned(case) for case in data.ids) == 10
        assert sum(split.part(case) == "val" for case in data.ids) == len(split.val) == patients // 5
        return time.process_time() - start

    seconds(100)
    assert seconds(40_000) / seconds(10_000) < 12


def test_a_case_of_two_parts_is_of_the_first() -> None:
    split = Split(("a",), ("a", "b"), ("b", "c"), (), (), None, 0, "", unlabelled=("d",))
    assert [split.part(case) for case in "abcd"] == ["train", "select", "val", ""]
    assert [split.learned(case) for case in "abcde"] == [True, True, False, True, False]
