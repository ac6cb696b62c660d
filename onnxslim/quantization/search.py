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
from onnxslim.lossy.min_cut import Costs, best_placement
from onnxslim.quantization.clusters import Clusters, clusters_of, without_islands
from onnxslim.quantization.costs import Ledger
from onnxslim.quantization.insert import Inserted, QdqPlan, insert_grids
from onnxslim.report import LatencyPair
from onnxslim.services.stopwatch import Stopwatch

_ROUNDS: Final = 3  # of cutting and profiling what was cut

QdqPlanner = Callable[[frozenset[str]], QdqPlan]


@dataclass(frozen=True)
class Tried:
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
class Search:
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
    tried: list[Tried] = field(default_factory=list)
    costs: Costs = field(default_factory=lambda: Costs({}))

    def run(self) -> Tried | None:
        """The fastest placement; None where none is faster than float, twice."""
        faster = [tried for tried in self._timed(self._placements()) if tried.pair.is_faster]
        for tried in self._ordered(faster):
            # the best of several is also the luckiest of several
            (again,) = self._timed({tried.chosen: f"again {tried.words}"})
            if again.pair.is_faster:
                return again
        return None

    def smallest(self) -> Tried:
        """Of the placements that have all weights on integers, the fastest, float or not."""
        placements = {self.candidates: "all that can be"}
        layers = self._layers()
        if layers:
            placements.setdefault(layers, "layers only")
        return max(self._timed(placements), key=_ratio)

    def _timed(self, placements: Mapping[frozenset[str], str]) -> list[Tried]:
        """All of them in turn with float, so that they can be compared with one another."""
        self.tell(f"timing {', '.join(placements.values())}")
        models = [quantized(self.model, self.plan(chosen))[0] for chosen in placements]
        pairs = self.stopwatch.pairs(self.reference, models)
        found = [
            Tried(words, chosen, pair)
            for (chosen, words), pair in zip(placements.items(), pairs, strict=True)
        ]
        self.tried += found
        return found

    def _ordered(self, faster: Iterable[Tried]) -> Iterator[Tried]:
        """The fastest first; of those that timing cannot tell apart, what the profiles say."""
        left = list(faster)
        while left:
            best = max(left, key=_ratio)
            alike = (tried for tried in left if tried.pair.ratio >= best.pair.low)
            first = min(alike, key=lambda tried: self.costs.milliseconds(tried.chosen))
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
        ledger = Ledger(self.clusters, self.candidates, self.stopwatch.shapes(self.model))
        self.tell("profile of the float model")
        ledger.add(self.stopwatch.profile(self.model), frozenset())
        chosen, found = self.candidates, list[frozenset[str]]()
        for _ in range(_ROUNDS):
            self.tell(f"profile with {len(chosen)} integer kernels")
            model, inserted = quantized(self.model, self.plan(chosen))
            ledger.add(self.stopwatch.profile(model), chosen, inserted)
            chosen = without_islands(self.clusters, best_placement(ledger.costs()))
            if not chosen or chosen in found:
                break
            found.append(chosen)
        self.costs = ledger.costs()
        return found


def _ratio(tried: Tried) -> float:
    return tried.pair.ratio


def quantized(model: Model, plan: QdqPlan) -> tuple[Model, Inserted]:
    """A copy of `model` with `plan` put into it, and where things are."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    inserted = insert_grids(rewriter, clusters_of(copy.graph), plan)
    rewriter.result()
    copy.has_shapes = False
    return copy, inserted


__all__ = ["QdqPlanner", "Search", "Tried", "quantized"]
