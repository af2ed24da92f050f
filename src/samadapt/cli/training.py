"""What `samadapt train` says and does, for one split and for all folds. torch is loaded with this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from samadapt.cli.results import Result, command
from samadapt.cli.terminal import say, speaks, split_summary, store_note, unlabelled_note
from samadapt.datasets import Dataset, Split
from samadapt.features import FeatureStore, encode_line
from samadapt.files import demand_writable
from samadapt.finishing import Finished, demand_selection, finish
from samadapt.folds import FoldOptions, cross_validate, fold_splits
from samadapt.info import describe_run
from samadapt.inputs import Taken
from samadapt.learner import FitOptions, Learner, fit, stored_maps
from samadapt.metrics import format_table
from samadapt.settings import SplitOptions, TrainConfig, UnlabelledOptions
from samadapt.types import SamAdaptError


@dataclass(frozen=True)
class TrainingOptions:
    """What `train` is told beside the learner, the split and the settings of the training."""

    overwrite: bool
    keep_largest: bool
    quiet: bool
    unlabelled: UnlabelledOptions
    taken: Taken  # as the data set was opened


def train_once(
    learner: Learner,
    data: Dataset,
    budget: SplitOptions,
    config: TrainConfig,
    places: tuple[Path, Path],
    store: FeatureStore | None,
    options: TrainingOptions,
) -> Result:
    """One run folder.

    Args:
        places: where the data set lies, and the run folder.
    """
    assert isinstance(budget.fold, int)
    split, quiet = (
        data.split(budget.labels, config.seed, budget.select, budget.val_labels, budget.fold),
        options.quiet,
    )
    if options.keep_largest:
        demand_selection(data, split)
    say(split_summary(data, split, learner), quiet)
    say(_disk(learner, data, [split], config, store), quiet)
    more = FitOptions(options.overwrite, partial(encode_line, quiet=quiet), unlabelled=options.unlabelled)
    run = fit(learner, data, split, config, places[1], store, more)
    if not speaks():
        return Result({})
    finished = finish(run, data, split, config.device, options.keep_largest)
    for note in _notes(run, finished, options):
        say(note, quiet)
    after = command("predict", run, "FOLDER_OF_SCANS", "--out", f"predictions/{run.name}", "--pictures")
    return Result({**describe_run(run), "pictures": finished.pictures}, f"trained: {run}", after)


def _disk(
    learner: Learner, data: Dataset, splits: Sequence[Split], config: TrainConfig, store: FeatureStore | None
) -> str | None:
    """What the store will take; None where nothing is stored."""
    maps = stored_maps(learner, data, config, store)
    if maps is None or store is None:
        return None
    train = {i for split in splits for i in split.train}
    select = {i for split in splits for i in split.select}
    size = maps.bytes_per_slice * sum(map(data.depth, train))
    size += maps.unaugmented.bytes_per_slice * sum(map(data.depth, select))
    return store_note(size, store.root)


def _notes(run: Path, finished: Finished, options: TrainingOptions) -> list[str]:
    notes = [f"pictures: {', '.join(map(str, finished.pictures))}"]
    notes += [text] if (text := unlabelled_note(run)) else []
    if options.keep_largest:
        kept = ", ".join(finished.keep_largest) or "no class"
        notes.append(f"predictions keep the largest component of {kept}, as chosen on the selection cases")
    if finished.too_few_steps:
        notes.append(f"note: {finished.too_few_steps}")
    return notes


def train_folds(
    learner: Learner,
    data: Dataset,
    budget: SplitOptions,
    config: TrainConfig,
    places: tuple[Path, Path],
    store: FeatureStore | None,
    options: TrainingOptions,
) -> Result:
    """A run folder for each fold, and the scores of all."""
    given, out = places
    if config.devices > 1:
        raise SamAdaptError(
            f"--fold all trains on one device at a time, and --devices is {config.devices}; leave it out, or train the folds "
            "one by one (--fold 0, --fold 1, ...)"
        )
    if (out / "config.json").is_file():
        raise SamAdaptError(
            f"{out} is the run folder of a single training, and --fold all writes a folder of run folders; choose another "
            "--out"
        )
    splits = fold_splits(data, budget, config.seed)
    if options.keep_largest:
        demand_selection(data, splits[0])
    demand_writable(out, "--out")
    say(split_summary(data, splits[0], learner), options.quiet)
    say(_disk(learner, data, splits, config, store), options.quiet)
    training = FitOptions(
        options.overwrite, partial(encode_line, quiet=options.quiet), unlabelled=options.unlabelled
    )
    more = FoldOptions(training, options.keep_largest, options.taken, lambda text: say(text, options.quiet))
    found = cross_validate(learner, data, splits, config, (given, out), store, more)
    notes = [f"note: {text}" for text in found.notes]
    notes += [f"note: {run.name}: {x.too_few_steps}" for run, x in zip(found.runs, found.finished, strict=True) if x.too_few_steps]  # fmt: skip
    text = "\n".join(
        [
            *(f"trained: {run}" for run in found.runs),
            format_table(found.summary),
            *notes,
            f"scores: {found.table}",
        ]
    )
    after = command(
        "predict", found.runs[0], "FOLDER_OF_SCANS", "--out", f"predictions/{out.name}", "--pictures"
    )
    return Result(
        {"runs": found.runs, "summary": found.summary, "scores": found.table, "notes": found.notes},
        text,
        after,
    )
