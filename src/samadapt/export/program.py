"""The network as torch.export saves it, and the text of the runner."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch

from samadapt.adapted import AdaptedModel
from samadapt.export import graph, runner
from samadapt.files import write_bytes

RUNNER = "runner.py"


def write_program(model: AdaptedModel, path: Path) -> str:
    """Pixels -> logits; the name of the file."""
    program = graph.whole(model)
    saved = io.BytesIO()  # where a disk is full, torch ends the process
    with warnings.catch_warnings(action="ignore"):  # torch's, about its own insides
        torch.export.save(program, saved)
    write_bytes(path, saved.getvalue())
    return path.name


def runner_text() -> str:
    """The runner, as it leaves with a model."""
    return Path(runner.__file__).read_text(encoding="utf-8")
