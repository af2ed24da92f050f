"""An answer on its way to the client, which holds the place of its request until it is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from samadapt.serving.answers import Answer
from samadapt.serving.telemetry import LOG

_PIECE = 1 << 16  # bytes: what is given to the connection in one piece is kept there, whoever reads it


class Sent(Response):
    """What a model answers.

    Args:
        about: what is said of it; in a header where the answer is a file.
        place: left when the answer was read, the client left, or the time is over.
        seconds: that the client has to read it.
    """

    def __init__(
        self, answer: Answer, about: Mapping[str, Any], place: AbstractContextManager[Any], seconds: float
    ) -> None:
        said = json.dumps(about)
        if answer.content is None:
            super().__init__(said, media_type=answer.media)
        else:
            headers = {
                "Samadapt-Answer": said,
                "Content-Disposition": f'attachment; filename="{answer.name}"',
            }
            super().__init__(answer.content, headers=headers, media_type=answer.media)
        self.place, self.seconds = place, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A client that does not read it in time is cut off."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        with self.place:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(start)
                    for begin in range(0, len(self.body), _PIECE):
                        piece = bytes(self.body[begin : begin + _PIECE])
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await send({"type": "http.response.body"})
            except TimeoutError:
                LOG.warning("an answer was not read within %g seconds; its client is cut off", self.seconds)
