"""Measure how much of a layer's output error reaches the output of the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxslim.analysis.layers import weight_layers
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem, assign
from onnxslim.pipeline.passes import Context


def sensitivity(context: Context, problem: Problem, trial: np.ndarray) -> float:
    """Divergence of the model's outputs per relative output error of the layer.

    Measured on samples held back, with `trial`, (groups, rows, columns), as the only change of the
    model. Both are squared errors, so their ratio hardly depends on the size of the trial.
    """
    assert context.calibration is not None
    assert context.model is not None
    error = problem.relative_error(trial)
    if error <= 0:
        return 0.0
    held = context.calibration.halves()[1]
    changed = with_weight(context, problem, trial)
    (distance,) = held.distances(context.model, [changed])
    return distance.divergence / error


def with_weight(context: Context, problem: Problem, weight: np.ndarray) -> Model:
    """A copy of the model in which the layers of `problem` have another weight."""
    assert context.model is not None
    model = context.model.clone()
    rewriter = Rewriter(model.graph)
    names = {layer.name: layer for layer in weight_layers(model.graph)[0]}
    own = replace(problem, layers=tuple(names[layer.name] for layer in problem.layers))
    assign(rewriter, own, weight)
    return model
