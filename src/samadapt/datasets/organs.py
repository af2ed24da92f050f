"""TotalSegmentator's data: a folder for each case, with the scan and a binary mask for each organ."""

from __future__ import annotations

from pathlib import Path

from samadapt import io
from samadapt.datasets.dataset import Entry
from samadapt.datasets.parsed import ParsedLayout
from samadapt.types import SamAdaptError

_SCANS = {"ct": "CT", "mri": "MRI", "mr": "MRI"}
_MASKS = "segmentations"


def _cases(path: Path) -> list[Path]:
    return [folder for folder in io.find_folders(path) if (folder / _MASKS).is_dir()]


def is_organs(path: Path) -> bool:
    """`CASE/segmentations/ORGAN.nii.gz` beside `CASE/ct.nii.gz` or `CASE/mri.nii.gz`."""
    return any(_scans(folder) for folder in _cases(path))


def _scans(folder: Path) -> list[Path]:
    return [file for file in io.find_files(folder) if io.case_name(file).lower() in _SCANS]


def read_organs(path: Path, label_column: str | None) -> ParsedLayout:
    """Classes are the organs of all cases, by name; an organ without a file is absent. The folder is the patient."""
    cases = [(folder, _scans(folder), io.find_files(folder / _MASKS)) for folder in _cases(path)]
    organs = sorted({io.case_name(mask) for _, _, masks in cases for mask in masks})
    kinds = {io.case_name(scan).lower() for _, scans, _ in cases for scan in scans}
    if len(kinds) != 1 or not organs or len(organs) > 254:
        raise SamAdaptError(
            f"{path} has scans called {', '.join(sorted(kinds)) or 'nothing'} and masks of {len(organs)} organs; expected one "
            "kind of scan (ct.nii.gz or mri.nii.gz in each case) and 1 to 254 organs: keep what is to be learned"
        )
    number = {organ: place for place, organ in enumerate(organs, start=1)}
    entries = []
    for folder, scans, masks in cases:
        if not scans:
            raise SamAdaptError(
                f"{folder} has {_MASKS} but no scan; expected ct.nii.gz or mri.nii.gz beside them"
            )
        classes = tuple(number[io.case_name(mask)] for mask in masks)
        entries.append(Entry(folder.name, (scans[0],), tuple(masks), group=folder.name, file_classes=classes))
    kind = _SCANS[kinds.pop()]
    return ParsedLayout(
        entries, ("background", *organs), channel_names=(kind,), window="ct" if kind == "CT" else "percentile",
        label_values={n: n for n in range(len(organs) + 1)},
    )  # fmt: skip
