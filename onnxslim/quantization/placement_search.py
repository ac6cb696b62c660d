"""The search for a placement that is faster than float on this machine.

The minimum cut (see `lossy.min_cut`) is only as good as its times, so it is repeated with the
profile of the placement that it gave. Then each of these placements is timed in turn with float,
briefly. The fastest is kept if it is faster than float when timed once more, until that is clear;
otherwise the next. Where timing whole models cannot tell placements apart, the profiles decide.

Owns: which placements are tried. Not here: how profiles become costs (see `cluster_times`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Final

from onnxslim.io.model import Model
from onnxslim.lossy.min_cut import PlacementCosts, cheapest_choice
from onnxslim.quantization.cluster_times import ClusterTimes
from onnxslim.quantization.clusters import Clusters
from onnxslim.quantization.qdq import QdqPlanner, quantize, quantized_copy
from onnxslim.quantization.rules import KernelKind
from onnxslim.report import LatencyPair
from onnxslim.services.progress import Progress
from onnxslim.services.stopwatch import Stopwatch

_ROUNDS: Final = 3  # of profiling a placement and cutting again
_ABOUT: Final = 0.9  # share of the speed of another placement that counts as about as fast
_CONFIRMED: Final = 3  # placements that are timed once more, at most

_Clock = Callable[[Model, Sequence[Model]], tuple[LatencyPair, ...]]


@dataclass(frozen=True)
class TimedPlacement:
    """A placement that was timed as a whole.

    Attributes:
        words: which placement it is, for the report.
        chosen: names of its integer clusters.
        pair: the latency of the float model and of this placement, timed in turn.
    """

    words: str
    chosen: frozenset[str]
    pair: LatencyPair

    def is_about_as_fast_as(self, other: TimedPlacement | None) -> bool:
        """Whether it loses little of the speed of another, if there is one."""
        return other is None or self.pair.ratio >= _ABOUT * other.pair.ratio

    def __str__(self) -> str:
        """The placement and its figures, for the report."""
        pair = self.pair
        return (
            f"{self.words} ({len(self.chosen)} kernels) {pair.ratio:.2f} times as fast as float "
            f"({pair.low:.2f} to {pair.high:.2f})"
        )


@dataclass
class PlacementSearch:
    """Looks for the fastest placement of one model.

    Attributes:
        model: the float model, its shapes inferred.
        reference: the model that has to be beaten.
        candidates: names of clusters that may become integers.
        settled: gives the clusters of a choice that are worth being on integers without the others.
        tried: the placements that were timed.
        costs: the costs of all placements in milliseconds, by the profiles.
    """

    model: Model
    reference: Model
    clusters: Clusters
    candidates: frozenset[str]
    settled: Callable[[frozenset[str]], frozenset[str]]
    plan: QdqPlanner
    stopwatch: Stopwatch
    progress: Progress
    tried: list[TimedPlacement] = field(default_factory=list)
    costs: PlacementCosts = field(default_factory=lambda: PlacementCosts({}))

    def run(self) -> TimedPlacement | None:
        """The fastest placement; None where none is faster than float, twice."""
        briefly = self._timed(self._placements(), self.stopwatch.brief_pairs)
        contenders = [tried for tried in briefly if tried.pair.high > 1]
        for tried in islice(self._ordered(contenders), _CONFIRMED):
            # the best of several timings is biased upwards, so it is timed again
            words = {tried.chosen: f"again {tried.words}"}
            (again,) = self._timed(words, self.stopwatch.pairs)
            if again.pair.is_faster:
                return again
        return None

    def smallest(self) -> TimedPlacement:
        """The fastest of the placements with all weights on integers, even if slower than float."""
        placements = {self.candidates: "all that can be"}
        if layers := self._layers():
            placements.setdefault(self.settled(layers | self._tables), "layers only")
        return max(self._timed(placements, self.stopwatch.brief_pairs), key=_ratio)

    def _timed(
        self, placements: Mapping[frozenset[str], str], clock: _Clock
    ) -> list[TimedPlacement]:
        """Time all placements in turn with float, so that they compare with one another."""
        many = f"{len(placements)} placement{'s' if len(placements) > 1 else ''}"
        with self.progress.step(f"timing {many} of integer kernels against float"):
            models = [quantized_copy(self.model, self.plan(chosen)) for chosen in placements]
            pairs = clock(self.reference, models)
        found = [
            TimedPlacement(words, chosen, pair)
            for (chosen, words), pair in zip(placements.items(), pairs, strict=True)
        ]
        self.tried += found
        return found

    def _ordered(self, faster: Iterable[TimedPlacement]) -> Iterator[TimedPlacement]:
        """The fastest first; those that timing cannot tell apart in the order of the profiles."""
        left = list(faster)
        while left:
            best = max(left, key=_ratio)
            alike = (tried for tried in left if tried.pair.ratio >= best.pair.low)
            first = min(alike, key=lambda tried: self.costs.total(tried.chosen))
            left.remove(first)
            yield first

    def _placements(self) -> Mapping[frozenset[str], str]:
        """The placements worth timing, each once, with words for it."""
        found: dict[frozenset[str], str] = {}
        for number, chosen in enumerate(self._cuts(), 1):
            chosen = self.settled(chosen | self._tables)
            found.setdefault(chosen, f"the least cut number {number}")
        found.setdefault(self.candidates, "all that can be")
        found.setdefault(self.settled(self._layers() | self._tables), "layers only")
        found.pop(self.settled(self._tables), None)
        return found

    @cached_property
    def _tables(self) -> frozenset[str]:
        """Tables go with every placement: they save bytes, and take next to no time."""
        return self.candidates.intersection(
            cluster.name for cluster in self.clusters.all if cluster.rule.kind is KernelKind.TABLE
        )

    def _layers(self) -> frozenset[str]:
        layers = (cluster.name for cluster in self.clusters.all if cluster.is_layer)
        return self.candidates.intersection(layers)

    def _cuts(self) -> list[frozenset[str]]:
        """Minimum cuts, each from the profiles of those before it."""
        times = ClusterTimes(self.clusters, self.candidates, self.stopwatch.shapes(self.model))
        with self.progress.step("timing each operator of the float model"):
            times.record(self.stopwatch.profile(self.model), frozenset())
        chosen, found = self.candidates, list[frozenset[str]]()
        for _ in self.progress.over("timing each operator of", range(_ROUNDS), "integer models"):
            model = self.model.clone()
            inserted = quantize(model, self.plan(chosen))
            times.record(self.stopwatch.profile(model), chosen, inserted)
            chosen = self.settled(cheapest_choice(times.costs()))
            if not chosen or chosen in found:
                break
            found.append(chosen)
        self.costs = times.costs()
        return found


def _ratio(tried: TimedPlacement) -> float:
    return tried.pair.ratio
