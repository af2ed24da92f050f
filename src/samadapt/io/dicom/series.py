"""Series: which files are one scan, in which order its slices lie, and what it is called."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samadapt.io.dicom.headers import (
    Header,
    headers_of,
    in_groups,
    kind_of,
    numbers,
    read_dataset,
    read_folder,
    read_header,
    silent,
)
from samadapt.io.geometry import LPS_TO_RAS, Geometry
from samadapt.io.limits import MOST_PIXELS, MOST_VOXELS
from samadapt.types import SamAdaptError, SamAdaptWarning

_TURNED = 1e-3  # difference of direction cosines from which slices lie in different orientations
_OFF = 0.1  # of a pixel or of the distance between slices: as far off as a slice may lie


@dataclass(frozen=True)
class Slice:
    """One slice of a scan: a file, or one frame of a multi-frame file."""

    header: Header
    index: int  # of the frame in its file
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    @property
    def name(self) -> str:
        many = self.header.shape[2] > 1
        return f"frame {self.index + 1} of {self.header.path.name}" if many else self.header.path.name


@dataclass(frozen=True)
class Series:
    """The slices of a scan, sorted along the normal of the slices, and where they lie."""

    frames: tuple[Slice, ...]
    geometry: Geometry


# ---------------------------------------------------------------- which files


def find_volumes(files: Sequence[Path]) -> list[Path]:
    """The volumes among the files of one folder: of each series the first file by name, and each multi-frame file."""
    found: dict[str, Path] = {}
    for each in headers_of(files, "slice"):
        found.setdefault(each.series_uid, each.path)
    return [*found.values(), *(each.path for each in headers_of(files, "volume"))]


def find_pictures(files: Sequence[Path]) -> list[Path]:
    """The pictures among the files of one folder."""
    return [each.path for each in headers_of(files, "picture")]


def is_volume(path: Path) -> bool:
    """Whether the file is a slice of a series or a multi-frame volume."""
    return kind_of(path) in ("slice", "volume")


def is_picture(path: Path) -> bool:
    """Whether the file is a picture: an image without a place in the patient."""
    return kind_of(path) == "picture"


def members(path: Path) -> tuple[Header, ...]:
    """The files of the scan that a file belongs to, by name."""
    own = read_header(path)
    if own.kind != "slice":
        return (own,)
    same = (each for each in read_folder(path.parent) if each.kind == "slice")
    return tuple(each for each in same if each.series_uid == own.series_uid)


def files_of(path: Path) -> tuple[Path, ...]:
    """All files of the scan that a file belongs to."""
    return tuple(each.path for each in members(path))


# ---------------------------------------------------------------- geometry


def read_series(path: Path) -> Series:
    """The slices of the scan that a file belongs to, sorted by where they lie, and checked.

    Raises:
        SamAdaptError: the slices are not of one volume: other sizes, orientations or frames of reference, duplicates,
            missing or unevenly spaced slices, a gantry tilt, too many voxels.
    """
    own = read_header(path)
    if own.kind not in ("slice", "volume"):
        raise SamAdaptError(f"{path} is {_WHAT.get(own.kind, 'no image')}; expected a DICOM image")
    headers, where = members(path), _where(path, own)
    if own.kind == "slice":
        _demand_readable(path.parent, where)
    _demand_one_kind(headers, where)
    frames = _frames_of(headers[0]) if own.kind == "volume" else [_frame(each) for each in headers]
    _demand_places(frames, where)
    return _sorted(frames, where)


_WHAT = {
    "seg": "a DICOM SEG, which is a label of a scan",
    "rtstruct": "a DICOM RTSTRUCT, which is a label of a scan",
    "picture": "a picture without a place in the patient",
}


def _where(path: Path, own: Header) -> str:
    return f"{path.parent} (the series of {path.name})" if own.kind == "slice" else str(path)


def _frame(header: Header) -> Slice:
    return Slice(header, 0, header.position, header.orientation, header.spacing)


def _frames_of(header: Header) -> list[Slice]:
    """Of a multi-frame file, whose functional groups say where each frame lies."""
    tags = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SOPClassUID"]
    data = read_dataset(header.path, tags=tags)
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) not in (0, header.shape[2]):
        raise SamAdaptError(
            f"{header.path} has {header.shape[2]} frames and says of {len(own)} where they lie; export it again"
        )
    groups = own or [{}] * header.shape[2]
    with silent():
        return [
            Slice(
                header,
                index,
                numbers(in_groups(group, shared, "PlanePositionSequence", "ImagePositionPatient")),
                numbers(in_groups(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient")),
                numbers(in_groups(group, shared, "PixelMeasuresSequence", "PixelSpacing")),
            )
            for index, group in enumerate(groups)
        ]


def _demand_readable(folder: Path, where: str) -> None:
    """A file that cannot be read may be a slice of the series, whose absence need not show."""
    broken = [each for each in read_folder(folder) if each.kind == "broken"]
    if broken:
        raise SamAdaptError(
            f"{broken[0].path} cannot be read as DICOM ({broken[0].reason}) and may be a slice of {where}; copy or export "
            "it again, or remove it"
        )


def _demand_one_kind(headers: Sequence[Header], where: str) -> None:
    """One series is one volume: what all slices share."""
    first = headers[0]
    kinds = {
        "patients (PatientID)": lambda h: h.patient,
        "modalities": lambda h: h.modality,
        "sizes (rows, columns, frames, samples)": lambda h: h.shape,
        "frames of reference": lambda h: h.frame_uid,
        "pixel spacings": lambda h: tuple(round(x, 4) for x in h.spacing),
    }
    for what, of in kinds.items():
        odd = next((each for each in headers if of(each) != of(first)), None)
        if odd is not None:
            values = "" if "PatientID" in what else f" ({of(first)} and {of(odd)})"
            raise SamAdaptError(
                f"{where} mixes images of several {what}{values}, as in {first.path.name} and {odd.path.name}; expected one "
                "volume: put the images of each into a series of its own"
            )
    twice = [uid for uid, count in Counter(h.sop_uid for h in headers).items() if uid and count > 1]
    if twice:
        names = [h.path.name for h in headers if h.sop_uid == twice[0]]
        raise SamAdaptError(
            f"{where} has the same image in {len(names)} files ({', '.join(names[:3])}); remove the copies"
        )
    demand_size(headers, where)


def demand_size(headers: Sequence[Header], where: str, most: int = MOST_VOXELS) -> None:
    """Before anything is allocated: whether the header can be believed.

    Args:
        most: voxels in all files together.
    """
    for each in headers:
        rows, columns, frames, samples = each.shape
        if rows < 1 or columns < 1 or frames < 1:
            raise SamAdaptError(
                f"{each.path} has {rows} rows, {columns} columns and {frames} frames; expected an image: export it again"
            )
        if rows * columns > MOST_PIXELS or rows * columns * frames * samples * len(headers) > most:
            raise SamAdaptError(
                f"{each.path} claims {rows} rows, {columns} columns and {frames} frames, in {len(headers)} files; at most "
                f"{MOST_PIXELS} pixels in a frame and {most} voxels in a scan are read: the header is damaged, or "
                "the scan has to be cropped"
            )


def _demand_places(frames: Sequence[Slice], where: str) -> None:
    for each in frames:
        lacking = [
            what
            for what, values, count in (
                ("position (ImagePositionPatient)", each.position, 3),
                ("orientation (ImageOrientationPatient)", each.orientation, 6),
                ("pixel spacing (PixelSpacing)", each.spacing, 2),
            )
            if len(values) != count or not np.all(np.isfinite(values))
        ]
        if lacking:
            film = " (it is a film, whose frames are pictures)" if each.header.shape[2] > 1 else ""
            raise SamAdaptError(
                f"{where}: {each.name} has no {lacking[0]}{film}, so it does not say where its voxels lie; export the scan "
                "again, or save single pictures as PNG"
            )
        if min(each.spacing) <= 0:
            raise SamAdaptError(
                f"{where}: {each.name} has the pixel spacing {each.spacing}; expected mm above 0"
            )
        row, column = np.array(each.orientation).reshape(2, 3)
        lengths = np.linalg.norm([row, column], axis=1)
        if np.abs(lengths - 1).max() > 0.01 or abs(row @ column) > 0.01:
            raise SamAdaptError(
                f"{where}: {each.name} has the orientation {each.orientation}; expected two unit vectors at right angles: "
                "the header is damaged, export the scan again"
            )


def _sorted(frames: Sequence[Slice], where: str) -> Series:
    first = frames[0]
    odd = next(
        (f for f in frames if np.abs(np.subtract(f.orientation, first.orientation)).max() > _TURNED), None
    )
    if odd is not None:
        count = len({tuple(np.round(f.orientation, 2)) for f in frames})
        raise SamAdaptError(
            f"{where} mixes slices of {count} orientations, as in {first.name} and {odd.name}; expected parallel slices: "
            "put each orientation into a series of its own (localizers have several)"
        )
    other = next((f for f in frames if not np.allclose(f.spacing, first.spacing, rtol=1e-3)), None)
    if other is not None:
        raise SamAdaptError(
            f"{where} mixes images of several pixel spacings ({first.spacing} and {other.spacing})"
        )
    row, column = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(row, column)
    along = np.array([np.dot(f.position, normal) for f in frames])
    order = np.argsort(along, kind="stable")
    ordered = tuple(frames[n] for n in order)
    step = _step(ordered, along[order], normal, where)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = ordered[0].position
    rows, columns, _, samples = first.header.shape
    spacing = (float(first.spacing[1]), float(first.spacing[0]), float(np.linalg.norm(step)))
    geometry = Geometry(
        (columns, rows, len(ordered)), spacing, LPS_TO_RAS @ affine, samples, first.header.dtype,
        modality=first.header.modality,
    )  # fmt: skip
    return Series(ordered, geometry)


def _step(frames: Sequence[Slice], along: np.ndarray, normal: np.ndarray, where: str) -> np.ndarray:
    """From one slice to the next, mm; slices that do not lie on an even grid are an error."""
    if len(frames) == 1:
        thickness = frames[0].header.thickness
        if thickness is None:
            warnings.warn(
                "single slices that do not say how thick they are are taken as 1 mm thick",
                SamAdaptWarning,
                stacklevel=2,
            )
        return normal * (thickness or 1.0)
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    _demand_no_duplicates(frames, gaps, usual, where)
    mean = (along[-1] - along[0]) / (len(frames) - 1)
    off = np.abs(along - (along[0] + mean * np.arange(len(frames))))
    if off.max() > _OFF * mean:
        at = int(np.argmax(np.abs(gaps - usual)))
        a, b = frames[at].name, frames[at + 1].name
        missing = round(float(gaps[at]) / usual) - 1
        if missing > 0 and abs(gaps[at] / usual - missing - 1) < 0.1:
            raise SamAdaptError(
                f"{where} lacks slices: between {a} and {b} are {gaps[at]:.3f} mm, elsewhere {usual:.3f} mm, so {missing} "
                "are missing; export the whole series again"
            )
        raise SamAdaptError(
            f"{where} has unevenly spaced slices: {gaps.min():.3f} to {gaps.max():.3f} mm, {gaps[at]:.3f} mm between {a} and "
            f"{b}; expected even spacing: resample the series, or split it where the spacing changes"
        )
    first, last = np.array(frames[0].position), np.array(frames[-1].position)
    step = (last - first) / (len(frames) - 1)
    sideways = np.linalg.norm((last - first) - normal * (along[-1] - along[0]))
    if sideways > _OFF * min(frames[0].spacing):
        angle = np.degrees(np.arctan2(sideways, along[-1] - along[0]))
        raise SamAdaptError(
            f"{where} was acquired with a gantry tilt of about {angle:.1f} degrees: its slices are shifted against each other "
            f"by {sideways:.1f} mm in all; expected slices above each other: resample it, for instance with dcm2niix or with "
            "3D Slicer's acquisition geometry regularization"
        )
    _demand_in_line(frames, step, where)
    return normal * mean


def _demand_no_duplicates(frames: Sequence[Slice], gaps: np.ndarray, usual: float, where: str) -> None:
    same = np.flatnonzero(gaps < max(1e-3, 0.01 * usual))
    if not len(same):
        return
    places = len(gaps) + 1 - len(same)
    at = int(same[0])
    raise SamAdaptError(
        f"{where} has {len(frames)} slices at {places} positions, for example {frames[at].name} and {frames[at + 1].name}; "
        "expected one at each: it holds several volumes (echoes, time points, reconstructions) or copies; put each volume "
        "into a series of its own, or remove the copies"
    )


def _demand_in_line(frames: Sequence[Slice], step: np.ndarray, where: str) -> None:
    places = np.array([f.position for f in frames])
    off = np.linalg.norm(places - (places[0] + step * np.arange(len(frames))[:, None]), axis=1)
    if off.max() > _OFF * max(min(frames[0].spacing), float(np.linalg.norm(step))):
        at = int(off.argmax())
        raise SamAdaptError(
            f"{where}: {frames[at].name} lies {off[at]:.2f} mm beside the line of the other slices; expected slices above "
            "each other: export the series again"
        )
