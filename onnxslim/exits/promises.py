"""What exits promise of new samples: agreement with the network, or accuracy on labels.

A promise says by which thresholds exits are planned, and when samples held back confirm it. A
network that is wrong about a sample may as well be left early there: with labels, only samples
whose answer turns from right to wrong count against an exit, and those that turn right count for
it. So a promise of accuracy lets far more samples leave than one of agreement.

Owns: the meaning of each promise, its bound, and its words. Not here: the search along a path of
thresholds (see `thresholds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from onnxslim.exits.thresholds import (
    SIGNIFICANCE,
    HeadTrial,
    Outcome,
    confidence_text,
    drop_bound,
    min_samples,
    min_samples_for_drop,
)

_ROOM: Final = 0.6  # share of the allowed harm to plan for: the confidence bound takes the rest


class Promise(Protocol):
    """A limit on what leaving early may do to the answers for new samples."""

    @property
    def samples(self) -> int | None:
        """Samples that confirm it when none of them is harmed; None: no number does."""

    def harmed(self, trial: HeadTrial) -> np.ndarray:
        """Whether each of the (N,) samples counts against a head that answers it."""

    def is_planned(self, found: Outcome) -> bool:
        """Whether the outcome on samples that choose thresholds leaves room for the bound."""

    def is_kept(self, found: Outcome) -> bool:
        """Whether samples that nothing was chosen by confirm it."""

    def broken_by(self, found: Outcome) -> str:
        """What the outcome of the strictest thresholds has against it, as a clause."""

    def promised(self, found: Outcome) -> str:
        """What was promised, and what the outcome that keeps it confirms, as a clause."""


@dataclass(frozen=True)
class AgreementPromise:
    """Of new samples, at least the share `target` in (0, 1] get the network's own answer.

    Attributes:
        wanted: the target that would be promised if more samples could confirm it.
    """

    target: float
    wanted: float | None = None

    @property
    def samples(self) -> int | None:
        """See `Promise`."""
        return min_samples(self.target) if self.target < 1 else None

    def harmed(self, trial: HeadTrial) -> np.ndarray:
        """See `Promise`."""
        return ~trial.agrees

    def is_planned(self, found: Outcome) -> bool:
        """See `Promise`."""
        return found.agreement >= 1 - _ROOM * (1 - self.target)

    def is_kept(self, found: Outcome) -> bool:
        """See `Promise`."""
        return found.promised >= self.target

    def broken_by(self, found: Outcome) -> str:
        """See `Promise`."""
        return (
            f"of {found.samples:,} samples held back, {found.disagreeing} leave with another answer"
        )

    def promised(self, found: Outcome) -> str:
        """See `Promise`."""
        why = ""
        if self.wanted is not None and self.wanted > self.target:
            why = (
                f", the most that {found.samples:,} samples held back can confirm "
                f"({100 * self.wanted:g} % takes {min_samples(self.wanted):,})"
            )
        return f"{100 * self.target:.4g} % agreement was promised{why}"

    def __str__(self) -> str:
        """The promise, as in "a target of 0.995 cannot be confirmed"."""
        return f"a target of {self.target:.4g}"


@dataclass(frozen=True)
class AccuracyPromise:
    """On new labelled samples, at most `points` percentage points of accuracy are lost."""

    points: float

    @property
    def samples(self) -> int | None:
        """See `Promise`."""
        return min_samples_for_drop(self.points / 100) if self.points > 0 else None

    def harmed(self, trial: HeadTrial) -> np.ndarray:
        """See `Promise`."""
        assert trial.gain is not None
        return trial.gain < 0

    def is_planned(self, found: Outcome) -> bool:
        """See `Promise`."""
        return found.drop <= _ROOM * self.points / 100

    def is_kept(self, found: Outcome) -> bool:
        """See `Promise`."""
        return drop_bound(found.lost, found.won, found.samples) <= self.points / 100

    def broken_by(self, found: Outcome) -> str:
        """See `Promise`."""
        return (
            f"of {found.samples:,} labelled samples held back, {found.lost} get a wrong answer "
            f"instead of a right one and {found.won} the other way round"
        )

    def promised(self, found: Outcome) -> str:
        """See `Promise`."""
        most = 100 * drop_bound(found.lost, found.won, found.samples)
        return (
            f"{100 * found.drop:.2f} points of accuracy are lost on their labels, so at most "
            f"{most:.2f} on such samples; at most {self.points:g} was promised"
        )

    def __str__(self) -> str:
        """The promise, as in "a drop of at most 0.5 points cannot be confirmed"."""
        return f"a drop of at most {self.points:g} points of accuracy"


def strongest_agreement(samples: int, wanted: float) -> AgreementPromise:
    """The strongest promise of agreement that so many samples can confirm, up to `wanted`.

    That is `SIGNIFICANCE` ** (1 / samples), where none of the samples disagrees; rounded down to
    four digits.

    >>> strongest_agreement(500, 0.995).target
    0.9908
    """
    reachable = np.floor(1e4 * SIGNIFICANCE ** (1 / max(samples, 1))) / 1e4
    return AgreementPromise(min(wanted, float(reachable)), wanted)


def unconfirmable(promise: Promise, samples: int) -> str | None:
    """Why so many samples held back cannot confirm a promise; None where they can."""
    needed = promise.samples
    if needed is not None and samples >= needed:
        return None
    return (
        f"{promise} cannot be confirmed with {confidence_text()} confidence on the "
        f"{samples:,} samples held back for it, even if none speaks against it"
        + (f": that takes {needed:,}, twice as many in all; " if needed is not None else "; ")
        + "give more samples, a weaker promise, or a threshold"
    )
