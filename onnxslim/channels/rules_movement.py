"""Operators that only move values: names go where the values go.

Where an operator is told sizes, positions or indices, they are cut with the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import slice_ranges
from onnxslim.channels.labels import (
    NONE,
    ChannelLabels,
    LabelArray,
    along_axis,
    by_shared_axes,
    ids_along,
    labelled_axes,
    transposed,
    with_rank,
)
from onnxslim.channels.labels import reshaped as reshaped_labels
from onnxslim.channels.removal import (
    GatherIndices,
    Permutation,
    SliceRange,
    SplitSizes,
)
from onnxslim.channels.rules_sizes import patch_sizes, python_slice, shape_of
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Member, Untraceable
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import (
    axes_of,
    const_array,
    const_value,
    ints_operand,
    is_present,
    normalized,
)

_RESHAPE_INPUT_SINCE: Final = 5  # the opset in which sizes are an input


def transpose(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Names move with the axes."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    perm = node.attrs.get("perm") or list(reversed(range(labels[0].ndim)))
    return (transposed(labels, [int(axis) for axis in perm]),)


def reshape(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Reshape, Flatten, Squeeze and Unsqueeze."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    if _shuffle(node, tracer, labels):
        return ()
    shape, target = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
    result = reshaped_labels(labels, shape, target)
    if result is None:
        sizes = ", ".join(map(str, shape))
        raise Untraceable(f"it is not known where the axes of ({sizes}) go")
    if any(len(members) > 1 for members in by_shared_axes(result)):
        raise Untraceable("it makes one axis of two on which there are channels")
    if node.op == "Reshape" and tracer.opset < _RESHAPE_INPUT_SINCE:
        raise Untraceable(f"it takes its sizes as before opset {_RESHAPE_INPUT_SINCE}")
    if node.op == "Reshape":
        patch_sizes(node, tracer, 1, result)
        _patch_unlabelled(node, tracer, labels, result)
    return (result,)


def _shuffle(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> bool:
    """Whether Reshape, Transpose and Reshape only put the channels in another order.

    Such a shuffle is then followed as one step, and becomes a Gather if channels leave: the two
    inner shapes need not be kept rectangular.
    """
    swap = _only_user(tracer, node, "Transpose")
    last = None if swap is None else _only_user(tracer, swap, "Reshape", "Flatten")
    if swap is None or last is None or len(labels) != 1 or len(labelled_axes(labels[0])) != 1:
        return False
    shapes = [tracer.flow.shape(t.outputs[0]) for t in (node, swap, last)]
    whole = tracer.flow.shape(node.inputs[0])
    if whole is None or any(shape is None for shape in shapes) or shapes[2] != whole:
        return False
    (axis,) = labelled_axes(labels[0])
    places = along_axis(np.arange(labels[0].shape[axis]), axis, labels[0].ndim)
    split = reshaped_labels((places,), whole, shapes[0] or ())
    if not split or len(labelled_axes(split[0])) < 2:
        return False
    perm = swap.attrs.get("perm") or list(reversed(range(split[0].ndim)))
    order = reshaped_labels(transposed(split, perm), shapes[1] or (), whole)
    if not order or labelled_axes(order[0]) != {axis}:
        return False
    indices = order[0].reshape(-1)
    tracer.trace.edits.append(Permutation(last, node.inputs[0], axis, indices, labels[0]))
    tracer.arrived[last] = (labels[0].take(indices, axis),)
    return True


def _only_user(tracer: ChannelTracer, node: Node, *ops: str) -> Node | None:
    (tensor,) = node.outputs
    if len(tensor.outputs) != 1 or any(tensor is out for out in tracer.graph.outputs):
        return None
    user: Node = tensor.outputs[0]
    return user if user.is_onnx and user.op in ops else None


def _patch_unlabelled(
    node: Node, tracer: ChannelTracer, before: ChannelLabels, after: ChannelLabels
) -> None:
    """Where names vanish although the input had some, sizes could not follow."""
    if sum(array.size > 1 for array in before) != len(after):
        for array in before:
            tracer.pin(array, f"`{node_label(node)}` ({node.op}) hides them")


def concat(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Along its axis names follow each other; along others they meet, and constants are cut."""
    tensors = list(node.inputs)
    if not any(tracer.labels(tensor) for tensor in tensors):
        return ()
    rank = tracer.rank(tensors[0])
    axis = int(node.attrs.get("axis", 1)) % rank
    why = f"`{node_label(node)}` (Concat) joins them with channels that must stay"
    across = [f for t in tensors for f in tracer.labels(t) if axis not in labelled_axes(f)]
    joined = tracer.joined(across, why)
    for index, tensor in enumerate(tensors):
        _meet_others(node, tracer, index, tensor, joined, axis)
    parts = [next((f for f in tracer.labels(t) if axis in labelled_axes(f)), None) for t in tensors]
    if any(part is not None for part in parts):
        joined += (_concatenated(node, tracer, parts, axis),)
    return (tracer.joined(joined, why),)


def _meet_others(
    node: Node,
    tracer: ChannelTracer,
    index: int,
    tensor: gs.Tensor,
    labels: ChannelLabels,
    axis: int,
) -> None:
    """Along the axes that are not joined, one operand's names are those of all."""
    own = {ax for array in tracer.labels(tensor) for ax in labelled_axes(array)}
    for array in labels:
        for at in labelled_axes(array) - own:
            if const_value(tensor) is not None:
                tracer.slice_operand(node, index, at, array, at)
            else:
                tracer.pin(array, f"`{node_label(node)}` (Concat) joins them with `{tensor.name}`")


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
        whole = np.full(wanted, NONE) if part is None else np.broadcast_to(part, wanted)
        if part is None or part.shape[axis] == size:
            pieces.append(whole)
    return np.concatenate(pieces, axis)


def split(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Each part has the names of its range."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
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
        parts = np.split(array, np.cumsum(known)[:-1], axis)
        tracer.trace.edits.append(SplitSizes(node, axis, tuple(parts), tuple(known), tracer.opset))
        for part, result in zip(parts, results, strict=True):
            result += _at_least_two(tracer, node, part)
    return tuple(tuple(result) for result in results)


def _at_least_two(tracer: ChannelTracer, node: Node, part: LabelArray) -> list[LabelArray]:
    """The part of a array; where it is a single channel, that one must stay."""
    if labelled_axes(part):
        return [part]
    tracer.pin(part, f"`{node_label(node)}` ({node.op}) takes it alone")
    return []


def slice_(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """The names in the range."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    ranges = slice_ranges(node, tracer.flow)
    if ranges is None:
        raise Untraceable("its range is computed at run time")
    sizes = {
        axis: array.shape[axis] for array in labels for axis in labelled_axes(array) & set(ranges)
    }
    if not sizes:
        return (labels,)
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
        raise Untraceable("it takes nothing")
    return positions


def _follow_ranges(
    node: Node,
    tracer: ChannelTracer,
    labels: ChannelLabels,
    bounds: dict[int, tuple[int, int, int]],
    taken: Mapping[int, np.ndarray],
) -> None:
    """Let the ranges follow; a Slice with steps becomes a Gather if channels leave."""
    cuts = [(axis, array) for array in labels for axis in labelled_axes(array) & set(taken)]
    if all(bounds[axis][2] == 1 for axis in taken):
        exact = {ax: (int(at[0]), int(at[0]) + len(at), 1) for ax, at in taken.items()}
        edit = SliceRange(node, {**bounds, **exact}, tuple(cuts), tracer.opset)
        tracer.trace.edits.append(edit)
        return
    if len(bounds) > 1:
        raise Untraceable("it takes every other channel and slices other axes too")
    ((axis, array),) = cuts
    positions = taken[axis]
    result = array.take(positions, axis)
    tracer.trace.edits.append(GatherIndices(node, axis, positions, array, result, axis))


def gather(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Constant indices move names; a constant table has names for its columns."""
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
    indices = np.where(stored < 0, stored + array.shape[axis], stored).astype(np.int64)
    taken = np.take(array, indices, axis)
    if indices.size == 1 and not labelled_axes(taken):
        tracer.pin(taken, f"`{node_label(node)}` (Gather) takes it alone")
    result = taken if indices.ndim else None
    tracer.trace.edits.append(GatherIndices(node, axis, indices, array, result, axis))
    return [taken] if labelled_axes(taken) else []


def _embedding(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """A table that is looked up by row: its columns are channels."""
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


def expand(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Names are repeated along new and stretched axes by broadcasting."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    rank = tracer.rank(node.outputs[0])
    listed = tracer.shape(node.inputs[1])
    length = listed[0] if listed else 0
    if not isinstance(length, int):
        raise Untraceable("the sizes that it makes are computed at run time")
    result = tuple(with_rank(array, rank) for array in labels)
    patch_sizes(node, tracer, 1, result, rank - length)
    return (result,)


def tile(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Names are repeated."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    repeats = const_array(node.inputs[1])
    if repeats is None:
        raise Untraceable("how often it repeats is computed at run time")
    counts = [int(count) for count in repeats.reshape(-1)]
    if len(counts) != labels[0].ndim:
        raise Untraceable("it is not the Tile of opset 6 and later")
    result = []
    for array in labels:
        times = [count if size > 1 else 1 for count, size in zip(counts, array.shape, strict=True)]
        result.append(np.tile(array, times))
    return (tuple(result),)


def pad(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """What is added along an axis of channels has no name."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    rank = labels[0].ndim
    pads = ints_operand(node, tracer.opset, "pads", 1, 11)
    axes = axes_of(node, tracer.opset) or tuple(range(rank))
    places = normalized(axes, rank)
    if pads is None or places is None or len(pads) != 2 * len(places):
        raise Untraceable("its pads are computed at run time")
    result = []
    for array in labels:
        widths = [(0, 0)] * rank
        for place, axis in enumerate(places):
            if axis in labelled_axes(array):
                widths[axis] = (pads[place], pads[place + len(places)])
        if any(min(width) < 0 for width in widths):
            raise Untraceable("it cuts channels off")
        mode = node.attrs.get("mode", "constant")
        if any(map(any, widths)) and mode not in ("constant", b"constant"):
            raise Untraceable("it repeats channels")
        result.append(np.pad(array, widths, constant_values=NONE))
    return (tuple(result),)


def resize(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Resize and Upsample, which leave channels as they are."""
    labels = tracer.labels(node.inputs[0])
    if not labels:
        return ()
    shape, target = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
    for array in labels:
        for axis in labelled_axes(array):
            if shape[axis] != target[axis]:
                raise Untraceable("it is not known to leave the number of channels as it is")
    if node.op == "Resize" and is_present(node, 3):
        if "axes" in node.attrs:
            rank = len(shape)
            listed = {int(axis) % rank for axis in node.attrs["axes"]}
            if any(labelled_axes(array) & listed for array in labels):
                raise Untraceable("its sizes name channels")
        else:
            patch_sizes(node, tracer, 3, labels)
    return (labels,)


def depth_to_space(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """The channels that make one channel of the output leave together."""
    ids = _only_channels(node, tracer)
    if ids is None:
        return ()
    block = int(node.attrs["blocksize"]) ** 2
    mode = node.attrs.get("mode", "DCR")
    grid = ids.reshape(-1, block) if mode in ("CRD", b"CRD") else ids.reshape(block, -1).T
    first = np.broadcast_to(grid[:, :1], grid.shape)
    tracer.merge(first, grid, f"`{node_label(node)}` joins them with channels that must stay")
    return ((along_axis(grid[:, 0], 1, 4),),)


def space_to_depth(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Every channel of the output has the name of the channel it comes from."""
    ids = _only_channels(node, tracer)
    if ids is None:
        return ()
    return ((along_axis(np.tile(ids, int(node.attrs["blocksize"]) ** 2), 1, 4),),)


def _only_channels(node: Node, tracer: ChannelTracer) -> np.ndarray | None:
    labels = tracer.labels(node.inputs[0])
    if any(labelled_axes(array) != {1} for array in labels):
        raise Untraceable("names lie along its spatial axes")
    return ids_along(labels, 1)


def spatial_sampler(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """GridSample and RoiAlign pick positions; channels pass."""
    labels = tracer.labels(node.inputs[0])
    why = f"`{node_label(node)}` ({node.op}) takes them as positions"
    tracer.pin_all(node.inputs[1:], why)
    if not labels:
        return ()
    rank = tracer.rank(node.inputs[0])
    return (tracer.collapsed(labels, frozenset(range(rank)) - {1}, why),)


RULES: Final[Mapping[str, ChannelRule]] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("GridSample", "RoiAlign"), spatial_sampler),
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Gather": gather,
    "Pad": pad,
    "Shape": shape_of,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Tile": tile,
    "Transpose": transpose,
}

__all__ = ["RULES"]
