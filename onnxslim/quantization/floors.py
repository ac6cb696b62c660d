"""Which clusters go back to float so that the outputs stay near enough: by measuring.

What may change here: in which order clusters are tried. The effect of each is that of the model in
which it alone is an integer kernel, on samples held back; they go back in the order of their
effects, as few as hold the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnxslim.floors import Floors
from onnxslim.model import Model
from onnxslim.objective.calibration import Calibration, Distance
from onnxslim.quantization.insert import Plan
from onnxslim.quantization.search import Planner, quantized


@dataclass(frozen=True)
class Limits:
    """How far outputs may go.

    Attributes:
        error: the largest relative error, ‖ŷ − y‖ / ‖y‖, of any output; None: no limit.
        floors: what the user will not go below.
    """

    error: float | None
    floors: Floors

    @property
    def are_set(self) -> bool:
        """Whether there is anything to hold."""
        floors = self.floors
        return not (self.error is floors.min_agreement is floors.min_sqnr_db is None)

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
class PutBack:
    """A cluster that is float again, with what it did by itself."""

    name: str
    error: float


@dataclass(frozen=True)
class Restorer:
    """Puts clusters back to float.

    Attributes:
        model: in float.
        reference: whose outputs are to be kept.
        plan: the grids and codes of a choice of clusters.
        calibration: the samples held back.
        limits: what has to hold.
        tell: what goes on, in words.
    """

    model: Model
    reference: Model
    plan: Planner
    calibration: Calibration
    limits: Limits
    tell: Callable[[str], None]

    def restore(
        self, chosen: frozenset[str], units: Sequence[frozenset[str]]
    ) -> tuple[frozenset[str], tuple[PutBack, ...]]:
        """What may stay on integers, and what went back, worst first.

        Args:
            chosen: clusters on integers.
            units: clusters that go back together; the first name of each stands for it.
        """
        if self._missed(chosen) is None:
            return chosen, ()
        self.tell(f"what each of {len(units)} integer kernels does to the outputs")
        errors = [relative_error(distance) for distance in self._alone(units)]
        order = sorted(range(len(units)), key=lambda index: -errors[index])
        count = self._fewest(chosen, [units[index] for index in order])
        gone = order[:count]
        left = chosen.difference(*(units[index] for index in gone))
        back = tuple(PutBack(min(units[index]), errors[index]) for index in gone)
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
        if not chosen:
            return None
        self.tell(f"outputs with {len(chosen)} integer kernels")
        (distance,) = self.calibration.distances(self.reference, [self._model(self.plan(chosen))])
        return self.limits.missed(distance)

    def _alone(self, units: Sequence[frozenset[str]]) -> Iterator[Distance]:
        models = (self._model(self.plan(unit)) for unit in units)
        yield from self.calibration.distances(self.reference, models)

    def _model(self, plan: Plan) -> Model:
        return quantized(self.model, plan)[0]


__all__ = ["Limits", "PutBack", "Restorer", "relative_error"]
