"""How labels go through operators that rearrange, repeat or pad: where the values go.

Lists of sizes that an operator is told follow the labels (see `rules_sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from onnxslim.channels.edits_movement import Permutation
from onnxslim.channels.labels import (
    NONE,
    ChannelLabels,
    along_axis,
    by_shared_axes,
    labelled_axes,
    transposed,
    with_rank,
)
from onnxslim.channels.labels import reshaped as reshaped_labels
from onnxslim.channels.rules_sizes import patch_sizes, shape_of
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Untraceable, on_data
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import (
    axes_of,
    const_array,
    ints_operand,
    is_present,
    normalized,
)

_RESHAPE_INPUT_SINCE: Final = 5  # the opset in which sizes are an input


@on_data
def transpose(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Labels move with the axes."""
    perm = node.attrs.get("perm") or list(reversed(range(labels[0].ndim)))
    return (transposed(labels, [int(axis) for axis in perm]),)


@on_data
def reshape(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Reshape, Flatten, Squeeze and Unsqueeze split and join axes."""
    if _shuffle(node, tracer, labels):
        return ()
    shape, target = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
    moved = reshaped_labels(labels, shape, target)
    if moved is None:
        sizes = ", ".join(map(str, shape))
        raise Untraceable(f"it is not known where the axes of ({sizes}) go")
    result = _outermost(node, tracer, moved)
    if node.op == "Reshape" and tracer.opset < _RESHAPE_INPUT_SINCE:
        raise Untraceable(f"it takes its sizes as before opset {_RESHAPE_INPUT_SINCE}")
    if node.op == "Reshape":
        patch_sizes(node, tracer, 1, result)
        _patch_unlabelled(node, tracer, labels, moved)
    return (result,)


def _outermost(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> ChannelLabels:
    """The labels where axes of channels are joined: those of the outer one; the others are pinned.

    Heads of one axis and columns of another one, which all heads share, become one axis of both.
    """
    found = []
    for members in by_shared_axes(labels):
        first, *others = sorted(members, key=lambda array: (_run(array), array.size))
        for array in others:
            tracer.pin(array, f"`{node_label(node)}` ({node.op}) joins two axes of channels")
        found.append(first)
    return tuple(found)


def _run(array: np.ndarray) -> int:
    """How many changes of labels there are along its axes: few where labels come in runs."""
    return sum(int((np.diff(array, axis=axis) != 0).sum()) for axis in labelled_axes(array))


def _shuffle(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> bool:
    """Whether Reshape, Transpose and Reshape together only reorder the channels.

    Such a shuffle is followed as one step, and becomes a Gather if channels leave, so that the two
    shapes in between need not stay rectangular.
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
    """Pin all labels if some are lost: the sizes could not follow them."""
    if sum(array.size > 1 for array in before) != len(after):
        for array in before:
            tracer.pin(array, f"`{node_label(node)}` ({node.op}) loses track of them")


@on_data
def expand(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Expand adds axes and stretches axes of size 1, along which labels are the same."""
    rank = tracer.rank(node.outputs[0])
    listed = tracer.shape(node.inputs[1])
    length = listed[0] if listed else 0
    if not isinstance(length, int):
        raise Untraceable("its target sizes are computed at run time")
    result = tuple(with_rank(array, rank) for array in labels)
    patch_sizes(node, tracer, 1, result, rank - length)
    return (result,)


@on_data
def tile(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Tile repeats labels with the channels."""
    repeats = const_array(node.inputs[1])
    if repeats is None:
        raise Untraceable("its repeats are computed at run time")
    counts = [int(count) for count in repeats.reshape(-1)]
    if len(counts) != labels[0].ndim:
        raise Untraceable("it is not the Tile of opset 6 and later")
    result = []
    for array in labels:
        times = [count if size > 1 else 1 for count, size in zip(counts, array.shape, strict=True)]
        result.append(np.tile(array, times))
    return (tuple(result),)


@on_data
def pad(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Pad adds channels without labels."""
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
                tracer.check_length(node.inputs[0], array, axis)
                widths[axis] = (pads[place], pads[place + len(places)])
        if any(min(width) < 0 for width in widths):
            raise Untraceable("it cuts channels off")
        mode = node.attrs.get("mode", "constant")
        if any(map(any, widths)) and mode not in ("constant", b"constant"):
            raise Untraceable("it repeats channels")
        result.append(np.pad(array, widths, constant_values=NONE))
    return (tuple(result),)


@on_data
def resize(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Resize and Upsample leave channels as they are."""
    shape, target = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
    for array in labels:
        for axis in labelled_axes(array):
            if shape[axis] != target[axis]:
                raise Untraceable("it may change the number of channels")
    if node.op == "Resize" and is_present(node, 3):
        if "axes" in node.attrs:
            rank = len(shape)
            listed = {int(axis) % rank for axis in node.attrs["axes"]}
            if any(labelled_axes(array) & listed for array in labels):
                raise Untraceable("its sizes are those of channels")
        else:
            patch_sizes(node, tracer, 3, labels)
    return (labels,)


@on_data
def depth_to_space(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """The channels of the input that make one channel of the output leave together."""
    ids = _only_channels(labels)
    block = int(node.attrs["blocksize"]) ** 2
    mode = node.attrs.get("mode", "DCR")
    grid = ids.reshape(-1, block) if mode in ("CRD", b"CRD") else ids.reshape(block, -1).T
    first = np.broadcast_to(grid[:, :1], grid.shape)
    tracer.merge(first, grid, f"`{node_label(node)}` joins them with channels that must stay")
    return ((along_axis(grid[:, 0], 1, 4),),)


@on_data
def space_to_depth(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """Every channel of the output has the label of the channel that it comes from."""
    ids = _only_channels(labels)
    return ((along_axis(np.tile(ids, int(node.attrs["blocksize"]) ** 2), 1, 4),),)


def _only_channels(labels: ChannelLabels) -> np.ndarray:
    if any(labelled_axes(array) != {1} for array in labels):
        raise Untraceable("channels lie along its spatial axes")
    return labels[0].reshape(-1)


def spatial_sampler(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """GridSample and RoiAlign pick positions of each channel."""
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
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Pad": pad,
    "Shape": shape_of,
    "SpaceToDepth": space_to_depth,
    "Tile": tile,
    "Transpose": transpose,
}
