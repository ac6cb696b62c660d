"""Write to standard output and standard error."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import TYPE_CHECKING, Final, TextIO

from onnxslim.render.printable import printable_lines

if TYPE_CHECKING:
    from onnxslim.render.tables import Paper

PIPE_WIDTH: Final = 100  # columns of what is no terminal
_LONG: Final = re.compile(r"[^\s`]{400,}")  # a name of a file's may be a megabyte long


def say(text: str) -> None:
    """Write `text` and a line break to standard output.

    A closed pipe (`onnxslim inspect MODEL | head`) does not stop the work.
    """
    _write(sys.stdout, text)


def tell_aside(text: str) -> None:
    """Write to standard error what would be on standard output if that were not for a model."""
    _write(sys.stderr, text)


def complain(text: str) -> None:
    """Write an error to standard error."""
    _write(sys.stderr, _fitting(f"onnxslim: error: {printable_lines(_LONG.sub(_shortened, text))}"))


def warn(text: str) -> None:
    """Write to standard error what must not be overlooked."""
    _write(sys.stderr, _fitting(f"onnxslim: {printable_lines(text)}"))


def log(text: str) -> None:
    """Write what is being done, with the time of day, to standard error."""
    _write(sys.stderr, f"onnxslim: {time.strftime('%H:%M:%S')} {printable_lines(text)}")


def paper() -> Paper:
    """The medium behind standard output: a terminal with its width, or a file or a pipe."""
    from shutil import get_terminal_size

    from onnxslim.render.tables import Paper

    if not sys.stdout.isatty():
        return Paper(PIPE_WIDTH)
    return Paper(get_terminal_size().columns, has_colors())


def has_colors() -> bool:
    """Whether the environment allows colours: see https://no-color.org."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def _fitting(text: str) -> str:
    """`text` in lines as wide as the terminal behind standard error; elsewhere as it is."""
    if not sys.stderr.isatty():
        return text
    from shutil import get_terminal_size

    from onnxslim.render.tables import Paper, wrapped

    return wrapped(text, Paper(get_terminal_size().columns))


def _write(stream: TextIO, text: str) -> None:
    try:
        shown = printable_lines(text, color=stream.isatty() and has_colors())
        stream.write(_encodable(shown, stream) + "\n")
        stream.flush()
    except BrokenPipeError:
        # nobody reads any more; what Python flushes at exit must go nowhere either
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shortened(word: re.Match[str]) -> str:
    return f"{word[0][:100]}...{word[0][-20:]}"
