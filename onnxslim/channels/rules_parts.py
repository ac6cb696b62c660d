"""How labels go through Concat, Split, Slice and Gather, which join, split or pick channels.

The sizes, ranges and indices that an operator is told are cut with the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import slice_ranges
from onnxslim.channels.edits_movement import GatherIndices, SliceRange, SplitSizes
from onnxslim.channels.labels import NONE, ChannelLabels, LabelArray, along_axis, labelled_axes
from onnxslim.channels.rules_sizes import python_slice
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Member, Untraceable, on_data
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array, const_value


def concat(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Concat appends labels along its axis; along other axes they merge, and constants are cut."""
    tensors = list(node.inputs)
    if not any(tracer.labels(tensor) for tensor in tensors):
        return ()
    rank = tracer.rank(tensors[0])
    axis = int(node.attrs.get("axis", 1)) % rank
    why = f"`{node_label(node)}` (Concat) joins them with channels that must stay"
    across = [f for t in tensors for f in tracer.labels(t) if axis not in labelled_axes(f)]
    joined = tracer.joined(across, why)
    for index, tensor in enumerate(tensors):
        _meet_others(node, tracer, index, tensor, joined)
    parts = [next((f for f in tracer.labels(t) if axis in labelled_axes(f)), None) for t in tensors]
    if any(part is not None for part in parts):
        joined += (_concatenated(node, tracer, parts, axis),)
    return (tracer.joined(joined, why),)


def _meet_others(
    node: Node, tracer: ChannelTracer, index: int, tensor: gs.Tensor, labels: ChannelLabels
) -> None:
    """Cut one operand along the axes that are not joined, or pin the labels of the others there."""
    own = {ax for array in tracer.labels(tensor) for ax in labelled_axes(array)}
    for array in labels:
        met = labelled_axes(array) - own
        if const_value(tensor) is None:
            tracer.keep_whole(array, met, tracer.joins(node, tensor))
            continue
        for at in met:
            tracer.slice_operand(node, index, at, array, at)


def _concatenated(
    node: Node, tracer: ChannelTracer, parts: Sequence[LabelArray | None], axis: int
) -> LabelArray:
    given = [part for part in parts if part is not None]
    rank = given[0].ndim
    common = [max(part.shape[ax] for part in given) for ax in range(rank)]
    pieces = []
    for part, tensor in zip(parts, node.inputs, strict=True):
        size = tracer.shape(tensor)[axis]
        if not isinstance(size, int):
            raise Untraceable(f"it is not known how long `{tensor.name}` is")
        wanted = [size if ax == axis else common[ax] for ax in range(rank)]
        if part is not None:
            tracer.check_length(tensor, part, axis)
        pieces.append(np.full(wanted, NONE) if part is None else np.broadcast_to(part, wanted))
    return np.concatenate(pieces, axis)


@on_data
def split(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Split gives each part the labels of its range."""
    axis = int(node.attrs.get("axis", 0)) % tracer.rank(node.inputs[0])
    if not any(axis in labelled_axes(array) for array in labels):
        return tuple(labels for _ in node.outputs)
    sizes = [tracer.shape(tensor)[axis] for tensor in node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        raise Untraceable("the sizes of its parts are not known")
    results: list[list[LabelArray]] = [[] for _ in sizes]
    for array in labels:
        if axis not in labelled_axes(array):
            for result in results:
                result.append(array)
            continue
        tracer.check_length(node.inputs[0], array, axis)
        parts = np.split(array, np.cumsum(known)[:-1], axis)
        tracer.trace.edits.append(SplitSizes(node, axis, tuple(parts), tuple(known), tracer.opset))
        for part, result in zip(parts, results, strict=True):
            result += _at_least_two(tracer, node, part)
    return tuple(tuple(result) for result in results)


def _at_least_two(tracer: ChannelTracer, node: Node, part: LabelArray) -> list[LabelArray]:
    """The part of an array if it labels an axis; a single channel is pinned."""
    if labelled_axes(part):
        return [part]
    tracer.pin(part, f"`{node_label(node)}` ({node.op}) takes it as a single channel")
    return []


@on_data
def slice_(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Slice keeps the labels in its range."""
    ranges = slice_ranges(node, tracer.flow)
    if ranges is None:
        raise Untraceable("its range is computed at run time")
    sizes = {
        axis: array.shape[axis] for array in labels for axis in labelled_axes(array) & set(ranges)
    }
    if not sizes:
        return (labels,)
    for array in labels:
        for axis in labelled_axes(array) & set(ranges):
            tracer.check_length(node.inputs[0], array, axis)
    bounds = _all_ints(ranges)
    taken = {axis: _positions(bounds[axis], size) for axis, size in sizes.items()}
    result: list[LabelArray] = []
    for array in labels:
        part = array
        for axis in labelled_axes(array) & set(taken):
            part = part.take(taken[axis], axis)
        result += _at_least_two(tracer, node, part)
    _follow_ranges(node, tracer, labels, bounds, taken)
    return (tuple(result),)


def _all_ints(ranges: Mapping[int, tuple[object, ...]]) -> dict[int, tuple[int, int, int]]:
    found = {}
    for axis, (start, end, step) in ranges.items():
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
            raise Untraceable("its range is computed at run time")
        found[axis] = (start, end, step)
    return found


def _positions(bounds: tuple[int, int, int], size: int) -> np.ndarray:
    start, end, step = bounds
    positions = np.arange(size)[python_slice(start, end, step, size)]
    if not len(positions):
        raise Untraceable("its range is empty")
    return positions


def _follow_ranges(
    node: Node,
    tracer: ChannelTracer,
    labels: ChannelLabels,
    bounds: dict[int, tuple[int, int, int]],
    taken: Mapping[int, np.ndarray],
) -> None:
    """Let the range follow the labels; a Slice with steps becomes a Gather if channels leave."""
    cuts = [(axis, array) for array in labels for axis in labelled_axes(array) & set(taken)]
    if all(bounds[axis][2] == 1 for axis in taken):
        exact = {ax: (int(at[0]), int(at[0]) + len(at), 1) for ax, at in taken.items()}
        edit = SliceRange(node, {**bounds, **exact}, tuple(cuts), tracer.opset)
        tracer.trace.edits.append(edit)
        return
    if len(bounds) > 1:
        raise Untraceable("it slices channels with a step, and other axes too")
    ((axis, array),) = cuts
    positions = taken[axis]
    result = array.take(positions, axis)
    tracer.trace.edits.append(GatherIndices(node, axis, positions, array, result, axis))


def gather(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Gather with constant indices picks labels; the columns of a constant table get new ones."""
    data, indices = node.inputs
    if const_value(data) is not None:
        return _embedding(node, tracer)
    labels = tracer.labels(data)
    if not labels:
        tracer.pin_all([indices], f"they are indices of `{node_label(node)}` (Gather)")
        return ()
    axis = int(node.attrs.get("axis", 0)) % labels[0].ndim
    stored = const_array(indices)
    places = tracer.rank(indices)
    result = []
    for array in labels:
        if axis not in labelled_axes(array):
            shape = (*array.shape[:axis], *(1,) * places, *array.shape[axis + 1 :])
            result.append(array.reshape(shape))
            continue
        if stored is None:
            raise Untraceable("its indices are computed at run time")
        result += _gathered(node, tracer, array, axis, stored)
    return (tuple(result),)


def _gathered(
    node: Node, tracer: ChannelTracer, array: LabelArray, axis: int, stored: np.ndarray
) -> list[LabelArray]:
    tracer.check_length(node.inputs[0], array, axis)
    indices = np.where(stored < 0, stored + array.shape[axis], stored).astype(np.int64)
    taken = np.take(array, indices, axis)
    if indices.size == 1 and not labelled_axes(taken):
        tracer.pin(taken, f"`{node_label(node)}` (Gather) takes it as a single channel")
    result = taken if indices.ndim else None
    tracer.trace.edits.append(GatherIndices(node, axis, indices, array, result, axis))
    return [taken] if labelled_axes(taken) else []


def _embedding(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """An embedding, a constant table that is looked up by row: its columns are channels."""
    table = const_value(node.inputs[0])
    tracer.pin_all([node.inputs[1]], f"they are indices of `{node_label(node)}` (Gather)")
    is_table = table is not None and len(table.shape) == 2 and table.dtype.kind == "f"
    if not is_table or int(node.attrs.get("axis", 0)) % 2 or table is None:
        return ()
    rank = tracer.rank(node.inputs[1]) + 1
    columns = tracer.fresh(table.shape[1])
    if len(columns) == 1:
        tracer.pin(columns, f"it is the only column of `{node_label(node)}`")
    if len(node.inputs[0].outputs) > 1:
        tracer.pin(columns, f"the table of `{node_label(node)}` (Gather) is used elsewhere too")
    tracer.slice_operand(node, 0, 1, columns, 0)
    tracer.trace.writers.append(Member(node, None, 0, 1, columns))
    return ((along_axis(columns, rank - 1, rank),),)


RULES: Final[Mapping[str, ChannelRule]] = {
    "Concat": concat,
    "Gather": gather,
    "Slice": slice_,
    "Split": split,
}
