"""Run a small constant model: the `Evaluator` that constant folding uses.

The bits of the result are a promise: they equal what the operators compute at run time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxslim.limits import MOST_RUN_SECONDS
from onnxslim.runtime.session import aligned, open_session


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `model` in order, computed with onnxruntime's own optimisations off.

    With them off, the result is bit for bit what the operators compute at run time.

    Raises:
        RuntimeFailure: onnxruntime cannot load or run it, or takes too long.
    """
    # one thread: a pool of them costs more to start than a constant to compute
    with open_session(model.SerializeToString(), optimise=False, threads=1) as session:
        placed = {name: aligned(array) for name, array in feeds.items()}
        return list(session.run(placed, MOST_RUN_SECONDS).values())
