"""nnU-Net raw and the Medical Segmentation Decathlon: `dataset.json` beside imagesTr/ and labelsTr/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.found import Found, read_json, window_of
from samadapt.types import IGNORED, SamAdaptError


def is_msd(path: Path) -> bool:
    """A `dataset.json` that lists its training pairs."""
    file = path / "dataset.json"
    return file.is_file() and "training" in read_json(file)


def is_nnunet(path: Path) -> bool:
    """A `dataset.json` with `channel_names`."""
    file = path / "dataset.json"
    return file.is_file() and "channel_names" in read_json(file)


def read_nnunet(path: Path, label_column: str | None) -> Found:
    """`imagesTr/CASE_0000.EXT` with `labelsTr/CASE.EXT`; `imagesTs` as a test part, labelled if `labelsTs` is."""
    file = path / "dataset.json"
    about = read_json(file)
    suffix = str(about.get("file_ending", ".nii.gz"))
    if suffix not in io.IMAGE_SUFFIXES:
        raise SamAdaptError(f"{file}: file_ending is {suffix!r}; known: {', '.join(io.IMAGE_SUFFIXES)}")
    names = tuple(str(about["channel_names"][key]) for key in sorted(about["channel_names"], key=int))
    classes, values = _classes(about.get("labels"), file)
    entries = _entries(path, suffix, len(names), "Tr") + _entries(path, suffix, len(names), "Ts")
    return Found(
        entries=entries,
        classes=classes,
        name=about.get("name"),
        channel_names=names,
        window=window_of(entries[0].images[0], names),
        label_values=values,
        folds=_folds(path / "splits_final.json"),
    )


def _entries(path: Path, suffix: str, n_channels: int, end: str) -> list[Entry]:
    images, labels = path / f"images{end}", path / f"labels{end}"
    if not images.is_dir() and end == "Ts":
        return []
    files = [f for f in io.find_files(images) if io.suffix_of(f) == suffix] if images.is_dir() else []
    if not files and end == "Tr":
        raise SamAdaptError(
            f"{images} holds no CASE_0000{suffix}; see file_ending in {path / 'dataset.json'}"
        )
    cases = io.group_channels(files, n_channels)
    if n_channels > 1 and any(len(found) != n_channels for found in cases.values()):
        raise SamAdaptError(
            f"{files[0]} is not called CASE_0000{suffix}; the data set has {n_channels} channels, a file for each"
        )
    masks = {io.case_name(f): f for f in io.find_files(labels)} if labels.is_dir() else {}
    alone = sorted(set(masks) - set(cases))
    if alone:
        raise SamAdaptError(f"{masks[alone[0]]} has no image; expected {images / alone[0]}_0000{suffix}")
    part: Part | None = "test" if end == "Ts" else None
    return [Entry(name, files, masks.get(name), part=part) for name, files in sorted(cases.items())]


def _classes(labels: Any, file: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """nnU-Net's {name: value} -> class names in order, and stored value -> class."""
    if not isinstance(labels, Mapping) or not labels:
        raise SamAdaptError(
            f"{file}: labels is {labels!r}; expected names with numbers, e.g. {{'background': 0}}"
        )
    numbers: dict[int, str] = {}
    for name, value in labels.items():
        if isinstance(value, list):
            raise SamAdaptError(
                f"{file}: label {name!r} is a region {value}; overlapping regions are not supported: declare plain classes"
            )
        if not str(value).isdigit() or int(value) in numbers or int(value) > 254:
            raise SamAdaptError(
                f"{file}: label {name!r} has the value {value!r}; expected a number of its own, 0..254"
            )
        numbers[int(value)] = str(name)
    ignore = [value for value, name in numbers.items() if name == "ignore"]
    classes = {value: name for value, name in sorted(numbers.items()) if name != "ignore"}
    _demand_consecutive(classes, file)
    return tuple(classes.values()), {**{v: v for v in classes}, **{v: IGNORED for v in ignore}}


def _demand_consecutive(classes: Mapping[int, str], file: Path) -> None:
    if list(classes) != list(range(len(classes))) or len(classes) < 2:
        raise SamAdaptError(
            f"{file}: the label values are {list(classes)}; expected 0 (background), 1, 2, ... without gaps"
        )


def _folds(file: Path) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    if not file.is_file():
        return ()
    content = read_json(file)
    try:
        return tuple((tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in content)
    except (TypeError, KeyError) as error:
        raise SamAdaptError(
            f"{file}: expected a list of {{'train': [...], 'val': [...]}}; missing: {error}"
        ) from error


def read_msd(path: Path, label_column: str | None) -> Found:
    """`training: [{image, label}]` with labels {value: name}. A fourth file axis is the channels (`modality`)."""
    file = path / "dataset.json"
    about = read_json(file)
    modality = about.get("modality", {"0": "image"})
    names = tuple(str(modality[key]) for key in sorted(modality, key=int))
    labels = about.get("labels")
    if not isinstance(labels, Mapping) or not all(str(value).isdigit() for value in labels):
        raise SamAdaptError(
            f"{file}: labels is {labels!r}; expected numbers with names, e.g. {{'0': 'background'}}"
        )
    classes = {int(value): str(name) for value, name in sorted(labels.items(), key=lambda item: int(item[0]))}
    _demand_consecutive(classes, file)
    entries = [_msd_entry(path, item, len(names), file) for item in about["training"]]
    tests = [item if isinstance(item, str) else item.get("image") for item in about.get("test", [])]
    entries += [
        Entry(io.case_name(path / name), (path / name,), part="test")
        for name in tests
        if (path / name).is_file()
    ]
    if not entries:
        raise SamAdaptError(f"{file}: `training` is empty; expected a list of image and label files")
    stacked = len(names) > 1 and len(entries[0].images) == 1
    return Found(
        entries=entries,
        classes=tuple(classes.values()),
        name=about.get("name"),
        channel_names=names,
        channels=tuple(range(len(names))) if stacked else None,
        window=window_of(entries[0].images[0], names),
        label_values={value: value for value in classes},
        folds=_folds(path / "splits_final.json"),
    )


def _msd_entry(path: Path, item: Any, n_channels: int, file: Path) -> Entry:
    if not isinstance(item, Mapping) or "image" not in item or "label" not in item:
        raise SamAdaptError(
            f"{file}: `training` has the item {item!r}; expected {{'image': ..., 'label': ...}}"
        )
    image, label = path / item["image"], path / item["label"]
    suffix = io.suffix_of(image)
    name = io.case_name(image)
    # nnU-Net's first version listed `case.nii.gz` and stored `case_0000.nii.gz`.
    split = tuple(image.with_name(f"{name}_{channel:04d}{suffix}") for channel in range(n_channels))
    images = (image,) if image.is_file() or not split[0].is_file() else split
    for needed in (*images, label):
        if not needed.is_file():
            raise SamAdaptError(
                f"{file} lists {needed}, which does not exist; copy it or remove it from the list"
            )
    return Entry(name, images, label)
