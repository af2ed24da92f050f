"""What a server is told at its start, and the token that it asks for."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samadapt.options import Checked, option
from samadapt.records import SamAdaptError

TOKEN = "SAMADAPT_TOKEN"
_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_SHORTEST = 16  # characters
_CURE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


@dataclass(frozen=True)
class ServeOptions(Checked):
    """Where the server listens, and what it takes."""

    host: str = option(
        "127.0.0.1",
        "Address to listen on. Any other than this machine's own (127.0.0.1, ::1, localhost) needs a token.",
    )
    port: int = option(8000, "Port to listen on; 0 takes a free one.", least=0, most=65535)
    token_file: str | None = option(
        None,
        f"File that holds the token which every client must send. Without it, the environment variable {TOKEN} is read.",
    )
    queue: int = option(
        16,
        "Most requests at once, received, waiting, computed or not yet read; further ones are refused (429).",
        least=1,
    )
    max_upload: int = option(256, "Largest upload in MiB; larger ones are refused (413).", least=1)
    max_voxels: int = option(
        268,
        "Largest scan in millions of voxels, all channels together; larger ones are refused (413).",
        least=1,
    )
    time_limit: float = option(
        300, "Seconds until a request must be answered; then it is given up (504).", above=0
    )

    @property
    def upload_bytes(self) -> int:
        """The largest upload."""
        return self.max_upload << 20

    @property
    def voxels(self) -> int:
        """Of the largest scan."""
        return self.max_voxels * 1_000_000

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_local(self.host)


def is_local(host: str) -> bool:
    """Whether an address, or a name, means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(options: ServeOptions, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of the file that was named, else of the environment; None where there is none and none is needed."""
    if options.token_file is not None:
        try:
            token, source = (
                Path(options.token_file).read_text(encoding="utf-8").strip(),
                f"--token-file {options.token_file}",
            )
        except (OSError, UnicodeDecodeError) as error:
            raise SamAdaptError(
                f"--token-file {options.token_file} cannot be read ({getattr(error, 'strerror', None) or error}); {_CURE}"
            ) from error
    elif TOKEN in environment:
        token, source = environment[TOKEN].strip(), f"the environment variable {TOKEN}"
    elif options.is_local:
        return None
    else:
        raise SamAdaptError(
            f"--host {options.host} can be reached from other machines, and no token is set; give --token-file FILE or the "
            f"environment variable {TOKEN} ({_CURE}), or leave out --host"
        )
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise SamAdaptError(
            f"the token of {source} has {len(token)} characters; expected at least {_SHORTEST}, of letters, digits and "
            f"punctuation without blanks: {_CURE}"
        )
    return token


def demand_packages() -> None:
    """Refuse where the packages of the server are missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SamAdaptError(
            f'samadapt serve needs {", ".join(missing)}, which are not installed: pip install "samadapt[serve]"'
        )
