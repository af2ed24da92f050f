"""The trained runs that a server answers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samadapt import io
from samadapt.ensemble import member_runs, model_hash
from samadapt.figures import COLOURS
from samadapt.folders import load_heads
from samadapt.opening import Opening
from samadapt.prediction import Classifier, Segmenter
from samadapt.runs import find_run
from samadapt.types import SamAdaptError


@dataclass(frozen=True)
class Served:
    """A run, or a folder of runs whose heads answer together."""

    name: str  # of its folder
    members: tuple[Segmenter | Classifier, ...]
    hash: str  # sha256 of the weights of the heads

    @property
    def first(self) -> Segmenter | Classifier:
        """The member that says how files are read and answers are written."""
        return self.members[0]

    @property
    def opening(self) -> Opening:
        """How files become its cases."""
        return self.first.opening

    @property
    def most_together(self) -> int:
        """How many small pictures that wait are answered in one go: eight times what passes the network together."""
        return 8 * self.first.max_batch(False)

    @property
    def legend(self) -> io.Legend:
        """What the numbers of its label maps mean."""
        return io.Legend(self.first.classes, {}, version("samadapt"), self.hash)

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels that it reads."""
        used = self.opening.channels
        names = self.opening.channel_names
        return names if used is None else tuple(names[number] for number in used)

    def describe(self, outputs: Sequence[str]) -> dict[str, Any]:
        """As `/models` tells it.

        Args:
            outputs: in which forms it answers.
        """
        encoder = self.first.model.spec.name
        return {
            "name": self.name,
            "task": self.opening.task,
            "classes": [
                {"value": value, "name": name, "colour": colour_of(value, self.opening.task)}
                for value, name in enumerate(self.first.classes)
            ],
            "several_classes": self.opening.multilabel,
            "channels": list(self.channels),
            "files": len(self.opening.channel_names),
            "pictures": self.opening.depth is not None,
            "modality": self.opening.modality or None,
            "encoder": None if self.first.head.pixels_only else encoder,
            "head": str(self.first.head.spec["name"]),
            "heads": len(self.members),
            "outputs": list(outputs),
            "saliency": isinstance(self.first, Classifier) and self.first.has_saliency,
            "model_sha256": self.hash,
        }


def colour_of(value: int, task: str) -> str | None:
    """The colour of a class over its scan, #rrggbb; None for a background."""
    first = 1 if task == "segmentation" else 0
    return None if value < first else COLOURS[(value - first) % len(COLOURS)]


def load_models(runs: Sequence[str | Path], device: str, checkpoint: str | None = None) -> dict[str, Served]:
    """The runs by the names of their folders, in their order.

    Args:
        runs: folders, or runs of the Hugging Face hub, as for `load_run`.
        device, checkpoint: as for `load_run`.

    Raises:
        SamAdaptError: two folders have one name, or a run cannot be loaded.
    """
    found: dict[str, Served] = {}
    places: dict[str, str | Path] = {}
    for run in runs:
        folder = find_run(run)
        name = (folder.resolve() if Path(run).exists() else Path(run)).name  # NAME@REVISION of the hub
        if name in found:
            raise SamAdaptError(
                f"{places[name]} and {run} are both called {name!r}, by which clients ask for a model; rename one of the folders"
            )
        heads = member_runs(folder)
        found[name] = Served(name, tuple(load_heads(heads, device, checkpoint)), model_hash(heads))
        places[name] = run
    return found
