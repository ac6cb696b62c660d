"""Records of weights that nodes compute from codes, as this package and onnxruntime write them.

onnxslim.Lookup…       codes and tables (see `codebook.lookup`)
onnxslim.FixedPoint    int16 codes and one scale
onnxslim.Dequantize…   integer codes and scales, for one channel or for a block of columns
DequantizeLinear       the same of the standard; int32 for biases
MatMulNBits            packed codes of a matrix, unsigned
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.codebook import fixed_point, lookup
from onnxslim.codebook.replacement import function_of
from onnxslim.codebook.weight import CodebookWeight
from onnxslim.constraints.places import Place, Places, constant_of, label_of
from onnxslim.constraints.stored import (
    BiasWeight,
    CodedWeight,
    GridWeight,
    LevelCodes,
    Steps,
    TableWeight,
)
from onnxslim.constraints.values import on_levels, zero_code_stays, zeros_stand_out
from onnxslim.graph.functions import DEQUANTIZE, DOMAIN
from onnxslim.graph.ir import MICROSOFT_DOMAIN, Graph, Node
from onnxslim.graph.operands import const_array, is_present

_BIAS_TYPE: Final = np.dtype(np.int32)
_MIDDLE: Final = "its zero points are floats, or computed"
_LAYOUT: Final = "its codes are laid out in a way that is not known here"
_SHARED: Final = "other nodes read its codes"


@dataclass(frozen=True)
class CodedReader:
    """Reads the coded weights of one graph; each method gives a record, or why there is none."""

    graph: Graph
    places: Places

    def read(self, node: Node) -> CodedWeight | str | None:
        """The record of `node`; None where it computes no weight from codes."""
        if lookup.is_lookup(node):
            return self._lookup(node)
        if fixed_point.is_fixed_point(node):
            return self._fixed_point(node)
        if node.domain == DOMAIN and str(node.op).startswith(DEQUANTIZE):
            return self._dequantize(node)
        if node.op == "DequantizeLinear" and const_array(node.inputs[0]) is not None:
            return self._linear(node)
        if node.op == "MatMulNBits" and node.domain == MICROSOFT_DOMAIN:
            return self._packed(node)
        return None

    # ------------------------------------------------------------------ tables

    def _lookup(self, node: Node) -> CodedWeight | str:
        weight = lookup.read(self.graph, node)
        readers = self._readers(node)
        if weight is None:
            return _LAYOUT
        if isinstance(readers, str):
            return readers
        tables, planes = lookup.tables_and_planes(node)
        constants = [constant_of(tensor) for tensor in (*tables, *planes)]
        known = [item for item in constants if item is not None]
        names, codes = tuple(name for name, _ in known[: len(tables)]), known[len(tables) :]
        is_shared = any(len(tensor.outputs) > 1 for tensor in planes)
        stays = any(on_levels(stage.table) for stage in weight.stages)
        if stays and is_shared:
            return _SHARED
        kind = LevelCodes if stays else TableWeight
        return kind(
            codes[0][0],
            readers,
            (str(node.outputs[0].name),),
            weight,
            names,
            () if is_shared else tuple(codes),
            _zeros_of(weight),
        )

    # ------------------------------------------------------------------ grids

    def _fixed_point(self, node: Node) -> CodedWeight | str:
        weight = fixed_point.read(self.graph, node)
        if weight is None:
            return _LAYOUT
        codes = weight.codes
        steps = Steps(codes, np.zeros((), np.int32), (1,) * codes.ndim, codes.shape)
        return self._grid(node, steps, weight.dtype, tuple(node.inputs[:2]))

    def _dequantize(self, node: Node) -> CodedWeight | str:
        function = function_of(self.graph, node.op)
        if function is None or len(function.input) != len(node.inputs):
            return _LAYOUT
        given = dict(zip(function.input, node.inputs, strict=True))
        arrays = {name: const_array(tensor) for name, tensor in given.items()}
        codes, scale = arrays.get("codes"), arrays.get("scale")
        if codes is None or scale is None or any(array is None for array in arrays.values()):
            return _LAYOUT
        zero, shape, places = (arrays.get(name) for name in ("zero_point", "shape", "places"))
        scale_shape, scale_places = scale.shape, None
        if places is not None:
            axis = next((int(n.attribute[0].i) for n in function.node if n.op_type == "Gather"), 0)
            index = np.arange(scale.size, dtype=np.int64).reshape(scale.shape)
            scale_places = np.take(index, places, axis)
            scale_shape = scale_places.shape
            zero = None if zero is None else np.take(zero, places, axis)
        out = codes.shape if shape is None else tuple(int(size) for size in shape)
        zero = np.zeros((), np.int32) if zero is None else zero.astype(np.int32)
        scale_shape = _padded(scale_shape, codes.ndim)
        steps = Steps(codes.astype(np.int32), zero, scale_shape, out, scale_places)
        half = any(n.op_type == "Cast" and n.output[0] == "weight" for n in function.node)
        dtype: np.dtype[np.floating] = np.dtype(np.float16 if half else np.float32)
        return self._grid(node, steps, dtype, (given["codes"], given["scale"]))

    def _linear(self, node: Node) -> CodedWeight | str | None:
        codes, scale = const_array(node.inputs[0]), const_array(node.inputs[1])
        zero = const_array(node.inputs[2]) if is_present(node, 2) else np.zeros((), np.int32)
        if codes is None or scale is None or zero is None or scale.dtype == object:
            return _MIDDLE
        if codes.dtype == _BIAS_TYPE:
            return self._bias(node)
        if not _is_integer(codes.dtype):
            return f"its codes are {codes.dtype}"
        laid = _linear_steps(node, codes, scale, zero)
        if laid is None:
            return _LAYOUT
        given = (node.inputs[0], node.inputs[1])
        return self._grid(node, laid, np.dtype(scale.dtype), given)

    def _packed(self, node: Node) -> CodedWeight | str:
        codes, scale = const_array(node.inputs[1]), const_array(node.inputs[2])
        zero = const_array(node.inputs[3]) if is_present(node, 3) else None
        if codes is None or scale is None or is_present(node, 4):
            return _LAYOUT
        if is_present(node, 3) and (zero is None or zero.dtype != np.uint8):
            return _MIDDLE
        names = ("bits", "block_size", "N", "K")
        bits, block, rows, columns = (int(node.attrs.get(name, 4)) for name in names)
        if bits not in (2, 4, 8):
            return _LAYOUT
        count = -(-columns // block)
        plain = unpacked(codes.reshape(rows * count, -1), bits).reshape(rows, count, block)
        middle = np.full((1, 1, 1), 1 << (bits - 1), np.int32)
        if zero is not None:
            each = unpacked(zero.reshape(rows, -1), bits)[:, :count]
            middle = each.reshape(rows, count, 1).astype(np.int32)
        shape = (columns, rows)
        places = (rows, count * block)
        laid = Steps(plain, middle, (rows, count, 1), shape, None, places, columns, is_turned=True)
        pack = partial(packed, bits=bits, shape=codes.shape)
        given = (node.inputs[1], node.inputs[2])
        return self._grid(node, laid, np.dtype(scale.dtype), given, pack)

    def _grid(
        self,
        node: Node,
        steps: Steps,
        dtype: np.dtype[np.floating],
        given: tuple[gs.Tensor, ...],
        pack: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> CodedWeight | str:
        """The record of a grid; `given` are the stored codes and scales."""
        readers = (str(node.outputs[0].name),) if pack else self._readers(node)
        stored, scale = constant_of(given[0]), constant_of(given[1])
        if isinstance(readers, str):
            return readers
        if stored is None or scale is None:
            return _LAYOUT
        if len(dict.fromkeys(given[0].outputs)) > 1:
            return _SHARED
        codes = steps.codes.astype(np.int32)
        return GridWeight(
            stored[0],
            readers,
            (str(node.outputs[0].name),),
            stored[1],
            scale[0],
            scale[1],
            steps,
            int(codes.min()),
            int(codes.max()),
            zero_code_stays(codes, steps.zero.astype(np.int32)),
            pack or partial(_as_stored, dtype=np.dtype(stored[1].dtype), shape=stored[1].shape),
            dtype,
        )

    # ------------------------------------------------------------------ biases

    def _bias(self, node: Node) -> CodedWeight | str:
        """A bias that a product on integers reads beside its input and its weight."""
        codes, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
        users = list(dict.fromkeys(node.outputs[0].outputs))
        if codes is None or scale is None or len(users) != 1:
            return _LAYOUT
        if len(node.inputs[0].outputs) > 1 or len(node.inputs[1].outputs) > 1:
            return _SHARED
        makers = [t.inputs[0] for t in users[0].inputs if t.inputs and t is not node.outputs[0]]
        factors = [constant_of(m.inputs[1]) for m in makers if m.op == "DequantizeLinear"]
        known = [item for item in factors if item is not None]
        if len(known) != 2 or len(makers) != 2:
            return "the scales of its input and weight are not beside it"
        product = known[0][1].values * known[1][1].values.reshape(-1)
        stored = scale[1].values
        if product.size == 1:
            product = product.reshape(())
        if not np.allclose(np.broadcast_to(product, stored.shape), stored, rtol=1e-3, atol=0):
            return "its scale is not the product of those of input and weight"
        data, weight = (known[0], known[1])
        return BiasWeight(
            codes[0],
            (str(users[0].outputs[0].name),),
            (str(node.outputs[0].name),),
            codes[1],
            scale[1],
            scale[0],
            data[0],
            weight[0],
        )

    def _readers(self, node: Node) -> tuple[str, ...] | str:
        """Labels of the nodes that compute with what `node` makes; why it is no weight."""
        places: list[Place] = []
        for output in node.outputs:
            places += self.places.of(output)
        labels = label_of(places)
        if not labels:
            return "no operator that learns reads it"
        return (*labels, str(node.outputs[0].name))


# ---------------------------------------------------------------------------- layouts


def _linear_steps(
    node: Node, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray
) -> Steps | None:
    """How DequantizeLinear makes a weight; None where blocks are not whole."""
    shape, plain = codes.shape, codes.astype(np.int32)
    block = int(node.attrs.get("block_size", 0))
    zero = zero.astype(np.int32)
    if scale.size == 1:
        return Steps(plain, zero.reshape(()), (1,) * max(codes.ndim, 1), shape)
    axis = int(node.attrs.get("axis", 1)) % codes.ndim
    if not block:
        along = tuple(-1 if place == axis else 1 for place in range(codes.ndim))
        size = tuple(scale.size if place == axis else 1 for place in range(codes.ndim))
        return Steps(plain, zero.reshape(along if zero.size > 1 else ()), size, shape)
    if shape[axis] % block or scale.ndim != codes.ndim:
        return None
    inner = (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
    wide = (*scale.shape[: axis + 1], 1, *scale.shape[axis + 1 :])
    zero = zero.reshape(wide) if zero.size > 1 else zero.reshape(())
    return Steps(plain.reshape(inner), zero, wide, shape)


def _padded(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (*(1,) * (ndim - len(shape)), *shape)


def _is_integer(dtype: np.dtype[np.generic]) -> bool:
    small = {np.dtype(getattr(ml_dtypes, n)) for n in ("int4", "uint4", "int2", "uint2")}
    return dtype.kind in "iu" or dtype in small


def _as_stored(
    codes: np.ndarray, *, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    return np.ascontiguousarray(codes.astype(dtype).reshape(shape))


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes of each row of bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*data.shape[:-1], -1)


def packed(codes: np.ndarray, *, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `unpacked`, in the shape of the file."""
    per_byte = 8 // bits
    groups = codes.astype(np.uint8).reshape(-1, per_byte)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    joined = np.bitwise_or.reduce(groups << shifts, axis=1).astype(np.uint8)
    return np.ascontiguousarray(joined.reshape(shape))


def _zeros_of(weight: CodebookWeight) -> bool:
    """Whether codes of the value zero are there by choice: zeros of other steps stay as well."""
    if len(weight.stages) > 1:
        return False
    (stage,) = weight.stages
    if stage.vector > 1:
        return False
    is_zero = stage.values(np.dtype(np.float32)) == 0
    return zeros_stand_out(stage.codes, is_zero)
