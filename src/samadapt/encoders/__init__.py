"""Image encoders: a table of them, and how one is named (`EncoderSpec`) and loaded (`Extractor`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from samadapt.encoders.checkpoints import SHA256
from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.spec import EncoderSpec, Extractor, load_encoder
from samadapt.encoders.table import ENCODERS
from samadapt.weights import PublishedFile


def is_published(name: str, checkpoint: str | Path) -> bool:
    """Whether a checkpoint bears the name of a file that the encoder's authors published; loading it checks its hash."""
    published = ENCODERS[name].published if name in ENCODERS else None
    if published is not None and str(checkpoint) == published.identity:
        return True
    known = set(SHA256) | ({published.file} if isinstance(published, PublishedFile) else set())
    return Path(checkpoint).name in known


def missing_file(name: str) -> PublishedFile | None:
    """The file of the encoder's weights, where it is one that a package or the user's cache holds, and is not here."""
    published = ENCODERS[name].published if name in ENCODERS else None
    missing = isinstance(published, PublishedFile) and published.find() is None
    return published if missing else None  # type: ignore[return-value]


def first_with_weights(names: Iterable[str]) -> str:
    """Of the encoders that a head would rather read, the first one whose weights are on this machine.

    Those whose weights come with samadapt, or from the hub, count as being there.
    """
    return next(name for name in names if missing_file(name) is None)
