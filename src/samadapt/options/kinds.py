"""What a type annotation allows: as a test of a value, as a reader of typed text, in words."""

from __future__ import annotations

import json
import numbers
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

#: Kind -> one of it, and several.
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "names"),
    bool: ("true or false", "true or false"),
    Path: ("a path", "paths"),
}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The kinds of a union, without None; of any other kind, itself."""
    union = get_origin(kind) in (Union, types.UnionType)
    return tuple(one for one in get_args(kind) if one is not type(None)) if union else (kind,)


def is_list(kind: Any) -> bool:
    """Whether it is `tuple[X, ...]`, `list[X]` or `Sequence[X]`."""
    return get_origin(kind) in (tuple, list, Sequence)


def is_table(kind: Any) -> bool:
    """Whether it is `Mapping[str, X]` or `dict[str, X]`."""
    return get_origin(kind) in (Mapping, dict)


def fit(value: Any, kind: Any) -> Any:
    """The value as this kind has it: a list as a tuple, a path as text.

    Raises:
        TypeError: it is not of this kind.
    """
    if kind is Any or (value is None and type(None) in get_args(kind)):
        return value
    if len(alternatives(kind)) > 1 or alternatives(kind)[0] is not kind:
        return _fit_one_of(value, alternatives(kind))
    if is_list(kind):
        return _fit_items(value, kind)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if get_origin(kind) is Literal:
        fits = any(value == one and type(value) is type(one) for one in get_args(kind))
    elif kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        fits = isinstance(value, number) and not isinstance(value, bool)
    else:
        fits = isinstance(value, get_origin(kind) or kind)
    if not fits:
        raise TypeError(f"{value!r} is not {in_words(kind)}")
    return value


def _fit_items(value: Any, kind: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is not {in_words(kind)}")
    items = tuple(fit(item, get_args(kind)[0]) for item in value)
    return items if get_origin(kind) is tuple else value


def _fit_one_of(value: Any, kinds: Sequence[Any]) -> Any:
    for one in kinds:
        try:
            return fit(value, one)
        except TypeError:
            continue
    raise TypeError(f"{value!r} is not of {kinds}")


def from_text(text: str, kind: Any) -> Any:
    """The value of this kind that was typed: as JSON, as it stands, or as a list with commas.

    Raises:
        TypeError: it is not of this kind.
    """
    try:
        return fit(json.loads(text), kind)
    except (json.JSONDecodeError, TypeError):
        pass
    try:
        return fit(text, kind)
    except TypeError:
        items = [get_args(one)[0] for one in alternatives(kind) if is_list(one)]
        if not items:
            raise
        return fit([from_text(part, items[0]) for part in text.split(",") if part], kind)


def in_words(kind: Any, many: bool = False, limits: str = "") -> str:
    """ "a whole number", "a list of names", "a number from 0 on, or all".

    Args:
        limits: of the numbers, beginning with a space; said of those that stand alone, else of all.
    """
    kinds = alternatives(kind)
    if int in kinds and float in kinds:
        kinds = tuple(one for one in kinds if one is not int)
    counted = [one for one in kinds if one in (int, float)] or kinds
    return ", or ".join(_in_words(one, many) + (limits if one in counted else "") for one in kinds)


def _in_words(kind: Any, many: bool) -> str:
    if kind in _WORDS:
        return _WORDS[kind][many]
    if get_origin(kind) is Literal:
        names = ", ".join(map(str, get_args(kind)))
        return f"one of {names}" if len(get_args(kind)) > 1 else names
    if is_list(kind):
        return f"a list of {in_words(get_args(kind)[0], many=True)}"
    return "a table" if is_table(kind) else getattr(kind, "__name__", str(kind))
