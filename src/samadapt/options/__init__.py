"""Options, declared once: as fields of a dataclass, or as parameters of a constructor.

The command line, the tables of a study's file, validation and `samadapt list` all read these declarations.

Example:
    >>> @dataclass(frozen=True)
    ... class Walk(Checked):
    ...     steps: int = option(10, "How many steps to take.", least=1)
    >>> Walk(steps=0)
    Traceback (most recent call last):
    samadapt.records.SamAdaptError: steps is 0; expected a whole number from 1 on
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from samadapt.options import kinds
from samadapt.records import SamAdaptError

_KEY = "samadapt.option"


@dataclass(frozen=True)
class Option:
    """What the name, the type and the default of an option do not say.

    Args:
        help: for the user, in full sentences.
        least, above, most, below: limits of a number.
        choices: the only values, beside the default; of a list, of each item.
        names: the names of a table that Python code may extend; demanded only of what a user typed.
        joined_by: what stands between names where a value may be several of them.
        flag: on the command line, where it is not the field's name.
    """

    help: str = ""
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    choices: Collection[Any] = ()
    names: Collection[str] = ()
    joined_by: str | None = None
    flag: str | None = None

    def allows(self, number: float) -> bool:
        """Whether the number is finite and within the limits."""
        return math.isfinite(number) and (
            self.least <= number <= self.most and self.above < number < self.below
        )

    @property
    def limits(self) -> str:
        """In words, to follow "a number": " from 1 on", " from 0 to below 1", or nothing."""
        low = f"from {self.least:.12g}" if math.isfinite(self.least) else ""
        low = f"above {self.above:.12g}" if math.isfinite(self.above) else low
        high = f"to {self.most:.12g}" if math.isfinite(self.most) else ""
        high = f"{'to ' if low else ''}below {self.below:.12g}" if math.isfinite(self.below) else high
        if low.startswith("from") and not high:
            high = "on"
        return "".join(f" {part}" for part in (low, high) if part)


def option(default: Any, help: str, **rules: Any) -> Any:
    """A field of a dataclass, with its default (or, as `dict`, what makes it) and the arguments of `Option`."""
    metadata = {_KEY: Option(help, **rules)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Declared:
    """One option, wherever it is declared."""

    name: str
    kind: Any  # its type, as annotated
    default: Any
    option: Option = Option()

    @property
    def expected(self) -> str:
        """Which values it takes, in words."""
        if self.option.choices:
            return f"one of {', '.join(map(str, self.option.choices))}"
        return kinds.in_words(self.kind, limits=self.option.limits)

    def conform(self, value: Any, spelling: str, typed: bool = False) -> Any:
        """The value as its type has it; anything else is an error that names the option as it was spelled.

        Args:
            typed: whether a user typed it, on the command line or in a file.
        """
        try:
            value = kinds.fit(value, self.kind)
        except TypeError:
            raise self._refused(value, spelling) from None
        if value is None or value == self.default:
            return value
        known = self.option.choices or (self.option.names if typed else ())
        for item in value if isinstance(value, list | tuple) else [value]:
            unknown = [one for one in self._joined(item) if known and one not in known]
            if unknown:
                raise SamAdaptError(
                    f"{spelling} is {item!r}; known: {', '.join(sorted(map(str, known)))}{near(unknown[0], known)}"
                )
        if isinstance(value, int | float) and not self.option.allows(value):
            raise self._refused(value, spelling)
        return value

    def _joined(self, item: Any) -> list[Any]:
        """The names that a value consists of; itself where it is one."""
        several = isinstance(item, str) and self.option.joined_by
        return item.split(self.option.joined_by) if several else [item]

    def read(self, text: str, spelling: str) -> Any:
        """The value that was typed as this text."""
        try:
            value = kinds.from_text(text, self.kind)
        except TypeError:
            raise self._refused(text, spelling) from None
        return self.conform(value, spelling, typed=True)

    def _refused(self, value: Any, spelling: str) -> SamAdaptError:
        return SamAdaptError(f"{spelling} is {value!r}; expected {self.expected}")


Declarations = dict[str, Declared]


@functools.cache
def declared(kind: type) -> Declarations:
    """The options that a dataclass declares, by name, in order."""
    hints = get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        found[field.name] = Declared(
            field.name, hints[field.name], default, field.metadata.get(_KEY, Option())
        )
    return found


def declared_by(function: Callable[..., Any], without: Collection[str] = ()) -> Declarations:
    """The options that the parameters of a function or of a class's constructor declare."""
    constructor: Any = function
    hints = get_type_hints(constructor.__init__ if isinstance(function, type) else function)
    return {
        name: Declared(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in without
    }


class Checked:
    """Base of frozen dataclasses of options, which refuse wrong values."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, found in declared(kind).items():
            object.__setattr__(self, name, found.conform(getattr(self, name), name))


def read_table(
    where: str, table: Any, known: Declarations, what: str = "setting", prefix: str | None = None
) -> dict[str, Any]:
    """Options by name that a user wrote -> their values; unknown names and wrong values are errors.

    Args:
        where: what is spoken of, for the messages: "train" or "head 'cnn'".
        prefix: of an option's name in the messages; None: `where` and a dot.
    """
    if not isinstance(table, Mapping):
        raise SamAdaptError(f"{where} is {table!r}; expected a table with keys of {', '.join(known)}")
    for name in table:
        if name not in known:
            raise SamAdaptError(
                f"{where} has no {what} {name!r}; it has {', '.join(known)}{near(name, known)}"
            )
    prefix = f"{where}." if prefix is None else prefix
    return {name: known[name].conform(value, prefix + name, typed=True) for name, value in table.items()}


def without(known: Declarations, *names: str) -> Declarations:
    """All but these."""
    return {name: found for name, found in known.items() if name not in names}


def parse_assignments(assignments: Collection[str], spelling: str) -> dict[str, str]:
    """["preset=faithful", "depth=4"] -> {"preset": "faithful", "depth": "4"}."""
    parsed = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise SamAdaptError(f"{spelling} is {assignment!r}; expected NAME=VALUE, e.g. preset=faithful")
        parsed[name] = value
    return parsed


def near(value: Any, known: Collection[Any]) -> str:
    """ " (did you mean cnn?)" for what is nearly a known name, else nothing."""
    found = difflib.get_close_matches(str(value), list(map(str, known)), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def show(value: Any) -> str:
    """A default as a user would type it; nothing where there is none."""
    if value is None or value is inspect.Parameter.empty or value in ("", (), {}):
        return ""
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return value if isinstance(value, str) else json.dumps(value)
