"""Means, intervals, tests and tables; coverage and false positives by simulation."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from samadapt.metrics import (
    MEAN,
    format_table,
    read_cell_scores,
    read_scores,
    summarise,
    write_cell_scores,
    write_scores,
)
from samadapt.statistics import (
    holm,
    percentile_interval,
    resample_weights,
    sign_flip_p,
    studentised_interval,
)
from samadapt.types import SamAdaptError, Score

nan = math.nan


def scores_of(
    table: dict[str, list[float]], metric: str = "dsc", target: str = "a"
) -> tuple[list[Score], dict]:
    """{patient: values} -> scores and groups."""
    scores, groups = [], {}
    for patient, numbers in table.items():
        for i, value in enumerate(numbers):
            scores.append(Score(f"{patient}_{i}", target, metric, value))
            groups[f"{patient}_{i}"] = patient
    return scores, groups


PATIENTS = {f"p{i}": [v, v + 0.02] for i, v in enumerate((0.5, 0.61, 0.7, 0.72, 0.83, 0.9))}


# ---------------------------------------------------------------- summarise


def test_mean_counts_and_undefined_by_hand():
    scores, groups = scores_of({"p": [0.5, 0.7], "q": [0.9], "r": [nan]})
    (row,) = summarise(scores, groups)
    assert (row.target, row.metric, row.n, row.n_groups, row.n_nan, row.n_miss) == ("a", "dsc", 3, 2, 1, 0)
    assert row.mean == pytest.approx(0.7)
    assert 0 <= row.low < row.mean < row.high <= 1


def test_a_distance_without_a_number_is_a_miss_only_where_the_dice_has_one():
    scores = [Score(c, "a", "dsc", v) for c, v in (("x", 0.0), ("y", nan), ("z", 0.9))]
    scores += [Score(c, "a", "hd95_mm", v) for c, v in (("x", nan), ("y", nan), ("z", 3.0))]
    rows = {r.metric: r for r in summarise(scores, {"x": "1", "y": "2", "z": "3"})}
    assert (rows["hd95_mm"].n, rows["hd95_mm"].n_nan, rows["hd95_mm"].n_miss) == (1, 2, 1)
    assert (rows["dsc"].n, rows["dsc"].n_nan, rows["dsc"].n_miss) == (2, 1, 0)


def test_the_mean_over_classes_is_the_mean_of_their_means():
    scores = [Score("x", "a", "dsc", 0.9), Score("y", "a", "dsc", 0.7), Score("x", "b", "dsc", 0.4)]
    scores += [Score("y", "b", "dsc", nan), Score("x", "c", "dsc", nan), Score("y", "c", "dsc", nan)]
    rows = summarise(scores, {"x": "1", "y": "2"})
    assert [r.target for r in rows] == ["a", "b", "c", MEAN]
    assert rows[-1].mean == pytest.approx((0.8 + 0.4) / 2)
    assert (rows[-1].n, rows[-1].n_nan, rows[-1].note) == (3, 3, "no value for c")
    assert math.isnan(rows[2].mean)


def test_no_interval_rather_than_one_of_no_width():
    for table in ({"p": [0.5, 0.9]}, {"p": [0.5], "q": [0.5]}, {str(i): [1.0] for i in range(9)}):
        (row,) = summarise(*scores_of(table))
        assert math.isnan(row.low) and math.isnan(row.high), table
        assert not math.isnan(row.mean)


def test_shuffling_the_cases_changes_no_digit():
    rng = np.random.default_rng(3)
    scores, groups = scores_of({f"p{i}": list(rng.random(3)) for i in range(9)})
    scores += [dataclasses.replace(s, target="b", value=s.value**2) for s in scores]
    rows = {(r.target, r.metric): r for r in summarise(scores, groups)}
    for _ in range(5):
        shuffled = summarise([scores[i] for i in rng.permutation(len(scores))], groups)
        assert {(r.target, r.metric): r for r in shuffled} == rows


def test_patients_are_drawn_not_cases():
    """Five scans of each patient tell no more than one when they are all alike."""
    one, groups_one = scores_of({p: v[:1] for p, v in PATIENTS.items()})
    five, groups_five = scores_of({p: v[:1] * 5 for p, v in PATIENTS.items()})
    (a,), (b,) = summarise(one, groups_one), summarise(five, groups_five)
    assert (b.n, b.n_groups) == (30, 6)
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


def test_the_interval_stays_within_what_the_metric_can_be():
    scores, groups = scores_of({str(i): [v] for i, v in enumerate((0.99, 0.98, 0.999, 0.2))})
    (row,) = summarise(scores, groups)
    assert row.high == 1.0 and row.low >= 0.0
    (row,) = summarise([dataclasses.replace(s, metric="volume_difference_ml") for s in scores], groups)
    assert row.high > 1.0


def test_seed_and_resamples_are_used():
    scores, groups = scores_of(PATIENTS)
    a, b, again = (summarise(scores, groups, seed=s)[0] for s in (0, 1, 0))
    assert a == again and a != b
    narrow = summarise(scores, groups, confidence=0.5)[0]
    assert a.low < narrow.low < narrow.high < a.high


def test_bad_tables_are_refused():
    scores, groups = scores_of(PATIENTS)
    with pytest.raises(SamAdaptError, match="scored twice"):
        summarise(scores + scores[:1], groups)
    with pytest.raises(SamAdaptError, match="'p0_0' has no patient"):
        summarise(scores, {})
    with pytest.raises(SamAdaptError, match="no scores"):
        summarise([], {})
    with pytest.raises(SamAdaptError, match="rename the class"):
        summarise([*scores, Score("p0_0", MEAN, "dsc", 1.0)], groups)


# ---------------------------------------------------------------- intervals and tests


@pytest.mark.parametrize("patients", [3, 5, 10, 20])
def test_the_interval_covers_the_truth_95_times_in_100(patients):
    """Two correlated scans a patient. One standard error of the simulated coverage is 0.4 points."""
    rng, studies, truth = np.random.default_rng(patients), 3000, 0.8
    hits = 0
    for study in range(studies):
        level = truth + 0.05 * rng.standard_normal(patients)
        values = level[:, None] + 0.03 * rng.standard_normal((patients, 2))
        sums, counts = values.sum(1, keepdims=True), np.full((patients, 1), 2.0)
        low, high = studentised_interval(sums, counts, 0.95, resamples=400, seed=study)
        hits += low <= truth <= high
    assert 0.93 <= hits / studies <= 0.97


@pytest.mark.parametrize("patients", [4, 8, 20])
def test_the_interval_of_a_table_covers_with_three_scans_a_patient(patients):
    """And would not, were every scan a patient of its own: 12 scans of 4 patients look like 12 patients."""
    rng, studies, truth = np.random.default_rng(patients), 700, 0.8
    cases = [f"p{p}_scan{s}" for p in range(patients) for s in range(3)]
    own = {case: case for case in cases}
    by_patient = {case: case.split("_")[0] for case in cases}
    hits = {"patients": 0, "scans": 0}
    for study in range(studies):
        level = np.repeat(0.05 * rng.standard_normal(patients), 3)
        values = truth + level + 0.02 * rng.standard_normal(3 * patients)
        scores = [Score(c, "LV", "hd95_mm", float(v)) for c, v in zip(cases, values, strict=True)]
        for name, groups in (("patients", by_patient), ("scans", own)):
            if name == "scans" and (patients > 4 or study >= 200):
                continue
            (row,) = summarise(scores, groups, seed=study, resamples=200)
            hits[name] += row.low <= truth <= row.high
    assert 0.93 <= hits["patients"] / studies <= 0.97
    assert hits["scans"] / 200 < 0.8


def test_intervals_with_unequal_numbers_of_scans_and_two_classes():
    """Some patients lack the second class, some have three scans."""
    rng, studies, patients = np.random.default_rng(0), 2000, 14
    hits = 0
    for study in range(studies):
        counts = np.stack([rng.integers(1, 4, patients), rng.integers(0, 3, patients)], 1).astype(float)
        level = rng.standard_normal((patients, 1)) + np.array([1.0, 3.0])
        low, high = studentised_interval(level * counts, counts, 0.95, resamples=400, seed=study)
        hits += low <= 2.0 <= high
    assert 0.93 <= hits / studies <= 0.97


def test_the_percentile_interval_is_widened_for_few_patients():
    replicates = np.random.default_rng(0).standard_normal(4000)
    few, many = percentile_interval(replicates, 6, 0.95), percentile_interval(replicates, 1000, 0.95)
    assert many == pytest.approx((-1.96, 1.96), abs=0.12)
    assert few[0] < many[0] - 0.5 and few[1] > many[1] + 0.5
    assert all(map(math.isnan, percentile_interval(replicates, 1, 0.95)))
    assert all(map(math.isnan, percentile_interval(np.zeros(100), 9, 0.95)))
    assert all(map(math.isnan, percentile_interval(np.r_[np.full(60, nan), replicates[:40]], 9, 0.95)))


def test_weights_draw_each_patient_once_on_average():
    weights = resample_weights(7, 3000, seed=0)
    assert (weights.sum(1) == 7).all()
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.08)


def test_the_sign_flip_test_counts_all_flips():
    d = np.array([3.0, 1.0, -0.5, 2.0])
    flips = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flip_p(d, seed=0) == np.mean(np.array(flips) >= abs(d.sum()) - 1e-12)
    assert sign_flip_p(np.ones(10), seed=0) == pytest.approx(2 / 2**10)
    assert sign_flip_p(np.full(5, 0.1), seed=0) == pytest.approx(2 / 2**5)  # ties in spite of rounding
    assert sign_flip_p(np.zeros(5), seed=0) == 1.0
    assert math.isnan(sign_flip_p(np.zeros(0), seed=0))


def test_many_patients_draw_flips_that_agree_with_all_flips():
    rng = np.random.default_rng(1)
    d = rng.standard_normal(16) + 0.4
    signs = np.array(list(itertools.product((1, -1), repeat=16)))
    exact = (np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean()
    assert sign_flip_p(d, seed=0) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.ones(30), seed=0) == pytest.approx(1 / 10001)


@pytest.mark.parametrize("patients", [8, 25])
def test_false_positives_stay_below_one_in_twenty(patients):
    rng, studies = np.random.default_rng(0), 1000 if patients <= 14 else 200
    hits = sum(sign_flip_p(rng.standard_normal(patients), seed=i) <= 0.05 for i in range(studies))
    assert hits / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)
    assert hits / studies >= 0.015  # and the test is not asleep


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, nan]) == pytest.approx([0.03, 0.06, 0.06, nan], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# ---------------------------------------------------------------- files and tables


def test_scores_survive_the_disk_to_the_last_digit(tmp_path):
    scores = [
        Score("a,b", 'left "x"', "hd95_mm", 1 / 3),
        Score("c", "y", "dsc", nan),
        Score("d", "y", "dsc", 1.0),
    ]
    path = tmp_path / "new" / "scores.csv"
    write_scores(path, scores)
    again = read_scores(path)
    assert again[0] == scores[0] and again[2] == scores[2]
    assert math.isnan(again[1].value)
    assert path.read_text().splitlines()[0] == "case,target,metric,value"
    assert [p.name for p in path.parent.iterdir()] == ["scores.csv"]


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores(path, [Score("c", "y", "dsc", 0.5)])

    def broken():
        yield Score("c", "y", "dsc", 0.6)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_scores(path, broken())
    assert read_scores(path)[0].value == 0.5


def test_the_scores_of_a_cell_are_held_to_what_it_wrote(tmp_path):
    write_cell_scores(tmp_path, [Score("c", "y", "dsc", 0.5)], {"steps": 3})
    scores, cost = read_cell_scores(tmp_path)
    assert scores == [Score("c", "y", "dsc", 0.5)] and cost["steps"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cost.json", "scores.csv"]
    (tmp_path / "scores.csv").write_text((tmp_path / "scores.csv").read_text().replace("0.5", "0.6"))
    with pytest.raises(
        SamAdaptError, match=r"has the hash \w{12}, cost.json beside it says \w{12}: it was cut short"
    ):
        read_cell_scores(tmp_path)
    (tmp_path / "cost.json").unlink()
    with pytest.raises(SamAdaptError, match="says nothing read"):
        read_cell_scores(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with 'nothing'"),
        ("case,metric\n", "begins with 'case,metric'"),
        ("case,target,metric,value\nx,a,dsc,0.5\nx,b,dsc,0.", "truncated"),
        ("case,target,metric,value\nx,a,dsc\n", "line 2"),
        ("case,target,metric,value\nx,a,dsc,high\n", "line 2"),
        ("case,target,metric,value\nx,a,dsc,0.5\nx,a,dsc,0.6\n", "twice"),
    ],
)
def test_broken_scores_files_are_refused(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(SamAdaptError, match=message):
        read_scores(path)


def test_a_missing_scores_file_says_what_to_do(tmp_path):
    with pytest.raises(SamAdaptError, match="samadapt evaluate"):
        read_scores(tmp_path / "none.csv")


def test_the_printed_table_shows_what_is_left_out():
    scores = [Score(c, "LV", "dsc", v) for c, v in (("x", 0.0), ("y", nan), ("z", 0.9))]
    scores += [Score(c, "LV", "hd95_mm", v) for c, v in (("x", nan), ("y", nan), ("z", 3.125))]
    text = format_table(summarise(scores, {"x": "1", "y": "2", "z": "3"}))
    lines = text.splitlines()
    assert lines[0].split() == [
        "target",
        "metric",
        "mean",
        "95%",
        "interval",
        "n",
        "patients",
        "undefined",
        "missed",
    ]
    assert lines[2].split() == ["LV", "dsc", "0.450", "0.000", "..", "1.000", "2", "2", "1", "-"]
    assert lines[3].split() == ["hd95_mm", "3.12", "-", "1", "1", "1", "1"]
    assert len({len(line) for line in lines[:2]}) == 1
