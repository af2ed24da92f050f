"""A server in a thread, for tests and for the load test."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from samadapt.serving.app import Server, make_app
from samadapt.serving.models import Served, load_models
from samadapt.serving.options import ServeOptions

File = tuple[str, bytes]


@dataclass
class Answered:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]

    @property
    def about(self) -> Any:
        return json.loads(self.headers["samadapt-answer"])


@dataclass
class Running:
    """A server that listens, and what its inside looks like."""

    port: int
    server: Server

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answered:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return Answered(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def post(self, path: str, *files: Path | File, **headers: str) -> Answered:
        kind, body = form(files)
        return self.call("POST", path, body, Content_Type=kind, **headers)

    def begin(self, path: str, *files: Path | File, cut: int | None = None) -> socket.socket:
        """Send a request, or its first bytes, and do not wait."""
        kind, body = form(files)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(head.encode() + body[:cut])
        return client

    @property
    def left_behind(self) -> list[Path]:
        """Files and folders of requests."""
        return [path for path in self.server.folder.rglob("*") if path.name != "answers"]


def form(files: Sequence[Path | File]) -> tuple[str, bytes]:
    """Files as multipart/form-data, by other means than the client's."""
    boundary, body = uuid.uuid4().hex, b""
    for each in files:
        name, content = (each.name, each.read_bytes()) if isinstance(each, Path) else each
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


@contextlib.contextmanager
def running(
    models: dict[str, Served] | Sequence[Path], token: str | None = None, **options: Any
) -> Iterator[Running]:
    """A server with these models, or with these runs."""
    loaded = models if isinstance(models, dict) else load_models(models, "cpu")
    app = make_app(loaded, ServeOptions(**options), token)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            yield Running(listener.getsockname()[1], app.state.server)
        finally:
            server.should_exit = True
            thread.join()


def until(true: Any, seconds: float = 20) -> bool:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False
