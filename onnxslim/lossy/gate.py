"""Which replacements of a layer pay: in bytes, in measured time, or in work where nothing is timed.

A pass that puts smaller operators in the place of a layer offers candidates, with a `Costs` that
says what each of them takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from onnxslim.render.units import count_text, ms_text
from onnxslim.report import LatencyPair
from onnxslim.services.stopwatch import Stopwatch


class Offered(Protocol):
    """A replacement of a layer."""

    @property
    def added(self) -> float:
        """The relative error that it adds to the output of the layer."""


OfferedT = TypeVar("OfferedT", bound=Offered)
CostedT = TypeVar("CostedT", bound=Offered, contravariant=True)


class Costs(Protocol[CostedT]):
    """What a layer takes, as it is (None) and replaced."""

    @property
    def has_shapes(self) -> bool:
        """Whether the size of every input is known."""

    def timed(self, candidates: Sequence[CostedT]) -> list[tuple[LatencyPair, ...]]:
        """For each candidate, each operator as it is against its replacement, in turn."""

    def nbytes(self, candidate: CostedT | None) -> int:
        """Bytes of weights."""

    def macs(self, candidate: CostedT | None) -> int | None:
        """Multiply-accumulates; None where a shape is not known."""


@dataclass(frozen=True)
class Paying(Generic[OfferedT]):
    """A replacement that pays.

    Attributes:
        gain: cost of the layer divided by the cost of the replacement, above 1.
        candidate: what replaces it.
        words: how the gain was found, with figures.
    """

    gain: float
    candidate: OfferedT
    words: str


@dataclass
class Gate:
    """Lets the replacements pass that pay.

    Attributes:
        stopwatch: of this machine; None: work counts instead of time.
        for_bytes: whether a replacement must save bytes, else latency.
        noun: what messages call a replacement.
        measured: whether anything was timed so far.
    """

    stopwatch: Stopwatch | None
    for_bytes: bool
    noun: str = "split"
    measured: bool = False

    def best(
        self, candidates: Sequence[OfferedT], costs: Costs[OfferedT]
    ) -> Paying[OfferedT] | str:
        """The candidate that gains most, or why none does."""
        paying = self.paying(candidates, costs)
        if isinstance(paying, str):
            return paying
        found = max(paying, key=lambda item: (item.gain, -item.candidate.added))
        assert found.gain > 1
        return found

    def paying(
        self, candidates: Sequence[OfferedT], costs: Costs[OfferedT]
    ) -> list[Paying[OfferedT]] | str:
        """All that pay, or why none does."""
        if self.for_bytes:
            return self._by_size(candidates, costs)
        if not costs.has_shapes:
            return f"the size of its input is not known, so a {self.noun} cannot be measured"
        if self.stopwatch is None:
            return self._by_macs(candidates, costs)
        return self._by_time(candidates, costs)

    def _by_time(
        self, candidates: Sequence[OfferedT], costs: Costs[OfferedT]
    ) -> list[Paying[OfferedT]] | str:
        self.measured = True
        found, best = [], ""
        top = 0.0
        for candidate, pairs in zip(candidates, costs.timed(candidates), strict=True):
            before = sum(pair.before.ms for pair in pairs)
            ratio = before / sum(pair.after.ms for pair in pairs)
            words = _pair_words(pairs, ratio)
            if all(pair.is_faster for pair in pairs):
                found.append(Paying(ratio, candidate, words))
            if ratio > top:
                top, best = ratio, f"{candidate} is not: {words}"
        return found or f"no {self.noun} is faster as measured: the best, {best}"

    def _by_size(
        self, candidates: Sequence[OfferedT], costs: Costs[OfferedT]
    ) -> list[Paying[OfferedT]] | str:
        before = costs.nbytes(None)
        found = []
        for candidate in candidates:
            gain = before / costs.nbytes(candidate)
            if gain > 1:
                found.append(Paying(gain, candidate, f"{gain:.2f}x smaller"))
        return found or f"no {self.noun} takes fewer bytes"

    def _by_macs(
        self, candidates: Sequence[OfferedT], costs: Costs[OfferedT]
    ) -> list[Paying[OfferedT]] | str:
        before = costs.macs(None)
        assert before is not None
        found = []
        least = None
        for candidate in candidates:
            after = costs.macs(candidate) or 0
            least = after if least is None else min(least, after)
            if 0 < after < before:
                text = (
                    f"{count_text(before)} to {count_text(after)} multiply-accumulates, not timed"
                )
                found.append(Paying(before / after, candidate, text))
        return found or (
            f"no {self.noun} takes fewer multiply-accumulates: {count_text(before)} now, "
            f"{count_text(least)} at best (not timed)"
        )


def _pair_words(pairs: tuple[LatencyPair, ...], ratio: float) -> str:
    before = sum(pair.before.ms for pair in pairs)
    low = min(pair.low for pair in pairs)
    high = max(pair.high for pair in pairs)
    return f"{ms_text(before)} to {ms_text(before / ratio)} ({ratio:.2f}x, {low:.2f} to {high:.2f})"
