"""What clients send: received into memory, unpacked into a folder that is deleted with the answer, and found to be one scan."""

from __future__ import annotations

import io as streams
import re
import zipfile
import zlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from samadapt import io
from samadapt.files import write_bytes
from samadapt.inputs import NO_SPLIT, Input, Taken, find_scans
from samadapt.opening import Opening
from samadapt.serving.refusals import RefusedError
from samadapt.types import SamAdaptError

MOST_FILES = 64  # of one request: channels, or the slices of a small series
MOST_MEMBERS = 20_000  # of an archive
MOST_UNPACKED = 4  # times the largest upload: what an archive may become
MOST_SLICE = 1 << 25  # pixels
MOST_ANSWERS = 1 << 28  # numbers: a slice is answered for all classes at once
_ZIP, _MEMBER = b"PK\3\4", b"PK\1\2"
_PLAIN = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # others unpack without bound before they can be stopped
_LONGEST = 100  # bytes of a name: file systems take 255, and temporary files have longer ones
_FIELD = "files"
_END = 1024  # bytes, in which a form's last boundary lies


@dataclass(frozen=True)
class Upload:
    """One file as it was sent."""

    name: str
    content: bytes


class _InMemory(MultiPartParser):
    """Nothing is spooled to the disk."""

    def __init__(self, request: Request, stream: AsyncGenerator[bytes, None], most: int) -> None:
        super().__init__(request.headers, stream, max_files=MOST_FILES, max_fields=8)
        self.spool_max_size = most + 1


async def receive(request: Request, most: int) -> list[Upload]:
    """The files of a multipart form.

    Args:
        most: bytes of the whole form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RefusedError(
            415,
            f"the body is {kind or 'of no type'}; expected multipart/form-data with the image in the field {_FIELD!r}",
        )
    ending = _Ending()
    try:
        form = await _InMemory(request, ending.watched(_bounded(request, most)), most).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        said = (
            error.message
            if isinstance(error, MultiPartException)
            else "it has no boundary or a broken header"
        )
        raise RefusedError(
            400, f"the form cannot be read ({said.rstrip('.')}); send it as multipart/form-data"
        ) from error
    try:
        ending.demand(request.headers["content-type"])
        for name, each in form.multi_items():
            if name != _FIELD or not isinstance(each, UploadFile):
                raise RefusedError(
                    422,
                    f"the form has {'a text' if isinstance(each, str) else 'a file'} in the field {name!r}; expected the image as a file in "
                    f"the field {_FIELD!r}, and model and output in the address (?model=...&output=...)",
                )
        sent = [each for each in form.getlist(_FIELD) if isinstance(each, UploadFile)]
        if not sent:
            raise RefusedError(
                422, f"no file was sent; expected the image as a file in the field {_FIELD!r} of the form"
            )
        return [Upload(each.filename or "", await each.read()) for each in sent]
    finally:
        await form.close()


def demand_once(request: Request) -> None:
    """Refuse a parameter that is given twice, of which one would be dropped."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise RefusedError(
                422, f"the parameter {name!r} is given {names.count(name)} times; give it once"
            )


class _Ending:
    """The end of a form, which the parser does not ask for: the last file of one that was cut off would be taken for whole."""

    def __init__(self) -> None:
        self.last = b""

    async def watched(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            self.last = (self.last + piece[-_END:])[-_END:]
            yield piece

    def demand(self, kind: str) -> None:
        """Refuse a form without its last boundary.

        Args:
            kind: the content type, which names the boundary.
        """
        _, named = parse_options_header(kind)
        if b"--" + named.get(b"boundary", b"") + b"--" not in self.last:
            raise RefusedError(
                400, "the form ends before its last boundary, so a file was cut off; send it again"
            )


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    count = 0
    async for piece in request.stream():
        count += len(piece)
        if count > most:
            raise too_large(most)
        yield piece


def too_large(most: int) -> RefusedError:
    """Of an upload."""
    return RefusedError(
        413,
        f"the upload is larger than {most >> 20} MiB; crop the scan, or ask for a server with a larger --max-upload",
    )


# ---------------------------------------------------------------- onto a folder


def unpack(uploads: Sequence[Upload], folder: Path, most: int) -> Path:
    """Write what was sent into a folder; what stands for the scan: the only file, else the folder.

    Args:
        most: bytes of the largest upload.
    """
    folder = folder / "scan"  # by which a series is called
    folder.mkdir()
    if len(uploads) == 1 and uploads[0].content.startswith(_ZIP):
        _unzip(uploads[0], folder, most * MOST_UNPACKED)
        return folder
    for upload in uploads:
        path = folder / safe_name(upload.name)
        if path.exists():
            raise SamAdaptError(f"two files are called {path.name!r}; give each channel a name of its own")
        write_bytes(path, upload.content)
    return path if len(uploads) == 1 else folder


def safe_name(name: str) -> str:
    """A file's name as a client gives it -> one that leads nowhere; its end, which tells the format, is kept."""
    name = re.sub(r"[^\w.()+=-]", "_", re.split(r"[/\\]", name)[-1])
    name = name.encode()[-_LONGEST:].decode(errors="ignore").lstrip(".")
    if not name:
        raise SamAdaptError("a file was sent without a name; its name tells the format, as in scan.nii.gz")
    return name


def _unzip(upload: Upload, folder: Path, most: int) -> None:
    """No member's path is followed: each folder of the archive becomes a numbered one, and images known by their names, if all
    of these differ, come before them."""
    name = Path(safe_name(upload.name or "upload.zip"))
    if upload.content.count(_MEMBER) > MOST_MEMBERS:
        raise SamAdaptError(f"{name} has more than {MOST_MEMBERS} members; send the files of one scan")
    try:
        with zipfile.ZipFile(streams.BytesIO(upload.content)) as archive:
            members = [each for each in archive.infolist() if not (each.is_dir() or _is_of_the_system(each))]
            _demand_harmless(name, members, most)
            images = [each for each in members if io.is_whole_image(Path(each.filename))]
            if len({safe_name(each.filename) for each in images}) < len(images):
                images = []
            others = [each for each in members if each not in images]
            places = {each: number for number, each in enumerate(dict.fromkeys(_place(m) for m in others))}
            for member in members:
                alone = member in images or (len(places) == 1 and not images)
                inside = folder if alone else folder / str(places[_place(member)])
                base = safe_name(member.filename)
                if (inside / base).exists():
                    raise SamAdaptError(f"{name} has two members called {base!r} in one folder; rename one")
                with archive.open(
                    member
                ) as packed:  # `archive.read` unpacks all of it, whatever its header says
                    write_bytes(inside / base, packed.read(member.file_size))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        if isinstance(error, SamAdaptError):
            raise
        raise SamAdaptError(
            f"{name} cannot be unpacked ({type(error).__name__}); make the zip again"
        ) from error


def _is_of_the_system(member: zipfile.ZipInfo) -> bool:
    """What macOS and file managers put beside the files."""
    parts = member.filename.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].startswith(".") or parts[-1] in ("Thumbs.db", "desktop.ini")


def _place(member: zipfile.ZipInfo) -> str:
    return member.filename.replace("\\", "/").rpartition("/")[0]


def _demand_harmless(name: Path, members: Sequence[zipfile.ZipInfo], most: int) -> None:
    if not members:
        raise SamAdaptError(f"{name} is empty; expected the files of one scan")
    for member in members:
        if member.flag_bits & 1:
            raise SamAdaptError(f"{name} is encrypted; send it without a password")
        if member.compress_type not in _PLAIN:
            raise SamAdaptError(f"{name} is compressed in a way that is not read; make a usual zip (deflate)")
        io.demand_unpacked(name, safe_name(member.filename), member.compress_size, member.file_size)
    total = sum(member.file_size for member in members)
    if total > most:
        raise SamAdaptError(
            f"{name} would become {total >> 20} MiB; at most {most >> 20} MiB are unpacked: send fewer files, or crop the scan"
        )


# ---------------------------------------------------------------- one scan


def find_scan(given: Path, opening: Opening, voxels: int) -> tuple[Input, int]:
    """The scan that was sent, found as `samadapt predict` finds it, and its voxels; its headers are read alone.

    Args:
        given: as `unpack` gives it. It is never taken for a data set, whose tables name files.
        voxels: at most so many are read.
    """
    plain = Taken(anonymous="none") if opening.anonymous else Taken()
    cases, _ = find_scans(given, opening, NO_SPLIT, plain)
    if len(cases) != 1:
        names = ", ".join(repr(case.id) for case in cases[:5]) + (", ..." if len(cases) > 5 else "")
        raise SamAdaptError(
            f"{len(cases)} scans were sent ({names}); expected one: send them one after the other, and the channels of one scan "
            "as CASE_0000, CASE_0001, ..."
        )
    return cases[0], _demand_voxels(cases[0].files, voxels, len(opening.classes))


def _demand_voxels(files: Sequence[Path], most: int, classes: int) -> int:
    found = [io.read_geometry(path) for path in files]
    total = sum(prod(each.shape) * each.channels for each in found)
    slice_pixels = max(prod(sorted(each.shape)[1:]) for each in found)
    if total > most:
        raise RefusedError(
            413, f"the scan has {total:,} voxels; at most {most:,} are read here: crop it, or ask for a server with a larger "
            "--max-voxels"
        )  # fmt: skip
    if slice_pixels > (most_pixels := min(MOST_SLICE, MOST_ANSWERS // classes)):
        raise RefusedError(
            413,
            f"a slice has {slice_pixels:,} pixels; at most {most_pixels:,} are answered: crop or reduce the image",
        )
    return total
