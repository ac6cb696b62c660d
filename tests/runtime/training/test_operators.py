"""Operators as the onnx package tests them, and as onnxruntime computes them in random models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from node_trials import node_tests
from random_models import drawn_model

from onnxslim.errors import ModelError, RuntimeFailure
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session
from support import parse

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from onnxslim.runtime.training.operators.element_types import stored_tensor  # noqa: E402
from onnxslim.runtime.training.torch_graph import TorchGraph  # noqa: E402

CPU = torch.device("cpu")
MODULES = (
    "attention",
    "convtranspose",
    "dequantizelinear",
    "dft",
    "einsum",
    "gathernd",
    "gridsample",
    "gru",
    "loop",
    "lstm",
    "nonmaxsuppression",
    "qlinearconv",
    "quantizelinear",
    "resize",
    "rnn",
    "roialign",
    "rotaryembedding",
    "scan",
    "scatternd",
    "slice",
    "stft",
    "topk",
    "unique",
)
ANOTHER_WAY = (  # the tests round in between, draw, or want other sizes than onnxruntime gives
    "bf16",
    "causal_fp16_expanded",
    "past_and_present_fp16_expanded",
    "scales_linear_align_corners",
    "scales_cubic_align_corners",
    "blocked_symmetric",
)
HALF = 2e-2  # float16 rounds here and there
SHARE = 1e-4


def tensor(value: Any) -> Any:
    if isinstance(value, list):
        return [tensor(item) for item in value]
    return None if value is None else stored_tensor(np.asarray(value))


def assert_close(found: Any, wanted: Any, rtol: float) -> None:
    if isinstance(wanted, list):
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, rtol)
        return
    if wanted is None:
        assert found is None
        return
    wanted = np.asarray(wanted)
    ours = found.detach().to(torch.float64).numpy()
    assert ours.shape == wanted.shape
    np.testing.assert_allclose(ours, wanted.astype(np.float64), rtol=rtol, atol=1e-5)


def known_cases(module: str) -> Iterator[Any]:
    """Those tests of a module whose operators and types torch has."""
    for case in node_tests(module).values():
        if not case.name.replace("_", "").startswith(f"test{module.replace('_', '')}"):
            continue  # of a module that another test has loaded
        if any(part in case.name for part in (*ANOTHER_WAY, "_expanded")):
            continue
        arrays = [array for given, _ in case.data_sets for array in given]
        if any(array is not None and tensor(array) is None for array in arrays):
            continue
        try:
            yield case, TorchGraph(Model.load(case.model).graph, device=CPU)
        except ModelError:
            continue


@pytest.mark.parametrize("module", MODULES)
def test_operators_give_what_their_node_tests_want(module: str) -> None:
    tried = 0
    for case, graph in known_cases(module):
        for given, wanted in case.data_sets:
            found = graph(dict(zip(graph.inputs, map(tensor, given), strict=True)))
            for info, array in zip(case.model.graph.output, wanted, strict=True):
                assert_close(found[info.name], array, max(case.rtol, 1e-3))
        tried += 1
    assert tried


# ---------------------------------------------------------------------------- random models

RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
STEPPED = ("Quantize", "QLinear", "Unique", "RoiAlign", "Pow", "Floor", "Clip", "Cast", "Sign")


def operators_of(model: Model) -> set[str]:
    return {node.op for graph in walk_graphs(model.graph) for node in graph.nodes}


def drawn(seed: int, without: Sequence[str]) -> tuple[Model, Mapping[str, np.ndarray]] | None:
    """A random model without some operators, and inputs for it; None where there is none."""
    found = drawn_model(str(seed))
    try:
        model = Model.load(found.model)
    except ModelError:
        return None
    if any(op.startswith(tuple(without)) for op in operators_of(model)):
        return None
    return model, found.plain[0]


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_random_models_give_what_onnxruntime_gives(first: int) -> None:
    tried = 0
    for seed in range(first, first + 20):
        found = drawn(seed, RANDOM)
        if found is None:
            continue
        model, feeds = found
        try:
            with open_session(model, optimise=False, threads=1) as session:
                wanted = session.run(feeds)
            graph = TorchGraph(model.graph, device=CPU)
        except (ModelError, RuntimeFailure):
            continue
        outputs = graph({name: tensor(array) for name, array in feeds.items()})
        is_half = any(array.dtype == np.float16 for array in wanted.values())
        for name, array in wanted.items():
            ours, theirs = outputs[name].detach().double().numpy(), array.astype(np.float64)
            assert ours.shape == theirs.shape, (seed, name)
            scale = max(np.abs(theirs[np.isfinite(theirs)]).max(initial=0), 1e-6)
            limit = scale * (HALF if is_half else SHARE)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit, err_msg=f"{seed} {name}")
        tried += 1
    assert tried


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_gradients_of_random_models_are_those_of_central_differences(first: int) -> None:
    tried = 0
    for seed in range(first, first + 20):
        found = drawn(seed, (*RANDOM, *STEPPED))
        if found is None:
            continue
        model, feeds = found
        try:
            graph = TorchGraph(model.graph, device=CPU, dtype=torch.float64)
        except ModelError:
            continue
        tried += check_gradients(graph, {name: tensor(array) for name, array in feeds.items()})
    assert tried


def check_gradients(graph: TorchGraph, feeds: Mapping[str, Any]) -> bool:
    """Hold gradients of all stored floats against differences; whether there was one."""
    stored = graph.weights.items()
    weights = {n: w.double() for n, w in stored if w.dtype == torch.float32 and w.numel()}

    def loss(changed: Mapping[str, Any]) -> Any:
        outputs = graph(feeds, changed).values()
        values = [v for v in outputs if isinstance(v, torch.Tensor) and v.is_floating_point()]
        return sum((torch.sin(v.double()).sum() for v in values), torch.zeros(()).double())

    learned = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    total = loss(learned)
    if not total.requires_grad or not torch.isfinite(total):
        return False
    slopes = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        direction = torch.from_numpy(np.random.default_rng(0).standard_normal(weight.shape))
        expected = 0.0 if slope is None else float((slope * direction).sum())
        differences = []
        for step in (1e-6, 1e-8):  # the smaller one crosses fewer kinks
            with torch.no_grad():
                ahead, back = (
                    float(loss({**weights, name: weight + sign * step * direction}))
                    for sign in (1, -1)
                )
            differences.append((ahead - back) / (2 * step))
        errors = [abs(found - expected) for found in differences]
        assert min(errors) <= 1e-3 * max(abs(expected), 1.0), (name, expected, differences)
    return True


@pytest.mark.parametrize("module", ["center_crop_pad", "swiglu"])
def test_an_operator_that_the_table_lacks_is_its_definition(module: str) -> None:
    test_operators_give_what_their_node_tests_want(module)


def test_an_operator_too_old_for_the_table_is_raised() -> None:
    node = onnx.helper.make_node("Upsample", ["x", "s"], ["y"], mode="nearest")
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "old", [info("x", 1, [1, 1, 2, 2])], [info("y", 1, [1, 1, 4, 4])], [scales]
    )
    opset = [onnx.helper.make_opsetid("", 9)]
    model = Model.load(onnx.helper.make_model(graph, opset_imports=opset, ir_version=4))
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    found = TorchGraph(model.graph, device=CPU)({"x": x})["y"]
    assert found[0, 0, 0].tolist() == [0, 0, 1, 1]


def test_signs_pass_gradients_from_minus_one_to_one() -> None:
    model = parse(
        """<opset_import: ["" : 17]> g (float[7] x) => (float[7] y)
            <float[7] w = {0, 0, 0, 0, 0, 0, 0}> { s = Add (x, w) y = Sign (s) }"""
    )
    graph = TorchGraph(Model.load(model).graph, device=CPU)
    x = torch.tensor([-2.0, -1.0, -0.25, 0.0, 0.5, 1.0, 1.5])
    w = graph.weights["w"].clone().requires_grad_()
    y = graph({"x": x}, {"w": w})["y"]
    assert y.tolist() == [-1, -1, -1, 0, 1, 1, 1]
    y.backward(torch.full((7,), 3.0))
    assert w.grad.tolist() == [0, 3, 3, 3, 3, 3, 0]


def test_signs_of_integers_are_integers() -> None:
    model = parse('<opset_import: ["" : 17]> g (int64[3] x) => (int64[3] y) { y = Sign (x) }')
    graph = TorchGraph(Model.load(model).graph, device=CPU)
    assert graph({"x": torch.tensor([-5, 0, 2])})["y"].tolist() == [-1, 0, 1]
