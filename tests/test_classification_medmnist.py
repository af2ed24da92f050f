"""Our AUC and accuracy beside MedMNIST's own rules, written again from its evaluator: same numbers to 1e-6."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from samadapt.metrics import ALL, classification_metrics


def medmnist(truth, scores, task):
    """After medmnist/evaluator.py (`getAUC`, `getACC`, threshold one half).

    binary: the last column, above the threshold; multi-label: the mean over labels, above the threshold;
    otherwise the mean of one-vs-rest, and the highest score. One half itself is yes for several labels, no for two classes.
    """
    if task == "binary-class":
        return roc_auc_score(truth, scores[:, -1]), accuracy_score(truth, scores[:, -1] > 0.5)
    columns = range(scores.shape[1])
    if task == "multi-label, binary-class":
        auc = [roc_auc_score(truth[:, k], scores[:, k]) for k in columns]
        acc = [accuracy_score(truth[:, k], scores[:, k] >= 0.5) for k in columns]
        return np.mean(auc), np.mean(acc)
    auc = [roc_auc_score((truth == k).astype(int), scores[:, k]) for k in columns]
    return np.mean(auc), accuracy_score(truth, scores.argmax(1))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("task", "cases", "classes"),
    [("binary-class", 156, 2), ("ordinal-regression", 400, 5), ("multi-label, binary-class", 300, 14)],
)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_numbers_are_medmnists(task, cases, classes, seed, rounded):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(cases, classes))
    if task.startswith("multi-label"):
        truth = (rng.random((cases, classes)) < 0.3).astype(int)
        scores = 1 / (1 + np.exp(-(logits + truth)))
    else:
        truth = rng.integers(0, classes, cases)
        scores = softmax(logits + 0.8 * np.eye(classes)[truth])
    if rounded:  # ties
        scores = scores.round(1)
        if task != "multi-label, binary-class":
            scores = scores.clip(0, 1)
    ours = classification_metrics(scores, truth)
    auc, acc = medmnist(truth, scores, task)
    assert ours[ALL, "auc"] == pytest.approx(auc, abs=1e-6)
    assert ours[ALL, "acc"] == pytest.approx(acc, abs=1e-6)
