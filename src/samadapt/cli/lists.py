"""`samadapt list`: what there is to choose from, one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from samadapt.encoders import ENCODERS
from samadapt.heads import HEADS, options_of
from samadapt.metrics import METRICS
from samadapt.names import TASKS
from samadapt.options import Declared, near, show
from samadapt.overlap import PUBLIC_DATA, training_of
from samadapt.settings import TABLES
from samadapt.types import SamAdaptError

Rows = list[tuple[str, str]]


def _encoders() -> list[tuple[str, str]]:
    return [(name, f"{entry.text}\n{_trained_on(name)}") for name, entry in sorted(ENCODERS.items())]


def _trained_on(encoder: str) -> str:
    """What its training saw: in words, then the public data that are known to be in it."""
    training = training_of(encoder)
    lines = [f"Trained on {training.text}."]
    seen: dict[str, list[str]] = {}
    for key, saw in training.saw.items():
        seen.setdefault(saw.certainty, []).append(PUBLIC_DATA[key].title)
    lines += [f"{certainty.capitalize()}: {', '.join(titles)}." for certainty, titles in seen.items()]
    lines += [f"Source: {source}." for source in dict.fromkeys(saw.source for saw in training.saw.values())]
    return "\n".join(lines)


def _heads(task: str) -> list[tuple[str, str]]:
    rows = []
    for name, head in sorted(HEADS.items()):
        if head.task != task:
            continue
        first = (inspect.getdoc(head) or "").partition("\n")[0]
        options = ", ".join(f"{found.name} ({_values(found)})" for found in options_of(head).values())
        rows.append((name, f"{first}\nOptions (--set): {options}."))
    return rows


def _values(found: Declared) -> str:
    """Which values an option takes: "a whole number", "a whole number; default 64"."""
    default = show(found.default)
    return f"{found.expected}{f'; default {default}' if default else ''}"


def _settings() -> list[tuple[str, str]]:
    """What a study's file can hold, table by table: what each option is for, which values it takes, its default."""
    rows = []
    for table, options in {**TABLES, "unet": options_of(HEADS["unet"])}.items():
        for name, found in options.items():
            values = _values(found)
            text = f"{found.option.help} {values[0].upper()}{values[1:]}.".strip()
            rows.append((f"{table}.{name}" if table else name, text))
    return rows


def _metrics(task: str) -> list[tuple[str, str]]:
    return [(name, metric.text) for name, metric in sorted(METRICS.items()) if metric.task == task]


#: What can be listed: title of a section -> its rows.
LISTS: dict[str, dict[str, Callable[[], Rows]]] = {
    "encoders": {"encoders": _encoders},
    "heads": {f"heads for {task}": partial(_heads, task) for task in TASKS},
    "metrics": {f"metrics of {task}": partial(_metrics, task) for task in TASKS},
    "settings": {"settings of a study's file": _settings},
}


def sections(what: str) -> dict[str, Rows]:
    """The list `what`, a key of `LISTS`: title -> its rows of names and texts."""
    if what not in LISTS:
        raise SamAdaptError(f"nothing to list under {what!r}; known: {', '.join(LISTS)}{near(what, LISTS)}")
    return {title: rows() for title, rows in LISTS[what].items()}


def describe(what: str, titled: bool = False) -> str:
    """The same as aligned text, with titles where there are several sections or they are asked for."""
    found = sections(what)
    titled = titled or len(found) > 1
    return "\n\n".join((f"{title}\n" if titled else "") + _aligned(rows) for title, rows in found.items())


def _aligned(rows: Rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {text}".replace("\n", "\n" + " " * (width + 2)) for name, text in rows
    )
