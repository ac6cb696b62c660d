"""The calibration range of each tensor that leaves the *outputs* nearest.

The squared error of a tensor is a poor judge of its range: some outliers carry all of its energy
and change nothing, others decide the answer. So ranges are judged by the outputs, on samples held
back:

- *alone*: one tensor of the float model after the other is fake-quantized. Effects of small
  independent changes add up (see `Distance.divergence`), so the tensors whose effects make up
  nearly all of the sum try their other ranges. Two samples show which range has the least effect;
  where nearly all of the gain lies, more samples have to confirm it;
- *together*: the integer model that is to be written is run with these ranges, and with those of
  each method for all tensors. The ranges of least effect are kept unless others are clearly nearer.
  This catches effects that do not add up; small differences on few samples are chance.

All trials of single tensors together have a budget of runs (see `effort`).

Owns: which tensors try which ranges, and when to stop. Not here: where ranges come from (see
`calibration_ranges`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

import numpy as np

from onnxslim.io.model import Model
from onnxslim.quantization.calibration_ranges import CalibrationRange, RangeMethod
from onnxslim.services.calibration import Calibration, Distance
from onnxslim.services.progress import Progress

_SCREENED: Final = 2  # samples on which one tensor after the other tries its ranges
_ALONE: Final = 8  # samples that confirm a choice which matters
CHOICES: Final = 2 + len(RangeMethod)  # of the ranges of all tensors, each a whole model
TOGETHER: Final = 64  # samples on which whole models are judged, at most
FEWEST_TOGETHER: Final = 8
_LOST: Final = 1.0  # divergence at which outputs are lost; larger ones count as this
_UNTRIED: Final = 0.1  # share of the sum of all effects whose tensors keep their first range
_CLEARLY: Final = 0.8  # others must get below this share of the divergence by least effect
_SHARES: Final = (0.4, 0.3, 0.3)  # of the budget: first ranges, others, and confirming
_MEAN_PART: Final = 0.5  # of the nodes that lie behind a tensor, on average
_ALIKE: Final = 0.02  # ranges whose ends differ by less than this share are the same

RangeByTensor = Mapping[str, CalibrationRange]


@dataclass(frozen=True)
class RangeCandidates:
    """The ranges among which each tensor can choose.

    Attributes:
        found: the ranges of each tensor, by its name, that with the least error of its own first;
            in the order of the graph.
        model: the float model, its shapes inferred.
        calibration: the samples held back.
        progress: what is being done.
        runs: of the whole model on one sample, as many as all choices together may take. Where
            they are too few for all tensors, those that their first range serves worst come first.
        known: effects that were measured before, by the id of a range and the number of samples;
            whoever shares them keeps model, samples and ranges alive.
    """

    found: Mapping[str, Sequence[CalibrationRange]]
    model: Model
    calibration: Calibration
    progress: Progress = field(default_factory=Progress)
    runs: float = inf
    known: dict[tuple[int, int], float] = field(default_factory=dict)
    _subsets: dict[int, Calibration] = field(default_factory=dict, init=False, repr=False)

    @property
    def least_error(self) -> RangeByTensor:
        """For each tensor the range with the least error of its own."""
        return {name: ranges[0] for name, ranges in self.found.items()}

    def of_method(self, method: RangeMethod) -> RangeByTensor:
        """The ranges of one method; where it found none, the range with the least error."""
        return {
            name: next((item for item in ranges if item.method is method), ranges[0])
            for name, ranges in self.found.items()
        }

    def least_effect(self) -> RangeByTensor:
        """For each tensor the range with the least effect on the outputs, alone."""
        distinct = {name: _distinct(ranges) for name, ranges in self.found.items()}
        choices = {name: ranges for name, ranges in distinct.items() if len(ranges) > 1}
        # the effect of every tensor's first range, then of other ranges where effects are large
        first, more, confirming = (share * self.runs for share in _SHARES)
        firsts = self._affordable({name: own[:1] for name, own in choices.items()}, first)
        effects = dict(self._effects(firsts))
        chosen, gains = dict(self.least_error), dict[str, float]()
        untried = {name: choices[name][1:] for name in effects}
        while names := _weightiest({name: effects[name][0] for name in untried}, effects):
            tried = {name: untried.pop(name) for name in choices if name in names}
            weights = {name: effects[name][0] for name in tried}
            tried = self._affordable(tried, more, by=weights)
            more -= sum(map(self._cost, tried.values()))
            for name, found in self._effects(tried):
                best, known = int(np.argmin(found)), effects[name][0]
                if found[best] < known:
                    chosen[name], effects[name] = tried[name][best], [found[best]]
                    gains[name] = min(known, _LOST) - min(found[best], _LOST)
        self._confirm(chosen, gains, confirming)
        return chosen

    def _confirm(
        self, chosen: dict[str, CalibrationRange], gains: Mapping[str, float], runs: float
    ) -> None:
        """Go back to the first range where more samples do not show the gain of another.

        So do tensors for which no runs are left.
        """
        names = _weightiest(gains, {name: [gain] for name, gain in gains.items()})
        rivals = {name: [self.found[name][0], chosen[name]] for name in self.found if name in names}
        confirmed = self._affordable(rivals, runs, by=gains, samples=_ALONE)
        chosen.update((name, first) for name, (first, _) in rivals.items() if name not in confirmed)
        for name, (first, other) in self._effects(confirmed, _ALONE):
            if first <= other:
                chosen[name] = self.found[name][0]

    def _affordable(
        self,
        ranges: Mapping[str, Sequence[CalibrationRange]],
        runs: float,
        *,
        by: Mapping[str, float] | None = None,
        samples: int = _SCREENED,
    ) -> dict[str, Sequence[CalibrationRange]]:
        """Those of the tensors that fit into `runs`, in the same order.

        Which come first: those with the largest figures `by`, else those whose first range makes
        the largest relative error of the tensor itself.
        """
        weights = by or {name: own[0].relative_error for name, own in self.found.items()}
        fitting = set[str]()
        for name in sorted(ranges, key=lambda name: -weights[name]):
            runs -= self._cost(ranges[name], samples)
            if runs < 0:
                break
            fitting.add(name)
        return {name: own for name, own in ranges.items() if name in fitting}

    def _cost(self, ranges: Sequence[CalibrationRange], samples: int = _SCREENED) -> float:
        return _MEAN_PART * samples * len(ranges)

    def _effects(
        self, ranges: Mapping[str, Sequence[CalibrationRange]], samples: int = _SCREENED
    ) -> Iterable[tuple[str, Sequence[float]]]:
        new = {
            name: tuple(item for item in own if (id(item), samples) not in self.known)
            for name, own in ranges.items()
        }
        replacements = {n: [item.grid.rounded for item in own] for n, own in new.items() if own}
        measured = self._some(samples).effects(self.model, replacements)
        told = self.progress.over("choosing ranges of", measured, "tensors", total=len(new))
        for name, distances in told:
            pairs = zip(new[name], distances, strict=True)
            self.known.update(((id(item), samples), far.divergence) for item, far in pairs)
        for name, own in ranges.items():
            if all((id(item), samples) in self.known for item in own):
                yield name, [self.known[id(item), samples] for item in own]

    def _some(self, count: int) -> Calibration:
        if count not in self._subsets:
            self._subsets[count] = self.calibration.some(count)
        return self._subsets[count]


def nearest_ranges(
    tensors: RangeCandidates, together: Callable[[Sequence[RangeByTensor]], Iterable[Distance]]
) -> tuple[RangeByTensor, str]:
    """The ranges of least effect, or others with which the integer model is clearly nearer.

    Args:
        tensors: the ranges among which each tensor can choose.
        together: measures how far the outputs of the integer model are with each of some choices.

    Returns:
        The range of each tensor, and in words how they were chosen, with the SQNR.
    """
    choices = {"least effect on the outputs": tensors.least_effect()}
    choices["each tensor's least error"] = tensors.least_error
    choices.update((f"{method} for all", tensors.of_method(method)) for method in RangeMethod)
    distances = dict(zip(choices, together(list(choices.values())), strict=True))
    by_effect, by_error, *_ = distances.values()
    best = min(distances, key=lambda words: distances[words].divergence)
    if distances[best].divergence > _CLEARLY * by_effect.divergence:
        best = next(iter(choices))
    return choices[best], (
        f"ranges by {best}: SQNR {distances[best].sqnr_db:.1f} dB on samples held back "
        f"({by_error.sqnr_db:.1f} by each tensor's least error)"
    )


def _weightiest(untried: Mapping[str, float], effects: Mapping[str, Sequence[float]]) -> set[str]:
    """The fewest of `untried` without which the rest is a small share of all effects."""
    total = sum(min(found[0], _LOST) for found in effects.values())
    left, chosen = sum(min(effect, _LOST) for effect in untried.values()), set[str]()
    for name, effect in sorted(untried.items(), key=lambda item: -item[1]):
        if left <= _UNTRIED * total:
            break
        chosen.add(name)
        left -= min(effect, _LOST)
    return chosen


def _distinct(ranges: Sequence[CalibrationRange]) -> Sequence[CalibrationRange]:
    """The ranges that differ by more than a trifle from all before them."""
    found: list[CalibrationRange] = []
    for item in ranges:
        step = _ALIKE * (item.most - item.least)
        if not any(
            abs(item.least - other.least) <= step and abs(item.most - other.most) <= step
            for other in found
        ):
            found.append(item)
    return found
