"""The models that nothing beats: none is smaller, faster and closer at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


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
