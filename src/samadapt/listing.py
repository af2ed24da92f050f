"""`samadapt list`: what there is to choose from, one line each."""

from __future__ import annotations

import inspect

from samadapt.encoders import ENCODERS
from samadapt.heads import HEADS
from samadapt.metrics import METRICS
from samadapt.overlap import PUBLIC_DATA, training_of
from samadapt.types import SamAdaptError


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _encoders() -> list[tuple[str, str]]:
    return [(name, f"{entry.text}\n{_trained_on(name)}") for name, entry in ENCODERS.items()]


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


def _heads() -> list[tuple[str, str]]:
    hidden = ("taps", "n_classes", "pretrained", "units")
    rows = []
    for name, head in HEADS.items():
        options = [o for o in inspect.signature(head).parameters if o not in hidden]
        rows.append((name, f"{_first_line(head)} Options: {', '.join(options)}."))
    return rows


def _metrics() -> list[tuple[str, str]]:
    return [(name, metric.text) for name, metric in METRICS.items()]


TABLES = {"encoders": _encoders, "heads": _heads, "metrics": _metrics}


def describe(what: str) -> str:
    """The table `what` ("encoders", "heads" or "metrics") as aligned text."""
    if what not in TABLES:
        raise SamAdaptError(f"nothing to list under {what!r}; known: {', '.join(TABLES)}")
    rows = sorted(TABLES[what]())
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {text}".replace("\n", "\n" + " " * (width + 2)) for name, text in rows
    )
