"""In which forms a model answers: a table for each task."""

from __future__ import annotations

import dataclasses
import io as streams
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from samadapt import io
from samadapt.answering import class_answer, draw_attention, has_sets
from samadapt.ensemble import Agreement
from samadapt.files import taken_out
from samadapt.prediction import Classifier, Segmenter
from samadapt.serving.models import Served
from samadapt.serving.refusals import RefusedError
from samadapt.types import Case, SamAdaptError

_MOST_PROBABILITIES = 1 << 28  # numbers of float16
_GZIP, _BYTES, _JSON = "application/gzip", "application/octet-stream", "application/json"
#: Of the formats of label maps, by their names in `io.FORMATS` and `io.STRUCTURE_FORMATS`.
_MEDIA = {
    "nifti": _GZIP,
    "png": "image/png",
    "dicom-seg": "application/dicom",
    "dicom-seg-binary": "application/dicom",
}


@dataclass(frozen=True)
class Computed:
    """What the network gives of a case."""

    model: Served
    case: Case
    slices: Iterable[Tensor] | Tensor  # logits (K, H, W) of each slice; of a classifier, probabilities (D, K)
    agreement: Agreement | None
    folder: Path  # where a file may stand for a moment


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    content: bytes | None  # None: what is said about it is the answer
    media: str
    name: str  # of a file to save it as
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """One form of answers."""

    help: str
    make: Callable[[Computed], Answer]
    demand: Callable[[Served], None] | None = None  # refuses a model that cannot, before anything is computed


# ---------------------------------------------------------------- segmentation


def _about_label(made: Computed, label: np.ndarray) -> dict[str, Any]:
    """Of each class the voxels and, where the file says how large they are, the volume."""
    classes = made.model.first.classes
    counts = np.bincount(label.ravel(), minlength=len(classes))
    spacing = made.case.spacing_mm
    ml = None if spacing is None else math.prod(spacing) / 1000
    about: dict[str, Any] = {
        "volumes": [
            {"value": value, "name": name, "voxels": int(counts[value]), "ml": None if ml is None else round(int(counts[value]) * ml, 4)}
            for value, name in enumerate(classes)
            if value
        ],
    }  # fmt: skip
    if made.agreement is not None:
        dice = made.agreement.dice()
        about["agreement"] = {name: None if math.isnan(value) else value for name, value in dice.items()}
    return about


def _label_file(made: Computed, asked: str | None) -> Answer:
    model = made.model.first
    assert isinstance(model, Segmenter)
    path = io.label_file(made.folder, dataclasses.replace(made.case, id="prediction"), asked)
    written = io.label_format(made.case, asked)
    legend = made.model.legend if io.names_structures(written.name) else None
    label = model.predict_to(made.case, path, asked=asked, legend=legend, answers=made.slices)
    return Answer(taken_out(path), _MEDIA.get(written.name, _BYTES), path.name, _about_label(made, label))


def _demand_codes(model: Served) -> None:
    io.demand_writer(model.first.classes, {})


def _label_map(made: Computed) -> tuple[np.ndarray, dict[str, Any]]:
    model = made.model.first
    assert isinstance(model, Segmenter)
    label = model.label_map(made.case, made.slices)
    return io.to_file_axes(label, made.case), _about_label(made, label)


def _label_array(made: Computed) -> Answer:
    label, about = _label_map(made)
    file = streams.BytesIO()
    np.lib.format.write_array(file, label, allow_pickle=False)
    return Answer(file.getvalue(), _BYTES, "prediction.npy", about)


def _label_about(made: Computed) -> Answer:
    return Answer(None, _JSON, "prediction.json", _label_map(made)[1])


def _probability_array(made: Computed) -> Answer:
    model, classes, case = made.model.first, made.model.first.classes, made.case
    assert isinstance(model, Segmenter)
    if (count := len(classes) * math.prod(case.image.shape[1:])) > _MOST_PROBABILITIES:
        raise RefusedError(
            413, f"the probabilities of this scan would be {count:,} numbers; at most {_MOST_PROBABILITIES:,} are sent: ask for the "
            "label map, or use samadapt predict --probabilities"
        )  # fmt: skip
    path = made.folder / "probabilities.npy"
    io.write_probabilities(
        path, (logits.softmax(0) for logits in model.smooth(made.slices)), len(classes), case
    )
    return Answer(taken_out(path), _BYTES, path.name)


# ---------------------------------------------------------------- classification


def _class_about(made: Computed) -> Answer:
    model, slices = made.model.first, made.slices
    assert isinstance(model, Classifier) and isinstance(slices, Tensor)
    return Answer(None, _JSON, "prediction.json", class_answer(model, slices, has_sets(made.model.members)))


def _saliency(made: Computed) -> Answer:
    model, slices = made.model.first, made.slices
    assert isinstance(model, Classifier) and isinstance(slices, Tensor)
    path = made.folder / "saliency.png"
    draw_attention(model, made.case, slices, path)
    return Answer(taken_out(path), "image/png", path.name, _class_about(made).about)


def _demand_saliency(model: Served) -> None:
    first = model.first
    assert isinstance(first, Classifier)
    if not first.has_saliency:
        raise SamAdaptError(
            f"head {first.head.spec['name']!r} has no map of where it looked; ask for json, or serve a run of a head that has one "
            "(slca, plain, se, cbam, attentive_probe)"
        )


# ---------------------------------------------------------------- the tables

_FORMATS = {
    "nifti": "Label map as .nii.gz, with the header of the scan.",
    "nrrd": "Label map as NRRD, for volumes.",
    "png": "Label map of a picture as indexed PNG, whose values are the classes.",
    "dicom-seg": "Label map of a DICOM series as DICOM SEG.",
    "dicom-seg-binary": "The same with segments of bits, for viewers that do not know label maps.",
}

#: Task -> name -> form. "auto" is what is sent where nothing is asked for.
FORMS: Mapping[str, Mapping[str, Form]] = {
    "segmentation": {
        "auto": Form(
            "Label map in the format of the scan: NIfTI or NRRD, NIfTI for DICOM, PNG for pictures.",
            partial(_label_file, asked=None),
        ),
        **{
            name: Form(
                help, partial(_label_file, asked=name), _demand_codes if io.names_structures(name) else None
            )
            for name, help in _FORMATS.items()
        },
        "npy": Form("Label map as a numpy array with the axes of the file, uint8.", _label_array),
        "json": Form("Voxels and volume in ml of each class, without the label map.", _label_about),
        "probabilities": Form(
            "Probabilities of the classes as a numpy array (class, and the axes of the file), float16.",
            _probability_array,
        ),
    },
    "classification": {
        "auto": Form("The same as json.", _class_about),
        "json": Form("The prediction and the probability of each class.", _class_about),
        "probabilities": Form("The same as json.", _class_about),
        "png": Form("A picture of where the network looked (saliency).", _saliency, _demand_saliency),
    },
}


def form_of(model: Served, asked: str) -> Form:
    """The form that was asked for.

    Raises:
        SamAdaptError: this model does not answer so.
    """
    known = FORMS[model.opening.task]
    if asked not in known:
        raise SamAdaptError(
            f"output is {asked!r}; {model.name} is a {model.opening.task} model, which answers as {', '.join(known)}"
        )
    form = known[asked]
    if form.demand is not None:
        form.demand(model)
    return form


def forms_of(model: Served) -> list[str]:
    """The forms in which it answers."""
    found = []
    for name, form in FORMS[model.opening.task].items():
        try:
            if form.demand is not None:
                form.demand(model)
            found.append(name)
        except SamAdaptError:
            pass
    return found
