"""Sizes of axes of channels: those that operators are told, and those that are read.

What `Shape` reads of an axis of channels is followed through Gather, Slice and Concat to where it
is used. Where that is the size of an axis with the same channels, it is right again when some of
them have left; everywhere else the channels must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import slice_ranges
from onnxslim.channels.labels import Facets, labelled
from onnxslim.channels.removal import ShapeOperand, can_patch
from onnxslim.channels.tracing import ChannelTracer, MeasuredSize, Unfollowed
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array

_SIZES_OPERAND: Final = {"Expand": 1, "Reshape": 1, "Resize": 3}
_SAME_ELEMENTS: Final = ("Cast", "Identity", "Squeeze", "Unsqueeze")

_Places = dict[int, MeasuredSize]  # what is measured, by its place in a list of sizes


def patch_sizes(
    node: Node, follower: ChannelTracer, operand: int, facets: Facets, offset: int = 0
) -> None:
    """Let the list of sizes at `operand` follow the names on the output.

    Args:
        node: Reshape, Expand or Resize.
        follower: state of the sweep.
        operand: index of the input.
        facets: of the output.
        offset: the axis of the output that the first size is about.
    """
    places = {axis - offset: f for f in facets for axis in labelled(f) if axis >= offset}
    measured = follower.measured.get((node, operand), {})
    right = {
        place
        for place, facet in places.items()
        if place in measured and _measures(measured[place], facet, place + offset)
    }
    rest = [place for place in places if place not in right]
    if rest and not can_patch(node, operand, rest):
        raise Unfollowed("the sizes that it makes are computed at run time")
    for place in right:
        del measured[place]
    if rest:
        follower.trail.edits.append(ShapeOperand(node, operand, facets, offset, frozenset(right)))


def _measures(measure: MeasuredSize, facet: np.ndarray, axis: int) -> bool:
    """Whether what is measured will be as long as an axis."""
    alone = labelled(measure.facet) == {measure.axis} and labelled(facet) == {axis}
    return alone and np.array_equal(measure.facet.reshape(-1), facet.reshape(-1))


def shape_of(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """What is read of axes of channels must be used for the same channels, or they stay."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    why = f"`{node_label(node)}` (Shape) reads how many there are"
    read = range(facets[0].ndim)[_bound(node, "start") : _bound(node, "end")]
    places = {
        axis - read.start: MeasuredSize(facet, axis, why)
        for facet in facets
        for axis in labelled(facet) & set(read)
    }
    if not places:
        return ()
    try:
        uses = list(_uses(node.outputs[0], places, follower))
    except Unfollowed:
        for measure in places.values():
            follower.pin(measure.facet, why)
        return ()
    for key, found in uses:
        follower.measured.setdefault(key, {}).update(found)
    return ()


def _bound(node: Node, name: str) -> int | None:
    value = node.attrs.get(name)
    return None if value is None else int(value)


def _uses(
    tensor: gs.Tensor, places: _Places, follower: ChannelTracer
) -> Iterator[tuple[tuple[Node, int], _Places]]:
    """Lists of sizes in which something measured comes to lie.

    Raises:
        Unfollowed: it is used in another way.
    """
    if not places:
        return
    if any(tensor is output for output in follower.graph.outputs):
        raise Unfollowed("it is an output of the model")
    for user in dict.fromkeys(tensor.outputs):
        for index, operand in enumerate(user.inputs):
            if operand is not tensor:
                continue
            if user.is_onnx and _SIZES_OPERAND.get(user.op) == index:
                yield (user, index), places
            else:
                moved = _moved(user, index, places, follower)
                yield from _uses(user.outputs[0], moved, follower)


def _moved(user: Node, index: int, places: _Places, follower: ChannelTracer) -> _Places:
    """Where measured elements come to lie in what a node makes of a list."""
    if user.is_onnx and user.op in _SAME_ELEMENTS and index == 0:
        return places
    if user.is_onnx and user.op == "Concat":
        start = sum(_length(tensor, follower) for tensor in user.inputs[:index])
        return {start + place: measure for place, measure in places.items()}
    order = _order(user, index, follower)
    return {at: places[place] for at, place in enumerate(order) if place in places}


def _order(user: Node, index: int, follower: ChannelTracer) -> list[int]:
    """Which elements of its first input a node picks."""
    if user.is_onnx and index == 0:
        length = _length(user.inputs[0], follower)
        if user.op == "Gather" and (indices := const_array(user.inputs[1])) is not None:
            return [int(place) % length for place in indices.reshape(-1)]
        if user.op == "Slice" and (ranges := slice_ranges(user, follower.flow)) is not None:
            start, end, step = ranges.get(0, (0, length, 1))
            if isinstance(start, int) and isinstance(end, int):
                return list(range(length)[python_slice(start, end, step, length)])
    raise Unfollowed("it is not only picked from")


def _length(tensor: gs.Tensor, follower: ChannelTracer) -> int:
    shape = follower.shape(tensor)
    if len(shape) != 1 or not isinstance(shape[0], int):
        raise Unfollowed("its length is not known")
    return shape[0]


def python_slice(start: int, end: int, step: int, size: int) -> slice:
    """A Slice's range as Python's: an end far below zero means through the first element."""
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)


__all__ = ["patch_sizes", "python_slice", "shape_of"]
