"""A client of `samadapt serve` in one file, with numpy and the standard library alone.

Copy it beside your program, or fetch it from the server: curl http://127.0.0.1:8000/client.py -o samadapt_client.py

    from samadapt_client import Client

    client = Client("http://127.0.0.1:8000", token=None)
    print([model["name"] for model in client.models()])
    label, about = client.label_map("scan.nii.gz")              # numpy array on the voxels of the file
    about = client.save("scan.nii.gz", "scan_label.nii.gz")     # as the server writes it, with the scan's header
    answer = client.ask("photo.png", model="skin")              # of a classifier: prediction and probabilities
    label, about = client.label_map_of(volume, affine)          # of an array (i, j, k) and its 4 x 4 affine, in mm

A DICOM series is sent as a zip of its files, or as the folder that holds them. Several files are the channels of one scan.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Scan = str | Path | Sequence[str | Path]
_BUSY = (429, 503)
_WAIT = 2.0  # seconds until a busy server is asked again, if it does not say
_LOCAL = ("127.0.0.1", "localhost", "::1")


class ServerError(Exception):
    """The server refused, or did not answer.

    Args:
        status: of HTTP; 0 where no answer came.
        sentence: of the server.
        retry_after: seconds after which to ask again; None where there is no use, or the server does not say.
    """

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.retry_after = status, retry_after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The server sends nobody elsewhere; scans and tokens are not sent after who does."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """One server.

    Args:
        address: "http://127.0.0.1:8000".
        token: where the server asks for one.
        patience: seconds to go on asking a server that has no room for the request.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self, address: str, token: str | None = None, patience: float = 60, timeout: float = 600
    ) -> None:
        self.address, self.token = address.rstrip("/"), token
        self.patience, self.timeout = patience, timeout
        # A proxy of the environment is not asked for this machine's own server, and does not see its scans.
        local = urllib.parse.urlsplit(self.address).hostname in _LOCAL
        handlers = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*handlers, _NoRedirects)

    def models(self) -> list[dict[str, Any]]:
        """The models: name, task, classes with their values, and the forms in which they answer."""
        return json.loads(self._get("/models"))["models"]

    def ask(self, scan: Scan, model: str | None = None) -> dict[str, Any]:
        """What a model says of a scan: of a classifier the probabilities, of a segmenter voxels and ml of each class."""
        return json.loads(self._predict(_files(scan), model, "json")[0])

    def label_map(self, scan: Scan, model: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """(i, j, k) uint8 classes with the axes of the file, (rows, columns, 1) of a picture; and what is said of it."""
        return self._array(_files(scan), model, "npy")

    def label_map_of(
        self, image: np.ndarray, affine: np.ndarray, model: str | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The same of an array (i, j, k) whose indices the affine takes to RAS mm, as nibabel has it."""
        return self._array([("scan.nii.gz", nifti_bytes(image, affine))], model, "npy")

    def probabilities(self, scan: Scan, model: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Of a segmenter: (class, i, j, k) float16."""
        return self._array(_files(scan), model, "probabilities")

    def save(
        self, scan: Scan, path: str | Path, model: str | None = None, output: str = "auto"
    ) -> dict[str, Any]:
        """Write the answer as a file; what is said of it.

        Args:
            output: nifti, nrrd, png, dicom-seg or another form that the model has (`models`); auto: as the scan.
        """
        content, about = self._predict(_files(scan), model, output)
        Path(path).write_bytes(content)
        return about

    # ------------------------------------------------ over HTTP

    def _array(
        self, files: Sequence[tuple[str, bytes]], model: str | None, output: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        content, about = self._predict(files, model, output)
        return np.load(io.BytesIO(content), allow_pickle=False), about

    def _predict(
        self, files: Sequence[tuple[str, bytes]], model: str | None, output: str
    ) -> tuple[bytes, dict[str, Any]]:
        query = urllib.parse.urlencode({"output": output} | ({} if model is None else {"model": model}))
        kind, body = _form(files)
        given_up = time.monotonic() + self.patience
        while True:
            try:
                content, headers = self._send(f"/predict?{query}", body, {"Content-Type": kind})
                said = headers.get("Samadapt-Answer")
                return content, json.loads(content if said is None else said)
            except ServerError as error:
                wait = error.retry_after or (_WAIT if error.status in _BUSY else None)
                left = given_up - time.monotonic()
                if wait is None or left <= 0:
                    raise
                time.sleep(min(wait, left))

    def _get(self, path: str) -> bytes:
        return self._send(path, None, {})[0]

    def _send(
        self, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[bytes, Mapping[str, str]]:
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.address + path, body, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> ServerError:
        """Of a connection on which no answer came. urllib wraps what happens up to the end of sending."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if reason is not error and isinstance(reason, ConnectionResetError | BrokenPipeError):
            said = f"{self.address} closed the connection while the scan was sent: it is busy, or the scan is larger than it takes"
            return ServerError(0, said, _WAIT)
        said = f"{self.address} does not answer ({str(reason) or type(reason).__name__}); is the server running, and is this its address?"
        return ServerError(0, said)


def _refusal(error: urllib.error.HTTPError) -> ServerError:
    content = error.read()
    try:
        sentence = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        sentence = f"status {error.code}: {content[:200]!r}"
    after = error.headers.get("Retry-After", "")
    return ServerError(error.code, sentence, float(after) if after.isdecimal() else None)


def _files(scan: Scan) -> list[tuple[str, bytes]]:
    """(name, content) of each file; of a folder one zip."""
    paths = [Path(scan)] if isinstance(scan, str | Path) else [Path(path) for path in scan]
    if len(paths) == 1 and paths[0].is_dir():
        return [("series.zip", _zipped(paths[0]))]
    return [(path.name, path.read_bytes()) for path in paths]


def _zipped(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.writestr(str(path.relative_to(folder)), path.read_bytes())
    return content.getvalue()


def _form(files: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Files as multipart/form-data: the content type, and the body."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, content in files:
        name = "".join("_" if each in '"\\\r\n' else each for each in name)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*parts, f"--{boundary}--\r\n".encode()])


def nifti_bytes(image: np.ndarray, affine: np.ndarray) -> bytes:
    """An array (i, j, k) as a compressed NIfTI-1 file, float32, in mm of scanner space."""
    if image.ndim != 3:
        raise ValueError(f"the array has the shape {image.shape}; expected three axes (i, j, k)")
    affine = np.asarray(affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *image.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)  # float32, bits
    struct.pack_into("<8f", header, 76, 1, *spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # offset of the voxels, slope, intercept
    struct.pack_into("<b", header, 123, 2)  # mm
    struct.pack_into("<2h", header, 252, 0, 1)  # qform, sform: scanner
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + np.asarray(image, "<f4").tobytes(order="F"), 1)
