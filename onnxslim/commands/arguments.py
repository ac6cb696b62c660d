"""Parameter types and options that several subcommands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from onnxslim.errors import UsageError
from onnxslim.pipeline.options import Interval

_Command = TypeVar("_Command", bound=Callable[..., Any])


class BoundedNumber(click.ParamType[float]):
    """A number within limits; NaN never is."""

    name = "number"

    def __init__(self, limits: Interval, *, whole: bool = False) -> None:
        self.limits = limits
        self.whole = whole

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | int:
        """The number that `value` spells."""
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            number = math.nan
        if not self.limits.accepts(number):
            kind = "an integer" if self.whole else "a number"
            self.fail(f"must be {kind} {self.limits.describe()}; got {value!r}.", param, ctx)
        return number


def calib_option(command: _Command) -> _Command:
    """`--calib`."""
    return click.option(
        "--calib",
        metavar="FILE.npz|DIR|module:function",
        help="Sample inputs without labels: what outputs are compared on.",
    )(command)


def run_options(command: _Command) -> _Command:
    """`--input-shape`, `--threads` and `--seed`."""
    from onnxslim.pipeline.recipe import SEED, THREADS

    command = click.option(
        "--seed", type=BoundedNumber(SEED, whole=True), help="Of all randomness; default 0."
    )(command)
    command = click.option(
        "--threads",
        type=BoundedNumber(THREADS, whole=True),
        help="Of onnxruntime; default: its own choice.",
    )(command)
    return click.option(
        "--input-shape",
        "input_shape",
        metavar="NAME:1,3,224,224",
        multiple=True,
        help="Shape of an input where the model leaves it open; repeatable.",
    )(command)


def json_option(command: _Command) -> _Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def talk_options(command: _Command) -> _Command:
    """`--quiet` and `--verbose`."""
    command = click.option(
        "-v", "--verbose", is_flag=True, help="Say what is going on; tracebacks of errors."
    )(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(command)


def check_talk(*, quiet: bool, verbose: bool) -> None:
    """Refuse `--quiet` together with `--verbose`."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them.")


def input_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that `NAME:1,3,224,224` texts spell; a name may hold colons.

    Raises:
        UsageError: a text is not of that form, or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        numbers = [size.strip() for size in sizes.split(",")]
        if not name or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers):
            raise UsageError(
                f"--input-shape must be NAME:1,3,224,224, with sizes of at least 1; got {text!r}."
            )
        if name in shapes:
            raise UsageError(f"--input-shape gives the shape of `{name}` twice.")
        shapes[name] = tuple(map(int, numbers))
    return shapes
