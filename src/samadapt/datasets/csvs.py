"""Tables as common programs save them: UTF-8, UTF-16 or Latin-1, with commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import io
import warnings
from pathlib import Path

from samadapt.types import SamAdaptError, SamAdaptWarning

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def is_csv(path: str | Path) -> bool:
    """Whether the file is a table by its name."""
    return str(path).lower().endswith(".csv")


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty, the header first; cells without blanks around them.

    Raises:
        SamAdaptError: the file cannot be read, or is no table.
    """
    text = _decoded(path)
    head = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise SamAdaptError(
            f"{path}, line {reader.line_num}: not a row of a table ({error}); save it as CSV again"
        ) from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SamAdaptError(f"table {path} cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and content[1:2] == b"\0":
        encoding = "utf-16-le"  # saved without its mark
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        warnings.warn(
            f"{path} is not UTF-8; it is read as Latin-1 (Windows-1252)", SamAdaptWarning, stacklevel=2
        )
    if "\0" in text:
        raise SamAdaptError(f"{path} is not a table of text; save it as CSV, UTF-8")
    return text
