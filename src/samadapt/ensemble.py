"""Several heads that answer together: the mean of their probabilities, and how far they agree.

`samadapt train --heads-ensemble 3` and `train --fold all` leave a folder of run folders; `samadapt predict` takes it like a run.

How far the label maps of the heads agree is a measure of how far they can be trusted: the mean Dice of all pairs of them
(for samples of one network: Roy et al., "Bayesian QuickNAT", 2019, section 3.3).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from samadapt.datasets import Split
from samadapt.files import file_sha256, write_csv
from samadapt.flips import answers_over_flips, probabilities_over_flips
from samadapt.inputs import NO_SPLIT, split_of
from samadapt.prediction import Classifier, Segmenter
from samadapt.runs import weights_file
from samadapt.types import Case, Frame, SamAdaptError, Score

#: In a folder of predictions: by case, how far the heads agree.
NAME = "agreement.csv"


# ---------------------------------------------------------------- the members


def member_runs(run: Path) -> tuple[Path, ...]:
    """A run folder is its own only member; those of a folder of run folders are the run folders in it, by name."""
    if (run / "config.json").is_file() or not run.is_dir():
        return (run,)
    inside = sorted(path.parent for path in run.glob("*/config.json"))
    return tuple(inside) or (run,)


def demand_alike(members: Sequence[Segmenter | Classifier], runs: Sequence[Path]) -> None:
    """Refuse heads whose answers mean different things, or that take different images."""
    first = members[0]
    for member, run in zip(members, runs, strict=True):
        for what in ("task", "classes", "channel_names", "plane", "label_values"):
            one, other = (getattr(x.opening, what) for x in (first, member))
            if one != other:
                raise SamAdaptError(
                    f"{runs[0]} and {run} cannot answer together: their {what.replace('_', ' ')} are {one} and {other}; "
                    "give a folder of runs that were trained on one data set, opened in one way"
                )


def joint_split(runs: Sequence[Path]) -> Split:
    """What the heads were trained on together: what any learned was learned, and scored is what all of them keep for it."""
    splits = [split_of(run) for run in runs]
    if len({split.hash for split in splits}) == 1:
        return splits[0]

    def of_any(part: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(i for split in splits for i in getattr(split, part)))

    return dataclasses.replace(
        NO_SPLIT,
        train=of_any("train"), select=of_any("select"), unlabelled=of_any("unlabelled"), patients=of_any("patients"),
        val=tuple(i for i in splits[0].val if all(i in split.val for split in splits)),
        pool=of_any("pool"), patient_of={k: v for split in splits for k, v in split.patient_of.items()},
        rule=f"together, of {len(splits)} splits",
    )  # fmt: skip


def model_hash(runs: Sequence[Path]) -> str:
    """sha256 of the head's weights, or of those of all heads."""
    hashes = [file_sha256(weights_file(run)) for run in runs]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


# ---------------------------------------------------------------- their answers


class Agreement:
    """Counts, slice after slice, how far the label maps of several heads overlap.

    Args:
        members: how many heads.
        classes: their names, the background first.
    """

    def __init__(self, members: int, classes: Sequence[str]) -> None:
        self.classes, k = tuple(classes), len(classes)
        self.sizes = np.zeros((members, k))
        self.shared = {pair: np.zeros(k) for pair in itertools.combinations(range(members), 2)}

    def add(self, labels: Sequence[Tensor]) -> None:
        """The label map (H, W) of each head, of one slice."""
        k = len(self.classes)
        for sizes, label in zip(self.sizes, labels, strict=True):
            sizes += np.bincount(label.flatten(), minlength=k)
        for (a, b), shared in self.shared.items():
            same = labels[a][labels[a] == labels[b]]
            shared += np.bincount(same, minlength=k)

    def dice(self) -> dict[str, float]:
        """Class -> mean Dice over all pairs; nan for a class that no head has found, 0 for a pair of which one has."""
        found: dict[str, float] = {}
        for value, name in enumerate(self.classes[1:], start=1):
            pairs = [
                2 * shared[value] / total
                for (a, b), shared in self.shared.items()
                if (total := self.sizes[a, value] + self.sizes[b, value])
            ]
            found[name] = float(np.mean(pairs)) if pairs else math.nan
        return found


def answers_together(
    members: Sequence[Segmenter], case: Case, flips: bool, agreement: Agreement
) -> Iterator[Tensor]:
    """Per slice, in order: the logarithm of the mean probabilities (K, H, W), which takes the place of logits.

    Args:
        flips: whether each head's answer is the mean over flipped slices.
        agreement: is told what each head answers.
    """
    each = [answers_over_flips(member, case) if flips else member.answers(case) for member in members]
    for slices in zip(*each, strict=True):
        agreement.add([answer.argmax(0) for answer in slices])
        yield torch.stack([answer.softmax(0) for answer in slices]).mean(0).clamp_min(1e-12).log()


#: Passes on the answers to the slices of a case; it may stop by raising.
Watch = Callable[[Case, Iterable[tuple[Tensor, Frame]]], Iterable[tuple[Tensor, Frame]]]


def probabilities_together(
    members: Sequence[Classifier], case: Case, flips: bool, watch: Watch | None = None
) -> Tensor:
    """(D, K) of the slices of a case, the mean over the heads.

    Args:
        watch: as for `class_answers`.
    """
    watched = watch or (lambda _, logits: logits)
    each = [
        probabilities_over_flips(member, case)
        if flips
        else member.probabilities(watched(case, member.logits(case)))
        for member in members
    ]
    return torch.stack(each).mean(0)


def label_answers(
    members: Sequence[Segmenter], cases: Iterable[Case], flips: bool
) -> Iterator[tuple[Case, Iterator[Tensor], Agreement | None]]:
    """Each case with its answers and, of several heads, what will say how far they agreed once the answers were taken."""
    model = members[0]
    if len(members) > 1:
        for case in cases:
            agreement = Agreement(len(members), model.classes)
            yield case, answers_together(members, case, flips, agreement), agreement
        return
    flipped = ((case, answers_over_flips(model, case)) for case in cases)
    for case, answers in flipped if flips else model.all_answers(cases):
        yield case, answers, None


def class_answers(
    members: Sequence[Classifier], cases: Iterable[Case], flips: bool, watch: Watch | None = None
) -> Iterator[tuple[Case, Callable[[], Tensor]]]:
    """Each case with what computes the (D, K) probabilities of its slices, or says what is wrong with it.

    Args:
        watch: sees the answer to each slice pass, unless slices are flipped.
    """
    model = members[0]
    if flips or len(members) > 1:
        yield from ((case, partial(probabilities_together, members, case, flips, watch)) for case in cases)
        return
    for case, logits in model.all_logits((case, None) for case in cases):
        yield case, partial(model.probabilities, logits if watch is None else watch(case, logits))


# ---------------------------------------------------------------- what is written of it


class AgreementTable:
    """`agreement.csv` of a folder of predictions: case, mean over the classes, each class, and whether it is below the bound.

    Args:
        bound: mean agreement below which a case is marked; None: none is.
    """

    def __init__(self, folder: Path, classes: Sequence[str], bound: float | None) -> None:
        self.path, self.bound = folder / NAME, bound
        self.columns = ["case", "mean", *classes[1:], "abstained"]
        self.rows = {row["case"]: [row.get(c, "") for c in self.columns] for row in _read(self.path)}

    def add(self, case: str, dice: Mapping[str, float]) -> bool:
        """Written at once, so that nothing is lost. Whether the case is below the bound, or no class was found in it."""
        known = [value for value in dice.values() if not math.isnan(value)]
        mean = float(np.mean(known)) if known else math.nan
        low = self.bound is not None and not mean >= self.bound
        values = [f"{value:.4f}" for value in (mean, *dice.values())]
        self.rows[case] = [case, *values, "yes" if low else "no"]
        write_csv(self.path, self.columns, list(self.rows.values()))
        return low

    @property
    def abstained(self) -> list[str]:
        """The cases below the bound."""
        return [case for case, row in self.rows.items() if row[-1] == "yes"]


def read_agreement(folder: Path) -> dict[str, float]:
    """Case -> mean agreement; nothing where a single head answered."""
    return {row["case"]: float(row["mean"]) for row in _read(folder / NAME)}


def agreement_note(folder: Path, scores: Sequence[Score]) -> tuple[str, ...]:
    """How well the agreement of several heads tells the Dice of a case; nothing where there are too few to say."""
    agreement = read_agreement(folder)
    dice: dict[str, list[float]] = {}
    for score in scores:
        if score.metric == "dsc" and not math.isnan(score.value):
            dice.setdefault(score.case, []).append(score.value)
    cases = [case for case, value in agreement.items() if case in dice and not math.isnan(value)]
    found = [agreement[case] for case in cases], [float(np.mean(dice[case])) for case in cases]
    if len(cases) < 5 or min(len(set(values)) for values in found) < 2:
        return ()
    rank = spearmanr(*found).statistic
    return (
        f"agreement of the heads and mean Dice of a case: rank correlation {rank:.2f} over {len(cases)} cases",
    )


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            float(row["mean"])
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); predict again, with --overwrite") from error
