"""Folders in, folders out: what `samadapt predict` and `samadapt evaluate` do."""

from __future__ import annotations

import csv
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from samadapt import io
from samadapt.datasets import Dataset, open_dataset
from samadapt.figures import attention_figure, save_figure
from samadapt.metrics import Summary, bootstrap_classification, score_predictions, summarise
from samadapt.prediction import Classifier, Segmenter, load_run, score_labels
from samadapt.runs import read_config, write_json
from samadapt.types import Case, SamAdaptError, Score

SUBSETS = ("train", "select", "val", "test", "all")
Named = tuple[Case, str]  # a case, and the part of the split it belongs to ("" where nothing says so)


def predict_folder(
    run: str | Path,
    inputs: str | Path,
    out: str | Path,
    *,
    subset: str | None = None,
    probabilities: bool = False,
    attention: bool = False,
    device: str = "auto",
    checkpoint: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Predict a scan, a folder of scans, or cases of a data set; returns how many.

    Args:
        inputs: an image file; a folder of images (nnU-Net names: `case_0000.nii.gz` gives `case.nii.gz`); or a
            data set as `open_dataset` takes it.
        subset: of a data set: a part of its official split or, where it has none, of the run's ("train", "select",
            "val"), or "all". None: the cases that the run's split keeps for scoring, else all.
        attention: of a classifier: also draw where it looked, `attention/<case>.png`.
    """
    model = load_run(run, device, checkpoint)
    out = Path(out)
    if attention:
        _check_that_it_looks(model, Path(run))
    _open_output(out, overwrite)
    opened = _opened(Path(run))
    cases = _cases(model, Path(run), opened, Path(inputs), subset)
    if isinstance(model, Classifier):
        count = _classify(model, cases, out, attention, progress)
    else:
        count = _segment(model, cases, out, probabilities, progress)
    write_json(
        out / "predictions.json",
        {
            "run": str(run),
            "inputs": str(inputs),
            "classes": list(model.classes),
            "cases": count,
            "opened": opened,  # so that the folder can be scored where the run is not
        },
    )
    return count


def _check_that_it_looks(model: Segmenter | Classifier, run: Path) -> None:
    """Before anything is written or deleted."""
    if not isinstance(model, Classifier):
        raise SamAdaptError(
            f"attention is drawn for classifiers; {run} is a {model.head.task} run: leave out --attention, or draw its "
            "label maps"
        )
    if not model.looks:
        raise SamAdaptError(
            f"head {model.head.spec['name']!r} of {run} has no map of where it looked; leave out --attention, or train "
            "a head that has one (slca, plain, se, cbam, attentive_probe)"
        )


def _segment(
    model: Segmenter,
    cases: Iterable[Named],
    out: Path,
    probabilities: bool,
    progress: Callable[[str], None] | None,
) -> int:
    count = 0
    for count, (case, _) in enumerate(cases, start=1):  # noqa: B007
        suffix = ".png" if case.affine is None else ".nii.gz"
        path = out / f"{case.id}{suffix}"
        model.predict_to(case, path, out / f"{case.id}.npy" if probabilities else None)
        if progress:
            progress(str(path))
    return count


def _classify(
    model: Classifier,
    cases: Iterable[Named],
    out: Path,
    attention: bool,
    progress: Callable[[str], None] | None,
) -> int:
    rows, parts = [], deque[str]()

    def entering() -> Iterator[tuple[Case, None]]:
        for case, part in cases:
            parts.append(part)
            yield case, None

    for case, slices in model.predict_all(entering()):
        values = slices.mean(0).numpy()
        if model.multilabel:
            prediction = "|".join(
                name for name, value in zip(model.classes, values, strict=True) if value >= 0.5
            )
        else:
            prediction = model.classes[int(values.argmax())]
        row = {"case": case.id, "split": parts.popleft(), "prediction": prediction}
        rows.append(
            row | {f"prob_{n}": f"{v:.7g}" for n, v in zip(model.classes, values.tolist(), strict=True)}
        )
        if attention:
            (out / "attention").mkdir(exist_ok=True)
            _draw_attention(model, case, slices, out / "attention" / f"{case.id}.png")
        if progress:
            progress(case.id)
    temporary = out / "predictions.csv.tmp"
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(
            file, fieldnames=["case", "split", "prediction", *(f"prob_{n}" for n in model.classes)]
        )
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(out / "predictions.csv")
    return len(rows)


def _draw_attention(model: Classifier, case: Case, slices: Tensor, path: Path) -> None:
    look, values = model.look(case, slices), slices.mean(0)
    answer = f"{model.classes[int(values.argmax())]} ({float(values.max()):.2f})"
    place = f", slice {look.slice_index}" if len(slices) > 1 else ""
    save_figure(attention_figure(look.image, look.maps, f"{case.id}{place}: {answer}"), path)


def _open_output(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise SamAdaptError(f"{out} is not empty; choose another --out or give --overwrite")
        if not (out / "predictions.json").is_file():
            raise SamAdaptError(
                f"{out} holds no predictions of ours; --overwrite deletes prediction folders only"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    # Written again at the end; from now on the folder is known as ours, even if the run is interrupted.
    write_json(out / "predictions.json", {"cases": None})


def _cases(
    model: Segmenter | Classifier, run: Path, opened: dict[str, Any], inputs: Path, subset: str | None
) -> Iterator[Named]:
    if not inputs.exists():
        raise SamAdaptError(f"{inputs} does not exist; give an image file, a folder of images, or a data set")
    if subset is not None and subset not in SUBSETS:
        raise SamAdaptError(f"unknown subset {subset!r}; known: {', '.join(SUBSETS)}")
    if inputs.is_dir() and not _holds_a_data_set(inputs):
        groups = io.group_channels(io.find_files(inputs))
        if not groups:
            raise SamAdaptError(f"{inputs} holds no images; known formats: {', '.join(io.IMAGE_SUFFIXES)}")
        for paths in groups.values():
            yield model.case(paths), ""
    elif inputs.is_dir() or inputs.suffix == ".npz":
        data = open_dataset(inputs, **opened)
        parts, scored = _parts(run, data)
        for case_id in data.ids:
            part = parts.get(case_id, "")
            if subset in ("all", part) or (subset is None and (case_id in scored or not scored)):
                yield data.case(case_id), part
    else:
        yield model.case(inputs), ""


def _holds_a_data_set(folder: Path) -> bool:
    """A folder with folders in it is a data set; one with images right in it is a pile of scans."""
    return (folder / "dataset.json").is_file() or not io.find_files(folder)


def _opened(run: Path) -> dict[str, Any]:
    """How the run opened its data set: arguments of `open_dataset`, to open another one like it."""
    config = read_config(run)
    data = config["data"]
    # Not the rule that tells patients apart: nothing here needs it, and its file may be gone.
    told = {key: data["options"][key] for key in ("label_column", "classes") if key in data["options"]}
    return {"task": config["task"], "slice_axis": data["slice_axis"], "channels": data["channels"], **told}


def _parts(run: Path, data: Dataset) -> tuple[dict[str, str], set[str]]:
    """{case: its part, of the data set's own split or else of the run's}, and the cases kept for scoring."""
    split = json.loads((run / "split.json").read_text()) if (run / "split.json").is_file() else {}
    known = set(data.ids)
    parts = {i: part for part in ("val", "select", "train") for i in split.get(part, []) if i in known}
    return parts | {i: part for i, part in data.parts.items() if part}, known & set(split.get("val", []))


# ---------------------------------------------------------------- evaluation


def evaluate_folder(
    predictions: str | Path, truth: str | Path, progress: Callable[[str], None] | None = None
) -> tuple[list[Score], list[Summary]]:
    """Score a folder of `predict_folder`: label maps, or the class probabilities of `predictions.csv`.

    Args:
        truth: the data set; for label maps also a folder of label files of the same names.

    Returns:
        The scores of each case, and their means with patient-bootstrap intervals.
    """
    predictions, truth = Path(predictions), Path(truth)
    if not truth.exists():
        raise SamAdaptError(f"{truth} does not exist; give the data set, or a folder of label files")
    if not predictions.exists():
        raise SamAdaptError(f"{predictions} does not exist; give the --out of `samadapt predict`")
    if (predictions / "predictions.csv").is_file():
        return _evaluate_classes(predictions, truth)
    scores, groups = _score_folder(predictions, truth, progress)
    return scores, summarise(scores, groups)


def _evaluate_classes(predictions: Path, truth: Path) -> tuple[list[Score], list[Summary]]:
    with open(predictions / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    note = json.loads((predictions / "predictions.json").read_text())
    classes = note["classes"]
    data = open_dataset(truth, **note["opened"])
    if list(data.classes) != classes:
        raise SamAdaptError(f"{predictions} has the classes {classes}, {truth} has {list(data.classes)}")
    unknown = [row["case"] for row in rows if row["case"] not in set(data.labelled_ids)]
    if unknown or not rows:
        raise SamAdaptError(
            f"{len(unknown)} of {len(rows)} predictions in {predictions} have no label in {truth}"
            + (f", the first is {unknown[0]!r}" if unknown else "; predict labelled cases")
        )
    ids = [row["case"] for row in rows]
    probabilities = np.array([[float(row[f"prob_{name}"]) for name in classes] for row in rows])
    labels = np.stack([np.asarray(data.label(i)) for i in ids])
    groups = [data.groups[i] for i in ids]
    summary = bootstrap_classification(probabilities, labels, groups, classes)
    return score_predictions(ids, probabilities, labels, classes), summary


def _score_folder(
    predictions: Path, truth: Path, progress: Callable[[str], None] | None
) -> tuple[list[Score], dict[str, str]]:
    """Scores of label maps, and the patient of each case."""
    found = {io.case_name(path): path for path in io.find_files(predictions)} if predictions.is_dir() else {}
    if not found:
        raise SamAdaptError(f"{predictions} holds no label maps; give the --out of `samadapt predict`")
    if _holds_a_data_set(truth):
        data = open_dataset(truth)
        unknown = sorted(set(found) - set(data.labelled_ids))
        if unknown:
            raise SamAdaptError(
                f"{len(unknown)} of {len(found)} predictions have no label in {truth}, the first is {unknown[0]!r}; "
                "predict cases of this data set, or remove them"
            )
        cases: Iterable[tuple[Case, Path]] = (
            (data.case(i), found[i]) for i in data.labelled_ids if i in found
        )
        groups, classes = {i: data.groups[i] for i in found}, list(data.classes)
    else:
        cases, classes = _label_pairs(found, truth, predictions)
        groups = {i: i for i in found}

    def loaded() -> Iterator[tuple[Case, object]]:
        for case, path in cases:
            if progress:
                progress(case.id)
            yield case, io.read_label(path, case).numpy()

    return score_labels(loaded(), classes), groups  # type: ignore[arg-type]


def _label_pairs(
    found: dict[str, Path], truth: Path, predictions: Path
) -> tuple[Iterable[tuple[Case, Path]], list[str]]:
    """Label files as cases of their own; class names as the predictions' note gives them."""
    labels = {io.case_name(path): path for path in io.find_files(truth)}
    missing = sorted(set(found) - set(labels))
    if missing:
        raise SamAdaptError(
            f"{truth} has no label for {len(missing)} predictions, the first is {missing[0]!r}"
        )
    note = predictions / "predictions.json"
    if not note.is_file():
        raise SamAdaptError(
            f"{predictions} does not say what its classes are called; give the data set in place of {truth}"
        )
    classes = json.loads(note.read_text())["classes"]
    return ((io.read_truth(labels[i], case_id=i), path) for i, path in found.items()), classes
