"""Fuse spelled-out activations and normalizations into the operators that name them.

Rewrite:
    ```
    <opset_import: ["" : 13]>
    before (float[2, 8] x) => (float[2, 8] y)
        <float three = {3}, float zero = {0}, float six = {6}> {
        a = Add (x, three)
        b = Clip (a, zero, six)
        c = Mul (x, b)
        y = Div (c, six)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 13]>
    after (float[2, 8] x) => (float[2, 8] y) {
        b = HardSigmoid <alpha = 0.1666666716337204, beta = 0.5> (x)
        y = Mul (x, b)
    }
    ```

Why it is correct:
    Each rule below states an identity; σ is the logistic function, [.]ₗʰ clamps to a range. A run
    of scalar Mul, Add, Sub, Div and Neg is read as one map a·x + b, a run of Clip, Relu, Max and
    Min as one range, so all spellings of an exporter are matched:

        a₂·[a₁x + b₁]ₗʰ + b₂ = hardsigmoid(x)        when the ends l, h go to 0 and 1
        ½·tanh(u) + ½ = σ(2u),  1/(1 + e⁻ˣ) = σ(x)
        ½x·(1 + erf(x/√2)) = gelu(x),  ½x·(1 + tanh(k(x + c·x³))) = gelu(x) by tanh
        log(1 + eˣ) = softplus(x),  x·tanh(softplus(x)) = mish(x)
        relu(x) − a·relu(−x) = prelu(x, a)
        e^(x − max) / Σ e^(x − max) = softmax(x)
        (x − mean)·g + β = x·g + (β − mean·g) = layernorm(x) with g = γ / √(var + ε)
        x / √(mean(x²) + ε)·γ = rmsnorm(x)
        √Σx² = ‖x‖₂

    Where the opset has no operator for a Gelu, layernorm or rmsnorm, it is written in the nodes
    that onnxruntime recognises and computes in one kernel (`analysis/compound_operators.py`): with
    1/√2 as a factor, a square by Mul, or a reciprocal, it does not. So exports by torch's dynamo,
    in which it finds no Gelu, get as many kernels of it as those by TorchScript.

Declines when:
    1. A tensor inside the matched nodes is used elsewhere.
    2. The operator does not exist in the model's opset, or onnxruntime has no kernel for it and
       the model's element type, so that it would run more operators than before. For this reason
       x·σ(αx) does not become Swish (opset 24), which takes onnxruntime 1.32 1.4 to 2 times as long
       as the QuickGelu that it makes of the two or three nodes.
    3. The result would have neither fewer nodes, nor fewer kernels in onnxruntime.

Fidelity:
    CLOSE. Softmax, softplus and σ avoid overflows that the spelled-out forms have.

Reference:
    Hendrycks and Gimpel 2016, arXiv:1606.08415 (GELU); Howard et al. 2019, arXiv:1905.02244,
    section 5.2 (hard swish); Misra 2019, arXiv:1908.08681 (Mish); He et al. 2015,
    arXiv:1502.01852 (PReLU); Ba et al. 2016, arXiv:1607.06450 (layer normalization); Zhang and
    Sennrich 2019, arXiv:1910.07467 (RMS normalization).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, prod, sqrt
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import cast, min_rank, rank_of
from onnxslim.analysis.compound_operators import (
    SINCE,
    TANH_CUBE,
    TANH_SCALE,
    compounds,
    kept_nodes,
    reduced_axis,
)
from onnxslim.analysis.patterns import (
    Affine,
    Clamp,
    Either,
    Match,
    Number,
    Op,
    Pattern,
    Poly,
    Result,
    Scaled,
    Var,
    Vector,
    nearly,
)
from onnxslim.graph.dims import known_dim
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, const_array, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.formulas import Expr, Formula, dtype_of
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_REAL: Final = frozenset({"float32", "float64"})
_ALL: Final = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class FuseActivations(RewritePass):
    """Fuse spelled-out activations and normalizations into the operators that name them."""

    name: ClassVar[str] = "fuse-activations"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Apply the rules below, each where its operator exists."""
        rw = self.rewriter(graph)
        rw.keep(kept_nodes(item for item in compounds(rw) if item.is_mixed))
        present = _CREATED.union(node.op for part in rw.graphs() for node in part.nodes)
        by_head: dict[str, list[Formula]] = {}
        for rule in _RULES:
            if rw.opset >= rule.since and rule.pattern.needs() <= present:
                for head in rule.pattern.heads():
                    by_head.setdefault(head, []).append(rule)
        for node in rw.walk(*by_head):
            any(rule.apply(rw, node) for rule in by_head[node.op])
        return rw.result()


# ------------------------------------------------------------------------------ ranges


def _mapped(scale: float, shift: float, tensor: gs.Tensor | Expr) -> gs.Tensor | Expr:
    """scale·tensor + shift, in as few nodes as it takes."""
    result = tensor
    if not nearly(scale, 1.0):
        result = Expr("Mul", (result, float(scale)))
    if abs(shift) > 1e-9:
        result = Expr("Add", (result, float(shift)))
    return result


def _hard_sigmoid_attrs(match: Match, gain: float) -> dict[str, float] | None:
    """Alpha and beta, when `gain · (outer of clip of inner)` runs from 0 to 1."""
    (a, b), (low, high), (c, d) = (match.numbers[name] for name in ("outer", "clip", "inner"))
    a, b = gain * a, gain * b
    if not (isfinite(low) and isfinite(high)):
        return None
    ends = sorted((a * low + b, a * high + b))
    if not (abs(ends[0]) < 1e-6 and nearly(ends[1], 1.0)):
        return None
    return {"alpha": float(np.float32(a * c)), "beta": float(np.float32(a * d + b))}


def _hard_sigmoid(rw: Rewriter, match: Match) -> Expr | None:
    attrs = _hard_sigmoid_attrs(match, 1.0)
    return None if attrs is None else Expr("HardSigmoid", (match.tensors["x"],), attrs)


def _gain(match: Match) -> float:
    """The factor of a gated product: that of the product times that of its gated operand."""
    return match.numbers["all"][0] * match.numbers["gated"][0]


def _hard_gate(rw: Rewriter, match: Match) -> Expr | None:
    attrs = _hard_sigmoid_attrs(match, _gain(match))
    if attrs is None:
        return None
    x, z = match.tensors["x"], match.tensors["z"]
    if x is z and rw.opset >= _HARD_SWISH and _is_hard_swish(attrs):
        return Expr("HardSwish", (x,))
    return Expr("Mul", (z, Expr("HardSigmoid", (x,), attrs)))


def _wider_hard_sigmoid(rw: Rewriter, match: Match) -> Expr | None:
    scale, shift = match.numbers["inner"]
    attrs = match.ops["hard"].attrs
    alpha, beta = attrs.get("alpha", 0.2), attrs.get("beta", 0.5)
    new = {"alpha": float(alpha * scale), "beta": float(alpha * shift + beta)}
    return Expr("HardSigmoid", (match.tensors["x"],), new)


_HARD_SWISH: Final = 14


def _is_hard_swish(attrs: dict[str, Any]) -> bool:
    return nearly(attrs.get("alpha", 0.2), 1 / 6) and nearly(attrs.get("beta", 0.5), 0.5)


def _hard_swish(rw: Rewriter, match: Match) -> Expr | None:
    if not _is_hard_swish(match.ops["hard"].attrs):
        return None
    return Expr("HardSwish", (match.tensors["x"],))


def _one_clip(rw: Rewriter, match: Match) -> Expr | None:
    low, high = match.numbers["range"]
    x = match.tensors["x"]
    if low == 0 and high == inf:
        return Expr("Relu", (x,))
    if rw.opset < 11:
        bounds = {"min": low, "max": high}
        return Expr("Clip", (x,), {k: v for k, v in bounds.items() if isfinite(v)})
    if not isfinite(low) and not isfinite(high):
        return Expr("Identity", (x,))
    ends = [float(bound) if isfinite(bound) else None for bound in (low, high)]
    return Expr("Clip", (x, *ends) if isfinite(high) else (x, ends[0]))


def _leaky_relu(rw: Rewriter, match: Match) -> Expr | None:
    scale, shift = match.numbers["slope"]
    if shift or not 0 < scale < 1:
        return None
    return Expr("LeakyRelu", (match.tensors["x"],), {"alpha": float(np.float32(scale))})


def _prelu(sign: float) -> Callable[[Rewriter, Match], Expr | None]:
    """relu(x) + sign·a·relu(-x) has the slope -sign·a below zero."""

    def build(rw: Rewriter, match: Match) -> Expr | None:
        x, slope = match.tensors["x"], const_array(match.tensors["a"])
        ndim = rank_of(x)
        if slope is None or ndim is None or slope.ndim > ndim:
            return None
        if match.numbers["minus"] != (-1.0, 0.0):
            return None
        sizes = [known_dim(x, axis - slope.ndim) for axis in range(slope.ndim)]
        if any(size not in (1, known) for size, known in zip(slope.shape, sizes, strict=True)):
            return None
        return Expr("PRelu", (x, slope * np.asarray(-sign, slope.dtype)))

    return build


# ------------------------------------------------------------------------------ exponentials


def _sigmoid_of_tanh(rw: Rewriter, match: Match) -> Expr | None:
    (a, b), (c, d) = match.numbers["outer"], match.numbers["inner"]
    if not (nearly(a, 0.5) and nearly(b, 0.5)):
        return None
    return Expr("Sigmoid", (_mapped(2 * c, 2 * d, match.tensors["x"]),))


def _tanh_gate(rw: Rewriter, match: Match) -> Expr | None:
    """g·z·(a·tanh(u) + a) with g·a = ½ is z·σ(2u)."""
    (a, b), (c, d) = match.numbers["outer"], match.numbers["inner"]
    total = _gain(match)
    if not (nearly(total * a, 0.5) and nearly(total * b, 0.5)):
        return None
    sigmoid = Expr("Sigmoid", (_mapped(2 * c, 2 * d, match.tensors["x"]),))
    return Expr("Mul", (match.tensors["z"], sigmoid))


_GELU: Final = SINCE["Gelu"]


def _gelu_by_tanh(rw: Rewriter, match: Match) -> Expr | None:
    """Replace ½·x·(1 + tanh(p(x))), p an odd cubic."""
    a, b = match.numbers["outer"]
    total = _gain(match)
    if not (nearly(total * a, 0.5) and nearly(total * b, 0.5)):
        return None
    return _cubic_gate(rw, match.tensors["x"], match.numbers["cubic"])


def _gelu_by_sigmoid(rw: Rewriter, match: Match) -> Expr | None:
    """Replace x·σ(2·p(x)), p an odd cubic: the form above after its tanh became a σ."""
    halved = tuple(c / 2 for c in match.numbers["cubic"])
    return _cubic_gate(rw, match.tensors["x"], halved)


def _cubic_gate(rw: Rewriter, x: gs.Tensor, cubic: tuple[float, ...]) -> Expr | None:
    """Gelu by tanh, or x·σ(x·(2k + 2kc·x²)) for other numbers k and c."""
    if len(cubic) != 4 or cubic[0] or cubic[2]:
        return None
    wanted = (0.0, TANH_SCALE, 0.0, TANH_SCALE * TANH_CUBE)
    if all(abs(c - w) <= 1e-5 for c, w in zip(cubic, wanted, strict=True)):
        return _tanh_gelu(rw, x)
    factor = _mapped(2 * cubic[3], 2 * cubic[1], Expr("Mul", (x, x)))
    return Expr("Mul", (x, Expr("Sigmoid", (Expr("Mul", (x, factor)),))))


def _tanh_gelu(rw: Rewriter, x: gs.Tensor) -> Expr:
    if rw.opset >= _GELU:
        return Expr("Gelu", (x,), {"approximate": "tanh"})
    cube = Expr("Mul", (Expr("Pow", (x, 3.0)), TANH_CUBE))
    bent = Expr("Tanh", (Expr("Mul", (Expr("Add", (x, cube)), TANH_SCALE)),))
    gate = Expr("Add", (bent, 1.0))
    return Expr("Mul", (Expr("Mul", (x, 0.5)), gate), is_fused=True)


def _gelu(rw: Rewriter, match: Match) -> Expr | None:
    (a, b), (c, d) = match.numbers["outer"], match.numbers["inner"]
    total = _gain(match)
    if d or not nearly(c, sqrt(0.5)):
        return None
    if not (nearly(total * a, 0.5) and nearly(total * b, 0.5)):
        return None
    x = match.tensors["x"]
    if rw.opset >= _GELU:
        return Expr("Gelu", (x,))
    gate = Expr("Add", (Expr("Erf", (Expr("Div", (x, sqrt(2))),)), 1.0))
    return Expr("Mul", (Expr("Mul", (x, gate)), 0.5), is_fused=True)


def _sigmoid(rw: Rewriter, match: Match) -> Expr | None:
    """1 / (1 + e^(c·x + d)) = σ(-c·x - d), times z if there is one."""
    (a, b), (c, d) = match.numbers["outer"], match.numbers["inner"]
    if not (nearly(a, 1.0) and nearly(b, 1.0)):
        return None
    sigmoid = Expr("Sigmoid", (_mapped(-c, -d, match.tensors["x"]),))
    return Expr("Mul", (match.tensors["z"], sigmoid)) if "z" in match.tensors else sigmoid


def _softplus(rw: Rewriter, match: Match) -> Expr | None:
    a, b = match.numbers["outer"]
    return Expr("Softplus", (match.tensors["x"],)) if nearly(a, 1.0) and nearly(b, 1.0) else None


def _mish(rw: Rewriter, match: Match) -> Expr | None:
    return Expr("Mish", (match.tensors["x"],))


def _softmax(rw: Rewriter, match: Match) -> Expr | None:
    x = match.tensors["x"]
    axis = reduced_axis(rw, match.ops["sum"], x)
    if axis is None or ("max" in match.ops and reduced_axis(rw, match.ops["max"], x) != axis):
        return None
    if axis != -1 and rw.opset < 13:  # there, all axes from that one on are normalized together
        return None
    ndim = rank_of(x)
    if rw.opset < 11 and ndim is None:  # there, an axis cannot be negative
        return None
    return Expr("Softmax", (x,), {"axis": axis if rw.opset >= 11 or ndim is None else ndim - 1})


# ------------------------------------------------------------------------------ reductions


_LAYER_NORM: Final = SINCE["LayerNormalization"]
_RMS_NORM: Final = SINCE["RMSNormalization"]


def _layer_norm(rw: Rewriter, match: Match) -> Expr | None:
    """LayerNormalization from the opset that has it; before, in the nodes of which one is made."""
    found = _normalized_over(rw, match)
    if found is None:
        return None
    x, scale, bias = found
    epsilon = match.numbers["eps"][0]
    if rw.opset >= _LAYER_NORM:
        inputs = (x, scale) if bias is None else (x, scale, bias)
        return Expr("LayerNormalization", inputs, _norm_attrs(epsilon))
    if bias is None:
        return None
    centred = Expr("Sub", (x, _mean_of(rw, x, match.ops["mean"])))
    spread = _spread(rw, centred, epsilon, match.ops["square"])
    scaled = Expr("Mul", (Expr("Div", (centred, spread)), scale))
    return Expr("Add", (scaled, bias), is_fused=True)


def _rms_norm(rw: Rewriter, match: Match) -> Expr | None:
    """RMSNormalization from the opset that has it; before, in the nodes of which one is made."""
    found = _normalized_over(rw, match)
    if found is None:
        return None
    x, scale, _ = found
    epsilon = match.numbers["eps"][0]
    if rw.opset >= _RMS_NORM:
        return Expr("RMSNormalization", (x, scale), _norm_attrs(epsilon))
    if "scale" not in match.tensors:
        return None
    spread = _spread(rw, x, epsilon, match.ops["square"])
    return Expr("Mul", (Expr("Div", (x, spread)), scale), is_fused=True)


def _norm_attrs(epsilon: float) -> dict[str, Any]:
    return {"axis": -1, "epsilon": float(np.float32(epsilon))}


def _normalized_over(
    rw: Rewriter, match: Match
) -> tuple[gs.Tensor, np.ndarray, np.ndarray | None] | None:
    """x, scale and bias of a normalization over the last axis; ones for a scale left out."""
    x, dtype = match.tensors["x"], dtype_of(match)
    means = [node for name, node in match.ops.items() if name in ("mean", "square")]
    size = known_dim(x, -1)
    if size is None or dtype is None or any(reduced_axis(rw, node, x) != -1 for node in means):
        return None
    vectors = {"scale": np.ones(size, dtype)}
    for name in ("scale", "bias"):
        if name in match.tensors:
            values = _along_last(match.tensors[name], x, size)
            if values is None or values.dtype != dtype:
                return None
            vectors[name] = values
    return x, vectors["scale"], vectors.get("bias")


def _along_last(vector: gs.Tensor, x: gs.Tensor, size: int) -> np.ndarray | None:
    """A constant that varies at most along the last axis, `size` long, of x."""
    values = const_array(vector)
    if values is None or values.ndim > max(1, min_rank(x)):
        return None
    if values.size != 1 and not values.shape[-1] == values.size == size:
        return None
    return np.array(np.broadcast_to(values.reshape(-1), (size,)))


def _mean_of(rw: Rewriter, x: gs.Tensor | Expr, mean: Node) -> Expr:
    axes = axes_of(mean, rw.opset)
    assert axes is not None
    return _reduce(rw, "ReduceMean", x, axes, mean)


def _spread(rw: Rewriter, x: gs.Tensor | Expr, epsilon: float, mean: Node) -> Expr:
    """√(mean(x²) + ε), with the axes of `mean`."""
    square = _mean_of(rw, Expr("Pow", (x, 2.0)), mean)
    return Expr("Sqrt", (Expr("Add", (square, epsilon)),))


def _scaled_norm(rw: Rewriter, match: Match) -> Expr | None:
    """A Mul behind a normalization that has no bias goes into its scale."""
    pair = _norm_vectors(match)
    if pair is None:
        return None
    values = cast(pair[0].astype(np.float64) * pair[1].astype(np.float64), pair[0].dtype)
    norm = match.ops["norm"]
    return None if values is None else Expr(norm.op, (match.tensors["x"], values), norm.attrs)


def _shifted_norm(rw: Rewriter, match: Match) -> Expr | None:
    """An Add behind a LayerNormalization without bias becomes its bias."""
    pair = _norm_vectors(match)
    if pair is None:
        return None
    inputs = (match.tensors["x"], match.tensors["scale"], pair[1])
    return Expr("LayerNormalization", inputs, match.ops["norm"].attrs)


def _norm_vectors(match: Match) -> tuple[np.ndarray, np.ndarray] | None:
    """The scale of a normalization without bias, and the vector behind it, as long."""
    scale = const_array(match.tensors["scale"])
    given = sum(1 for tensor in match.ops["norm"].inputs if tensor.name)
    if given != 2 or scale is None or scale.ndim != 1:
        return None
    new = _along_last(match.tensors["new"], match.tensors["x"], scale.size)
    return None if new is None else (scale, new)


def _reduction(op: str) -> Callable[[Rewriter, Match], Expr | None]:
    """The same reduction by another operator."""

    def build(rw: Rewriter, match: Match) -> Expr | None:
        node = match.ops["sum"]
        axes = axes_of(node, rw.opset)
        if not axes:  # of all axes, or not known
            return None
        return _reduce(rw, op, match.tensors["x"], axes, node)

    return build


def _reduce(rw: Rewriter, op: str, x: gs.Tensor | Expr, axes: tuple[int, ...], node: Node) -> Expr:
    """The reduction `op` over `axes`, with the keepdims of `node`."""
    keepdims = {"keepdims": int(node.attrs.get("keepdims", 1))}
    if rw.opset < 18:
        return Expr(op, (x,), {"axes": list(axes), **keepdims})
    return Expr(op, (x, np.array(axes, np.int64)), keepdims)


def _reduce_mean(rw: Rewriter, match: Match) -> Expr | None:
    """Σx / n over axes of n elements."""
    x, node = match.tensors["x"], match.ops["sum"]
    axes = axes_of(node, rw.opset)
    places = normalized(axes, rank_of(x))
    scale, shift = match.numbers["outer"]
    if not axes or places is None or shift:
        return None
    sizes = [known_dim(x, axis) for axis in places]
    known = [size for size in sizes if size]
    if len(known) < len(sizes) or not nearly(scale * prod(known), 1.0):
        return None
    return _reduce(rw, "ReduceMean", x, axes, node)


# ------------------------------------------------------------------------------ the rules

_X: Final = Var("x")
_TWO: Final = Number("two", 2.0)
_GATED: Final = Scaled("gated", Var("z"))
_CLIPPED: Final = Affine("outer", Clamp("clip", Affine("inner", _X)))
_HARD_SIGMOID: Final = Op("HardSigmoid", _X, bind="hard")
_TANH: Final = Affine("outer", Op("Tanh", Affine("inner", _X)))
_ERF: Final = Affine("outer", Op("Erf", Affine("inner", _X)))
_SPELLED_GELU: Final = Scaled("all", Op("Mul", _ERF, Scaled("gated", _X)))
_CUBIC_TANH: Final = Affine("outer", Op("Tanh", Poly("cubic", "x")))
_ONE_PLUS_EXP: Final = Affine("outer", Op("Exp", Affine("inner", _X)))
_BELOW_ZERO: Final = Op("Mul", Op("Relu", Affine("minus", _X)), Vector("a"))
_MAX: Final = Op("ReduceMax", _X, bind="max")
_EXP: Final = Op("Exp", Either(Op("Sub", _X, _MAX), _X), bind="exp")
_SQUARE: Final = Either(Op("Mul", _X, _X), Op("Pow", _X, _TWO))
_CENTRED: Final = Op("Sub", _X, Op("ReduceMean", _X, bind="mean"), bind="centred")
_AGAIN: Final = Either(Result("centred"), Op("Sub", _X, Result("mean")))


def _inverse(deviation: Pattern) -> tuple[Pattern, Pattern]:
    """√(mean(deviation²) + ε), and one divided by it."""
    square = Either(Op("Mul", deviation, deviation), Op("Pow", deviation, _TWO))
    root = Op("Sqrt", Op("Add", Op("ReduceMean", square, bind="square"), Number("eps")))
    return root, Either(Op("Reciprocal", root), Op("Div", Number("one", 1.0), root))


def _normalized(x: Pattern, deviation: Pattern) -> tuple[Pattern, Pattern]:
    """x/√(mean(deviation²) + ε), and that times γ, however divided."""
    root, inverse = _inverse(deviation)
    plain = Either(Op("Div", x, root), Op("Mul", x, inverse))
    scale = Vector("scale")
    return plain, Either(Op("Mul", plain, scale), Op("Mul", x, Op("Mul", inverse, scale)))


_LAYER_NORMS: Final = _normalized(_CENTRED, _AGAIN)
_RMS_NORMS: Final = _normalized(_X, _X)
_SHIFTED: Final = Op("Add", _LAYER_NORMS[1], Vector("bias"))
# TensorFlow's: x·g + (β − mean·g) with g = γ/√(var + ε)
_GAIN: Final = Op("Mul", _inverse(Either(_AGAIN, _CENTRED))[1], Vector("scale"), bind="gain")
_OFFSET: Final = Op("Sub", Vector("bias"), Op("Mul", Result("mean"), Result("gain")))
_BY_GAIN: Final = Op("Add", Op("Mul", _X, _GAIN), _OFFSET)
_NORM: Final = Op("LayerNormalization", _X, Vector("scale"), bind="norm")
_ANY_NORM: Final = Either(_NORM, Op("RMSNormalization", _X, Vector("scale"), bind="norm"))
_MISH: Final = 18

# operators that rules below create and other rules match
_CREATED: Final = frozenset(
    {"HardSigmoid", "LayerNormalization", "Mul", "RMSNormalization", "ReduceSumSquare", "Relu"}
    | {"Sigmoid", "Softplus"}
)
_RULES: Final = (
    Formula("a hard gate", Scaled("all", Op("Mul", _CLIPPED, _GATED)), _hard_gate),
    Formula("HardSigmoid", _CLIPPED, _hard_sigmoid),
    Formula(
        "HardSigmoid", Op("HardSigmoid", Affine("inner", _X), bind="hard"), _wider_hard_sigmoid
    ),
    Formula("HardSwish", Op("Mul", _X, _HARD_SIGMOID), _hard_swish, _HARD_SWISH),
    Formula("one range", Clamp("range", _X), _one_clip, types=_ALL),
    Formula("LeakyRelu", Op("Max", _X, Affine("slope", _X)), _leaky_relu),
    Formula("PRelu", Op("Sub", Op("Relu", _X), _BELOW_ZERO), _prelu(-1.0), 9),
    Formula("PRelu", Op("Add", Op("Relu", _X), _BELOW_ZERO), _prelu(1.0), 9),
    Formula("Gelu", _SPELLED_GELU, _gelu),
    Formula("Gelu", Scaled("all", Op("Mul", Scaled("gated", _X), _CUBIC_TANH)), _gelu_by_tanh),
    Formula("Gelu", Op("Mul", _X, Op("Sigmoid", Poly("cubic", "x"))), _gelu_by_sigmoid),
    Formula("a Sigmoid gate", Scaled("all", Op("Mul", _TANH, _GATED)), _tanh_gate),
    Formula("Sigmoid", _TANH, _sigmoid_of_tanh),
    Formula("Sigmoid", Op("Div", Number("one", 1.0), _ONE_PLUS_EXP), _sigmoid),
    Formula("Sigmoid", Op("Reciprocal", _ONE_PLUS_EXP), _sigmoid),
    Formula("a Sigmoid gate", Op("Div", Var("z"), _ONE_PLUS_EXP), _sigmoid),
    Formula("Softplus", Op("Log", Affine("outer", Op("Exp", _X))), _softplus),
    Formula("Mish", Op("Mul", _X, Op("Tanh", Op("Softplus", _X))), _mish, _MISH),
    Formula("Softmax", Op("Div", _EXP, Op("ReduceSum", Result("exp"), bind="sum")), _softmax),
    Formula("LayerNormalization", _LAYER_NORMS[0], _layer_norm, _LAYER_NORM, _REAL),
    Formula("LayerNormalization", _LAYER_NORMS[1], _layer_norm, _LAYER_NORM, _REAL),
    Formula("LayerNormalization", _SHIFTED, _layer_norm),
    Formula("LayerNormalization", _BY_GAIN, _layer_norm),
    Formula("RMSNormalization", _RMS_NORMS[0], _rms_norm, _RMS_NORM, _REAL),
    Formula("RMSNormalization", _RMS_NORMS[1], _rms_norm),
    Formula("its scale", Op("Mul", _ANY_NORM, Vector("new")), _scaled_norm, _LAYER_NORM, _ALL),
    Formula("its bias", Op("Add", _NORM, Vector("new")), _shifted_norm, _LAYER_NORM, _ALL),
    Formula("ReduceL2", Op("Sqrt", Op("ReduceSum", _SQUARE, bind="sum")), _reduction("ReduceL2")),
    Formula("ReduceL2", Op("Sqrt", Op("ReduceSumSquare", _X, bind="sum")), _reduction("ReduceL2")),
    Formula("ReduceSumSquare", Op("ReduceSum", _SQUARE, bind="sum"), _reduction("ReduceSumSquare")),
    Formula("ReduceMean", Affine("outer", Op("ReduceSum", _X, bind="sum")), _reduce_mean),
)
