"""Cases by hand, scikit-learn as the oracle, MedMNIST's protocol, and intervals that draw patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from samadapt.metrics import (
    ALL,
    LabelledProbabilities,
    bootstrap_classification,
    classification_metrics,
    score_predictions,
)
from samadapt.metrics import classification as module
from samadapt.types import SamAdaptError


def draw(seed: int, n: int, k: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something of the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.standard_normal((n, k)) + 1.2 * np.eye(k)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        p = np.round(p * 5 + 1e-9)
        p = (p + 0.1) / (p + 0.1).sum(1, keepdims=True)
    return p, labels


# ---------------------------------------------------------------- by hand


def test_four_cases_by_hand():
    p1 = np.array([0.1, 0.4, 0.35, 0.8])
    found = classification_metrics(np.stack([1 - p1, p1], 1), np.array([0, 0, 1, 1]), ["no", "yes"])
    assert found[ALL, "auc"] == pytest.approx(0.75)  # 3 of 4 pairs in the right order
    assert found[ALL, "acc"] == 0.75
    assert found["yes", "sensitivity"] == 0.5 and found["yes", "specificity"] == 1.0
    assert found[ALL, "balanced_accuracy"] == 0.75
    assert found[ALL, "f1"] == pytest.approx(2 / 3)
    assert found[ALL, "auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found[ALL, "brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    # Confidences .9 .6 .65 .8: right, right, wrong, right; of 15 bins, .6 and .65 share one.
    assert found[ALL, "ece"] == pytest.approx((0.1 + abs(0.4 - 0.65) + 0.2) / 4)


def test_exactly_one_half_is_the_first_class():
    half = np.full((2, 2), 0.5)
    assert classification_metrics(half, np.array([0, 1]))["1", "sensitivity"] == 0.0


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("ties", [False, True])
def test_binary_equals_scikit_learn(ties):
    p, y = draw(0, 157, 2, ties)
    found, score, answer = classification_metrics(p, y), p[:, 1], p[:, 1] > 0.5
    assert found[ALL, "auc"] == pytest.approx(sk.roc_auc_score(y, score), abs=1e-12)
    assert found[ALL, "auprc"] == pytest.approx(sk.average_precision_score(y, score), abs=1e-12)
    assert found[ALL, "acc"] == pytest.approx(sk.accuracy_score(y, answer))
    assert found[ALL, "f1"] == pytest.approx(sk.f1_score(y, answer))
    assert found[ALL, "balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, answer))
    assert found[ALL, "brier"] == pytest.approx(sk.brier_score_loss(y, score))


@pytest.mark.parametrize("ties", [False, True])
def test_several_classes_equal_scikit_learn(ties):
    p, y = draw(1, 211, 4, ties)
    found, answer, hot = classification_metrics(p, y), p.argmax(1), np.eye(4)[y]
    assert found[ALL, "auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"), abs=1e-12)
    assert found[ALL, "auprc"] == pytest.approx(sk.average_precision_score(hot, p), abs=1e-12)
    assert found[ALL, "acc"] == pytest.approx(sk.accuracy_score(y, answer))
    assert found[ALL, "f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert found[ALL, "balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, answer))
    assert found[ALL, "brier"] == pytest.approx(((p - hot) ** 2).sum(1).mean())
    assert found["2", "auc"] == pytest.approx(sk.roc_auc_score(y == 2, p[:, 2]))
    assert found["2", "sensitivity"] == pytest.approx(sk.recall_score(y == 2, answer == 2))
    assert found["2", "specificity"] == pytest.approx(sk.recall_score(y != 2, answer != 2))


def test_multi_label_is_the_mean_over_labels():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, (90, 3))
    p = np.clip(0.3 * y + 0.6 * rng.random((90, 3)), 0, 1)
    found, answer = classification_metrics(p, y), p > 0.5
    assert found[ALL, "auc"] == pytest.approx(sk.roc_auc_score(y, p, average="macro"), abs=1e-12)
    assert found[ALL, "acc"] == pytest.approx(
        np.mean([sk.accuracy_score(y[:, k], answer[:, k]) for k in range(3)])
    )
    assert found[ALL, "f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    both = [sk.balanced_accuracy_score(y[:, k], answer[:, k]) for k in range(3)]
    assert found[ALL, "balanced_accuracy"] == pytest.approx(np.mean(both))
    assert found[ALL, "brier"] == pytest.approx(np.mean((p - y) ** 2))
    assert found[ALL, "ece"] == pytest.approx(np.mean([found[str(k), "ece"] for k in range(3)]))


def test_weights_are_repetitions():
    """What the bootstrap relies on: a case of weight 3 is the case three times."""
    p, y = draw(3, 40, 3, ties=True)
    times = np.random.default_rng(0).integers(1, 4, 40)
    x = LabelledProbabilities.of(p, y)
    weighted = module._measure(x, ["a", "b", "c"], times[None].astype(float))
    repeated = classification_metrics(p.repeat(times, 0), y.repeat(times), ["a", "b", "c"])
    for key, value in repeated.items():
        assert weighted[key][0] == pytest.approx(value, abs=1e-12), key


# ---------------------------------------------------------------- what each case adds


@pytest.mark.parametrize("ties", [False, True])
def test_contributions_to_the_auc_are_delongs_components(ties):
    """By comparing all pairs: of a case, the share of pairs with it that are in the right order, ties half."""
    p, y = draw(5, 60, 2, ties)
    score, positive = p[:, 1], y == 1
    wins = (score[positive][:, None] > score[~positive]) + 0.5 * (
        score[positive][:, None] == score[~positive]
    )
    auc = wins.mean()
    expected = np.empty(60)
    expected[positive] = auc + (wins.mean(1) - auc) * 60 / positive.sum()
    expected[~positive] = auc + (wins.mean(0) - auc) * 60 / (~positive).sum()
    found = LabelledProbabilities.of(p, y).auc_contributions()
    assert found == pytest.approx(expected, abs=1e-12)
    assert found.mean() == pytest.approx(sk.roc_auc_score(y, score), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_contributions_have_the_means_that_the_metrics_give(classes):
    p, y = draw(6, 50, classes, ties=True)
    found = classification_metrics(p, y)
    x = LabelledProbabilities.from_indicators(p, np.eye(classes)[y])
    assert not x.multilabel and x.correct.mean() == pytest.approx(found[ALL, "acc"])
    assert x.auc_contributions().mean() == pytest.approx(found[ALL, "auc"])
    for k in range(classes):
        assert x.auc_contributions(k).mean() == pytest.approx(found[str(k), "auc"])


def test_several_labels_a_case_are_seen_in_the_truth():
    truth = np.array([[1, 1], [0, 1], [1, 0]])
    p = np.array([[0.9, 0.5], [0.2, 0.4], [0.6, 0.1]])
    x = LabelledProbabilities.from_indicators(p, truth)
    assert x.multilabel and x.correct.tolist() == [1.0, 0.5, 1.0]  # 0.5 is a yes
    assert x.correct.mean() == pytest.approx(classification_metrics(p, truth)[ALL, "acc"])
    assert np.isnan(LabelledProbabilities.from_indicators(p[:2], truth[:2]).auc_contributions(1)).all()


def test_a_perfectly_calibrated_answer_has_no_calibration_error():
    p1 = np.full(10, 0.7)
    y = np.array([1] * 7 + [0] * 3)
    found = classification_metrics(np.stack([1 - p1, p1], 1), y)
    assert found[ALL, "ece"] == pytest.approx(0.0, abs=1e-12)


# ---------------------------------------------------------------- what is not defined


def test_one_class_only_has_no_auc_and_says_so():
    p, _ = draw(4, 20, 2)
    rows = {
        (r.target, r.metric): r
        for r in bootstrap_classification(p, np.ones(20, int), [str(i) for i in range(20)], ["no", "yes"])
    }
    row = rows[ALL, "auc"]
    assert math.isnan(row.mean) and math.isnan(row.low) and row.n_nan == 1
    assert row.note == "not defined: one class only"
    assert rows["yes", "auc"].note == "not defined: all of the cases are yes"
    assert rows["no", "auc"].note == "not defined: none of the cases are no"
    assert math.isnan(rows[ALL, "auprc"].mean)
    assert not math.isnan(rows[ALL, "acc"].mean)


def test_a_class_that_nobody_has_and_nobody_answers_has_no_f1_and_spoils_no_mean():
    p = np.array([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0], [0.6, 0.4, 0.0]])
    y = np.array([0, 1, 1])
    found = classification_metrics(p, y)
    assert math.isnan(found["2", "f1"])
    assert found[ALL, "f1"] == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"))


def test_a_class_without_cases_is_left_out_of_the_mean_and_named():
    p, y = draw(5, 60, 3)
    y[y == 2] = 0
    rows = {
        (r.target, r.metric): r
        for r in bootstrap_classification(p, y, [str(i) for i in range(60)], ["a", "b", "c"])
    }
    assert rows[ALL, "auc"].mean == pytest.approx((rows["a", "auc"].mean + rows["b", "auc"].mean) / 2)
    assert rows[ALL, "auc"].note == "without c: no case, or no other"
    assert rows["c", "auc"].note == "not defined: none of the cases are c"
    assert rows["a", "auc"].note == ""


# ---------------------------------------------------------------- intervals


def test_intervals_hold_the_number_and_use_patients():
    p, y = draw(6, 120, 3)
    alone = bootstrap_classification(p, y, [str(i) for i in range(120)], resamples=400)
    pairs = bootstrap_classification(p, y, [str(i // 12) for i in range(120)], resamples=400)
    for row in alone:
        assert row.low <= row.mean <= row.high, row
        assert (row.n, row.n_groups) == (120, 120)
    assert all(row.n_groups == 10 for row in pairs)
    assert bootstrap_classification(p, y, [str(i) for i in range(120)], resamples=400) == alone


def test_one_patient_gives_no_interval():
    p, y = draw(6, 30, 2)
    rows = bootstrap_classification(p, y, ["p"] * 30, resamples=50)
    assert all(math.isnan(row.low) for row in rows)


def test_the_auc_interval_covers_the_truth():
    """Two normal distributions one standard deviation apart: the true AUC is Phi(1 / sqrt 2)."""
    rng, truth, hits, studies = np.random.default_rng(0), 0.7602499, 0, 300
    for study in range(studies):
        y = np.arange(80) % 2
        s = 1 / (1 + np.exp(-(rng.standard_normal(80) + y)))
        rows = bootstrap_classification(
            np.stack([1 - s, s], 1), y, [str(i) for i in range(80)], seed=study, resamples=200
        )
        row = next(r for r in rows if (r.target, r.metric) == (ALL, "auc"))
        hits += row.low <= truth <= row.high
    assert 0.92 <= hits / studies <= 0.98


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.full((2, 2), 0.5), np.array([0, 2]), "from 0 to 1"),
        (np.full((2, 2), 0.5), np.array([0.5, 1]), "whole numbers"),
        (np.full((2, 2), 1.5), np.array([0, 1]), "expected 0 to 1"),
        (np.full((2, 2), np.nan), np.array([0, 1]), "no nan"),
        (np.full((3, 2), 0.5), np.array([0, 1]), "do not fit"),
        (np.full((2, 1), 0.5), np.array([0, 1]), "do not fit"),
        (np.full((2, 3), 0.5), np.array([[0, 1], [1, 0]]), "must be 0 or 1 in the shape"),
        (np.full((1, 2), 0.5), np.array([[0, 2]]), "must be 0 or 1"),
    ],
)
def test_bad_predictions_are_refused(probabilities, labels, message):
    with pytest.raises(SamAdaptError, match=message):
        classification_metrics(probabilities, labels)


def test_bad_names_and_groups_are_refused():
    p, y = draw(0, 6, 2)
    with pytest.raises(SamAdaptError, match="2 different names"):
        classification_metrics(p, y, ["a", "a"])
    with pytest.raises(SamAdaptError, match="'all'"):
        classification_metrics(p, y, ["a", "all"])
    with pytest.raises(SamAdaptError, match="5 groups for 6 cases"):
        bootstrap_classification(p, y, ["x"] * 5)


def test_predictions_become_scores():
    p = np.array([[0.2, 0.8], [0.6, 0.4]])
    scores = score_predictions(["x", "y"], p, np.array([1, 1]), ["no", "yes"])
    rows = [(s.case, s.target, s.metric, s.value) for s in scores]
    assert rows[:2] == [("x", "no", "probability", 0.2), ("x", "no", "truth", 0.0)]
    assert rows[-1] == ("y", "yes", "truth", 1.0)
