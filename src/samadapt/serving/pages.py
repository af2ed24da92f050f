"""The page for people, and what it loads; all of it is in the package, and nothing comes from the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A file that is sent as it is."""

    path: str
    file: Path
    media: str
    packed: bool = False  # whether the file is compressed by gzip, which every browser undoes

    async def respond(self) -> Response:
        """The file."""
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"} if self.packed else {}
        kept = {"Cache-Control": "max-age=86400"} if self.packed else {}
        return Response(self.file.read_bytes(), headers=headers | kept, media_type=self.media)


_HTML, _SCRIPT, _STYLE, _TEXT = (
    f"text/{kind}; charset=utf-8" for kind in ("html", "javascript", "css", "plain")
)
PAGES = (
    Page("/", _FOLDER / "page" / "index.html", _HTML),
    Page("/page.js", _FOLDER / "page" / "page.js", _SCRIPT),
    Page("/page.css", _FOLDER / "page" / "page.css", _STYLE),
    Page("/niivue.js", _FOLDER / "page" / "niivue.umd.js.gz", _SCRIPT, packed=True),
    Page("/niivue.txt", _FOLDER / "page" / "niivue.LICENSE.txt", _TEXT),
    Page("/client.py", _FOLDER / "client.py", "text/x-python; charset=utf-8"),
)
