"""Which rewrites of a step to leave out, where the step as a whole makes the model worse.

The rewrites are halved again and again: first by pass, then by kind, then by place. A half is to
blame when the model is better without it, as measured against the model with all of them. Where no
half of a group is to blame alone, the group is left out. The number of measurements is bounded, and
so is their time: on a busy machine each takes long. What is not asked any more is left out whole.

Owns: the search. Not here: what "better" means (see `manager`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from onnxslim.records import Change

MOST_TRIALS: Final = 16


@dataclass(frozen=True)
class Site:
    """A place of rewrites.

    Attributes:
        member: name of the pass.
        node: the first output of the node that was visited, by which `skip` names it.
        kind: the first thing that was done there, in words.
    """

    member: str
    node: str
    kind: str


def sites_of(done: Iterable[tuple[str, Sequence[Change]]]) -> list[Site]:
    """The sites of all changes, by the name of the pass that made them, each once."""
    found: dict[tuple[str, str], Site] = {}
    for member, changes in done:
        for change in changes:
            node = change.site or change.node
            site = Site(member, node, change.what)
            found.setdefault((site.member, site.node), site)
    return list(found.values())


@dataclass
class SiteSearch:
    """Finds the sites to blame.

    Attributes:
        is_to_blame: whether the model is better without these sites.
        seconds: how long the search may take; a question that would exceed them, going by the
            longest so far, is not asked.
        clock: gives the seconds.
        trials: how often it may still be asked.
        is_cut_short: whether a question was not asked for want of time.
    """

    is_to_blame: Callable[[Sequence[Site]], bool]
    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    trials: int = MOST_TRIALS
    is_cut_short: bool = False
    _longest: float = field(default=0.0, init=False)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        """The search begins."""
        self._started = self.clock()

    def to_blame(self, sites: Sequence[Site]) -> list[Site]:
        """The sites among `sites`, which are to blame together, that are to blame alone."""
        halves = _halves(sites)
        guilty = [half for half in halves if self._ask(half)]
        if not guilty:
            return list(sites)
        return [site for half in guilty for site in self.to_blame(half)]

    def _ask(self, sites: Sequence[Site]) -> bool:
        if self.trials <= 0:
            return False
        asked = self.clock()
        if asked - self._started + self._longest > self.seconds:
            self.is_cut_short = True
            return False
        self.trials -= 1
        answer = self.is_to_blame(sites)
        self._longest = max(self._longest, self.clock() - asked)
        return answer


def _halves(sites: Sequence[Site]) -> list[list[Site]]:
    """Two halves, of whole passes or whole kinds where there are several; [] of one site."""
    keys: tuple[Callable[[int], object], ...] = (
        lambda place: sites[place].member,
        lambda place: sites[place].kind,
        lambda place: place,
    )
    for key in keys:
        groups: dict[object, list[Site]] = {}
        for place, site in enumerate(sites):
            groups.setdefault(key(place), []).append(site)
        if len(groups) > 1:
            return _nearest_halves(list(groups.values()))
    return []


def _nearest_halves(groups: Sequence[Sequence[Site]]) -> list[list[Site]]:
    """The groups in two parts that are as equal as their order allows."""
    ordered = [site for group in groups for site in group]
    ends, total = [], 0
    for group in groups[:-1]:
        total += len(group)
        ends.append(total)
    cut = min(ends, key=lambda end: abs(2 * end - len(ordered)))
    return [ordered[:cut], ordered[cut:]]
