"""Runs go on from what earlier ones kept, and find what a run from the inputs finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from layer_nets import net, node, normal, residual_net, samples

from onnxslim.analysis.layers import weight_layers
from onnxslim.errors import RuntimeFailure
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.probes.activation_cache import ActivationCaches
from onnxslim.runtime.probes.exposed import ExposedTensors, Segment
from onnxslim.runtime.probes.moments import stream_moments
from onnxslim.runtime.samples.spool import Spool
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Session
from onnxslim.services.moments import LayerMoments

X = samples(10, 6)
Feed = Callable[[], Iterable[Sample]]


def feed(x: np.ndarray = X, size: int = 4) -> Feed:
    starts = range(0, len(x), size)
    return lambda: [Sample({"x": x[at : at + size]}, len(x[at : at + size])) for at in starts]


def changed(model: Model, name: str, scale: float) -> Model:
    """A copy in which a layer has another weight."""
    copy = model.clone()
    layer = next(la for la in weight_layers(copy.graph)[0] if la.name == name)
    layer.holder.values = layer.holder.values * np.float32(scale)
    return copy


def measured(
    kept: ActivationCaches | None,
    model: Model,
    name: str,
    reference: Model,
    source: Feed | None = None,
) -> LayerMoments:
    (found,) = stream_moments(
        model, source or feed(), [name], reference=reference, activations=kept
    )
    assert not isinstance(found, Skip)
    return found


def assert_equal(a: LayerMoments, b: LayerMoments) -> None:
    assert a.count == b.count
    for one, other in [
        (a.seconds[0], b.seconds[0]),
        (a.mean, b.mean),
        (a.cross, b.cross),
        (a.goal, b.goal),
        (a.energy, b.energy),
    ]:
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The operators of every session, in the order in which they were opened."""
    found: list[list[str]] = []
    real = ExposedTensors.open

    def listening(self: ExposedTensors, segment: Segment, *rest: object) -> Session | None:
        session = real(self, segment, *rest)  # type: ignore[arg-type]
        found.append(sorted(n.outputs[0].name for n in segment.nodes) if session else [])
        return session

    monkeypatch.setattr(ExposedTensors, "open", listening)
    return found


def sequence(kept: ActivationCaches | None, source: Feed | None = None) -> list[LayerMoments]:
    """Each layer measured in the model in which those before it have changed."""
    original = model = residual_net()
    found = []
    for number, name in enumerate("abcy"):
        found.append(measured(kept, model, name, original, source))
        model = changed(model, name, 0.9 - 0.1 * number)
    return found


@pytest.mark.parametrize("rows", [10, None])
@pytest.mark.parametrize("budget", [1 << 30, 1000, 0])
def test_what_is_found_does_not_depend_on_what_is_kept(rows: int | None, budget: int) -> None:
    pairs = zip(sequence(ActivationCaches(rows, budget)), sequence(None), strict=True)
    for kept, plain in pairs:
        assert_equal(kept, plain)


def test_each_node_runs_once_for_all_layers(ran: list[list[str]]) -> None:
    sequence(ActivationCaches(10))
    own, reference = [ran[0], *ran[1::2]], ran[2::2]  # at first the models are the same
    assert own == [[], ["a", "ra"], ["b", "rb"], ["c", "s"]]
    assert reference == [["a", "b", "ra"], ["c", "rb"], ["s", "y"]]


def test_over_budget_runs_begin_where_the_last_fit(ran: list[list[str]]) -> None:
    one = 10 * 6 * 4  # bytes of a tensor
    sequence(ActivationCaches(10, budget_bytes=2 * one))  # the second level needs two tensors
    assert [ran[0], *ran[1::2]] == [[], ["a", "ra"], ["b", "rb"], ["b", "c", "rb", "s"]]


def test_without_a_number_of_samples_the_first_run_counts_them(ran: list[list[str]]) -> None:
    sequence(ActivationCaches(None))
    assert [ran[0], *ran[1::2]] == [[], ["a", "ra"], ["b", "rb"], ["c", "s"]]
    assert ran[2::2] == [["a", "b", "ra"], ["a", "b", "c", "ra", "rb"], ["s", "y"]]


def test_nothing_is_taken_from_a_model_that_differs_before_it(ran: list[list[str]]) -> None:
    kept, model = ActivationCaches(10), residual_net()
    measured(kept, model, "c", model)
    other = changed(model, "a", 0.5)
    assert_equal(measured(kept, other, "c", model), measured(None, other, "c", model))
    assert ran[1] == ["a", "b", "ra", "rb"]


def test_batches_of_different_sizes_are_kept() -> None:
    """The last batch is smaller, and positions differ between samples."""
    nodes = [
        node("Conv", ["x", "w0"], "a"),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "w1"], "b"),
        node("Conv", ["b", "w1"], "y"),
    ]
    weights = {"w0": normal(4, 2, 3, 3), "w1": normal(4, 4, 1, 1)}
    model = Model.load(net(nodes, weights, ["N", 2, "h", "w"]))
    given, original = [samples(2, 2, 8, 8), samples(1, 2, 6, 9)], changed(model, "a", 0.9)

    def source() -> Iterable[Sample]:
        return [Sample({"x": x}, len(x)) for x in given]

    kept = ActivationCaches(3)
    for name in ("a", "b", "y"):
        assert_equal(
            measured(kept, model, name, original, source),
            measured(None, model, name, original, source),
        )


def test_after_a_failure_nothing_is_kept() -> None:
    kept, model = ActivationCaches(10), residual_net()
    measured(kept, model, "b", model)
    assert kept.model.held

    def source() -> Iterable[Sample]:
        yield Sample({"x": X[:4]}, 4)
        raise RuntimeFailure("The samples broke off.")

    with pytest.raises(RuntimeFailure):
        measured(kept, model, "c", model, source)
    assert not kept.model.held
    assert not kept.reference.held
    assert_equal(measured(kept, model, "c", model), measured(None, model, "c", model))


def test_a_full_disk_costs_time_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, ran: list[list[str]]
) -> None:
    real = Spool.append

    def full(self: Spool, array: np.ndarray) -> None:
        if len(self):
            raise OSError("No space left on device")
        real(self, array)

    monkeypatch.setattr(Spool, "append", full)
    for kept, plain in zip(sequence(ActivationCaches(10)), sequence(None), strict=True):
        assert_equal(kept, plain)
    assert ran[5] == ["a", "b", "c", "ra", "rb", "s"]  # all of it, as nothing could be kept


def test_what_no_layer_needs_any_more_is_let_go() -> None:
    kept = ActivationCaches(10)
    sequence(kept)
    assert len(kept.model.held) == 1  # the input of the last layer
    assert not kept.reference.held
