"""Scaled dot-product attention as exporters spell it: products, a scale, masks, a Softmax.

    softmax(cap(scale · Q · Kᵀ) + mask) · V,    cap(x) = c · tanh(x / c) or x

with Q of (batch, heads, length, width), or (batch·heads, length, width), K and V of as many heads
or of fewer that are repeated, and with or without rows of a cache before them. Reads; edits
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.axis_factors import (
    Axis,
    AxisFactors,
    Layout,
    MovingChain,
    followed_chain,
    scaling,
)
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import (
    const_array,
    const_value,
    is_filled_with,
    is_training_dropout,
)
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Shape, Size

_TYPES: Final = ("float32", "float16")
_LOW: Final = -1e4  # a score that leaves no weight beside any other
_LOWEST: Final = -1e30  # adding a score to it does not change it
_LONGEST: Final = 12  # operators between the two products


class NotAttention(Exception):
    """The Softmax is part of no attention that can be written as one operator.

    Attributes:
        is_close: whether it looks like attention, so that the reason is worth telling.
    """

    def __init__(self, why: str, *, is_close: bool = True) -> None:
        super().__init__(why)
        self.is_close = is_close


@dataclass(frozen=True)
class Operand:
    """Q, K or V.

    Attributes:
        split: the values as (batch, heads, length, width); None where they lie nowhere like that.
        wide: the same values as (batch, length, heads·width), or with this axis cut; None likewise.
        sizes: batch, heads, length, width.
        split_scale: the number by which `split` is multiplied afterwards.
        wide_scale: the same for `wide`.
        past: the rows of the cache before them, (batch, heads, past length, width).
        present: the Concat of both.
    """

    split: gs.Tensor | None
    wide: gs.Tensor | None
    sizes: tuple[Size, Size, Size, Size]
    split_scale: float = 1.0
    wide_scale: float = 1.0
    past: gs.Tensor | None = None
    present: Node | None = None


@dataclass(frozen=True)
class MaskPart:
    """One operator that masks scores.

    Attributes:
        addend: what an Add adds; None for a Where.
        condition: of a Where.
        keeps: whether scores are kept where the condition holds.
        value: of the scores that a Where does not keep.
        windows: batch and number of windows, where it was added to scores of
            (batch, windows, heads, length, length); None for scores of four axes.
        floor: the number below which a Max lets no score; None where it is no Max.
    """

    addend: gs.Tensor | None = None
    condition: gs.Tensor | None = None
    keeps: bool = True
    value: float = 0.0
    windows: tuple[Size, Size] | None = None
    floor: float | None = None

    @property
    def read(self) -> gs.Tensor | None:
        """The tensor that says what is masked; None for a Max."""
        return self.condition if self.addend is None else self.addend


@dataclass(frozen=True)
class SpelledAttention:
    """One attention.

    Attributes:
        query, key, value: the operands.
        transposed_key: the second operand of the first product, (batch, heads, width, length).
        scale: of the scores, without what is multiplied into Q and K.
        softcap: what bounds the scores before the mask; 0 where nothing does.
        mask: the parts, in the order in which they are applied.
        scores: the first product.
        shape: batch, heads, length, total length.
        guards: whether zeros replace NaN behind the Softmax.
        casts: whether the Softmax is computed in float32 and the rest is not.
        product: the node of the second product.
        result: where its values lie as (batch, length, heads·width), in this order of elements;
            None where they lie nowhere like that.
    """

    query: Operand
    key: Operand
    value: Operand
    transposed_key: gs.Tensor
    scale: float
    softcap: float
    mask: tuple[MaskPart, ...]
    scores: gs.Tensor
    shape: Shape
    guards: bool
    casts: bool
    product: Node
    result: Node | None


@dataclass
class _Scores:
    """What lies between the first product and the Softmax, read from the Softmax up.

    Attributes:
        flow: the shapes.
        ndim: axes of the scores, three or four.
        scale: of the scores.
        softcap: what bounds them, 0 where nothing does.
        mask: the parts so far, first one first.
        is_cast: whether they are cast to float32.
        cut: the shape in which the first axis is cut in two, where it is: in batch and windows of
            four axes, in batch and heads of three.
    """

    flow: SizeFlow
    ndim: int
    scale: float = 1.0
    softcap: float = 0.0
    mask: list[MaskPart] = field(default_factory=list)
    is_cast: bool = False
    cut: Shape | None = None

    @property
    def windows(self) -> tuple[Size, Size] | None:
        """Batch and windows, where the first axis is cut in these."""
        return None if self.cut is None or self.ndim == 3 else (self.cut[0], self.cut[1])

    def parts(self) -> tuple[MaskPart, ...]:
        """The mask; a Max before all others does nothing, as no score is that low."""
        return tuple(itertools.dropwhile(lambda part: part.floor is not None, self.mask))

    def pass_reshape(self, node: Node) -> bool:
        """Whether a Reshape only cuts the first axis in two, or joins it again."""
        joined, cut = (self.flow.shape(tensor) for tensor in (node.outputs[0], node.inputs[0]))
        if self.cut is not None:
            joined, cut = cut, joined
        if joined is None or cut is None or len(joined) != self.ndim or len(cut) != self.ndim + 1:
            return False
        if cut[2:] != joined[1:] or (self.cut is not None and self.cut[1:] != cut[1:]):
            return False  # what is left of the elements is the size of the first axis
        self.cut = cut if self.cut is None else None
        return True


def read_attention(rw: Rewriter, flow: SizeFlow, softmax: Node) -> SpelledAttention:
    """The attention that `softmax` is part of.

    Raises:
        NotAttention: saying why it is none, or none that can be written as one operator.
    """
    product, guards, is_cast_back = _second_product(rw, softmax)
    scores = _Scores(flow, rank(softmax.inputs[0]) or 4)
    first = _first_product(rw, softmax, scores)
    if not _is_last_axis(softmax):
        raise NotAttention("the Softmax is not over the last axis")
    if scores.is_cast != is_cast_back:
        raise NotAttention("scores are of another type than the weights of the values")
    home = rw.graph_of(softmax)
    if any(rw.graph_of(node) is not home for node in (product, first)):
        raise NotAttention("its products lie in other graphs than the Softmax")
    dtype = first.inputs[0].dtype or first.outputs[0].dtype
    if dtype is None or np.dtype(dtype).name not in _TYPES:
        raise NotAttention("its values are neither float32 nor float16")
    query_tensor, key_tensor = first.inputs
    value_tensor = product.inputs[1]
    ranks = {rank(tensor) for tensor in (query_tensor, key_tensor, value_tensor)}
    if ranks not in ({3}, {4}) or ranks != {scores.ndim}:
        raise NotAttention("its operands are not known to be (batch, heads, length, width)")
    query = _read_operand(rw, flow, query_tensor, scaled=True)
    key = _read_operand(rw, flow, key_tensor, is_transposed=True, scaled=True)
    value = _read_operand(rw, flow, value_tensor, scaled=False)
    key, value = _paired(rw, flow, key, value, scores.mask)
    shape = _shape(flow, first, query)
    query = _with_heads(query, shape)
    _check_sizes(query, key, value)
    if scores.is_cast and scores.mask:
        raise NotAttention("its mask is applied in another type than that of the values")
    result = _result(rw, flow, product, query.sizes[1])
    return SpelledAttention(
        query,
        key,
        value,
        key_tensor,
        scores.scale,
        scores.softcap,
        scores.parts(),
        first.outputs[0],
        shape,
        guards,
        scores.is_cast,
        product,
        result,
    )


def _shape(flow: SizeFlow, first: Node, query: Operand) -> Shape:
    """Batch, heads, length and total length of the scores."""
    shape = flow.shape(first.outputs[0])
    if shape is None:
        raise NotAttention("nothing is known of the shape of its scores")
    return shape if len(shape) == 4 else (*query.sizes[:3], shape[2])


# ------------------------------------------------------------------------------ below the Softmax


def _second_product(rw: Rewriter, softmax: Node) -> tuple[Node, bool, bool]:
    """The product with the values, whether NaN becomes zero before it, whether there is a Cast."""
    tensor, guards, is_cast = softmax.outputs[0], False, False
    while True:
        where = None if guards else _guard(rw, tensor)
        user = where or _only_user(rw, tensor)
        if user.op == "MatMul":
            if user.inputs[0] is not tensor or user.inputs[1] is tensor:
                raise _no_product()
            return user, guards, is_cast
        if user.op == "Dropout" and is_training_dropout(user, rw.opset):
            raise NotAttention(f"the Dropout `{node_label(user)}` may drop some of its weights")
        guards = guards or where is not None
        if user.op == "Cast" and not _keeps_type(user) and not is_cast:
            is_cast = True
        elif where is None and user.op not in ("Identity", "Dropout") and not _keeps_type(user):
            raise _no_product()
        tensor = user.outputs[0]


def _keeps_type(node: Node) -> bool:
    """Whether it is a Cast to the type that its input has."""
    if node.op != "Cast":
        return False
    source, result = node.inputs[0].dtype, node.outputs[0].dtype
    return source is not None and bool(source == result)


def _no_product() -> NotAttention:
    return NotAttention("no product reads the Softmax alone", is_close=False)


def _only_user(rw: Rewriter, tensor: gs.Tensor) -> Node:
    """The one node that reads weights."""
    users: list[Node] = [user for user in tensor.outputs if user.is_onnx]
    is_close = any(user.op == "MatMul" and user.inputs[0] is tensor for user in users)
    if rw.is_output(tensor):
        raise NotAttention("its weights are an output of the graph", is_close=is_close)
    if rw.uses(tensor) != 1 or not users:
        raise NotAttention(f"its weights `{tensor.name}` are used elsewhere", is_close=is_close)
    return users[0]


def _guard(rw: Rewriter, tensor: gs.Tensor) -> Node | None:
    """The Where in Where(IsNaN(x), 0, x), if that is all that reads `tensor`."""
    users = list(tensor.outputs)
    if rw.uses(tensor) != 2:
        return None
    where = next((user for user in users if user.op == "Where"), None)
    if where is None or where.inputs[2] is not tensor or not is_filled_with(where.inputs[1], 0.0):
        return None
    test = rw.private_producer(where.inputs[0], "IsNaN")
    return where if test is not None and test in users else None


# ------------------------------------------------------------------------------ above the Softmax


def _first_product(rw: Rewriter, softmax: Node, scores: _Scores) -> Node:
    """The product of Q and K; fills `scores` with what is done to it."""
    tensor = softmax.inputs[0]
    for _ in range(_LONGEST):
        node = rw.producer(tensor)
        if node is None or not node.is_onnx:
            break
        if node.op == "MatMul":
            if any(const_value(operand) is not None for operand in node.inputs):
                break
            _check_private(rw, tensor)
            if scores.cut is not None:
                break
            return node
        above = _step(rw, node, tensor, scores)
        _check_private(rw, tensor)
        tensor = above
    raise NotAttention("no product of two computed tensors is before it", is_close=False)


def _check_private(rw: Rewriter, tensor: gs.Tensor) -> None:
    if rw.private_producer(tensor) is None:
        raise NotAttention(f"the scores `{tensor.name}` are used elsewhere")


def _step(rw: Rewriter, node: Node, tensor: gs.Tensor, scores: _Scores) -> gs.Tensor:
    """The scores above `node`; notes in `scores` what it does to them."""
    scaled = scaling(rw, tensor)
    if scaled is not None:
        scores.scale *= scaled[2]
        return scaled[1]
    if node.op in ("Add", "Where", "Max"):
        return _mask_step(rw, node, scores)
    if node.op == "Tanh" and not scores.softcap and scores.scale > 0:
        scores.softcap = scores.scale  # and c·tanh(x / c) has x as scores
        return node.inputs[0]
    if (
        node.op == "Identity"
        or _keeps_type(node)
        or (node.op == "Reshape" and scores.pass_reshape(node))
    ):
        return node.inputs[0]
    if node.op == "Cast" and not scores.is_cast and node.attrs["to"] == onnx.TensorProto.FLOAT:
        scores.is_cast = True
        return node.inputs[0]
    is_close = _leads_to_product(rw, tensor, _LONGEST)
    raise NotAttention(f"its scores go through `{node_label(node)}` ({node.op})", is_close=is_close)


def _mask_step(rw: Rewriter, node: Node, scores: _Scores) -> gs.Tensor:
    """The scores above an operator that masks, or bounds what is masked."""
    if scores.softcap or scores.scale != 1:
        raise NotAttention("its scores are scaled or bounded after the mask")
    if node.op == "Where" and scores.windows is not None:
        raise NotAttention(f"`{node_label(node)}` masks windows by a condition")
    places = (1, 2) if node.op == "Where" else (0, 1)
    place = _scores_place(rw, node, places)
    if node.op == "Max" and len(node.inputs) != 2:
        raise NotAttention(f"`{node_label(node)}` bounds its scores")
    other = node.inputs[sum(places) - place]
    if node.op == "Add":
        part = MaskPart(addend=other, windows=scores.windows)
    else:
        number = const_array(other)
        if number is None or number.size != 1:
            raise NotAttention(f"`{node_label(node)}` masks with a value that is not constant")
        value = float(number.reshape(-1)[0])
        if not value <= (_LOWEST if node.op == "Max" else _LOW):
            raise NotAttention(f"`{node_label(node)}` masks with {value:g}, which leaves a weight")
        if node.op == "Max":
            part = MaskPart(floor=value)
        else:
            part = MaskPart(condition=node.inputs[0], keeps=place == 1, value=value)
    is_folded = scores.ndim == 3 and scores.cut is None
    if is_folded and part.read is not None and not _is_for_all(scores.flow, part.read):
        raise NotAttention(f"`{node_label(node)}` masks batch and heads as one axis")
    scores.mask.insert(0, part)
    return node.inputs[place]


def _is_for_all(flow: SizeFlow, mask: gs.Tensor) -> bool:
    """Whether a mask of scores of three axes is the same along the first of them."""
    shape = flow.shape(mask)
    return shape is not None and (len(shape) < 3 or (len(shape) == 3 and shape[0] == 1))


def _scores_place(rw: Rewriter, node: Node, places: Sequence[int]) -> int:
    """Which input of `node` comes from a product of two computed tensors."""
    found = [place for place in places if _leads_to_product(rw, node.inputs[place], _LONGEST)]
    if len(found) != 1:
        raise NotAttention("no product of two computed tensors is before it", is_close=False)
    return found[0]


def _leads_to_product(rw: Rewriter, tensor: gs.Tensor, depth: int) -> bool:
    """Whether a product of two computed tensors is above, with only score arithmetic between."""
    node = rw.producer(tensor)
    if node is None or not node.is_onnx or depth == 0 or const_value(tensor) is not None:
        return False
    if node.op == "MatMul":
        return all(const_value(operand) is None for operand in node.inputs)
    if node.op not in _ON_SCORES:
        return False
    return any(_leads_to_product(rw, item, depth - 1) for item in node.inputs if item.name)


_ON_SCORES: Final = frozenset(
    {"Add", "Cast", "Clip", "Div", "Identity", "Max", "Min", "Mul", "Reshape", "Sub", "Sum", "Tanh"}
    | {"Transpose", "Where"}
)


def _is_last_axis(softmax: Node) -> bool:
    ndim = rank(softmax.inputs[0])
    axis = int(softmax.attrs.get("axis", -1))
    return axis == -1 or (ndim is not None and axis == ndim - 1)


# ------------------------------------------------------------------------------ operands


def _read_operand(
    rw: Rewriter,
    flow: SizeFlow,
    tensor: gs.Tensor,
    *,
    scaled: bool,
    is_transposed: bool = False,
) -> Operand:
    """Q, K or V; `is_transposed` says whether the width of `tensor` comes before the length."""
    found = followed_chain(rw, flow, tensor, scaled=scaled)
    if found is None:
        raise NotAttention(f"nothing is known of the shape of `{tensor.name}`")
    factors, chain, layout = found.factors, found.tensors, found.layout(-1)
    *lead, length, width = layout
    if is_transposed:
        length, width = width, length
    batch, heads = lead if len(lead) == 2 else _batch_and_heads(flow, found, lead[0])
    own = tuple(factor for factor in heads if factor not in factors.repeating)
    if heads[: len(own)] != own:  # the repeats are no groups of neighbours
        own = heads
    scales = _scales_below(rw, found.nodes)
    split, wide = _places(factors.layouts, chain, (batch, own, length, width))
    if split is None and wide is None:  # heads are never apart from their repeats
        own = heads
        split, wide = _places(factors.layouts, chain, (batch, own, length, width))
    whole = (batch, own, length, width)
    return Operand(
        None if split is None else chain[split],
        None if wide is None else chain[wide],
        tuple(map(factors.size, whole)),  # type: ignore[arg-type]
        1.0 if split is None else scales[split],
        1.0 if wide is None else scales[wide],
    )


def _batch_and_heads(flow: SizeFlow, chain: MovingChain, joined: Axis) -> tuple[Axis, Axis]:
    """The parts of the first axis of three, as they lie apart in a tensor of four."""
    for tensor in chain.tensors:
        layout = chain.factors.layouts[tensor]
        for heads in layout[1:] if len(layout) == 4 else ():
            if layout[0] + heads == joined and isinstance(chain.factors.size(heads), int):
                return layout[0], heads
    raise NotAttention("its batch and heads are not known apart")


def _places(
    layouts: dict[gs.Tensor, Layout],
    chain: Sequence[gs.Tensor],
    whole: tuple[Axis, Axis, Axis, Axis],
) -> tuple[int | None, int | None]:
    """Where a chain has an operand with its heads apart, and with its heads beside its width."""
    batch, heads, length, width = whole
    wide = _place(layouts, chain, (batch, length, heads + width))
    if wide is None:
        wide = _place(layouts, chain, (batch, length, heads, width))
    return _place(layouts, chain, whole), wide


def _place(
    layouts: dict[gs.Tensor, Layout], chain: Sequence[gs.Tensor], wanted: tuple[Axis, ...]
) -> int | None:
    found = (place for place, tensor in enumerate(chain) if layouts[tensor] == wanted)
    return next(found, None)


def _scales_below(rw: Rewriter, nodes: Sequence[Node]) -> list[float]:
    """The product of the numbers that a chain multiplies by, from each of its tensors on."""
    scales = [1.0]
    for node in reversed(nodes):
        read = scaling(rw, node.outputs[0])
        scales.insert(0, scales[0] * (1.0 if read is None else read[2]))
    return scales


def _paired(
    rw: Rewriter, flow: SizeFlow, key: Operand, value: Operand, mask: Sequence[MaskPart]
) -> tuple[Operand, Operand]:
    """K and V with their caches, or both without; with as many heads each."""
    if key.sizes[1] != value.sizes[1]:
        raise NotAttention("K and V are not known to have as many heads")
    cached = _cached(rw, flow, key), _cached(rw, flow, value)
    if cached[0] is None or cached[1] is None:
        return key, value
    joined = {item.present.outputs[0] for item in cached if item and item.present}
    read = [part.read for part in mask if part.read is not None]
    if _is_above(joined, read):  # Attention would make what it reads
        return key, value
    return cached[0], cached[1]


def _is_above(tensors: set[gs.Tensor], read: Sequence[gs.Tensor]) -> bool:
    """Whether one of `tensors` is needed to compute one of `read`."""
    stack, seen = list(read), set(read)
    while stack:
        tensor = stack.pop()
        if tensor in tensors:
            return True
        for node in tensor.inputs:
            fresh = [item for item in node.inputs if item not in seen]
            seen.update(fresh)
            stack += fresh
    return False


def _cached(rw: Rewriter, flow: SizeFlow, operand: Operand) -> Operand | None:
    """The rows that an operand adds to those of its cache; None where it has none."""
    concat = None if operand.split is None else rw.producer(operand.split, "Concat")
    if concat is None or len(concat.inputs) != 2 or int(concat.attrs["axis"]) not in (2, -2):
        return None
    past, rows = concat.inputs
    if const_value(past) is not None or const_value(rows) is not None:
        return None
    new = _read_operand(rw, flow, rows, scaled=False)
    if new.sizes[1] != operand.sizes[1]:
        return None
    scale = operand.split_scale
    return replace(new, split=rows, split_scale=scale, wide_scale=scale, past=past, present=concat)


def _with_heads(query: Operand, scores: Shape) -> Operand:
    """Q with the number of heads that its product with K has, where its own is not known."""
    batch, heads, length, width = query.sizes
    if isinstance(heads, int) or not isinstance(scores[1], int):
        return query
    return replace(query, sizes=(batch, scores[1], length, width))


def _check_sizes(query: Operand, key: Operand, value: Operand) -> None:
    sizes = {operand.sizes[0] for operand in (query, key, value)}
    if len({size for size in sizes if isinstance(size, int) and size != 1}) > 1:
        raise NotAttention("its operands have other batch sizes")
    if len(sizes) > 1 and key.past is not None:
        raise NotAttention("the cache is not known to have the batch size of Q")
    heads, groups = query.sizes[1], key.sizes[1]
    if heads == groups:
        return
    if not isinstance(heads, int) or not isinstance(groups, int) or heads % groups:
        raise NotAttention("the heads of Q are not known to be a multiple of those of K")


# ------------------------------------------------------------------------------ the result


def _result(rw: Rewriter, flow: SizeFlow, product: Node, count: Size) -> Node | None:
    """The Reshape behind the second product that joins the `count` heads again."""
    factors = AxisFactors(flow)
    tensor = product.outputs[0]
    if not factors.begin(tensor):
        return None
    for _ in range(_LONGEST):
        if rw.uses(tensor) != 1 or not tensor.outputs:
            return None
        node: Node = tensor.outputs[0]
        if not node.is_onnx or node.inputs[0] is not tensor:
            return None
        if node.op not in ("Transpose", "Reshape", "Flatten", "Identity"):
            return None
        if rw.graph_of(node) is not rw.graph_of(product) or not factors.follow([node], tensor):
            return None
        tensor = node.outputs[0]
        *lead, length, width = factors.layouts[product.outputs[0]]
        batch, heads = lead if len(lead) == 2 else _cut_heads(factors, lead[0], count)
        flat = tuple(factor for axis in factors.layouts[tensor] for factor in axis)
        if node.op == "Reshape" and flat == batch + length + heads + width:
            return node
    return None


def _cut_heads(factors: AxisFactors, joined: Axis, count: Size) -> tuple[Axis, Axis]:
    """Batch and heads, joined on one axis; the cut is where the heads are `count`."""
    cuts = (place for place in range(len(joined) + 1) if factors.size(joined[place:]) == count)
    place = next(cuts, 0)
    return joined[:place], joined[place:]


def joins_heads(flow: SizeFlow, result: Node, found: SpelledAttention) -> bool:
    """Whether the result is (batch, length, heads·width), and no other cut of it."""
    shape, whole = flow.shape(result.outputs[0]), flow.shape(found.product.outputs[0])
    if shape is None or whole is None or len(shape) != 3:
        return False
    batch = whole[0] if len(whole) == 4 else found.shape[0]
    return shape[:2] == (batch, whole[-2])


def has_cut_free_target(result: Node) -> bool:
    """Whether a Reshape copies no axis but the first two of its input, if any."""
    target = const_array(result.inputs[1])
    if target is None or result.attrs.get("allowzero", 0):
        return True
    return all(size != 0 for size in target.reshape(-1)[2:])


class MaskValues:
    """Which of the lowest values a mask may hold, by the constants that it is computed from.

    Attributes:
        least: the least finite number of its type.
        next: the number above it.
        has_infinity: whether a constant is -inf.
        is_open: whether an input of the graph decides as well.
        is_summed: whether `least` is added to something, and so may not become another number.
        lowest: reads of constants in which some element is `least`: the node, and the index of its
            input; None where the constant is its attribute `value`.
    """

    def __init__(self, mask: gs.Tensor, dtype: np.dtype[Any]) -> None:
        self.least = float(np.finfo(dtype).min)
        self.next = float(np.nextafter(np.finfo(dtype).min, np.zeros((), dtype)))
        self.has_infinity = False
        self.is_open = False
        self.is_summed = False
        self.lowest: list[tuple[Node, int | None]] = []
        stack, seen = [mask], {mask}
        while stack:
            tensor = stack.pop()
            if not tensor.inputs:
                self.is_open = True
                continue
            node = tensor.inputs[0]
            if node.op == "ConstantOfShape" and self._is_low(node.attrs.get("value")):
                self.lowest.append((node, None))
            for index, item in enumerate(node.inputs):
                if item in seen or not item.name or item.dtype != dtype:
                    continue
                if const_value(item) is not None:
                    if self._is_low(item) and node.op in _SUMS:
                        self.is_summed = True  # m·max − max, for one
                    elif self._is_low(item):
                        self.lowest.append((node, index))
                elif node.op not in _FINITE:
                    seen.add(item)
                    stack.append(item)

    def _is_low(self, constant: gs.Tensor | None) -> bool:
        """Whether a constant holds `least`; notes whether it holds -inf."""
        stored = None if constant is None else const_value(constant)
        if constant is None or stored is None or stored.size > _MOST_MASKED:
            return False
        array = const_array(constant)
        if array is None or array.dtype.kind != "f":
            return False
        self.has_infinity = self.has_infinity or bool(np.isneginf(array).any())
        return bool((array == self.least).any())


_SUMS: Final = frozenset({"Add", "Mean", "Sub", "Sum"})
_FINITE: Final = frozenset({"Conv", "Gemm", "MatMul", "LayerNormalization", "Softmax", "Tanh"})
_MOST_MASKED: Final = 1 << 22  # elements of a constant that are looked at
