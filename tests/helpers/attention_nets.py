"""Attention in the forms in which exporters write it, as ONNX text; comparing two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from support import parse, run

CUT = "int64[4] cut = {0, 0, 2, 4}, int64[3] joined = {0, 0, 8}"
HEADS = """
    q1 = Reshape (q, cut)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k1 = Reshape (k, cut)
    k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v1 = Reshape (v, cut)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
"""
JOINED = """
    h1 = Transpose <perm = [0, 2, 1, 3]> (h)
    y = Reshape (h1, joined)
"""
# torch's dynamo exporter turns K in three axes, whose sizes it computes
TURNED = """
    k1 = Reshape (k, cut)
    k3 = Transpose <perm = [0, 2, 1, 3]> (k1)
    ks = Shape (k3)
    rows = Slice (ks, minus2, minus1)
    lead = Slice (ks, first, minus2)
    flat = Concat <axis = 0> (minus1, rows, four)
    k4 = Reshape (k3, flat)
    k5 = Transpose <perm = [0, 2, 1]> (k4)
    back = Concat <axis = 0> (lead, four, rows)
    k2 = Reshape (k5, back)
"""
TURNING = (
    "int64[1] minus1 = {-1}, int64[1] minus2 = {-2}, int64[1] first = {0}, int64[1] four = {4}"
)

# exporters of 2020 to 2024 fold heads into the batch, and the mask is added before that
FOLDED = """
    qs = Shape (q)
    ks = Shape (k)
    b = Slice (qs, first, second)
    rows = Slice (qs, second, third)
    columns = Slice (ks, second, third)
    bh = Mul (b, two)
    folded = Concat <axis = 0> (bh, minus, four)
    apart = Concat <axis = 0> (b, two, rows, columns)
    together = Concat <axis = 0> (bh, rows, columns)
    out = Concat <axis = 0> (b, two, rows, four)
    q1 = Reshape (q, cut)
    q3 = Transpose <perm = [0, 2, 1, 3]> (q1)
    q2 = Reshape (q3, folded)
    k1 = Reshape (k, cut)
    k3 = Transpose <perm = [0, 2, 1, 3]> (k1)
    k4 = Reshape (k3, folded)
    k2 = Transpose <perm = [0, 2, 1]> (k4)
    v1 = Reshape (v, cut)
    v3 = Transpose <perm = [0, 2, 1, 3]> (v1)
    v2 = Reshape (v3, folded)
"""
UNFOLDED = f"h2 = Reshape (h, out) {JOINED.replace('(h)', '(h2)')}"
FOLDING = (
    "int64[1] minus = {-1}, int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2}, "
    "int64[1] two = {2}, int64[1] four = {4}"
)


@dataclass(frozen=True)
class Form:
    """Attention of two heads of 4 on q, k and v of (batch, length, 8).

    Attributes:
        inputs: besides q, k and v.
        constants: besides those that cut and join heads.
        heads: what makes q2, k2 and v2.
        scores: what makes p of q2 and k2.
        joined: what makes y of h, the product of p and v2.
        outputs: besides y.
        rows: the symbol or number of rows of q.
        columns: of k and v.
        batch: of all.
    """

    inputs: str = ""
    constants: str = "float half = {0.5}, float zero = {0}"
    heads: str = HEADS
    scores: str = "s = MatMul (q2, k2) t = Mul (s, half) p = Softmax <axis = -1> (t)"
    joined: str = JOINED
    outputs: str = ""
    rows: str = "S"
    columns: str = "S"
    batch: str = "B"
    opset: int = 23

    def text(self) -> str:
        """The model as text."""
        inputs = f", {self.inputs}" if self.inputs else ""
        outputs = f", {self.outputs}" if self.outputs else ""
        product = "" if " h = " in self.scores else "h = MatMul (p, v2)"
        many, rows, columns = self.batch, self.rows, self.columns
        return f"""<opset_import: ["" : {self.opset}]>
            g (float[{many}, {rows}, 8] q, float[{many}, {columns}, 8] k,
               float[{many}, {columns}, 8] v{inputs}) => (float[{many}, {rows}, 8] y{outputs})
            <{CUT}, {self.constants}> {{
                {self.heads} {self.scores} {product} {self.joined}
            }}"""

    def model(self) -> onnx.ModelProto:
        """The model."""
        return parse(self.text(), ir_version=11)


LOWEST = "-340282346638528859811704183484516925440.0"
FORMS: dict[str, Form] = {
    "scaled after": Form(),
    "scaled on both sides": Form(
        constants="float root = {0.70710678}",
        scores="""qs = Mul (q2, root) ks2 = Mul (k2, root) s = MatMul (qs, ks2)
            p = Softmax <axis = -1> (s)""",
    ),
    "divided": Form(
        constants="float two = {2}",
        scores="s = MatMul (q2, k2) t = Div (s, two) p = Softmax (t)",
    ),
    "scaled before the heads": Form(
        heads=HEADS.replace("Reshape (q, cut)", "Reshape (qs, cut)").replace(
            "q1 =", "qs = Mul (q, half) q1 ="
        ),
        scores="s = MatMul (q2, k2) p = Softmax <axis = 3> (s)",
    ),
    "cast to the type that it has": Form(
        scores="""s = MatMul (q2, k2) t = Mul (s, half) c = Cast <to = 1> (t) w = Softmax (c)
            p = Cast <to = 1> (w)""",
    ),
    "turned by dynamo": Form(
        constants=f"float half = {{0.5}}, {TURNING}",
        heads=HEADS.replace("k1 = Reshape (k, cut)", "").replace(
            "k2 = Transpose <perm = [0, 2, 3, 1]> (k1)", TURNED
        ),
    ),
    "BERT's mask": Form(
        inputs="int64[B, S] mask",
        constants=f"float half = {{0.5}}, float one = {{1}}, float low = {{{LOWEST}}}, "
        "int64[2] axes = {1, 2}",
        scores="""m1 = Unsqueeze (mask, axes) m2 = Cast <to = 1> (m1) m3 = Sub (one, m2)
            m4 = Mul (m3, low) s = MatMul (q2, k2) t = Mul (s, half) u = Add (t, m4)
            p = Softmax <axis = -1> (u)""",
    ),
    "BERT's mask, multiplied out": Form(
        inputs="int64[B, S] mask",
        constants=f"float half = {{0.5}}, float high = {{{LOWEST[1:]}}}, float low = {{{LOWEST}}}, "
        "int64[2] axes = {1, 2}",
        scores="""m1 = Unsqueeze (mask, axes) m2 = Cast <to = 1> (m1) m3 = Mul (m2, high)
            m4 = Add (m3, low) s = MatMul (q2, k2) t = Mul (s, half) u = Add (t, m4)
            p = Softmax <axis = -1> (u)""",
    ),
    "a mask of -inf by Where": Form(
        inputs="bool[S, S] keep",
        constants="float half = {0.5}, float low = {-inf}",
        scores="""s = MatMul (q2, k2) t = Mul (s, half) u = Where (keep, t, low)
            p = Softmax <axis = -1> (u)""",
    ),
    "a mask of -1e9 by Where": Form(
        inputs="bool[B, 1, 1, S] drop",
        constants="float half = {0.5}, float low = {-1000000000.0}",
        scores="""s = MatMul (q2, k2) t = Mul (s, half) u = Where (drop, low, t)
            p = Softmax <axis = -1> (u)""",
    ),
    "causal, then padding": Form(
        inputs="bool[1, 1, S, S] keep, float[B, 1, 1, S] m",
        constants=f"float half = {{0.5}}, float low = {{{LOWEST}}}",
        scores="""s = MatMul (q2, k2) t = Mul (s, half) t1 = Where (keep, t, low) u = Add (t1, m)
            p = Softmax <axis = -1> (u)""",
    ),
    "a filled mask": Form(
        inputs="bool[S, S] keep",
        constants="float half = {0.5}, float zero = {0}",
        scores=f"""sh = Shape (keep)
            low = ConstantOfShape <value = float[1] {{{LOWEST}}}> (sh)
            m = Where (keep, zero, low) s = MatMul (q2, k2) t = Mul (s, half) u = Add (t, m)
            p = Softmax <axis = -1> (u)""",
    ),
    "rows of NaN become zero": Form(
        inputs="bool[B, 1, S, S] keep",
        constants="float half = {0.5}, float low = {-inf}, float zero = {0}",
        scores="""m = Where (keep, zero, low) s = MatMul (q2, k2) t = Mul (s, half)
            u = Add (t, m) w = Softmax <axis = -1> (u) n = IsNaN (w) p = Where (n, zero, w)""",
    ),
    "the bias of T5": Form(
        inputs="float[1, 2, S, S] bias, float[B, 1, 1, S] m",
        scores="""s = MatMul (q2, k2) b = Add (bias, m) u = Add (s, b)
            p = Softmax <axis = -1> (u)""",
    ),
    "cross attention": Form(columns="T"),
    "heads in the batch": Form(
        constants=f"float half = {{0.5}}, {FOLDING}", heads=FOLDED, joined=UNFOLDED, columns="T"
    ),
    "heads in the batch, apart for the mask": Form(
        inputs="float[B, 1, S, S] m",
        constants=f"float half = {{0.5}}, float low = {{{LOWEST}}}, {FOLDING}",
        heads=FOLDED,
        scores="""s = MatMul (q2, k2) t = Mul (s, half) t4 = Reshape (t, apart) u4 = Add (t4, m)
            w4 = Max (u4, low) w = Reshape (w4, together) p = Softmax <axis = -1> (w)""",
        joined=UNFOLDED,
    ),
    "a soft cap": Form(
        inputs="float[B, 1, S, S] m",
        constants="float half = {0.5}, float cap = {1.5}",
        scores="""s = MatMul (q2, k2) t = Mul (s, half) c = Div (t, cap) d = Tanh (c)
            e = Mul (cap, d) u = Add (e, m) p = Softmax <axis = -1> (u)""",
    ),
    "windows of Swin": Form(
        inputs="float[1, 2, 5, 5] bias, float[3, 5, 5] m",
        constants="float half = {0.5}, int64[5] apart = {-1, 3, 2, 5, 5}, int64[2] axes = {0, 2}, "
        "int64[4] together = {-1, 2, 5, 5}, int64[4] wide = {-1, 5, 2, 4}",
        heads=HEADS.replace(", cut)", ", wide)"),
        scores="""s = MatMul (q2, k2) t = Mul (s, half) u = Add (t, bias) u1 = Reshape (u, apart)
            m1 = Unsqueeze (m, axes) u2 = Add (u1, m1) u3 = Reshape (u2, together)
            p = Softmax <axis = -1> (u3)""",
        batch="W",
        rows="5",
        columns="5",
    ),
}
"""By name: forms that become one Attention of (batch, length, heads·width)."""

CACHE = Form(
    inputs="float[B, 2, P, 4] past_k, float[B, 2, P, 4] past_v, float[B, 1, S, T] m",
    heads=HEADS.replace("k2 = Transpose <perm = [0, 2, 3, 1]> (k1)", "").replace("v2 =", "v3 =")
    + """k3 = Transpose <perm = [0, 2, 1, 3]> (k1)
        present_k = Concat <axis = 2> (past_k, k3)
        present_v = Concat <axis = -2> (past_v, v3)
        k2 = Transpose <perm = [0, 1, 3, 2]> (present_k)
        """,
    scores="""s = MatMul (q2, k2) t = Mul (s, half) u = Add (t, m) p = Softmax (u)
        h = MatMul (p, present_v)""",
    outputs="float[B, 2, T, 4] present_k, float[B, 2, T, 4] present_v",
)


def operators(model: onnx.ModelProto) -> list[str]:
    """The operators of the main graph, in order."""
    return [node.op_type for node in model.graph.node]


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, sizes: dict[str, int], seed: int = 0
) -> None:
    """Outputs agree up to rounding, NaN included, on random inputs of these sizes."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in before.graph.input:
        dims = info.type.tensor_type.shape.dim
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        if dtype.kind == "f":
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[info.name] = rng.integers(0, 2, shape).astype(dtype)
    for old, new in zip(run(before, feeds), run(after, feeds), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
