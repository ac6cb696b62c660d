"""Write a stream in another basis: every constant that carries its channels is multiplied once.

Arrays keep their sizes here; columns that the basis leaves out are zero, and are cut out like
channels afterwards.

Owns: which matrix a constant meets on which axis. Not here: the matrices (see `basis`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.normalizations import Normalization
from onnxslim.channels.edits_operands import SliceOperand
from onnxslim.channels.groups import ChannelGroup, shrink
from onnxslim.channels.units import indexable
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.residual.basis import Basis
from onnxslim.residual.streams import Stream, StreamGraph

Place = tuple[Node, int]
_ROWS = 4096  # of a constant that are multiplied at once


@dataclass(frozen=True)
class RotatedStream:
    """A stream and the basis that it gets.

    Attributes:
        moments: of what each of its normalizations returns without γ and β, (d, d).
        share: of these moments, over all normalizations, that the basis keeps.
    """

    stream: Stream
    basis: Basis
    moments: Mapping[str, np.ndarray]
    share: float

    def decoder(self, tensor: gs.Tensor) -> np.ndarray:
        """What readers of `tensor` multiply d channels by, (d, k), or those of a normalization."""
        space = self.stream.spaces[tensor]
        if space is None:
            return self.basis.decoder
        assert isinstance(space, Normalization), "all that carries a stream is linear"
        scale, bias = (_operand(place) for place in (space.scale, space.bias))
        if scale is None:
            scale = np.ones(self.basis.width * self.stream.copies[space.result])
        return self.basis.normalized_decoder(scale, bias, self.moments[space.label])


def rotate(rw: Rewriter, graph: StreamGraph, rotated: list[RotatedStream]) -> None:
    """Write streams in their bases, and cut out the columns that these leave out."""
    found: dict[Place, dict[int, tuple[object, np.ndarray]]] = {}
    values: dict[Place, np.ndarray] = {}
    gone = np.zeros(graph.channels.units.count, bool)
    for item in rotated:
        for place, axis, key, matrix in _of_stream(graph, item):
            found.setdefault(place, {})[axis] = (key, matrix)
        for group, basis in ((item.stream.group, item.basis), *_tied(graph, item)):
            gone[group.units[basis.kept :]] = True
        for norm in item.stream.norms:
            for where in filter(None, (norm.scale, norm.bias)):
                values[where] = np.ones_like(const_array(where[0].inputs[where[1]]))
    made: dict[object, gs.Tensor] = {}
    for (node, operand), by_axis in found.items():
        tensor = node.inputs[operand]
        key = (id(tensor), tuple((axis, by_axis[axis][0]) for axis in sorted(by_axis)))
        if key not in made:
            array = const_array(tensor)
            assert array is not None
            for axis, (_, matrix) in by_axis.items():
                array = _times(array, axis, matrix)
            made[key] = rw.constant(array, str(tensor.name))
        rw.set_input(node, operand, made[key])
    for (node, operand), ones in values.items():
        rw.set_input(node, operand, rw.constant(ones, str(node.inputs[operand].name)))
    shrink(rw, graph.channels, gone)


def _of_stream(
    graph: StreamGraph, item: RotatedStream
) -> Iterator[tuple[Place, int, object, np.ndarray]]:
    """Each constant with channels of a stream: where, along which axis, and times which matrix."""
    stream, basis = item.stream, item.basis
    norms = {norm.scale for norm in stream.norms} | {norm.bias for norm in stream.norms}
    readers = {
        (member.node, member.operand, member.axis): member for member in stream.group.readers
    }
    for edit in _edits(graph, stream.group):
        place = (edit.node, edit.operand)
        if place in norms:
            continue
        member = readers.get((*place, edit.axis))
        if member is None:
            key: object = (stream.label, "written")
            yield place, edit.axis, key, _padded(basis.encoder, basis)
            continue
        assert member.layer is not None
        data = member.layer.data_tensor
        space = stream.spaces[data]
        key = (stream.label, "read", None if space is None else space.label)
        yield place, edit.axis, key, _padded(item.decoder(data), basis)
    for group, _ in _tied(graph, item):
        readers = {(m.node, m.operand, m.axis): m for m in group.readers}
        for edit in _edits(graph, group):
            is_read = (edit.node, edit.operand, edit.axis) in readers
            # the weight is the table, which the stream has as it is written
            matrix = basis.encoder if is_read else basis.decoder
            key = (stream.label, "written" if is_read else "scored")
            yield (edit.node, edit.operand), edit.axis, key, _padded(matrix, basis)


def _tied(graph: StreamGraph, item: RotatedStream) -> Iterator[tuple[ChannelGroup, Basis]]:
    """The channels that a layer reads with a table of the stream as its weight."""
    tables = {
        id(member.node.inputs[member.operand])
        for member in item.stream.group.writers
        if member.node.op == "Gather"
    }
    for group in graph.channels.groups:
        if group is not item.stream.group and any(
            id(member.node.inputs[member.operand]) in tables for member in group.readers
        ):
            yield group, item.basis


def _edits(graph: StreamGraph, group: ChannelGroup) -> Iterator[SliceOperand]:
    """The cuts of constants that carry channels of a group."""
    mask = np.zeros(graph.channels.units.count, bool)
    mask[group.units] = True
    mask = indexable(mask)
    cuts = (edit for edit in graph.channels.trace.edits if isinstance(edit, SliceOperand))
    yield from (cut for cut in cuts if mask[graph.channels.units.of_ids(cut.array)].any())


def _padded(matrix: np.ndarray, basis: Basis) -> np.ndarray:
    """A matrix (copies·d, copies·k) with zeros for the columns that are left out."""
    blocks = matrix.reshape(len(matrix), -1, basis.kept)
    padding = ((0, 0), (0, 0), (0, basis.width - basis.kept))
    return np.pad(blocks, padding).reshape(len(matrix), -1)


def _times(array: np.ndarray, axis: int, matrix: np.ndarray) -> np.ndarray:
    """The array with vectors along `axis` multiplied by `matrix`, (n, n), n entries at a time."""
    moved = np.moveaxis(array, axis, -1)
    rows = moved.reshape(-1, len(matrix))
    result = np.empty(rows.shape, array.dtype)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        result[part] = np.asarray(rows[part], np.float64) @ matrix
    return np.ascontiguousarray(np.moveaxis(result.reshape(moved.shape), -1, axis))


def _operand(place: Place | None) -> np.ndarray | None:
    values = None if place is None else const_array(place[0].inputs[place[1]])
    return None if values is None else np.asarray(values, np.float64)
