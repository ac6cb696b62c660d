"""Which outcome becomes the answer: the best that is confirmed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.policy import Policy
from onnxslim.tuning import run
from onnxslim.tuning.confirmation import Verdict
from onnxslim.tuning.run import Tuner
from onnxslim.tuning.trials import TrialOutcome

CLOSER = TrialOutcome("simplify,convert-fp16", "simplify,convert-fp16", 10, ms=9.0)


def outcome(name: str, ms: float, use: float, resolved: str = "") -> TrialOutcome:
    spec = f"simplify,{name}"
    return TrialOutcome(spec, resolved or spec, 10, ms=ms, use=use, kept={name: name})


class Runner:
    """Makes each outcome again; under stricter floors always the same one."""

    floors = Floors(min_sqnr_db=30.0)

    def __init__(self, *outcomes: TrialOutcome) -> None:
        self.known = {one.resolved: one for one in (*outcomes, CLOSER)}

    def tried(self, pipeline: object, *, floors: Floors | None = None) -> tuple[TrialOutcome, Any]:
        found = self.known[str(pipeline)] if floors is None else CLOSER
        return found, SimpleNamespace(model=found.resolved)

    def score(self, found: TrialOutcome) -> float:
        assert found.ms is not None
        return found.ms


def answer(
    patch: pytest.MonkeyPatch, refused: set[str], *ranked: TrialOutcome
) -> tuple[Any, Tuner]:
    class Judge:
        def __init__(self, *_: object) -> None:
            pass

        def verdict(self, model: str) -> Verdict:
            return Verdict("it is off", 2.0) if model in refused else Verdict(None, 0.5)

    patch.setattr(run, "Confirmation", Judge)
    tuner = Tuner.__new__(Tuner)
    fakes: Any = SimpleNamespace(policy=Policy())
    tuner.request, tuner.confirming, tuner.notes = fakes, None, []
    made: Any = Runner(*ranked)
    tuner.runner = made
    found, _, _ = tuner._confirmed(ranked, [])
    return found, tuner


def test_passes_that_fit_the_samples_say_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first reproduces the samples that it was fitted to, and fails on others
    pruned, quantized = outcome("prune-channels", 1.0, 0.0), outcome("quantize-int8", 2.0, 0.3)
    found, tuner = answer(monkeypatch, {pruned.resolved}, pruned, quantized)
    assert found == quantized
    assert "prune-channels` is better on the samples that choose" in tuner.notes[0]


def test_an_answer_is_looked_for_again_under_stricter_floors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = outcome("quantize-weights", 1.0, 0.9)
    found, _ = answer(monkeypatch, {only.resolved}, only)
    assert found == CLOSER


def test_one_that_uses_as_much_of_the_floors_with_the_same_passes_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = outcome("quantize-int8", 1.0, 0.5)
    second = outcome("quantize-int8", 2.0, 0.49, "simplify,fold-if")
    third = outcome("quantize-int8", 3.0, 0.2, "simplify,eliminate-dead")
    found, _ = answer(monkeypatch, {first.resolved}, first, second, third)
    assert found == third
