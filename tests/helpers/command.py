"""The command, called in this process."""

from __future__ import annotations

import pytest

from onnxslim import cli

Said = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    """The exit code of `onnxslim ARGUMENTS`."""
    return cli.run([str(argument) for argument in arguments])
