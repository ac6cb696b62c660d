"""Share zeros and values out between layers by what they do to the output, then prune and cluster.

Rewrite:
    Runs `prune-weights` and `cluster-weights` with a share of zeros and a size of table for each
    layer. The report spells them out as an explicit pipeline, which gives the same model without
    the search.

Why it is correct:
    It is not exact. For each layer the error of its output at so many zeros and values is estimated
    in closed form, and how much of such an error reaches the model's output is measured on samples
    held back. One price of a byte for all layers then gives the least error for the bytes. The
    price is found by trying: candidates are fitted on four fifths of the samples and compared with
    the original on the others, until one is as small as the floors allow. That candidate is made
    anew on all samples and compared again; if it then misses a floor, the next larger candidate
    takes its place.

    With `finetune` each candidate also learns from the original, without labels: zeros come in
    three steps with training between them, then values, of biases too, with training behind them.
    So candidates hold the floor that are much smaller. The epochs are those of one candidate, and
    up to nine are trained. Samples that candidates are judged by should not be those that they are
    trained on: give others with `--train`.

Declines when:
    1. There are no calibration samples to judge candidates by.
    2. No candidate holds the floor.

Fidelity:
    LOSSY, held to the user's floors; without any, to `agreement` or `sqnr` and to the default
    floor.

Reference:
    Shoham, Gersho (1988), efficient bit allocation for an arbitrary set of quantizers; Han, Mao,
    Dally, arXiv:1510.00149, whose layers were tuned by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.graph.clone import adopt
from onnxslim.lossy.allocation import Allocation
from onnxslim.lossy.allocation_search import AllocationOptions, AllocationSearch
from onnxslim.lossy.layer_pass import LayerPass
from onnxslim.passes.cluster_weights import ClusterWeights
from onnxslim.passes.prune_weights import PruneWeights
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.patterns import literal
from onnxslim.records import Change, Fidelity, PassResult, Skip

_FINALS: Final = 3  # candidates that are made on all samples
_PRUNING: Final = 2 / 3  # share of the epochs that goes to zeros; the others go to values
_STEPS: Final = 3  # in which zeros are made where the model is trained between
_BIASES: Final = 16  # values, where the model is trained behind it


@dataclass(frozen=True)
class CompressWeights(LayerPass):
    """Share zeros and values out between layers by what they do to the output, then compress."""

    name: ClassVar[str] = "compress-weights"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,compress-weights": "zeros and values by what each layer tolerates",
        "compress-weights:agreement=0.99": "1 % of the answers may change",
        "compress-weights:finetune=3": "each candidate learns from the original for three epochs",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    agreement: float = option(
        0.998, interval(0, 1), "share of top-1 answers to keep, where no floor is given"
    )
    sqnr: float = option(
        20.0, at_least(0), "dB to keep where outputs are no class scores and no floor is given"
    )
    count: str = option(
        "packed",
        one_of("packed", "onnx"),
        "bytes to save: those of the packed file, or of the .onnx file, where zeros save nothing",
    )

    @property
    def trains(self) -> bool:
        """Whether candidates are trained."""
        return self.finetune is not None

    def unrolled(self) -> tuple[Pass, ...]:
        """Itself: each candidate of its search is trained."""
        return (self,)

    def needs_calibration(self) -> str | None:
        """Candidates are judged by samples."""
        return "to measure what each layer tolerates"

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Search, then prune and cluster as found."""
        options = AllocationOptions(
            self.selection(context), self.count == "packed", self.agreement, self.sqnr
        )
        search = AllocationSearch(options, context, self.explicit)
        for allocation in search.run()[:_FINALS]:
            steps = self.explicit(allocation)
            model, results = search.made(steps, context.calibration)
            changes = [change for result in results for change in result.changes]
            skips = [skip for result in results for skip in result.skips]
            if not changes:
                nothing = "no change that holds the floor makes it smaller"
                skips.append(Skip(graph.name, search.why_nothing() if search.missed else nothing))
                return PassResult((), tuple(skips))
            if search.holds(model):
                adopt(graph, model.graph)
                plan = Change(graph.name, f"chose {','.join(map(str, steps))}")
                done = zip(steps, results, strict=True)
                resolved = ",".join(str(step) for step, result in done if result.changes)
                return PassResult((plan, *changes), tuple(skips), Fidelity.LOSSY, resolved=resolved)
        return PassResult(skips=(Skip(graph.name, search.why_nothing()),))

    def explicit(self, found: Allocation) -> tuple[PruneWeights, ClusterWeights]:
        """The two passes that make an allocation."""
        shares, values, kept = [], [], []
        for name, offer in found.items():
            pattern = literal(name)
            if offer.values is None:
                kept.append(pattern)
                continue
            values.append(f"{pattern}={offer.values}")
            if offer.keep < 1:
                shares.append(f"{pattern}={min(1 - offer.keep, 0.9999):.4f}")
        own = {spec.field: getattr(self, spec.field) for spec in LayerPass.options()}
        own["skip"] = (*self.skip, *kept)
        if self.finetune is None:
            return (
                PruneWeights(**own, ratio=0.0, ratio_of=tuple(shares)),
                ClusterWeights(**own, values_of=tuple(values)),
            )
        pruned, clustered = (
            {**own, "finetune": share * self.finetune} for share in (_PRUNING, 1 - _PRUNING)
        )
        return (
            PruneWeights(**pruned, ratio=0.0, ratio_of=tuple(shares), steps=_STEPS),
            ClusterWeights(**clustered, values_of=tuple(values), biases=_BIASES),
        )
