"""Give a file to the command, and say whether how it ended is a bug."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnxslim import cli

GOOD_CODES: Final = frozenset((0, 2, 3, 4, 6))
"""Written; a request or a model that was refused in a sentence; onnxruntime refused."""


@dataclass(frozen=True)
class Verdict:
    """How one input went.

    Attributes:
        failure: the kind of failure; "" where nothing is wrong.
        detail: what the command said.
        code: its exit code.
    """

    failure: str
    detail: str = ""
    code: int = 0


def attempt(data: bytes, folder: Path, *, tell: str = "--quiet") -> Verdict:
    """Give a file to the command, which loads and compares what it writes.

    Args:
        data: the file.
        folder: a folder to work in.
        tell: `--quiet`, or `--verbose` for a traceback.
    """
    source, target = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(data)
    target.unlink(missing_ok=True)
    command = ["compress", str(source), str(target), "--no-latency", tell]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = cli.run(command)
    text = errors.getvalue()
    if code not in GOOD_CODES:
        return Verdict(kind_of(text), text, code)
    if code == 0 and not target.exists():
        return Verdict("exit 0 without an output", text)
    return Verdict("", text, code)


def kind_of(text: str) -> str:
    """The sentence without what differs from file to file."""
    line = next((line for line in text.splitlines() if "error:" in line), text)
    return re.sub(r"`[^`]*`|\d+|'[^']*'", "_", line)[:120]
