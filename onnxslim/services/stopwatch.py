"""The protocol behind `context.stopwatch`: run times on the user's machine.

The core knows this protocol alone; `onnxslim.runtime.measure.stopwatch` answers it with
onnxruntime. A pass that trades work for speed times a layer alone, as a small model of its real
shapes (see `analysis.layer_models`), since multiply-accumulates do not predict time. It believes a
difference only where the interval of the ratio excludes one (`LatencyPair.is_faster`).
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
        node: first output of the model's node that the kernel computes. Of a kernel for several
            nodes, the node that it is named after; of a kernel that onnxruntime inserted to change
            a layout, the node that reads its output, or else the node whose output it reads.
        operator: operator of the kernel, in onnxruntime's words.
        is_inserted: whether onnxruntime inserted the kernel.
        elements: number of elements of its outputs.
        ms: lower quartile of the runs; equal kernels share theirs.
    """

    node: str
    operator: str
    is_inserted: bool
    elements: int
    ms: float


class Stopwatch(Protocol):
    """Run times, as passes see them."""

    def shapes(self, model: Model) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor of the main graph for the inputs of latency measurements.

        Tensors of unknown shape are left out.
        """

    def milliseconds(self, models: Sequence[onnx.ModelProto]) -> tuple[Latency, ...]:
        """Latencies of small models with static inputs; those not yet timed are timed in turn."""

    def compare(
        self, before: onnx.ModelProto, after: Sequence[onnx.ModelProto]
    ) -> tuple[LatencyPair, ...]:
        """A small model against others, timed in turn; pairs timed before are not timed again."""

    def pair(self, before: Model, after: Model) -> LatencyPair:
        """Two whole models, timed in turn on the inputs of latency measurements."""

    def pairs(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """As `pair`, with all models timed in turn, until differences from `before` are clear."""

    def brief_pairs(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """`before` against each of the others, just long enough to drop those that cannot win."""

    def looped(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """As `pairs`, each model many times behind each other: weights and code stay in caches."""

    def profile(self, model: Model) -> Sequence[Kernel]:
        """The kernels of a run of the whole model, in the order in which they run."""
