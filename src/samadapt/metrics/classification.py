"""AUC, accuracy and their kin from class probabilities, with patient-bootstrap intervals.

The protocol is MedMNIST's. Binary (two classes): the probability of class 1, above 0.5. Several classes: the
highest probability; the AUC is the unweighted mean of one-vs-rest. Multi-label: each label is yes from 0.5 on; the mean.

Every metric takes weights (R, N), how often each case counts in each of R resamples, and answers (R,): the
numbers and their intervals come from the same code. scikit-learn is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samadapt.metrics.summaries import Summary, clip_interval
from samadapt.records import SamAdaptError, Score
from samadapt.statistics import percentile_interval, resample_weights

#: The target of the metrics over all classes.
ALL = "all"
_BINS = 15


@dataclass(frozen=True)
class LabelledProbabilities:
    """Probabilities and truth of N cases. `truth` is one-hot, or 0/1 per label."""

    probabilities: np.ndarray  # (N, K)
    truth: np.ndarray  # (N, K) 0/1
    multilabel: bool

    @staticmethod
    def of(probabilities: np.ndarray, labels: np.ndarray) -> LabelledProbabilities:
        """`labels`: (N,) class numbers, or (N, K) 0/1 for multi-label."""
        p, y = np.asarray(probabilities, float), np.asarray(labels)
        if p.ndim != 2 or len(p) == 0 or len(y) != len(p) or p.shape[1] < (2 if y.ndim == 1 else 1):
            raise SamAdaptError(
                f"probabilities {p.shape} and labels {y.shape} do not fit; expected (cases, classes) and (cases,), "
                "or (cases, labels) twice"
            )
        if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
            raise SamAdaptError(f"probabilities run from {p.min()} to {p.max()}; expected 0 to 1, no nan")
        if y.ndim == 2:
            if y.shape != p.shape or not np.isin(y, (0, 1)).all():
                raise SamAdaptError(
                    f"multi-label truth of shape {y.shape} must be 0 or 1 in the shape {p.shape}"
                )
            return LabelledProbabilities(p, y.astype(float), True)
        if not np.isin(y, np.arange(p.shape[1])).all():
            raise SamAdaptError(f"labels {np.unique(y)[:9]} must be whole numbers from 0 to {p.shape[1] - 1}")
        return LabelledProbabilities(p, np.eye(p.shape[1])[y.astype(int)], False)

    @staticmethod
    def from_indicators(probabilities: np.ndarray, truth: np.ndarray) -> LabelledProbabilities:
        """From 0/1 truth (N, K), as scores files hold it: several labels a case unless every case has exactly one."""
        one_each = truth.shape[1] > 1 and bool((truth.sum(1) == 1).all())
        return LabelledProbabilities.of(probabilities, truth.argmax(1) if one_each else truth)

    @property
    def binary(self) -> bool:
        return not self.multilabel and self.truth.shape[1] == 2

    @property
    def answers(self) -> np.ndarray:
        """(N, K) 0/1: what is answered."""
        if self.multilabel:
            return (self.probabilities >= 0.5).astype(float)
        chosen = self.probabilities[:, 1] > 0.5 if self.binary else self.probabilities.argmax(1)
        return np.eye(self.truth.shape[1])[chosen.astype(int)]

    @property
    def correct(self) -> np.ndarray:
        """(N,) 1 where the answer is right; of several labels a case, the share of labels (MedMNIST)."""
        if self.multilabel:
            return (self.answers == self.truth).mean(1)
        return (self.answers * self.truth).sum(1)

    def columns(self) -> list[int]:
        """The classes that the mean over classes takes: of two, only class 1."""
        return [1] if self.binary else list(range(self.truth.shape[1]))

    def ranked_columns(self) -> list[int]:
        """Those of them that say something about ranking: neither all nor none of the cases have the class."""
        return [k for k in self.columns() if _mixed(self, k)]

    def auc_contributions(self, target: int | None = None) -> np.ndarray:
        """(N,), whose mean is the AUC of one class, or the mean AUC over the classes; nan where it is not defined."""
        columns = self.ranked_columns() if target is None else [target]
        if not columns:
            return np.full(len(self.truth), np.nan)
        each = [_auc_contributions(self.probabilities[:, k], self.truth[:, k]) for k in columns]
        return np.mean(each, axis=0)


# ---------------------------------------------------------------- one class against the rest
# score (N,) probability, truth (N,) 0/1, answer (N,) 0/1, weights (R, N) -> (R,)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _ranked(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at each distinct score, (R, distinct), highest score first."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sorted_weights, positive = weights[:, order], truth[order] > 0
    return tuple(np.add.reduceat(sorted_weights * side, starts, axis=1) for side in (positive, ~positive))  # type: ignore[return-value]


def _auc(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of (positive, negative) pairs in the right order, ties half."""
    positive, negative = _ranked(score, truth, weights)
    before = positive.cumsum(1) - 0.5 * positive
    return _ratio((before * negative).sum(1), positive.sum(1) * negative.sum(1))


def _auc_contributions(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,), whose mean is the AUC: each case's share of pairs in the right order (DeLong's components)."""
    once = np.ones((1, len(score)))
    positive, negative = (side[0] for side in _ranked(score, truth, once))
    if not positive.sum() or not negative.sum():
        return np.full(len(score), np.nan)
    auc = _auc(score, truth, once)[0]
    place = np.unique(-score, return_inverse=True)[1]  # of a case among the distinct scores, highest first
    above = (positive.cumsum() - 0.5 * positive)[place]  # positives that are scored higher; ties half
    below = (negative.sum() - negative.cumsum() + 0.5 * negative)[place]
    share = np.where(truth > 0, below / negative.sum(), above / positive.sum())
    return auc + (share - auc) * len(score) / np.where(truth > 0, positive.sum(), negative.sum())


def _auprc(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision: precision at each distinct score, weighted by the recall it adds."""
    positive, negative = _ranked(score, truth, weights)
    found, called = positive.cumsum(1), (positive + negative).cumsum(1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    # As for the AUC, a class of which all or none are cases says nothing.
    mixed = negative.sum(1) > 0
    return np.where(mixed, _ratio((precision * positive).sum(1), positive.sum(1)), np.nan)


def _f1(answer: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Nothing to find and nothing answered is nan."""
    return _ratio(2 * (weights @ (answer * truth)), weights @ (answer + truth))


def _sensitivity(answer: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ (answer * truth), weights @ truth)


def _specificity(answer: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _sensitivity(1 - answer, 1 - truth, weights)


def _ece(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over equal bins of |share correct - mean confidence|, weighted by the cases in the bin."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    inside = np.eye(_BINS)[bins]  # (N, bins)
    gap = weights @ (inside * (correct - confidence)[:, None])
    return np.abs(gap).sum(1) / weights.sum(1)


def _brier(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights @ (score - truth) ** 2) / weights.sum(1)


# ---------------------------------------------------------------- all of them


def _measure(
    x: LabelledProbabilities, classes: Sequence[str], weights: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """{(target, metric): (R,)}."""
    answers = x.answers
    per_class: list[dict[str, np.ndarray]] = []
    for k in range(len(classes)):
        score, truth, answer = x.probabilities[:, k], x.truth[:, k], answers[:, k]
        per_class.append(
            {
                "auc": _auc(score, truth, weights),
                "auprc": _auprc(score, truth, weights),
                "f1": _f1(answer, truth, weights),
                "sensitivity": _sensitivity(answer, truth, weights),
                "specificity": _specificity(answer, truth, weights),
                "ece": _ece(score, truth, weights),
                "brier": _brier(score, truth, weights),
            }
        )
    result = {(ALL, metric): value for metric, value in _overall(x, answers, per_class, weights).items()}
    for name, metrics in zip(classes, per_class, strict=True):
        result |= {(name, metric): value for metric, value in metrics.items()}
    return result


def _overall(
    x: LabelledProbabilities,
    answers: np.ndarray,
    per_class: Sequence[dict[str, np.ndarray]],
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    def over(columns: Sequence[int], metric: str) -> np.ndarray:
        return np.stack([per_class[k][metric] for k in columns]).mean(0)

    # A class that all or none of the cases have says nothing about ranking; the note names it.
    mixed = x.ranked_columns() or x.columns()
    n = weights.sum(1)
    every, right = range(x.truth.shape[1]), x.correct
    if x.multilabel:
        balanced = (over(mixed, "sensitivity") + over(mixed, "specificity")) / 2
        ece, brier = over(every, "ece"), over(every, "brier")
    else:
        balanced = over([k for k in every if x.truth[:, k].any()], "sensitivity")
        ece = _ece((x.probabilities * answers).sum(1), right, weights)
        brier = np.stack([per_class[k]["brier"] for k in x.columns()]).sum(0)
    return {
        "auc": over(mixed, "auc"),
        "acc": (weights @ right) / n,
        "balanced_accuracy": balanced,
        "f1": _mean_of_defined(np.stack([per_class[k]["f1"] for k in x.columns()])),
        "auprc": over(mixed, "auprc"),
        "ece": ece,
        "brier": brier,
    }


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """(K, R) -> (R,): a class that nobody has and nobody answered has no F1; scikit-learn leaves it out too."""
    return _ratio(np.nansum(values, 0), np.sum(~np.isnan(values), 0))


def _mixed(x: LabelledProbabilities, k: int) -> bool:
    return 0 < x.truth[:, k].sum() < len(x.truth)


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None
) -> dict[tuple[str, str], float]:
    """{(target, metric): value}; the target is a class, or "all".

    Args:
        probabilities: (N, K).
        labels: (N,) class numbers, or (N, K) 0/1 for multi-label.
        classes: K names; their numbers by default.
    """
    x = LabelledProbabilities.of(probabilities, labels)
    measured = _measure(x, _names(x, classes), np.ones((1, len(x.truth))))
    return {key: float(value[0]) for key, value in measured.items()}


def bootstrap_classification(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> list[Summary]:
    """`classification_metrics` with intervals from drawing patients.

    Args:
        groups: the patient of each of the N cases.
    """
    x = LabelledProbabilities.of(probabilities, labels)
    if len(groups) != len(x.truth):
        raise SamAdaptError(f"{len(groups)} groups for {len(x.truth)} cases; give the patient of each case")
    names = _names(x, classes)
    point = classification_metrics(probabilities, labels, names)
    patients, member = np.unique(np.asarray(groups, str), return_inverse=True)
    draws = resample_weights(len(patients), resamples, seed)
    rows = max(1, 4_000_000 // len(x.truth))  # bounds the memory
    parts = [_measure(x, names, draws[i : i + rows][:, member]) for i in range(0, resamples, rows)]
    summaries = []
    for (target, metric), value in point.items():
        replicates = np.concatenate([part[target, metric] for part in parts])
        if metric == "ece":  # drawing with repetition alone makes bins less calibrated: take that bias out
            replicates = replicates - np.nanmean(replicates) + value
        low, high = clip_interval(percentile_interval(replicates, len(patients), confidence), metric)
        note = _note(x, names, target, metric)
        undefined = int(np.isnan(value))
        counts = (len(x.truth), len(patients), undefined)
        summaries.append(Summary(target, metric, value, low, high, *counts, note=note))
    return summaries


def _names(x: LabelledProbabilities, classes: Sequence[str] | None) -> list[str]:
    names = [str(k) for k in range(x.truth.shape[1])] if classes is None else list(classes)
    if len(names) != x.truth.shape[1] or len(set(names)) != len(names) or ALL in names:
        raise SamAdaptError(
            f"classes {names}: expected {x.truth.shape[1]} different names, none of them {ALL!r}"
        )
    return names


def _note(x: LabelledProbabilities, names: Sequence[str], target: str, metric: str) -> str:
    """Why an AUC or AUPRC is not defined, or which classes its mean leaves out."""
    if metric not in ("auc", "auprc"):
        return ""
    pure = [names[k] for k in range(len(names)) if not _mixed(x, k)]
    if target in pure:
        k = names.index(target)
        return f"not defined: {'all' if x.truth[:, k].any() else 'none'} of the cases are {target}"
    used = [names[k] for k in x.columns()]
    if target != ALL or not set(pure) & set(used):
        return ""
    left = [name for name in used if name in pure]
    return (
        "not defined: one class only" if left == used else f"without {', '.join(left)}: no case, or no other"
    )


def score_predictions(
    case_ids: Sequence[str], probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[Score]:
    """Per case and class the probability and the truth (0 or 1), for a scores file that metrics can be made from."""
    x = LabelledProbabilities.of(probabilities, labels)
    return [
        Score(case, name, metric, float(values[n, k]))
        for n, case in enumerate(case_ids)
        for k, name in enumerate(classes)
        for metric, values in (("probability", x.probabilities), ("truth", x.truth))
    ]
