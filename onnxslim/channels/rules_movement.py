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
    Facet,
    Facets,
    aligned,
    along,
    ids_along,
    labelled,
    moved,
    overlapping,
)
from onnxslim.channels.labels import reshaped as reshaped_facets
from onnxslim.channels.removal import (
    GatherIndices,
    Permutation,
    SliceRange,
    SplitSizes,
)
from onnxslim.channels.rules_sizes import patch_sizes, python_slice, shape_of
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Member, Unfollowed
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


def transpose(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Names move with the axes."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    perm = node.attrs.get("perm") or list(reversed(range(facets[0].ndim)))
    return (moved(facets, [int(axis) for axis in perm]),)


def reshape(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Reshape, Flatten, Squeeze and Unsqueeze."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    if _shuffle(node, follower, facets):
        return ()
    shape, target = follower.shape(node.inputs[0]), follower.shape(node.outputs[0])
    result = reshaped_facets(facets, shape, target)
    if result is None:
        sizes = ", ".join(map(str, shape))
        raise Unfollowed(f"it is not known where the axes of ({sizes}) go")
    if any(len(members) > 1 for members in overlapping(result)):
        raise Unfollowed("it makes one axis of two on which there are channels")
    if node.op == "Reshape" and follower.opset < _RESHAPE_INPUT_SINCE:
        raise Unfollowed(f"it takes its sizes as before opset {_RESHAPE_INPUT_SINCE}")
    if node.op == "Reshape":
        patch_sizes(node, follower, 1, result)
        _patch_unlabelled(node, follower, facets, result)
    return (result,)


def _shuffle(node: Node, follower: ChannelTracer, facets: Facets) -> bool:
    """Whether Reshape, Transpose and Reshape only put the channels in another order.

    Such a shuffle is then followed as one step, and becomes a Gather if channels leave: the two
    inner shapes need not be kept rectangular.
    """
    swap = _only_user(follower, node, "Transpose")
    last = None if swap is None else _only_user(follower, swap, "Reshape", "Flatten")
    if swap is None or last is None or len(facets) != 1 or len(labelled(facets[0])) != 1:
        return False
    shapes = [follower.flow.shape(t.outputs[0]) for t in (node, swap, last)]
    whole = follower.flow.shape(node.inputs[0])
    if whole is None or any(shape is None for shape in shapes) or shapes[2] != whole:
        return False
    (axis,) = labelled(facets[0])
    places = along(np.arange(facets[0].shape[axis]), axis, facets[0].ndim)
    split = reshaped_facets((places,), whole, shapes[0] or ())
    if not split or len(labelled(split[0])) < 2:
        return False
    perm = swap.attrs.get("perm") or list(reversed(range(split[0].ndim)))
    order = reshaped_facets(moved(split, perm), shapes[1] or (), whole)
    if not order or labelled(order[0]) != {axis}:
        return False
    indices = order[0].reshape(-1)
    follower.trail.edits.append(Permutation(last, node.inputs[0], axis, indices, facets[0]))
    follower.arrived[last] = (facets[0].take(indices, axis),)
    return True


def _only_user(follower: ChannelTracer, node: Node, *ops: str) -> Node | None:
    (tensor,) = node.outputs
    if len(tensor.outputs) != 1 or any(tensor is out for out in follower.graph.outputs):
        return None
    user: Node = tensor.outputs[0]
    return user if user.is_onnx and user.op in ops else None


def _patch_unlabelled(node: Node, follower: ChannelTracer, before: Facets, after: Facets) -> None:
    """Where names vanish although the input had some, sizes could not follow."""
    if sum(facet.size > 1 for facet in before) != len(after):
        for facet in before:
            follower.pin(facet, f"`{node_label(node)}` ({node.op}) hides them")


def concat(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Along its axis names follow each other; along others they meet, and constants are cut."""
    tensors = list(node.inputs)
    if not any(follower.facets(tensor) for tensor in tensors):
        return ()
    rank = follower.rank(tensors[0])
    axis = int(node.attrs.get("axis", 1)) % rank
    why = f"`{node_label(node)}` (Concat) joins them with channels that must stay"
    across = [f for t in tensors for f in follower.facets(t) if axis not in labelled(f)]
    joined = follower.joined(across, why)
    for index, tensor in enumerate(tensors):
        _meet_others(node, follower, index, tensor, joined, axis)
    parts = [next((f for f in follower.facets(t) if axis in labelled(f)), None) for t in tensors]
    if any(part is not None for part in parts):
        joined += (_concatenated(node, follower, parts, axis),)
    return (follower.joined(joined, why),)


def _meet_others(
    node: Node, follower: ChannelTracer, index: int, tensor: gs.Tensor, facets: Facets, axis: int
) -> None:
    """Along the axes that are not joined, one operand's names are those of all."""
    own = {ax for facet in follower.facets(tensor) for ax in labelled(facet)}
    for facet in facets:
        for at in labelled(facet) - own:
            if const_value(tensor) is not None:
                follower.slice_operand(node, index, at, facet, at)
            else:
                follower.pin(
                    facet, f"`{node_label(node)}` (Concat) joins them with `{tensor.name}`"
                )


def _concatenated(
    node: Node, follower: ChannelTracer, parts: Sequence[Facet | None], axis: int
) -> Facet:
    given = [part for part in parts if part is not None]
    rank = given[0].ndim
    common = [max(part.shape[ax] for part in given) for ax in range(rank)]
    pieces = []
    for part, tensor in zip(parts, node.inputs, strict=True):
        size = follower.shape(tensor)[axis]
        if not isinstance(size, int):
            raise Unfollowed(f"it is not known how long `{tensor.name}` is")
        wanted = [size if ax == axis else common[ax] for ax in range(rank)]
        whole = np.full(wanted, NONE) if part is None else np.broadcast_to(part, wanted)
        if part is None or part.shape[axis] == size:
            pieces.append(whole)
    return np.concatenate(pieces, axis)


def split(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Each part has the names of its range."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    axis = int(node.attrs.get("axis", 0)) % follower.rank(node.inputs[0])
    if not any(axis in labelled(facet) for facet in facets):
        return tuple(facets for _ in node.outputs)
    sizes = [follower.shape(tensor)[axis] for tensor in node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        raise Unfollowed("the sizes of its parts are not known")
    results: list[list[Facet]] = [[] for _ in sizes]
    for facet in facets:
        if axis not in labelled(facet):
            for result in results:
                result.append(facet)
            continue
        parts = np.split(facet, np.cumsum(known)[:-1], axis)
        follower.trail.edits.append(
            SplitSizes(node, axis, tuple(parts), tuple(known), follower.opset)
        )
        for part, result in zip(parts, results, strict=True):
            result += _at_least_two(follower, node, part)
    return tuple(tuple(result) for result in results)


def _at_least_two(follower: ChannelTracer, node: Node, part: Facet) -> list[Facet]:
    """The part of a facet; where it is a single channel, that one must stay."""
    if labelled(part):
        return [part]
    follower.pin(part, f"`{node_label(node)}` ({node.op}) takes it alone")
    return []


def slice_(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """The names in the range."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    ranges = slice_ranges(node, follower.flow)
    if ranges is None:
        raise Unfollowed("its range is computed at run time")
    sizes = {axis: facet.shape[axis] for facet in facets for axis in labelled(facet) & set(ranges)}
    if not sizes:
        return (facets,)
    bounds = _all_ints(ranges)
    taken = {axis: _positions(bounds[axis], size) for axis, size in sizes.items()}
    result: list[Facet] = []
    for facet in facets:
        part = facet
        for axis in labelled(facet) & set(taken):
            part = part.take(taken[axis], axis)
        result += _at_least_two(follower, node, part)
    _follow_ranges(node, follower, facets, bounds, taken)
    return (tuple(result),)


def _all_ints(ranges: Mapping[int, tuple[object, ...]]) -> dict[int, tuple[int, int, int]]:
    found = {}
    for axis, (start, end, step) in ranges.items():
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
            raise Unfollowed("its range is computed at run time")
        found[axis] = (start, end, step)
    return found


def _positions(bounds: tuple[int, int, int], size: int) -> np.ndarray:
    start, end, step = bounds
    positions = np.arange(size)[python_slice(start, end, step, size)]
    if not len(positions):
        raise Unfollowed("it takes nothing")
    return positions


def _follow_ranges(
    node: Node,
    follower: ChannelTracer,
    facets: Facets,
    bounds: dict[int, tuple[int, int, int]],
    taken: Mapping[int, np.ndarray],
) -> None:
    """Let the ranges follow; a Slice with steps becomes a Gather if channels leave."""
    cuts = [(axis, facet) for facet in facets for axis in labelled(facet) & set(taken)]
    if all(bounds[axis][2] == 1 for axis in taken):
        exact = {ax: (int(at[0]), int(at[0]) + len(at), 1) for ax, at in taken.items()}
        edit = SliceRange(node, {**bounds, **exact}, tuple(cuts), follower.opset)
        follower.trail.edits.append(edit)
        return
    if len(bounds) > 1:
        raise Unfollowed("it takes every other channel and slices other axes too")
    ((axis, facet),) = cuts
    positions = taken[axis]
    result = facet.take(positions, axis)
    follower.trail.edits.append(GatherIndices(node, axis, positions, facet, result, axis))


def gather(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Constant indices move names; a constant table has names for its columns."""
    data, indices = node.inputs
    if const_value(data) is not None:
        return _embedding(node, follower)
    facets = follower.facets(data)
    if not facets:
        follower.pin_all([indices], f"they are indices of `{node_label(node)}` (Gather)")
        return ()
    axis = int(node.attrs.get("axis", 0)) % facets[0].ndim
    stored = const_array(indices)
    places = follower.rank(indices)
    result = []
    for facet in facets:
        if axis not in labelled(facet):
            shape = (*facet.shape[:axis], *(1,) * places, *facet.shape[axis + 1 :])
            result.append(facet.reshape(shape))
            continue
        if stored is None:
            raise Unfollowed("its indices are computed at run time")
        result += _gathered(node, follower, facet, axis, stored)
    return (tuple(result),)


def _gathered(
    node: Node, follower: ChannelTracer, facet: Facet, axis: int, stored: np.ndarray
) -> list[Facet]:
    indices = np.where(stored < 0, stored + facet.shape[axis], stored).astype(np.int64)
    taken = np.take(facet, indices, axis)
    if indices.size == 1 and not labelled(taken):
        follower.pin(taken, f"`{node_label(node)}` (Gather) takes it alone")
    result = taken if indices.ndim else None
    follower.trail.edits.append(GatherIndices(node, axis, indices, facet, result, axis))
    return [taken] if labelled(taken) else []


def _embedding(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """A table that is looked up by row: its columns are channels."""
    table = const_value(node.inputs[0])
    follower.pin_all([node.inputs[1]], f"they are indices of `{node_label(node)}` (Gather)")
    is_table = table is not None and len(table.shape) == 2 and table.dtype.kind == "f"
    if not is_table or int(node.attrs.get("axis", 0)) % 2 or table is None:
        return ()
    rank = follower.rank(node.inputs[1]) + 1
    columns = follower.fresh(table.shape[1])
    if len(columns) == 1:
        follower.pin(columns, f"it is the only column of `{node_label(node)}`")
    if len(node.inputs[0].outputs) > 1:
        follower.pin(columns, f"the table of `{node_label(node)}` (Gather) is used elsewhere too")
    follower.slice_operand(node, 0, 1, columns, 0)
    follower.trail.writers.append(Member(node, None, 0, 1, columns))
    return ((along(columns, rank - 1, rank),),)


def expand(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Names are repeated along new and stretched axes by broadcasting."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    rank = follower.rank(node.outputs[0])
    listed = follower.shape(node.inputs[1])
    length = listed[0] if listed else 0
    if not isinstance(length, int):
        raise Unfollowed("the sizes that it makes are computed at run time")
    result = tuple(aligned(facet, rank) for facet in facets)
    patch_sizes(node, follower, 1, result, rank - length)
    return (result,)


def tile(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Names are repeated."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    repeats = const_array(node.inputs[1])
    if repeats is None:
        raise Unfollowed("how often it repeats is computed at run time")
    counts = [int(count) for count in repeats.reshape(-1)]
    if len(counts) != facets[0].ndim:
        raise Unfollowed("it is not the Tile of opset 6 and later")
    result = []
    for facet in facets:
        times = [count if size > 1 else 1 for count, size in zip(counts, facet.shape, strict=True)]
        result.append(np.tile(facet, times))
    return (tuple(result),)


def pad(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """What is added along an axis of channels has no name."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    rank = facets[0].ndim
    pads = ints_operand(node, follower.opset, "pads", 1, 11)
    axes = axes_of(node, follower.opset) or tuple(range(rank))
    places = normalized(axes, rank)
    if pads is None or places is None or len(pads) != 2 * len(places):
        raise Unfollowed("its pads are computed at run time")
    result = []
    for facet in facets:
        widths = [(0, 0)] * rank
        for place, axis in enumerate(places):
            if axis in labelled(facet):
                widths[axis] = (pads[place], pads[place + len(places)])
        if any(min(width) < 0 for width in widths):
            raise Unfollowed("it cuts channels off")
        mode = node.attrs.get("mode", "constant")
        if any(map(any, widths)) and mode not in ("constant", b"constant"):
            raise Unfollowed("it repeats channels")
        result.append(np.pad(facet, widths, constant_values=NONE))
    return (tuple(result),)


def resize(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Resize and Upsample, which leave channels as they are."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    shape, target = follower.shape(node.inputs[0]), follower.shape(node.outputs[0])
    for facet in facets:
        for axis in labelled(facet):
            if shape[axis] != target[axis]:
                raise Unfollowed("it is not known to leave the number of channels as it is")
    if node.op == "Resize" and is_present(node, 3):
        if "axes" in node.attrs:
            rank = len(shape)
            listed = {int(axis) % rank for axis in node.attrs["axes"]}
            if any(labelled(facet) & listed for facet in facets):
                raise Unfollowed("its sizes name channels")
        else:
            patch_sizes(node, follower, 3, facets)
    return (facets,)


def depth_to_space(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """The channels that make one channel of the output leave together."""
    ids = _only_channels(node, follower)
    if ids is None:
        return ()
    block = int(node.attrs["blocksize"]) ** 2
    mode = node.attrs.get("mode", "DCR")
    grid = ids.reshape(-1, block) if mode in ("CRD", b"CRD") else ids.reshape(block, -1).T
    first = np.broadcast_to(grid[:, :1], grid.shape)
    follower.merge(first, grid, f"`{node_label(node)}` joins them with channels that must stay")
    return ((along(grid[:, 0], 1, 4),),)


def space_to_depth(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Every channel of the output has the name of the channel it comes from."""
    ids = _only_channels(node, follower)
    if ids is None:
        return ()
    return ((along(np.tile(ids, int(node.attrs["blocksize"]) ** 2), 1, 4),),)


def _only_channels(node: Node, follower: ChannelTracer) -> np.ndarray | None:
    facets = follower.facets(node.inputs[0])
    if any(labelled(facet) != {1} for facet in facets):
        raise Unfollowed("names lie along its spatial axes")
    return ids_along(facets, 1)


def spatial_sampler(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """GridSample and RoiAlign pick positions; channels pass."""
    facets = follower.facets(node.inputs[0])
    why = f"`{node_label(node)}` ({node.op}) takes them as positions"
    follower.pin_all(node.inputs[1:], why)
    if not facets:
        return ()
    rank = follower.rank(node.inputs[0])
    return (follower.collapsed(facets, frozenset(range(rank)) - {1}, why),)


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
