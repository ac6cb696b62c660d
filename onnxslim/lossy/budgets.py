"""A budget over a whole model, and the meter that says how much of it a changed model takes.

    budget = Budget("macs", 0.5)                        # half of the multiply-accumulates may stay
    meter = BudgetMeter.of(budget.kind, graph, model, stopwatch)       # while the model is whole
    ...
    meter.taken(graph, model) <= budget.amount * meter.whole     # whether the budget is met

Owns: the kinds of budget and how each is measured on a graph. Not here: the options that set a
budget (see `budgeted_pass`); the choice of what to give up (see `spend`); what parts of a model
take, which is the business of the pass that removes them (`channels.work`, `blocks.meter`,
`lowrank.budget`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.counts import constants_of, node_macs, sized_macs
from onnxslim.graph.ir import Node, node_label, walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import with_input_shapes
from onnxslim.services.calibration import Calibration
from onnxslim.services.stopwatch import Stopwatch


@dataclass(frozen=True)
class Budget:
    """How far a pass goes.

    Attributes:
        kind: `ratio`, or one of `macs`, `latency` and `bytes`.
        amount: for `ratio` the share of the removable parts that leaves, in [0, 1); else the share
            of the whole that may remain, in (0, 1].
    """

    kind: str
    amount: float

    def remaining(self, progress: float = 1.0) -> float:
        """The share that may remain when `progress` of the way is done."""
        if self.kind == "ratio":
            return 1 - self.amount * progress
        return 1 - (1 - self.amount) * progress

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"


@dataclass(frozen=True)
class BudgetMeter:
    """Measures models against the model that they came from.

    Attributes:
        kind: `macs`; `bytes`, of constants; or `latency`.
        whole: what the original takes; 1 for latency, which is only ever measured as a share.
        original: the model that others are timed against, for latency.
        stopwatch: for latency.
    """

    kind: str
    whole: float
    original: Model | None = None
    stopwatch: Stopwatch | None = None

    @classmethod
    def of(
        cls,
        kind: str,
        graph: gs.Graph,
        model: Model | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> BudgetMeter:
        """The meter for a graph before anything leaves it.

        Args:
            kind: of the budget. A ratio counts parts, not what they take: it has no meter.
            graph: of the original; only read now.
            model: whose graph it is, for latency; it must stay as it is.
            stopwatch: for latency.
        """
        is_counted = kind in ("macs", "bytes")
        return cls(kind, _taken(kind, graph) if is_counted else 1.0, model, stopwatch)

    def taken(self, graph: gs.Graph, model: Model | None = None) -> float:
        """What a graph takes, in the unit of `whole`; latency is timed in turn with the original.

        Args:
            graph: to be measured.
            model: whose graph it is, for latency.
        """
        if self.kind in ("macs", "bytes"):
            return _taken(self.kind, graph)
        assert self.stopwatch is not None
        assert self.original is not None
        assert model is not None
        return 1 / self.stopwatch.pair(self.original, model).ratio


def _taken(kind: str, graph: gs.Graph) -> float:
    if kind == "bytes":
        found = {id(c): c for current in walk_graphs(graph) for c in constants_of(current)}
        return sum(constant.nbytes for constant in found.values())
    return sized_macs(graph)


def macs_by_node(model: Model, calibration: Calibration | None = None) -> dict[Node, int | None]:
    """Multiply-accumulates of each node of a model and of its bodies; None: they are not known.

    Sizes that the model leaves open are those of the first calibration sample.
    """
    nodes = [node for graph in walk_graphs(model.graph) for node in graph.nodes]
    found = {node: node_macs(node) for node in nodes}
    if calibration is None or None not in found.values():
        return found
    sized = with_input_shapes(model, calibration.extent(model).shapes)
    twins = (node for graph in walk_graphs(sized.graph) for node in graph.nodes)
    return {node: node_macs(twin) for node, twin in zip(nodes, twins, strict=True)}


def known_macs(
    nodes: Iterable[Node], counts: Mapping[Node, int | None] = MappingProxyType({})
) -> dict[Node, int]:
    """Multiply-accumulates of each node, from `counts` or from its shapes.

    Raises:
        NotApplicable: the size of one is not known.
    """
    found: dict[Node, int] = {}
    for node in nodes:
        macs = counts[node] if node in counts else node_macs(node)
        if macs is None:
            raise NotApplicable(
                f"a budget of macs needs sizes, and that of `{node_label(node)}` is not known: "
                "give --input-shape or samples, or use ratio, bytes or latency"
            )
        found[node] = macs
    return found
