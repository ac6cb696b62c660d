"""Integer weights as files hold them: three layouts of codes, scales and zero points.

linear    DequantizeLinear: the weight's own layout; `block_size` columns along `axis` share a scale
folded    a model-local function of Cast and Mul, which onnxruntime computes once, when a session
          starts; with blockwise scales the codes are reshaped along their columns, or, where blocks
          do not divide the columns, the scale of each column is picked
packed    com.microsoft.MatMulNBits: (N, blocks, bytes of a block), unsigned, two codes of 4 bits
          in a byte, the lower four bits first

Owns: the layout of arrays. Not here: which layout a weight takes (see `weight_storage`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import helper

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches, TableRows
from onnxslim.graph.functions import DEQUANTIZE, DOMAIN
from onnxslim.graph.ir import to_numpy_dtype
from onnxslim.quantization.grid import Codes
from onnxslim.quantization.weight_rounding import QuantizedWeight
from onnxslim.quantization.weight_scales import channel_axis

INT4: Final = to_numpy_dtype(onnx.TensorProto.INT4)
INT4_OPSET: Final = 21  # the first with codes of 4 bits, and with `block_size`
INT4_IR: Final = 10
MIN_BLOCK: Final = 16  # of MatMulNBits, whose blocks are powers of two
_MIN_PART: Final = 8  # columns of a patch that share a scale: fewer cost more than they give
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """The arrays and attributes from which a node computes a weight.

    Attributes:
        inputs: the arrays of the node's inputs by name, without its data input if it has one.
        attributes: the attributes of the node.
    """

    inputs: Mapping[str, Array]
    attributes: Mapping[str, int] = field(default_factory=dict)


def linear(weight: QuantizedWeight, layer: WeightLayer, bits: int) -> StoredCodes:
    """The weight of `layer` as DequantizeLinear reads it.

    Raises:
        ValueError: scales go by block, and the weight is no matrix.
    """
    attributes: dict[str, int] = {}
    if weight.block is None:
        codes, grid = weight.stored(layer)
        scale, zero, axis = grid.scale, grid.zero_point, grid.axis
        if axis is None and (own := channel_axis(layer)) is not None:
            # one scale for all channels is written for each: kernels need scales on an axis
            axis, shape = own, codes.shape[own : own + 1]
            scale, zero = np.broadcast_to(scale, shape), np.broadcast_to(zero, shape)
        if axis is not None:
            attributes["axis"] = axis
    else:
        codes, scale, zero, axis = weight.stored_in_blocks(layer)
        attributes.update(axis=axis, block_size=weight.block)
    return StoredCodes(_named(codes, scale, zero, bits), attributes)


def folded(weight: QuantizedWeight, layer: WeightLayer, bits: int) -> StoredCodes:
    """The weight of `layer` as a `DequantizeFunction` reads it.

    Raises:
        ValueError: the weight cannot be cut into blocks; see `folding_block`.
    """
    if weight.block is None:
        codes, grid = weight.stored(layer)
        along = [-1 if axis == grid.axis else 1 for axis in range(codes.ndim)]
        flat, zeros = grid.scale, grid.zero_point
        if flat.ndim:
            flat, zeros = flat.reshape(along), zeros.reshape(along)
        return StoredCodes(_named(codes, flat, zeros, bits))
    if folding_block(layer, weight.block) != weight.block:
        raise ValueError(f"The weight of `{layer.name}` is cut into no blocks of {weight.block}.")
    if layer.columns % weight.block:
        return _folded_in_parts(weight, layer, bits, weight.block)
    codes = layer.laid_out(weight.codes)
    shape = np.array(codes.shape, np.int64)
    scale, zero = weight.scale, weight.zero_point
    if isinstance(layer.unfolding, ConvPatches):  # (g, rows, blocks) -> (g·rows, blocks, 1)
        codes = codes.reshape(len(codes), -1, weight.block)
        scale, zero = scale.reshape(len(codes), -1, 1), zero.reshape(len(codes), -1, 1)
    elif layer.inputs_first:  # (..., K, N) -> (..., blocks, block, N)
        codes = codes.reshape(*codes.shape[:-2], -1, weight.block, codes.shape[-1])
        scale, zero = scale[0].T[:, None], zero[0].T[:, None]  # groups share them
    else:  # (..., N, K) -> (..., N, blocks, block)
        codes = codes.reshape(*codes.shape[:-1], -1, weight.block)
        scale, zero = scale[0][..., None], zero[0][..., None]
    return StoredCodes({**_named(codes, scale, zero, bits), "shape": shape})


def _folded_in_parts(
    weight: QuantizedWeight, layer: WeightLayer, bits: int, block: int
) -> StoredCodes:
    """A matrix whose last block is not full: `places` says which scale each column has."""
    codes, scale, zero = layer.laid_out(weight.codes), weight.scale[0], weight.zero_point[0]
    if layer.inputs_first:  # (N, blocks) -> (blocks, N)
        scale, zero = scale.T, zero.T
    inputs = _named(codes, scale, zero, bits)
    return StoredCodes({**inputs, "places": block_of_columns(layer.columns, block)})


def block_of_columns(columns: int, block: int) -> Array:
    """Which block each of the columns lies in."""
    return np.arange(columns, dtype=np.int64) // block


def folding_block(layer: WeightLayer, block: int) -> int | None:
    """How many columns `folded` can give a scale, `block` at most; None: only all of them."""
    is_transposed = isinstance(layer.unfolding, ConvPatches) and layer.inputs_first
    is_cube = isinstance(layer.unfolding, TableRows) and len(layer.holder.stored.shape) > 2
    if is_transposed or is_cube or block >= layer.columns:
        return None
    if not isinstance(layer.unfolding, ConvPatches) and len(layer.holder.stored.shape) > 1:
        return block
    # patches and vectors are cut into equal blocks
    return next((n for n in range(block, _MIN_PART - 1, -1) if layer.columns % n == 0), None)


def whole_block(columns: int, block: int, *, for_kernel: bool = False) -> int | None:
    """The largest block, `block` at most, that divides the columns; None: none that pays does.

    It is a multiple of 4, and above 32 one of 32: from codes in other blocks, OpenVINO 2026.4.1
    computes other values without a word.

    Args:
        columns: of the weight.
        block: the columns that may share a scale, at most.
        for_kernel: whether it is to be one that MatMulNBits allows, a power of two.
    """
    if for_kernel:
        sizes = [block >> shift for shift in range(block.bit_length())]
        return next((n for n in sizes if n >= MIN_BLOCK and columns % n == 0), None)
    whole = (n for n in range(block, _MIN_PART - 1, -1) if columns % n == 0)
    return next((n for n in whole if n % 4 == 0 and (n <= 32 or n % 32 == 0)), None)


def kernel_block(columns: int, block: int) -> int:
    """The block, a power of two and `block` at most, that MatMulNBits should have.

    The largest that divides the columns; of none that does, the one that takes the fewest bytes
    once the last block is filled up.
    """
    sizes = [block >> shift for shift in range(block.bit_length()) if block >> shift >= MIN_BLOCK]
    whole = whole_block(columns, block, for_kernel=True)
    return whole or min(sizes, key=lambda size: -(-columns // size) * (size + 8))


def packed(weight: QuantizedWeight, layer: WeightLayer, bits: int, block: int) -> StoredCodes:
    """The weight of `layer` as MatMulNBits reads it.

    Args:
        weight: its scales go by `block`, or by row if `block` holds all columns.
        layer: a MatMul that multiplies by the matrix.
        bits: the bits of a code, 4 or 8.
        block: columns that share a scale, a power of two, 16 or more.

    Raises:
        ValueError: the scales are not those of the blocks.
    """
    rows, columns = layer.rows, layer.columns
    count = -(-columns // block)
    if layer.groups > 1 or weight.scale.shape[2] != count:
        raise ValueError(f"The weight of `{layer.name}` has not {count} scales for each row.")
    middle = 1 << (bits - 1)
    codes = np.full((rows, count * block), middle, np.uint8)  # the last block may not be full
    codes[:, :columns] = weight.codes[0].astype(np.int16) + middle
    inputs: dict[str, Array] = {
        "codes": packed_pairs(codes, bits).reshape(rows, count, -1),
        "scale": np.ascontiguousarray(weight.scale[0]),
    }
    if weight.zero_point.any():
        zero = np.asarray(weight.zero_point[0].astype(np.int16) + middle, np.uint8)
        inputs["zero_point"] = packed_pairs(zero, bits)
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    return StoredCodes(inputs, attributes)


def packed_pairs(codes: Array, bits: int) -> Array:
    """Unsigned codes of each row in bytes: as they are, or two of 4 bits, the first one lower."""
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.ascontiguousarray(even[:, 0::2] | (even[:, 1::2] << 4))


def stored_bytes(
    layer: WeightLayer, bits: int, block: int | None, *, symmetric: bool, is_padded: bool = False
) -> int:
    """Bytes of codes, scales and zero points, at most.

    A symmetric weight has no zero points. With `is_padded` the last block is filled up, as in
    `packed`.
    """
    size = block or layer.columns
    scales = layer.groups * layer.rows * -(-layer.columns // size)
    codes = scales * size if is_padded else layer.size
    each = 4 * 8 if symmetric else 4 * 8 + bits
    return -(-(codes * bits + scales * each) // 8)


def as_codes(codes: Codes, bits: int) -> Array:
    """Codes in the type of the file: int8 or int4."""
    return np.ascontiguousarray(codes if bits == 8 else codes.astype(INT4))


def _named(codes: Codes, scale: Array, zero: Codes, bits: int) -> dict[str, Array]:
    named = {"codes": as_codes(codes, bits), "scale": np.ascontiguousarray(scale)}
    if zero.any():  # without one it is 0
        named["zero_point"] = as_codes(zero, bits)
    return named


@dataclass(frozen=True)
class DequantizeFunction:
    """The function that computes a weight from the arrays of `folded`; a `WeightFunction`.

    Attributes:
        inputs: the names of its inputs, in order.
        bits: the bits of a code.
        is_half: whether the weight is float16, rounded from the float32 product.
        axis: the axis of blocks in scales and zero points, with `places`.
    """

    inputs: Sequence[str]
    bits: int = 8
    is_half: bool = False
    axis: int = 0

    @property
    def name(self) -> str:
        """The name of the function, which says which inputs it has."""
        offset = "Offset" if "zero_point" in self.inputs else ""
        blocks = "Blocks" if "shape" in self.inputs else ""
        if "places" in self.inputs:
            blocks = f"Places{self.axis}"
        return f"{DEQUANTIZE}{offset}{blocks}{'ToFloat16' if self.is_half else ''}"

    @property
    def least_opset(self) -> int:
        """7, since which multiplication broadcasts; 21 for codes of 4 bits."""
        return INT4_OPSET if self.bits == 4 else 7

    def function(self, opset: int) -> onnx.FunctionProto:
        """The function as ONNX, at an opset of the standard domain."""
        to_float = onnx.TensorProto.FLOAT
        nodes = [helper.make_node("Cast", ["codes"], ["steps"], to=to_float)]
        steps = "steps"

        def by_column(name: str) -> str:
            """The value that each column has, of one value for each block."""
            if "places" not in self.inputs:
                return name
            inputs, made = [name, "places"], f"{name}_of_column"
            nodes.append(helper.make_node("Gather", inputs, [made], axis=self.axis))
            return made

        if "zero_point" in self.inputs:
            nodes.append(helper.make_node("Cast", ["zero_point"], ["zero"], to=to_float))
            nodes.append(helper.make_node("Sub", [steps, by_column("zero")], ["moved"]))
            steps = "moved"
        nodes.append(helper.make_node("Mul", [steps, by_column("scale")], ["weight"]))
        if "shape" in self.inputs:
            nodes[-1].output[0] = "cut"
            nodes.append(helper.make_node("Reshape", ["cut", "shape"], ["weight"]))
        if self.is_half:
            nodes[-1].output[0] = "wide"
            half = onnx.TensorProto.FLOAT16
            nodes.append(helper.make_node("Cast", ["wide"], ["weight"], to=half))
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_function(DOMAIN, self.name, list(self.inputs), ["weight"], nodes, opsets)


def is_block_of_kernel(block: int | None) -> bool:
    """Whether onnxruntime's MatMulNBits allows blocks of `block` columns; None: all columns."""
    return block is None or (block >= MIN_BLOCK and block & (block - 1) == 0)
