"""How much of a model is run to choose ranges: a budget of multiply-accumulates.

Choosing ranges by their effect on the outputs runs the model from each tensor on, for each range:
for a small net that is a minute, for a large one it would be hours. So all of it together may do
`BUDGET` multiply-accumulates, which takes one core of 2026 about two minutes; what no longer fits
keeps the range with the least error of its own. Work is counted, not timed: the same command gives
the same file, however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from onnxslim.graph.counts import node_macs
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import with_input_shapes

BUDGET: Final = 2e12
_LEAST: Final = 1e7  # multiply-accumulates that any run counts as: small operators cost as well


def affordable_runs(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """How many runs of `model` on one sample with inputs of these `shapes` the budget allows."""
    graph = with_input_shapes(model, shapes).graph
    macs = sum(node_macs(node) or 0 for inner in walk_graphs(graph) for node in inner.nodes)
    return BUDGET / max(macs, _LEAST)
