"""Fuse rotary position embeddings, spelled as products and a rotation, into RotaryEmbedding.

Rewrite:
    ```
    <opset_import: ["" : 23]>
    before (float[2, 3, 8] q, float[2, 3, 2] angles) => (float[2, 2, 3, 4] y)
        <int64[4] cut = {0, 0, 2, 4}, int64[1] one = {1}> {
        q1 = Reshape (q, cut)
        x = Transpose <perm = [0, 2, 1, 3]> (q1)
        both = Concat <axis = -1> (angles, angles)
        c = Cos (both)
        s = Sin (both)
        c1 = Unsqueeze (c, one)
        s1 = Unsqueeze (s, one)
        left, right = Split <axis = -1, num_outputs = 2> (x)
        n = Neg (right)
        turned = Concat <axis = -1> (n, left)
        a = Mul (x, c1)
        b = Mul (turned, s1)
        y = Add (a, b)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 23]>
    after (float[2, 3, 8] q, float[2, 3, 2] angles) => (float[2, 2, 3, 4] y)
        <int64[4] cut = {0, 0, 2, 4}, int64[1] zero = {0}, int64[1] half = {2},
         int64[1] last = {-1}> {
        both = Concat <axis = -1> (angles, angles)
        c = Cos (both)
        s = Sin (both)
        c1 = Slice (c, zero, half, last)
        s1 = Slice (s, zero, half, last)
        z = RotaryEmbedding <num_heads = 2> (q, c1, s1)
        z1 = Reshape (z, cut)
        y = Transpose <perm = [0, 2, 1, 3]> (z1)
    }
    ```
    Rotations of neighbours instead of halves are `interleaved`. Where a Concat puts the columns of
    each head that are not rotated behind those that are, the operator gets both, with the number of
    those that it is to rotate. Where the heads were not made of (batch, length, heads·width) the
    operator reads (batch, heads, length, width). `fuse-attention`, run afterwards, takes the
    Reshape and the Transpose.

Why it is correct:
    With halves x = (u, v) and cosines (c, c), sines (s, s), x·(c, c) + (−v, u)·(s, s) is
    (u·c − v·s, v·c + u·s), which RotaryEmbedding computes of c and s.

Declines when:
    1. The two halves of the cosines, or of the sines, are not known to be equal; of rotated
       neighbours, each two neighbours.
    2. Sizes of the heads are not known, or cosines are not (batch, length, width) for all heads, or
       may have a batch or length of which x has one for all.
    3. Parts of the spelling are used elsewhere.
    4. Values are neither float32 nor float16: onnxruntime has no kernel for others.
    5. The model cannot be raised to opset 23.

Fidelity:
    CLOSE. Products and sums are rounded together.

Reference:
    Su et al. 2021, arXiv:2104.09864, equation 34; the ONNX operator specification of
    RotaryEmbedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.axis_factors import AxisFactors, followed_chain, moving_chain
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Constant, Node, node_label
from onnxslim.graph.operands import axes_of, const_array, const_value, ints_operand, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Size
from onnxslim.pipeline.options import option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.raising import run_raised
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

OPSET: Final = 23
_TYPES: Final = ("float32", "float16")
_ALIKE: Final = ("Cos", "Sin", "Cast", "Identity", "Unsqueeze", "Squeeze", "Mul", "Div", "Gather")
_LONGEST: Final = 12
_FAR: Final = 1 << 62  # the end of a Slice to the last element


@dataclass(frozen=True)
class FuseRotary(RewritePass):
    """Fuse rotary position embeddings, spelled as products and a rotation, into RotaryEmbedding."""

    name: ClassVar[str] = "fuse-rotary"
    examples: ClassVar[Mapping[str, str]] = {
        "fuse-rotary": "every rotary embedding; the opset becomes 23 where it is lower",
        "simplify, fuse-rotary, fuse-attention": "the same with the attention behind it",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    raises_opset: bool = option(True, help="whether a model of a lower opset is raised to 23")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Write each rotary embedding that is read."""
        opset = graph.opset_of("")
        if not self.raises_opset and (opset is None or opset < OPSET):
            return PassResult()
        seen = Rewriter(graph)
        if not any(_rotation(seen, node) for node in seen.walk("Add")):
            return PassResult()
        return run_raised(graph, context, OPSET, "RotaryEmbedding nodes", self._fused)

    def _fused(self, graph: gs.Graph, context: Context) -> PassResult:
        rw = self.rewriter(graph)
        writer = _RotaryWriter(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk("Add"):
            found = _rotation(rw, node)
            if found is None:
                continue
            partial = _partial(rw, node, found)
            if partial is not None and writer.write(*partial) is None:
                continue
            why = writer.write(node, found)
            if why is not None:
                rw.skip(node, f"no RotaryEmbedding: {why}")
        return rw.result()


@dataclass(frozen=True)
class _Rotation:
    """x·cosines + turned(x)·sines.

    Attributes:
        data: x.
        cosines, sines: what it and its turned copy are multiplied by.
        nodes: between `data` and the result, without the latter.
        pairs: whether neighbours are turned, and not the two halves.
        columns: how many columns of x are rotated, the first ones; None: all.
    """

    data: gs.Tensor
    cosines: gs.Tensor
    sines: gs.Tensor
    nodes: tuple[Node, ...]
    pairs: bool = False
    columns: int | None = None


def _rotation(rw: Rewriter, node: Node) -> _Rotation | None:
    """The rotation that ends in an Add of two products."""
    if len(node.inputs) != 2:
        return None
    for first, second in ((0, 1), (1, 0)):
        plain, turned = (rw.producer(node.inputs[place], "Mul") for place in (first, second))
        if plain is None or turned is None:
            continue
        for place in (0, 1):
            halves = _turned(rw, turned.inputs[place])
            found = halves or _turned_pairs(rw, turned.inputs[place])
            if found is None or found[0] not in plain.inputs:
                continue
            data, nodes = found
            other = plain.inputs[1 if plain.inputs[0] is data else 0]
            parts = (plain, turned, *nodes)
            return _Rotation(data, other, turned.inputs[1 - place], parts, halves is None)
    return None


def _partial(rw: Rewriter, node: Node, found: _Rotation) -> tuple[Node, _Rotation] | None:
    """The rotation as one of the first columns of x, and the Concat that joins the others to it."""
    rotated, ndim = node.outputs[0], rank(found.data)
    joins = rotated.outputs[0] if rw.uses(rotated) == 1 and rotated.outputs else None
    if joins is None or joins.op != "Concat" or not joins.is_onnx or ndim is None:
        return None
    if len(joins.inputs) != 2 or joins.inputs[0] is not rotated:
        return None
    if int(joins.attrs["axis"]) % ndim != ndim - 1:
        return None
    parts = _parts(rw, found.data, joins.inputs[1], ndim)
    if parts is None:
        return None
    source, nodes, columns = parts
    return joins, replace(found, data=source, nodes=(*found.nodes, node, *nodes), columns=columns)


def _turned(rw: Rewriter, tensor: gs.Tensor) -> tuple[gs.Tensor, tuple[Node, ...]] | None:
    """The tensor x = (u, v) of which `tensor` is (-v, u), and the nodes between them."""
    concat = rw.producer(tensor, "Concat")
    ndim = rank(tensor)
    if concat is None or ndim is None or len(concat.inputs) != 2:
        return None
    if int(concat.attrs["axis"]) % ndim != ndim - 1:
        return None
    negated = rw.producer(concat.inputs[0], "Neg")
    if negated is None:
        return None
    right, left = negated.inputs[0], concat.inputs[1]
    halves = _halves(rw, left, right, ndim)
    return None if halves is None else (halves[0], (concat, negated, *halves[1]))


def _turned_pairs(rw: Rewriter, tensor: gs.Tensor) -> tuple[gs.Tensor, tuple[Node, ...]] | None:
    """As `_turned`, for x = (u₀, v₀, u₁, ...) of which `tensor` is (-v₀, u₀, -v₁, ...)."""
    joined = rw.producer(tensor, "Reshape")
    stack = None if joined is None else rw.producer(joined.inputs[0], "Concat")
    ndim = rank(tensor)
    if joined is None or stack is None or ndim is None or len(stack.inputs) != 2:
        return None
    axis = int(stack.attrs["axis"])
    wider = [rw.producer(item, "Unsqueeze", "Reshape") for item in stack.inputs]
    if axis not in (-1, ndim) or None in wider:
        return None
    columns = [node for node in wider if node is not None]
    if any((node.outputs[0].shape or [0])[-1] != 1 for node in columns):
        return None
    negated = rw.producer(columns[0].inputs[0], "Neg")
    even = rw.producer(columns[1].inputs[0], "Slice")
    odd = None if negated is None else rw.producer(negated.inputs[0], "Slice")
    if negated is None or even is None or odd is None or even.inputs[0] is not odd.inputs[0]:
        return None
    data = even.inputs[0]
    steps = [_start(rw, node, ndim, step=2) for node in (even, odd)]
    width = None if data.shape is None else data.shape[-1]
    if steps != [0, 1] or not isinstance(width, int) or width % 2 or rank(data) != ndim:
        return None
    if tensor.shape is None or tensor.shape[-1] != width:
        return None
    return data, (joined, stack, *columns, negated, even, odd)


def _halves(
    rw: Rewriter, left: gs.Tensor, right: gs.Tensor, ndim: int
) -> tuple[gs.Tensor, tuple[Node, ...]] | None:
    """The tensor that `left` and `right` are the halves of, along the last axis."""
    parts = _parts(rw, left, right, ndim)
    if parts is None or right.shape is None or right.shape[-1] != parts[2]:
        return None
    return parts[:2]


def _parts(
    rw: Rewriter, left: gs.Tensor, right: gs.Tensor, ndim: int
) -> tuple[gs.Tensor, tuple[Node, ...], int] | None:
    """The tensor that `left` and `right` are, along the last axis, and the size of `left`."""
    if not left.inputs or not right.inputs:
        return None
    first, second = left.inputs[0], right.inputs[0]
    sizes = [None if tensor.shape is None else tensor.shape[-1] for tensor in (left, right)]
    size, rest = sizes
    if not isinstance(size, int) or not isinstance(rest, int):
        return None
    if first is second and first.op == "Split" and list(first.outputs) == [left, right]:
        axis = int(first.attrs.get("axis", 0)) % ndim
        return (first.inputs[0], (first,), size) if axis == ndim - 1 else None
    if first.op == second.op == "Slice" and first.inputs[0] is second.inputs[0]:
        source = first.inputs[0]
        whole = None if source.shape is None else source.shape[-1]
        starts = [_start(rw, node, ndim) for node in (first, second)]
        if whole == size + rest and starts[0] == 0 and starts[1] in (size, -rest):
            return source, (first, second), size
    return None


def _start(rw: Rewriter, node: Node, ndim: int, step: int = 1) -> int | None:
    """Where a Slice along the last axis alone, of every `step`th element, begins."""
    starts = ints_operand(node, rw.opset, "starts", 1, 10)
    axes = normalized(axes_of(node, rw.opset), ndim)
    steps = ints_operand(node, rw.opset, "steps", 4, 10)
    if axes != (ndim - 1,) or starts is None or len(starts) != 1:
        return None
    if (steps or (1,)) != (step,):
        return None
    return starts[0]


@dataclass
class _RotaryWriter:
    """Writes rotations; halves of cosines and sines are made once for all layers."""

    rw: Rewriter
    flow: SizeFlow
    made: dict[tuple[Any, ...], gs.Tensor] = field(default_factory=dict)
    constants: dict[tuple[int, ...], Constant] = field(default_factory=dict)

    def write(self, node: Node, found: _Rotation) -> str | None:
        """Write one rotation; returns why it is left as it is, if it is."""
        rw = self.rw
        if any(rw.graph_of(part) is not rw.graph_of(node) for part in found.nodes):
            return "its parts lie in other graphs"
        inner = [tensor for part in found.nodes for tensor in part.outputs]
        inside = {*found.nodes, node}
        if any(rw.is_output(t) or not inside.issuperset(t.outputs) for t in inner):
            return "a part of it is used elsewhere"
        dtype = found.data.dtype
        if dtype is None or np.dtype(dtype).name not in _TYPES:
            return "its values are neither float32 nor float16"
        shape, table = self.flow.shape(found.data), self.flow.shape(found.cosines)
        if shape is None or table is None or len(shape) != 4 or len(table) != 4:
            return "it is not known to have four axes"
        heads_axis = next((axis for axis in (1, 2) if table[axis] == 1 != shape[axis]), None)
        width = shape[3]
        if (
            heads_axis is None
            or not isinstance(width, int)
            or self.flow.shape(found.sines) != table
        ):
            return "cosines are not known to be the same for all heads"
        is_equal = self._has_equal_pairs if found.pairs else self._has_equal_halves
        turned = width if found.columns is None else found.columns
        if table[3] != turned or not all(
            is_equal(item, turned) for item in (found.cosines, found.sines)
        ):
            return "the halves of its cosines or sines are not known to be equal"
        heads = shape[heads_axis]
        wide = self._wide(found.data, heads_axis)
        if heads_axis == 2 and wide is None:
            return "its heads are not made of (batch, length, heads·width)"
        sizes = (shape[0], shape[3 - heads_axis])
        rows = (table[0], table[3 - heads_axis])
        if any(size not in (1, own) for size, own in zip(rows, sizes, strict=True)):
            return "it is not known to have as many positions as its cosines"
        source = found.data if wide is None else wide
        ends = (0, _FAR, -1, 2) if found.pairs else (0, turned // 2, -1)
        caches = [
            self._cache(node, item, heads_axis, sizes, source, wide is not None, ends)
            for item in (found.cosines, found.sines)
        ]
        attrs = {"interleaved": 1} if found.pairs else {}
        if found.columns is not None:
            attrs["rotary_embedding_dim"] = found.columns
        self._insert(node, source, caches, wide is not None, heads_axis, heads, width, attrs)
        return None

    def _insert(
        self,
        node: Node,
        source: gs.Tensor,
        caches: list[gs.Tensor],
        is_wide: bool,
        heads_axis: int,
        heads: Size,
        width: int,
        attrs: dict[str, Any],
    ) -> None:
        rw, label = self.rw, node_label(node)
        what = "a rotation became RotaryEmbedding"
        inputs = [source, *caches]
        if not is_wide:
            rw.update(
                node,
                what,
                op="RotaryEmbedding",
                inputs=inputs,
                attrs=attrs,
                fidelity=Fidelity.CLOSE,
            )
            return
        (value,) = rw.insert(
            node,
            "RotaryEmbedding",
            inputs,
            {**attrs, "num_heads": heads},
            name=f"{label}_rotary",
            dtype=source.dtype,
        )
        cut = self._constant(np.array([0, 0, heads, width], np.int64), f"{label}_heads")
        if heads_axis == 2:
            rw.update(
                node, what, op="Reshape", inputs=[value, cut], attrs={}, fidelity=Fidelity.CLOSE
            )
            return
        (value,) = rw.insert(node, "Reshape", [value, cut], name=f"{label}_cut", dtype=source.dtype)
        attrs = {"perm": [0, 2, 1, 3]}
        rw.update(node, what, op="Transpose", inputs=[value], attrs=attrs, fidelity=Fidelity.CLOSE)

    def _wide(self, data: gs.Tensor, heads_axis: int) -> gs.Tensor | None:
        """The values of `data` as (batch, length, heads·width), where they lie so."""
        chain = followed_chain(self.rw, self.flow, data)
        if chain is None:
            return None
        layout = chain.layout(-1)
        length, heads = layout[3 - heads_axis], layout[heads_axis]
        if not isinstance(chain.factors.size(heads), int):
            return None
        wanted = (layout[0], length, heads + layout[3])
        layouts = chain.factors.layouts
        return next((tensor for tensor in chain.tensors if layouts[tensor] == wanted), None)

    # ----------------------------------------------------------------- cosines and sines

    def _has_equal_halves(self, tensor: gs.Tensor, width: int) -> bool:
        """Whether the first half of the last axis is certainly the second one again."""
        for _ in range(_LONGEST):
            stored = const_value(tensor)
            if stored is not None:
                array = const_array(tensor)
                if array is None or array.ndim == 0 or array.shape[-1] != width:
                    return False
                left, right = np.split(array, 2, axis=-1)
                return bool(np.array_equal(left, right))
            node = self.rw.producer(tensor, *_ALIKE, "Concat")
            if node is None:
                return False
            if node.op == "Concat":
                ndim = rank(tensor)
                is_last = ndim is not None and int(node.attrs["axis"]) % ndim == ndim - 1
                return is_last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
            data = self._alike(node)
            if data is None:
                return False
            tensor = data
        return False

    def _has_equal_pairs(self, tensor: gs.Tensor, width: int) -> bool:
        """Whether each element of the last axis at an odd place is certainly the one before it."""
        for _ in range(_LONGEST):
            if const_value(tensor) is not None:
                array = const_array(tensor)
                if array is None or array.ndim == 0 or array.shape[-1] != width:
                    return False
                return bool(np.array_equal(array[..., ::2], array[..., 1::2]))
            source, nodes = moving_chain(self.rw, tensor)
            if nodes:
                factors = AxisFactors(self.flow)
                if not factors.begin(source) or not factors.follow(nodes, source):
                    return False
                last, before = factors.layouts[tensor][-1], factors.layouts[source][-1]
                if last and last[-1] in factors.repeating and factors.sizes[last[-1]] == 2:
                    return True
                if last != before:
                    return last[-1:] == before and self._stacks_one_tensor(source)
                tensor = source
                continue
            node = self.rw.producer(tensor, *_ALIKE)
            data = None if node is None else self._alike(node)
            if data is None:
                return False
            tensor = data
        return False

    def _stacks_one_tensor(self, tensor: gs.Tensor) -> bool:
        """Whether the two elements of the last axis are certainly equal."""
        stack = self.rw.producer(tensor, "Concat")
        if stack is None or len(stack.inputs) != 2 or stack.inputs[0] is not stack.inputs[1]:
            return False
        shape = self.flow.shape(tensor)
        return shape is not None and shape[-1] == 2 and stack.attrs["axis"] in (-1, len(shape) - 1)

    def _alike(self, node: Node) -> gs.Tensor | None:
        """The input of a node that treats both halves of the last axis alike."""
        if node.op in ("Mul", "Div"):
            numbers = [item for item in node.inputs if _is_number(item)]
            return None if len(numbers) != 1 else next(i for i in node.inputs if i not in numbers)
        data: gs.Tensor = node.inputs[0]
        ndim = rank(data)
        if node.op == "Gather":
            is_row = ndim is not None and ndim > 1 and int(node.attrs.get("axis", 0)) % ndim == 0
            return data if is_row else None
        if node.op in ("Unsqueeze", "Squeeze"):
            whole = node.outputs[0] if node.op == "Unsqueeze" else data
            axes = normalized(axes_of(node, self.rw.opset), rank(whole))
            full = rank(whole)
            return data if axes and full is not None and full - 1 not in axes else None
        return data

    def _cache(
        self,
        node: Node,
        tensor: gs.Tensor,
        heads_axis: int,
        sizes: tuple[Size, Size],
        source: gs.Tensor,
        is_wide: bool,
        ends: tuple[int, ...],
    ) -> gs.Tensor:
        """Every other of the cosines or sines as (batch, length, width / 2), by a Slice."""
        key = (tensor, heads_axis, *sizes, *ends, self.rw.graph_of(node))
        if key in self.made:
            return self.made[key]
        above = self.rw.producer(tensor, "Unsqueeze")
        if above is not None and normalized(axes_of(above, self.rw.opset), 4) == (heads_axis,):
            table: gs.Tensor = above.inputs[0]
        else:
            axes = self._constant(np.array([heads_axis], np.int64), f"{tensor.name}_axis")
            table = self._inserted(node, "Squeeze", [tensor, axes], tensor)
        cuts = [self._constant(np.array([value], np.int64), f"{tensor.name}_cut") for value in ends]
        half = self._inserted(node, "Slice", [table, *cuts], tensor)
        shape = self.flow.shape(table)
        if shape is None or tuple(shape[:2]) != sizes:
            one = self._constant(np.ones(1, np.int64), f"{tensor.name}_one")
            lengths = [
                self._inserted(node, "Shape", [source], None, {"start": axis, "end": axis + 1})
                for axis in ((0, 1) if is_wide else (0, 2))
            ]
            target = self._inserted(node, "Concat", [*lengths, one], None, {"axis": 0})
            half = self._inserted(node, "Expand", [half, target], tensor)
        self.made[key] = half
        return half

    def _inserted(
        self,
        node: Node,
        op: str,
        inputs: list[gs.Tensor],
        like: gs.Tensor | None,
        attrs: dict[str, Any] | None = None,
    ) -> gs.Tensor:
        name = f"{inputs[0].name}_{op.lower()}"
        dtype = np.dtype(np.int64) if like is None else like.dtype
        return self.rw.insert(node, op, inputs, attrs, name=name, dtype=dtype)[0]

    def _constant(self, values: np.ndarray, name: str) -> Constant:
        key = tuple(values.tolist())
        if key not in self.constants:
            self.constants[key] = self.rw.constant(values, name)
        return self.constants[key]


def _is_number(tensor: gs.Tensor) -> bool:
    stored = const_value(tensor)
    return stored is not None and stored.size == 1
