"""Which tensors of a model file form a coded unit, and of which class.

Codes of codebook weights and sparse initializers are found in the graph. Small tensors of one type
share a unit; every other tensor is a unit of its own. A unit is used only where a reader would
restore the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import onnx

from onnxslim.codebook.lookup import read
from onnxslim.codebook.nodes import codebook_nodes
from onnxslim.graph.counts import constants_of
from onnxslim.graph.ir import SUB_BYTE_BITS, Graph, StoredSparse, to_numpy_dtype, walk_graphs
from onnxslim.graph.wire import Located
from onnxslim.packing import radix
from onnxslim.packing.elements import Elements, distinct, sparse_element
from onnxslim.packing.tensors import (
    CodedUnit,
    IndexedUnit,
    IndexLayout,
    PlanesUnit,
    matrix_of,
    to_varints,
)

MIN_BYTES: Final = 32  # smaller tensors are compressed with the graph
_SMALL_BYTES: Final = 4096  # smaller tensors of one type are coded together
_FLOATS: Final[Mapping[int, int]] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
}
_VALUES, _INDICES = (1, 0), (2, 0)  # field numbers of a SparseTensorProto
_MAIN_INITIALIZER: Final = 2  # length of the path to an initializer of the main graph


@dataclass(frozen=True)
class ClassifiedUnit:
    """A unit, with the number of its weights, and of their elements as dense tensors."""

    unit: CodedUnit
    tensors: int
    elements: int
    is_float: bool

    @property
    def float32_bytes(self) -> int | None:
        """Size of the weights as dense float32; None where their elements are no floats."""
        return 4 * self.elements if self.is_float else None


def units_of(file: memoryview, payloads: Sequence[Located], graph: Graph) -> list[ClassifiedUnit]:
    """The units of a file, by their first payload; each payload belongs to one unit."""
    taken: dict[int, ClassifiedUnit] = {}
    for found in (*_codebooks(file, payloads, graph), *_sparse(file, payloads, graph)):
        taken.update(dict.fromkeys(found.unit.payloads, found))
    units = list({id(found): found for found in taken.values()}.values())
    small: dict[Elements, list[int]] = {}
    for index, payload in enumerate(payloads):
        if index in taken:
            continue
        found = _plain(file, (index,), [payload])
        if payload.stop - payload.start <= _SMALL_BYTES and not _is_special(file, payload, found):
            kind = Elements(1, 1, found.unit.elements.itemsize, rotated=found.is_float)
            small.setdefault(kind, []).append(index)
        else:
            units.append(found)
    units += (
        _plain(file, tuple(group), [payloads[index] for index in group]) for group in small.values()
    )
    return sorted(units, key=lambda found: found.unit.payloads)


def _plain(
    file: memoryview, indices: tuple[int, ...], payloads: Sequence[Located]
) -> ClassifiedUnit:
    first = payloads[0]
    nbytes = sum(payload.stop - payload.start for payload in payloads)
    itemsize = 1 if first.is_varints else _itemsize(first.data_type)
    itemsize = itemsize if nbytes % itemsize == 0 else 1
    is_float = first.data_type in _FLOATS and itemsize == _FLOATS[first.data_type]
    dims = first.dims if len(payloads) == 1 else ()
    rows, columns = matrix_of(dims, nbytes // itemsize)
    unit = CodedUnit(indices, Elements(rows, columns, itemsize, rotated=is_float))
    return ClassifiedUnit(unit, len(payloads), nbytes // itemsize, is_float)


def _itemsize(data_type: int) -> int:
    if data_type in SUB_BYTE_BITS:
        return 1
    size = int(to_numpy_dtype(data_type).itemsize)
    return size if size in (1, 2, 4, 8) else 1


def _is_special(file: memoryview, payload: Located, found: ClassifiedUnit) -> bool:
    """Whether a small tensor is coded better alone: it has few distinct values, or many zeros."""
    elements = found.unit.elements
    array = np.frombuffer(file[payload.start : payload.stop], elements.dtype)
    if array.nbytes < _SMALL_BYTES // 16:
        return False
    few = distinct(array, rotated=elements.rotated) is not None
    return few or sparse_element(array, elements) is not None


# --------------------------------------------------------------------------- codebooks


def _codebooks(
    file: memoryview, payloads: Sequence[Located], graph: Graph
) -> Iterator[ClassifiedUnit]:
    by_name = {
        payload.name: index
        for index, payload in enumerate(payloads)
        if len(payload.path) == _MAIN_INITIALIZER
    }
    seen: set[int] = set()
    for node in codebook_nodes(graph):
        weight = read(graph, node)
        if weight is None:
            continue
        names = iter([tensor.name for tensor in node.inputs])
        elements = prod(weight.shape)
        for stage in weight.stages:
            planes = [next(names) for _ in radix.planes_for(stage.levels)]
            next(names)  # the table
            found = [by_name[name] for name in planes if name in by_name]
            if len(found) < len(planes) or stage.levels > 256 or not seen.isdisjoint(found):
                continue
            rows, columns = matrix_of(weight.inner_shape or weight.shape, elements)
            if stage.vector > 1 and columns % stage.vector:
                rows, columns = 1, elements
            kind = Elements(rows, columns // stage.vector, 1, stage.levels)
            unit = PlanesUnit(tuple(found), kind)
            if list(found) == sorted(found) and _is_exact(file, payloads, unit):
                seen.update(found)
                yield ClassifiedUnit(unit, 1, elements, True)
                elements = 0  # further stages add to the same weight: count it once


def _is_exact(file: memoryview, payloads: Sequence[Located], unit: PlanesUnit) -> bool:
    """Whether a reader restores the same bytes: the padding in a file need not be zero."""
    data = [file[payloads[i].start : payloads[i].stop] for i in unit.payloads]
    try:
        packed = radix.pack(unit.array(data), unit.elements.alphabet)
    except ValueError:
        return False
    return all(bytes(a) == b.tobytes() for a, b in zip(data, packed, strict=True))


# --------------------------------------------------------------------------- sparse initializers


def _sparse(
    file: memoryview, payloads: Sequence[Located], graph: Graph
) -> Iterator[ClassifiedUnit]:
    shapes = _sparse_shapes(graph)
    values = {p.path[:-1]: i for i, p in enumerate(payloads) if p.path[-1] == _VALUES}
    for index, payload in enumerate(payloads):
        partner = values.get(payload.path[:-1])
        if payload.path[-1] != _INDICES or partner is None or partner > index:
            continue
        yield from _indexed(file, payloads, partner, index, shapes)


def _indexed(
    file: memoryview,
    payloads: Sequence[Located],
    values: int,
    indices: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[ClassifiedUnit]:
    found = _plain(file, (values,), [payloads[values]])
    count = found.unit.elements.count
    kind = Elements(1, count, found.unit.elements.itemsize, rotated=found.is_float)
    layout = IndexLayout.VARINTS if payloads[indices].is_varints else IndexLayout.INT64
    if payloads[indices].data_type != onnx.TensorProto.INT64 or payloads[values].is_varints:
        return
    shape = shapes.get(payloads[values].name, ())
    size = prod(shape)
    unit = IndexedUnit((values, indices), kind, *matrix_of(shape, size), layout)
    if _is_ascending(file[payloads[indices].start : payloads[indices].stop], unit, size):
        yield ClassifiedUnit(unit, 1, size, found.is_float)


def _is_ascending(data: memoryview, unit: IndexedUnit, size: int) -> bool:
    """Whether a reader restores the same indices: they are ascending and below `size`."""
    if unit.index_layout is IndexLayout.INT64 and len(data) != 8 * unit.elements.count:
        return False
    found = unit.indices((data, data))
    if found.size != unit.elements.count or int(found[0]) < 0 or int(found[-1]) >= size:
        return False
    if not bool((np.diff(found) > 0).all()):
        return False
    return unit.index_layout is IndexLayout.INT64 or to_varints(found).tobytes() == data


def _sparse_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shapes of all sparse initializers, by name; () where two of one name differ."""
    shapes: dict[str, tuple[int, ...]] = {}
    for nested in walk_graphs(graph):
        for constant in constants_of(nested):
            if isinstance(constant.stored, StoredSparse):
                known = shapes.get(constant.name, constant.stored.shape)
                shapes[constant.name] = (
                    constant.stored.shape if known == constant.stored.shape else ()
                )
    return shapes
