"""A study as plain settings: from a TOML file, from one of the presets, or from the command line's options."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samadapt.baselines.nnunet import NnUNetConfig
from samadapt.experiment.grid import Grid
from samadapt.experiment.methods import Method, TrainedMethod
from samadapt.experiment.registry import BaselineOptions, build_methods, reading_heads
from samadapt.heads import HEADS
from samadapt.learner import Learner, default_encoder, default_note
from samadapt.records import ROLES
from samadapt.simclr import SimclrConfig
from samadapt.training import TrainConfig
from samadapt.types import PIXELS, SamAdaptError

_PRESETS = Path(__file__).parent / "presets"
_GRID = ("labels", "seeds", "select", "fold", "stacked", "threads")
_TABLES = ("encoder", "train", "learner", "unet", "simclr", "nnunet")


def preset_names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def read_settings(path: str | Path) -> dict[str, Any]:
    """A TOML file, or a preset by its name."""
    path = _PRESETS / f"{path}.toml" if str(path) in preset_names() else Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SamAdaptError(
            f"{path} cannot be read ({error}); give a TOML file or one of {', '.join(preset_names())}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SamAdaptError(f"{path} is not TOML: {error}; see docs/studies.md for an example") from error


def make_study(settings: Mapping[str, Any], task: str) -> tuple[Grid, TrainConfig]:
    """The grid and the common training configuration; an unknown key is an error.

    Args:
        settings: `learners` (names), `labels`, `seeds` (a number, or a list), `select`, `fold`, `stacked`, `threads`;
            tables: `encoder` (fields of `Learner` for all), `train` (fields of `TrainConfig`), `unet` (options of
            the head, e.g. width), `simclr` and `nnunet` (fields of `SimclrConfig` and `NnUNetConfig`), and `learner.<name>`,
            a learner of one's own: fields of `Learner`, a `role`, and a table `train` of what differs.

    Example:
        >>> grid, config = make_study({"learners": ["cnn"], "labels": [1, 2], "seeds": 2}, "segmentation")
        >>> grid.seeds
        (0, 1)
    """
    _demand_known("the study", settings, ("learners", *_GRID, *_TABLES))
    own = settings.get("learner", {})
    names = _list(settings, "learners", list(own))
    shared = _fields("encoder", settings, Learner)
    if not shared.get("encoder") and not shared.get("checkpoint"):
        # One for all, so that heads are compared on the same maps.
        shared["encoder"] = default_encoder(*reading_heads(names, own))
    base = Learner(**shared)
    labels = tuple(None if n == "all" else n for n in _list(settings, "labels", [1, 2, 5]))
    wrong = [n for n in labels if n is not None and (isinstance(n, bool) or not isinstance(n, int | float))]
    if wrong:
        raise SamAdaptError(f'labels holds {wrong[0]!r}; expected numbers of patients, shares, or "all"')
    seeds = settings.get("seeds", 3)
    options = {key: settings[key] for key in ("select", "fold", "stacked", "threads") if key in settings}
    unet = settings.get("unet", {})
    _demand_known("unet", unet, [*inspect.signature(HEADS["unet"]).parameters][2:])  # taps, n_classes
    baselines = BaselineOptions(
        unet,
        SimclrConfig(**_fields("simclr", settings, SimclrConfig)),
        NnUNetConfig(**_fields("nnunet", settings, NnUNetConfig)),
    )
    methods = build_methods([n for n in names if n not in own], task, base, baselines)
    views = shared.get("views")
    made = {n: _own(n, own[n], base, views) if n in own else methods[n] for n in names}
    options["encoder"] = base.encoder
    grid = Grid(made, labels, tuple(range(seeds) if isinstance(seeds, int) else seeds), **options)
    return grid, TrainConfig(**_fields("train", settings, TrainConfig, without=("seed",)))


def encoder_note(settings: Mapping[str, Any], grid: Grid) -> str | None:
    """Which encoder a study reads that names none, and why; None where no learner reads one."""
    own = settings.get("learner", {})
    heads = reading_heads(_list(settings, "learners", list(own)), own)
    return default_note(grid.encoder, *heads) if heads else None


def _own(name: str, table: Mapping[str, Any], base: Learner, views: int | None) -> Method:
    """A learner of the user's own, like `base` but for what its table says; without `views` its encoder's default."""
    where = f"learner.{name}"
    fields = [field.name for field in dataclasses.fields(Learner)]
    _demand_known(where, table, [*fields, "role", "train"])
    role = table.get("role")
    if role is not None and role not in ROLES:
        raise SamAdaptError(f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}")
    head = HEADS.get(table.get("head", base.head))
    if head is not None and head.encoders == (PIXELS,):  # the study's encoder is not for it
        base = dataclasses.replace(base, encoder=PIXELS, checkpoint=None, prepare=None)
    changed = {"views": views} | {key: table[key] for key in fields if key in table}
    learner = dataclasses.replace(base, **changed)
    train = _fields("train", table, TrainConfig, without=("seed", "device", "workers"))
    return TrainedMethod(learner, train, role)


def _fields(key: str, table: Mapping[str, Any], kind: type, without: Sequence[str] = ()) -> dict[str, Any]:
    """A table whose keys are fields of a dataclass."""
    known = [field.name for field in dataclasses.fields(kind) if field.name not in without]
    _demand_known(key, table.get(key, {}), known)
    return dict(table.get(key, {}))


def _demand_known(where: str, table: Any, known: Sequence[str]) -> None:
    if not isinstance(table, Mapping):
        raise SamAdaptError(f"{where} is {table!r}; expected a table with keys of {', '.join(known)}")
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise SamAdaptError(f"{where} has no setting {unknown[0]!r}; it has {', '.join(known)}")


def _list(settings: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = settings.get(key, default)
    if not isinstance(value, list | tuple):
        raise SamAdaptError(
            f"{key} is {value!r}; expected a list, e.g. {key} = {default or ['cnn', 'unet']!r}"
        )
    return list(value)
