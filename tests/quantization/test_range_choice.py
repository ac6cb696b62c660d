"""Ranges are chosen by what they do to the outputs, not by their own error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, runs
from observed import observation
from qdq_nets import loaded, values_of

from onnxslim.quantization.calibration_ranges import CalibrationRange, RangeMethod, all_ranges
from onnxslim.quantization.grid import U8
from onnxslim.quantization.range_choice import RangeByTensor, RangeCandidates, nearest_ranges
from onnxslim.services.calibration import Distance

RNG = np.random.default_rng(1)
X = np.maximum(RNG.normal(size=(64, 1, 16)), 0).astype(np.float32)


def gated(weight_of_outliers: float) -> onnx.ModelProto:
    """A map, one column of which is large at times; the next layer weighs that column."""
    first, second = np.eye(16, dtype=np.float32), normal(16, 4)
    first[0, 0] = 1000.0
    second[0] *= weight_of_outliers
    nodes = [node("MatMul", ["x", "v"], "h"), node("MatMul", ["h", "w"], "y")]
    return net(nodes, {"v": first, "w": second}, ["N", 1, 16])


def tensors_of(source: onnx.ModelProto, *names: str) -> RangeCandidates:
    model, _ = loaded(source)
    values = values_of(model, X, names)
    found = {name: all_ranges(observation(values[name], name)) for name in names}
    return RangeCandidates(found, model, runs(X))


def effect(tensors: RangeCandidates, name: str, item: CalibrationRange) -> float:
    grid = item.grid
    ((_, (distance,)),) = tensors.calibration.effects(tensors.model, {name: [grid.rounded]})
    return distance.divergence


def test_outliers_that_the_outputs_do_not_need_are_cut_off() -> None:
    tensors = tensors_of(gated(0.0), "h")
    assert tensors.least_error["h"].most > 1000  # they are all of the energy
    assert tensors.least_effect()["h"].most < tensors.least_error["h"].most


def test_outliers_that_the_outputs_need_are_kept() -> None:
    tensors = tensors_of(gated(1.0), "h")
    assert tensors.least_effect()["h"].most == pytest.approx(tensors.found["h"][0].most, rel=0.1)


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0])
def test_no_other_range_of_the_tensor_would_have_less_effect(weight: float) -> None:
    tensors = tensors_of(gated(weight), "x", "h")
    for name, chosen in tensors.least_effect().items():
        least = min(effect(tensors, name, item) for item in tensors.found[name])
        # ranges that are alike are not tried, and a tensor that hardly counts is left as it is
        total = sum(effect(tensors, n, r[0]) for n, r in tensors.found.items())
        assert effect(tensors, name, chosen) <= max(1.1 * least, 0.1 * total)


def test_of_tensors_that_hardly_count_nothing_else_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = tensors_of(gated(0.0), "x", "h", "y")
    asked: list[str] = []
    inner = RangeCandidates._effects

    def watched(
        self: RangeCandidates, ranges: Mapping[str, Sequence[CalibrationRange]], *samples: int
    ) -> object:
        asked.extend(name for name, own in ranges.items() for _ in own)
        return inner(self, ranges, *samples)

    monkeypatch.setattr(RangeCandidates, "_effects", watched)
    tensors.least_effect()
    assert set(asked) == {"h"}  # the ranges of the others are alike
    asked.clear()
    monkeypatch.setattr("onnxslim.quantization.range_choice._distinct", list)
    tensors.least_effect()
    assert asked[:3] == ["x", "h", "y"]
    assert asked.count("h") > 1
    assert asked.count("x") == asked.count("y") == 1


def test_a_tensor_that_ruins_everything_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = tensors_of(gated(0.0), "x", "h")
    inner = RangeCandidates._effects

    def ruined(
        self: RangeCandidates, ranges: Mapping[str, Sequence[CalibrationRange]], *samples: int
    ) -> Iterable[tuple[str, Sequence[float]]]:
        for name, found in inner(self, ranges, *samples):
            yield name, [np.inf] * len(found) if name == "x" else found

    monkeypatch.setattr(RangeCandidates, "_effects", ruined)
    assert tensors.least_effect()["h"].most < tensors.least_error["h"].most


def watched_effects(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Which tensors are tried, and how many runs of the model each trial takes at most."""
    asked: list[tuple[str, float]] = []
    inner = RangeCandidates._effects

    def watched(
        self: RangeCandidates, ranges: Mapping[str, Sequence[CalibrationRange]], *samples: int
    ) -> object:
        asked.extend((name, 0.5 * len(own) * (samples or (2,))[0]) for name, own in ranges.items())
        return inner(self, ranges, *samples)

    monkeypatch.setattr(RangeCandidates, "_effects", watched)
    return asked


@pytest.mark.parametrize("runs", [0.0, 3.0, 10.0, 40.0])
def test_no_more_runs_are_spent_than_there_are(
    runs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.quantization.range_choice._distinct", list)
    tensors = replace(tensors_of(gated(0.0), "x", "h", "y"), runs=runs)
    asked = watched_effects(monkeypatch)
    chosen = tensors.least_effect()
    assert sum(cost for _, cost in asked) <= runs
    assert chosen.keys() == tensors.found.keys()


def test_the_tensor_that_its_range_serves_worst_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxslim.quantization.range_choice._distinct", list)
    tensors = tensors_of(gated(0.0), "x", "h", "y")
    worst = max(tensors.found, key=lambda name: tensors.found[name][0].relative_error)
    asked = watched_effects(monkeypatch)
    replace(tensors, runs=2.5).least_effect()  # the first part of it suffices for one tensor
    assert [name for name, _ in asked] == [worst]


def test_what_was_measured_once_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.quantization.range_choice._distinct", list)
    tensors = tensors_of(gated(0.0), "x", "h", "y")
    first = tensors.least_effect()
    inner, asked = type(tensors.calibration).effects, list[str]()

    def watched(
        self: object, model: object, replacements: Mapping[str, Sequence[object]]
    ) -> Iterable[object]:
        asked.extend(replacements)
        return inner(self, model, replacements)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tensors.calibration), "effects", watched)
    again = replace(tensors, known=dict(tensors.known))
    assert again.least_effect() == first
    assert not asked
    assert replace(tensors, known={}).least_effect() == first
    assert asked


def test_a_gain_that_nothing_is_left_to_confirm_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = tensors_of(gated(0.0), "h")
    monkeypatch.setattr("onnxslim.quantization.range_choice._SHARES", (0.5, 0.5, 0.0))
    assert replace(tensors, runs=100.0).least_effect() == tensors.least_error


def test_what_one_method_found_is_given_for_all_tensors() -> None:
    tensors = tensors_of(gated(1.0), "x", "h")
    for method in RangeMethod:
        assert {item.method for item in tensors.of_method(method).values()} == {method}


@pytest.mark.parametrize(("average", "words"), [(0.1, "average for all"), (0.45, "least effect")])
def test_whole_models_have_the_last_word_where_it_is_clear(average: float, words: str) -> None:
    tensors = tensors_of(gated(0.0), "h")
    effect = tensors.least_effect()
    seen: list[RangeByTensor] = []

    def together(choices: Sequence[RangeByTensor]) -> Iterable[Distance]:
        for choice in choices:
            seen.append(choice)
            far = average if choice["h"].method is RangeMethod.AVERAGE else 0.5
            yield Distance(far, None, None, -10 * np.log10(far))

    ranges, told = nearest_ranges(tensors, together)
    assert (ranges == effect) is (words == "least effect")
    assert len(seen) == 2 + len(RangeMethod)
    assert told.startswith(f"ranges by {words}")
    decibel = 10.0 if average == 0.1 else 3.0
    assert f"SQNR {decibel:.1f} dB on samples held back (3.0 by each" in told


def test_a_range_that_a_kernel_insists_on_stays() -> None:
    tensors = tensors_of(gated(0.0), "h")
    (given,) = (item for item in tensors.found["h"] if item.method is RangeMethod.MINMAX)
    only = CalibrationRange(given.least, given.most, U8, None, given.error, given.energy)
    fixed = RangeCandidates({"h": (only,)}, tensors.model, tensors.calibration)
    assert fixed.least_effect() == {"h": only}
    assert all(fixed.of_method(method) == {"h": only} for method in RangeMethod)
