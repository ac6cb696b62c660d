from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxslim.passes.fuse_pad import FusePad
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse


def model(
    body: str,
    size: int = 6,
    pads: tuple[int, ...] = (0, 0, 1, 2, 0, 0, 2, 1),
    value: str = "0",
    kernel: str = "1, 2, 3, 4, 5, 6, 7, 8, 9",
) -> str:
    """A model in which `a` is `x` (1, 1, size, size) padded; `body` makes `y` of it."""
    amounts = ", ".join(map(str, pads))
    return f"""<opset_import: ["" : 17]>
        g (float[1, 1, {size}, {size}] x) => (float[n, c, h, w] y)
            <int64[8] p = {{{amounts}}}, float v = {{{value}}},
             float[1, 1, 3, 3] k = {{{kernel}}}> {{
            {body}
        }}"""


def ops_after(text: str, fidelity: Fidelity = Fidelity.CLOSE) -> list[str]:
    """Operators after the pass; outputs are compared."""
    source = parse(text)
    result_model, result = apply(FusePad(), source)
    assert result.changed, result.skips
    assert_equivalent(source, result_model, fidelity)
    return [node.op_type for node in result_model.graph.node]


# ------------------------------------------------------------------------------ fires


def test_zeros_before_a_conv_become_its_pads() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 5, 4] y)
            <int64[8] p = {0, 0, 1, 0, 0, 0, 1, 1},
             float[1, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            a = Pad (x, p)
            y = Conv <pads = [0, 1, 1, 0]> (a, w)
        }""",
        FusePad(),
        """<opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 5, 4] y)
            <float[1, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            y = Conv <pads = [1, 1, 2, 1]> (x, w)
        }""",
    )


def test_zeros_before_a_conv_with_auto_pad_valid_become_its_pads() -> None:
    assert ops_after(model('a = Pad (x, p) y = Conv <auto_pad = "VALID"> (a, k)')) == ["Conv"]


@pytest.mark.parametrize("strides", [[1, 1], [2, 1]])
def test_zeros_before_a_conv_transpose_are_cropped_less(strides: list[int]) -> None:
    body = f"a = Pad (x, p) y = ConvTranspose <pads = [3, 3, 4, 2], strides = {strides}> (a, k)"
    assert ops_after(model(body)) == ["ConvTranspose"]


@pytest.mark.parametrize("count", ["", ", count_include_pad = 1, pads = [0, 0, 1, 0]"])
def test_zeros_before_an_average_are_counted(count: str) -> None:
    body = f"a = Pad (x, p) y = AveragePool <kernel_shape = [4, 4]{count}> (a)"
    assert ops_after(model(body)) == ["AveragePool"]


@pytest.mark.parametrize("lowest", ["-inf", "-3.4028235e38"])
def test_the_lowest_number_before_a_maximum_becomes_its_pads(lowest: str) -> None:
    body = f"""m = Constant <value_float = {lowest}> ()
        a = Pad (x, p, m)
        y = MaxPool <kernel_shape = [3, 4]> (a)"""
    assert ops_after(model(body), Fidelity.EXACT) == ["MaxPool"]


@pytest.mark.parametrize("before", ["Relu (x)", "Sigmoid (x)", "Abs (x)", "Clip (x, v)"])
def test_zeros_before_a_maximum_of_what_is_never_negative_become_its_pads(before: str) -> None:
    body = f"r = {before} a = Pad (r, p, v) y = MaxPool <kernel_shape = [3, 3]> (a)"
    assert ops_after(model(body), Fidelity.EXACT)[1:] == ["MaxPool"]


# ------------------------------------------------------------------------------ declines


@pytest.mark.parametrize(
    ("body", "options", "why"),
    [
        ("a = Pad (x, p, v) y = Conv (a, k)", {"value": "1"}, "does not pad with zeros"),
        ('a = Pad <mode = "edge"> (x, p) y = Conv (a, k)', {}, "mode edge"),
        ("a = Pad (x, p) y = Conv (a, k)", {"pads": (0, 0, -1, 1, 0, 0, 0, 0)}, "crops"),
        (
            "a = Pad (x, p) y = MaxPool <kernel_shape = [3, 3]> (a)",
            {"pads": (0, 1, 0, 0, 0, 0, 0, 0), "value": "0"},
            "the batch or the channels",
        ),
        ('a = Pad (x, p) y = Conv <auto_pad = "SAME_UPPER"> (a, k)', {}, "SAME_UPPER depends"),
        ("a = Pad (x, p) b = Relu (a) c = Conv (a, k) y = Concat <axis = 1> (b, d)", {}, None),
        ("a = Pad (x, p, v) y = MaxPool <kernel_shape = [3, 3]> (a)", {}, "largest element"),
        (
            "r = Relu (x) a = Pad (r, p, v) y = MaxPool <kernel_shape = [2, 2]> (a)",
            {},
            "in the padding alone",
        ),
        (
            "r = Relu (x) a = Pad (r, p, v) y, i = MaxPool <kernel_shape = [3, 3]> (a)"
            " j = Cast <to = 1> (i)",
            {},
            "returns indices",
        ),
        (
            "a = Pad (x, p) y = AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (a)",
            {},
            "ceil_mode",
        ),
        (
            "a = Pad (x, p) y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)",
            {},
            "does not count",
        ),
        ("a = Pad (x, p) y = ConvTranspose (a, k)", {}, "crops less"),
    ],
)
def test_pad_stays(body: str, options: dict[str, object], why: str | None) -> None:
    if why is None:
        body = "a = Pad (x, p) c = Conv <pads = [1, 1, 1, 1]> (a, k) y = Add (a, c)"
        why = "used elsewhere"
    assert_declines(model(body, **options), FusePad(), why)  # type: ignore[arg-type]


def test_amounts_known_at_run_time_only_stay() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x, int64[8] p) => (float[n, c, h, w] y)
            <float[1, 1, 1, 1] k = {2}> {
            a = Pad (x, p)
            y = Conv (a, k)
        }"""
    source = parse(text)
    _, result = apply(FusePad(), source)
    assert not result.changed
    assert "not known" in result.skips[0].why


# ------------------------------------------------------------------------------ edges


def test_attributes_of_old_opsets_are_read() -> None:
    text = """<opset_import: ["" : 10]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[1, 1, 3, 3] k = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            a = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x)
            y = Conv (a, k)
        }"""
    assert ops_after(text) == ["Conv"]


def test_axes_of_new_opsets_are_read() -> None:
    text = """<opset_import: ["" : 18]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[1, 1, 3, 3] k = {1, 2, 3, 4, 5, 6, 7, 8, 9}, int64[4] p = {1, 1, 1, 1},
             int64[2] axes = {-1, 2}> {
            a = Pad (x, p, , axes)
            y = Conv (a, k)
        }"""
    assert ops_after(text) == ["Conv"]


_AMOUNT = st.integers(0, 2)


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose", "AveragePool", "MaxPool"]),
    amounts=st.tuples(_AMOUNT, _AMOUNT, _AMOUNT, _AMOUNT),
    own=st.tuples(_AMOUNT, _AMOUNT, _AMOUNT, _AMOUNT),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    value=st.sampled_from(["0", "1"]),
    relu=st.booleans(),
)
def test_any_pad_before_any_window_keeps_its_outputs(
    op: str,
    amounts: tuple[int, ...],
    own: tuple[int, ...],
    strides: tuple[int, int],
    value: str,
    relu: bool,
) -> None:
    attrs = f"strides = {list(strides)}, pads = {list(own)}"
    if op in ("AveragePool", "MaxPool"):
        assume(max(own) < 3)
        attrs += ", kernel_shape = [3, 3]"
        if op == "AveragePool":
            attrs += ", count_include_pad = 1"
    rest = "" if "Pool" in op else ", k"
    first = "r = Relu (x)" if relu else "r = Identity (x)"
    body = f"{first} a = Pad (r, p, v) y = {op} <{attrs}> (a{rest})"
    pads = (0, 0, *amounts[:2], 0, 0, *amounts[2:])
    source = parse(model(body, pads=pads, value=value))
    result_model, result = apply(FusePad(), source)
    assert_equivalent(source, result_model, Fidelity.CLOSE)
    assert len(result_model.graph.node) == len(source.graph.node) - len(result.changes)
