from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.passes.fuse_quantization import FuseQuantization
from onnxslim.runtime.session import open_session
from support import CONTEXT, assert_declines, assert_rewrites, parse

HEADER = '<opset_import: ["" : 17]>'
GRID = "float s = {0.02}, uint8 z = {128}"


def test_pooling_and_flattening_are_done_on_integers() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (uint8[1, 8, 4, 4] x) => (uint8[1, 32] y) <{GRID}> {{
            a = DequantizeLinear (x, s, z)
            b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
            c = Flatten (b)
            y = QuantizeLinear (c, s, z)
        }}""",
        FuseQuantization(),
        f"""{HEADER}
        g (uint8[1, 8, 4, 4] x) => (uint8[1, 32] y) {{
            b_integers = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            y = Flatten (b_integers)
        }}""",
    )


def test_a_concat_of_one_grid_is_moved_and_what_else_reads_floats_keeps_them() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (int8[2, 3] x, int8[2, 2] w) => (int8[5, 2] y, float[2, 3] r) <float s = {{0.1}}> {{
            a = DequantizeLinear (x, s)
            b = DequantizeLinear (w, s)
            c = Concat <axis = 1> (a, b)
            d = Transpose <perm = [1, 0]> (c)
            y = QuantizeLinear <output_dtype = 3> (d, s)
            r = Relu (a)
        }}""".replace('"" : 17', '"" : 21'),
        FuseQuantization(),
        f"""{HEADER}
        g (int8[2, 3] x, int8[2, 2] w) => (int8[5, 2] y, float[2, 3] r) <float s = {{0.1}}> {{
            a = DequantizeLinear (x, s)
            c_integers = Concat <axis = 1> (x, w)
            y = Transpose <perm = [1, 0]> (c_integers)
            r = Relu (a)
        }}""".replace('"" : 17', '"" : 21'),
    )


DECLINES = {
    "another scale": ("b = Transpose (a) y = QuantizeLinear (b, t, z)", 17),
    "another zero point": ("b = Transpose (a) y = QuantizeLinear (b, s, one)", 17),
    "arithmetic": ("b = Relu (a) y = QuantizeLinear (b, s, z)", 17),
    "an average": ("b = GlobalAveragePool (a) y = QuantizeLinear (b, s, z)", 17),
    "an old pooling": ("b = MaxPool <kernel_shape = [2, 2]> (a) y = QuantizeLinear (b, s, z)", 11),
    "a constant part": ("b = Concat <axis = 0> (a, k) y = QuantizeLinear (b, s, z)", 17),
    "a tiny scale": (
        "e = DequantizeLinear (x, tiny, z) b = Transpose (e) y = QuantizeLinear (b, tiny, z)",
        17,
    ),
}


@pytest.mark.parametrize("name", DECLINES)
def test_other_movement_stays(name: str) -> None:
    body, opset = DECLINES[name]
    source = f"""<opset_import: ["" : {opset}]> g (uint8[1, 2, 2, 2] x) => (uint8[A, B, C, D] y)
        <{GRID}, float t = {{0.03}}, uint8 one = {{1}}, float tiny = {{1e-35}},
         float[1, 2, 2, 2] k = {{1, 2, 3, 4, 5, 6, 7, 8}}>
        {{ a = DequantizeLinear (x, s, z) {body} }}"""
    model = Model.load(parse(source))
    infer_shapes(model)
    assert not FuseQuantization().run(model.graph, CONTEXT).changed


def test_floats_that_are_read_elsewhere_stay() -> None:
    assert_declines(
        f"""{HEADER}
        g (uint8[2, 3] x) => (uint8[3, 2] y, float[3, 2] r) <{GRID}> {{
            a = DequantizeLinear (x, s, z)
            b = Transpose <perm = [1, 0]> (a)
            y = QuantizeLinear (b, s, z)
            r = Relu (b)
        }}""",
        FuseQuantization(),
        "has other readers",
    )


MOVES = (
    "Transpose <perm = [0, 2, 3, 1]> ({})",
    "MaxPool <kernel_shape = [2, 2], pads = [1, 1, 0, 0], strides = [2, 1]> ({})",
    "Slice ({}, from, to, axis)",
    "Gather <axis = 1> ({}, pick)",
    "Tile ({}, twice)",
    "DepthToSpace <blocksize = 2> ({})",
    "Concat <axis = 2> ({0}, {0})",
)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(MOVES),
    st.sampled_from(("uint8", "int8")),
    st.floats(1e-20, 1e20),
    st.integers(0, 127),
)
def test_onnxruntime_gives_the_same_codes(move: str, kind: str, scale: float, zero: int) -> None:
    source = f"""{HEADER} g ({kind}[1, 4, 6, 6] x) => ({kind}[A, B, C, D] y)
        <float s = {{{scale:.9g}}}, {kind} z = {{{zero}}}, int64[1] from = {{1}},
         int64[1] to = {{4}}, int64[1] axis = {{2}}, int64[3] pick = {{3, 0, 1}},
         int64[4] twice = {{1, 2, 1, 1}}>
        {{ a = DequantizeLinear (x, s, z) b = {move.format("a")} y = QuantizeLinear (b, s, z) }}"""
    proto = onnx.parser.parse_model(source.replace("<opset", "<ir_version: 8, opset", 1))
    model = Model.load(proto)
    after = model.clone()
    infer_shapes(after)
    assert FuseQuantization().run(after.graph, CONTEXT).changed
    codes = np.arange(256).astype(kind)[np.random.default_rng(0).permutation(256)[:144]]
    feeds = {"x": codes.reshape(1, 4, 6, 6)}
    with open_session(model, optimise=False) as before, open_session(after) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], before.run(feeds)["y"])
