from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from layer_nets import (
    FORCE,
    REPRODUCERS,
    dense_net,
    net,
    node,
    normal,
    output_error,
    outputs,
    runs,
    samples,
)
from onnx.reference import ReferenceEvaluator
from tiny_models import TINY

from onnxslim.errors import UsageError
from onnxslim.graph.ir import Node, walk_graphs
from onnxslim.io.model import Model
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate
from support import assert_equivalent, parse, random_feeds, run

HALF = "convert-fp16:compute=float16"
F16 = np.dtype(np.float16)


def converted(
    source: onnx.ModelProto, text: str = "convert-fp16", x: np.ndarray | None = None
) -> tuple[Model, StepReport]:
    context = Context(evaluate=evaluate, calibration=None if x is None else runs(x))
    made, (report,) = PassManager.parse(text).run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    onnx.checker.check_model(made.to_proto(), full_check=not source.graph.sparse_initializer)
    return made, report


def nodes(model: Model) -> list[Node]:
    return [item for graph in walk_graphs(model.graph) for item in graph.nodes]


def ops(model: Model) -> Counter[str]:
    return Counter(item.op for item in nodes(model))


def types(model: Model, op: str) -> list[np.dtype]:
    """Of the first input of every node of that operator, as ONNX infers it."""
    proto = onnx.shape_inference.infer_shapes(model.to_proto(), strict_mode=True)
    known = {
        info.name: info.type.tensor_type.elem_type
        for info in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    }
    return [
        onnx.helper.tensor_dtype_to_np_dtype(known[item.input[0]])
        for item in proto.graph.node
        if item.op_type == op
    ]


def why_of(report: StepReport) -> Mapping[str, str]:
    return {skip.node: skip.why for skip in report.skips}


def stored(model: Model) -> dict[str, np.dtype]:
    return {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in model.to_proto().graph.initializer
    }


# ------------------------------------------------------------------- weights alone


def test_bytes_halve_and_outputs_move_by_rounding() -> None:
    source, x = dense_net(64, 128, 128, 10), samples(20, 64)
    model, report = converted(source)
    assert model.file_bytes() < 0.52 * len(source.SerializeToString())
    assert 0 < output_error(source, model, x) < 1e-6
    assert report.fidelity is Fidelity.LOSSY
    assert ops(model)["Cast"] == 5  # the last bias is too small


def test_what_float16_holds_is_stored_exactly() -> None:
    weight = np.round(normal(16, 16), 1).astype(np.float16).astype(np.float32)
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 16])
    model, report = converted(source)
    assert report.fidelity is Fidelity.EXACT
    assert "without rounding" in report.changes[0].what
    assert_equivalent(source, model.to_proto(), Fidelity.EXACT)


def test_a_weight_that_two_operators_share_stays_one() -> None:
    shared = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "y")]
    model, _ = converted(net(shared, {"w": normal(16, 16)}, ["N", 16]))
    assert stored(model) == {"w_float16": F16}
    assert ops(model)["Cast"] == 1


def test_the_value_of_a_constant_node_is_stored_as_well() -> None:
    value = onnx.numpy_helper.from_array(normal(16, 16), "v")
    nodes_ = [onnx.helper.make_node("Constant", [], ["w"], value=value)]
    source = net([*nodes_, node("MatMul", ["x", "w"], "y")], {}, ["N", 16])
    model, _ = converted(source)
    assert ops(model) == {"Constant": 1, "Cast": 1, "MatMul": 1}
    assert output_error(source, model, samples(9, 16)) < 1e-6


def test_constant_nodes_may_share_a_name() -> None:
    made = [
        onnx.helper.make_node(
            "Constant", [], [name], "same", value=onnx.numpy_helper.from_array(normal(16, 16))
        )
        for name in "wv"
    ]
    nodes_ = [*made, node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "y")]
    source = net(nodes_, {}, ["N", 16])
    model, _ = converted(source)
    assert ops(model)["Cast"] == 2
    assert output_error(source, model, samples(9, 16)) < 1e-6


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.full((16, 16), 1e5, np.float32), "reaches 1e+05: float16 ends at 65504"),
        (np.full((16, 16), 1e-7, np.float32), "float16 has few digits"),
        (np.where(normal(16, 16) > 1, 1, 1e-9).astype(np.float32), "rounds to zero"),
    ],
)
def test_a_weight_that_does_not_fit_stays_float32(values: np.ndarray, why: str) -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": values}, ["N", 16])
    model, report = converted(source)
    assert report.changes == ()
    assert why in why_of(report)["w"]
    assert stored(model) == {"w": np.float32}


def test_infinities_are_no_overflow() -> None:
    mask = np.triu(np.full((16, 16), -np.inf, np.float32), 1)
    source = net([node("Add", ["x", "m"], "y")], {"m": mask}, [16, 16])
    model, _ = converted(source)
    assert stored(model) == {"m_float16": F16}


def test_a_divisor_that_would_become_zero_stays_float32() -> None:
    divisor = np.abs(normal(64)) + np.float32(1)
    divisor[3] = 1e-9
    source = net([node("Div", ["x", "d"], "y")], {"d": divisor}, ["N", 64])
    _, report = converted(source)
    assert "1 entries of 64 that float16 rounds to zero" in why_of(report)["d"]


def test_small_constants_and_sizes_are_left_alone() -> None:
    resize = onnx.helper.make_node("Resize", ["x", "", "s"], ["a"], mode="nearest")
    weights = {"s": np.array([1, 1, 2, 2], np.float32), "b": normal(1, 3, 1, 1)}
    source = net([resize, node("Add", ["a", "b"], "y")], weights, [2, 3, 4, 4])
    _, report = converted(source)
    assert report.changes == ()


def test_scales_of_a_quantized_model_are_left_alone() -> None:
    scale = np.abs(normal(64)) + np.float32(0.1)
    codes = np.ones((8, 64), np.int8)
    nodes_ = [
        node("DequantizeLinear", ["c", "s", "z"], "w", axis=1),
        node("MatMul", ["x", "w"], "y"),
    ]
    weights = {"c": codes, "s": scale, "z": np.zeros(64, np.int8)}
    source = net(nodes_, weights, ["N", 8])
    _, report = converted(source)
    assert report.changes == ()
    model, report = converted(source, HALF)
    assert "quantized" in why_of(report)["w"]
    assert types(model, "MatMul") == [F16]


def test_weights_in_bodies_are_stored_outside() -> None:
    source = branching()
    model, _ = converted(source)
    assert stored(model) == {"w_float16": F16}
    assert ops(model)["Cast"] == 1
    given = random_feeds(source)
    for ref, new in zip(run(source, given), run(model.to_proto(), given), strict=True):
        np.testing.assert_allclose(new, ref, rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------- computing in float16


def conv_net() -> onnx.ModelProto:
    """Two Convs, a sum, a pool, a Gemm."""
    weights = {
        **{name: normal(8, 8, 3, 3, seed=seed, scale=0.1) for seed, name in enumerate("vw")},
        "u": normal(8, 5, seed=5),
        "u_b": normal(5, seed=6),
    }
    nodes_ = [
        node("Conv", ["x", "v"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "w"], "c", pads=[1, 1, 1, 1]),
        node("Add", ["c", "b"], "d"),
        node("GlobalAveragePool", ["d"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "u", "u_b"], "z"),
        node("Softmax", ["z"], "y"),
    ]
    return net(nodes_, weights, ["N", 8, 6, 6])


def test_casts_stand_at_the_borders_alone() -> None:
    source, x = conv_net(), samples(12, 8, 6, 6)
    model, report = converted(source, HALF, x)
    assert [item.op for item in model.graph.nodes if item.op == "Cast"] == ["Cast"] * 2
    assert model.graph.nodes[0].op == "Cast"
    assert model.graph.nodes[-1].op == "Cast"
    assert output_error(source, model, x) < 1e-5
    assert report.skips == ()
    assert set(stored(model)) == {"v", "w", "u", "u_b"}
    assert set(stored(model).values()) == {F16}


def test_outputs_are_near_where_every_operator_really_rounds() -> None:
    """ONNX's reference computes in float16; onnxruntime on CPUs in float32 between Casts."""
    source, x = conv_net(), samples(12, 8, 6, 6)
    model, _ = converted(source, HALF, x)
    (new,) = ReferenceEvaluator(model.to_proto()).run(None, {"x": x})
    exact = outputs(source, x)["y"]
    error = np.linalg.norm(new - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 2e-2


def test_without_samples_sums_and_steep_functions_stay_float32() -> None:
    model, report = converted(conv_net(), HALF)
    why = why_of(report)
    assert "no samples show the range" in why["p"]
    assert "no samples show the range" in why["y"]
    assert types(model, "GlobalAveragePool") == [np.float32]
    assert types(model, "Softmax") == [np.float32]
    assert types(model, "Gemm") == [F16]


def test_inputs_and_outputs_keep_their_types_and_names() -> None:
    source = net(
        [node("Relu", ["x"], "a"), node("MatMul", ["a", "w"], "b"), node("Relu", ["b"], "y")],
        {"w": normal(8, 8)},
        ["N", 8],
        outputs=("b", "y"),
    )
    model, _ = converted(source, HALF)
    proto = model.to_proto()
    assert [info.SerializeToString() for info in proto.graph.output] == [
        info.SerializeToString() for info in source.graph.output
    ]
    found = outputs(model, samples(3, 8))
    assert {name: value.dtype for name, value in found.items()} == {
        "b": np.float32,
        "y": np.float32,
    }


def test_a_tensor_is_cast_once_for_each_direction() -> None:
    products = [node("MatMul", ["x", name], name.upper()) for name in "abc"]
    source = net(
        [*products, node("Sum", ["A", "B", "C"], "y")],
        {name: normal(8, 8, seed=seed) for seed, name in enumerate("abc")},
        ["N", 8],
    )
    model, _ = converted(source, HALF)
    assert ops(model)["Cast"] == 2


def test_a_cast_that_is_there_already_is_no_second_border() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[4, 2] x) => (float[4, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> {
            h = Cast <to = 10> (x)
            s = Cast <to = 1> (h)
            m = MatMul (s, w)
            n = Cast <to = 10> (m)
            r = Relu (n)
            y = Cast <to = 1> (r)
        }"""
    )
    model, _ = converted(source, HALF)
    assert ops(model) == {"Cast": 2, "MatMul": 1, "Relu": 1}
    assert output_error(source, model, samples(4, 2)) < 1e-6


def test_a_range_that_leaves_float16_keeps_its_operators_in_float32() -> None:
    nodes_ = [
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["a", "v"], "b"),
        node("MatMul", ["b", "u"], "y"),
    ]
    large = normal(8, 8, scale=20000)
    source = net(nodes_, {"w": normal(8, 8), "v": large, "u": normal(8, 8)}, ["N", 8])
    x = samples(30, 8)
    model, report = converted(source, HALF, x)
    why = why_of(report)
    assert "`b` reaches" in why["b"]
    assert "`b` reaches" in why["y"]
    assert types(model, "MatMul") == [F16, np.float32, np.float32]
    assert output_error(source, model, x) < 1e-4


def test_a_tensor_below_the_normal_numbers_stays_float32() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 8)}, ["N", 8])
    _, report = converted(source, HALF, samples(30, 8) * np.float32(1e-8))
    assert "few digits" in why_of(report)["y"]


def test_squares_that_leave_float16_stay_float32_although_the_tensors_fit() -> None:
    nodes_ = [node("LayerNormalization", ["x", "g", "b"], "n"), node("MatMul", ["n", "w"], "y")]
    weights = {"g": np.ones(8, np.float32), "b": normal(8), "w": normal(8, 8)}
    source = net(nodes_, weights, ["N", 8])
    _, report = converted(source, HALF, samples(30, 8) * np.float32(300))
    assert "adds up squares" in why_of(report)["n"]
    model, _ = converted(source, HALF, samples(30, 8))
    assert types(model, "LayerNormalization") == [F16]


def test_cheap_work_between_float32_operators_is_not_worth_its_casts() -> None:
    nodes_ = [node("Exp", ["x"], "a"), node("Relu", ["a"], "b"), node("Exp", ["b"], "y")]
    _, report = converted(net(nodes_, {}, ["N", 8]), HALF)
    assert "Casts would cost more" in why_of(report)["b"]
    assert report.changes == ()


def shared() -> onnx.ModelProto:
    """Two products with one matrix; the second leaves the range of float16."""
    nodes_ = [
        node("MatMul", ["x", "w"], "a"),
        node("Mul", ["a", "k"], "e"),
        node("MatMul", ["e", "w"], "y"),
    ]
    weights = {"w": normal(16, 16), "k": np.array(1e5, np.float32)}
    return net(nodes_, weights, ["N", 16])


def test_a_constant_of_both_types_is_stored_once() -> None:
    source, x = shared(), samples(9, 16)
    model, _ = converted(source, HALF, x)
    assert stored(model) == {"w_float16": F16, "k": np.float32}
    assert types(model, "MatMul") == [F16, np.float32]
    assert output_error(source, model, x) < 1e-4


def test_a_constant_of_an_operator_that_is_left_alone_stays_as_it_is() -> None:
    source, x = shared(), samples(9, 16)
    model, _ = converted(source, f"{HALF}:skip=y", x)
    assert stored(model) == {"w": np.float32, "k": np.float32}
    assert types(model, "MatMul") == [F16, np.float32]
    assert output_error(source, model, x) < 1e-4


def test_epsilon_that_vanishes_keeps_its_operator_in_float32() -> None:
    nodes_ = [node("Add", ["x", "e"], "a"), node("MatMul", ["a", "w"], "y")]
    weights = {"e": np.array(1e-12, np.float32), "w": normal(8, 8)}
    _, report = converted(net(nodes_, weights, ["N", 8]), HALF)
    assert "its constant `e`" in why_of(report)["a"]


@pytest.mark.parametrize("opset", [11, 13, 19])
def test_scales_of_resize_stay_float32(opset: int) -> None:
    resize = onnx.helper.make_node("Resize", ["a", "r", "s"], ["b"], mode="linear")
    nodes_ = [
        node("Conv", ["x", "w"], "a", pads=[1, 1, 1, 1]),
        resize,
        node("Conv", ["b", "w"], "y", pads=[1, 1, 1, 1]),
    ]
    weights = {
        "w": normal(3, 3, 3, 3, scale=0.2),
        "r": np.zeros(0, np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
    }
    source = net(nodes_, weights, ["N", 3, 4, 4], opset=opset)
    model, _ = converted(source, HALF)
    assert ops(model)["Cast"] == 2
    assert stored(model)["s"] == np.float32
    assert output_error(source, model, samples(4, 3, 4, 4)) < 1e-5


def test_operators_without_float16_say_so() -> None:
    nodes_ = [
        node("MatMul", ["x", "w"], "a"),
        node("Range", ["i", "j", "k"], "r"),
        node("Add", ["a", "r"], "y"),
    ]
    weights = {
        "w": normal(8, 8),
        "i": np.array(0, np.float32),
        "j": np.array(8, np.float32),
        "k": np.array(1, np.float32),
    }
    model, report = converted(net(nodes_, weights, ["N", 8]), HALF)
    assert "Range has no float16 in opset 17" in why_of(report)["r"]
    assert types(model, "MatMul") == [F16]


def test_numbers_cast_to_other_types_stay_exact() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[4, 2] x, int64[4, 2] i) => (int64[4, 2] y, float[4, 2] z)
        <float[2, 2] w = {1, 2, 3, 4}> {
            m = MatMul (x, w)
            y = Cast <to = 7> (m)
            f = Cast <to = 1> (i)
            z = MatMul (f, w)
        }"""
    )
    _, report = converted(source, HALF)
    why = why_of(report)
    assert "should be exact" in why["y"]
    assert "no samples show the range" in why["f"]


def test_a_small_integer_is_cast_to_float16_at_once() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (uint8[4, 2] x) => (float[4, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> {
            f = Cast <to = 1> (x)
            y = MatMul (f, w)
        }"""
    )
    model, _ = converted(source, HALF)
    assert ops(model) == {"Cast": 2, "MatMul": 1}
    assert types(model, "MatMul") == [F16]
    assert_equivalent(source, model.to_proto(), Fidelity.EXACT)


def test_a_shape_filled_with_a_number_is_filled_in_float16() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[4, 2] x) => (float[4, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> {
            m = MatMul (x, w)
            s = Shape (m)
            c = ConstantOfShape <value = float[1] {3}> (s)
            y = Add (m, c)
        }"""
    )
    model, _ = converted(source, HALF)
    assert ops(model)["Cast"] == 2
    assert types(model, "Add") == [F16]


def test_several_outputs_are_cast_where_they_are_read_as_float32() -> None:
    split = onnx.helper.make_node("Split", ["a"], ["s", "t"], axis=1)
    nodes_ = [
        node("MatMul", ["x", "w"], "a"),
        split,
        node("MatMul", ["s", "v"], "y"),
        node("Exp", ["t"], "z"),
    ]
    weights = {"w": normal(8, 8, scale=0.1), "v": normal(4, 4)}
    source = net(nodes_, weights, ["N", 8], outputs=("y", "z", "t"))
    x = samples(9, 8)
    model, _ = converted(source, HALF)
    assert types(model, "Split") == [F16]
    for name in ("y", "z", "t"):
        assert output_error(source, model, x, name) < 1e-5
    assert ops(model)["Cast"] == 3


def branching() -> onnx.ModelProto:
    numbers = ", ".join(str(0.37 * k) for k in range(64))
    return parse(
        f"""<opset_import: ["" : 17]>
        g (float[3, 8] x, bool c) => (float[3, 8] y)
        <float[8, 8] w = {{{numbers}}}> {{
            h = MatMul (x, w)
            y = If (c) <
                then_branch = a () => (float[3, 8] t) {{
                    u = MatMul (h, w)
                    t = Relu (u)
                }},
                else_branch = b () => (float[3, 8] e) {{ e = Identity (h) }}
            >
        }}"""
    )


def test_bodies_compute_in_float16_with_borders_of_their_own() -> None:
    source = branching()
    model, report = converted(source, HALF)
    assert "hands to its bodies" in why_of(report)["y"]
    assert stored(model) == {"w": F16}
    (inner,) = (item for item in nodes(model) if item.op == "Relu")
    assert inner.inputs[0].dtype == F16
    for flag in (True, False):
        given = {**random_feeds(source), "c": np.array(flag)}
        for ref, new in zip(run(source, given), run(model.to_proto(), given), strict=True):
            np.testing.assert_allclose(new, ref, rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("tiny", TINY)
def test_every_tiny_model_computes_the_same_in_float16(tiny: str) -> None:
    source = TINY[tiny]()
    model, _ = converted(source, HALF)
    _, report = converted(model.to_proto(), HALF)
    assert report.changes == ()
    given = random_feeds(source)
    for ref, new in zip(run(source, given), run(model.to_proto(), given), strict=True):
        assert new.dtype == ref.dtype
        if ref.dtype.kind == "f":
            np.testing.assert_allclose(new, ref, rtol=2e-2, atol=2e-2)
        else:
            np.testing.assert_array_equal(new, ref)


# ------------------------------------------------------------------- options


def test_only_and_skip_name_operators() -> None:
    source = dense_net(16, 16, 16, relu=False)
    model, _ = converted(source, "convert-fp16:only=h0")
    assert set(stored(model)) == {"w0_float16", "b0", "w1", "b1"}
    model, report = converted(source, f"{HALF}:skip=h*")
    assert types(model, "Gemm") == [np.float32, F16]
    assert "leave it out" in why_of(report)["h0"]


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="names `nope`, which no layer"):
        converted(dense_net(16, 16), "convert-fp16:only=nope")


def test_max_error_takes_back_what_it_must() -> None:
    exact = np.round(normal(16, 16, scale=0.3), 1).astype(np.float16).astype(np.float32)
    nodes_ = [node("MatMul", ["x", "w"], "a"), node("Softmax", ["a"], "y")]
    source, x = net(nodes_, {"w": exact}, ["N", 16]), samples(40, 16)
    model, report = converted(source, f"{HALF}:max-error=0.5", x)
    assert types(model, "MatMul") == [F16]
    assert report.skips == ()
    model, report = converted(source, f"{HALF}:max-error=1e-9", x)
    assert "compute in float16: a relative error" in report.skips[0].why
    assert why_of(report)["y"] == "Softmax can leave the range of float16 on inputs that are in it"
    assert types(model, "MatMul") == [F16]
    assert types(model, "Softmax") == [np.float32]


def test_max_error_that_nothing_holds_leaves_the_model_alone() -> None:
    model, report = converted(conv_net(), f"{HALF}:max-error=1e-9", samples(9, 8, 6, 6))
    assert report.changes == ()
    assert [skip.why.partition(": ")[0] for skip in report.skips] == [
        "compute in float16",
        "compute in float16, sums and steep functions left out",
        "float16 for weights alone",
    ]
    assert "Cast" not in ops(model)


def test_max_error_needs_samples() -> None:
    _, report = converted(conv_net(), "convert-fp16:max-error=0.1")
    assert "give --calib" in why_of(report)["g"]
