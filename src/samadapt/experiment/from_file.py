"""A study as plain settings: from a TOML file, from one of the presets, or from the command line's options."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samadapt.datasets import Dataset
from samadapt.encoders import first_with_weights
from samadapt.experiment.grid import Grid
from samadapt.experiment.methods import Method, TrainedMethod
from samadapt.experiment.registry import BaselineOptions, build_methods, reading_heads
from samadapt.heads import HEADS, check_options, options_of
from samadapt.learner import Learner, default_encoder, default_note
from samadapt.options import Declarations, Declared, Option, declared, read_table, without
from samadapt.records import ROLES
from samadapt.settings import (
    TABLES,
    LearnerSettings,
    NnUNetConfig,
    SimclrConfig,
    StudySettings,
    TrainConfig,
    UnlabelledOptions,
)
from samadapt.types import PIXELS, SamAdaptError
from samadapt.unlabelled import POOL

#: That run in milliseconds, the better first; the others would take more than the five minutes on a CPU.
_QUICK_ENCODERS = ("imagenet_lite0", "sam_nano")
_PRESETS = Path(__file__).parent / "presets"
_TABLES: dict[str, Declarations] = {**TABLES, "unet": options_of(HEADS["unet"])}
_TOP = _TABLES.pop("")
#: A learner of one's own may have unlabelled scans; other scans than the study's would not be those of the draw.
_UNLABELLED = declared(UnlabelledOptions) | {
    "unlabelled": dataclasses.replace(
        declared(UnlabelledOptions)["unlabelled"],
        option=Option(
            "pool: the patients that are neither labelled in the draw nor held out.", choices=(POOL,)
        ),
    )
}
#: What a learner of one's own may train otherwise.
_OWN_TRAINING = without(_TABLES["train"], "device", "workers")


def preset_names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def read_settings(path: str | Path) -> dict[str, Any]:
    """A TOML file, or a preset by its name; unknown settings and wrong values are errors."""
    path = _PRESETS / f"{path}.toml" if str(path) in preset_names() else Path(path)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SamAdaptError(
            f"{path} cannot be read ({error}); give a TOML file or one of {', '.join(preset_names())}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SamAdaptError(f"{path} is not TOML: {error}; see docs/studies.md for an example") from error
    _read(settings)
    return settings


def quick_settings(task: str, data: Dataset | None = None) -> dict[str, Any]:
    """The study of `--quick` for a task.

    Args:
        data: whose number of labelled patients the study does not exceed; None: it asks for as many as its file says.
    """
    settings = read_settings(_PRESETS / "quick" / f"{task}.toml")
    if data is not None:
        available = len({data.groups[i] for i in data.split().train})
        settings["labels"] = [min(n, available) for n in settings["labels"]]
    settings["encoder"]["encoder"] = first_with_weights(_QUICK_ENCODERS)
    return settings


def make_study(
    settings: Mapping[str, Any], task: str, data: Dataset | None = None
) -> tuple[Grid, TrainConfig]:
    """The grid and the common training configuration; unknown keys and wrong values are errors.

    Args:
        settings: the fields of `StudySettings`, `select` and `fold`; tables as in `samadapt.settings.TABLES`, and
            `unet` (options of that head); and tables `learner.<name>`, a learner of one's own: fields of `Learner`,
            its `role` in the study, and a table `train` of what differs.
        data: whose slices decide the side of the square for learners that are given none; None: the encoder's own.

    Example:
        >>> grid, config = make_study({"learners": ["cnn"], "labels": [1, 2], "seeds": 2}, "segmentation")
        >>> grid.seeds
        (0, 1)
    """
    top, tables, own = _read(settings)
    study = StudySettings(**{name: value for name, value in top.items() if name in declared(StudySettings)})
    names, shared = study.learners or tuple(own), tables["encoder"]
    if not shared.get("encoder") and not shared.get("checkpoint"):
        # One for all, so that heads are compared on the same maps.
        shared["encoder"] = default_encoder(*reading_heads(names, own))
    base = Learner(**shared)
    check_options(base.head, base.options)
    baselines = BaselineOptions(
        tables["unet"], SimclrConfig(**tables["simclr"]), NnUNetConfig(**tables["nnunet"])
    )

    def suited(learner: Learner) -> Learner:
        return learner if data is None else learner.suited_to(data)

    methods = build_methods([n for n in names if n not in own], task, suited(base), baselines)
    made = {n: _own(own[n], base, shared.get("views"), suited) if n in own else methods[n] for n in names}
    grid = Grid(
        made,
        tuple(None if n == "all" else n for n in study.labels),
        tuple(range(study.seeds)) if isinstance(study.seeds, int) else study.seeds,
        encoder=base.encoder,
        **{name: top[name] for name in ("select", "fold", "quick", "stacked", "threads") if name in top},
    )
    return grid, TrainConfig(**tables["train"])


def _read(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict], dict[str, dict]]:
    """What stands above the tables, the tables, and the learners of the user's own; all of it checked."""
    known = _TOP | {name: Declared(name, Mapping[str, Any], {}) for name in (*_TABLES, "learner")}
    given = read_table("the study", settings, known, prefix="")
    top = {name: value for name, value in given.items() if name in _TOP}
    tables = {name: read_table(name, given.get(name, {}), found) for name, found in _TABLES.items()}
    return top, tables, {n: _read_own(f"learner.{n}", table) for n, table in given.get("learner", {}).items()}


def _read_own(where: str, table: Any) -> dict[str, Any]:
    training = Declared("train", Mapping[str, Any], {}, Option("What its training does otherwise."))
    role = Declared("role", str | None, None, Option("What it is in the study.", choices=ROLES))
    known = {**declared(LearnerSettings), **_UNLABELLED, "role": role, "train": training}
    own = read_table(where, table, known)
    if "train" in own:
        own["train"] = read_table(f"{where}.train", own["train"], _OWN_TRAINING)
    return own


def encoder_note(settings: Mapping[str, Any], grid: Grid) -> str | None:
    """Which encoder a study reads that names none, and why; None where no learner reads one."""
    own = settings.get("learner", {})
    heads = reading_heads(settings.get("learners", list(own)), own)
    return default_note(grid.encoder, *heads) if heads else None


def _own(
    table: Mapping[str, Any], base: Learner, views: int | None, suited: Callable[[Learner], Learner]
) -> Method:
    """A learner of the user's own, like `base` but for what its table says; without `views` its encoder's default."""
    head = HEADS[table.get("head", base.head)]
    if head.encoders == (PIXELS,):  # the study's encoder is not for it
        base = dataclasses.replace(base, encoder=PIXELS, checkpoint=None, prepare=None)
    changed = {"views": views} | {
        key: value for key, value in table.items() if key in declared(LearnerSettings)
    }
    learner = suited(dataclasses.replace(base, **changed))
    check_options(learner.head, learner.options)
    unlabelled = UnlabelledOptions(**{key: value for key, value in table.items() if key in _UNLABELLED})
    return TrainedMethod(learner, table.get("train", {}), table.get("role"), unlabelled)
