"""The models that nothing beats, and those that nothing tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final, TypeVar

from onnxslim.tuning.trials import TrialOutcome

T = TypeVar("T")

_ALIKE: Final = 1.04  # times the least latency: equally fast, as far as measurements can tell
_MOST_ALIKE: Final = 4


def non_dominated(items: Sequence[tuple[T, tuple[float, ...]]]) -> list[T]:
    """The items that no other is at least as good as in every figure, and better in one.

    Args:
        items: each with its figures, of which less is better; of equal ones the first stays.
    """
    kept = []
    for index, (item, own) in enumerate(items):
        others = enumerate(figures for _, figures in items)
        if not any(_beats(other, own, is_earlier=place < index) for place, other in others):
            kept.append(item)
    return kept


def _beats(other: tuple[float, ...], own: tuple[float, ...], *, is_earlier: bool) -> bool:
    no_worse = all(a <= b for a, b in zip(other, own, strict=True))
    return no_worse and (other != own or is_earlier)


def equally_fast(ranked: Sequence[TrialOutcome]) -> list[TrialOutcome]:
    """The first outcomes that measurements hardly tell apart.

    Args:
        ranked: the outcomes, from fast to slow; at least one.
    """
    least = ranked[0].ms or 0.0
    return list(takewhile(lambda one: (one.ms or 0.0) <= _ALIKE * least, ranked[:_MOST_ALIKE]))
