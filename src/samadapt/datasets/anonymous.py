"""Codes in place of the names of cases and patients: `--anonymous FILE`.

The file is a table of kind, code and name. Its first row is a secret, from which the codes are computed, so that the same name
has the same code in every command that is given the file, and nobody can guess names from codes without it. It is the only
place that has the names: it stays with the data.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samadapt.datasets.csvs import read_rows
from samadapt.datasets.dataset import Entry
from samadapt.files import write_csv
from samadapt.opening import Opening
from samadapt.types import SamAdaptError, SamAdaptWarning

NONE = "none"  # typed in place of a file: names are written as they are
_HEAD = ["kind", "code", "name"]
_SECRET = "secret"
_DIGITS = 12  # of a code, hexadecimal


@dataclass(frozen=True)
class NameKey:
    """The secret of a project, and the names that its codes stand for."""

    path: Path
    secret: str
    names: Mapping[tuple[str, str], str]  # (kind, code) -> name

    @property
    def recorded(self) -> str:
        """As an `Opening` has it: where the file is, and which secret is in it."""
        return f"{hashlib.sha256(self.secret.encode()).hexdigest()[:8]} {self.path}"

    def code(self, kind: str, name: str) -> str:
        """Of a name; the kind is "case" or "patient"."""
        digest = hmac.new(self.secret.encode(), f"{kind}:{name}".encode(), hashlib.sha256).hexdigest()
        return f"{kind}_{digest[:_DIGITS]}"

    def name(self, kind: str, code: str) -> str:
        """What a code stands for; the code itself where the file does not know it."""
        return self.names.get((kind, code), code)

    def hide(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """The entries with codes in place of names, which are added to the file."""
        hidden = tuple(
            replace(e, id=self.code("case", e.id), group=self.code("patient", e.group or e.id))
            for e in entries
        )
        told = {("case", new.id): old.id for new, old in zip(hidden, entries, strict=True)}
        told |= {
            ("patient", new.group or ""): old.group or old.id
            for new, old in zip(hidden, entries, strict=True)
        }
        now = (
            open_key(self.path) if self.path.is_file() else self
        )  # another command may have added names since
        if now.secret != self.secret:
            raise SamAdaptError(
                f"--anonymous {self.path} was replaced while it was used; run the command again"
            )
        if any(key not in now.names for key in told):
            replace(self, names={**now.names, **told}).write()
        return hidden

    def hide_folds(
        self, folds: Sequence[tuple[Sequence[str], Sequence[str]]]
    ) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """Lists of cases, (train, val) of each fold, as codes."""
        return tuple(
            (tuple(self.code("case", name) for name in train), tuple(self.code("case", name) for name in val))
            for train, val in folds
        )

    def write(self) -> None:
        """The whole file."""
        rows = [
            (_SECRET, self.secret, ""),
            *((kind, code, name) for (kind, code), name in self.names.items()),
        ]
        write_csv(self.path, _HEAD, rows)


def open_key(path: str | Path) -> NameKey:
    """The key in a file, which is made where it is not there."""
    path = Path(path).absolute()
    if not path.exists():
        NameKey(path, secrets.token_hex(32), {}).write()
    if not path.is_file():
        raise SamAdaptError(
            f"--anonymous {path} is a folder; expected a file that keeps the names and the secret of their codes; it is made if "
            "it is not there"
        )
    rows = [row for _, row in read_rows(path)]
    whole = all(len(row) == len(_HEAD) for row in rows[2:]) and len(rows) > 1
    if not whole or rows[0] != _HEAD or rows[1][0] != _SECRET or len(rows[1][1]) < 16:
        raise SamAdaptError(
            f"--anonymous {path} is not a file that samadapt made for this (columns {', '.join(_HEAD)}, the secret first); give "
            "another name, and it is made"
        )
    return NameKey(path, rows[1][1], {(kind, code): name for kind, code, name in rows[2:]})


def coded_alike(one: str, other: str) -> bool:
    """Whether names mean the same in two openings, by what is recorded of their codes."""
    return one.partition(" ")[0] == other.partition(" ")[0]


def find_key(given: str | None, opening: Opening) -> NameKey | None:
    """The key for files that are read as those of `opening` were: the one that was given, else the one that it names.

    Raises:
        SamAdaptError: it names one that is not there, and none was given.
    """
    if given is not None:
        key = None if given == NONE else open_key(given)
        if not coded_alike(opening.anonymous, "" if key is None else key.recorded):
            warnings.warn(
                "names are coded otherwise than those of the run were (--anonymous), so cases that the model learned from are "
                "not recognised: do not take their scores for those of new cases",
                SamAdaptWarning,
                stacklevel=3,
            )
        return key
    if not opening.anonymous:
        return None
    path = Path(opening.anonymous.partition(" ")[2])
    if not path.is_file():
        raise SamAdaptError(
            f"the names of the run are coded (--anonymous {path}), and that file is not there; give --anonymous FILE: the same "
            f"file, or a new one that is made (cases that the model learned from are then not recognised), or --anonymous {NONE} "
            "to write names as they are"
        )
    return find_key(str(path), opening)
