"""Which outcomes nothing beats, and which are equally fast."""

from __future__ import annotations

from onnxslim.tuning.front import equally_fast, non_dominated
from onnxslim.tuning.trials import TrialOutcome


def outcome(ms: float) -> TrialOutcome:
    return TrialOutcome(f"p{ms}", ms=ms)


def test_outcomes_within_the_error_of_timing_are_equally_fast() -> None:
    ranked = [outcome(ms) for ms in (1.0, 1.01, 1.03, 1.2, 1.21)]
    assert equally_fast(ranked) == ranked[:3]
    assert equally_fast(ranked[3:]) == ranked[3:]
    assert equally_fast([outcome(1.0)] * 9) == [outcome(1.0)] * 4


def test_what_another_beats_in_all_figures_is_left_out() -> None:
    items = [("a", (1.0, 5.0)), ("b", (2.0, 4.0)), ("c", (2.0, 5.0)), ("d", (1.0, 5.0))]
    assert non_dominated(items) == ["a", "b"]
