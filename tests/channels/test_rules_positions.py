"""Operators that go over all positions of some axes: reductions, pooling, resizing."""

from __future__ import annotations

import pytest
from channel_nets import LAST, check, conv_net, free_channels, net, pins


def test_a_softmax_over_channels_pins_them() -> None:
    model = conv_net("b = Softmax <axis = 1> (a)", LAST)
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`b` (Softmax) goes over them"] == 8


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_softmax_over_another_axis_lets_channels_pass(op: str) -> None:
    check(conv_net(f"b = {op} <axis = 2> (a)", LAST), {"a": 8, "y": 0}, seeds=1)


def test_an_old_softmax_goes_over_all_axes_from_its_own() -> None:
    assert free_channels(conv_net("b = Softmax <axis = 1> (a)", LAST, opset=11))["a"] == 0
    check(conv_net("b = Softmax <axis = 2> (a)", LAST, opset=11), {"a": 8, "y": 0}, seeds=1)


@pytest.mark.parametrize(
    "op", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]
)
@pytest.mark.parametrize("opset", [13, 18])
def test_reductions_over_space_let_channels_pass(op: str, opset: int) -> None:
    axes = "<axes = [-1,2], keepdims = 0> (a)" if opset < 18 else "<keepdims = 0> (a, axes)"
    model = net(
        f"""
    g (float[N,3,6,6] x) => (float[N,4] y)
    <float[8,3,1,1] w, float[8,4] v, int64[2] axes = {{-1, 2}}> {{
      a = Conv (x, w)
      b = {op} {axes}
      y = Gemm (b, v)
    }}""",
        opset=opset,
    )
    check(model, {"a": 8, "y": 0}, seeds=1)


def test_reductions_that_keep_axes_let_channels_pass() -> None:
    model = conv_net("b = ReduceSum <keepdims = 1> (a, axes)", f"int64[1] axes = {{3}}, {LAST}")
    check(model, {"a": 8, "y": 0})


def test_a_reduction_over_channels_pins_them() -> None:
    model = conv_net("b = ReduceMax <axes = [1]> (a)", "float[5,1,1,1] w_last")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`b` (ReduceMax) goes over them"] == 8


def test_an_argmax_over_space_lets_channels_pass() -> None:
    model = conv_net(
        """
      i = ArgMax <axis = 3, keepdims = 1> (a)
      b = Cast <to = 1> (i)
        """,
        LAST,
    )
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(
    "call",
    [
        "MaxPool <kernel_shape = [2,2], strides = [2,2]>",
        "AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]>",
        "LpPool <kernel_shape = [2,2]>",
        "GlobalAveragePool",
        "GlobalMaxPool",
    ],
)
def test_pooling_lets_channels_pass(call: str) -> None:
    check(conv_net(f"b = {call} (a)", LAST), {"a": 8, "y": 0}, seeds=1)


def test_indices_of_a_pooling_pin_channels() -> None:
    model = net("""
    g (float[N,3,6,6] x) => (float[N,5,3,3] y, int64[N,8,3,3] i)
    <float[8,3,1,1] w, float[5,8,1,1] v> {
      a = Conv (x, w)
      b, i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)
      y = Conv (b, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}


@pytest.mark.parametrize(
    "call",
    [
        'Resize <mode = "nearest"> (a, , scales)',
        'Resize <mode = "linear"> (a, , , sizes)',
        'Resize <mode = "nearest"> (a, , , runtime)',
    ],
)
def test_resizing_leaves_channels_as_they_are(call: str) -> None:
    model = conv_net(
        f"""
      d = Shape (x)
      n = Slice (d, zero, one, zero)
      runtime = Concat <axis = 0> (n, tail)
      b = {call}
        """,
        "float[4] scales = {1, 1, 2, 2}, int64[4] sizes = {3, 8, 12, 9}, int64[1] zero = {0},"
        " int64[1] one = {1}, int64[3] tail = {8, 12, 12}," + LAST,
    )
    check(model, {"a": 8, "y": 0})


def test_resizing_channels_pins_them() -> None:
    model = conv_net(
        'b = Resize <mode = "nearest"> (a, , scales)',
        "float[4] scales = {1, 2, 2, 2}, float[5,16,1,1] w_last",
    )
    assert free_channels(model) == {"a": 0, "y": 0}


@pytest.mark.parametrize(
    "body",
    [
        "b = Trilu <upper = 0> (a)",
        "b, i = TopK <axis = 3> (a, most)",
        "b = CumSum (a, axis)",
        "b = LpNormalization <axis = 2> (a)",
    ],
)
def test_what_looks_at_positions_of_other_axes_lets_channels_pass(body: str) -> None:
    model = conv_net(body, f"int64[1] most = {{3}}, int64 axis = {{2}}, {LAST}")
    check(model, {"a": 8, "y": 0}, seeds=2)


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("b, i = TopK <axis = 1> (a, most)", "TopK"),
        ("b = CumSum (a, axis)", "CumSum"),
        ("b = LpNormalization <axis = 1> (a)", "LpNormalization"),
        ("b = MeanVarianceNormalization <axes = [1,2,3]> (a)", "MeanVarianceNormalization"),
    ],
)
def test_what_looks_at_several_channels_pins_them(body: str, op: str) -> None:
    model = conv_net(body, f"int64[1] most = {{8}}, int64 axis = {{1}}, {LAST}")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert any(f"`b` ({op})" in why for why in pins(model))
