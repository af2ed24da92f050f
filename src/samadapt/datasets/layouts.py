"""`open_dataset`: which layout a folder or file has, told by its content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samadapt.datasets import folders, medmnist, nnunet, pictures, tables
from samadapt.datasets.dataset import Dataset
from samadapt.datasets.found import Found
from samadapt.datasets.groups import assign_groups
from samadapt.types import SamAdaptError, Task


@dataclass(frozen=True)
class Layout:
    """How to tell a layout and how to read it."""

    name: str
    shape: str  # what it looks like, for people
    task: Task
    told: Callable[[Path], bool]
    read: Callable[[Path, str | None], Found]


#: In the order in which they are tried.
LAYOUTS: tuple[Layout, ...] = (
    Layout("MedMNIST", "NAME.npz", "classification", medmnist.is_npz, medmnist.read_npz),
    Layout("MSD", "dataset.json with a list `training`", "segmentation", nnunet.is_msd, nnunet.read_msd),
    Layout(
        "nnU-Net raw",
        "dataset.json, imagesTr/, labelsTr/",
        "segmentation",
        nnunet.is_nnunet,
        nnunet.read_nnunet,
    ),
    Layout(
        "images and masks",
        "images/, masks/ (or labels/)",
        "segmentation",
        folders.is_pairs,
        folders.read_pairs,
    ),
    Layout("ACDC", "PATIENT/*_gt.nii.gz", "segmentation", folders.is_acdc, folders.read_acdc),
    Layout("images and a table", "labels.csv, images", "classification", tables.is_table, tables.read_table),
    Layout("class folders", "CLASS/*.png", "classification", pictures.is_classes, pictures.read_classes),
)


def open_dataset(
    path: str | Path,
    *,
    task: Task | None = None,
    slice_axis: int | None = None,
    group: str | Path | None = None,
    channels: Sequence[int | str] | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """A folder or file -> its cases. Nothing but names, headers and small tables is read.

    Args:
        task: where the data set has both masks and a table of labels (ISIC); segmentation when not told.
        slice_axis: the file axis that becomes D; None: per file, the only one of length 1 or the thickest.
        group: tells patients apart: a regular expression with one group, a .csv of case and patient, or a
            column of the data set's table.
        channels: names or numbers of the channels to use, one or three; None: all.
        label_column: of the table; several, comma-separated, are one number for each class.
        classes: other names for the classes, in their order.
    """
    path = Path(path)
    if not path.exists():
        raise SamAdaptError(f"{path} does not exist; give a data set's folder, its .npz or its .csv")
    told = {
        "group": None if group is None else str(group),
        "label_column": label_column,
        "classes": None if classes is None else list(classes),
    }
    layout = _layout(path, task)
    found = layout.read(path, label_column)
    root = path if path.is_dir() else path.parent
    entries, rule = assign_groups(found, root, group)
    data = Dataset(
        name=found.name or (path.stem if path.is_file() else path.resolve().name),
        root=root,
        layout=layout.name,
        task=layout.task,
        classes=found.classes,
        entries=entries,
        channel_names=found.channel_names,
        channels=_channels(found, channels),
        multilabel=found.multilabel,
        window=found.window,
        slice_axis=slice_axis,
        label_values=found.label_values,
        group_rule=rule,
        folds=found.folds,
        options={k: v for k, v in told.items() if v is not None},
    )
    return data if classes is None else _renamed(data, classes)


def _layout(path: Path, task: Task | None) -> Layout:
    fitting = [layout for layout in LAYOUTS if task in (None, layout.task) and layout.told(path)]
    if fitting:
        return fitting[0]
    known = "; ".join(f"{layout.name}: {layout.shape}" for layout in LAYOUTS if task in (None, layout.task))
    wanted = f" for {task}" if task else ""
    raise SamAdaptError(f"{path} has no layout that is known{wanted}. Known are {known}")


def _channels(found: Found, wanted: Sequence[int | str] | None) -> tuple[int, ...] | None:
    names = found.channel_names
    chosen = found.channels if wanted is None else tuple(_channel(found, one) for one in wanted)
    count = len(names) if chosen is None else len(chosen)
    if count not in (1, 3):
        raise SamAdaptError(
            f"{count} channels ({', '.join(names)}); an encoder sees one (grey) or three (colours): choose with "
            "channels, e.g. --channels 0"
        )
    return chosen


def _channel(found: Found, wanted: int | str) -> int:
    names = found.channel_names
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    number = int(wanted) if str(wanted).isdigit() else -1
    if not 0 <= number < len(names):
        listed = ", ".join(f"{n} {name}" for n, name in enumerate(names))
        raise SamAdaptError(f"there is no channel {wanted!r}; the data set has {listed}")
    return number


def _renamed(data: Dataset, classes: Sequence[str]) -> Dataset:
    if len(classes) != len(data.classes):
        raise SamAdaptError(
            f"{len(classes)} class names were given; the data set has {len(data.classes)}: {', '.join(data.classes)}"
        )
    return dataclasses.replace(data, classes=tuple(classes))
