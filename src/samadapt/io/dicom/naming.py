"""What scans are called and whose they are. Of what tells who the patient is, PatientID alone is used."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from samadapt.io.dicom.headers import Header, kept_header, read_folder, read_header
from samadapt.io.dicom.series import is_volume, members
from samadapt.types import SamAdaptError


def patient_of(path: Path) -> str | None:
    """PatientID; None where the file has none."""
    return read_header(path).patient or None


def modality_of(path: Path) -> str:
    """CT, MR, ...; "" where the file does not say."""
    return read_header(path).modality


def series_uid(path: Path) -> str:
    """The UID of the series; "" where the file has none."""
    return read_header(path).series_uid


def case_name(path: Path) -> str:
    """What a scan is called: its folder; its file, if it is one file; with the number of the series where there are several.

    A name that repeats what the header says of the patient is replaced by PatientID, because names of cases are written
    into run folders and predictions.
    """
    own, several = read_header(path), len(members(path)) > 1
    base = path.resolve().parent.name if several else _stem(path)
    if several:
        others = {e.series_uid: e.number for e in read_folder(path.parent) if e.kind == "slice"}
        if len(others) > 1:
            number = own.number or "series"
            base = (
                f"{base}_{number if Counter(others.values())[own.number] == 1 else number + '_' + tail(own)}"
            )
    return _allowed(base, own)


def scan_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """What scans are called, each by a name of its own: by the folders below the root too where others are called alike."""
    names = {path: case_name(path) for path in paths}
    counts = Counter(names.values())
    for path, name in names.items():
        if counts[name] > 1:
            folders = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
            if folders and folders[-1] == name:
                folders = folders[:-1]
            names[path] = _allowed("__".join((*folders, name)), read_header(path))
    counts = Counter(names.values())
    return {
        path: name if counts[name] == 1 else f"{name}_{tail(read_header(path), counts[name])}"
        for path, name in names.items()
    }


def _allowed(name: str, header: Header) -> str:
    """A name that can be a file's and does not repeat what the header says of the patient."""
    if any(word in name.lower() for word in header.personal):
        name = f"{header.patient or 'patient'}_{header.number or 'series'}_{tail(header)}"
    return re.sub(r"[^\w.()+=-]", "_", name)


def tail(header: Header, alike: int = 1) -> str:
    """The end of a UID, which tells series apart; that of the image where several have one series."""
    uid = header.series_uid if alike == 1 or header.kind == "slice" else header.sop_uid
    return (uid or header.sop_uid or "0").replace(".", "")[-8:]


def _stem(path: Path) -> str:
    return path.stem if re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) else path.name


def demand_one_folder(paths: Iterable[Path]) -> None:
    """Refuse a series that is spread over folders, or copied: each part would look like a whole scan."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if is_volume(path) and read_header(path).kind == "slice" and (uid := series_uid(path)):
            places[uid].append(path.parent)
    for folders in places.values():
        if len(folders) > 1:
            raise SamAdaptError(
                f"one series is in {len(folders)} folders, {folders[0]} and {folders[1]}; expected all its files in one: "
                "move them together, or remove the copy"
            )


def forget_headers() -> None:
    """Let go of what is kept of headers: it tells whose scans they are."""
    kept_header.cache_clear()
