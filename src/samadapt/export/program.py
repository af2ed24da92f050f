"""The network as torch.export saves it, and the text of the runner."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import torch

from samadapt.adapted import AdaptedModel
from samadapt.export import graph, runner
from samadapt.files import write_through_memory

RUNNER = "runner.py"


def write_program(model: AdaptedModel, path: Path) -> str:
    """Pixels -> logits; the name of the file."""
    program = graph.whole(model)
    with warnings.catch_warnings(action="ignore"):  # torch's, about its own insides
        write_through_memory(path, partial(torch.export.save, program))
    return path.name


def runner_text() -> str:
    """The runner, as it leaves with a model."""
    return Path(runner.__file__).read_text(encoding="utf-8")
