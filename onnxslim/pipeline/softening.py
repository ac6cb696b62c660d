"""Find how much of its strength a lossy step may have: the most that holds the floors.

    strongest = SofteningSearch(holds).strongest([weakest, ..., almost as asked])

Settings lie on a scale from weak to strong. A step that misses a floor at one of them is taken to
miss it at every stronger one, so the interval is halved: four trials for fifteen settings.
Owns: the settings that are tried and their order. Not here: what a weaker setting of a pass is
(`Pass.softened`); running and judging it (see `manager`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from onnxslim.pipeline.passes import Pass

SHARES: Final = tuple(part / 16 for part in range(1, 16))
"""Parts of a step's strength at which it is tried."""


def settings_of(bundle: Sequence[Pass], *, has_own_floors: bool) -> list[list[Pass]]:
    """The settings at which steps can be tried that miss a floor as they are, weakest first.

    Args:
        bundle: steps that are kept or dropped together; those that have no strength to choose stay.
        has_own_floors: whether the user set the floors. Where no strength was given either, as much
            is tried as the passes can do.

    Returns:
        Distinct settings; none where no step can be weaker, or one trains, which takes too long.
    """
    if any(stage.trains for step in bundle for stage in step.unrolled()):
        return []
    found: list[list[Pass]] = []
    if has_own_floors and is_open(bundle):
        bundle = [step.hardest() or step for step in bundle]
        found.append(list(bundle))
    for share in reversed(SHARES):
        weaker = [step.softened(share) for step in bundle]
        if any(weaker):
            found.append([new or old for new, old in zip(weaker, bundle, strict=True)])
    return [one for number, one in enumerate(found) if one not in found[:number]][::-1]


def is_open(bundle: Sequence[Pass]) -> bool:
    """Whether the user left the strength of a step open, and gave none to the others."""
    scaled = [step for step in bundle if step.softened(SHARES[-1]) is not None]
    return bool(scaled) and all(step.hardest() is not None for step in scaled)


@dataclass
class SofteningSearch:
    """A search for the strongest setting that holds.

    Attributes:
        holds: whether a setting holds the floors and pays.
        tried: how many settings were tried.
    """

    holds: Callable[[Sequence[Pass]], bool]
    tried: int = field(default=0, init=False)

    def strongest(self, settings: Sequence[Sequence[Pass]]) -> Sequence[Pass] | None:
        """The strongest of `settings`, from weak to strong, that holds; None: none does."""
        low, high = -1, len(settings)
        while high - low > 1:
            middle = (low + high) // 2
            self.tried += 1
            if self.holds(settings[middle]):
                low = middle
            else:
                high = middle
        return settings[low] if low >= 0 else None
