"""nnU-Net raw and the Medical Segmentation Decathlon: `dataset.json` beside imagesTr/ and labelsTr/."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.parsed import ParsedLayout, read_json
from samadapt.types import IGNORED, SamAdaptError


def is_msd(path: Path) -> bool:
    """A `dataset.json` that lists its training pairs."""
    about = _about(path)
    return "training" in about and "channel_names" not in about


def is_nnunet(path: Path) -> bool:
    """A `dataset.json` with `channel_names`; a list `training` from an older version may stand beside it."""
    return "channel_names" in _about(path)


def _about(path: Path) -> Mapping[str, Any]:
    file = path / "dataset.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    if not isinstance(content, Mapping):
        raise SamAdaptError(
            f"{file} holds {str(content)[:40]!r}; expected an object with channel_names and labels"
        )
    return content


def read_nnunet(path: Path, label_column: str | None) -> ParsedLayout:
    """`imagesTr/CASE_0000.EXT` with `labelsTr/CASE.EXT`; `imagesTs` as a test part, labelled if `labelsTs` is."""
    file, about = path / "dataset.json", _about(path)
    suffix = str(about.get("file_ending", ".nii.gz"))
    if suffix not in io.known_suffixes():
        raise SamAdaptError(f"{file}: file_ending is {suffix!r}; known: {', '.join(io.known_suffixes())}")
    names = _names(about["channel_names"], "channel_names", file)
    classes, values = _classes(about.get("labels"), file)
    entries = _entries(path, suffix, len(names), "Tr") + _entries(path, suffix, len(names), "Ts")
    return ParsedLayout(
        entries=entries,
        classes=classes,
        name=_text(about.get("name")),
        channel_names=names,
        label_values=values,
        folds=_folds(path / "splits_final.json", {entry.id for entry in entries}),
    )


def _text(name: Any) -> str | None:
    return str(name) if name else None


def _names(content: Any, key: str, file: Path) -> tuple[str, ...]:
    """{number: name}, as it should be, {name: number}, a list of names or one name -> the names in order."""
    if isinstance(content, str):
        return (content,)
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return tuple(content)
    if isinstance(content, Mapping) and content:
        pairs = list(content.items())
        if not all(_is_number(number) for number, _ in pairs):
            pairs = [(number, name) for name, number in pairs]
        named = all(_is_number(n) and isinstance(name, str) for n, name in pairs)
        if named and sorted(int(n) for n, _ in pairs) == list(range(len(pairs))):
            return tuple(str(name) for _, name in sorted(pairs, key=lambda pair: int(pair[0])))
    raise SamAdaptError(f"{file}: {key} is {str(content)[:80]}; expected {{'0': NAME, '1': NAME, ...}}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    return (
        (0 <= value < 10**9)
        if isinstance(value, int)
        else value.isascii() and value.isdigit() and len(value) < 10
    )


def _entries(path: Path, suffix: str, n_channels: int, end: str) -> list[Entry]:
    images, labels = path / f"images{end}", path / f"labels{end}"
    if not images.is_dir() and end == "Ts":
        return []
    files = io.find_files(images, ending=suffix) if images.is_dir() else []
    if not files and end == "Tr":
        raise SamAdaptError(
            f"{images} holds no CASE_0000{suffix}; see file_ending in {path / 'dataset.json'}"
        )
    cases = _channel_files(files, n_channels, suffix, path / "dataset.json")
    masks = {io.case_name(f): f for f in io.find_files(labels)} if labels.is_dir() else {}
    alone = sorted(set(masks) - set(cases))
    if alone:
        raise SamAdaptError(f"{masks[alone[0]]} has no image; expected {images / alone[0]}_0000{suffix}")
    part: Part | None = "test" if end == "Ts" else None
    return [
        Entry(name, files, (masks[name],) if name in masks else (), part=part)
        for name, files in sorted(cases.items())
    ]


def _channel_files(
    files: list[Path], n_channels: int, suffix: str, about: Path
) -> dict[str, tuple[Path, ...]]:
    """Case -> its files: one for each channel, or one picture that holds three colours."""
    strays = [file for file in files if not io.has_channel_number(file)]
    if strays and len(strays) < len(files):
        raise SamAdaptError(
            f"{strays[0]} is not called CASE_0000{suffix} as the {len(files) - len(strays)} others are; rename it, or remove "
            "it if it is no image of the data set"
        )
    if strays and n_channels > 1:
        raise SamAdaptError(
            f"{files[0]} is not called CASE_0000{suffix}; the data set has {n_channels} channels, a file for each"
        )
    colours = n_channels == 3 and files and io.read_geometry(files[0]).channels == 3
    try:
        return io.group_channels(files, 1 if colours else n_channels)
    except SamAdaptError as error:
        raise SamAdaptError(f"{about}: channel_names declares {n_channels} channels; {error}") from error


def _classes(labels: Any, file: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """{name: value}, as nnU-Net has it, or {value: name}, as MSD -> class names in order, and stored value -> class."""
    if not isinstance(labels, Mapping) or not labels:
        raise SamAdaptError(
            f"{file}: labels is {labels!r}; expected names with numbers, e.g. {{'background': 0}}"
        )
    pairs: list[tuple[Any, Any]] = [(name, value) for name, value in labels.items()]
    if all(_is_number(value) for value in labels) and all(isinstance(name, str) for name in labels.values()):
        pairs = [(name, value) for value, name in labels.items()]
    numbers: dict[int, str] = {}
    for name, value in pairs:
        if isinstance(value, list):
            raise SamAdaptError(
                f"{file}: label {name!r} is a region {value}; overlapping regions are not supported: declare plain classes"
            )
        if not _is_number(value) or int(value) in numbers or int(value) > 254:
            raise SamAdaptError(
                f"{file}: label {name!r} has the value {value!r}; expected a number of its own, 0..254"
            )
        numbers[int(value)] = str(name)
    ignore = [value for value, name in numbers.items() if name == "ignore"]
    classes = {value: name for value, name in sorted(numbers.items()) if name != "ignore"}
    _demand_background_first(classes, file)
    return tuple(classes.values()), {**{v: v for v in classes}, **{v: IGNORED for v in ignore}}


def _demand_background_first(classes: Mapping[int, str], file: Path) -> None:
    if list(classes) != list(range(len(classes))) or len(classes) < 2:
        raise SamAdaptError(
            f"{file}: the values in labels are {list(classes)}; expected 0 (background), 1, 2, ... without gaps"
        )
    elsewhere = [value for value, name in classes.items() if value and name.lower() == "background"]
    if elsewhere:
        raise SamAdaptError(
            f"{file}: labels gives background the value {elsewhere[0]} and {classes[0]!r} the value 0; expected background "
            "to be 0: number the labels anew, in the files too"
        )


def _folds(file: Path, cases: Collection[str]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    if not file.is_file():
        return ()
    content = read_json(file)
    expected = "expected a list of {'train': [CASE, ...], 'val': [CASE, ...]}"
    if not isinstance(content, list) or not content:
        raise SamAdaptError(f"{file} holds {str(content)[:60]!r}; {expected}")
    folds = []
    for number, fold in enumerate(content):
        lists = [fold.get(key) if isinstance(fold, Mapping) else None for key in ("train", "val")]
        if not all(isinstance(names, list) for names in lists):
            raise SamAdaptError(f"{file}: fold {number} is {str(fold)[:60]!r}; {expected}")
        train, val = ([str(name).strip() for name in names or []] for names in lists)
        every = [*train, *val]
        if strange := next((name for name in every if name not in cases), None):
            raise SamAdaptError(
                f"{file}: fold {number} names {strange!r}, which is no case of the data set; correct the list"
            )
        if twice := next((name for name in every if every.count(name) > 1), None):
            where = "in train and in val" if twice in train and twice in val else "twice"
            raise SamAdaptError(f"{file}: fold {number} has {twice!r} {where}; correct the lists")
        folds.append((tuple(train), tuple(val)))
    return tuple(folds)


def read_msd(path: Path, label_column: str | None) -> ParsedLayout:
    """`training: [{image, label}]` with labels {value: name}. A fourth file axis is the channels (`modality`)."""
    file, about = path / "dataset.json", _about(path)
    names = _names(about.get("modality", {"0": "image"}), "modality", file)
    classes, values = _classes(about.get("labels"), file)
    if not isinstance(about["training"], list) or not about["training"]:
        raise SamAdaptError(
            f"{file}: training is {str(about['training'])[:60]!r}; expected a list of {{'image': ..., 'label': ...}}"
        )
    entries = [_msd_entry(path, item, len(names), file) for item in about["training"]]
    listed = about.get("test") or []
    if not isinstance(listed, list):
        raise SamAdaptError(f"{file}: `test` is {str(listed)[:60]!r}; expected a list of image files")
    tests = [_test_image(item, file) for item in listed]
    entries += [
        Entry(io.case_name(path / name), (path / name,), part="test")
        for name in tests
        if (path / name).is_file()
    ]
    stacked = len(names) > 1 and len(entries[0].images) == 1
    return ParsedLayout(
        entries=entries,
        classes=classes,
        name=_text(about.get("name")),
        channel_names=names,
        channels=tuple(range(len(names))) if stacked else None,
        label_values=values,
        folds=_folds(path / "splits_final.json", {entry.id for entry in entries}),
    )


def _test_image(item: Any, file: Path) -> str:
    """A name, {'image': name} or [name, ...]."""
    if isinstance(item, Mapping):
        item = item.get("image")
    elif isinstance(item, list) and item:
        item = item[0]
    if not isinstance(item, str):
        raise SamAdaptError(
            f"{file}: `test` has the item {str(item)[:60]!r}; expected the name of an image file"
        )
    return item


def _msd_entry(path: Path, item: Any, n_channels: int, file: Path) -> Entry:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("image", "label")):
        raise SamAdaptError(
            f"{file}: `training` has the item {item!r}; expected {{'image': ..., 'label': ...}}"
        )
    image, label = path / item["image"], path / item["label"]
    # nnU-Net's first version listed `case.nii.gz` and stored `case_0000.nii.gz`.
    split = tuple(io.channel_file(image, channel) for channel in range(n_channels))
    images = (image,) if image.is_file() or not split[0].is_file() else split
    for needed in (*images, label):
        if not needed.is_file():
            raise SamAdaptError(
                f"{file} lists {needed}, which does not exist; copy it or remove it from the list"
            )
    return Entry(io.case_name(image), images, (label,))
