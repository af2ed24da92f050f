"""`samadapt info`: what a run folder is, from the files in it; no network is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from samadapt.calibration import read_calibration
from samadapt.course import Course
from samadapt.datasets import Split
from samadapt.encoders import ENCODERS
from samadapt.files import file_sha256, write_json
from samadapt.heads import HEADS
from samadapt.metrics import Summary, format_table, read_scores, summarise
from samadapt.overlap import MARK, of_own_weights, overlaps
from samadapt.postprocessing import Postprocessing, read_postprocessing
from samadapt.predicted import read_predictions
from samadapt.runs import demand_split, find_run, read_config, read_json, weights_file
from samadapt.types import SamAdaptError
from samadapt.weights import RANDOM

#: In a run folder: the scores of its predictions, a table for each folder of predictions.
EVALUATIONS = "evaluations.json"


def describe_run(run: str | Path) -> dict[str, Any]:
    """Everything that is known of a run, JSON-able.

    Raises:
        SamAdaptError: it is no run folder, or one of another version.
    """
    run = find_run(run)
    config = read_config(run)
    demand_split(run, config)
    opening, data, trained = config["opening"], config["data"], config["train"]
    split = Split.read(run / "split.json") if config.get("split_hash") else None
    finished = weights_file(run).is_file()
    course = Course.read(run) if (run / "metrics.csv").is_file() else None
    done = course.steps[-1] if course and course.steps else 0
    return {
        "run": str(run),
        "finished": finished,
        "task": opening["task"],
        "classes": opening["classes"],
        "data": {
            "name": data["name"],
            "layout": opening["layout"],
            "channels": opening["channel_names"],
            "window": config["maps"]["window"],
            "patients_by": opening["group_rule"],
            "sha256": data["hash"],
        },
        "labelled": {
            "training_cases": len(data["train"]),
            "selection_cases": len(data["select"]),
            "patients": len(split.patients) if split else None,
            "test_cases": len(split.val) if split else None,
            "rule": split.rule if split else "",
        },
        "encoder": _encoder(config),
        "head": config["head"],
        "tuning": trained["tune"],
        "views": config["maps"]["views"] if config["stored_maps"] else 0,
        "augmentation": config["maps"]["augmentation"],
        "steps": trained["steps"],
        "steps_done": done,
        "seed": trained["seed"],
        "train": trained,
        "selection": config["selection"],
        **asdict(read_postprocessing(run)),
        "calibration": asdict(found) if (found := read_calibration(run)) else None,
        "last_loss": course.loss[-1] if course and course.loss else None,
        "too_few_steps": course.too_few_steps if finished and course else None,
        "scores": _scores(run, split),
        "sha256": {
            "head": file_sha256(weights_file(run)) if finished else None,
            "split": config.get("split_hash"),
            "encoder_fingerprint": config["encoder_fingerprint"],
        },
        "bytes": sum(path.stat().st_size for path in run.rglob("*") if path.is_file()),
        "environment": _json(run / "environment.json"),
    }


def _encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """Its name, its weights, and what their training has seen of the cases of the run."""
    encoder, data = config["encoder"], config["data"]
    name, checkpoint = encoder["name"], encoder.get("checkpoint")
    cases = [*data["train"], *data["select"]]
    uses = HEADS[config["head"]["name"]].uses_encoder if config["head"]["name"] in HEADS else True
    found = []
    published = checkpoint is None or (name in ENCODERS and ENCODERS[name].is_published(checkpoint))
    if uses and published and checkpoint != RANDOM:
        found = [each for each in overlaps(name, [data["name"]], cases) if each.warns]
    elif uses and checkpoint != RANDOM:
        found = [of_own_weights(name, checkpoint, len(cases))]
    return {
        "name": name,
        "weights": "random" if checkpoint == RANDOM else checkpoint or "published",
        "side": encoder["side"],
        "used": uses,
        "overlap": [each.text for each in found],
    }


def _scores(run: Path, split: Split | None) -> dict[str, Any]:
    """Folder of predictions (or the run's own table) -> the rows of its summary."""
    found: dict[str, Any] = dict(_json(run / EVALUATIONS))
    if (run / "scores.csv").is_file():
        scores = read_scores(run / "scores.csv")
        patients = {
            score.case: (split.patient_of.get(score.case, score.case) if split else score.case)
            for score in scores
        }
        found["scores.csv of the run"] = {
            "summary": [vars(row) for row in summarise(scores, patients)] if _summed(scores) else []
        }
    return found


def _summed(scores: Sequence[Any]) -> bool:
    """Whether means over cases say something of them; the probabilities of a classifier are no scores."""
    return all(score.metric not in ("probability", "truth") for score in scores)


def record_evaluation(predictions: Path, table: Path) -> Path | None:
    """Keep the means of an evaluation in the run that predicted; None where that is not there, or is another one by now.

    Args:
        predictions: folder of label maps or probabilities.
        table: the scores, as `write_evaluation` wrote them.
    """
    note = read_predictions(predictions) if predictions.is_dir() else None
    run = Path(note.run) if note is not None else None
    if note is None or run is None or not weights_file(run).is_file():
        return None
    if file_sha256(weights_file(run)) != note.model:
        return None
    about = _json(table.with_suffix(".summary.json"))
    kept = {name: about[name] for name in ("truth", "scores_sha256", "notes", "summary")}
    try:
        write_json(run / EVALUATIONS, _json(run / EVALUATIONS) | {str(predictions.resolve()): kept})
    except SamAdaptError:  # a run that may only be read is still a run
        return None
    return run


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else {}


# ---------------------------------------------------------------- in words


def _calibration(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none"
    return f"temperature {found['temperature']:.2f}, fitted on {len(found['cases'])} selection cases"


def format_run(about: Mapping[str, Any]) -> str:
    """The same as aligned text."""
    data, labelled, encoder = about["data"], about["labelled"], about["encoder"]
    patients = "" if labelled["patients"] is None else f" of {labelled['patients']} labelled patients"
    packages = about["environment"].get("packages", {})
    views = f"{about['views']} stored views of each slice" if about["views"] else "a new view in every step"
    state = "finished" if about["finished"] else f"not finished: {about['steps_done']} steps are done"
    shown = encoder["name"] + (
        f"{MARK} ({encoder['weights']} weights)" if encoder["overlap"] else f" ({encoder['weights']} weights)"
    )
    rows = [
        ("run", f"{about['run']} ({state})"),
        ("task", f"{about['task']} of {', '.join(about['classes'])}"),
        ("data", f"{data['name']} ({data['layout']}); channels {', '.join(data['channels'])}; window {data['window']}"),
        ("patients", data["patients_by"]),
        ("labels", f"{labelled['training_cases']} training and {labelled['selection_cases']} selection cases{patients}"),
        ("split", labelled["rule"] or "none was recorded"),
        ("encoder", f"{shown}, square of {encoder['side']} px" if encoder["used"] else f"none; the head reads pixels, square of {encoder['side']} px"),
        ("head", _options(about["head"])),
        ("tuning", about["tuning"]),
        ("training", f"{about['steps']} steps, seed {about['seed']}, {views}, augmentation {about['augmentation']}"),
        ("kept", about["selection"]),
        ("clean-up", Postprocessing(tuple(about["keep_largest"]), about["smooth_slices"]).text),
        ("calibration", _calibration(about["calibration"])),
        ("loss", "not known" if about["last_loss"] is None else f"{about['last_loss']:.3g} in the last batch"),
        ("size", f"{about['bytes'] / 2**20:.1f} MiB"),
        ("head sha256", about["sha256"]["head"] or "not finished"),
        ("data sha256", data["sha256"]),
        ("encoder is", about["sha256"]["encoder_fingerprint"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in packages.items()) or "not recorded"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    lines += [f"{MARK} {text}" for text in encoder["overlap"]]
    lines += [f"note: {about['too_few_steps']}"] if about["too_few_steps"] else []
    lines += [text for name, of in about["scores"].items() for text in _table(name, of)]
    return "\n".join(lines if about["scores"] else [*lines, "scores: none were recorded (samadapt evaluate)"])


def _options(head: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in head.items() if key not in ("name", "n_classes"))
    return f"{head['name']} ({options})" if options else str(head["name"])


def _table(name: str, of: Mapping[str, Any]) -> list[str]:
    rows = [Summary(**{key: _number(value) for key, value in row.items()}) for row in of["summary"]]
    notes = [f"note: {text}" for text in of.get("notes", ())]
    return ["", f"scores of {name}", *([format_table(rows)] if rows else []), *notes]


def _number(value: Any) -> Any:
    """JSON has null for what is undefined."""
    return math.nan if value is None else value
