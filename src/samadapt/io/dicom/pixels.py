"""Pixels: decoded file by file, in the units that the header gives (Hounsfield units for CT), within limits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.io.dicom.headers import Header, library, read_dataset, read_header, silent, telling_damage
from samadapt.io.dicom.series import Series, demand_size, read_series
from samadapt.io.geometry import Geometry
from samadapt.types import SamAdaptError

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
#: What pydicom cannot decode with the packages of the extra, and GDCM inside SimpleITK can.
_BY_GDCM = {
    "1.2.840.10008.1.2.4.51": "JPEG Extended with 12 bits",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
}
#: What a file that holds the pixels alone must say of them.
_NEEDED = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "PixelData",
]
_HELP = "convert it, for instance with gdcmconv --raw, or install a decoder (pip install pylibjpeg pylibjpeg-openjpeg)"


@telling_damage
def read_geometry(path: Path) -> Geometry:
    """Where the voxels of the scan lie that a file belongs to, from its headers."""
    return read_series(path).geometry


@telling_damage
def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """(1, i, j, k) float32 after rescale: i along a row, j along a column, k along the normal of the slices."""
    series = read_series(path)
    for each in dict.fromkeys(frame.header for frame in series.frames):
        _demand_grey(each)
        demand_whole(each)
    columns, rows, slices = series.geometry.shape
    image = np.empty((slices, rows, columns), np.float32)
    for place, pixels in _slices(series):
        if pixels.shape != (rows, columns):
            raise _damaged(
                series.frames[place].header.path, f"its frame is {pixels.shape}, not {(rows, columns)}"
            )
        image[place] = pixels
    return image.transpose(2, 1, 0)[None], series.geometry


@telling_damage
def read_picture_geometry(path: Path) -> Geometry:
    """The geometry of a picture, from its header."""
    return _picture_geometry(_picture(path))


@telling_damage
def read_picture(path: Path) -> tuple[np.ndarray, Geometry]:
    """(C, rows, columns, 1) float32; MONOCHROME1, in which 0 is white, is inverted, so that bright is bright as elsewhere."""
    header = _picture(path)
    data = read_dataset(path, pixels=True)
    pixels = next(iter(decoded(data, header)))
    if header.photometric in _GREY:
        if header.photometric == "MONOCHROME1":
            low, high = _range(header)
            pixels = low + high - pixels.astype(np.float64)
        return _rescaled(pixels, data, None)[None, ..., None], _picture_geometry(header)
    if header.photometric == "PALETTE COLOR":
        with silent():
            pixels = library().pixels.apply_color_lut(pixels, data)
        pixels = pixels >> 8 if pixels.dtype.itemsize > 1 else pixels
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[..., None], dtype=np.float32), _picture_geometry(
        header
    )


def _picture(path: Path) -> Header:
    header = read_header(path)
    if header.kind != "picture":
        raise SamAdaptError(
            f"{path} is no DICOM picture; expected a single image without a place in the patient"
        )
    demand_size([header], str(path))
    if header.shape[2] > 1:
        raise SamAdaptError(
            f"{path} is a film of {header.shape[2]} frames; expected one picture or a volume: export its frames as files"
        )
    if header.photometric not in (*_GREY, *_COLOUR):
        raise SamAdaptError(
            f"{path} is {header.photometric or 'of no named colours'}; expected {', '.join((*_GREY, *_COLOUR))}: convert it"
        )
    if header.photometric in _COLOUR and (header.bits[0] != 8 and header.photometric != "PALETTE COLOR"):
        raise SamAdaptError(f"{path} has {header.bits[0]}-bit colour; expected 8-bit colour: convert it")
    demand_whole(header)
    return header


def _picture_geometry(header: Header) -> Geometry:
    rows, columns, _, _ = header.shape
    grey = header.photometric in _GREY
    return Geometry(
        (rows, columns, 1),
        None,
        None,
        1 if grey else 3,
        header.dtype if grey else "uint8",
        modality=header.modality,
    )


# ---------------------------------------------------------------- volumes


def _demand_grey(header: Header) -> None:
    if header.photometric not in _GREY or header.shape[3] != 1:
        raise SamAdaptError(
            f"{header.path} is a volume in {header.photometric or 'unnamed colours'}; expected grey (MONOCHROME2): export it "
            "again in grey"
        )
    allocated, stored, _ = header.bits
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise SamAdaptError(
            f"{header.path} has {stored} of {allocated} bits for each pixel; expected 8, 16 or 32: the header is damaged"
        )


def demand_whole(header: Header) -> None:
    """Uncompressed pixels need their bytes; a header that claims more is refused before anything is allocated."""
    uncompressed = header.syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
    rows, columns, frames, samples = header.shape
    needed = rows * columns * frames * samples * header.bits[0] // 8
    if header.photometric == "YBR_FULL_422":
        needed = needed * 2 // 3
    there = header.path.stat().st_size
    if uncompressed and needed > there:
        raise SamAdaptError(
            f"{header.path} is cut off: {rows} rows, {columns} columns and {frames} frames need {needed} bytes, and the file "
            f"has {there}; copy or export it again"
        )


def _slices(series: Series) -> Iterator[tuple[int, np.ndarray]]:
    """(place in the volume, (rows, columns) float32) of every slice; one file is in memory at a time."""
    places = {(frame.header.path, frame.index): place for place, frame in enumerate(series.frames)}
    for header in dict.fromkeys(frame.header for frame in series.frames):
        data = read_dataset(header.path, pixels=True)
        for index, pixels in enumerate(decoded(data, header)):
            if (header.path, index) in places:
                yield places[header.path, index], _rescaled(pixels, data, index)


def _rescaled(pixels: np.ndarray, data: Any, frame: int | None) -> np.ndarray:
    """In the units of the header: a table (ModalityLUTSequence), or slope and intercept of the frame or the file."""
    with silent():
        if data.get("ModalityLUTSequence"):
            return library().pixels.apply_modality_lut(pixels.astype(np.int64), data).astype(np.float32)
        slope, intercept = _slope(data, frame)
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope):
        raise _damaged(Path(data.filename), f"rescale slope {slope}, intercept {intercept}")
    return (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _slope(data: Any, frame: int | None) -> tuple[float, float]:
    groups = [data]
    if frame is not None:
        per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
        shared = data.get("SharedFunctionalGroupsSequence") or []
        groups = [*per_frame[frame : frame + 1], *shared, data]
    for group in groups:
        found = (group.get("PixelValueTransformationSequence") or [group])[0]
        if found.get("RescaleSlope") is not None:
            return float(found.RescaleSlope), float(found.get("RescaleIntercept") or 0)
    return 1.0, 0.0


def _range(header: Header) -> tuple[int, int]:
    """The least and the largest number that the stored bits can hold."""
    _, stored, signed = header.bits
    return (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)


# ---------------------------------------------------------------- decoding


def decoded(data: Any, header: Header) -> Iterator[np.ndarray]:
    """The frames of a file, as stored, without what stands in bits that are not; colours as RGB."""
    dicom = library()
    if "PixelData" not in data and "FloatPixelData" not in data and "DoubleFloatPixelData" not in data:
        raise _damaged(header.path, "it has no pixels")
    data.file_meta.TransferSyntaxUID = data.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2"
    syntax = dicom.uid.UID(header.syntax)
    if not syntax.is_transfer_syntax:
        raise _damaged(header.path, f"its transfer syntax {header.syntax!r} is none that DICOM knows")
    if syntax.is_compressed and not _can_decode(dicom, syntax):
        if header.syntax in _BY_GDCM and header.shape[2] == 1:
            yield _by_gdcm(data, header)
            return
        raise SamAdaptError(
            f"{header.path} is compressed as {syntax.name}{_of_frames(header)}, which cannot be decoded here; {_HELP}"
        )
    if header.bits[0] == 1 and not syntax.is_compressed:
        yield from _bits(bytes(data.PixelData), header)
        return
    count = 0
    try:
        with silent():
            for pixels in dicom.pixels.iter_pixels(data):
                count += 1
                yield pixels
    except SamAdaptError:
        raise
    except Exception as error:
        if header.syntax in _BY_GDCM and header.shape[2] == 1 and not count:
            yield _by_gdcm(data, header)
            return
        raise _damaged(
            header.path, f"its pixels ({syntax.name}) cannot be decoded: {type(error).__name__}"
        ) from None
    if count != header.shape[2]:
        raise _damaged(header.path, f"it has {count} frames, and its header says {header.shape[2]}")


def _bits(stored: bytes, header: Header) -> Iterator[np.ndarray]:
    """Frames of one bit for each pixel, which follow each other without a gap, so that few begin with a byte.

    pydicom's iterator cuts them at whole bytes.
    """
    rows, columns, frames, _ = header.shape
    for frame in range(frames):
        first, last = frame * rows * columns, (frame + 1) * rows * columns
        part = np.frombuffer(stored[first // 8 : -(-last // 8)], np.uint8)
        bits = np.unpackbits(part, bitorder="little")[first % 8 :][: rows * columns]
        if bits.size < rows * columns:
            raise _damaged(header.path, f"it has fewer pixels than its {frames} frames need")
        yield bits.reshape(rows, columns)


def _can_decode(dicom: Any, syntax: Any) -> bool:
    try:
        return bool(dicom.pixels.get_decoder(syntax).is_available)
    except NotImplementedError:  # a video
        return False


def _of_frames(header: Header) -> str:
    return f", in {header.shape[2]} frames" if header.shape[2] > 1 else ""


def _by_gdcm(data: Any, header: Header) -> np.ndarray:
    """One frame as stored, through a file that holds the pixels and nothing of the patient."""
    dicom = library()
    try:
        import SimpleITK
    except ImportError:
        raise SamAdaptError(
            f"{header.path} is compressed as {_BY_GDCM[header.syntax]}, for which SimpleITK is needed: pip install SimpleITK"
        ) from None
    bare = dicom.Dataset()
    bare.file_meta = dicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = header.syntax
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"  # a secondary capture
    for tag in _NEEDED:
        if tag in data:
            bare[tag] = data[tag]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pixels.dcm"
        dicom.dcmwrite(place, bare, enforce_file_format=True)
        try:
            SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
            image = SimpleITK.ReadImage(str(place), imageIO="GDCMImageIO")
        except RuntimeError:
            raise _damaged(header.path, f"its pixels ({_BY_GDCM[header.syntax]}) cannot be decoded") from None
    return SimpleITK.GetArrayFromImage(image)[0]


def _damaged(path: Path, what: str) -> SamAdaptError:
    return SamAdaptError(f"{path} is damaged ({what}); copy or export it again")
