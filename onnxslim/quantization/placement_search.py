"""The search for a placement that is faster than float on this machine.

What may change here: which placements are tried. The cut of least time (see `placement`) is only
as good as the times it is made from, so it is made again from the profile of what it gave; then
whole models and the float one are timed in turn, and the fastest is kept, if it is faster at all
and still is when it is timed once more. What whole models cannot tell apart the profiles decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.min_cut import PlacementCosts, cheapest_choice
from onnxslim.quantization.cluster_times import ClusterTimes
from onnxslim.quantization.clusters import Clusters, clusters_of, drop_isolated_movement
from onnxslim.quantization.qdq import InsertedNodes, QdqPlan, insert_qdq
from onnxslim.report import LatencyPair
from onnxslim.services.stopwatch import Stopwatch

_ROUNDS: Final = 3  # of cutting and profiling what was cut

QdqPlanner = Callable[[frozenset[str]], QdqPlan]


@dataclass(frozen=True)
class TimedPlacement:
    """A placement that was timed as a whole.

    Attributes:
        words: which it is.
        chosen: its integer clusters.
        pair: the float model against it.
    """

    words: str
    chosen: frozenset[str]
    pair: LatencyPair

    def __str__(self) -> str:
        """With its numbers."""
        pair = self.pair
        return (
            f"{self.words} ({len(self.chosen)} kernels) {pair.ratio:.2f} times as fast as float "
            f"({pair.low:.2f} to {pair.high:.2f})"
        )


@dataclass
class PlacementSearch:
    """Looks for the placement of one model.

    Attributes:
        model: in float, its shapes inferred.
        reference: what has to be beaten.
        clusters: of its graph.
        candidates: names of clusters that may become integers.
        plan: the grids and codes of a placement.
        stopwatch: of this machine.
        tell: what goes on, in words.
        tried: the placements that were timed.
        costs: of all placements, by the profiles.
    """

    model: Model
    reference: Model
    clusters: Clusters
    candidates: frozenset[str]
    plan: QdqPlanner
    stopwatch: Stopwatch
    tell: Callable[[str], None]
    tried: list[TimedPlacement] = field(default_factory=list)
    costs: PlacementCosts = field(default_factory=lambda: PlacementCosts({}))

    def run(self) -> TimedPlacement | None:
        """The fastest placement; None where none is faster than float, twice."""
        faster = [tried for tried in self._timed(self._placements()) if tried.pair.is_faster]
        for tried in self._ordered(faster):
            # the best of several is also the luckiest of several
            (again,) = self._timed({tried.chosen: f"again {tried.words}"})
            if again.pair.is_faster:
                return again
        return None

    def smallest(self) -> TimedPlacement:
        """Of the placements that have all weights on integers, the fastest, float or not."""
        placements = {self.candidates: "all that can be"}
        layers = self._layers()
        if layers:
            placements.setdefault(layers, "layers only")
        return max(self._timed(placements), key=_ratio)

    def _timed(self, placements: Mapping[frozenset[str], str]) -> list[TimedPlacement]:
        """All of them in turn with float, so that they can be compared with one another."""
        self.tell(f"timing {', '.join(placements.values())}")
        models = [quantized_copy(self.model, self.plan(chosen))[0] for chosen in placements]
        pairs = self.stopwatch.pairs(self.reference, models)
        found = [
            TimedPlacement(words, chosen, pair)
            for (chosen, words), pair in zip(placements.items(), pairs, strict=True)
        ]
        self.tried += found
        return found

    def _ordered(self, faster: Iterable[TimedPlacement]) -> Iterator[TimedPlacement]:
        """The fastest first; of those that timing cannot tell apart, what the profiles say."""
        left = list(faster)
        while left:
            best = max(left, key=_ratio)
            alike = (tried for tried in left if tried.pair.ratio >= best.pair.low)
            first = min(alike, key=lambda tried: self.costs.total(tried.chosen))
            left.remove(first)
            yield first

    def _placements(self) -> Mapping[frozenset[str], str]:
        """What is worth timing, with words for it; each placement once."""
        found: dict[frozenset[str], str] = {}
        for number, chosen in enumerate(self._cuts(), 1):
            found.setdefault(chosen, f"the least cut number {number}")
        found.setdefault(self.candidates, "all that can be")
        found.setdefault(self._layers(), "layers only")
        found.pop(frozenset(), None)
        return found

    def _layers(self) -> frozenset[str]:
        layers = (cluster.name for cluster in self.clusters.all if cluster.is_layer)
        return self.candidates.intersection(layers)

    def _cuts(self) -> list[frozenset[str]]:
        """Least cuts, each from the profiles of those before it."""
        times = ClusterTimes(self.clusters, self.candidates, self.stopwatch.shapes(self.model))
        self.tell("profile of the float model")
        times.record(self.stopwatch.profile(self.model), frozenset())
        chosen, found = self.candidates, list[frozenset[str]]()
        for _ in range(_ROUNDS):
            self.tell(f"profile with {len(chosen)} integer kernels")
            model, inserted = quantized_copy(self.model, self.plan(chosen))
            times.record(self.stopwatch.profile(model), chosen, inserted)
            chosen = drop_isolated_movement(self.clusters, cheapest_choice(times.costs()))
            if not chosen or chosen in found:
                break
            found.append(chosen)
        self.costs = times.costs()
        return found


def _ratio(tried: TimedPlacement) -> float:
    return tried.pair.ratio


def quantized_copy(model: Model, plan: QdqPlan) -> tuple[Model, InsertedNodes]:
    """A copy of `model` with `plan` put into it, and where things are."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    inserted = insert_qdq(rewriter, clusters_of(copy.graph), plan)
    rewriter.result()
    copy.has_shapes = False
    return copy, inserted


__all__ = ["PlacementSearch", "QdqPlanner", "TimedPlacement", "quantized_copy"]
