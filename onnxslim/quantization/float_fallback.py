"""Which clusters go back to float so that the outputs stay near enough: by measuring.

What may change here: in which order clusters are tried. The effect of each is that of the model in
which it alone is an integer kernel: on accuracy, where that has a floor, else and among equals on
the outputs for samples held back. They go back in the order of their effects, as few as hold the
floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors
from onnxslim.quantization.placement_search import QdqPlanner, quantized_copy
from onnxslim.quantization.qdq import QdqPlan
from onnxslim.services.calibration import Calibration, Distance

_PATIENCE_S: Final = 300.0  # for the accuracy of models with one kernel each


@dataclass(frozen=True)
class DivergenceLimits:
    """How far outputs may go.

    Attributes:
        error: the largest relative error, ‖ŷ − y‖ / ‖y‖, of any output; None: no limit.
        floors: what the user will not go below.
        accuracy: of a model on the user's evaluation data; None without such data.
    """

    error: float | None
    floors: Floors
    accuracy: Callable[[Model], float | None] | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is anything to hold."""
        floors = self.floors
        near = not (self.error is floors.min_agreement is floors.min_sqnr_db is None)
        return near or self.has_drop

    @property
    def has_drop(self) -> bool:
        """Whether there is a floor on accuracy."""
        return self.floors.max_drop is not None and self.accuracy is not None

    def missed(self, distance: Distance) -> str | None:
        """What does not hold, with the numbers."""
        error, floors = relative_error(distance), self.floors
        if self.error is not None and error > self.error:
            return f"the relative error of an output is {error:.3g}; max-error is {self.error:g}"
        if floors.min_sqnr_db is not None and distance.sqnr_db < floors.min_sqnr_db:
            return f"the SQNR is {distance.sqnr_db:.1f} dB; --min-sqnr is {floors.min_sqnr_db:g}"
        least = floors.min_agreement
        if least is not None and distance.agreement is not None and distance.agreement < least:
            return f"{distance.agreement:.4f} of the answers agree; --min-agreement is {least:g}"
        return None


def relative_error(distance: Distance) -> float:
    """‖ŷ − y‖ / ‖y‖ of the output where it is largest."""
    return float(10 ** (-distance.sqnr_db / 20))


@dataclass(frozen=True)
class FellBack:
    """A cluster that is float again, with what it did by itself.

    Attributes:
        name: of the cluster.
        error: relative, of the outputs.
        drop: points of accuracy.
    """

    name: str
    error: float
    drop: float = 0.0

    def __str__(self) -> str:
        cost = f", and costs {self.drop:.2g} points of accuracy" if self.drop > 0 else ""
        return f"alone it makes a relative error of {self.error:.2g}{cost}"


@dataclass(frozen=True)
class FloatFallback:
    """Puts clusters back to float.

    Attributes:
        model: in float.
        reference: the model before lossy steps, whose outputs and accuracy are to be kept.
        plan: the grids and codes of a choice of clusters.
        settled: what of a choice will be on integers, when others are not.
        calibration: the samples held back, by which clusters are ordered.
        whole: all samples, on which limits must hold as well: floors are judged by them.
        limits: what has to hold.
        tell: what goes on, in words.
    """

    model: Model
    reference: Model
    plan: QdqPlanner
    settled: Callable[[frozenset[str]], frozenset[str]]
    calibration: Calibration
    whole: Calibration
    limits: DivergenceLimits
    tell: Callable[[str], None]

    def restore(
        self, chosen: frozenset[str], units: Sequence[frozenset[str]]
    ) -> tuple[frozenset[str], tuple[FellBack, ...]]:
        """What may stay on integers, and what went back, worst first.

        Args:
            chosen: clusters on integers.
            units: clusters that go back together; the first name of each stands for it.
        """
        if self._missed(chosen) is None:
            return chosen, ()
        self.tell(f"what each of {len(units)} integer kernels does to the outputs")
        errors = [relative_error(distance) for distance in self._alone(units)]
        drops = self._drops_alone(units)
        order = sorted(range(len(units)), key=lambda index: (-drops[index], -errors[index]))
        count = self._fewest(chosen, [units[index] for index in order])
        gone = order[:count]
        left = self.settled(chosen.difference(*(units[index] for index in gone)))
        back = tuple(FellBack(min(units[index]), errors[index], drops[index]) for index in gone)
        return left, back

    def _fewest(self, chosen: frozenset[str], order: Sequence[frozenset[str]]) -> int:
        """How many of `order` must go: by steps that double, then by halving."""
        low, high = 0, 1  # with `low` gone the floor is missed
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
        chosen = self.settled(chosen)
        if not chosen:
            return None
        self.tell(f"outputs with {len(chosen)} integer kernels")
        model = self._model(self.plan(chosen))
        for samples in (self.calibration, self.whole):
            (distance,) = samples.distances(self.reference, [model])
            why = self.limits.missed(distance)
            if why is not None:
                return why
        drop = self._drop(model)
        return (
            f"accuracy drops by {drop:.2f} points"
            if drop > (self.limits.floors.max_drop or 0.0)
            else None
        )

    @cached_property
    def _accuracy(self) -> float | None:
        """That of the model as it was."""
        accuracy = self.limits.accuracy
        return accuracy(self.reference) if self.limits.has_drop and accuracy is not None else None

    def _drops_alone(self, units: Sequence[frozenset[str]]) -> list[float]:
        """What each unit alone costs; 0 where asking for all of them would take too long."""
        nothing = [0.0] * len(units)
        if self._accuracy is None:
            return nothing
        begun = time.perf_counter()
        self._drop(self.reference)
        if len(units) * (time.perf_counter() - begun) > _PATIENCE_S:
            return nothing
        self.tell(f"what each of {len(units)} integer kernels does to accuracy")
        return [self._drop(self._model(self.plan(unit))) for unit in units]

    def _drop(self, model: Model) -> float:
        """Points of accuracy that `model` loses; 0 where there is no floor on them."""
        if self._accuracy is None or self.limits.accuracy is None:
            return 0.0
        now = self.limits.accuracy(model)
        return 0.0 if now is None else 100 * (self._accuracy - now)

    def _alone(self, units: Sequence[frozenset[str]]) -> Iterator[Distance]:
        models = (self._model(self.plan(unit)) for unit in units)
        yield from self.calibration.distances(self.reference, models)

    def _model(self, plan: QdqPlan) -> Model:
        return quantized_copy(self.model, plan)[0]


__all__ = ["DivergenceLimits", "FellBack", "FloatFallback", "relative_error"]
