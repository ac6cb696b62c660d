"""What the command is asked for, in numbers."""

from __future__ import annotations

import math

import pytest

from onnxslim.errors import UsageError
from onnxslim.tuning.aims import Aim, Measure, ModelFigures, excess, read_target, score


@pytest.mark.parametrize(
    ("measure", "text", "limit"),
    [
        (Measure.LATENCY, "5ms", 5.0),
        (Measure.LATENCY, " 0.002 s ", 2.0),
        (Measure.LATENCY, "250us", 0.25),
        (Measure.LATENCY, "0.5x", 100.0),
        (Measure.BYTES, "1MB", 1e6),
        (Measure.BYTES, "2.5 kB", 2500.0),
        (Measure.BYTES, "1MiB", 2.0**20),
        (Measure.BYTES, ".25x", 50.0),
    ],
)
def test_targets_are_quantities_or_shares(measure: Measure, text: str, limit: float) -> None:
    assert read_target(measure, text).limit(200.0) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["", "5", "ms", "-1ms", "0ms", "1x", "2x", "5 parsec", "1e3ms"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--target-latency must be"):
        read_target(Measure.LATENCY, text)
    with pytest.raises(UsageError, match="--target-size must be"):
        read_target(Measure.BYTES, text)


def test_the_goal_is_latency_or_what_a_target_is_for() -> None:
    assert Aim.of(None, None, None).goal is Measure.LATENCY
    assert Aim.of(None, None, "1MB").goal is Measure.BYTES
    assert not Aim.of(None, None, "1MB").needs_clock
    assert Aim.of("bytes", "0.5x", None).needs_clock
    with pytest.raises(UsageError, match="--goal must be one of"):
        Aim.of("beauty", None, None)


def test_without_targets_less_is_better_whatever_the_floors_leave() -> None:
    aim, whole = Aim(Measure.BYTES), ModelFigures(1000.0)
    assert score(aim, ModelFigures(500.0), whole, 0.9) == pytest.approx(math.log(0.5))
    assert score(aim, ModelFigures(400.0), whole, 1.0) < score(aim, ModelFigures(500.0), whole, 0.0)


def test_where_targets_are_met_the_closer_model_is_better() -> None:
    aim, whole = Aim.of(None, "0.5x", "0.5x"), ModelFigures(1000.0, 10.0)
    near, far = ModelFigures(400.0, 4.0), ModelFigures(100.0, 1.0)
    assert excess(aim, near, whole) == 0
    assert score(aim, near, whole, 0.2) < score(aim, far, whole, 0.3)
    assert score(aim, ModelFigures(600.0, 4.0), whole, 0.0) == pytest.approx(math.log(1.2))
    assert score(aim, far, whole, 1.0) <= 0 < score(aim, ModelFigures(501.0, 1.0), whole, 0.0)


def test_a_figure_that_was_not_measured_is_out_of_reach() -> None:
    aim = Aim.of("latency", None, None)
    assert score(aim, ModelFigures(1.0), ModelFigures(1.0, 5.0), 0.0) == math.inf
