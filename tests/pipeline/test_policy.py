"""What a lossy step must bring to be worth what it costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxslim.pipeline.policy import Goal, Policy, least_gain
from onnxslim.records import OutputKind
from onnxslim.report import Drift, Latency, LatencyPair, Stats


def moved(error: float) -> dict[str, Drift]:
    sqnr = -20 * math.log10(error) if error else math.inf
    return {"y": Drift(error, error, sqnr, 1.0, None, 1.0, error == 0)}


def sized(file_bytes: int) -> Stats:
    return Stats(1, 1, 1, file_bytes, None)


def faster(low: float) -> LatencyPair:
    latency = Latency(1.0, 1.0, 1.0, 9)
    return LatencyPair(latency, latency, low + 0.01, low, low + 0.02)


def test_the_least_gain_grows_with_the_error_of_the_worst_output() -> None:
    assert least_gain(moved(0.1)) == pytest.approx(0.01)
    assert least_gain(moved(0.01)) == pytest.approx(0.001)
    assert least_gain(moved(math.inf)) == pytest.approx(0.1)
    assert least_gain(moved(0.1) | {"z": moved(0.3)["y"]}) == pytest.approx(0.03)
    assert least_gain({}) == 0
    ids = Drift(900.0, 5.0, -14.0, 0.1, 0.98, 1000.0, False, kind=OutputKind.DISCRETE)
    assert least_gain({"ids": ids}) == pytest.approx(0.002)


def test_the_error_of_token_logits_is_the_probability_that_went_elsewhere() -> None:
    shifted = replace(moved(0.5)["y"], kind=OutputKind.TOKEN_LOGITS, mean_kl=0.0, largest_kl=0.0)
    assert least_gain({"y": shifted}) == 0
    assert least_gain({"y": replace(shifted, mean_kl=0.02)}) == pytest.approx(0.01)
    assert least_gain({"y": replace(shifted, mean_kl=math.inf)}) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("after", "error", "latency", "is_kept"),
    [
        (99_960, 0.316, None, False),  # 0.04 % of the bytes at 10 dB
        (99_960, 0.001, None, True),  # the same at 60 dB
        (96_000, 0.316, None, True),
        (99_999, 0.0, None, True),  # equal bits are free
        (99_960, 0.316, faster(1.01), False),
        (99_960, 0.316, faster(1.05), True),
        (100_000, 0.1, None, False),
    ],
)
def test_a_lossy_step_is_kept_when_it_is_worth_its_error(
    after: int, error: float, latency: LatencyPair | None, is_kept: bool
) -> None:
    why = Policy().objection(sized(100_000), sized(after), latency, lossy=True, drifts=moved(error))
    assert (why is None) is is_kept, why
    forced = Policy(force=True)
    arguments = (sized(100_000), sized(after), latency)
    assert forced.objection(*arguments, lossy=True, drifts=moved(error)) is None


def test_the_sentence_has_the_gain_the_error_and_what_it_is_worth() -> None:
    why = Policy(Goal.BYTES).objection(
        sized(100_000), sized(99_960), faster(3.0), lossy=True, drifts=moved(0.3)
    )
    assert str(why).startswith(
        "it gains 0.04 %, too little for outputs that move by 30 %, which are worth 3 %: 100,000"
    )


def test_lossless_steps_may_save_as_little_as_they_like() -> None:
    assert Policy().objection(sized(100_000), sized(99_999), None, lossy=False) is None
    assert Policy().objection(sized(100_000), sized(100_000), None, lossy=False) is None
