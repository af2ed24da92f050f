"""Which patients to label next, from what is known of each: a vector of its images and how unsure a model is of it.

A strategy sees no label. It is a line of `STRATEGIES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from samadapt.types import SamAdaptError

_NEIGHBOURS = 20  # whose mean distance says how typical a patient is, as in TypiClust


@dataclass(frozen=True)
class Candidates:
    """The patients to choose from, in an order that the seed draws: ties fall as it says.

    Args:
        patients: P names.
        features: (P, F), on the scale of `labelled`.
        labelled: (L, F) of the patients whose labels are known already; L may be 0.
        uncertainty: (P,), larger where the model is less sure; None: there is no model.
        seed: of the order, and of what else is drawn.
    """

    patients: tuple[str, ...]
    features: np.ndarray
    labelled: np.ndarray
    uncertainty: np.ndarray | None = None
    seed: int = 0

    @staticmethod
    def of(
        features: Mapping[str, np.ndarray],
        labelled: Sequence[np.ndarray] = (),
        uncertainty: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Candidates:
        """Of vectors as they are: every feature is brought to mean 0 and deviation 1 over all patients, labelled or not.

        Args:
            features: patient -> (F,).
        """
        patients = tuple(sorted(features, key=lambda name: _rank(seed, name)))
        rows = np.stack([*(features[name] for name in patients), *labelled]).astype(float)
        deviation = rows.std(0)
        rows = (rows - rows.mean(0)) / np.where(deviation > 1e-9, deviation, 1.0)
        unsure = None if uncertainty is None else np.array([uncertainty[name] for name in patients])
        return Candidates(patients, rows[: len(patients)], rows[len(patients) :], unsure, seed)

    def to_labelled(self) -> np.ndarray:
        """(P,) distance to the nearest labelled patient; infinite where none is known."""
        return (
            cdist(self.features, self.labelled).min(1) if len(self.labelled) else np.full(len(self), np.inf)
        )

    @property
    def unsure(self) -> np.ndarray:
        """(P,) the uncertainty, which the strategies that need a model have."""
        if self.uncertainty is None:
            raise SamAdaptError(
                "this strategy asks how unsure a model is, and there is no model; give a RUN, or choose a strategy that needs none: "
                + ", ".join(name for name, each in STRATEGIES.items() if not each.needs_model)
            )
        return self.uncertainty

    def __len__(self) -> int:
        return len(self.patients)


@dataclass(frozen=True)
class Pick:
    """One patient to label.

    Args:
        distance: to the nearest patient that is labelled or was picked before; None where there is none.
        uncertainty: as of the candidates.
    """

    patient: str
    reason: str
    distance: float | None = None
    uncertainty: float | None = None


@dataclass(frozen=True)
class Strategy:
    """A way to choose: candidates and a number -> rows of so many candidates in order, each with its reason."""

    text: str
    choose: Callable[[Candidates, int], list[tuple[int, str]]]
    needs_model: bool = False


def pick(strategy: str, candidates: Candidates, k: int) -> list[Pick]:
    """The k patients to label next, the most wanted first.

    Raises:
        SamAdaptError: there are fewer, or no strategy has this name.
    """
    if strategy not in STRATEGIES:
        raise SamAdaptError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    if not 1 <= k <= len(candidates):
        raise SamAdaptError(
            f"{k} patients were asked for, and the pool has {len(candidates)} that can be labelled; expected 1 to {len(candidates)} (-k)"
        )
    near, picks = candidates.to_labelled(), []
    for row, reason in STRATEGIES[strategy].choose(candidates, k):
        unsure = None if candidates.uncertainty is None else float(candidates.uncertainty[row])
        distance = float(near[row]) if np.isfinite(near[row]) else None
        picks.append(Pick(candidates.patients[row], reason, distance, unsure))
        near = np.minimum(near, _distances(candidates, row))
    return picks


# ---------------------------------------------------------------- the strategies


def _at_random(candidates: Candidates, k: int) -> list[tuple[int, str]]:
    return [(row, f"drawn at random with seed {candidates.seed}") for row in range(k)]


def _least_sure(candidates: Candidates, k: int) -> list[tuple[int, str]]:
    unsure = candidates.unsure
    median = np.median(unsure)
    rows = np.argsort(-unsure, kind="stable")[:k]
    return [
        (int(row), f"the model is unsure: {unsure[row]:.3f}; the pool's median is {median:.3f}")
        for row in rows
    ]


def _farthest_first(candidates: Candidates, k: int) -> list[tuple[int, str]]:
    """k-center greedy (Sener and Savarese, 2018)."""
    return _greedy(candidates, k, np.ones(len(candidates)), "")


def _unsure_and_far(candidates: Candidates, k: int) -> list[tuple[int, str]]:
    return _greedy(candidates, k, candidates.unsure, "unsure and ")


def _greedy(candidates: Candidates, k: int, weight: np.ndarray, what: str) -> list[tuple[int, str]]:
    """Again and again the patient with the largest weight times distance to all that is labelled or chosen."""
    near, chosen = candidates.to_labelled(), list[tuple[int, str]]()
    left = np.ones(len(candidates), bool)
    for _ in range(k):
        if np.isfinite(near).all():
            row = _best(weight * near, left)
            reason = f"{what}far from all that is labelled or chosen: distance {near[row]:.1f}"
        else:  # nothing to be far from
            row = _best(weight, left) if what else _best(-_mean_distances(candidates), left)
            reason = "no labelled patient is known, and the model is least sure of it" if what else "no labelled patient is known, and it is in the middle of the pool"  # fmt: skip
        chosen.append((row, reason))
        left[row] = False
        near = np.minimum(near, _distances(candidates, row))
    return chosen


def _densest(candidates: Candidates, k: int) -> list[tuple[int, str]]:
    """TypiClust (Hacohen et al., 2022): the most typical patient of each of the largest clusters without a labelled one."""
    points = np.concatenate([candidates.features, candidates.labelled])
    number, own = min(len(np.unique(points, axis=0)), len(candidates.labelled) + k), len(candidates)
    clusters = KMeans(number, n_init=10, random_state=candidates.seed % 2**32).fit_predict(points)
    covered = np.bincount(clusters[own:], minlength=number)
    sizes, left = np.bincount(clusters, minlength=number), np.ones(own, bool)
    chosen: list[tuple[int, str]] = []
    for _ in range(k):
        open_ = [c for c in range(number) if left[clusters[:own] == c].any()]
        cluster = min(open_, key=lambda c: (covered[c], -sizes[c], c))
        inside = np.flatnonzero(clusters == cluster)
        typical = np.full(own, -np.inf)
        mine = inside[inside < own]
        typical[mine] = -_to_neighbours(points[mine], points[inside])
        row = _best(typical, left)
        already = (
            f", {covered[cluster]} of them labelled or chosen"
            if covered[cluster]
            else ", none of them labelled"
        )
        chosen.append((row, f"typical of a cluster of {sizes[cluster]} patients{already}"))
        left[row] = False
        covered[cluster] += 1
    return chosen


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy("patients at random, the control", _at_random),
    "uncertainty": Strategy("those of which the model is least sure", _least_sure, needs_model=True),
    "coverage": Strategy("those that are farthest from all labelled ones (k-center)", _farthest_first),
    "typical": Strategy("the typical ones of clusters without a label (TypiClust)", _densest),
    "both": Strategy(
        "unsure and far from all labelled ones: the product of both", _unsure_and_far, needs_model=True
    ),
}


# ---------------------------------------------------------------- what they share


def _rank(seed: int, patient: str) -> str:
    """By hash: one more patient in the pool does not shuffle the others."""
    return hashlib.sha256(repr(("suggest", seed, patient)).encode()).hexdigest()


def _best(values: np.ndarray, left: np.ndarray) -> int:
    """The row of the largest value among those that are left; the first of equals."""
    return (
        int(np.where(left, values, -np.inf).argmax())
        if np.isfinite(values[left]).any()
        else int(left.argmax())
    )


def _distances(candidates: Candidates, row: int) -> np.ndarray:
    return cdist(candidates.features, candidates.features[row][None])[:, 0]


def _mean_distances(candidates: Candidates) -> np.ndarray:
    return cdist(candidates.features, candidates.features).mean(1)


def _to_neighbours(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(N,) mean distance of each point to its nearest neighbours in the cluster, of which it is one itself."""
    distances = np.sort(cdist(points, inside), axis=1)[:, 1 : _NEIGHBOURS + 1]
    return distances.mean(1) if distances.shape[1] else np.zeros(len(points))
