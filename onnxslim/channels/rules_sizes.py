"""How sizes of axes of channels follow labels: those that are told, and those that are read.

The size that `Shape` reads of an axis of channels is followed through Gather, Slice and Concat to
where it is used. If it is used as the size of an axis with the same channels, it follows by itself
when some of them leave; otherwise the channels must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import slice_ranges
from onnxslim.channels.edits_sizes import MeasuredSize, ShapeOperand
from onnxslim.channels.labels import ChannelLabels, labelled_axes, spread_along
from onnxslim.channels.tracing import ChannelTracer, Untraceable, on_data
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array
from onnxslim.graph.sizes import Size, is_natural

_SIZES_OPERAND: Final = {"Expand": 1, "Reshape": 1, "Resize": 3}
_SAME_ELEMENTS: Final = ("Cast", "Identity", "Squeeze", "Unsqueeze")

_Places = dict[int, MeasuredSize]  # sizes that a Shape reads, by their places in a list


def patch_sizes(
    node: Node, tracer: ChannelTracer, operand: int, labels: ChannelLabels, offset: int = 0
) -> None:
    """Let the list of sizes at `operand` of Reshape, Expand or Resize follow the output's labels.

    The first size is for the axis `offset` of the output.
    """
    shape = tracer.shape(node.outputs[0])
    measured = tracer.measured.get((node, operand), {})
    right = {
        axis - offset
        for array in labels
        for axis in labelled_axes(array)
        if axis - offset in measured and _measures(measured[axis - offset], array, axis)
    }
    read = {
        place: size
        for place, size in measured.items()
        if place not in right and isinstance(shape[place + offset], int)
    }
    items = _told(node, tracer, operand, len(shape) - offset)
    for array in labels:
        for axis in labelled_axes(array):
            place = axis - offset
            if place < 0 or place in right or isinstance(shape[axis], int):
                continue
            # a period: the size is told as a multiple of it, or not at all
            if node.op != "Reshape" or items[place] is None or not _is_told(items[place]):
                raise Untraceable("its target sizes are computed at run time")
    for place in (*right, *read):
        del measured[place]
    edit = ShapeOperand(node, operand, labels, shape, offset, items, frozenset(right), read)
    tracer.trace.edits.append(edit)


def _told(node: Node, tracer: ChannelTracer, operand: int, length: int) -> tuple[Size | None, ...]:
    """The elements of a list of sizes, as far as they are known."""
    value = tracer.flow.value(node.inputs[operand])
    return (None,) * length if value is None else value.items


def _is_told(size: Size | None) -> bool:
    return isinstance(size, int) or (size is not None and is_natural(size))


def _measures(measure: MeasuredSize, array: np.ndarray, axis: int) -> bool:
    """Whether the size that is read and an axis are of the same channels."""
    return np.array_equal(spread_along(measure.array, measure.axis), spread_along(array, axis))


@on_data
def shape_of(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Shape pins channels unless the sizes that it reads are used for the same channels."""
    why = f"`{node_label(node)}` (Shape) reads how many there are"
    read = range(labels[0].ndim)[_bound(node, "start") : _bound(node, "end")]
    places = {
        axis - read.start: MeasuredSize(array, axis, why)
        for array in labels
        for axis in labelled_axes(array) & set(read)
    }
    if not places:
        return ()
    try:
        uses = list(_uses(node.outputs[0], places, tracer))
    except Untraceable:
        for measure in places.values():
            tracer.pin(measure.array, why)
        return ()
    for key, found in uses:
        tracer.measured.setdefault(key, {}).update(found)
    return ()


def _bound(node: Node, name: str) -> int | None:
    value = node.attrs.get(name)
    return None if value is None else int(value)


def _uses(
    tensor: gs.Tensor, places: _Places, tracer: ChannelTracer
) -> Iterator[tuple[tuple[Node, int], _Places]]:
    """The operands of Reshape, Expand and Resize that get sizes which were read, with their places.

    Raises:
        Untraceable: a size is used in another way.
    """
    if not places:
        return
    if any(tensor is output for output in tracer.graph.outputs):
        raise Untraceable("it is an output of the model")
    for user in dict.fromkeys(tensor.outputs):
        for index, operand in enumerate(user.inputs):
            if operand is not tensor:
                continue
            if user.is_onnx and _SIZES_OPERAND.get(user.op) == index:
                yield (user, index), places
            else:
                moved = _moved(user, index, places, tracer)
                yield from _uses(user.outputs[0], moved, tracer)


def _moved(user: Node, index: int, places: _Places, tracer: ChannelTracer) -> _Places:
    """The places of sizes that were read in the list that a node makes of another list."""
    if user.is_onnx and user.op in _SAME_ELEMENTS and index == 0:
        return places
    if user.is_onnx and user.op == "Concat":
        start = sum(_length(tensor, tracer) for tensor in user.inputs[:index])
        return {start + place: measure for place, measure in places.items()}
    order = _order(user, index, tracer)
    return {at: places[place] for at, place in enumerate(order) if place in places}


def _order(user: Node, index: int, tracer: ChannelTracer) -> list[int]:
    """The places of the elements that a Gather or a Slice picks from its first input."""
    if user.is_onnx and index == 0:
        length = _length(user.inputs[0], tracer)
        if user.op == "Gather" and (indices := const_array(user.inputs[1])) is not None:
            return [int(place) % length for place in indices.reshape(-1)]
        if user.op == "Slice" and (ranges := slice_ranges(user, tracer.flow)) is not None:
            start, end, step = ranges.get(0, (0, length, 1))
            if isinstance(start, int) and isinstance(end, int):
                return list(range(length)[python_slice(start, end, step, length)])
    raise Untraceable("it is computed with")


def _length(tensor: gs.Tensor, tracer: ChannelTracer) -> int:
    shape = tracer.shape(tensor)
    if len(shape) != 1 or not isinstance(shape[0], int):
        raise Untraceable("its length is not known")
    return shape[0]


def python_slice(start: int, end: int, step: int, size: int) -> slice:
    """The range as a Python slice; with a negative step, an end below −size includes place 0."""
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)
