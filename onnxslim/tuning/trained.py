"""How hard the structure may be changed where training follows.

Floors weaken a step where it stands, and a step that is trained later is not known to miss a floor
before training has ended. So strength is searched for here: along a ray of families, whose budgets
shrink together, training at each point, the interval between what held and what did not is halved.
Behind the best point that held come the families of numbers.

Owns: rays, and the points on them. Not here: running a point (see `run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from onnxslim.tuning.families import LEAST_BUDGET, Family, Role
from onnxslim.tuning.study import Space
from onnxslim.tuning.trials import TrialOutcome

_RAYS: Final = 2  # families that are looked at alone
_HALVINGS: Final = 3
_ROOM: Final = 0.85  # share of the floors that numbers leave some of

Point = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedSearch:
    """A search for the hardest structure that training brings back.

    Attributes:
        space: the pipelines that there are.
        run: makes the model of a point; None: the time is over.
        score: of an outcome, to be made least.
    """

    space: Space
    run: Callable[[Point], TrialOutcome | None]
    score: Callable[[TrialOutcome], float]

    def search(self, ranked: Sequence[str]) -> None:
        """Run points until the rays are searched or the time is over.

        Args:
            ranked: names of families, the best first; those that do nothing alone come last.
        """
        rank = {name: place for place, name in enumerate(ranked)}
        structure = [f for f in self.space.of(Role.STRUCTURE) if f.has_strength]
        structure.sort(key=lambda family: rank.get(family.name, len(rank)))
        numbers = [f.name for f in self.space.of(Role.NUMBERS)]
        numbers.sort(key=lambda name: rank.get(name, len(rank)))
        rays = [[family] for family in structure[:_RAYS]]
        rays += [structure[:_RAYS]] if len(rays) == _RAYS else []
        held: list[tuple[float, dict[str, float]]] = []
        for ray in rays:
            for strengths, outcome in self._along(ray):
                if outcome.holds:
                    held.append((self.score(outcome), strengths))
        for _, strengths in sorted(held, key=lambda one: one[0])[:_RAYS]:
            for name in numbers:
                if self.run(self.space.trained(strengths, name)) is None:
                    return

    def _along(self, ray: Sequence[Family]) -> Iterator[tuple[dict[str, float], TrialOutcome]]:
        """The points on a ray: harder where one holds, weaker where it does not or does nothing."""
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            strengths = {family.name: _strength(middle / len(ray)) for family in ray}
            outcome = self.run(self.space.trained(strengths))
            if outcome is None:
                return
            yield strengths, outcome
            wanted = {family.name for family in (*ray, *self.space.of(Role.TRAINING))}
            reached = wanted <= set(outcome.kept or ())
            if reached and outcome.use <= _ROOM:
                low = middle
            else:
                high = middle


def _strength(place: float) -> float:
    """The strength at which a budget is `LEAST_BUDGET` to the power of `place`, in (0, 1]."""
    left: float = LEAST_BUDGET**place
    return (1 - left) / (1 - LEAST_BUDGET)
