"""What `samadapt train` says and does, for one split and for all folds. torch is loaded with this module."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from samadapt.cli.results import Result, command
from samadapt.cli.terminal import say, speaks, split_summary, unlabelled_note
from samadapt.datasets import Dataset, Split
from samadapt.features import FeatureStore, encode_line
from samadapt.files import demand_writable
from samadapt.finishing import Finished, demand_selection, finish
from samadapt.folds import FoldOptions, cross_validate, fold_splits
from samadapt.info import describe_run
from samadapt.inputs import Taken
from samadapt.learner import FitOptions, Learner, fit, stored_maps
from samadapt.metrics import format_table
from samadapt.settings import FinishOptions, SplitOptions, TrainConfig, UnlabelledOptions
from samadapt.types import SamAdaptError

#: Between the seeds of the heads of an ensemble, so that neighbouring seeds of a user share none.
_APART = 1_000_003


@dataclass(frozen=True)
class Training:
    """What `train` is asked for.

    Args:
        given, out: where the data set lies, and the folder to write into.
        store: of feature maps; None: the encoder runs in every step.
        taken: how the files of the data set were taken when it was opened.
    """

    learner: Learner
    data: Dataset
    budget: SplitOptions
    config: TrainConfig
    given: Path
    out: Path
    store: FeatureStore | None
    unlabelled: UnlabelledOptions
    taken: Taken
    ending: FinishOptions
    overwrite: bool
    quiet: bool

    def begin(self, splits: Sequence[Split]) -> FitOptions:
        """Refuse what cannot be chosen after it, and say what is about to be learned; the options of each fit."""
        demand_selection(self.data, splits[0], self.ending)
        demand_writable(self.out, "--out")
        say(split_summary(self.data, splits[0], self.learner), self.quiet)
        say(self._disk(splits), self.quiet)
        return FitOptions(self.overwrite, partial(encode_line, quiet=self.quiet), unlabelled=self.unlabelled)

    def _disk(self, splits: Sequence[Split]) -> str | None:
        """What the store will take; None where nothing is stored."""
        maps = stored_maps(self.learner, self.data, self.config, self.store)
        if maps is None or self.store is None:
            return None
        train = {i for split in splits for i in split.train}
        select = {i for split in splits for i in split.select}
        size = maps.bytes_per_slice * sum(map(self.data.depth, train))
        size += maps.unaugmented.bytes_per_slice * sum(map(self.data.depth, select))
        return self.store.disk_note(size)


def train_once(asked: Training) -> Result:
    """One run folder."""
    budget, config, data = asked.budget, asked.config, asked.data
    assert isinstance(budget.fold, int)
    split = data.split(budget.labels, config.seed, budget.select, budget.val_labels, budget.fold)
    more = asked.begin([split])
    run = fit(asked.learner, data, split, config, asked.out, asked.store, more)
    if not speaks():
        return Result({})
    finished = finish(run, data, split, config.device, asked.ending)
    for note in _notes(run, finished, asked):
        say(note, asked.quiet)
    return Result(
        {**describe_run(run), "pictures": finished.pictures}, f"trained: {run}", _next(run, run.name)
    )


def train_heads(asked: Training) -> Result:
    """Run folders of several heads that differ in their start and their batches and learn from the same cases."""
    budget, config, data, out = asked.budget, asked.config, asked.data, asked.out
    number = asked.ending.heads_ensemble
    if budget.fold == "all":
        raise SamAdaptError(
            f"--heads-ensemble {number} trains several heads on one split, and --fold all one head on each; leave out one of them "
            "(the heads of all folds answer together too)"
        )
    assert isinstance(budget.fold, int)
    if (out / "config.json").is_file():
        raise SamAdaptError(
            f"{out} is the run folder of a single head, and --heads-ensemble writes a folder of run folders; choose another --out"
        )
    present = [path.parent.name for path in out.glob("*/config.json")]
    names = [f"head_{k}" for k in range(number)]
    if strange := sorted(set(present) - set(names)):
        raise SamAdaptError(
            f"{out} holds other run folders ({', '.join(strange)}), which would answer together with the {number} heads; choose "
            "another --out, or remove them"
        )
    split = data.split(budget.labels, config.seed, budget.select, budget.val_labels, budget.fold)
    more, notes = asked.begin([split]), []
    for k, name in enumerate(names):
        say(f"head {k + 1} of {number}", asked.quiet)
        own = dataclasses.replace(config, seed=(config.seed + _APART * k) % 2**32)
        run = fit(asked.learner, data, split, own, out / name, asked.store, more)
        if speaks():
            finished = finish(run, data, split, config.device, asked.ending)
            notes += [f"{name}: {note}" for note in _notes(run, finished, asked)]
    runs = [out / name for name in names]
    text = "\n".join([f"trained: {out}, {number} heads that answer together", *notes])
    return Result({"run": out, "runs": runs, "notes": notes}, text, _next(out, out.name))


def _notes(run: Path, finished: Finished, asked: Training) -> list[str]:
    notes = [f"pictures: {', '.join(map(str, finished.pictures))}"]
    notes += [text] if (text := unlabelled_note(run)) else []
    if asked.ending.keep_largest:
        kept = ", ".join(finished.postprocessing.keep_largest) or "no class"
        notes.append(f"predictions keep the largest component of {kept}, as chosen on the selection cases")
    if asked.ending.smooth_slices:
        sigma = finished.postprocessing.smooth_slices
        how = f"smoothed over slices (sigma {sigma:g})" if sigma else "not smoothed over slices"
        notes.append(f"predictions are {how}, as chosen on the selection cases")
    if (found := finished.calibration) is not None:
        sets = "" if found.least is None else f"; sets of classes hold those of {found.least:.2f} or more"
        notes.append(
            f"calibrated on {len(found.cases)} selection cases: temperature {found.temperature:.2f}, negative log likelihood "
            f"{found.before:.3f} before and {found.after:.3f} after{sets}"
        )
    if finished.too_few_steps:
        notes.append(f"note: {finished.too_few_steps}")
    return notes


def _next(run: Path, name: str) -> str:
    return command("predict", run, "FOLDER_OF_SCANS", "--out", f"predictions/{name}", "--pictures")


def train_folds(asked: Training) -> Result:
    """A run folder for each fold, and the scores of all."""
    data, config, out = asked.data, asked.config, asked.out
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
    splits = fold_splits(data, asked.budget, config.seed)
    more = FoldOptions(
        asked.begin(splits),
        asked.taken,
        lambda text: say(text, asked.quiet),
        asked.ending,
    )
    found = cross_validate(asked.learner, data, splits, config, (asked.given, out), asked.store, more)
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
    return Result(
        {"runs": found.runs, "summary": found.summary, "scores": found.table, "notes": found.notes},
        text,
        _next(out, out.name),
    )
