"""Fuse scales and shifts along channels into the linear layers around them.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y)
        <float[2, 2, 2, 2] w = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8},
         float[2, 1, 1] a = {2, 3}, float[2, 1, 1] b = {5, 6}> {
        c = Conv (x, w)
        d = Mul (c, a)
        y = Add (d, b)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y)
        <float[2, 2, 2, 2] w = {2, 4, 6, 8, 10, 12, 14, 16, 3, 6, 9, 12, 15, 18, 21, 24},
         float[2] b = {5, 6}> {
        y = Conv (x, w, b)
    }
    ```

Why it is correct:
    BatchNormalization (inference), Mul, Add, Sub, Div and Neg with constants along one axis are all
    y = a·x + b, with a_c = γ_c/√(σ²_c + ε), b_c = β_c − a_c·μ_c for BatchNormalization. A run of
    them is one such map. For a layer y = W x + B:

        after the layer     a·(W x + B) + b = (a W) x + (a B + b)
        before the layer    W (a·x + b) + B = (W a) x + (B + W b)

    The first holds wherever the layer stands behind operators that the map commutes with: MaxPool
    (a > 0), AveragePool, Relu (a > 0, b = 0), Concat, Transpose and others. The second needs every
    output to see the same kernel of b: no zero padding. A padded Conv takes the scale alone, since
    a·x + b = a·(x + b/a). Maps that no layer takes are merged: a run with a BatchNormalization
    into one BatchNormalization, other runs into at most one Mul and one Add.

Declines when:
    1. The tensor between the layer and the map is used elsewhere, or is a graph output.
    2. The weight is used by several nodes: each would need a copy of its own.
    3. The bias of the layer is computed at run time.
    4. A zero-padded Conv (or a ConvTranspose larger than 1×1) would have to take a shift before it.
    5. A weight or bias would overflow, or all its elements would lose digits to underflow.
    6. The map is part of an operator that onnxruntime recognises by its nodes and computes in one
       kernel: a spelled Gelu, LayerNormalization or RMSNormalization
       (`analysis/compound_operators.py`). Without γ or the factor ½ it would run node by node.

Fidelity:
    CLOSE. Products are taken in float64 and rounded once to the type of the weight. Removing a
    multiplication by one is EXACT.

Reference:
    Folding BatchNormalization is folklore; the algebra is above. Jacob et al. 2018,
    arXiv:1712.05877, section 3.2, for the case of a Conv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.absorption import LinearLayer, absorb_after, absorb_before, linear_layer
from onnxslim.analysis.affine import (
    AFFINE_OPS,
    AffineMap,
    cast,
    is_float,
    min_rank,
    rank_of,
    read_affine,
)
from onnxslim.analysis.compound_operators import compounds, kept_nodes
from onnxslim.graph.dims import known_dim
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import axes_of, const_array, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class FuseAffine(RewritePass):
    """Fuse scales and shifts along channels into the linear layers around them."""

    name: ClassVar[str] = "fuse-affine"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Let layers take every run of affine maps; merge the runs that no layer takes."""
        rw = self.rewriter(graph)
        rw.keep(kept_nodes(compounds(rw)))  # declines 6
        with np.errstate(all="ignore"):  # `cast` refuses values that are not finite
            for node in rw.walk(*AFFINE_OPS):
                for chain in _chains_to(rw, node):
                    any(step(rw, chain) for step in _STEPS)
        return rw.result()


@dataclass(frozen=True)
class _Chain:
    """A run of affine nodes, first to last, with no other users inside: y = mapping(source)."""

    source: gs.Tensor
    mapping: AffineMap
    nodes: tuple[Node, ...]

    @property
    def last(self) -> Node:
        return self.nodes[-1]

    @property
    def result(self) -> gs.Tensor:
        return self.last.outputs[0]

    @property
    def words(self) -> str:
        return ", ".join(node.op for node in self.nodes)


@dataclass(frozen=True)
class _Edit:
    """New inputs for a node; arrays become constants when the edit is made."""

    node: Node
    inputs: tuple[gs.Tensor | np.ndarray, ...]
    what: str
    op: str | None = None
    attrs: dict[str, Any] | None = None

    def apply(self, rw: Rewriter) -> None:
        names = _INPUT_NAMES.get(self.op or "", ("weight", "weight", "bias"))
        inputs = [
            rw.constant(item, f"{node_label(self.node)}_{names[index]}")
            if isinstance(item, np.ndarray)
            else item
            for index, item in enumerate(self.inputs)
        ]
        rw.update(
            self.node,
            self.what,
            op=self.op,
            inputs=inputs,
            attrs=self.attrs,
            fidelity=Fidelity.CLOSE,
        )


_INPUT_NAMES: Final = {
    "BatchNormalization": ("", "scale", "bias"),
    "Add": ("", "shift"),
    "Mul": ("", "scale"),
}


# ------------------------------------------------------------------------------ runs of maps


def _chains_to(rw: Rewriter, node: Node) -> Iterator[_Chain]:
    """The run of maps that ends in `node`; then, while no step changed it, the run before it."""
    current: Node | None = node
    if _continues(rw, node):
        return
    while current is not None and rw.is_alive(current):
        chain = _run_to(rw, current)
        if chain is None:
            return
        yield chain
        current = _free_producer(rw, chain.source)


def _run_to(rw: Rewriter, node: Node) -> _Chain | None:
    read = read_affine(node, rw.opset)
    if read is None:
        return None
    source, mapping = read
    nodes = [node]
    while is_float(mapping.dtype):
        earlier = _joined(rw, source, mapping)
        if earlier is None:
            break
        maker, source, mapping = earlier
        nodes.append(maker)
    return _Chain(source, mapping, tuple(reversed(nodes)))


def _joined(
    rw: Rewriter, tensor: gs.Tensor, later: AffineMap
) -> tuple[Node, gs.Tensor, AffineMap] | None:
    """The private affine producer of `tensor`, its source, and its map followed by `later`."""
    maker = _free_producer(rw, tensor)
    read = None if maker is None else read_affine(maker, rw.opset)
    if maker is None or read is None:
        return None
    source, mapping = read
    both = mapping.then(later, rank_of(source))
    return None if both is None else (maker, source, both)


def _free_producer(rw: Rewriter, tensor: gs.Tensor) -> Node | None:
    """The private affine producer of `tensor`, if it may be changed."""
    maker = rw.private_producer(tensor, *AFFINE_OPS)
    return None if maker is None or rw.is_kept(maker) else maker


def _continues(rw: Rewriter, node: Node) -> bool:
    """Whether the only user of `node` is a map that continues its run."""
    result = node.outputs[0]
    if len(result.outputs) != 1 or result.outputs[0].op not in AFFINE_OPS:
        return False
    if rw.is_kept(result.outputs[0]):
        return False
    read = read_affine(result.outputs[0], rw.opset)
    if read is None or read[0] is not result or not is_float(read[1].dtype):
        return False
    return _joined(rw, result, read[1]) is not None


# ------------------------------------------------------------------------------ rewrites of a run


def _drop_identity(rw: Rewriter, chain: _Chain) -> bool:
    """Replace ``x * 1`` and ``x + 0`` with ``x``."""
    mapping = chain.mapping
    if mapping.scales or mapping.shifts or not _keeps_shape(chain.source, mapping):
        return False
    is_exact = not is_float(mapping.dtype) or all(n.op in ("Mul", "Div") for n in chain.nodes)
    fidelity = Fidelity.EXACT if is_exact else Fidelity.CLOSE
    return rw.substitute(chain.last, chain.source, f"{chain.words} changes nothing", fidelity)


def _keeps_shape(tensor: gs.Tensor, mapping: AffineMap) -> bool:
    """Whether the map broadcasts `tensor` to nothing larger."""
    if min_rank(tensor) < mapping.ndim:
        return False
    if mapping.axis is None or mapping.channels == 1:
        return True
    return known_dim(tensor, mapping.axis) == mapping.channels


def _into_producer(rw: Rewriter, chain: _Chain) -> bool:
    """Replace ``a * Layer(x) + b`` with ``Layer'(x)``."""
    mapping = chain.mapping
    if not is_float(mapping.dtype):
        return False
    if mapping.axis is None and not _keeps_shape(chain.source, mapping):
        return False
    plan = _plan(rw, chain.source, chain.mapping)
    if isinstance(plan, str):
        rw.skip(chain.last, plan)
        return False
    if not plan or not rw.can_substitute(chain.last, chain.source):
        return False
    for edit in plan:
        edit.apply(rw)
    taker = node_label(plan[-1].node)
    rw.substitute(chain.last, chain.source, f"{chain.words} went into `{taker}`", Fidelity.CLOSE)
    return True


def _into_matmul(rw: Rewriter, chain: _Chain) -> bool:
    """Replace ``a * MatMul(x, W) + b`` with ``Add(MatMul(x, W'), b)``."""
    layer = linear_layer(rw.private_producer(chain.source, "MatMul"))
    simpler = len(chain.nodes) > 1 or chain.last.op == "BatchNormalization"
    if layer is None or not simpler or not is_float(chain.mapping.dtype):
        return False
    vectors = chain.mapping.along(layer.out_axis, layer.outs, layer.ndim)
    edit = _layer_edit(rw, layer, absorb_after(layer, chain.mapping.without_shift()))
    if vectors is None or isinstance(edit, str):
        return False
    bias = cast(layer.as_bias(vectors.shift), layer.weight_array.dtype)
    if bias is None:
        return False
    edit.apply(rw)
    what = f"{chain.words} became the scale of `{node_label(layer.node)}` and an Add"
    _Edit(chain.last, (chain.source, bias), what, "Add", {}).apply(rw)
    return True


def _into_consumers(rw: Rewriter, chain: _Chain) -> bool:
    """Replace ``Layer(a * x + b)`` with ``Layer'(x)``."""
    layers = _consuming_layers(rw, chain)
    if not layers:
        return False
    edits: list[_Edit] = []
    for layer in layers:
        found = _before_layer(rw, layer, chain)
        if isinstance(found, str):
            rw.skip(chain.last, f"`{node_label(layer.node)}` cannot take it: {found}")
            return False
        edits += found
    for edit in edits:
        edit.apply(rw)
    return True


def _scale_into_consumers(rw: Rewriter, chain: _Chain) -> bool:
    """Replace ``Layer(a * x + b)`` with ``Layer'(x + b / a)``, where the Layer pads with zeros."""
    mapping = chain.mapping
    layers = _consuming_layers(rw, chain)
    if not layers or len(chain.nodes) < 2 or not mapping.scales or not np.all(mapping.scale):
        return False
    # a·x + b = a·(x + b/a): the layers take a, and the run is left with the addition of b/a
    scale_only = _Chain(chain.result, mapping.without_shift(), chain.nodes)
    edits: list[_Edit] = []
    for layer in layers:
        found = _before_layer(rw, layer, scale_only)
        if isinstance(found, str):
            return False
        edits += found
    add = _write_map(rw, chain, np.ones(()), mapping.shift / mapping.scale)
    if add is None:
        return False
    for edit in (*edits, add):
        edit.apply(rw)
    return True


def _merge(rw: Rewriter, chain: _Chain) -> bool:
    """Replace a run of affine maps with fewer nodes."""
    mapping = chain.mapping
    if len(chain.nodes) < 2 or not is_float(mapping.dtype):
        return False
    norm = next((n for n in chain.nodes if n.op == "BatchNormalization"), None)
    if norm is not None and mapping.shifts and mapping.scales:
        edit = _merged_norm(chain, norm)
    elif int(mapping.scales) + int(mapping.shifts) < len(chain.nodes):
        edit = _write_map(rw, chain, mapping.scale, mapping.shift)
    else:
        return False
    if edit is None:
        return False
    edit.apply(rw)
    return True


_STEPS: Final[tuple[Callable[[Rewriter, _Chain], bool], ...]] = (
    _drop_identity,
    _into_producer,
    _into_matmul,
    _into_consumers,
    _scale_into_consumers,
    _merge,
)


# ------------------------------------------------------------------------------ layers before


EditPlan = list[_Edit] | str | None
"""Edits after which a tensor is computed with the map applied; or why not; None: no layer found."""


def _plan(rw: Rewriter, tensor: gs.Tensor, mapping: AffineMap) -> EditPlan:
    node = rw.producer(tensor)
    if node is None or rw.is_kept(node):
        return None
    layer = linear_layer(node)
    if layer is None and node.op not in _THROUGH:
        return None
    if layer is not None and layer.bias is None and mapping.shifts:
        return None  # see `_into_matmul`
    if rw.private_producer(tensor) is None:
        return None if layer is None else f"the result of `{node_label(node)}` is used elsewhere"
    if layer is not None:
        edit = _layer_edit(rw, layer, absorb_after(layer, mapping))
        return edit if isinstance(edit, str) else [edit]
    return _THROUGH[node.op](rw, node, mapping)


def _layer_edit(
    rw: Rewriter, layer: LinearLayer, found: list[gs.Tensor | np.ndarray] | str
) -> _Edit | str:
    """The edit that gives `layer` the weight and bias in `found`."""
    if isinstance(found, str):
        return f"`{node_label(layer.node)}` cannot take it: {found}"
    if isinstance(found[0], np.ndarray) and rw.uses(layer.weight_tensor) > 1:
        return f"the weight of `{node_label(layer.node)}` is used by several nodes"
    inputs: list[gs.Tensor | np.ndarray] = list(layer.node.inputs)
    inputs[layer.weight] = found[0]
    attrs = None
    if len(found) > 1:
        assert layer.bias is not None
        inputs = [*inputs[: layer.bias], found[1]]
        if isinstance(found[1], np.ndarray) and "beta" in layer.node.attrs:
            attrs = {k: v for k, v in layer.node.attrs.items() if k != "beta"}
    return _Edit(layer.node, tuple(inputs), "took a scale or shift", None, attrs)


def _through_pool(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    if node.op in ("MaxPool", "GlobalMaxPool") and not np.all(mapping.scale > 0):
        return None
    if node.op == "AveragePool" and mapping.shifts and _averages_zeros(node):
        return None
    return _plan(rw, node.inputs[0], mapping)


def _averages_zeros(node: Node) -> bool:
    """Whether an AveragePool counts zeros outside its input."""
    padded = any(node.attrs.get("pads", ())) or "auto_pad" in node.attrs
    return bool(node.attrs.get("count_include_pad", 0)) and padded


def _through_relu(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    if mapping.shifts or not np.all(mapping.scale > 0):
        return None
    return _plan(rw, node.inputs[0], mapping)


def _through_move(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    """Reshape, Flatten, Slice and their like commute with maps that treat all elements alike."""
    if mapping.axis is not None or mapping.ndim > 1:
        return None
    return _plan(rw, node.inputs[0], mapping)


def _through_axes(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    """Transpose moves the axis along which the map lies."""
    perm = node.attrs.get("perm")
    if mapping.axis is None or perm is None or mapping.ndim > len(perm):
        return _through_move(rw, node, mapping)
    return _plan(rw, node.inputs[0], mapping.moved(int(perm[mapping.axis])))


def _through_squeeze(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    """Squeeze and Unsqueeze renumber the axis along which the map lies."""
    if mapping.axis is None:
        return _through_move(rw, node, mapping)
    full = node.inputs[0] if node.op == "Squeeze" else node.outputs[0]
    ndim = rank_of(full)
    ones = normalized(axes_of(node, rw.opset), ndim)
    if ndim is None or not ones:
        return None
    others = [axis for axis in range(ndim) if axis not in ones]
    if node.op == "Squeeze":
        fits = mapping.ndim <= len(others)
        return _plan(rw, node.inputs[0], mapping.moved(others[mapping.axis])) if fits else None
    if mapping.ndim > ndim or mapping.axis % ndim in ones:
        return None
    return _plan(rw, node.inputs[0], mapping.moved(others.index(mapping.axis % ndim)))


def _through_concat(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    """Every input of the Concat must be able to take its part of the map."""
    ndim = rank_of(node.outputs[0])
    if ndim is None or ndim < mapping.ndim or len(set(node.inputs)) < len(node.inputs):
        return None
    axis = int(node.attrs["axis"]) % ndim
    # a map along the joined axis falls into a part for each input; others apply to all alike
    parts = [mapping] * len(node.inputs)
    if mapping.axis is not None and mapping.axis % ndim == axis:
        sizes = [known_dim(tensor, axis) for tensor in node.inputs]
        if None in sizes:
            return None
        stops = np.cumsum([0, *(size for size in sizes if size is not None)])
        if stops[-1] != mapping.channels:
            return None
        parts = [mapping.part(a, b) for a, b in pairwise(stops)]
    return _all_plans(_plan(rw, t, part) for t, part in zip(node.inputs, parts, strict=True))


def _all_plans(plans: Iterable[EditPlan]) -> EditPlan:
    edits: list[_Edit] = []
    for plan in plans:
        if plan is None or isinstance(plan, str):
            return plan
        edits += plan
    return edits


def _through_add(rw: Rewriter, node: Node, mapping: AffineMap) -> EditPlan:
    """a·(z + c) + b = a·z + (a·c + b): the Add takes the shift, the layer before it the scale."""
    read = read_affine(node, rw.opset)
    if read is None or read[1].scales or not mapping.scales:
        return None
    source, added = read
    both = added.then(mapping, rank_of(source))
    layer = linear_layer(rw.private_producer(source, "MatMul"))
    if both is None or layer is None or both.axis is None:
        return None
    vectors = both.along(layer.out_axis, layer.outs, layer.ndim)
    plan = _plan(rw, source, mapping.without_shift())
    bias = None if vectors is None else cast(layer.as_bias(vectors.shift), np.dtype(added.dtype))
    if bias is None or plan is None or isinstance(plan, str):
        return None
    return [_Edit(node, (source, bias), "took a shift", "Add", {}), *plan]


_THROUGH: Final[dict[str, Callable[[Rewriter, Node, AffineMap], EditPlan]]] = {
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), _through_pool),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _through_pool),
    **dict.fromkeys(("Relu", "LeakyRelu"), _through_relu),
    **dict.fromkeys(("Reshape", "Flatten"), _through_move),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _through_squeeze),
    "Transpose": _through_axes,
    "Concat": _through_concat,
    "Add": _through_add,
}


# ------------------------------------------------------------------------------ layers behind


def _consuming_layers(rw: Rewriter, chain: _Chain) -> list[LinearLayer]:
    """The layers that use the chain's result; [] when anything else uses it."""
    users: Sequence[Node] = chain.result.outputs
    if not users or len(set(users)) < len(users):
        return []
    if rw.is_output(chain.result) or not is_float(chain.mapping.dtype):
        return []
    if min_rank(chain.source) < chain.mapping.ndim:  # the map may add an axis in front
        return []
    # a map repeats an input of one channel; a BatchNormalization takes no such input
    if chain.nodes[0].op != "BatchNormalization" and not _keeps_shape(chain.source, chain.mapping):
        return []
    home = rw.graph_of(chain.last)
    layers = []
    for user in users:
        layer = linear_layer(user)
        if layer is None or rw.graph_of(user) is not home:
            return []
        if user.inputs[layer.data] is not chain.result:  # it is the bias of that layer
            return []
        layers.append(layer)
    return layers


def _before_layer(rw: Rewriter, layer: LinearLayer, chain: _Chain) -> list[_Edit] | str:
    """Edits after which `layer` maps the chain's source as it mapped the chain's result."""
    mapping = chain.mapping
    edits: list[_Edit] = []
    if layer.bias is None and mapping.shifts:
        behind = _shift_behind(rw, layer, mapping)
        if isinstance(behind, str):
            return behind
        edits, mapping = [behind], mapping.without_shift()
    found = absorb_before(layer, mapping)
    edit = found if isinstance(found, str) else _layer_edit(rw, layer, found)
    if isinstance(edit, str):
        return edit
    inputs = list(edit.inputs)
    inputs[layer.data] = chain.source
    what = f"took {chain.words} before it"
    return [*edits, _Edit(edit.node, tuple(inputs), what, None, edit.attrs)]


def _shift_behind(rw: Rewriter, layer: LinearLayer, mapping: AffineMap) -> _Edit | str:
    """MatMul(x + b, W) + c = MatMul(x, W) + (c + b·W): the edit of the Add behind a MatMul."""
    result = layer.node.outputs[0]
    add = result.outputs[0] if len(result.outputs) == 1 else None
    read = None if add is None or add.op not in ("Add", "Sub") else read_affine(add, rw.opset)
    if add is None or read is None or read[1].scales or rw.private_producer(result) is None:
        return "a MatMul has no bias, and no Add follows it"
    if rw.is_kept(add):
        return "the Add behind the MatMul is part of a larger operator"
    data = layer.node.inputs[layer.data]
    before = mapping.along(layer.in_axis, layer.ins, rank_of(data))
    behind = read[1].along(layer.out_axis, layer.outs, layer.ndim)
    reason = layer.why_no_input_shift()
    if before is None or behind is None or reason is not None:
        return reason or "it varies along another axis than the channels of the layer"
    bias = cast(layer.as_bias(behind.shift + layer.push(before.shift)), layer.weight_array.dtype)
    if bias is None:
        return "a bias would overflow"
    return _Edit(add, (result, bias), "took a shift from before the MatMul", "Add", {})


# ------------------------------------------------------------------------------ without a layer


def _merged_norm(chain: _Chain, norm: Node) -> _Edit | None:
    """One BatchNormalization with the mean and variance of `norm`, new scale and bias."""
    mean, var = (const_array(tensor) for tensor in norm.inputs[3:5])
    kept = const_array(norm.inputs[1])
    vectors = None
    if mean is not None:
        vectors = chain.mapping.along(1, mean.size, rank_of(chain.source))
    if vectors is None or mean is None or var is None or kept is None:
        return None
    epsilon = float(np.float32(norm.attrs.get("epsilon", 1e-5)))
    # a·x + b = γ'·(x − μ)/√(σ² + ε) + β'  with  γ' = a·√(σ² + ε)  and  β' = b + a·μ
    scale = cast(vectors.scale * np.sqrt(var.astype(np.float64) + epsilon), kept.dtype)
    bias = cast(vectors.shift + vectors.scale * mean.astype(np.float64), kept.dtype)
    if scale is None or bias is None:
        return None
    inputs = (chain.source, scale, bias, norm.inputs[3], norm.inputs[4])
    what = f"merged {chain.words}"
    return _Edit(chain.last, inputs, what, "BatchNormalization", dict(norm.attrs))


def _write_map(rw: Rewriter, chain: _Chain, scale: np.ndarray, shift: np.ndarray) -> _Edit | None:
    """Make the last node of the chain compute scale·source + shift with a Mul, an Add or both."""
    dtype = chain.mapping.dtype
    ndim = rank_of(chain.source)
    axis = chain.mapping.axis
    if axis is not None and axis >= 0:
        if ndim is None:
            return None
        axis -= ndim
    lies_inside = _keeps_shape(chain.source, chain.mapping)
    has_scale, has_shift = bool(np.any(scale != 1)), bool(np.any(shift != 0))
    if dtype is None or not lies_inside or not (has_scale or has_shift):
        return None
    factor, addend = (_operand(values, axis, dtype) for values in (scale, shift))
    if factor is None or addend is None:
        return None
    source = chain.source
    if has_scale and has_shift:
        constant = rw.constant(factor, f"{chain.result.name}_scale")
        shape = None if source.shape is None else tuple(source.shape)
        (source,) = rw.insert(
            chain.last,
            "Mul",
            [source, constant],
            name=f"{chain.result.name}_scaled",
            dtype=source.dtype,
            shape=shape,
        )
    what = f"merged {chain.words}"
    if has_shift:
        return _Edit(chain.last, (source, addend), what, "Add", {})
    return _Edit(chain.last, (source, factor), what, "Mul", {})


def _operand(values: np.ndarray, axis: int | None, dtype: np.dtype[Any]) -> np.ndarray | None:
    """`values` as a constant that broadcasts along `axis` (from the end)."""
    if values.ndim and axis is not None:
        values = values.reshape(-1, *[1] * (-axis - 1))
    return cast(values, dtype)
