"""Typed options of a pass: `rank: int = option(8, at_least(1), "singular values kept")`.

A constraint is an object: it checks a value, describes itself for help and errors, and yields
invalid values, with which the shared contract suite tests every option of every pass.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from onnxslim.errors import UsageError
from onnxslim.pipeline.patterns import matches

OptionValue = bool | int | float | str | tuple[Any, ...] | None
"""What an option can hold."""


class Constraint(Protocol):
    """A condition on one option's value."""

    def accepts(self, value: Any) -> bool:
        """Whether `value`, already of the right type, is allowed."""

    def describe(self) -> str:
        """The condition as words that follow "must be"."""

    def invalid(self) -> Iterator[Any]:
        """Values of the right type that `accepts` refuses."""


@typing.runtime_checkable
class LayerValue(Protocol):
    """A constraint on entries that give something to layers, which they name first."""

    def layer(self, entry: str) -> str:
        """The layer's name, or a pattern on names, of a valid entry."""


@dataclass(frozen=True)
class _Anything:
    def accepts(self, value: Any) -> bool:
        return True

    def describe(self) -> str:
        return ""

    def invalid(self) -> Iterator[Any]:
        return iter(())


@dataclass(frozen=True)
class Interval:
    """Numbers between `low` and `high`; an open end excludes the bound.

    Attributes:
        true: the number that the word `true` stands for; `false` then stands for none. None: the
            words are refused.
    """

    low: float
    high: float
    open_left: bool = False
    open_right: bool = False
    true: float | None = None

    def accepts(self, value: float) -> bool:
        """Whether `value` lies in the interval (NaN never does)."""
        above = value > self.low if self.open_left else value >= self.low
        below = value < self.high if self.open_right else value <= self.high
        return above and below

    def describe(self) -> str:
        """The condition in words."""
        words = "" if self.true is None else f", or true for {self.true:g}"
        if self.high == math.inf:
            return f"{'above' if self.open_left else 'at least'} {self.low:g}{words}"
        left, right = "(" if self.open_left else "[", ")" if self.open_right else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}{words}"

    def invalid(self) -> Iterator[float]:
        """Values just outside the bounds."""
        yield self.low - 1
        if self.open_left:
            yield self.low
        if self.high != math.inf:
            yield self.high + 1
            if self.open_right:
                yield self.high


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    choices: tuple[str, ...]

    def accepts(self, value: str) -> bool:
        """Whether `value` is one of the choices."""
        return value in self.choices

    def describe(self) -> str:
        """The choices in words."""
        return "one of " + ", ".join(self.choices)

    def invalid(self) -> Iterator[str]:
        """A word that is not a choice."""
        yield "x-" + "-".join(self.choices)


@dataclass(frozen=True)
class Assigned:
    """`PATTERN=NUMBER`: a value for the layers whose names match a shell pattern."""

    values: Interval
    whole: bool = False

    def accepts(self, value: str) -> bool:
        """Whether `value` has that form, and its number is allowed."""
        try:
            return self.values.accepts(self.split(value)[1])
        except ValueError:
            return False

    def describe(self) -> str:
        """The form in words."""
        kind = "an integer" if self.whole else "a number"
        return f"of the form PATTERN=NUMBER with {kind} {self.values.describe()}"

    def invalid(self) -> Iterator[str]:
        """Words without a number, and with a number that is not allowed."""
        yield "layer"
        yield "=0.5"
        yield from (f"layer={value:g}" for value in self.values.invalid())

    def split(self, value: str) -> tuple[str, float]:
        """The pattern and the number of an entry.

        Raises:
            ValueError: `value` has another form.
        """
        pattern, _, number = value.rpartition("=")
        if not pattern:
            raise ValueError(value)
        return pattern, int(number) if self.whole else float(number)

    def layer(self, entry: str) -> str:
        """The pattern of an entry."""
        return self.split(entry)[0]

    def find(self, entries: tuple[str, ...], names: Sequence[str], default: float) -> float:
        """The number of the first entry whose pattern matches one of a layer's names."""
        for pattern, number in map(self.split, entries):
            if any(matches(name, pattern) for name in names):
                return number
        return default


def at_least(low: float) -> Interval:
    """Numbers from `low` up."""
    return Interval(low, math.inf)


def interval(
    low: float, high: float, *, open_left: bool = False, open_right: bool = False
) -> Interval:
    """Numbers between `low` and `high`, bounds included unless said otherwise."""
    return Interval(low, high, open_left, open_right)


def one_of(*choices: str) -> OneOf:
    """One of the given words."""
    return OneOf(choices)


ANYTHING: Constraint = _Anything()
_AUTO: Final = "auto"  # the spelling of an optional value that is not given


@dataclass(frozen=True)
class OptionSpec:
    """The declaration of one option of a pass.

    Attributes:
        name: spelling in a pipeline, in kebab case.
        field: name of the dataclass field.
        type: type of a value, or of each entry of a list.
        optional: whether None is allowed.
    """

    name: str
    field: str
    type: type
    is_list: bool
    optional: bool
    default: OptionValue
    constraint: Constraint
    help: str

    def type_name(self) -> str:
        """The type as help and errors name it."""
        names = {bool: "true or false", int: "an integer", float: "a number", str: "a word"}
        return "a list a+b+c" if self.is_list else names[self.type]

    def check(self, value: Any, owner: str) -> OptionValue:
        """`value` converted to the option's type.

        Raises:
            UsageError: the value has a wrong type or breaks the constraint; the message names pass,
                option, range and value.
        """
        true = getattr(self.constraint, "true", None)
        if isinstance(value, bool) and true is not None:
            value = true if value else None
        if self.optional and (value is None or (value == _AUTO and self.type is not str)):
            return None
        if self.is_list:
            items = value if isinstance(value, tuple | list) else (value,)
            return tuple(self._check_one(item, owner, value) for item in items)
        checked: OptionValue = self._check_one(value, owner, value)
        return checked

    def _check_one(self, item: Any, owner: str, given: Any) -> Any:
        item = _convert(item, self.type)
        if item is None:
            raise UsageError(
                f"Option `{self.name}` of `{owner}` must be {self.type_name()}; got {given!r}."
            )
        if not self.constraint.accepts(item):
            raise UsageError(
                f"Option `{self.name}` of `{owner}` must be {self.type_name()} "
                f"{self.constraint.describe()}; got {given!r}."
            )
        return item


def _convert(value: Any, kind: type) -> Any:
    """`value` converted to `kind` without loss; None where that is impossible."""
    if isinstance(value, kind) and (kind is not int or not isinstance(value, bool)):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, bool):
        return "true" if value else "false"
    if kind is str and isinstance(value, int | float):
        return str(value)
    return None


def option(default: Any, constraint: Constraint = ANYTHING, help: str = "") -> Any:
    """Declare a field of a pass as an option.

    Args:
        default: value when the pipeline gives none.
        constraint: the condition on values.
        help: one line for `onnxslim passes NAME`; required.
    """
    if not help:
        raise TypeError("An option needs a help text.")
    return dataclasses.field(default=default, metadata={"constraint": constraint, "help": help})


def options_of(owner: type) -> tuple[OptionSpec, ...]:
    """The options of a pass class, in the order of their declaration."""
    return _declared(owner)


@cache  # the annotations of a class take milliseconds to evaluate, and each pass that is made asks
def _declared(owner: type) -> tuple[OptionSpec, ...]:
    hints = typing.get_type_hints(owner)
    return tuple(
        _spec(field, hints[field.name])
        for field in dataclasses.fields(owner)
        if "constraint" in field.metadata
    )


def _spec(field: dataclasses.Field[Any], hint: Any) -> OptionSpec:
    optional = is_list = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        if len(members) != 1:
            raise TypeError(f"Option `{field.name}` has the type {hint}; one type or None allowed.")
        hint = members[0]
    if typing.get_origin(hint) is tuple:
        is_list, hint = True, typing.get_args(hint)[0]
    if hint not in (bool, int, float, str):
        raise TypeError(f"Option `{field.name}` has the type {hint}, which no text can spell.")
    default: Any = field.default
    return OptionSpec(
        name=field.name.rstrip("_").replace("_", "-"),
        field=field.name,
        type=hint,
        is_list=is_list,
        optional=optional,
        default=default,
        constraint=field.metadata["constraint"],
        help=field.metadata["help"],
    )
