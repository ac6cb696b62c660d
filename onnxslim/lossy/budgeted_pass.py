"""`BudgetedPass`: base of the passes that remove parts of a model until a `Budget` is met.

Owns: the options that say how far to go, and what they require. Not here: what has been reached of
a budget (see `channels.work`, `blocks.meter`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.counts import node_macs
from onnxslim.graph.ir import Node, node_label
from onnxslim.pipeline.options import interval, option
from onnxslim.pipeline.passes import Context, Pass

DEFAULT_RATIO: Final = 0.5


@dataclass(frozen=True)
class Budget:
    """How far a pass goes.

    Attributes:
        kind: `ratio`: the share of what may leave that leaves; `macs`, `latency`, `bytes`: the
            share that may remain.
        amount: the share.
    """

    kind: str
    amount: float

    def __str__(self) -> str:
        """As the option is spelled."""
        return f"{self.kind}={self.amount:g}"

    def remaining(self, progress: float = 1.0) -> float:
        """The share that may remain when `progress` (0 to 1) of the way is done."""
        if self.kind == "ratio":
            return 1 - self.amount * progress
        return 1 - (1 - self.amount) * progress


@dataclass(frozen=True)
class BudgetedPass(Pass):
    """A pass with one budget.

    Attributes:
        ways: the options of which at most one may be given.
    """

    ways: ClassVar[tuple[str, ...]] = ("ratio", "macs", "latency", "bytes")

    ratio: float | None = option(
        None,
        interval(0, 1, open_right=True),
        f"share of what may leave to remove; {DEFAULT_RATIO} where no budget is given",
    )
    macs: float | None = option(
        None, interval(0, 1, open_left=True), "share of the multiply-accumulates that may remain"
    )
    latency: float | None = option(
        None, interval(0, 1, open_left=True), "share of the latency that may remain, as measured"
    )
    bytes_: float | None = option(
        None, interval(0, 1, open_left=True), "share of the file's bytes that may remain"
    )

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: more than one budget is given.
        """
        super().__post_init__()
        self.check_at_most_one(*self.ways)

    def budget(self) -> Budget:
        """The budget that is given; by default a ratio of `DEFAULT_RATIO`."""
        amounts = {
            "ratio": self.ratio,
            "macs": self.macs,
            "latency": self.latency,
            "bytes": self.bytes_,
        }
        given = (Budget(kind, value) for kind, value in amounts.items() if value is not None)
        return next(given, Budget("ratio", DEFAULT_RATIO))

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse a budget of latency where nothing is timed.

        Raises:
            NotApplicable: saying what to give.
        """
        if self.latency is not None and context.stopwatch is None:
            raise NotApplicable(
                "a budget of latency needs models to be timed: leave out --no-latency, or give macs"
            )


def known_macs(nodes: Iterable[Node]) -> dict[Node, int]:
    """Multiply-accumulates of each node.

    Raises:
        NotApplicable: the size of one is not known.
    """
    found: dict[Node, int] = {}
    for node in nodes:
        macs = node_macs(node)
        if macs is None:
            raise NotApplicable(
                f"a budget of macs needs sizes, and that of `{node_label(node)}` is not known: "
                "give --input-shape, or use ratio, bytes or latency"
            )
        found[node] = macs
    return found


__all__ = ["DEFAULT_RATIO", "Budget", "BudgetedPass", "known_macs"]
