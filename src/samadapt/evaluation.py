"""Folders of predictions against the truth: what `samadapt evaluate` does."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from samadapt import io
from samadapt.calibration import coverage_note
from samadapt.datasets import (
    Dataset,
    demand_inside,
    find_key,
    find_layout,
    find_masks,
    open_dataset,
    open_like,
)
from samadapt.ensemble import agreement_note
from samadapt.files import file_sha256, write_json
from samadapt.inputs import NO_SPLIT, Taken, find_inputs
from samadapt.metrics import (
    Summary,
    bootstrap_classification,
    mean_dice,
    score_predictions,
    summarise,
    write_scores,
)
from samadapt.overlap import names_of, of_own_weights, overlaps
from samadapt.pictures import Answered, class_text, draw_classified, draw_extremes
from samadapt.predicted import Predictions, demand_finished, read_predictions
from samadapt.scoring import score_labels
from samadapt.types import Case, SamAdaptError, Score

Progress = Callable[[str], None]
Draw = Callable[[Sequence[Answered], Sequence[str], str, Path], list[Path]]


@dataclass(frozen=True)
class Evaluation:
    """Scores, their means with intervals over patients, and what a reader must know beside them."""

    scores: list[Score]
    summary: list[Summary]
    patients: Mapping[str, str]  # case -> patient
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    window: str = "percentile"  # of the intensities in pictures
    answered: Sequence[Answered] = ()  # the cases, as they can be drawn
    draw: Draw = draw_extremes


def evaluate_folder(
    predictions: str | Path,
    truth: str | Path,
    progress: Progress | None = None,
    *,
    anonymous: str | None = None,
    allow_outside: bool = False,
) -> Evaluation:
    """Score a folder of `predict_folder`: label maps, or the class probabilities of `predictions.csv`.

    The truth is read as the data set was that the model was trained on: the same coding of labels, the same patients.

    Args:
        truth: the data set; for label maps also a folder of label files of the same names.
        anonymous: the file that the names of the predictions were coded with, where it is elsewhere now.
        allow_outside: whether links and lists in the data set may lead out of its folder.

    Raises:
        SamAdaptError: the prediction did not finish, a label map or a label is missing, or the classes differ.
    """
    predictions, truth = Path(predictions), Path(truth)
    if not truth.exists():
        raise SamAdaptError(f"{truth} does not exist; give the data set, or a folder of label files")
    if not predictions.exists():
        raise SamAdaptError(f"{predictions} does not exist; give the --out of `samadapt predict`")
    note = read_predictions(predictions)
    if anonymous is not None and note is not None and (key := find_key(anonymous, note.opening)):
        note = dataclasses.replace(note, opening=dataclasses.replace(note.opening, anonymous=key.recorded))
    found = {io.case_name(path): path for path in io.find_files(predictions)} if predictions.is_dir() else {}
    if note is not None and note.opening.task == "classification":
        demand_finished(note, predictions, 0)
        return _classes(predictions, truth, note, allow_outside)
    if note is not None:
        demand_finished(note, predictions, len(found))
        found = _recorded(found, note, predictions)
    if not found:
        raise SamAdaptError(f"{predictions} holds no label maps; give the --out of `samadapt predict`")
    return _label_maps(found, truth, note, predictions, progress, allow_outside)


def _recorded(found: dict[str, Path], note: Predictions, predictions: Path) -> dict[str, Path]:
    """The label maps that the note lists, all of them and no others."""
    expected = [case for case in note.cases if case not in note.failed]
    missing = [case for case in expected if case not in found]
    strange = sorted(set(found) - set(expected))
    if missing or strange:
        raise SamAdaptError(
            f"{predictions} was changed after it was predicted: "
            + (f"{len(missing)} label maps are missing, the first is {missing[0]!r}" if missing else "")
            + (" and " if missing and strange else "")
            + (f"{len(strange)} were added, the first is {strange[0]!r}" if strange else "")
            + "; predict again, or score other label maps in a folder of their own"
        )
    return {case: found[case] for case in expected}


# ---------------------------------------------------------------- classes


def _classes(predictions: Path, truth: Path, note: Predictions, outside: bool) -> Evaluation:
    try:
        with open(predictions / "predictions.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SamAdaptError(
            f"{predictions / 'predictions.csv'} cannot be read ({error.strerror}); predict again"
        ) from error
    data = _data_set(truth, note, outside)
    labelled = set(data.labelled_ids)
    unknown = [row["case"] for row in rows if row["case"] not in labelled]
    if unknown or not rows:
        raise SamAdaptError(
            f"{len(unknown)} of {len(rows)} predictions in {predictions} have no label in {truth}"
            + (f", the first is {unknown[0]!r}" if unknown else "; predict labelled cases")
        )
    ids, classes = [row["case"] for row in rows], note.opening.classes
    probabilities = np.array([[float(row[f"prob_{name}"]) for name in classes] for row in rows])
    labels = np.stack([np.asarray(data.label(i)) for i in ids])
    patients = {i: note.patients[i] for i in ids}
    summary = bootstrap_classification(probabilities, labels, list(patients.values()), list(classes))
    scores = score_predictions(ids, probabilities, labels, list(classes))
    answered = [
        Answered(
            i,
            float(np.where(target > 0, values, 1 - values).mean())
            if target.ndim
            else float(values[int(target)]),
            class_text(values, target, classes),
            partial(_picture, data, i),
        )
        for i, values, target in zip(ids, probabilities, labels, strict=True)
    ]
    notes = _notes(note, ids, names_of(truth, data.name))
    if labels.ndim == 1:
        notes += coverage_note([row.get("set") for row in rows], [int(x) for x in labels], classes)
    return Evaluation(
        scores, summary, patients, notes, tuple(classes), data.window, answered, draw_classified
    )


def _picture(data: Dataset, case: str) -> tuple[Case, None]:
    return data.case(case), None


# ---------------------------------------------------------------- label maps


def _label_maps(
    found: dict[str, Path],
    truth: Path,
    note: Predictions | None,
    predictions: Path,
    progress: Progress | None,
    outside: bool,
) -> Evaluation:
    if find_layout(truth, "segmentation", note.opening.layout if note else "") is not None:
        data = _data_set(truth, note, outside)
        cases = _of_data_set(data, found, truth)
        patients, classes = {i: data.groups[i] for i in found}, data.classes
        names = names_of(truth, data.name)
    else:
        names = names_of(truth)
        if note is None:
            raise SamAdaptError(
                f"{predictions} does not say what its classes are called; give the data set in place of {truth}"
            )
        cases, classes = _of_label_files(found, truth, note, outside), note.opening.classes
        data = None
    if note is not None:
        patients, classes = {i: note.patients[i] for i in found}, note.opening.classes

    values = {value: value for value in range(len(classes))}

    def loaded() -> Iterator[tuple[Case, np.ndarray]]:
        for case, path in cases:
            if progress:
                progress(case.id)
            yield case, io.read_label(path, case, values, classes).numpy()

    scores = score_labels(loaded(), classes)
    window = note.opening.window if note is not None else data.window if data is not None else "percentile"
    load = partial(_drawn, data, note, truth, outside)
    answered = [
        Answered(case, value, text, partial(load, case, found[case]))
        for case, (value, text) in mean_dice(scores).items()
    ]
    notes = _notes(note, list(found), names) + agreement_note(predictions, scores)
    return Evaluation(scores, summarise(scores, patients), patients, notes, tuple(classes), window, answered)


def _drawn(
    data: Dataset | None, note: Predictions | None, truth: Path, outside: bool, case_id: str, path: Path
) -> tuple[Case, np.ndarray]:
    """A scored case again, with its image: that of the data set, or of the scans that were predicted."""
    if data is not None:
        case = data.case(case_id)
    else:
        assert note is not None
        ((labels, _),) = _of_label_files({case_id: path}, truth, note, outside)
        assert labels.source is not None
        case, opening = _scan(note, case_id, outside), note.opening
        label = io.read_label(labels.source, case, opening.label_values or None, opening.classes)
        case = dataclasses.replace(case, label=label)
    classes = note.opening.classes if note is not None else data.classes if data is not None else ()
    values = {value: value for value in range(len(classes))}
    return case, io.read_label(path, case, values, classes).numpy()


def _scan(note: Predictions, case_id: str, outside: bool) -> Case:
    """The image of a case, from where it was when it was predicted."""
    cure = "give the data set in place of the folder of label files, or leave out --pictures"
    taken = Taken(modality=note.opening.modality, allow_outside=outside)
    try:
        inputs, _ = find_inputs(Path(note.inputs), note.opening, NO_SPLIT, None, taken)
    except SamAdaptError as error:
        raise SamAdaptError(f"the images of the pictures are no longer there: {error}; {cure}") from error
    for each in inputs:
        if each.id == case_id:
            return each.load()
    raise SamAdaptError(f"{note.inputs} no longer holds the image of case {case_id!r}; {cure}")


def _data_set(truth: Path, note: Predictions | None, outside: bool) -> Dataset:
    if note is not None:  # the patients are those of the note
        return open_like(
            truth,
            dataclasses.replace(note.opening, group=None),
            modality=note.opening.modality,
            allow_outside=outside,
        )
    return open_dataset(
        truth, task="segmentation", channels=[0], allow_outside=outside
    )  # the label alone is needed


def _of_data_set(data: Dataset, found: Mapping[str, Path], truth: Path) -> Iterable[tuple[Case, Path]]:
    labelled = set(data.labelled_ids)
    _demand_truth([case for case in found if case not in labelled], len(found), truth)
    return ((data.case(case), path) for case, path in found.items())


def _of_label_files(
    found: Mapping[str, Path], truth: Path, note: Predictions, outside: bool
) -> Iterable[tuple[Case, Path]]:
    """Label files as cases of their own, coded as the labels that were trained on."""
    files = io.find_files(truth) if truth.is_dir() else [truth]
    if truth.is_dir():
        demand_inside(files, truth, outside)
    key = find_key(None, note.opening)
    named = {case if key is None else key.name("case", case): case for case in found}
    masks = {named[name]: paths for name, paths in find_masks({n: [] for n in named}, files)[0].items()}
    several = next((case for case, paths in masks.items() if len(paths) > 1), None)
    if several is not None:
        raise SamAdaptError(
            f"{truth} has {len(masks[several])} label files for {several!r} ({', '.join(p.name for p in masks[several])}); "
            "expected one: give the data set, or merge them"
        )
    labels = {case: paths[0] for case, paths in masks.items()}
    _demand_truth([case for case in found if case not in labels], len(found), truth)
    opening = note.opening
    values = opening.label_values or None
    return (
        (io.read_truth(labels[i], i, opening.plane, values, opening.classes), path)
        for i, path in found.items()
    )


def _demand_truth(missing: list[str], total: int, truth: Path) -> None:
    if missing:
        raise SamAdaptError(
            f"{len(missing)} of {total} predictions have no label in {truth}, the first is {missing[0]!r}; give the truth "
            "of these cases, or predict labelled ones"
        )


def _notes(note: Predictions | None, ids: list[str], names: list[str]) -> tuple[str, ...]:
    """Remarks that a reader of the scores needs.

    Args:
        names: of the data set, by which it may be known as one that the encoder's training has seen.
    """
    if note is None:
        return ()
    learned = sorted(i for i in ids if note.cases[i].trained)
    notes = []
    if learned:
        notes.append(
            f"{len(learned)} of these {len(ids)} cases trained the model (the first is {learned[0]!r}): their scores "
            "say nothing about new cases"
        )
    if unknown := [i for i in ids if note.cases[i].trained is None]:
        notes.append(
            f"the names of {len(unknown)} of these {len(ids)} cases are coded otherwise than those of the run (--anonymous), so it "
            "is not known which of them trained the model: the scores may say nothing about new cases"
        )
    if note.failed:
        case, message = next(iter(note.failed.items()))
        notes.append(
            f"{len(note.failed)} more cases could not be predicted and are not in the table; the first is {case!r}: "
            f"{message}"
        )
    if note.encoder is not None:
        names = [*names, *note.names]
        found = overlaps(note.encoder, names, ids) if note.checkpoint is None else []
        if note.checkpoint is not None:
            found = [of_own_weights(note.encoder, note.checkpoint, len(ids))]
        notes += [overlap.text for overlap in found if overlap.warns]
    return tuple(notes)


# ---------------------------------------------------------------- on disk


def draw_evaluation(evaluation: Evaluation, table: Path) -> list[Path]:
    """Pictures of the worst, the median and the best cases, in a folder beside the table of scores.

    Args:
        table: as `write_evaluation` wrote it; `scores.csv` has its pictures in `scores.pictures/`.
    """
    folder = table.with_suffix(".pictures")
    return evaluation.draw(evaluation.answered, evaluation.classes, evaluation.window, folder)


def write_evaluation(
    evaluation: Evaluation, predictions: Path, truth: Path, out: Path | None = None, overwrite: bool = False
) -> Path:
    """`scores.csv`, and beside it `scores.summary.json` with the means, the patients and what was scored.

    Args:
        out: the table; None: `scores.csv` inside the folder of predictions.
        overwrite: replace a file that is not an earlier table of these predictions.
    """
    out = out or predictions / "scores.csv"
    about = out.with_suffix(".summary.json")
    there = [path for path in (out, about) if path.exists()]
    if there and not overwrite and not _is_of(out, about, predictions):
        raise SamAdaptError(
            f"{there[0]} exists and is not a table that `evaluate` wrote for {predictions}; choose another --out, or "
            "give --overwrite to replace it"
        )
    write_scores(out, evaluation.scores)
    content = {
        "predictions": str(predictions.resolve()),
        "truth": str(truth.resolve()),
        "scores_sha256": file_sha256(out),
        "notes": list(evaluation.notes),
        "patients": dict(evaluation.patients),
        "summary": summary_rows(evaluation.summary),
    }
    write_json(about, content)
    return out


def summary_rows(summary: Sequence[Summary]) -> list[dict[str, object]]:
    """The rows as they stand in `scores.summary.json`."""
    return [_row(row) for row in summary]


def _row(summary: Summary) -> dict[str, object]:
    """JSON knows no nan: undefined is null."""
    return {
        k: None if isinstance(v, float) and math.isnan(v) else v
        for k, v in dataclasses.asdict(summary).items()
    }


def _is_of(out: Path, about: Path, predictions: Path) -> bool:
    """Whether the file is as we wrote it for these predictions."""
    try:
        content = json.loads(about.read_text(encoding="utf-8"))
        return (content["predictions"], content["scores_sha256"]) == (
            str(predictions.resolve()),
            file_sha256(out),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
