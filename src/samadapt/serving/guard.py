"""What every request passes: who may ask, what every answer carries, and what is written down of it."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samadapt.serving.options import is_local
from samadapt.serving.refusals import RefusedError, own_mistake
from samadapt.serving.telemetry import LOG, Telemetry

#: In the scope of a request: what its handler says about it.
NOTE = "samadapt.note"
#: The status of a client that left before it was answered, as nginx calls it.
LEFT = 499
_READING = {"GET", "HEAD", "OPTIONS"}
#: What proxies add, so that without a token a proxy on this machine does not open the server to others.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_DRAIN_SECONDS, _DRAIN_BYTES = 3.0, 1 << 28
_CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' blob: data:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def refused(refusal: RefusedError) -> Response:
    """As JSON."""
    return Response(
        json.dumps({"error": refusal.sentence}),
        refusal.status,
        refusal.headers,
        media_type="application/json",
    )


class Guard:
    """ASGI middleware.

    Args:
        token: that clients must send; None: nobody but this machine can ask.
        paths: all that the server knows; other paths are not written down.
        open_paths: those that need no token, because they tell nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        telemetry: Telemetry,
        paths: Collection[str],
        open_paths: Collection[str],
    ) -> None:
        self.app, self.telemetry = app, telemetry
        self.token = None if token is None else token.encode()
        self.paths, self.open_paths = frozenset(paths), frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        begun = time.perf_counter()
        try:
            if (refusal := self._refusal(scope)) is not None:
                await refused(refusal)(scope, exchange.receive, exchange.send)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:  # the server's own log would print what it says, and that may name files
            refusal = own_mistake(error)
            LOG.error(refusal.sentence)
            if exchange.status == LEFT:
                await refused(refusal)(scope, exchange.receive, exchange.send)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            method = scope["method"] if scope["method"] in (*_READING, "POST") else "other"
            self.telemetry.answered(
                method,
                path,
                exchange.note.get("model", "-"),
                exchange.size,
                exchange.status,
                time.perf_counter() - begun,
            )

    def _refusal(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.token is None and not is_local(
            _name_of(host)
        ):  # a page that had its name point here (DNS rebinding)
            return RefusedError(
                403, "the address that was asked is not this machine's own; without a token only 127.0.0.1 and localhost are "
                "answered"
            )  # fmt: skip
        if self.token is None and any(name in headers for name in _FORWARDED):
            return RefusedError(
                403, "the request was passed on by a proxy, so it may come from anywhere; start the server with a token (--token-file)"
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in _READING and origin.partition("://")[2] != host:
            return RefusedError(
                403, "the request comes from a page of another address; use the page of this server"
            )
        if self.token is None or scope["path"] in self.open_paths:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("latin-1", "replace"), self.token
        ):
            return None
        return RefusedError(
            401,
            "this server asks for its token; send it as: Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )


def _name_of(host: str) -> str:
    """Without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.note: dict[str, str] = {}
        scope[NOTE] = self.note
        headers = Headers(scope=scope)
        self._waits = headers.get("expect", "").lower() == "100-continue"  # the body was not sent yet
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._complete = not has_body
        self.size, self.status = 0, LEFT

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
        self._complete |= message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            if not self._complete:
                headers["Connection"] = "close"
                await self._drain()
        await self._send(message)

    async def _drain(self) -> None:
        """A client that is still sending does not read the refusal, and loses it if the connection is closed on it."""
        if self._waits:
            return
        left = _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._complete and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
