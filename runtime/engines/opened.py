"""What a model that is open in another engine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from onnxslim.errors import RuntimeFailure

Feeds = Mapping[str, np.ndarray]


class EngineFailure(RuntimeFailure):
    """Another engine than onnxruntime refused a model or failed on it."""


class OpenedModel(Protocol):
    """A model that an engine has loaded; it is closed when it is no longer needed."""

    engine: str
    """The engine and its version, such as `OpenVINO 2026.4.1`."""

    def timed(self, feeds: Feeds) -> tuple[Sequence[np.ndarray], float]:
        """The outputs in their order, and the milliseconds that the engine took.

        Raises:
            EngineFailure: the engine fails on the inputs.
        """

    def close(self) -> None:
        """Free what the engine holds."""


def in_one_line(error: BaseException) -> str:
    """An error of an engine in one line of at most 200 characters: its last, no backtrace."""
    said = str(error).partition("Stack backtrace")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
