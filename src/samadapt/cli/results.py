"""What a verb ends with: text on stdout, or with --json one document; and the command to run next."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json as json_format
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from samadapt.cli.parameters import from_options
from samadapt.cli.terminal import speaks
from samadapt.progress import end_line

JSON = "--json"


@dataclass(frozen=True)
class Result:
    """What a verb did.

    Args:
        data: for the document of --json; numbers, texts, paths, dataclasses, lists and tables of them.
        text: for people; "": nothing.
        next: what to do next, mostly a command; not said where only results are asked for.
        failed: whether the exit status is 1.
    """

    data: Mapping[str, Any]
    text: str = ""
    next: str = ""
    failed: bool = False


def command(*words: object) -> str:
    """The words as they are typed in a shell: `samadapt predict ...`."""
    return shlex.join(["samadapt", *map(str, words)])


def verb(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Makes a function that returns a `Result` a command of the app, with the option --json."""

    def declare(function: Callable[..., Result]) -> Callable[..., Result]:
        run = from_options(function)
        called = name or function.__name__

        @functools.wraps(function)
        def answer(json: bool, **typed: Any) -> None:
            with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
                try:
                    result: Result = run(**typed)
                finally:
                    end_line()
            if json and speaks():
                print(json_format.dumps({"command": called, **plain(result.data)}, indent=1))
            elif not json:
                _say(result, quiet=typed.get("quiet", False))
            if result.failed:
                raise typer.Exit(1)

        hint = Annotated[
            bool, typer.Option(JSON, help="Print the result as one JSON document; all else goes to stderr.")
        ]
        last = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
        parameters = [*inspect.signature(run).parameters.values(), last]
        answer.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        answer.__annotations__ = {each.name: each.annotation for each in parameters}
        app.command(name)(answer)
        return function

    return declare


def _say(result: Result, quiet: bool) -> None:
    if result.text:
        print(result.text, flush=True)
    if result.next and not quiet:
        print(f"next: {result.next}", flush=True)


def error_document(text: str) -> str:
    """What stands on stdout with --json where the command failed."""
    return json_format.dumps({"error": text}, indent=1)


def plain(value: Any) -> Any:
    """As JSON has it: undefined numbers are null, paths are texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
