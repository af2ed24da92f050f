"""Cross-validation: `samadapt train --fold all` trains, predicts and scores every fold of a data set.

OUT/fold_0/ fold_1/ ...       run folders
OUT/predictions/fold_0/ ...   predictions of the cases that each fold holds out, and their scores
OUT/scores.summary.json       the means over all folds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samadapt.datasets import Dataset, Split, count_folds
from samadapt.evaluation import Evaluation, evaluate_folder, summary_rows, write_evaluation
from samadapt.features import FeatureStore
from samadapt.files import file_sha256, write_json
from samadapt.finishing import Finished, finish
from samadapt.folders import predict_folder
from samadapt.inputs import Taken
from samadapt.learner import FitOptions, Learner, fit
from samadapt.metrics import ALL, MEAN, Summary, summarise
from samadapt.predicted import Predictions, read_predictions
from samadapt.settings import FinishOptions, SplitOptions, TrainConfig


@dataclass(frozen=True)
class CrossValidation:
    """What became of the folds."""

    runs: tuple[Path, ...]
    finished: tuple[Finished, ...]
    summary: list[Summary]
    table: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FoldOptions:
    """How the folds are run.

    Args:
        training: as for `fit`.
        taken: how the files of the data set were taken when it was opened; they are read so again to be predicted and scored.
        say: called with a line of text for each fold.
        ending: as for `finish`.
    """

    training: FitOptions = field(default_factory=FitOptions)
    taken: Taken = field(default_factory=Taken)
    say: Callable[[str], None] = print
    ending: FinishOptions = field(default_factory=FinishOptions)


def fold_splits(data: Dataset, budget: SplitOptions, seed: int) -> list[Split]:
    """The splits of all folds, in their order."""
    return [
        data.split(budget.labels, seed, budget.select, budget.val_labels, fold)
        for fold in range(count_folds(data))
    ]


def cross_validate(
    learner: Learner,
    data: Dataset,
    splits: Sequence[Split],
    config: TrainConfig,
    places: tuple[Path, Path],
    store: FeatureStore | None,
    options: FoldOptions,
) -> CrossValidation:
    """Train, predict and score fold after fold. Running it again goes on where it stopped.

    Args:
        places: where the data set lies, and the folder to write into.
    """
    given, out = places
    runs, finished, found = [], [], []
    for fold, split in enumerate(splits):
        options.say(f"fold {fold} of {len(splits)}: {split.rule}")
        run = fit(learner, data, split, config, out / f"fold_{fold}", store, options.training)
        finished.append(finish(run, data, split, config.device, options.ending))
        runs.append(run)
        predictions = out / "predictions" / run.name
        evaluation = _evaluated(run, given, predictions, config.device, options.taken, finished[-1])
        options.say(f"fold {fold} of {len(splits)}: {_leading(evaluation)}")
        found.append(evaluation)
    summary = _over_folds(found)
    tested = {patient for evaluation in found for patient in evaluation.patients.values()}
    labelled = {data.groups[i] for i in data.labelled_ids}
    notes = tuple(dict.fromkeys(note for evaluation in found for note in evaluation.notes))
    if tested < labelled:
        left = len(labelled) - len(tested)
        notes += (
            f"{left} of {len(labelled)} labelled patients are in no fold's test part and were not scored",
        )
    table = out / "scores.summary.json"
    folds = {run.name: summary_rows(each.summary) for run, each in zip(runs, found, strict=True)}
    write_json(table, {"summary": summary_rows(summary), "folds": folds, "notes": list(notes)})
    return CrossValidation(tuple(runs), tuple(finished), summary, table, notes)


def _evaluated(
    run: Path, data: Path, predictions: Path, device: str, taken: Taken, done: Finished
) -> Evaluation:
    """The scores of the cases that the run holds out, predicted first where they are not yet."""
    note = read_predictions(predictions) if predictions.is_dir() else None
    same = note is not None and _as_now(note, run, done)
    if note is None or not (note.finished and same):
        predict_folder(run, data, predictions, device=device, overwrite=not same, taken=taken)
    evaluation = evaluate_folder(
        predictions, data, anonymous=taken.anonymous, allow_outside=taken.allow_outside
    )
    write_evaluation(evaluation, predictions, data)
    return evaluation


def _as_now(note: Predictions, run: Path, done: Finished) -> bool:
    """Whether predictions are those that the run would give now: of its model, with what it chose, and nothing else."""
    return (note.model, note.keep_largest, note.smooth_slices, note.subset, note.flips) == (
        file_sha256(run / "head.safetensors"), done.postprocessing.keep_largest, done.postprocessing.smooth_slices, None, False,
    )  # fmt: skip


def _leading(evaluation: Evaluation) -> str:
    """The mean Dice, or the AUC, of a fold."""
    rows = [row for row in evaluation.summary if row.metric in ("dsc", "auc")]
    row = next((row for row in rows if row.target in (MEAN, ALL)), rows[0])
    return f"{row.target} {row.metric} {row.mean:.3f} ({len(evaluation.patients)} test cases)"


def _over_folds(found: Sequence[Evaluation]) -> list[Summary]:
    """Label maps: over all cases together. Classes: the mean of the folds, for each has a model of its own scale."""
    if not any(score.metric == "probability" for each in found for score in each.scores):
        patients = {case: patient for each in found for case, patient in each.patients.items()}
        return summarise([score for each in found for score in each.scores], patients)
    rows: dict[tuple[str, str], list[Summary]] = {}
    for each in found:
        for row in each.summary:
            rows.setdefault((row.target, row.metric), []).append(row)
    return [_mean_row(of) for of in rows.values()]


def _mean_row(rows: Sequence[Summary]) -> Summary:
    known = [row.mean for row in rows if not math.isnan(row.mean)]
    mean = sum(known) / len(known) if known else math.nan
    n, n_groups, n_nan, n_miss = (
        sum(getattr(row, name) for row in rows) for name in ("n", "n_groups", "n_nan", "n_miss")
    )
    note = f"mean of {len(known)} folds"
    return Summary(rows[0].target, rows[0].metric, mean, math.nan, math.nan, n, n_groups, n_nan, n_miss, note)
