"""How labels go through Attention and RotaryEmbedding as operators: whole heads leave.

Operands are (batch, heads, length, width), or (batch, length, heads·width) with the number of heads
in an attribute; labels are looked at in the first form. Columns of a head are mixed, so they leave
together, and a key and a value leave with all queries that share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.channels.edits_operands import CountAttribute
from onnxslim.channels.labels import ChannelLabels, LabelArray, ids_along, labelled_axes
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Untraceable, on_data
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value, is_present

_HEADS: Final = 1  # axes of (batch, heads, length, width)
_WIDTH: Final = 3
_MASK, _PAST_KEY, _PAST_VALUE = 3, 4, 5  # operands of Attention


def _by_head(
    node: Node, tracer: ChannelTracer, tensor: gs.Tensor, heads: int | None
) -> tuple[LabelArray | None, int]:
    """The labels of an operand, (1, heads, 1, width) or 1 for either, and the number of heads.

    Labels of batches and of positions are pinned. `heads` is the number for an operand of rank 3.
    """
    shape, labels = tracer.shape(tensor), tracer.labels(tensor)
    count = shape[_HEADS] if len(shape) == 4 else heads
    if not isinstance(count, int) or (len(shape) == 3 and not count):
        raise Untraceable("its number of heads is not known")
    channels = {_HEADS, _WIDTH} if len(shape) == 4 else {2}
    found = [array for array in labels if labelled_axes(array) <= channels]
    for array in labels:
        if not labelled_axes(array) <= channels:
            tracer.pin(array, f"`{node_label(node)}` ({node.op}) takes them as positions")
    if len(found) > 1:  # heads and columns apart: columns are mixed
        found = list(tracer.collapsed(tuple(found), frozenset({_WIDTH}), _why(node)))
    if not found:
        return None, count
    if len(shape) == 3:
        found = [found[0].reshape(1, count, 1, -1)]
    if found[0].shape[_HEADS] not in (1, count):
        raise Untraceable("its number of heads is not known")
    return found[0], count


def _why(node: Node) -> str:
    return f"`{node_label(node)}` ({node.op}) mixes the columns of a head"


def _back(array: LabelArray, rank: int) -> LabelArray:
    """Labels by head in an operand of `rank` axes."""
    return array if rank == 4 else array.reshape(1, 1, -1)


def attention(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Attention: heads of Q, K and V leave together, with those of the mask and of the cache."""
    if not any(tracer.labels(tensor) for tensor in node.inputs):
        return ()
    tracer.pin_all(node.inputs[6:], f"`{node_label(node)}` ({node.op}) takes them as lengths")
    q_count, kv_count = (node.attrs.get(name) for name in ("q_num_heads", "kv_num_heads"))
    q, heads = _by_head(node, tracer, node.inputs[0], q_count)
    k, shared = _by_head(node, tracer, node.inputs[1], kv_count)
    v, _ = _by_head(node, tracer, node.inputs[2], kv_count)
    k = _with_past(node, tracer, _PAST_KEY, k)
    v = _with_past(node, tracer, _PAST_VALUE, v)
    rows = _one_of_head(node, tracer, q)
    keys = _one_of_head(node, tracer, k)
    values, width = v, _width(tracer, node.inputs[2], shared)
    if shared == 1 < heads:
        # one key and one value stay for all queries
        for array in (keys, values):
            if array is not None:
                tracer.pin(array, f"`{node_label(node)}` ({node.op}) needs them for all heads")
        values = None if rows is None else np.broadcast_to(rows, (1, heads, 1, width))
        keys = k = v = None
    else:
        values, rows = _merged(node, tracer, rows, keys, values, heads // shared)
    rows = _with_mask(node, tracer, rows, heads)
    rank = tracer.rank(node.inputs[0])
    if rank == 3:
        _count_heads(node, tracer, rows, keys, heads)
    results = (None if values is None else _back(values, rank), k, v, rows)
    return tuple(() if array is None or array.size == 1 else (array,) for array in results)


def _width(tracer: ChannelTracer, value: gs.Tensor, shared: int) -> int:
    size = tracer.shape(value)[-1]
    if not isinstance(size, int):
        raise Untraceable(f"it is not known how long `{value.name}` is")
    return size if tracer.rank(value) == 4 else size // shared


def _one_of_head(node: Node, tracer: ChannelTracer, array: LabelArray | None) -> LabelArray | None:
    """One label of each head, (1, heads, 1, 1), as all its columns leave together."""
    if array is None:
        return None
    return next(iter(tracer.collapsed((array,), frozenset({_WIDTH}), _why(node))), None)


def _merged(
    node: Node,
    tracer: ChannelTracer,
    rows: LabelArray | None,
    keys: LabelArray | None,
    values: LabelArray | None,
    repeats: int,
) -> tuple[LabelArray | None, LabelArray | None]:
    """The labels of the result and of the scores, once heads of Q, K and V are merged.

    Each key and value is for `repeats` queries. Where one of the three has no labels of heads, the
    heads of the others stay.
    """
    why = f"`{node_label(node)}` ({node.op}) joins them with heads that must stay"
    spread = None if values is None else np.repeat(values, _repeats(values, repeats), _HEADS)
    by_head = [
        array for array in (rows, keys, values) if array is not None and array.shape[_HEADS] > 1
    ]
    if len(by_head) < 3:
        for array in by_head:
            tracer.keep_whole(array, frozenset({_HEADS}), why)
        return spread, None
    assert rows is not None
    assert keys is not None
    assert spread is not None
    rows = tracer.merge(rows, np.repeat(keys, repeats, _HEADS), why)
    return tracer.merge(spread, np.broadcast_to(rows, spread.shape), why), rows


def _repeats(array: LabelArray, repeats: int) -> int:
    return repeats if array.shape[_HEADS] > 1 else 1


def _with_past(
    node: Node, tracer: ChannelTracer, operand: int, array: LabelArray | None
) -> LabelArray | None:
    """The labels of keys or values, merged with those of the cache that they are appended to."""
    if not is_present(node, operand):
        return array
    cache = node.inputs[operand]
    past, _ = _by_head(node, tracer, cache, None)
    why = tracer.joins(node, cache)
    if past is not None and array is not None:
        return tracer.merge(past, array, why)
    for alone in (past, array):
        if alone is not None:
            tracer.pin(alone, why)
    return array


def _with_mask(
    node: Node, tracer: ChannelTracer, rows: LabelArray | None, heads: int
) -> LabelArray | None:
    """The labels of the scores by head, merged with those of a mask that has heads."""
    if not is_present(node, _MASK):
        return rows
    mask = node.inputs[_MASK]
    axis = tracer.rank(mask) - 3
    why = tracer.joins(node, mask)
    own = ids_along(tracer.labels(mask), axis) if axis >= 0 else None
    for array in tracer.labels(mask):
        if labelled_axes(array) != {axis}:
            tracer.pin(array, why)
    if rows is None:
        if own is not None:
            tracer.pin(own, why)
        return None
    if own is not None:
        return tracer.merge(rows, own.reshape(1, -1, 1, 1), why)
    if axis >= 0 and tracer.shape(mask)[axis] != 1:
        if const_value(mask) is not None:
            tracer.slice_operand(node, _MASK, axis, rows, _HEADS)
        elif tracer.without_repeats(node, _MASK, rows, frozenset({_HEADS}), 4):
            tracer.pin(rows, why)
    return rows


def _count_heads(
    node: Node,
    tracer: ChannelTracer,
    rows: LabelArray | None,
    keys: LabelArray | None,
    heads: int,
) -> None:
    for name, array in (("q_num_heads", rows), ("kv_num_heads", keys)):
        if array is not None and array.size > 1:
            tracer.trace.edits.append(CountAttribute(node, name, array.reshape(-1)))


@on_data
def rotary_embedding(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """RotaryEmbedding turns pairs of columns of each head by tables that all heads share."""
    rank = tracer.rank(node.inputs[0])
    array, _ = _by_head(node, tracer, node.inputs[0], node.attrs.get("num_heads"))
    if array is None:
        return ()
    tracer.keep_whole(array, labelled_axes(array) & {_WIDTH}, _why(node))
    if rank == 3:
        heads = array[:, :, :, 0].reshape(-1)
        tracer.trace.edits.append(CountAttribute(node, "num_heads", heads))
    return ((_back(array, rank),),)


RULES: Final[Mapping[str, ChannelRule]] = {
    "Attention": attention,
    "RotaryEmbedding": rotary_embedding,
}
