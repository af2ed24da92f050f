"""Label columns -> classes and one target for each row. A value that is not a class is an error that names its row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from samadapt.types import SamAdaptError

Row = tuple[str, list[str]]  # (where it stands, its label cells)

_MANY = 20  # distinct values from which a column may be a measurement or a name instead of a class


@dataclass(frozen=True)
class Targets:
    """Class names, and for each row its class or its 0/1 for every class."""

    classes: tuple[str, ...]
    values: tuple[int | tuple[float, ...], ...]
    multilabel: bool


def read_targets(rows: Sequence[Row], columns: Sequence[str]) -> Targets:
    """One column is a class; several are 0/1 for each class, one-hot where every row has exactly one."""
    for where, cells in rows:
        for column, cell in zip(columns, cells, strict=True):
            if not cell:
                raise SamAdaptError(
                    f"{where}: column {column!r} is empty; expected a label, or remove the row"
                )
    return _single(rows, columns[0]) if len(columns) == 1 else _several(rows, columns)


def _several(rows: Sequence[Row], columns: Sequence[str]) -> Targets:
    values = []
    for where, cells in rows:
        numbers = [_number(cell) for cell in cells]
        for column, cell, number in zip(columns, cells, numbers, strict=True):
            if number not in (0.0, 1.0):
                raise SamAdaptError(
                    f"{where}: column {column!r} is {cell!r}; expected 0 or 1: one column per class"
                )
        values.append(tuple(float(n) for n in numbers if n is not None))
    if all(sum(row) == 1 for row in values):
        return Targets(tuple(columns), tuple(row.index(1.0) for row in values), False)
    return Targets(tuple(columns), tuple(values), True)


def _single(rows: Sequence[Row], column: str) -> Targets:
    cells = [cells[0] for _, cells in rows]
    numbers = [_number(cell) for cell in cells]
    if any(n is None for n in numbers) and any(n is not None for n in numbers):
        named = [i for i, n in enumerate(numbers) if n is None]
        numbered = [i for i, n in enumerate(numbers) if n is not None]
        odd = min(named, numbered, key=len)[0]
        raise SamAdaptError(
            f"{rows[odd][0]}: column {column!r} is {cells[odd]!r}, but {len(numbered)} rows have numbers and "
            f"{len(named)} have names; expected one kind: correct the rows"
        )
    if numbers[0] is None:
        names = sorted(set(cells))
        _demand_few(len(names), len(rows), column, names[0])
        return Targets(tuple(names), tuple(names.index(cell) for cell in cells), False)
    for (where, _), cell, number in zip(rows, cells, numbers, strict=True):
        if number is None or not number.is_integer():
            raise SamAdaptError(
                f"{where}: column {column!r} is {cell!r}, a measurement; expected classes: group the values into classes"
            )
    whole = sorted({int(n) for n in numbers if n is not None})
    _demand_few(len(whole), len(rows), column, str(whole[0]))
    place = {value: index for index, value in enumerate(whole)}
    return Targets(tuple(map(str, whole)), tuple(place[int(n)] for n in numbers if n is not None), False)


def _demand_few(distinct: int, rows: int, column: str, example: str) -> None:
    if distinct > max(_MANY, rows // 10):
        raise SamAdaptError(
            f"column {column!r} has {distinct} different values in {rows} rows (one is {example!r}); expected classes: "
            "it looks like a measurement or a name; choose another with --label-column"
        )
    if distinct < 2:
        raise SamAdaptError(
            f"column {column!r} is {example!r} in all {rows} rows; expected two classes at least"
        )


def _number(cell: str) -> float | None:
    """None for what is not a finite number; `nan` is a name here, and so an odd one among numbers."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
