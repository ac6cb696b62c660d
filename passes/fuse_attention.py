"""Fuse attention, spelled as products and a Softmax, into Attention of opset 23.

Rewrite:
    ```
    <opset_import: ["" : 23]>
    before (float[2, 5, 8] q, float[2, 5, 8] k, float[2, 5, 8] v)
        => (float[2, 5, 8] y)
        <int64[4] cut = {0, 0, 2, 4}, int64[3] joined = {0, 0, 8}, float half = {0.5}> {
        q1 = Reshape (q, cut)
        q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
        k1 = Reshape (k, cut)
        k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
        v1 = Reshape (v, cut)
        v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        s = MatMul (q2, k2)
        t = Mul (s, half)
        p = Softmax <axis = -1> (t)
        h = MatMul (p, v2)
        h1 = Transpose <perm = [0, 2, 1, 3]> (h)
        y = Reshape (h1, joined)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 23]>
    after (float[2, 5, 8] q, float[2, 5, 8] k, float[2, 5, 8] v)
        => (float[2, 5, 8] y) {
        y = Attention <scale = 0.5, q_num_heads = 2, kv_num_heads = 2> (q, k, v)
    }
    ```
    The chain that makes heads is read by what it does to axes, not by its operators, so that all
    exporters' spellings are one. Where Q, K, V or the result lie nowhere as (batch, length,
    heads·width), the operator is given (batch, heads, length, width). Heads of K and V that are
    repeated for groups of heads of Q are no longer written out. What is added while batch and
    windows are two axes, as in Swin, is repeated for the batch. Heads that are folded into the
    batch are unfolded, whatever the mask was added to; c·tanh(x / c) of the scores is the
    operator's soft cap. A Concat of past and present rows goes into the operator, and what it made
    stays an output. Asked for by name, the pass raises the opset to 23, and says so; as part of
    `simplify` it does not.

Why it is correct:
    Attention computes softmax(scale·Q·Kᵀ + mask)·V, which is what the nodes spell. Factors of Q, of
    K and of the product are one: (a·Q)·(b·Kᵀ)·c = abc·(Q·Kᵀ). A Where that sets scores to a value
    is an Add of that value to what it masks, and of zero to what it keeps, where adding a score to
    the value does not change it. A single one with -10,000 or less leaves no weight beside any
    other score, and equal weights where all is masked: any lower value does the same. Rows in which
    all is masked keep what they have. Attention returns zeros where the mask of a row is nothing
    but -inf: so does the Softmax where zeros replace NaN behind it; elsewhere it returns NaN, and
    the mask gets NaN there. onnxruntime takes the least finite number for -inf: the number above it
    stands in for it, which leaves equal weights as before.

Declines when:
    1. Scores or weights are used elsewhere, or are an output of the graph.
    2. The Softmax is over another axis, or a Dropout that may drop something follows it.
    3. A mask is none of the kinds above, or could make the scores larger.
    4. Scores go through another operator, or are scaled by what is not constant or not positive.
    5. Batch sizes or heads of Q, K and V are not known to fit.
    6. Values are neither float32 nor float16: onnxruntime has no kernel for others.
    7. The model cannot be raised to opset 23.

    onnxruntime refuses to run Attention on an empty batch, which the nodes before took.

Fidelity:
    CLOSE. The scale is applied to the product instead of its operands.

Reference:
    Vaswani et al. 2017, arXiv:1706.03762, equation 1; Ainslie et al. 2023, arXiv:2305.13245
    (grouped heads); the ONNX operator specification of Attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.attention import (
    MaskPart,
    MaskValues,
    NotAttention,
    Operand,
    SpelledAttention,
    has_cut_free_target,
    joins_heads,
    read_attention,
)
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node, Variable, node_label
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Size
from onnxslim.pipeline.options import option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.raising import run_raised
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

OPSET: Final = 23
_LOWEST: Final = -1e30  # a score added to it leaves it as it is


@dataclass(frozen=True)
class FuseAttention(RewritePass):
    """Fuse attention, spelled as products and a Softmax, into Attention of opset 23."""

    name: ClassVar[str] = "fuse-attention"
    examples: ClassVar[Mapping[str, str]] = {
        "fuse-attention": "every attention; the opset becomes 23 where it is lower",
        "simplify, fuse-rotary, fuse-attention": "with rotary embeddings, behind other rewrites",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    raises_opset: bool = option(True, help="whether a model of a lower opset is raised to 23")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Write each attention that is read."""
        opset = graph.opset_of("")
        has_any = any(node.op == "Softmax" for node in Rewriter(graph).walk("Softmax"))
        if not has_any or (not self.raises_opset and (opset is None or opset < OPSET)):
            return PassResult()
        return run_raised(graph, context, OPSET, "Attention nodes", self._fused)

    def _fused(self, graph: gs.Graph, context: Context) -> PassResult:
        rw = self.rewriter(graph)
        flow = SizeFlow(graph, rw.opset)
        masks = _Masks({node: i for part in rw.graphs() for i, node in enumerate(part.nodes)})
        for node in rw.walk("Softmax"):
            try:
                _AttentionWriter(rw, flow, read_attention(rw, flow, node), masks).write(node)
            except NotAttention as reason:
                if reason.is_close:
                    rw.skip(node, f"no Attention: {reason}")
        return rw.result()


@dataclass
class _Masks:
    """The masks that were made, for layers that mask alike.

    Attributes:
        places: of the nodes that were there at the beginning, in their graphs.
        made: what makes a mask -> the mask, and the product in front of which its nodes stand.
    """

    places: Mapping[Node, int]
    made: dict[tuple[Any, ...], tuple[gs.Tensor, Node]] = field(default_factory=dict)

    def find(self, key: tuple[Any, ...], product: Node) -> gs.Tensor | None:
        """The mask, if its nodes stand before `product`."""
        if key not in self.made:
            return None
        mask, first = self.made[key]
        places = self.places
        is_before = first in places and product in places and places[first] < places[product]
        return mask if is_before else None


@dataclass
class _AttentionWriter:
    """Writes one attention as one node."""

    rw: Rewriter
    flow: SizeFlow
    found: SpelledAttention
    masks: _Masks

    def write(self, softmax: Node) -> None:
        found, rw = self.found, self.rw
        operands = (found.query, found.key, found.value)
        heads = [operand.sizes[1] for operand in operands]
        is_wide = (
            found.result is not None
            and (joins_heads(self.flow, found.result, found) or has_cut_free_target(found.result))
            and all(operand.wide is not None for operand in operands)
            and all(isinstance(count, int) for count in heads)
        )
        if rank(found.scores) == 3 and not is_wide:
            raise NotAttention("its batch and heads, joined on one axis, are not known apart")
        if not is_wide and (found.query.split is None or found.value.split is None):
            raise NotAttention("Q or V is nowhere laid out with its heads apart")
        if not is_wide and found.key.split is None and heads[1] != heads[0]:
            raise NotAttention("K, whose heads are repeated, is nowhere laid out without repeats")
        scale = found.scale
        for operand in operands:
            scale *= operand.wide_scale if is_wide else operand.split_scale
        scale = float(np.float32(scale))
        if not 0 < scale < np.inf:
            raise NotAttention(f"its scores are scaled by {scale:g}, which is not positive")
        mask = self._mask()
        attrs: dict[str, Any] = {"scale": scale}
        if found.softcap:
            attrs["softcap"] = found.softcap
        if found.casts:
            attrs["softmax_precision"] = int(onnx.TensorProto.FLOAT)
        if is_wide:
            attrs |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
        read = self._wide if is_wide else self._split
        inputs = self._of_one_batch([read(operand) for operand in operands], 3 if is_wide else 4)
        result = found.result if is_wide else None
        last = found.product if result is None else result
        past = [found.key.past, found.value.past]
        has_past = found.key.past is not None
        tail = [mask, *(past if has_past else ())]
        while tail and tail[-1] is None:
            tail.pop()
        given = [Variable("") if tensor is None else tensor for tensor in (*inputs, *tail)]
        words = f"attention of {heads[0]} heads" if isinstance(heads[0], int) else "attention"
        made = rw.insert(
            last,
            "Attention",
            given,
            attrs,
            name=f"{node_label(last)}_attention",
            dtype=found.scores.dtype,
            outputs=3 if has_past else 1,
        )
        self._hand_over(made, last, result, f"{words} became Attention")
        rw.note(node_label(softmax), f"{words} became Attention", Fidelity.CLOSE)

    def _hand_over(
        self, made: Sequence[Variable], last: Node, result: Node | None, what: str
    ) -> None:
        """Let what read the result, and the present rows, read the outputs of Attention."""
        found, rw, value = self.found, self.rw, made[0]
        presents = [operand.present for operand in (found.key, found.value)]
        if result is None or joins_heads(self.flow, result, found):
            rw.replace(last, [value], what)
        else:
            rw.update(result, what, inputs=[value, result.inputs[1]], fidelity=Fidelity.CLOSE)
        for concat, present in zip(presents, made[1:], strict=False):
            if concat is not None and rw.is_alive(concat):
                rw.replace(concat, [present], "joined by Attention")

    def _wide(self, operand: Operand) -> gs.Tensor:
        """An operand as (batch, length, heads·width)."""
        assert operand.wide is not None
        if rank(operand.wide) == 3:
            return operand.wide
        heads, width = operand.sizes[1], operand.sizes[3]
        assert isinstance(heads, int)
        last = heads * width if isinstance(width, int) else -1
        target = self.rw.constant(np.array([0, 0, last], np.int64), f"{operand.wide.name}_joined")
        return self._inserted("Reshape", [operand.wide, target], operand.wide)

    def _of_one_batch(self, tensors: list[gs.Tensor], ndim: int) -> list[gs.Tensor]:
        """Q, K and V, repeated along a batch of one where they are not known to be as many.

        `ndim` is the number of their axes, which shapes of new tensors do not tell.
        """
        found = self.found
        sizes = [operand.sizes[0] for operand in (found.query, found.key, found.value)]
        if len(set(sizes)) == 1:
            return tensors
        firsts = dict(zip(sizes, tensors, strict=True))
        counts = [self._shape_entry(tensor, 0) for tensor in firsts.values()]
        largest = self._computed("Max", counts, np.dtype(np.int64))
        ones = self.rw.constant(np.ones(ndim - 1, np.int64), "ones")
        target = self.rw.insert(
            found.product,
            "Concat",
            [largest, ones],
            {"axis": 0},
            name=f"{found.scores.name}_batch",
            dtype=np.dtype(np.int64),
        )
        return [self._inserted("Expand", [tensor, *target], tensor) for tensor in tensors]

    def _inserted(self, op: str, inputs: list[gs.Tensor], like: gs.Tensor) -> gs.Tensor:
        name = f"{like.name}_{op.lower()}"
        return self.rw.insert(self.found.product, op, inputs, name=name, dtype=like.dtype)[0]

    def _split(self, operand: Operand) -> gs.Tensor:
        """An operand as (batch, heads, length, width)."""
        if operand.split is not None:
            return operand.split
        (turned,) = self.rw.insert(
            self.found.product,
            "Transpose",
            [self.found.transposed_key],
            {"perm": [0, 1, 3, 2]},
            name=f"{self.found.transposed_key.name}_turned",
            dtype=self.found.transposed_key.dtype,
        )
        return turned

    # ----------------------------------------------------------------- masks

    def _mask(self) -> gs.Tensor | None:
        """What Attention is given as mask, of as many rows and columns as the scores."""
        found = self.found
        if not found.mask:
            return None
        for part in found.mask:
            self._check(part)
        home = self.rw.graph_of(found.product)
        key = (found.mask, found.shape, found.guards, found.scores.dtype, home)
        known = self.masks.find(key, found.product)
        if known is None:
            known = self._made_mask()
            self.masks.made[key] = known, found.product
        return known

    def _made_mask(self) -> gs.Tensor:
        mask = self._sum(self.found.mask)
        if const_value(mask) is not None:
            mask = self._computed("Identity", [mask], mask.dtype)
        values = MaskValues(mask, np.dtype(self.found.scores.dtype))
        for node, index in values.lowest:
            self._raise_lowest(node, index)
        if values.is_open or values.is_summed:
            lowest = self._number(values.least)
            is_lowest = self._computed("Equal", [mask, lowest], np.dtype(bool))
            mask = self._computed("Where", [is_lowest, self._number(values.next), mask], mask.dtype)
        is_guarded = self.found.guards or self.found.mask[-1].floor is not None
        if (values.is_open or values.has_infinity) and not is_guarded:
            mask = self._with_nan(mask)
        return self._with_rows(mask)

    def _check(self, part: MaskPart) -> None:
        """Refuse a part that cannot be added to the scores, before anything is edited.

        Raises:
            NotAttention: saying which mask, and why.
        """
        dtype = np.dtype(self.found.scores.dtype)
        tensor = part.read
        if tensor is None:
            return
        least = max(_LOWEST, float(np.finfo(dtype).min) / 2)
        if part.value > least and part.addend is None and self._count() > 1:
            raise NotAttention(f"scores of {part.value:g} are masked again by an Add")
        shape, whole = self.flow.shape(tensor), self.found.shape
        if part.windows is not None:
            whole = (*part.windows, *whole[1:])
        if shape is None or len(shape) > len(whole):
            raise NotAttention(f"the mask `{tensor.name}` has an unknown shape, or too many axes")
        full = (1,) * (len(whole) - len(shape)) + shape
        for size, wanted in zip(full, whole, strict=True):
            if size != 1 and size != wanted and isinstance(size, int) and isinstance(wanted, int):
                raise NotAttention(f"the mask `{tensor.name}` makes the scores larger")
        if part.windows is None:
            return
        if not isinstance(part.windows[1], int) or full[0] not in (1, part.windows[0]):
            raise NotAttention(f"the mask `{tensor.name}` is not known to be one for each window")
        if any(not isinstance(size, int) for size in full[2:]):
            raise NotAttention(f"the mask `{tensor.name}` has sizes that are not known")

    def _count(self) -> int:
        """The number of parts that mask."""
        return sum(part.read is not None for part in self.found.mask)

    def _sum(self, parts: Sequence[MaskPart]) -> gs.Tensor:
        """What all parts together add to the scores."""
        dtype = np.dtype(self.found.scores.dtype)
        total: gs.Tensor | None = None
        for part in parts:
            if part.floor is not None:
                assert total is not None
                total = self._computed("Max", [total, self._number(part.floor)], dtype)
                continue
            if part.addend is not None:
                addend = self._over_windows(part.addend, part.windows)
                total = addend if total is None else self._computed("Add", [total, addend], dtype)
                continue
            value = part.value
            if self._count() == 1 and value > -np.inf:
                value = float(np.finfo(dtype).min)
            assert part.condition is not None
            kept = self._number(0.0) if total is None else total
            pair = [kept, self._number(value)]
            pair = pair if part.keeps else pair[::-1]
            total = self._computed("Where", [part.condition, *pair], dtype)
        assert total is not None
        return total

    def _over_windows(self, addend: gs.Tensor, windows: tuple[Size, Size] | None) -> gs.Tensor:
        """What is added to scores of (batch, windows, ...), for scores of (batch·windows, ...)."""
        if windows is None:
            return addend
        shape = self.flow.shape(addend) or ()
        full = (1,) * (5 - len(shape)) + shape
        if full[:2] != windows:
            name = f"{addend.name}_windows"
            count = self.rw.constant(np.array([windows[1]], np.int64), name)
            query = self.found.query
            rows = self._shape_entry(self._split(query) if query.wide is None else query.wide, 0)
            batch = self._computed("Div", [rows, count], np.dtype(np.int64))
            ones = self.rw.constant(np.array([windows[1], 1, 1, 1], np.int64), name)
            target = self.rw.insert(
                self.found.product, "Concat", [batch, ones], {"axis": 0}, name=name, dtype=np.int64
            )
            addend = self._computed("Expand", [addend, *target], addend.dtype)
        joined = self.rw.constant(np.array([-1, *full[2:]], np.int64), f"{addend.name}_joined")
        return self._computed("Reshape", [addend, joined], addend.dtype)

    def _raise_lowest(self, node: Node, index: int | None) -> None:
        """Put the number above the least one in the place of the latter, in one constant."""
        value = node.attrs["value"] if index is None else node.inputs[index]
        constant = const_array(value)
        assert constant is not None
        least = np.finfo(constant.dtype).min
        above = np.nextafter(least, np.zeros((), constant.dtype))
        raised = self.rw.constant(
            np.where(constant == least, above, constant), value.name or "masked"
        )
        if index is not None:
            self.rw.set_input(node, index, raised)
            return
        attrs = {**node.attrs, "value": raised}
        what = "the least finite number became the one above it"
        self.rw.update(node, what, attrs=attrs, fidelity=Fidelity.CLOSE)

    def _with_nan(self, mask: gs.Tensor) -> gs.Tensor:
        """`mask` with NaN in rows of nothing but -inf, as the Softmax of such a row returns."""
        axes = self.rw.constant(np.array([-1], np.int64), f"{mask.name}_axes")
        largest = self._computed("ReduceMax", [mask, axes], mask.dtype)
        is_masked = self._computed("Equal", [largest, self._number(-np.inf)], np.dtype(bool))
        return self._computed("Where", [is_masked, self._number(np.nan), mask], mask.dtype)

    def _number(self, value: float) -> gs.Tensor:
        dtype = self.found.scores.dtype
        return self.rw.constant(np.asarray(value, dtype), f"{self.found.scores.name}_masked")

    def _computed(self, op: str, inputs: list[gs.Tensor], dtype: Any) -> gs.Tensor:
        name = f"{self.found.scores.name}_mask"
        return self.rw.insert(self.found.product, op, inputs, name=name, dtype=dtype)[0]

    def _with_rows(self, mask: gs.Tensor) -> gs.Tensor:
        """`mask` with a row for each row of the scores, and a column for each column.

        onnxruntime takes no mask that is to be repeated along these axes.
        """
        shape, whole = self.flow.shape(mask) or (), self.found.shape
        full = (1,) * (len(whole) - len(shape)) + shape
        if len(shape) > 1 and full[2:] == whole[2:]:
            return mask
        one = self.rw.constant(np.ones(1, np.int64), f"{mask.name}_one")
        target = [
            one if size == wanted else self._length(mask, shape, axis, wanted)
            for axis, (size, wanted) in enumerate(zip(full[2:], whole[2:], strict=True))
        ]
        (sizes,) = self.rw.insert(
            self.found.product,
            "Concat",
            target,
            {"axis": 0},
            name=f"{mask.name}_rows",
            dtype=np.dtype(np.int64),
        )
        return self._computed("Expand", [mask, sizes], mask.dtype)

    def _length(self, mask: gs.Tensor, shape: Sequence[Size], axis: int, wanted: Size) -> gs.Tensor:
        """The number of rows (axis 0) or columns (axis 1) of the scores, as a tensor of one."""
        if isinstance(wanted, int):
            return self.rw.constant(np.array([wanted], np.int64), f"{mask.name}_length")
        if wanted in shape:  # equal masks of all layers then become one
            return self._shape_entry(mask, shape.index(wanted))
        if axis == 0:
            return self._rows(self.found.query)
        rows = self._rows(self.found.value)
        if self.found.value.past is None:
            return rows
        past = self._shape_entry(self.found.value.past, 2)
        return self._computed("Add", [past, rows], np.dtype(np.int64))

    def _rows(self, operand: Operand) -> gs.Tensor:
        if operand.wide is not None:
            return self._shape_entry(operand.wide, 1)
        return self._shape_entry(self._split(operand), 2)

    def _shape_entry(self, tensor: gs.Tensor, axis: int) -> gs.Tensor:
        return self.rw.insert(
            self.found.product,
            "Shape",
            [tensor],
            {"start": axis, "end": axis + 1},
            name=f"{tensor.name}_length",
            dtype=np.dtype(np.int64),
        )[0]
