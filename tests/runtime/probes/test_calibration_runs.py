"""What passes may ask of calibration samples, on real onnxruntime runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from layer_nets import boxes_beside_scores, dense_net, net, node, normal, outputs, samples

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import OutputKind, Skip
from onnxslim.runtime.measure import run_rows
from onnxslim.runtime.measure.output_divergence import DivergenceMeter
from onnxslim.runtime.probes import calibration_runs
from onnxslim.runtime.probes import moments as streamed
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.runtime.probes.moment_sums import MomentLimits
from onnxslim.services.moments import LayerMoments

X = samples(53, 12)


def moments(runs: object, model: Model, *names: str) -> dict[str, LayerMoments]:
    found = list(runs.moments(model, names or None))  # type: ignore[attr-defined]
    assert not any(isinstance(item, Skip) for item in found)
    return {item.layer: item for item in found}


# ------------------------------------------------------------------- moments


def test_moments_are_those_of_all_samples() -> None:
    model = Model.load(dense_net(12, 16, 4))
    found = moments(CalibrationRuns({"x": X}), model)
    assert list(found) == ["h0", "y"]
    assert found["h0"].count == len(X)
    wide = X.astype(np.float64)
    np.testing.assert_allclose(found["h0"].seconds[0], wide.T @ wide / len(X), rtol=1e-6)


def test_only_the_named_layers_are_looked_at() -> None:
    model = Model.load(dense_net(12, 16, 4))
    assert list(moments(CalibrationRuns({"x": X}), model, "y")) == ["y"]


def test_rows_are_bounded_by_what_all_samples_together_need() -> None:
    maps = samples(60, 2, 40, 40)
    source = net([node("Conv", ["x", "w"], "y")], {"w": normal(3, 2, 3, 3)}, ["N", 2, 40, 40])
    model = Model.load(source)
    few = moments(CalibrationRuns({"x": maps[:4]}), model)["y"]
    many = moments(CalibrationRuns({"x": maps}), model)["y"]
    assert few.count == 4 * 38 * 38  # all there are
    assert many.count == 60 * -(-20000 // 60)  # enough, spread over all samples
    assert many.notes == (f"{many.count} of {60 * 38 * 38} positions were looked at",)
    given = CalibrationRuns({"x": maps}, limits=MomentLimits(patches=5000))
    assert moments(given, model)["y"].count == 60 * 38 * 38


def test_sums_may_take_as_much_as_the_model_but_no_less_than_a_minimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[MomentLimits] = []
    inner = streamed.stream_moments

    def spied(*args: object, limits: MomentLimits, **options: object) -> object:
        seen.append(limits)
        return inner(*args, limits=limits, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(streamed, "stream_moments", spied)
    model = Model.load(dense_net(12, 16, 4))
    moments(CalibrationRuns({"x": X}), model)
    assert seen[-1] == MomentLimits(budget_bytes=256 << 20, samples=len(X))
    monkeypatch.setattr(calibration_runs, "_MIN_SUMS", 10)
    moments(CalibrationRuns({"x": X}), model)
    assert seen[-1].budget_bytes == model.file_bytes()


def test_samples_of_unknown_number_are_looked_at_up_to_the_limit_of_each() -> None:
    maps = [{"x": item[None]} for item in samples(30, 2, 40, 40)]
    source = net([node("Conv", ["x", "w"], "y")], {"w": normal(3, 2, 3, 3)}, ["N", 2, 40, 40])
    assert moments(CalibrationRuns(maps), Model.load(source))["y"].count == 30 * 38 * 38


def test_the_choice_of_positions_depends_on_the_seed_alone() -> None:
    maps = samples(60, 2, 40, 40)
    source = net([node("Conv", ["x", "w"], "y")], {"w": normal(3, 2, 3, 3)}, ["N", 2, 40, 40])
    model = Model.load(source)
    found = [
        moments(CalibrationRuns({"x": maps}, seed=seed), model)["y"].seconds[0]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_samples_that_do_not_fit_the_model_are_refused_when_they_are_first_needed() -> None:
    runs = CalibrationRuns({"z": X, "w": X})
    with pytest.raises(UsageError, match="`x`"):
        list(runs.moments(Model.load(dense_net(12, 4))))


# ------------------------------------------------------------------- distances


def test_distances_are_those_of_the_outputs() -> None:
    reference, other = Model.load(dense_net(12, 16, 4)), Model.load(dense_net(12, 16, 4, seed=9))
    runs = CalibrationRuns({"x": X})
    same, far = runs.distances(reference, [reference.clone(), other])
    assert same.divergence < 1e-10
    assert same.agreement == 1
    meter = DivergenceMeter(OutputKind.CLASSES)
    meter.update(outputs(reference, X)["y"], outputs(other, X)["y"])
    assert far.divergence == pytest.approx(meter.divergence, rel=1e-5)
    assert far.agreement == meter.agreement
    assert far.sqnr_db == pytest.approx(meter.sqnr_db, abs=1e-3)


def test_the_least_of_the_parts_of_a_joined_output_counts() -> None:
    source, other = boxes_beside_scores(12), boxes_beside_scores(12)
    next(n for n in other.graph.node if n.op_type == "Sigmoid").op_type = "HardSigmoid"
    reference = Model.load(source)
    (found,) = CalibrationRuns({"x": X}).distances(reference, [Model.load(other)])
    whole, meter = DivergenceMeter(), DivergenceMeter()
    pair = [outputs(model, X)["y"] for model in (source, other)]
    whole.update(*pair)
    meter.update(*(array[:, 4:] for array in pair))
    assert found.sqnr_db == pytest.approx(meter.sqnr_db, abs=1e-3)
    assert found.sqnr_db < whole.sqnr_db - 10
    assert found.divergence == pytest.approx(meter.divergence / 2, rel=1e-3)


def test_outputs_are_compared_by_name_not_by_order() -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "b")]
    weights = {"w": normal(12, 4)}
    ab, ba = (
        Model.load(net(nodes, weights, ["N", 12], outputs=names))
        for names in (("a", "b"), ("b", "a"))
    )
    (found,) = CalibrationRuns({"x": X}).distances(ab, [ba])
    assert found.divergence == pytest.approx(0, abs=1e-12)


def test_outputs_of_the_reference_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Model] = []
    real = calibration_runs.open_session

    def listening(model: Model, **options: int | None) -> object:
        opened.append(model)
        return real(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration_runs, "open_session", listening)
    reference, other = Model.load(dense_net(12, 4)), Model.load(dense_net(12, 4))
    runs = CalibrationRuns({"x": X})
    for _ in range(3):
        list(runs.distances(reference, [other]))
    assert [model is reference for model in opened].count(True) == 2  # to see its inputs, to run
    list(runs.distances(other, [reference]))
    assert [model is reference for model in opened].count(True) == 3


def test_of_large_outputs_as_many_runs_are_compared_as_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration_runs, "_KEPT_BYTES", 1)
    monkeypatch.setattr(calibration_runs, "_BATCH_ROWS", 10)
    reference, other = Model.load(dense_net(12, 4)), Model.load(dense_net(12, 4, seed=5))
    (found,) = CalibrationRuns({"x": X}).distances(reference, [other])
    meter = DivergenceMeter(OutputKind.CLASSES)
    meter.update(outputs(reference, X[:10])["y"], outputs(other, X[:10])["y"])
    assert found.divergence == pytest.approx(meter.divergence, rel=1e-5)


def test_effects_are_distances_of_the_model_from_itself() -> None:
    model = Model.load(dense_net(12, 16, 4))
    infer_shapes(model)
    doubled = model.clone()  # of a Relu, twice the weights and biases are twice the result
    for tensor in doubled.graph.tensors().values():
        if tensor.name in ("w0", "b0"):
            tensor.values = tensor.values * np.float32(2)
    runs = CalibrationRuns({"x": X})
    (expected,) = runs.distances(model, [doubled])
    found = dict(runs.effects(model, {"r0": [lambda v: v, lambda v: 2 * v], "x": [np.zeros_like]}))
    same, twice = found["r0"]
    assert same.divergence < 1e-10
    assert twice.divergence == pytest.approx(expected.divergence, rel=1e-4)
    assert twice.sqnr_db == pytest.approx(expected.sqnr_db, rel=1e-4)
    assert found["x"][0].divergence > 0


# ------------------------------------------------------------------- batches


def test_large_samples_go_through_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(dense_net(12, 4))
    whole = CalibrationRuns({"x": X})
    expected = moments(whole, model)["y"].seconds[0]
    assert [sample.rows for sample in whole._runs()] == [len(X)]
    # inputs and outputs of two; all that two return
    for bound, nbytes in (("RUN_BYTES", 2 * (12 + 4) * 4), ("EXPOSED_BYTES", 2 * 4 * 4)):
        with monkeypatch.context() as patch:
            patch.setattr(run_rows, bound, nbytes)
            parts = CalibrationRuns({"x": X})
            np.testing.assert_allclose(moments(parts, model)["y"].seconds[0], expected)
            assert [sample.rows for sample in parts._runs()][:2] == [2, 2]


def test_a_model_of_a_fixed_batch_is_fed_what_it_takes() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(12, 4)}, [1, 12])
    found = moments(CalibrationRuns({"x": X}), Model.load(source))["y"]
    assert found.count == len(X)


# ------------------------------------------------------------------- samples held back


def numbers(count: int, *, known: bool = True) -> CalibrationRuns:
    """Samples that tell which they are: the mean of `x` is the mean of their numbers."""
    x = np.arange(count, dtype=np.float32)[:, None]
    return CalibrationRuns({"x": x} if known else [{"x": row} for row in x])


def seen(runs: object) -> tuple[int, float]:
    """How many samples `runs` has, and the sum of their numbers."""
    model = Model.load(net([node("MatMul", ["x", "w"], "y")], {"w": normal(1, 2)}, ["N", 1]))
    found = moments(runs, model)["y"]
    return found.count, round(float(found.mean[0, 0]) * found.count)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("count", [2, 5, 6, 7, 23])
def test_a_fifth_is_held_back_and_nothing_is_in_both(count: int, known: bool) -> None:
    fitted, held = numbers(count, known=known).halves()
    back = list(range(1, count, 5))
    assert seen(held) == (len(back), sum(back))
    assert seen(fitted) == (count - len(back), sum(range(count)) - sum(back))


def test_of_a_single_sample_both_halves_are_that_sample() -> None:
    for half in numbers(1).halves():
        assert seen(half) == (1, 0)


def test_the_halves_of_a_half_are_parts_of_it() -> None:
    fitted, held = numbers(50).halves()
    own = set(range(50)) - set(range(1, 50, 5))
    inner = [sorted(own)[i] for i in range(len(own)) if i % 5 == 1]
    assert seen(fitted.halves()[1]) == (len(inner), sum(inner))
    assert seen(fitted.halves()[0]) == (len(own) - len(inner), sum(own) - sum(inner))
    assert seen(held.halves()[1])[0] == 2


@pytest.mark.parametrize(("count", "most", "left"), [(23, 8, range(0, 23, 3)), (5, 8, range(5))])
def test_some_are_spread_evenly(count: int, most: int, left: range) -> None:
    assert seen(numbers(count).some(most)) == (len(left), sum(left))


def test_of_samples_that_nobody_counted_some_are_the_first() -> None:
    assert seen(numbers(23, known=False).some(8)) == (8, sum(range(8)))


def test_halves_are_made_once() -> None:
    runs = numbers(10)
    assert runs.halves() == runs.halves()


def test_samples_in_a_file_are_split_as_those_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(23, dtype=np.float32)[:, None])
    parts = [seen(half) for half in CalibrationRuns(path).halves()]
    assert parts == [seen(half) for half in numbers(23).halves()]


def test_an_iterator_is_read_once_and_gives_the_same_each_time() -> None:
    def items() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": X}

    runs, model = CalibrationRuns(items()), Model.load(dense_net(12, 4))
    once, again = ([out.values for out in runs.outputs(model)] for _ in range(2))
    assert len(once) == len(again) == 1
    np.testing.assert_equal(once, again)


# ------------------------------------------------------------------- outputs and parts


def test_outputs_are_those_of_all_samples_in_order() -> None:
    model = Model.load(dense_net(12, 16, 4))
    found = list(CalibrationRuns({"x": X}).outputs(model))
    assert sum(answer.rows for answer in found) == len(X)
    np.testing.assert_allclose(
        np.concatenate([answer.values["y"] for answer in found]), outputs(model, X)["y"], rtol=1e-5
    )
    assert all(answer.labels is None for answer in found)


@pytest.mark.parametrize("together", [1, 8])
def test_so_many_samples_are_run_together_as_asked_for(together: int) -> None:
    model = Model.load(dense_net(12, 16, 4))
    rows = [answer.rows for answer in CalibrationRuns({"x": X}).outputs(model, together=together)]
    assert max(rows) == together
    assert sum(rows) == len(X)


def test_labels_come_with_the_outputs() -> None:
    model = Model.load(dense_net(12, 16, 4))
    labels = np.arange(len(X))
    found = CalibrationRuns({"x": X, "label": labels}).outputs(model)
    seen = [answer.labels for answer in found if answer.labels is not None]
    np.testing.assert_array_equal(np.concatenate(seen), labels)


@pytest.mark.parametrize("period", [2, 3, 10])
def test_parts_are_disjoint_whole_and_blind_to_samples_that_take_turns(period: int) -> None:
    x = np.arange(600, dtype=np.float32)[:, None]
    model = Model.load(net([node("Identity", ["x"], "y")], {}, ["N", 1]))
    seen = []
    for part in CalibrationRuns({"x": x}).parts(2):
        numbers = np.concatenate([answer.values["y"] for answer in part.outputs(model)])
        seen.append(numbers[:, 0].astype(int))
        assert len(numbers) == pytest.approx(300, abs=2)
        turns = np.bincount(seen[-1] % period, minlength=period)
        assert turns.min() > 0.8 * turns.mean()
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(600))
