"""What removing units of a group does to the outputs of the model, by trial on samples held back.

Owns: the trials. Not here: what a removal costs the layers that read the group (see `evidence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import weight_layers
from onnxslim.channels.groups import ChannelGroup
from onnxslim.channels.readers import ReaderColumns
from onnxslim.channels.reconstruct import zero_removed
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem, assign
from onnxslim.pipeline.passes import Context

_SAMPLES: Final = 128  # at most: each group takes a run of the model on all of them
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RemovalTrial:
    """Some units of a group, to be removed alone, and the error that its readers predict."""

    group: ChannelGroup
    units: Ids
    error: float


def sensitivities(
    context: Context,
    readers: ReaderColumns,
    problems: Mapping[str, Problem],
    trials: Sequence[RemovalTrial],
) -> list[float]:
    """The divergence of the model's outputs for each unit of predicted error, of each trial.

    It is measured on samples held back, and 0 where the predicted error is 0. `problems` has those
    of the readers, by their names.
    """
    assert context.calibration is not None
    assert context.model is not None
    model, held = context.model, context.calibration.halves()[1].some(_SAMPLES)
    models = (_without(model, readers, problems, trial) for trial in trials)
    return [
        distance.divergence / trial.error if trial.error > 0 else 0.0
        for distance, trial in zip(held.distances(model, models), trials, strict=True)
    ]


def _without(
    model: Model, readers: ReaderColumns, problems: Mapping[str, Problem], trial: RemovalTrial
) -> Model:
    """A copy of the model in which the readers of a group ignore some of its units."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    if trial.group.weightless_readers:
        gone = np.zeros(readers.channels.units.count, bool)
        gone[trial.units] = True
        zero_removed(rewriter, readers.channels.of(copy.graph), gone)
        rewriter.result()
        return copy
    layers = {layer.name: layer for layer in weight_layers(copy.graph)[0]}
    for member in trial.group.readers:
        if member.layer is None or member.layer.name not in problems:
            continue
        known = problems[member.layer.name]
        problem = replace(known, layers=tuple(layers[layer.name] for layer in known.layers))
        leaves = np.isin(readers.units[member.layer.name], trial.units)
        weight = np.where(leaves[:, None, :], 0.0, np.asarray(problem.weight, np.float64))
        assign(rewriter, problem, weight)
    rewriter.result()
    return copy
