"""`serve`: loads runs and answers until it is stopped."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from samadapt.serving.app import make_app
from samadapt.serving.models import load_models
from samadapt.serving.options import ServeOptions, read_token
from samadapt.serving.telemetry import log_to_stderr
from samadapt.types import SamAdaptError

_GRACE = 10  # seconds that answers in progress have after a signal to stop


def serve(
    runs: Sequence[str | Path],
    *,
    device: str = "auto",
    checkpoint: str | None = None,
    options: ServeOptions | None = None,
    ready: Callable[[str, Sequence[str]], None] | None = None,
) -> None:
    """Answer with trained runs over HTTP, until the process is interrupted.

    Args:
        runs: run folders, or folders of run folders whose heads answer together.
        device, checkpoint: as for `load_run`, for all of them.
        ready: told the address of the page and the names of the models when requests are taken.

    Raises:
        SamAdaptError: a run cannot be loaded, a token is needed and missing, or the port is taken.
    """
    options = options or ServeOptions()
    token = read_token(options)
    with _listen(options) as listener:
        models = load_models(runs, device, checkpoint)
        app = make_app(models, options, token)
        log_to_stderr()
        if ready is not None:
            ready(_address(options, listener), list(models))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=_GRACE,
        )
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop it
            uvicorn.Server(config).run(sockets=[listener])


def _listen(options: ServeOptions) -> socket.socket:
    """Before minutes of loading, the address is taken; clients that come meanwhile wait."""
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            options.host.strip("[]"), options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # until then another server can bind it too
    except OSError as error:
        if listener is not None:
            listener.close()
        raise SamAdaptError(
            f"--host {options.host} --port {options.port} cannot be listened on ({error.strerror or error}); give another --port, or an "
            "address of this machine"
        ) from error
    return listener


def _address(options: ServeOptions, listener: socket.socket) -> str:
    host = (
        f"[{options.host}]"
        if ":" in options.host.strip("[]") and not options.host.startswith("[")
        else options.host
    )
    return f"http://{host}:{listener.getsockname()[1]}/"
