"""The parts of an output that a last Concat joins, each to be compared on its own.

A detector returns the corners of boxes, which reach hundreds, beside scores, which reach one. If
such an output were compared as a whole, all scores could be lost and the difference would look
small. So where an output joins values of different origin, each part is compared alone.

The comparison is in `runtime.measure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.linear_operators import LINEAR_OPS
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_value
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes

PASS_THROUGH_OPS = frozenset({"Identity", "Cast", "Dropout"})  # operators that return their input
_MAX_PARTS = 16  # an output of more parts is compared as a whole
_MAX_DEPTH = 50  # the longest run of operators that joins are followed through

Stretch = tuple[int, int | None]  # start and stop along an axis; None: to the end
Region = Mapping[int, Stretch]  # by axis; other axes are whole

_WHOLE: Sequence[Region] = ({},)
RESHAPING_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class OutputPart:
    """A part of an output.

    Attributes:
        output: name of the output.
        index: index of the part: a slice for each axis up to the last one that is cut.
    """

    output: str
    index: tuple[slice, ...]

    @property
    def label(self) -> str:
        """The part in Python's notation: `boxes[:, 4:22]`."""
        return f"{self.output}[{', '.join(map(_slice_text, self.index))}]"

    def of(self, array: np.ndarray) -> np.ndarray:
        """This part of the output's value."""
        return array[self.index]


Parts = Mapping[str, Sequence[OutputPart]]  # by output; outputs that are not joined are absent


def output_parts(model: Model) -> Parts:
    """The parts of each output of `model` that is joined from several; infers shapes.

    Outputs that are not known to be joined are left out, and so are outputs joined along the first
    axis, that of the samples.
    """
    infer_shapes(model)
    found = {}
    for tensor in model.graph.outputs:
        regions = _Joins().regions(tensor)
        if len(regions) > 1 and not any(0 in region for region in regions):
            found[str(tensor.name)] = tuple(_part(str(tensor.name), region) for region in regions)
    return found


def _part(output: str, region: Region) -> OutputPart:
    cuts = (slice(*region.get(axis, (None, None))) for axis in range(max(region) + 1))
    return OutputPart(output, tuple(cuts))


def _slice_text(cut: slice) -> str:
    return ":".join("" if end in (0, None) else str(end) for end in (cut.start, cut.stop))


class _Joins:
    """Follows joins backwards, and remembers the regions of each tensor."""

    def __init__(self) -> None:
        self._known: dict[int, Sequence[Region]] = {}

    def regions(self, tensor: gs.Tensor, depth: int = 0) -> Sequence[Region]:
        """The regions that `tensor` is joined from; a single whole one where it is not joined."""
        key = id(tensor)
        if key not in self._known:
            self._known[key] = _WHOLE if depth > _MAX_DEPTH else self._found(tensor, depth + 1)
        return self._known[key]

    def _found(self, tensor: gs.Tensor, depth: int) -> Sequence[Region]:
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if not isinstance(node, Node) or not node.is_onnx or tensor is not node.outputs[0]:
            return _WHOLE
        if node.op == "Concat":
            return self._joined(node, depth)
        if node.op in PASS_THROUGH_OPS:
            return self.regions(node.inputs[0], depth)
        if node.op == "Transpose":
            places = turned_axes(node)
        elif node.op in RESHAPING_OPS:
            places = kept_axes(node.inputs[0].shape, tensor.shape)
        else:
            return _WHOLE
        inner = self.regions(node.inputs[0], depth)
        if any(axis not in places for region in inner for axis in region):
            return _WHOLE
        return [{places[axis]: cut for axis, cut in region.items()} for region in inner]

    def _joined(self, node: Node, depth: int) -> Sequence[Region]:
        axis, ndim = int(node.attrs.get("axis", 0)), rank(node.outputs[0])
        sizes = [known_dim(tensor, axis) for tensor in node.inputs]
        if ndim is None or None in sizes[:-1] or len(sizes) > _MAX_PARTS:
            return _WHOLE
        axis %= ndim
        inner = [self.regions(tensor, depth) for tensor in node.inputs]
        alike = all(regions == inner[0] for regions in inner)
        if alike and len(inner[0]) > 1 and not any(axis in region for region in inner[0]):
            return inner[0]  # positions are joined, and all have the same parts
        if len({_origin(tensor) for tensor in node.inputs}) < 2:
            return _WHOLE  # values of one origin, such as the levels of a pyramid
        found: list[Region] = []
        start = 0
        for regions, size in zip(inner, sizes, strict=True):
            stop = None if size is None else start + size
            for region in regions:
                low, high = region.get(axis, (0, size))
                cut = start + low, stop if high is None else start + high
                found.append({**region, axis: cut})
            start = stop or 0
        return found if len(found) <= _MAX_PARTS else _WHOLE


def turned_axes(node: Node) -> Mapping[int, int]:
    """The new axis of each axis behind a Transpose."""
    ndim = rank(node.inputs[0])
    order = node.attrs.get("perm", None if ndim is None else range(ndim - 1, -1, -1))
    return {int(axis): place for place, axis in enumerate(order or ())}


def kept_axes(
    before: Sequence[int | str | None] | None, after: Sequence[int | str | None] | None
) -> Mapping[int, int]:
    """New axes of those that a reshape keeps: equal sizes, with equally many values behind."""
    if before is None or after is None:
        return {}
    new = {(size, behind): axis for axis, size, behind in _with_behind(after)}
    return {
        axis: new[size, behind]
        for axis, size, behind in _with_behind(before)
        if (size, behind) in new
    }


def _with_behind(shape: Sequence[int | str | None]) -> list[tuple[int, int, int]]:
    """(axis, size, number of values behind it) of the axes for which these are known."""
    found = []
    behind = 1
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        if not isinstance(size, int) or size < 1:
            break
        if size != 1:  # an axis of size 1 is not told from others like it
            found.append((axis, size, behind))
        behind *= size
    return found


def _origin(tensor: gs.Tensor) -> frozenset[tuple[str, int | None]]:
    """The operators between `tensor` and the last layers, and these layers with their widths."""
    found: set[tuple[str, int | None]] = set()
    stack, seen = [tensor], {id(tensor)}
    while stack:
        for node in stack.pop().inputs:
            if node.op in LINEAR_OPS:
                channels = -1 if node.op in ("Gemm", "MatMul") else 1
                found.add((node.op, known_dim(node.outputs[0], channels)))
                continue
            found.add((node.op, None))
            for source in node.inputs:
                if id(source) not in seen and const_value(source) is None:
                    seen.add(id(source))
                    stack.append(source)
    return frozenset(found)
