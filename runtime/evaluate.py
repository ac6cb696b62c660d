"""Run a small constant model: the `Evaluator` that constant folding uses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from onnxslim.errors import RuntimeFailure


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `model` in order, computed with onnxruntime's own optimisations off.

    With them off, the result is bit for bit what the operators compute at run time.

    Raises:
        RuntimeFailure: onnxruntime cannot load or run it.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, dict(feeds)))
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise RuntimeFailure(f"onnxruntime cannot evaluate constants: {error}") from error
