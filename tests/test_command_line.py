"""Every option of every command, with its default: nothing is lost when the command line is rewritten.

After a change on purpose: `python tests/test_command_line.py` writes tests/fixtures/command_line.json anew; read its difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from samadapt.cli import app

SNAPSHOT = Path(__file__).parent / "fixtures" / "command_line.json"


def parameters() -> dict[str, list[Any]]:
    return {
        verb: command.params
        for verb, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }


def describe(parameter: Any) -> tuple[str, Any]:
    """("--out/-o", "required"), ("--steps", "1000"), ("data", "required"): what a user can rely on."""
    option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if option else [parameter.name]
    default = None if parameter.default is None else str(parameter.default)
    return "/".join(names), "required" if parameter.required else default


def command_line() -> dict[str, dict[str, Any]]:
    return {verb: dict(map(describe, found)) for verb, found in parameters().items()}


def test_every_option_and_default_is_still_there():
    assert command_line() == json.loads(SNAPSHOT.read_text())


@pytest.mark.parametrize("verb", sorted(parameters()))
def test_every_option_is_explained_in_a_sentence(verb):
    helps = {describe(parameter)[0]: parameter.help or "" for parameter in parameters()[verb]}
    assert [name for name, text in helps.items() if not (text[:1].isupper() and text.endswith("."))] == []


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(command_line(), indent=1, sort_keys=True) + "\n")
