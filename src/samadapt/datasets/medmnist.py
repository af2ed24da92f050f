"""MedMNIST archives: `{train,val,test}_{images,labels}` in one .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.parsed import ParsedLayout
from samadapt.types import SamAdaptError

_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
    "lung-right", "pancreas", "spleen",
)  # fmt: skip
#: Data set -> its classes in the order of their numbers, as the `medmnist` package (version 2.1, `info.py`) calls them. The
#: grades of RetinaMNIST have numbers for names.
CLASSES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast",
        "immature granulocytes (myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte",
        "neutrophil", "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    **dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), _ORGANS),
}  # fmt: skip

_PARTS: tuple[Part, ...] = ("train", "val", "test")


def is_npz(path: Path) -> bool:
    """An .npz file; whether it is MedMNIST's is checked when it is read."""
    return path.is_file() and io.is_npz(path)


def read_npz(path: Path, label_column: str | None) -> ParsedLayout:
    """Cases are called `test_00042`: their part and row. MedMNIST says nothing of patients."""
    arrays = io.open_npz(path)
    expected = {f"{part}_{what}" for part in _PARTS for what in ("images", "labels")}
    differing = sorted(expected ^ set(arrays.headers))
    if differing:
        kind = "is missing" if differing[0] in expected else "is not one of them"
        raise SamAdaptError(
            f"{path}: array {differing[0]!r} {kind}; expected exactly {', '.join(sorted(expected))}"
        )
    colours = {_check_images(arrays, part) for part in _PARTS}
    if len(colours) > 1:
        raise SamAdaptError(f"{path}: some parts are grey, some RGB; expected one kind")
    labels = {part: _labels(arrays, part) for part in _PARTS}
    widths = {part: label.shape[1] for part, label in labels.items()}
    if len(set(widths.values())) > 1:
        raise SamAdaptError(f"{path}: the labels have different widths {widths}; expected one")
    multilabel = widths["train"] > 1
    highest = max(int(label.max()) for label in labels.values())
    if multilabel and highest > 1:
        raise SamAdaptError(f"{path}: a label of several columns has the value {highest}; expected 0 or 1")
    count = widths["train"] if multilabel else max(2, highest + 1)
    entries = [
        Entry(
            f"{part}_{row:05d}",
            (path,),
            target=tuple(map(float, values)) if multilabel else int(values[0]),
            part=part,
            row=row,
        )
        for part in _PARTS
        for row, values in enumerate(labels[part])
    ]
    return ParsedLayout(
        entries=entries,
        classes=_names(path, count),
        classes_once_numbered=True,
        channel_names=("red", "green", "blue") if colours.pop() else ("image",),
        multilabel=multilabel,
        window="none",
        depth="uint8",
    )


def _names(path: Path, count: int) -> tuple[str, ...]:
    """The names of the classes, where the file is called as one of MedMNIST's (also `NAME_64.npz`) and has as many."""
    known = CLASSES.get(path.stem.lower().partition("_")[0], ())
    return known if len(known) == count else tuple(map(str, range(count)))


def _check_images(arrays: io.NpzArrays, part: Part) -> bool:
    """Whether they are RGB."""
    shape, dtype = arrays.headers[f"{part}_images"]
    colour = len(shape) == 4 and shape[3] == 3
    if dtype != np.uint8 or not (len(shape) == 3 or colour) or 0 in shape:
        raise SamAdaptError(
            f"{arrays.path}: {part}_images is {dtype} {shape}; expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    return colour


def _labels(arrays: io.NpzArrays, part: Part) -> np.ndarray:
    """(N, L) integers from 0."""
    shape, dtype = arrays.headers[f"{part}_labels"]
    if dtype.kind not in "iu" or len(shape) != 2 or 0 in shape:
        raise SamAdaptError(
            f"{arrays.path}: {part}_labels is {dtype} {shape}; expected integers (N, 1), or (N, L) of 0 and 1"
        )
    images = arrays.headers[f"{part}_images"][0][0]
    if shape[0] != images:
        raise SamAdaptError(
            f"{arrays.path}: {part} has {images} images and {shape[0]} labels; expected one for each"
        )
    labels = arrays.read(f"{part}_labels")
    if labels.min() < 0:
        raise SamAdaptError(f"{arrays.path}: {part}_labels has the value {labels.min()}; expected 0 or above")
    return labels
