from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from attention_nets import (
    CACHE,
    FOLDED,
    FOLDING,
    FORMS,
    JOINED,
    LOWEST,
    UNFOLDED,
    Form,
    assert_same,
    operators,
)
from cases import case
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.io.model import Model
from onnxslim.passes.fuse_attention import FuseAttention
from onnxslim.passes.simplify import Simplify
from onnxslim.pipeline.manager import PassManager
from onnxslim.records import Fidelity
from support import CONTEXT, apply, assert_declines, assert_equivalent, canonical, parse, run


def the_attention(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if node.op_type == "Attention")
    assert "Softmax" not in operators(model)
    return node


def attribute(node: onnx.NodeProto, name: str) -> object:
    values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return values.get(name)


# ------------------------------------------------------------------------------ fires


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_attention_on_joined_heads(form: str) -> None:
    source = FORMS[form].model()
    result, report = apply(FuseAttention(), source)
    node = the_attention(result)
    assert attribute(node, "q_num_heads") == attribute(node, "kv_num_heads") == 2
    assert list(node.input[:3]) == ["q", "k", "v"]
    assert "Transpose" not in operators(result)
    assert report.skips == ()
    assert_equivalent(source, result, Fidelity.CLOSE)
    for seed, (batch, rows, columns) in enumerate([(1, 1, 1), (2, 5, 3), (3, 2, 7)]):
        with case(form, batch, rows, columns):
            sizes = {"B": batch, "S": rows, "T": columns, "W": 3 * batch}
            assert_same(source, result, sizes, seed)


def test_a_scale_is_one_factor_wherever_it_stands() -> None:
    for form, scale in (
        ("scaled after", 0.5),
        ("scaled on both sides", 0.5),
        ("divided", 0.5),
        ("scaled before the heads", 0.5),
        ("the bias of T5", 1.0),
    ):
        with case(form):
            node = the_attention(apply(FuseAttention(), FORMS[form].model())[0])
            assert attribute(node, "scale") == pytest.approx(scale)


def test_rows_in_which_all_is_masked_keep_what_they_have() -> None:
    """-inf leaves NaN, or zeros behind a guard; -1e9 leaves equal weights."""
    for form in ("a mask of -inf by Where", "a mask of -1e9 by Where", "rows of NaN become zero"):
        source = FORMS[form].model()
        result, _ = apply(FuseAttention(), source)
        rng = np.random.default_rng(0)
        feeds = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in "qkv"}
        mask = source.graph.input[3]
        shape = [
            {"B": 2, "S": 3}.get(d.dim_param, d.dim_value) for d in mask.type.tensor_type.shape.dim
        ]
        feeds[mask.name] = np.full(shape, mask.name == "drop").astype(
            onnx.helper.tensor_dtype_to_np_dtype(mask.type.tensor_type.elem_type)
        )
        with case(form):
            (old,), (new,) = run(source, feeds), run(result, feeds)
            np.testing.assert_allclose(new, old, rtol=1e-5)


def test_masks_that_callers_give_keep_their_rows() -> None:
    source = FORMS["the bias of T5"].model()
    result, _ = apply(FuseAttention(), source)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 4, 8)).astype(np.float32) for name in "qkv"}
    feeds["bias"] = rng.standard_normal((1, 2, 4, 4)).astype(np.float32)
    feeds["m"] = np.zeros((3, 1, 1, 4), np.float32)
    for value in (-np.inf, float(np.finfo(np.float32).min), -1e9):
        feeds["m"][1] = value
        feeds["m"][2, ..., 1:] = value
        with case(value):
            (old,), (new,) = run(source, feeds), run(result, feeds)
            np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_layers_that_mask_alike_share_their_mask() -> None:
    form = FORMS["BERT's mask"]
    second = """r1 = Reshape (y, cut) r2 = Transpose <perm = [0, 2, 1, 3]> (r1)
        e = MatMul (r2, k2) f = Mul (e, half) i = Add (f, m4) j = Softmax (i)
        l = MatMul (j, v2) n = Transpose <perm = [0, 2, 1, 3]> (l) z = Reshape (n, joined)"""
    text = replace(form, outputs="float[B, S, 8] z", joined=f"{form.joined} {second}").text()
    source = parse(text, 11)
    result, _ = apply(FuseAttention(), source)
    assert operators(result).count("Attention") == 2
    assert operators(result).count("Expand") == 1
    assert_same(source, result, {"B": 2, "S": 3})


def test_a_cache_goes_into_the_operator_and_stays_an_output() -> None:
    source = CACHE.model()
    result, _ = apply(FuseAttention(), source)
    node = the_attention(result)
    assert [*node.input[:3], *node.input[4:]] == ["q", "k", "v", "past_k", "past_v"]
    assert list(node.output) == ["y", "present_k", "present_v"]
    for past, rows in ((0, 4), (5, 1), (3, 2)):
        with case(past, rows):
            assert_same(source, result, {"B": 2, "P": past, "S": rows, "T": past + rows})


_STATIC = {
    "TensorScatter": ("int64[B] at", "<axis = 2> (past, new, at)", 24),
    "ScatterElements": ("int64[B, 2, S, 4] at", "<axis = 2> (past, at, new)", 23),
    "ScatterND": ("int64[B, 2, S, 3] at", "(past, at, new)", 23),
}


@pytest.mark.parametrize("op", _STATIC)
def test_a_cache_of_fixed_length_is_read_as_it_is(op: str) -> None:
    """New rows are written into it, and a mask hides those that are not there yet."""
    place, call, opset = _STATIC[op]
    heads = CACHE.heads
    for kind, rows in (("k", "k3"), ("v", "v3")):
        made = call.replace("past", f"past_{kind}").replace("new", rows)
        heads = re.sub(rf"(present_{kind} =) Concat .*", rf"\1 {op} {made}", heads)
    form = replace(CACHE, inputs=f"{CACHE.inputs}, {place}", heads=heads, opset=opset, columns="S")
    text = form.text().replace("P, 4]", "6, 4]").replace("T, 4]", "6, 4]").replace("T] m", "6] m")
    source = parse(text, 11)
    result, _ = apply(FuseAttention(), source)
    assert len(the_attention(result).output) == 1
    assert operators(result).count(op) == 2
    assert_same(source, result, {"B": 2, "S": 2})


def test_a_mask_that_is_made_of_the_cache_leaves_the_concat_where_it_is() -> None:
    masked = replace(
        CACHE,
        inputs="float[B, 2, P, 4] past_k, float[B, 2, P, 4] past_v",
        constants="float half = {0.5}, int64[1] two = {2}, int64[1] three = {3}",
        scores="""sh = Shape <start = 2, end = 3> (present_k) m = ConstantOfShape (sh)
            s = MatMul (q2, k2) t = Mul (s, half) u = Add (t, m) p = Softmax (u)
            h = MatMul (p, present_v)""",
    )
    source = masked.model()
    result, _ = apply(FuseAttention(), source)
    assert len(the_attention(result).output) == 1
    assert_same(source, result, {"B": 2, "P": 3, "S": 2, "T": 5})


REPEATED = """
    q1 = Reshape (q, four_heads)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k1 = Reshape (k, two_heads)
    k3 = Transpose <perm = [0, 2, 1, 3]> (k1)
    k4 = Unsqueeze (k3, axis)
    v1 = Reshape (v, two_heads)
    v3 = Transpose <perm = [0, 2, 1, 3]> (v1)
    v4 = Unsqueeze (v3, axis)
"""
GROUPED = """
    k5 = {op} (k4, times)
    k6 = Reshape (k5, all_heads)
    k2 = Transpose <perm = [0, 1, 3, 2]> (k6)
    v5 = {op} (v4, times)
    v2 = Reshape (v5, all_heads)
"""


def grouped(op: str, *, by_neighbours: bool = True) -> onnx.ModelProto:
    times = "{1, 1, 2, 1, 1}" if by_neighbours else "{1, 2, 1, 1, 1}"
    return parse(
        f"""<opset_import: ["" : 23]>
        g (float[B, S, 16] q, float[B, T, 8] k, float[B, T, 8] v) => (float[B, S, 16] y)
        <int64[4] four_heads = {{0, 0, 4, 4}}, int64[4] two_heads = {{0, 0, 2, 4}},
         int64[1] axis = {{{2 if by_neighbours else 1}}}, int64[5] times = {times},
         int64[4] all_heads = {{0, 4, -1, 4}}, int64[3] joined = {{0, 0, 16}}> {{
            {REPEATED} {GROUPED.format(op=op)}
            s = MatMul (q2, k2) p = Softmax (s) h = MatMul (p, v2) {JOINED}
        }}""",
        ir_version=11,
    )


@pytest.mark.parametrize("op", ["Expand", "Tile"])
def test_repeated_heads_are_no_longer_written_out(op: str) -> None:
    source = grouped(op)
    result, _ = apply(FuseAttention(), source)
    node = the_attention(result)
    assert (attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")) == (4, 2)
    assert operators(result) == ["Attention"]
    assert_same(source, result, {"B": 2, "S": 3, "T": 5})


def test_heads_that_are_repeated_as_a_whole_are_no_groups() -> None:
    source = grouped("Tile", by_neighbours=False)
    result, _ = apply(FuseAttention(), source)
    node = the_attention(result)
    assert attribute(node, "q_num_heads") is None
    assert "Tile" in operators(result)
    assert_same(source, result, {"B": 2, "S": 3, "T": 5})


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("float[B, 2, 1, T, 4] k", "k5 = Expand (k, times) k6 = Reshape (k5, all_heads)"),
        ("float[B, 4, T, 4] k", "k6 = Identity (k)"),
        ("float[B, 2, T, 4] k", "k1 = Unsqueeze (k, two) k5 = Expand (k1, times)"),
    ],
)
def test_heads_that_are_never_apart_from_their_repeats_stay_repeated(key: str, body: str) -> None:
    if "k6" not in body:
        body += " k6 = Reshape (k5, all_heads)"
    source = parse(
        f"""<opset_import: ["" : 23]>
        g (float[B, 4, S, 4] q, {key}, float[B, 2, 1, T, 4] v) => (float[B, 4, S, 4] y)
        <int64[5] times = {{1, 1, 2, 1, 1}}, int64[4] all_heads = {{0, 4, -1, 4}},
         int64[1] two = {{2}}> {{
            {body} k2 = Transpose <perm = [0, 1, 3, 2]> (k6)
            v5 = Expand (v, times) v6 = Reshape (v5, all_heads)
            s = MatMul (q, k2) p = Softmax (s) y = MatMul (p, v6)
        }}""",
        ir_version=11,
    )
    result, _ = apply(FuseAttention(), source)
    assert_same(source, result, {"B": 2, "S": 3, "T": 5})
    if "Unsqueeze" not in body:
        assert "Attention" in operators(result)


def test_heads_that_are_given_as_such_are_read_as_four_axes() -> None:
    source = parse(
        """<opset_import: ["" : 23]>
        g (float[B, 2, S, 4] q, float[B, 2, 4, T] k, float[B, 2, T, 6] v) => (float[B, 2, S, 6] y) {
            s = MatMul (q, k) p = Softmax (s) y = MatMul (p, v)
        }""",
        ir_version=11,
    )
    result, _ = apply(FuseAttention(), source)
    assert operators(result) == ["Transpose", "Attention"]
    assert_same(source, result, {"B": 2, "S": 3, "T": 5})


def test_a_reshape_to_rows_behind_the_heads_stays() -> None:
    form = Form(joined="h1 = Transpose <perm = [0, 2, 1, 3]> (h) y = Reshape (h1, rows)")
    text = form.text().replace("(float[B, S, 8] y)", "(float[R, 8] y)")
    source = parse(text.replace("float half", "int64[2] rows = {-1, 8}, float half"), ir_version=11)
    result, _ = apply(FuseAttention(), source)
    assert operators(result) == ["Attention", "Reshape"]
    assert_same(source, result, {"B": 2, "S": 3})


def test_batches_with_two_names_may_be_repeated() -> None:
    text = Form(columns="T").text()
    text = text.replace("float[B, T, 8] k", "float[C, T, 8] k").replace(
        "float[B, T, 8] v", "float[C, T, 8] v"
    )
    source = parse(text, ir_version=11)
    result, _ = apply(FuseAttention(), source)
    the_attention(result)
    for batch, other in ((2, 2), (3, 1), (1, 3)):
        with case(batch, other):
            assert_same(source, result, {"B": batch, "C": other, "S": 3, "T": 4})


def test_batches_of_unknown_size_may_be_repeated_where_heads_are_cut_by_an_input() -> None:
    source = parse(
        """<opset_import: ["" : 23]>
        g (int64[4] cut, float[4, 3, 2, 2] k, float[4, 3, 4] q) => (float[4, 3, 4] y)
        <int64[3] joined = {4, 3, 4}> {
            q1 = Reshape (q, cut) q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
            k1 = Transpose <perm = [0, 2, 1, 3]> (k) k2 = Transpose <perm = [0, 1, 3, 2]> (k1)
            s = MatMul (q2, k2) p = Softmax (s) h = MatMul (p, k1)
            h1 = Transpose <perm = [0, 2, 1, 3]> (h) y = Reshape (h1, joined)
        }""",
        ir_version=11,
    )
    result, _ = apply(FuseAttention(), source)
    the_attention(result)
    rng = np.random.default_rng(2)
    feeds = {"cut": np.array([4, 3, 2, 2]), "k": rng.normal(size=(4, 3, 2, 2)).astype(np.float32)}
    feeds["q"] = rng.normal(size=(4, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(result, feeds)[0], run(source, feeds)[0], atol=1e-6)


def test_float16_with_its_softmax_in_float32() -> None:
    form = Form(
        constants="int64[1] unused = {0}",
        scores="""s = MatMul (q2, k2) c = Cast <to = 1> (s) w = Softmax (c)
            p = Cast <to = 10> (w)""",
    )
    source = parse(form.text().replace("float[", "float16["), ir_version=11)
    result, _ = apply(FuseAttention(), source)
    assert attribute(the_attention(result), "softmax_precision") == 1
    feeds = {
        name: np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float16)
        for name in "qkv"
    }
    np.testing.assert_allclose(run(result, feeds)[0], run(source, feeds)[0], atol=4e-3)


def test_a_lower_opset_is_raised_and_said() -> None:
    source = replace(Form(), opset=17).model()
    result, report = apply(FuseAttention(), source)
    assert result.opset_import[0].version == 23
    assert report.changes[0].what == "opset raised from 17 to 23: Attention nodes need it"
    the_attention(result)
    assert_same(source, result, {"B": 2, "S": 3})
    kept, report = apply(FuseAttention(raises_opset=False), source)
    assert (report.changes, report.skips) == ((), ())
    assert canonical(kept) == canonical(source)


def test_simplify_fuses_attention_at_its_opset_alone() -> None:
    for opset, expected in ((23, 1), (18, 0)):
        source = replace(Form(), opset=opset).model()
        result, _ = PassManager((Simplify(),)).run(Model.load(source), CONTEXT)
        found = operators(result.to_proto())
        with case(opset):
            assert found.count("Attention") == expected
            assert result.to_proto().opset_import[0].version == opset


def drawn(
    heads: int, width: int, scale: float, mask: str, value: str, *, before: bool
) -> onnx.ModelProto:
    """Self-attention with a scale before or behind the product, and one mask."""
    channels = heads * width
    masks = {
        "none": "u = Identity (t)",
        "Add": "u = Add (t, m)",
        "Where": "u = Where (keep, t, low)",
        "Where of dropped": "u = Where (keep, low, t)",
        "Where, then Add": "u0 = Where (keep, t, low) u = Add (u0, m)",
        "Add, then Where": "u0 = Add (t, m) u = Where (keep, u0, low)",
    }
    scaled = (
        "qs = Mul (q2, c) t = MatMul (qs, k2)" if before else "s = MatMul (q2, k2) t = Mul (s, c)"
    )
    form = Form(
        inputs="float[B, 1, 1, S] m, bool[1, 1, S, S] keep",
        constants=f"float c = {{{scale}}}, float low = {{{value}}}",
        scores=f"{scaled} {masks[mask]} p = Softmax <axis = -1> (u)",
    )
    text = form.text().replace("0, 0, 2, 4", f"0, 0, {heads}, {width}")
    return parse(
        text.replace("0, 0, 8", f"0, 0, {channels}").replace("S, 8]", f"S, {channels}]"), 11
    )


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from((0.25, 0.3, 1.0, 2.5)),
    st.sampled_from(
        ("none", "Add", "Where", "Where of dropped", "Where, then Add", "Add, then Where")
    ),
    st.sampled_from(("-inf", LOWEST)),
    st.booleans(),
    st.tuples(st.integers(1, 3), st.integers(1, 6)),
    st.integers(0, 99),
)
def test_attention_returns_what_the_nodes_did(
    heads: int,
    width: int,
    scale: float,
    mask: str,
    value: str,
    before: bool,
    sizes: tuple[int, int],
    seed: int,
) -> None:
    """Rows in which all is masked are among the drawn ones."""
    source = drawn(heads, width, scale, mask, value, before=before)
    result, _ = apply(FuseAttention(), source)
    the_attention(result)
    assert_same(source, result, {"B": sizes[0], "S": sizes[1]}, seed)


# ------------------------------------------------------------------------------ declines

_SCORES = "s = MatMul (q2, k2) t = Mul (s, half) "
_OTHERS: dict[str, tuple[Form, str]] = {
    "another axis": (
        Form(rows="5", columns="5", scores=_SCORES + "p = Softmax <axis = 2> (t)"),
        "not over the last axis",
    ),
    "weights returned": (Form(outputs="float[B, 2, S, S] p"), "weights are an output"),
    "scores returned": (Form(outputs="float[B, 2, S, S] t"), "the scores `t` are used elsewhere"),
    "weights read twice": (
        Form(outputs="float[B, 2, S, S] other", joined=JOINED + "other = Neg (p)"),
        "weights `p` are used elsewhere",
    ),
    "a Dropout that drops": (
        Form(
            constants="float half = {0.5}, bool yes = {1}, float ratio = {0.1}",
            scores=_SCORES + "w = Softmax (t) p = Dropout (w, ratio, yes)",
        ),
        "may drop some of its weights",
    ),
    "a scale that is computed": (
        Form(inputs="float c", scores="s = MatMul (q2, k2) t = Mul (s, c) p = Softmax (t)"),
        "its scores go through `t` (Mul)",
    ),
    "a negative scale": (
        Form(
            constants="float c = {-1}", scores="s = MatMul (q2, k2) t = Mul (s, c) p = Softmax (t)"
        ),
        "not positive",
    ),
    "a mask before the scale": (
        Form(
            inputs="float[S, S] m",
            scores="s = MatMul (q2, k2) t = Add (s, m) u = Mul (t, half) p = Softmax (u)",
        ),
        "scaled or bounded after the mask",
    ),
    "a mask that leaves a weight": (
        Form(
            inputs="bool[S, S] keep",
            constants="float half = {0.5}, float low = {-100}",
            scores=_SCORES + "u = Where (keep, t, low) p = Softmax (u)",
        ),
        "leaves a weight",
    ),
    "a mask that is computed": (
        Form(
            inputs="bool[S, S] keep, float low",
            scores=_SCORES + "u = Where (keep, t, low) p = Softmax (u)",
        ),
        "a value that is not constant",
    ),
    "-1e9 and another mask": (
        Form(
            inputs="bool[S, S] keep, float[S, S] m",
            constants="float half = {0.5}, float low = {-1000000000.0}",
            scores=_SCORES + "u = Where (keep, t, low) u1 = Add (u, m) p = Softmax (u1)",
        ),
        "masked again",
    ),
    "a lowest number, another mask, and -1e9": (
        Form(
            inputs="bool[S, S] keep, bool[S, S] other, float[S, S] m",
            constants="float half = {0.5}, float low = {-1000000000.0}, "
            f"float least = {{{LOWEST}}}",
            scores=_SCORES
            + """u = Where (other, t, least) u1 = Add (u, m) u2 = Where (keep, u1, low)
                p = Softmax (u2)""",
        ),
        "masked again",
    ),
    "bounded scores": (
        Form(scores=_SCORES + "u = Clip (t, zero) p = Softmax (u)"),
        "its scores go through `u` (Clip)",
    ),
    "a floor that leaves a weight": (
        Form(scores=_SCORES + "u = Max (t, zero) p = Softmax (u)"),
        "leaves a weight",
    ),
    "a soft cap behind the mask": (
        Form(
            inputs="float[S, S] m", scores=_SCORES + "u = Add (t, m) c = Tanh (u) p = Softmax (c)"
        ),
        "scaled or bounded after the mask",
    ),
    "a mask of heads and batch on one axis": (
        Form(
            inputs="float[M, S, S] m",
            constants=f"float half = {{0.5}}, {FOLDING}",
            heads=FOLDED,
            scores=_SCORES + "u = Add (t, m) p = Softmax (u)",
            joined=UNFOLDED,
        ),
        "masks batch and heads as one axis",
    ),
}


@pytest.mark.parametrize("kind", _OTHERS)
def test_other_attention_stays_and_the_reason_is_said(kind: str) -> None:
    form, why = _OTHERS[kind]
    assert_declines(form.text(), FuseAttention(), why)


def test_a_mask_that_makes_scores_larger_is_declined() -> None:
    form = Form(
        rows="5",
        columns="5",
        inputs="float[3, 1, 5, 5] m",
        scores=_SCORES + "u = Add (t, m) p = Softmax (u)",
        joined="y = Identity (h)",
    )
    text = form.text().replace("[B,", "[1,").replace("float[1, 5, 8] y", "float[3, 2, 5, 4] y")
    assert_declines(text, FuseAttention(), "makes the scores larger")


def test_values_of_another_type_are_declined() -> None:
    text = Form().text().replace("float[", "double[").replace("float half", "double half")
    text = text.replace("float zero", "double zero")
    assert_declines(text, FuseAttention(), "neither float32 nor float16")


def test_a_classifier_is_no_attention() -> None:
    text = """<opset_import: ["" : 23]>
        g (float[B, 4] x, float[4, 3] a) => (float[B, 3] y) <float[4, 3] w = {{{}}}> {{
            s = MatMul (x, w) y = Softmax (s)
        }}"""
    result = assert_declines(text.format(", ".join(["1"] * 12)), FuseAttention())
    assert result.skips == ()


# ------------------------------------------------------------------------------ edges


def test_heads_that_never_lie_apart_from_the_batch_stay() -> None:
    assert_declines(
        """<opset_import: ["" : 23]>
        g (float[M, S, 4] q, float[M, S, 4] k, float[M, S, 4] v) => (float[M, S, 4] y) {
            kt = Transpose <perm = [0, 2, 1]> (k)
            s = MatMul (q, kt)
            p = Softmax (s)
            y = MatMul (p, v)
        }""",
        FuseAttention(),
        "its batch and heads are not known apart",
    )


def test_operands_that_others_read_as_well_stay() -> None:
    form = Form(outputs="float[B, 2, 4, S] k2, float[B, S, 2, 4] q1")
    source = form.model()
    result, _ = apply(FuseAttention(), source)
    assert sorted(operators(result)) == ["Attention", "Reshape", "Reshape", "Transpose"]
    assert_same(source, result, {"B": 2, "S": 3})


def test_attention_in_a_body() -> None:
    text = Form().text()
    start, end = text.index("{\n"), text.rindex("}")
    body = text[start + 1 : end].replace("y =", "inner =")
    head = text[:start]
    source = parse(
        head.replace("v) =>", "v, bool c) =>")
        + "{ y = If (c) <then_branch = a () => (float[B, S, 8] inner) {"
        + body
        + "}, else_branch = b () => (float[B, S, 8] other) { other = Identity (q) }> }",
        ir_version=11,
    )
    result, report = apply(FuseAttention(), source)
    assert report.changed
    (node,) = result.graph.node
    branches = {item.name: item.g for item in node.attribute}
    assert [item.op_type for item in branches["then_branch"].node] == ["Attention"]
    assert_equivalent(source, result, Fidelity.CLOSE)


def test_a_fused_model_stays_as_it_is() -> None:
    fused, _ = apply(FuseAttention(), FORMS["BERT's mask"].model())
    _, report = apply(FuseAttention(), fused)
    assert report.changes == ()
