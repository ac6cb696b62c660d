"""How much of a model is run: budgets of multiply-accumulates.

Choosing ranges by their effect on the outputs runs the model from each tensor on, for each range:
for a small net that is a minute, for a large one it would be hours. So all of it together may do
`CHOOSING` multiply-accumulates, which takes one core of 2026 about two minutes; what no longer fits
keeps the range with the least error of its own. Looking at the inputs of products, to smooth them,
may do `SEEING`, and running whole integer models, to choose between them, `JUDGING`: models with
that much work have many rows in each sample. Work is counted, not
timed: the same command gives the same file, however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from onnxslim.graph.counts import sized_macs
from onnxslim.io.model import Model
from onnxslim.io.shapes import with_input_shapes

CHOOSING: Final = 2e12
SEEING: Final = 3e11
JUDGING: Final = 5e11
_LEAST: Final = 1e7  # multiply-accumulates that any run counts as: small operators cost as well


def affordable_runs(model: Model, shapes: Mapping[str, tuple[int, ...]], budget: float) -> float:
    """How many runs of `model` on one sample with inputs of these `shapes` a budget allows."""
    return budget / max(sized_macs(with_input_shapes(model, shapes).graph), _LEAST)
