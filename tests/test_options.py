"""Options are declared once: the command line, a study's file, validation and lists read the declaration."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from samadapt import settings
from samadapt.cli.lists import describe
from samadapt.cli.parameters import Given, Of, from_options
from samadapt.experiment import from_file, make_study, read_settings
from samadapt.heads import HEADS, check_options, options_of, read_options
from samadapt.learner import Learner
from samadapt.options import Checked, Option, declared, declared_by, option, read_table
from samadapt.options.kinds import fit, from_text, in_words
from samadapt.settings import (
    LearnerSettings,
    TrainConfig,
)
from samadapt.types import SamAdaptError

SETTINGS = [
    kind
    for kind in vars(settings).values()
    if dataclasses.is_dataclass(kind)
    and kind.__module__ == settings.__name__  # a new one is held to the same
]


@dataclass(frozen=True)
class Walk(Checked):
    """The options of a command that exists only here."""

    steps: int = option(10, "How many steps to take.", least=1)
    pace: str = option("slow", "How to walk.", choices=("slow", "brisk"))
    log: tuple[str, ...] = option((), "Where to write what was seen.", names=("diary", "map"))
    rest: float | None = option(None, "Share of the time to rest.", least=0, below=1, flag="--pause")
    dog: bool = option(False, "Whether the dog comes too.")


def command(function):
    """What a user types -> the arguments that the function was handed; mistakes come out as exceptions."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(from_options(function))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def handed(function, *words):
    result = command(function)(*words)
    assert result.exit_code == 0, result.output
    return SEEN.pop()


SEEN: list[Any] = []


def walk(way: Annotated[str, typer.Argument()], plan: Walk, quiet: bool = False) -> None:
    """Walk."""
    SEEN.append((way, plan, quiet))


# ---------------------------------------------------------------- one declaration, every place


@dataclass(frozen=True)
class Longer(TrainConfig):
    """How a training runs, with one option more."""

    patience: int = option(3, "Checks without progress before a training stops.", least=1)


def train(config: Longer) -> None:
    """Train."""
    SEEN.append(config)


def test_a_new_option_arrives_everywhere(monkeypatch):
    """On the command line, in the file of a study, in validation, in the list of settings."""
    assert handed(train).patience == 3 and handed(train, "--patience", 5).patience == 5
    assert "Checks without progress before" in command(train)("--help").output
    with pytest.raises(SamAdaptError, match="--patience is 0; expected a whole number from 1 on"):
        command(train)("--patience", 0)
    with pytest.raises(SamAdaptError, match="patience is 'long'; expected a whole number from 1 on"):
        Longer(patience="long")

    monkeypatch.setitem(from_file._TABLES, "train", declared(Longer))
    monkeypatch.setattr(from_file, "TrainConfig", Longer)
    settings = {"learners": ["unet"], "train": {"patience": 7}}
    assert make_study(settings, "segmentation")[1].patience == 7
    with pytest.raises(SamAdaptError, match=r"train\.patience is 0; expected a whole number from 1 on"):
        make_study({"learners": ["unet"], "train": {"patience": 0}}, "segmentation")

    monkeypatch.setitem(sys.modules["samadapt.cli.lists"].TABLES, "train", declared(Longer))
    assert "A whole number from 1 on; default 3." in describe("settings")


def test_a_new_option_of_a_head_arrives_everywhere(monkeypatch):
    class Taller(HEADS["cnn"].__mro__[1]):  # type: ignore[misc]
        """A head."""

        encoders = ("sam_nano",)
        task = "segmentation"

        def __init__(self, taps, n_classes, floors: int = 2, roof: Literal["flat", "steep"] = "flat"):
            raise AssertionError("nothing is built here")

    monkeypatch.setitem(HEADS, "taller", Taller)
    assert read_options("taller", {"floors": "3", "roof": "steep"}) == {"floors": 3, "roof": "steep"}
    with pytest.raises(SamAdaptError, match="--set floors is 'high'; expected a whole number"):
        read_options("taller", {"floors": "high"})
    with pytest.raises(SamAdaptError, match="head 'taller': roof is 'round'; expected one of flat, steep"):
        check_options("taller", {"roof": "round"})
    with pytest.raises(SamAdaptError, match=r"head 'taller' has no option 'floor'.*did you mean floors"):
        check_options("taller", {"floor": 1})
    assert "floors (a whole number; default 2), roof (one of flat, steep; default flat)" in describe("heads")


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_setting_is_declared_with_a_sentence_and_allows_its_default(kind):
    for name, found in declared(kind).items():
        assert found.option.help.endswith(".") and found.option.help[0].isupper(), name
    kind()


def test_settings_can_be_stored_and_come_back():
    for kind in SETTINGS:
        stored = json.loads(json.dumps(dataclasses.asdict(kind())))
        assert kind(**stored) == kind()
    assert Walk(**json.loads(json.dumps(dataclasses.asdict(Walk(log=("map",)))))) == Walk(log=("map",))


def test_settings_need_nothing_heavy():
    code = (
        "import sys, samadapt.settings; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- the command line


def test_options_are_handed_over_as_their_dataclass():
    assert handed(walk, "north") == ("north", Walk(), False)
    words = [
        "north",
        "--steps",
        3,
        "--pace",
        "brisk",
        "--log",
        "map,diary",
        "--pause",
        0.5,
        "--dog",
        "--quiet",
    ]
    assert handed(walk, *words) == ("north", Walk(3, "brisk", ("map", "diary"), 0.5, True), True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps is 0; expected a whole number from 1 on"),
        (["--pace", "brusk"], r"--pace is 'brusk'; known: brisk, slow \(did you mean brisk\?\)"),
        (["--log", "map,dairy"], r"--log is 'dairy'; known: diary, map \(did you mean diary\?\)"),
        (["--pause", "1"], "--pause is 1.0; expected a number from 0 to below 1"),
        (["--pause", "nan"], "--pause is nan; expected a number from 0 to below 1"),
    ],
)
def test_mistakes_are_named_by_their_flag(words, message):
    with pytest.raises(SamAdaptError, match=message):
        command(walk)("north", *words)
    assert not SEEN


def test_an_option_alone_an_own_one_and_only_what_was_typed():
    def stroll(
        steps: Annotated[int, Of(Walk)],
        pace: Annotated[str, Of(Walk)] = "brisk",
        given: Annotated[dict[str, Any], Given(LearnerSettings, ("side", "augment"))] = {},  # noqa: B006
        stops: Annotated[tuple[int, ...], Option("Where to stop.")] = (),
    ) -> None:
        """Stroll."""
        SEEN.append((steps, pace, given, stops))

    assert handed(stroll) == (10, "brisk", {}, ())
    words = ["--steps", 2, "--pace", "slow", "--side", 64, "--stops", "1,3"]
    assert handed(stroll, *words) == (2, "slow", {"side": 64}, (1, 3))
    with pytest.raises(SamAdaptError, match="--side is 0; expected a whole number from 1 on"):
        command(stroll)("--side", 0)
    with pytest.raises(SamAdaptError, match="--stops is '1,x'; expected a list of whole numbers"):
        command(stroll)("--stops", "1,x")
    assert (
        "[default: (default)]" in command(stroll)("--help").output
    )  # of `augment`, though none is handed over


# ---------------------------------------------------------------- a study's file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train = {steps = 'many'}", "train.steps is 'many'; expected a whole number from 1 on"),
        ("train = {steps = 1.5}", "train.steps is 1.5; expected a whole number"),
        ("train = {tune = 'al'}", r"train.tune is 'al'; known: all, lora, none \(did you mean all\?\)"),
        ("train = {seed = 1}", "train has no setting 'seed'"),
        ("train = {balance = 1}", "train.balance is 1; expected true or false"),
        ("encoder = {encoder = 'sam_nan'}", r"encoder.encoder is 'sam_nan'; known: .*did you mean sam_nano"),
        ("encoder = {side = true}", "encoder.side is True; expected a whole number from 1 on"),
        ("encoder = {side = '64'}", "encoder.side is '64'; expected a whole number from 1 on"),
        ("encoder = 3", "encoder is 3; expected a table"),
        ("simclr = {temperature = 0}", "simclr.temperature is 0; expected a number above 0"),
        ("nnunet = {configuration = '4d'}", "nnunet.configuration is '4d'; known: 2d, 3d_fullres"),
        ("unet = {width = 'wide'}", "unet.width is 'wide'; expected a whole number"),
        (
            "seeds = 'three'",
            "seeds is 'three'; expected a whole number from 1 on, or a list of whole numbers",
        ),
        ("threads = 0", "threads is 0; expected a whole number from 1 on"),
        ("learner = {a = {side = 0}}", "learner.a.side is 0; expected a whole number from 1 on"),
        ("learner = {a = {train = {lr = 'low'}}}", "learner.a.train.lr is 'low'; expected a number above 0"),
        ("learner = {a = {train = {workers = 1}}}", "learner.a.train has no setting 'workers'"),
        ("stakced = true", r"the study has no setting 'stakced'.*did you mean stacked"),
    ],
)
def test_a_wrong_file_is_refused_when_it_is_read(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(SamAdaptError, match=message):
        read_settings(tmp_path / "study.toml")


@pytest.mark.parametrize("head", ["cnn", "fused"])
def test_options_of_a_learners_head_are_checked(head):
    settings = {"learner": {"a": {"head": head, "options": {"loss": 1}}}}
    with pytest.raises(SamAdaptError, match=f"head '{head}': loss is 1; expected text"):
        make_study(settings, "segmentation")


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("4", int, 4),
        ("0.25", int | float | None, 0.25),
        ("5", int | float | None, 5),
        ("null", int | None, None),
        ("true", bool, True),
        ("2024", str | None, "2024"),
        ("neck,pixels", Sequence[str] | None, ["neck", "pixels"]),
        ('["neck"]', Sequence[str] | None, ["neck"]),
        ("1,5", Sequence[float], [1, 5]),
        ("0,T1", tuple[int | str, ...], (0, "T1")),
        ("1,2,all", tuple[int | float | Literal["all"], ...], (1, 2, "all")),
        ("official", int | Literal["official"] | None, "official"),
        ("anything", Any, "anything"),
        ("1e-3", float, 1e-3),
    ],
)
def test_text_is_read_as_its_kind(text, kind, value):
    read = from_text(text, kind)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (1, bool),
        (1.0, int),
        ("1", int),
        (None, int),
        ("neck", Sequence[str]),
        ([1], tuple[str, ...]),
        ({}, int | None),
        (1, Literal[True, "1"]),
        (3, Mapping[str, Any]),
    ],
)
def test_other_kinds_are_refused(value, kind):
    with pytest.raises(TypeError):
        fit(value, kind)


def test_what_numbers_and_paths_come_as():
    assert fit(np.int64(3), int) == 3 and fit(np.float32(0.5), float) == 0.5 and fit(1, float) == 1
    assert fit(Path("a"), str | None) == "a" and fit(["a"], tuple[str, ...]) == ("a",)
    assert Learner("unet", "sam_nano", Path("weights.pth")).checkpoint == "weights.pth"


def test_kinds_and_limits_in_words():
    assert in_words(int | float | None) == "a number"
    assert in_words(tuple[int | float | Literal["all"], ...]) == "a list of numbers, or all"
    assert Option(least=0, most=2).limits == " from 0 to 2" and Option(above=0).limits == " above 0"
    assert Option(most=5).limits == " to 5" and Option(below=1).limits == " below 1" and Option().limits == ""
    assert not Option().allows(math.inf) and Option(above=0).allows(1) and not Option(above=0).allows(0)


def test_parameters_without_annotations_take_anything():
    def build(taps, width, depth: int = 2):
        pass

    known = declared_by(build, without=("taps",))
    assert read_table("build", {"width": "wide", "depth": 3}, known) == {"width": "wide", "depth": 3}
    assert list(options_of(HEADS["probe"])) == ["tap", "loss"]
