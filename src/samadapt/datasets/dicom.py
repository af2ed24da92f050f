"""Folders of DICOM series, in any nesting, with labels as SEG, as RTSTRUCT, or as label maps called after the series."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt import io
from samadapt.datasets.dataset import Entry
from samadapt.datasets.masks import classes_from_values, find_masks
from samadapt.datasets.parsed import ParsedLayout
from samadapt.datasets.pictures import channel_names
from samadapt.types import SamAdaptError, SamAdaptWarning

_Files = tuple[list[Path], list[Path], list[Path]]


def _sorted_out(path: Path) -> _Files:
    """The scans, the labels that name their structures, and the volumes of other formats below a folder."""
    files = io.list_files(path, recursive=True).files if path.is_dir() else ()
    structures = [file for file in files if io.structures_of(file)]
    scans = [file for file in files if io.is_found_by_content(file)]
    known = {*structures, *scans}
    return scans, structures, [file for file in files if file not in known and not io.is_picture(file)]


def is_dicom(path: Path) -> bool:
    """DICOM scans of which some have labels."""
    scans, structures, volumes = _sorted_out(path)
    return bool(scans) and (bool(structures) or bool(_label_maps(io.scan_names(scans, path), volumes)))


def read_dicom(path: Path, label_column: str | None) -> ParsedLayout:
    """Each series is a case. SEG and RTSTRUCT belong to the series that they refer to, `NAME.nii.gz` or `NAME_seg.nii.gz`
    to the series in the folder NAME. Structures are told by their names."""
    scans, structures, volumes = _sorted_out(path)
    io.demand_one_folder(scans)
    names = io.scan_names(scans, path)
    named, maps = _structures(scans, structures), _label_maps(names, volumes)
    if named and maps:
        one, other = next(iter(named.values()))[0], next(iter(maps.values()))[0]
        raise SamAdaptError(
            f"{path} has labels that name their structures, as {one}, and label maps of numbers, as {other}; expected one "
            "kind: move the others elsewhere"
        )
    if not named and not maps:
        raise SamAdaptError(
            f"none of the {len(structures)} labels below {path}, as {structures[0]}, refers to one of its {len(scans)} scans; "
            "expected the series that they were made on beside them"
        )
    labels = named or maps
    entries = [
        Entry(names[scan], (scan,), labels.get(scan, ())) for scan in sorted(scans, key=lambda s: names[s])
    ]
    channels = channel_names(entries[0].images[0])
    if maps:
        classes, values = classes_from_values([file for files in maps.values() for file in files], path)
        return ParsedLayout(
            entries, classes, classes_declared=False, channel_names=channels, label_values=values
        )
    inside = _names(named)
    classes = ("background", *_in_order(inside))
    values = {number: number for number in range(len(classes))}
    return ParsedLayout(
        entries,
        classes,
        classes_declared=False,
        channel_names=channels,
        label_values=values,
        structures=inside,
    )


def say_structures(found: ParsedLayout, classes: Sequence[str], path: Path) -> None:
    """Warn of scans of which several files have the same structure, and of labelled scans that have none that is used.

    Files of one structure are united, as of several lesions; where they share voxels, as those of two raters do, reading the
    case refuses them.

    Args:
        classes: those that are used; the first is the background. Other structures are not looked at.
    """
    without: dict[str, list[str]] = {}
    several: dict[str, str] = {}
    for entry in found.entries:
        told: dict[str, Path] = {}
        for file in entry.labels:
            for name in found.structures[file]:
                if name in classes and told.setdefault(name, file) != file:
                    several.setdefault(
                        entry.id, f"{name!r} of {entry.id!r} in {told[name].name} and {file.name}"
                    )
        if entry.labels and not told:
            without[entry.id] = sorted({name for file in entry.labels for name in found.structures[file]})
    if several:
        some = "; ".join(list(several.values())[:3])
        warnings.warn(
            f"{len(several)} cases of {path} have a structure in several files ({some}{'; ...' if len(several) > 3 else ''}); they "
            "are united, as several lesions, and refused where they share voxels; labels of a second rater belong elsewhere",
            SamAdaptWarning,
            stacklevel=3,
        )
    if without:
        some = "; ".join(f"{case} has {', '.join(names)}" for case, names in list(without.items())[:3])
        warnings.warn(
            f"{len(without)} labelled cases of {path} have none of the structures {', '.join(classes[1:])}, so they are taken as "
            f"background alone ({some}{'; ...' if len(without) > 3 else ''}); if a structure is only called otherwise there, "
            "give it one name in all files",
            SamAdaptWarning,
            stacklevel=3,
        )


def _structures(scans: Sequence[Path], structures: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """Scan -> the labels that refer to its series."""
    of_series: dict[str, list[Path]] = defaultdict(list)
    for scan in scans:
        of_series[io.series_uid(scan)].append(scan)
    found: dict[Path, tuple[Path, ...]] = {}
    for label in structures:
        refers = io.series_of_structures(label)
        meant = [scan for uid in refers if uid for scan in of_series.get(uid, ())]
        if len(meant) > 1:
            raise SamAdaptError(
                f"{label} refers to {len(meant)} scans, {meant[0]} and {meant[1]}; expected one: put the scans into data sets "
                "of their own"
            )
        for scan in meant:
            found[scan] = (*found.get(scan, ()), label)
    return found


def _label_maps(names: Mapping[Path, str], volumes: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """Scan -> the label map that is called as it is."""
    masks, _ = find_masks({name: [scan] for scan, name in names.items()}, volumes)
    return {scan: masks[name] for scan, name in names.items() if name in masks}


def _names(labels: Mapping[Path, Sequence[Path]]) -> dict[Path, tuple[str, ...]]:
    """Label -> the structures in it."""
    files = sorted({file for files in labels.values() for file in files})
    return {file: found.names(file) for file in files if (found := io.structures_of(file))}


def _in_order(structures: Mapping[Path, Sequence[str]]) -> list[str]:
    """The structures of all labels, by their place in the first file that has them; then by name."""
    place: dict[str, int] = {}
    for names in structures.values():
        for number, name in enumerate(names):
            place.setdefault(name, number)
    return sorted(place, key=lambda name: (place[name], name))
