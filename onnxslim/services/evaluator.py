"""The protocol behind `context.evaluate`, which runs a small model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import onnx


class Evaluator(Protocol):
    """Runs a small constant model and returns its outputs; implemented by `runtime`."""

    def __call__(self, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of `model` in order.

        Raises:
            RuntimeFailure: onnxruntime cannot run it.
        """
