"""The parameters of a command, derived from option dataclasses.

    @app.command()
    @from_options
    def walk(data: Data, config: WalkConfig, device: Annotated[str, Of(TrainConfig)], quiet: Quiet = False) -> None:

* A parameter that is a dataclass stands for one option for each of its fields; the function is handed the dataclass.
* `Annotated[type, Option(...)]` is an option that only this command has, with the same checks.
* `Annotated[type, Of(kind)]` is the field of that name of a dataclass, alone.
* `Annotated[dict[str, Any], Given(kind, names)]` holds what was typed of these fields, and nothing else.
* What typer itself understands stays as it is.

Wrong values are refused, by the flag's name, before the function runs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from samadapt.options import Declared, Option, declared, parse_assignments, show
from samadapt.options.kinds import alternatives, is_table

_EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Of:
    """The field of the parameter's name, as this dataclass declares it."""

    kind: type


@dataclass(frozen=True)
class Given:
    """What was typed of these fields of a dataclass, as a dict."""

    kind: type
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """One parameter of the function, as parameters of the command line and back."""

    parameters: tuple[inspect.Parameter, ...]
    make: Callable[[Mapping[str, Any]], Any]  # from the values of all parameters


def from_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as typer takes it: a parameter for each option."""
    hints = get_type_hints(function, include_extras=True)
    parts = {
        name: _part(parameter, hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
    }

    @functools.wraps(function)
    def run(**typed: Any) -> Any:
        return function(**{name: part.make(typed) for name, part in parts.items()})

    parameters = [parameter for part in parts.values() for parameter in part.parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _part(parameter: inspect.Parameter, hint: Any) -> _Part:
    name = parameter.name
    kind, marker = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    if dataclasses.is_dataclass(hint):
        fields, make = declared(kind), kind
        return _Part(tuple(map(_parameter, fields.values())), lambda typed: make(**_typed(fields, typed)))
    if isinstance(marker, Given):
        fields = {field: declared(marker.kind)[field] for field in marker.names}
        return _Part(
            tuple(_parameter(field, optional=True) for field in fields.values()),
            lambda typed: _typed(fields, typed),
        )
    if isinstance(marker, Of | Option):
        single = _single(parameter, kind, marker)
        return _Part(
            (_parameter(single),), lambda typed: _typed({name: single}, typed).get(name, single.default)
        )
    kept = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=parameter.default, annotation=hint)
    return _Part((kept,), lambda typed: typed[name])


def _single(parameter: inspect.Parameter, kind: Any, marker: Of | Option) -> Declared:
    if isinstance(marker, Option):
        return Declared(parameter.name, kind, parameter.default, marker)
    field = declared(marker.kind)[parameter.name]
    return field if parameter.default is _EMPTY else dataclasses.replace(field, default=parameter.default)


def _parameter(field: Declared, optional: bool = False) -> inspect.Parameter:
    """One option for typer; `optional`: without its default, which the help shows all the same."""
    kind, default = _typer_kind(field.kind), field.default
    if optional or not isinstance(default, int | float | str | Path) or default == "":
        kind, default = kind | None, None
    info = typer.Option(
        *([field.option.flag] if field.option.flag else []),
        help=field.option.help,
        show_default=show(field.default) or False if default is None else True,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _typer_kind(kind: Any) -> Any:
    """What typer reads by itself; all else is typed as text."""
    (one, *more) = alternatives(kind)
    if is_table(one):
        return list[str]
    return one if not more and one in (int, float, bool, str, Path) else str


def _typed(fields: Mapping[str, Declared], values: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed of these fields, checked."""
    return {
        name: _value(field, values[name]) for name, field in fields.items() if values[name] not in (None, [])
    }


def _value(field: Declared, typed: Any) -> Any:
    flag = field.option.flag or f"--{field.name.replace('_', '-')}"
    if is_table(field.kind):
        return parse_assignments(typed, flag)
    if isinstance(typed, str) and str not in alternatives(field.kind):
        return field.read(typed, flag)
    return field.conform(typed, flag, typed=True)
