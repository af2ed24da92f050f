"""`open_dataset`: the layout of a folder or file is detected automatically from its content."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samadapt import io
from samadapt.datasets import adopted, bids, dicom, folders, medmnist, nnunet, organs, pictures, tables
from samadapt.datasets.anonymous import NONE, NameKey, find_key, open_key
from samadapt.datasets.csvs import is_csv
from samadapt.datasets.dataset import Dataset, Entry
from samadapt.datasets.groups import assign_groups
from samadapt.datasets.inside import demand_inside
from samadapt.datasets.parsed import ParsedLayout
from samadapt.opening import Opening, plain_modality
from samadapt.types import SamAdaptError, SamAdaptWarning, Task

_RESERVED = ("all", "mean")


@dataclass(frozen=True)
class Layout:
    """How a layout is detected and how it is read."""

    name: str
    shape: str  # what it looks like, for people
    task: Task
    matches: Callable[[Path], bool]
    read: Callable[[Path, str | None], ParsedLayout]


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
        "DICOM",
        "DICOM series in any nesting, with DICOM SEG, RTSTRUCT, or label maps called as the series' folders",
        "segmentation",
        dicom.is_dicom,
        dicom.read_dicom,
    ),
    Layout(
        "images and masks",
        "images/, masks/ (or labels/)",
        "segmentation",
        folders.is_pairs,
        folders.read_pairs,
    ),
    Layout("BIDS", "sub-*/, derivatives/**/*_dseg.nii.gz", "segmentation", bids.is_bids, bids.read_bids),
    Layout(
        "TotalSegmentator",
        "CASE/ct.nii.gz, CASE/segmentations/ORGAN.nii.gz",
        "segmentation",
        organs.is_organs,
        organs.read_organs,
    ),
    Layout(
        "masks beside images",
        "NAME.*, NAME_gt.*, NAME_mask.*, NAME_seg.*, also in folders of patients (ACDC) or classes (BUSI)",
        "segmentation",
        folders.is_beside,
        folders.read_beside,
    ),
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
    prefer: Task | None = None,
    structures: Sequence[str] = (),
    modality: str | None = None,
    anonymous: str | Path | None = None,
    allow_outside: bool = False,
) -> Dataset:
    """A folder or file -> its cases. Nothing but names, headers and small tables is read.

    Args:
        task: where it has both masks and a table of labels (ISIC); segmentation by default.
        slice_axis: the axis, of files stored as most are, that becomes D; None: that of most files' thickest slices.
        group: assigns cases to patients: a regular expression with one group, a .csv of case and patient, or a column of its table.
        channels: names or numbers of the channels to use, one or three; None: all.
        label_column: of the table; several, comma-separated, are one number for each class.
        classes: other names for the classes, in their order.
        prefer: the task to open for where the data set has labels for both and `task` is not given.
        structures: of labels that name them (SEG, RTSTRUCT): which are the classes, in this order, in which the first one is
            kept where they overlap; (): all, and an overlap is an error.
        modality: of the scans; None: as the data set or the headers say it.
        anonymous: a file that keeps the secret with which names are coded; None: they are as they are.
        allow_outside: whether files may lie outside of the folder, through links, `..` or absolute paths in lists.
    """
    path = Path(path)
    layout, found = _read(path, find_layout(path, task, prefer=prefer), task, label_column, allow_outside)
    found = _chosen(found, structures, path) if structures else found
    if found.structures:
        dicom.say_structures(found, found.classes, path)
    entries, rule = assign_groups(found, _root(path), group)
    left_out = _left_out(path, entries, named=anonymous is None)
    kind = _modality(found, entries, path, modality)
    opening = Opening(
        task=layout.task,
        classes=found.classes if classes is None else _renamed(found, classes),
        layout=layout.name,
        multilabel=found.multilabel,
        channel_names=found.channel_names,
        channels=_channels(found, channels),
        depth=found.depth or (io.depth_of(entries[0].images[0]) if entries else None),
        window=_window(found, entries[0].images[0], kind) if entries else "percentile",
        plane=io.common_plane(_readable_geometries(entries), slice_axis),
        label_values=found.label_values,
        stored_classes=() if classes is None else found.classes,
        label_column=label_column,
        group=_absolute(group),
        group_rule=rule,
        structures_chosen=bool(structures),
        modality=kind,
    )
    about = _name(path, found), _root(path)
    data = Dataset(*about, opening, entries, found.folds, left_out, allow_outside, modality is not None)
    return _hidden(data, None if anonymous in (None, NONE) else open_key(anonymous))  # type: ignore[arg-type]


def _hidden(data: Dataset, key: NameKey | None) -> Dataset:
    """With codes in place of the names of cases and patients, where there is a key."""
    if key is None:
        return data
    entries = key.hide(data.entries)
    patients = len({entry.group for entry in entries})
    rule = f"{len(entries)} cases of {patients} patients, whose names are codes (--anonymous)"
    opening = replace(data.opening, group_rule=rule, anonymous=key.recorded)
    return replace(data, opening=opening, entries=entries, folds=key.hide_folds(data.folds))


def _files(entries: Sequence[Entry]) -> Iterator[Path]:
    """All that a data set reads for its cases."""
    return (file for entry in entries for file in (*entry.images, *entry.labels))


def open_like(
    path: str | Path,
    opening: Opening,
    recorded: Mapping[str, str] | None = None,
    labelled: bool = True,
    *,
    modality: str | None = None,
    anonymous: str | None = None,
    allow_outside: bool = False,
) -> Dataset:
    """Another data set, or the same one again, as the one of `opening` was opened; what does not fit is refused.

    Args:
        opening: of the data set that a model was trained on, or that was predicted.
        recorded: case -> patient of that data set, for where the rule of `opening` cannot be applied.
        labelled: whether its labels are needed; without them, its classes may be others.
        modality: of its scans, whatever it says itself.
        anonymous: as for `open_dataset`; None: as `opening` says, "none": names are as they are.
        allow_outside: as for `open_dataset`.
    """
    path = Path(path)
    key = find_key(anonymous, opening)
    layout = find_layout(path, opening.task, opening.layout)
    layout, found = _read(path, layout, opening.task, opening.label_column, allow_outside)
    root = _root(path)
    if modality is None:
        opening.demand_modality(_declared_modality(found), path)
    entries, rule = adopted.group_like(found, root, opening.group, recorded or {})
    left_out = _left_out(path, entries, named=key is None)  # before labels that are not needed are dropped
    if labelled and found.structures:
        dicom.say_structures(found, opening.stored_classes or opening.classes, path)
    entries, opening = adopted.adopt(entries, found, opening, path, labelled)
    opening = replace(opening, layout=layout.name, group_rule=rule, anonymous="")
    data = Dataset(_name(path, found), root, opening, entries, found.folds, left_out, allow_outside)
    return _hidden(data, key)


def find_layout(
    path: str | Path, task: Task | None = None, preferred: str = "", prefer: Task | None = None
) -> Layout | None:
    """The layout that a folder or file has; None where it has none that is known, as a folder of scans.

    Args:
        preferred: the name of the one to take where several fit.
        prefer: the task of the one to take where several fit.
    """
    path = Path(path)
    if not path.exists():
        raise SamAdaptError(f"{path} does not exist; give a data set's folder, its .npz or its .csv")
    likely = sorted(LAYOUTS, key=lambda layout: (layout.name != preferred, prefer not in (None, layout.task)))
    return next((layout for layout in likely if task in (None, layout.task) and layout.matches(path)), None)


def _read(
    path: Path, layout: Layout | None, task: Task | None, label_column: str | None, allow_outside: bool
) -> tuple[Layout, ParsedLayout]:
    if layout is not None:
        found = layout.read(path, label_column)
        listed = [
            file for file in _files(found.entries) if file != path
        ]  # the user named it, wherever it leads
        demand_inside(listed, _root(path), allow_outside)
        _demand_names(found, path)
        _demand_text(found.entries, _root(path))
        return layout, found
    known = "; ".join(f"{layout.name}: {layout.shape}" for layout in LAYOUTS if task in (None, layout.task))
    wanted = f" for {task}" if task else ""
    if path.is_dir() and (strange := io.in_words(io.list_files(path, recursive=True).left_out, path)):
        wanted += f"; it has {strange}"
    raise SamAdaptError(f"{path} has no known layout{wanted}. Known layouts: {known}")


def _demand_names(found: ParsedLayout, path: Path) -> None:
    """Class names are written into tables and file headers, where some words are reserved."""
    for name in found.classes:
        if name in _RESERVED:
            problem = "which is what the tables of scores call the average over the classes"
        elif not name.strip() or "\n" in name:
            problem = "which cannot be shown in a table"
        elif found.classes.count(name) > 1:
            problem = "and another one the same"
        else:
            continue
        raise SamAdaptError(
            f"{path} calls a class {name!r}, {problem}; rename it in the data set (dataset.json, the folder, the table)"
        )


def _demand_text(entries: Sequence[Entry], root: Path) -> None:
    """Names that are not UTF-8, which are kept as surrogates, fit into no CSV or JSON file."""
    for entry in entries:
        for file in entry.images:
            name = str(file.relative_to(root)) if file.is_relative_to(root) else file.name
            if any("\ud800" <= character <= "\udfff" for character in name):
                raise SamAdaptError(
                    f"the file name {os.fsencode(name)!r} below {root} is not UTF-8; rename the file"
                )


def _left_out(path: Path, entries: Sequence[Entry], named: bool) -> tuple[tuple[Path, str], ...]:
    """Images and what looks like images below the folder that belong to no case; one warning lists them."""
    if not path.is_dir():
        return ()
    used = {file for entry in entries for file in (*entry.images, *entry.labels)}
    left_out = io.not_used(io.list_files(path, recursive=True), used)
    if left_out:
        which = (
            io.in_words(left_out, path) if named else f"{len(left_out)} files (not named, for --anonymous)"
        )
        warnings.warn(f"left out of {path}: {which}", SamAdaptWarning, stacklevel=4)
    return left_out


def told_modality(modality: str) -> str:
    """What a user called a modality, as DICOM calls it; refused where that is none."""
    if not (known := plain_modality(modality)):
        raise SamAdaptError(
            f"--modality is {modality!r}; expected CT, MR, PT, US, DX or another modality as DICOM calls it"
        )
    return known


def _declared_modality(found: ParsedLayout) -> str:
    """As the channels are called, where all are of one; "" where that says nothing."""
    told = {plain_modality(name) for name in found.channel_names}
    return told.pop() if len(told) == 1 else ""


def _modality(found: ParsedLayout, entries: Sequence[Entry], path: Path, told: str | None) -> str:
    """As it was told, else as the headers of the images or the names of the channels say it; a mixture is refused."""
    if told is not None:
        return told_modality(told)
    first: dict[str, Path] = {}
    labelled = [entry for entry in entries if entry.labels or entry.target is not None]
    for entry in labelled or entries:  # others are not learned from, as the PET beside a labelled CT
        if kind := plain_modality(io.modality_of(entry.images[0])) if entry.row is None else "":
            first.setdefault(kind, entry.images[0])
    if len(first) > 1:
        (one, file), (other, second) = list(first.items())[:2]
        raise SamAdaptError(
            f"{path} mixes {one}, as {file}, and {other}, as {second}; expected one modality, for intensities mean something else "
            "in another: put the scans into data sets of their own, or say how all are to be taken (--modality)"
        )
    return next(iter(first), "") or _declared_modality(found)


def _window(found: ParsedLayout, first: Path, modality: str) -> str:
    """The data set's own intensity window, else the default one."""
    return found.window if found.window is not None else default_window(first, modality)


def default_window(first: Path, modality: str) -> str:
    """The intensity window where none is asked for: Hounsfield units for CT, none for 8-bit pictures, percentiles for the rest.

    Args:
        first: an image file of the data set.
        modality: of its scans, as DICOM calls it.
    """
    if modality == "CT" and not io.is_picture(first):
        return "ct"
    return "none" if io.depth_of(first) == "uint8" else "percentile"


def _name(path: Path, found: ParsedLayout) -> str:
    return found.name or (path.stem if path.is_file() else path.resolve().name)


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _absolute(group: str | Path | None) -> str | None:
    """The absolute path of a table of patients, so that it is found again from any folder."""
    if group is None or not is_csv(group):
        return None if group is None else str(group)
    return str(Path(group).resolve())


def _readable_geometries(entries: Sequence[Entry]) -> Iterator[io.Geometry]:
    """Of the volumes. A file that cannot be read raises its error when it is read as a case; it must not hide the others."""
    for path in (e.images[0] for e in entries if e.row is None and not io.is_picture(e.images[0])):
        with contextlib.suppress(SamAdaptError):
            yield io.read_geometry(path)


def _channels(found: ParsedLayout, wanted: Sequence[int | str] | None) -> tuple[int, ...] | None:
    names = found.channel_names
    chosen = found.channels if wanted is None else tuple(_channel(found, one) for one in wanted)
    count = len(names) if chosen is None else len(chosen)
    if count not in (1, 3):
        raise SamAdaptError(
            f"{count} channels ({', '.join(names)}); an encoder sees one (grey) or three (colours): choose with "
            "channels, e.g. --channels 0"
        )
    return chosen


def _channel(found: ParsedLayout, wanted: int | str) -> int:
    names = found.channel_names
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    number = int(wanted) if str(wanted).isdigit() else -1
    if not 0 <= number < len(names):
        listed = ", ".join(f"{n} {name}" for n, name in enumerate(names))
        raise SamAdaptError(f"there is no channel {wanted!r}; the data set has {listed}")
    return number


def _chosen(found: ParsedLayout, structures: Sequence[str], path: Path) -> ParsedLayout:
    """With these structures alone as the classes."""
    if not found.structures:
        raise SamAdaptError(
            f"structures were chosen ({', '.join(structures)}), and the labels of {path} do not name any; this is for DICOM SEG "
            "and RTSTRUCT"
        )
    unknown = [name for name in structures if name not in found.classes[1:]]
    if unknown or len(set(structures)) < len(structures):
        raise SamAdaptError(
            f"structures are {', '.join(structures)}; expected some of {', '.join(found.classes[1:])}, each once"
        )
    values = {number: number for number in range(len(structures) + 1)}
    return replace(found, classes=("background", *structures), label_values=values)


def _renamed(found: ParsedLayout, classes: Sequence[str]) -> tuple[str, ...]:
    if len(classes) != len(found.classes):
        raise SamAdaptError(
            f"{len(classes)} class names were given; the data set has {len(found.classes)}: {', '.join(found.classes)}"
        )
    return tuple(classes)
