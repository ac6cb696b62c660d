"""What passes may ask about run time on the user's machine: `context.stopwatch`.

The core knows this protocol alone; `onnxslim.runtime.measure.stopwatch` answers it with
onnxruntime. A pass that trades work for speed asks about a layer alone, as a small model of its
real shapes (see `analysis.layer_models`), and believes a difference only where its interval says so
(`LatencyPair.is_faster`): multiply-accumulates do not predict time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx

    from onnxslim.io.model import Model
    from onnxslim.report import Latency, LatencyPair


@dataclass(frozen=True)
class Kernel:
    """One kernel of a profiled model.

    Attributes:
        node: the node of the model that it computes, by its first output: of a kernel for several
            nodes the one whose name it bears; of one that onnxruntime put in to change a layout,
            the node that reads what it makes, or else the one whose output it reads.
        operator: what runs, in onnxruntime's words.
        is_inserted: whether onnxruntime put it in.
        elements: of its outputs.
        ms: lower quartile of the runs; kernels that are alike share theirs.
    """

    node: str
    operator: str
    is_inserted: bool
    elements: int
    ms: float


class Stopwatch(Protocol):
    """Run times, as passes see them."""

    def shapes(self, model: Model) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor of the main graph on the inputs that latency is measured on.

        A tensor whose shape cannot be found out is left out.
        """

    def milliseconds(self, models: Sequence[onnx.ModelProto]) -> tuple[Latency, ...]:
        """Latency of small models with static inputs, those not timed before timed in turn."""

    def compare(
        self, before: onnx.ModelProto, after: Sequence[onnx.ModelProto]
    ) -> tuple[LatencyPair, ...]:
        """One small model against others, timed in turn; what is known already is not repeated."""

    def pair(self, before: Model, after: Model) -> LatencyPair:
        """Two whole models in turn, on the inputs that latency is measured on."""

    def pairs(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """As `pair`, with all models in turn: the ratios can be compared with one another."""

    def profile(self, model: Model) -> Sequence[Kernel]:
        """The kernels that a run of the whole model takes, in the order in which they run."""


__all__ = ["Kernel", "Stopwatch"]
