"""Options as users of other programs type them (nnU-Net, TotalSegmentator, MONAI): understood, or answered with the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from samadapt.cli.app import app
from samadapt.records import SamAdaptError


@dataclass(frozen=True)
class Habit:
    """One option that samadapt does not have under this name.

    Args:
        option: the own option that takes its place, where the command has it; "": none.
        value: of that option, where the habit has none of its own.
        place: whether its value is what the command takes without an option: the last of its arguments.
        answer: what to say where it cannot be understood; may hold the value as {value}.
    """

    option: str = ""
    value: str | None = None
    place: bool = False
    answer: str = ""


_INPUT = Habit(place=True, answer="name the input without an option, after the command")
_EPOCHS = Habit(
    answer="a training is counted in steps: give --steps (the default is 1000). One epoch is the number of training slices "
    "divided by --batch-size (8), so {value} epochs of 200 slices are {value} times 25 steps"
)
_RUN = Habit(answer="name the run folder without an option: samadapt predict RUN SCANS --out FOLDER")

HABITS: dict[str, Habit] = {
    "-i": _INPUT,
    "--input": _INPUT,
    "--output": Habit("--out"),
    "--gpu": Habit("--device", "cuda"),
    "--cpu": Habit("--device", "cpu"),
    "-d": Habit("--device", answer="the data set is named without an option, after the command"),
    "-device": Habit("--device"),
    "-f": Habit("--fold"),
    "--folds": Habit("--fold"),
    "--epochs": _EPOCHS,
    "--num-epochs": _EPOCHS,
    "--max-epochs": _EPOCHS,
    "--iterations": Habit("--steps"),
    "--max-steps": Habit("--steps"),
    "--learning-rate": Habit("--lr"),
    "--batchsize": Habit("--batch-size"),
    "--model": Habit(answer="give --head or --encoder to choose a network (samadapt list), or name a run folder without an option"),
    "-m": _RUN,
    "--run": _RUN,
    "--tta": Habit("--flips", ""),
    "--save-probabilities": Habit("--probabilities", ""),
    "--save_probabilities": Habit("--probabilities", ""),
}  # fmt: skip


def understood(words: Sequence[str]) -> list[str]:
    """What was typed, in samadapt's own words.

    Args:
        words: of the command line, the command first.

    Raises:
        SamAdaptError: an option that the command does not have, with what to give instead.
    """
    commands: Any = typer.main.get_command(app)
    command = commands.commands.get(words[0]) if words else None
    if command is None:
        return list(words)
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    said: list[str] = [words[0]]
    places: list[str] = []
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*said, *places, word, *rest]
        name, equals, value = word.partition("=")
        habit = HABITS.get(name)
        if habit is None or name in own:
            said.append(word)
            continue
        if habit.value is None and not equals:
            value = rest.pop(0) if rest else ""
        said += _translated(name, value, habit, own, places, words[0])
    return said + places


def _translated(
    name: str, value: str, habit: Habit, own: set[str], places: list[str], command: str
) -> list[str]:
    if habit.option in own:
        given = value if habit.value is None else habit.value
        return [habit.option, given] if given else [habit.option]
    if habit.place and value:
        places.append(value)
        return []
    answer = (
        habit.answer.format(value=value or "N")
        if habit.answer
        else f"leave it out: {command} has no such choice"
    )
    raise SamAdaptError(f"samadapt {command} has no option {name}; {answer}")
