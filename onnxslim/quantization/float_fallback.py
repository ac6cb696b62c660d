"""The clusters that go back to float until the outputs are near enough, found by measuring.

Each cluster is measured as the only integer kernel of the model: its drop of accuracy, where
accuracy has a floor, and the error of the outputs on samples held back, which also orders equals.
Clusters go back worst first, and only as many as the floors need.

Owns: the order, and how many go back. Not here: what a floor is (see `pipeline.floors`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors, missed, missed_drop
from onnxslim.records import Skip
from onnxslim.services.calibration import Calibration, Distance
from onnxslim.services.progress import Progress

_ORDERED_BY: Final = 16  # samples, at most, on which clusters are tried alone
_PATIENCE_S: Final = 300.0  # for measuring accuracy with one integer kernel after the other


@dataclass(frozen=True)
class DivergenceLimits:
    """How far the outputs of a model may be from those of the reference.

    Attributes:
        error: the largest relative error, ‖ŷ − y‖ / ‖y‖, of any output; None: no limit.
        floors: the user's limits on what lossy passes cost.
        accuracy: measures a model on the user's evaluation data; None without such data.
    """

    error: float | None
    floors: Floors
    accuracy: Callable[[Model], float | None] | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return self.error is not None or self.floors.limits_outputs or self.has_drop

    @property
    def has_drop(self) -> bool:
        """Whether there is a floor on accuracy."""
        return self.floors.max_drop is not None and self.accuracy is not None

    def missed(self, distance: Distance) -> str | None:
        """Which limit on the outputs does not hold, with the numbers."""
        error = distance.relative_error
        if self.error is not None and error > self.error:
            return f"the relative error of an output is {error:.3g}; max-error is {self.error:g}"
        return missed(self.floors, distance.outputs)


@dataclass(frozen=True)
class FloatFallback:
    """Puts clusters back to float until limits hold.

    Attributes:
        quantized: gives the model with some clusters on integers.
        reference: the model before lossy steps, whose outputs and accuracy are to be kept.
        settled: gives the clusters of a choice that are worth being on integers without the others.
        calibration: clusters are ordered by the samples held back. Limits must hold on all samples
            as well, as the floors of the run are judged on them.
    """

    quantized: Callable[[frozenset[str]], Model]
    reference: Model
    settled: Callable[[frozenset[str]], frozenset[str]]
    calibration: Calibration
    limits: DivergenceLimits
    progress: Progress
    _errors: dict[frozenset[str], float] = field(default_factory=dict, init=False, repr=False)

    def restore(
        self, chosen: frozenset[str], units: Sequence[frozenset[str]]
    ) -> tuple[frozenset[str], list[Skip]]:
        """Put as few clusters back to float as the limits need.

        Args:
            chosen: names of the clusters on integers.
            units: sets of clusters that go back together.

        Returns:
            The clusters that stay on integers, and those that went back, worst first, with their
            effect as the only integer kernel; one name stands for a unit.
        """
        if self._missed(chosen) is None:
            return chosen, []
        errors = self._errors_alone(units)
        drops = self._drops_alone(units)
        order = sorted(range(len(units)), key=lambda index: (-drops[index], -errors[index]))
        count = self._fewest(chosen, [units[index] for index in order])
        gone = order[:count]
        left = self.settled(chosen.difference(*(units[index] for index in gone)))
        back = []
        for index in gone:
            why = f"back to float: alone it makes a relative error of {errors[index]:.2g}"
            if drops[index] > 0:
                why += f", and costs {drops[index]:.2g} points of accuracy"
            back.append(Skip(min(units[index]), why))
        return left, back

    def _errors_alone(self, units: Sequence[frozenset[str]]) -> list[float]:
        """The relative error that each unit alone makes; each is measured once."""
        new = [unit for unit in units if unit not in self._errors]
        told = self.progress.over("trying alone", new, "integer kernels")
        alone = (self.quantized(unit) for unit in told)
        distances = self._held.some(_ORDERED_BY).distances(self.reference, alone)
        self._errors.update(zip(new, (item.relative_error for item in distances), strict=True))
        return [self._errors[unit] for unit in units]

    @cached_property
    def _held(self) -> Calibration:
        return self.calibration.halves()[1]

    def _fewest(self, chosen: frozenset[str], order: Sequence[frozenset[str]]) -> int:
        """How many units of `order` must go back: gallop, then bisect."""
        low, high = 0, 1  # with the first `low` units gone the limits are missed
        while high < len(order) and self._missed(chosen.difference(*order[:high])) is not None:
            low, high = high, 2 * high
        high = min(high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            if self._missed(chosen.difference(*order[:middle])) is None:
                high = middle
            else:
                low = middle
        return high

    def _missed(self, chosen: frozenset[str]) -> str | None:
        """Which limit the model misses with the clusters `chosen` on integers."""
        chosen = self.settled(chosen)
        if not chosen:
            return None
        model = self.quantized(chosen)
        with self.progress.step(f"comparing outputs with {len(chosen)} integer kernels"):
            for samples in (self._held, self.calibration):
                (distance,) = samples.distances(self.reference, [model])
                why = self.limits.missed(distance)
                if why is not None:
                    return why
            return missed_drop(self.limits.floors, self._drop(model))

    @cached_property
    def _accuracy(self) -> tuple[float | None, float]:
        """The accuracy of the reference, and the seconds that measuring it took."""
        begun = time.perf_counter()
        accuracy = self.limits.accuracy
        found = accuracy(self.reference) if self.limits.has_drop and accuracy is not None else None
        return found, time.perf_counter() - begun

    def _drops_alone(self, units: Sequence[frozenset[str]]) -> list[float]:
        """Points of accuracy that each unit alone costs; all 0 where measuring takes too long."""
        accuracy, seconds = self._accuracy
        if accuracy is None or len(units) * seconds > _PATIENCE_S:
            return [0.0] * len(units)
        told = self.progress.over("accuracy with each", units, "integer kernels")
        return [self._drop(self.quantized(unit)) for unit in told]

    def _drop(self, model: Model) -> float:
        """Points of accuracy that `model` loses; 0 where there is no floor on them."""
        before, _ = self._accuracy
        if before is None or self.limits.accuracy is None:
            return 0.0
        now = self.limits.accuracy(model)
        return 0.0 if now is None else 100 * (before - now)
