"""`model.json`: what a program that is not samadapt must know to use the network, and what a person should know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samadapt.export.job import Job
from samadapt.export.runner import PREPARES
from samadapt.files import file_sha256, write_json
from samadapt.info import describe_run
from samadapt.postprocessing import Postprocessing
from samadapt.prediction import Classifier, Segmenter
from samadapt.runs import read_json
from samadapt.transforms import Window
from samadapt.types import PIXELS, TOGETHER, SamAdaptError

NAME = "model.json"
_FORMAT = 1


def describe_export(
    predictor: Segmenter | Classifier, run: Path, done: Postprocessing, network: Sequence[str]
) -> dict[str, Any]:
    """Without the hashes of the files and the comparison, which come last.

    Args:
        done: what becomes of the answers.
        network: the files that compute logits from pixels, in order.
    """
    opening, spec, about = predictor.opening, predictor.model.spec, describe_run(run)
    prepare = spec.prepare.split(TOGETHER)
    unknown = [name for name in prepare if name not in PREPARES]
    if unknown:
        raise SamAdaptError(
            f"the preparation {unknown[0]!r} of encoder {spec.name!r} is not in the runner, which knows {', '.join(sorted(PREPARES))}; "
            "use the model through samadapt"
        )
    names = opening.channel_names
    return {
        "format": _FORMAT,
        "made_by": f"samadapt {version('samadapt')}",
        "task": opening.task,
        "classes": list(opening.classes),
        "multilabel": opening.multilabel,
        "modality": opening.modality,
        "channels": {
            "names": list(names),
            "used": list(range(len(names)) if opening.channels is None else opening.channels),
            "chosen": opening.channels is not None,
        },
        "depth": opening.depth,
        "window": dataclasses.asdict(Window.parse(opening.window)),
        "side": spec.side,
        "prepare": prepare,
        "slices": spec.slices,
        "plane": {**dataclasses.asdict(opening.plane), "orientation": opening.plane.orientation},
        "label_values": {str(value): label for value, label in opening.label_values.items()},
        "keep_largest": list(done.keep_largest),
        "smooth_slices": done.smooth_slices,
        "network": list(network),
        "input": {PIXELS: ["batch", *spec.taps[PIXELS]]},
        "encoder": {
            "name": spec.name,
            "fingerprint": about["sha256"]["encoder_fingerprint"],
            "weights": Path(about["encoder"]["weights"]).name,
            "overlap": about["encoder"]["overlap"],
        },
        "head": about["head"],
        "tuning": about["tuning"],
        "sha256": about["sha256"]["head"],
        "data": {"name": about["data"]["name"], "labelled": about["labelled"]},
    }


def with_hashes(about: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same with the hash of every file of the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {**about, "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}}


def write_about(job: Job, folder: Path, network: Sequence[str]) -> None:
    """model.json of a folder that is complete without it."""
    write_json(
        folder / NAME,
        with_hashes(describe_export(job.predictor, job.run, job.postprocessing, network), folder),
    )


def note_check(_: Job, folder: Path, comparison: dict[str, Any]) -> None:
    """Add what the comparison found."""
    write_json(folder / NAME, {**read_json(folder / NAME), "check": comparison}, finished=True)
