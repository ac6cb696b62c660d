"""Codes of weights, read from DequantizeLinear or MatMulNBits, and written as a target takes them.

In order of their size, the forms are: DequantizeLinear of 4 bits, of 8 bits, Cast and Mul of 8-bit
codes, and floats. All of them give the same weight: scale·(code − zero point).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.constraints.coded import unpacked
from onnxslim.graph.functions import DEQUANTIZE, DOMAIN
from onnxslim.graph.ir import Node, to_numpy_dtype, to_onnx_dtype
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lowering.obstacles import (
    FOUR_BIT_TYPES,
    block_size,
    is_matmul_nbits,
    is_odd_block,
)
from onnxslim.pipeline.targets import TargetEngine, Trait
from onnxslim.records import Fidelity

INT4 = to_numpy_dtype(onnx.TensorProto.INT4)
_TOP = 127
_BLOCKS_SINCE = 21  # the first opset with blocks and with codes of 4 bits
_SCALES_SINCE = 13  # the first with scales along an axis


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """Codes of a weight with their scales.

    Attributes:
        codes: int32, of the shape of the weight.
        scale: of one number, (length of `axis`,), or, in blocks, of the shape of the weight with
            fewer entries along `axis`.
        zero: zero points, int32, of the shape of `scale`.
        axis: along which scales differ.
        block: entries along `axis` that share a scale; 0: scales are no blocks.
        is_short: whether the codes are of 4 bits.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    axis: int
    block: int
    is_short: bool

    @property
    def length(self) -> int:
        """Entries along `axis`."""
        return int(self.codes.shape[self.axis])

    @property
    def blocks(self) -> int:
        """The blocks along `axis`; the last one may not be full."""
        return -(-self.length // self.block)

    def along(self, values: np.ndarray) -> np.ndarray:
        """Scales or zero points, one for each code or to be broadcast."""
        if self.block:
            return np.repeat(values, self.block, self.axis).take(range(self.length), self.axis)
        if values.size == 1:
            return values.reshape(())
        return values.reshape([-1 if a == self.axis else 1 for a in range(self.codes.ndim)])

    def dense(self) -> np.ndarray:
        """The weight, as DequantizeLinear computes it."""
        steps = (self.codes - self.along(self.zero)).astype(self.scale.dtype)
        return np.ascontiguousarray(steps * self.along(self.scale))

    def without_zero_points(self) -> CodedTensor:
        """Codes of 8 bits with zero point 0: exact, unless they were of 8 bits with another."""
        if not self.zero.any():
            return self
        none = np.zeros_like(self.zero)
        if self.is_short:
            return replace(
                self, codes=self.codes - self.along(self.zero), zero=none, is_short=False
            )
        weight = self.dense()
        size = np.abs(weight)
        if self.block:
            starts = np.arange(0, self.length, self.block)
            most = np.maximum.reduceat(size, starts, self.axis)
        elif self.scale.size == 1:
            most = size.max().reshape(self.scale.shape)
        else:
            most = size.max(axis=tuple(a for a in range(size.ndim) if a != self.axis))
        scale = np.where(most > 0, most / _TOP, 1).astype(self.scale.dtype)
        made = replace(self, scale=scale, zero=none)
        codes = np.clip(np.rint(weight / made.along(scale)), -_TOP, _TOP).astype(np.int32)
        return replace(made, codes=codes)


def read_codes(node: Node) -> CodedTensor | None:
    """The codes of a weight that a DequantizeLinear or MatMulNBits reads; None where it has none.

    Unsigned codes become signed ones, together with their zero points.
    """
    if is_matmul_nbits(node):
        return _read_packed(node)
    return _read_function(node) if node.domain == DOMAIN else _read_linear(node)


def _read_linear(node: Node) -> CodedTensor | None:
    codes, scale = const_array(node.inputs[0]), const_array(node.inputs[1])
    zero = const_array(node.inputs[2]) if is_present(node, 2) else None
    is_known = codes is not None and scale is not None
    if not is_known or (zero is None and is_present(node, 2)):
        return None
    assert codes is not None
    assert scale is not None
    dtype, block = codes.dtype, block_size(node)
    if dtype not in FOUR_BIT_TYPES and dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        return None
    is_short = dtype in FOUR_BIT_TYPES
    plain = codes.astype(np.int32)
    zeros = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
    if dtype.name.startswith("uint"):
        middle = 8 if is_short else 128
        plain, zeros = plain - middle, zeros - middle
    axis = int(node.attrs.get("axis", 1)) % max(plain.ndim, 1) if scale.size > 1 else 0
    return CodedTensor(plain, scale, zeros, axis, block, is_short)


def _read_function(node: Node) -> CodedTensor | None:
    """The codes that one of onnxslim's own functions reads (see `weight_layouts.folded`)."""
    op = str(node.op)
    arrays = [const_array(tensor) for tensor in node.inputs]
    if not op.startswith(DEQUANTIZE) or op.endswith("ToFloat16"):
        return None
    codes, scale, *others = (array for array in arrays if array is not None)
    if 2 + len(others) != len(node.inputs):
        return None
    zero = others.pop(0).astype(np.int32) if "Offset" in op else np.zeros(scale.shape, np.int32)
    is_short, plain = codes.dtype in FOUR_BIT_TYPES, codes.astype(np.int32)
    if "Places" in op:
        axis, block = int(op.rpartition("Places")[2]), int(np.count_nonzero(others[0] == 0))
        is_plain = scale.ndim == plain.ndim and np.array_equal(
            others[0], np.arange(plain.shape[axis]) // block
        )
        return CodedTensor(plain, scale, zero, axis, block, is_short) if is_plain else None
    if "Blocks" in op:
        return _in_blocks(plain, scale, zero, tuple(map(int, others[0])), is_short=is_short)
    axes = [at for at, size in enumerate(scale.shape, plain.ndim - scale.ndim) if size > 1]
    if len(axes) > 1:
        return None
    flat = (-1,) if axes else ()
    axis = axes[0] if axes else 0
    return CodedTensor(plain, scale.reshape(flat), zero.reshape(flat), axis, 0, is_short)


def _in_blocks(
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    shape: tuple[int, ...],
    *,
    is_short: bool,
) -> CodedTensor | None:
    """A matrix whose codes are cut into blocks along one of its axes."""
    if len(shape) != 2 or codes.ndim != 3 or scale.ndim != 3:
        return None
    cut = 1 if scale.shape[1] == 1 else 2
    if scale.shape[cut] != 1:
        return None
    axis, block = cut - 1, codes.shape[cut]
    scale, zero = np.squeeze(scale, cut), np.squeeze(zero, cut)
    return CodedTensor(codes.reshape(shape), scale, zero, axis, block, is_short)


def _read_packed(node: Node) -> CodedTensor | None:
    codes, scale = const_array(node.inputs[1]), const_array(node.inputs[2])
    zero = const_array(node.inputs[3]) if is_present(node, 3) else None
    bits, block, rows, columns = (
        int(node.attrs.get(name, 4)) for name in ("bits", "block_size", "N", "K")
    )
    if codes is None or scale is None or bits not in (4, 8) or is_present(node, 4):
        return None
    if is_present(node, 3) and (zero is None or zero.dtype != np.uint8):
        return None
    count, middle = -(-columns // block), 1 << (bits - 1)
    plain = unpacked(codes.reshape(rows * count, -1), bits).reshape(rows, -1)[:, :columns]
    zeros = np.zeros((rows, count), np.int32)
    if zero is not None:
        zeros = unpacked(zero.reshape(rows, -1), bits)[:, :count].astype(np.int32) - middle
    signed = np.ascontiguousarray((plain.astype(np.int32) - middle).T)
    scales = np.ascontiguousarray(scale.reshape(rows, count).T)
    return CodedTensor(signed, scales, np.ascontiguousarray(zeros.T), 0, block, bits == 4)


# ---------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class CodeWriter:
    """Writes codes in front of a node, in the smallest form that the target takes."""

    rw: Rewriter
    target: TargetEngine

    def written(self, before: Node, given: CodedTensor, name: str) -> gs.Tensor:
        """A tensor with the weight, computed in front of `before`."""
        coded = self._adapted(given)
        if self._is_linear(coded):
            return self._linear(before, coded, name)
        if self._is_decoded(coded):
            return self._decoded(before, coded, name)
        return self.rw.constant(given.dense(), name)

    def form(self, coded: CodedTensor) -> str:
        """The form in words."""
        coded = self._adapted(coded)
        if self._is_linear(coded):
            return "DequantizeLinear"
        return "Cast and Mul" if self._is_decoded(coded) else "floats"

    def _adapted(self, coded: CodedTensor) -> CodedTensor:
        """The codes with the blocks and zero points that DequantizeLinear may have."""
        coded = self._in_even_blocks(coded)
        if self._is_linear(coded) and not self.target.takes(Trait.ZERO_POINTS):
            return coded.without_zero_points()
        return coded

    def _in_even_blocks(self, coded: CodedTensor) -> CodedTensor:
        """The codes in smaller blocks with the same scales, where the target needs even ones."""
        if not self._is_odd(coded) and not self._is_uneven(coded):
            return coded
        sizes = (n for n in range(coded.block, 1, -1) if coded.block % n == coded.length % n == 0)
        size = next((n for n in sizes if not is_odd_block(n)), None)
        if size is None:
            return coded
        count = coded.block // size

        def repeated(values: np.ndarray) -> np.ndarray:
            return np.repeat(values, count, coded.axis).take(
                range(coded.length // size), coded.axis
            )

        scale, zero = repeated(coded.scale), repeated(coded.zero)
        return replace(coded, block=size, scale=scale, zero=zero)

    def _is_odd(self, coded: CodedTensor) -> bool:
        is_read = self.target.takes(Trait.ODD_BLOCKS) or not coded.block
        return not is_read and is_odd_block(coded.block)

    def _is_uneven(self, coded: CodedTensor) -> bool:
        is_read = self.target.takes(Trait.UNEVEN_BLOCKS) or not coded.block
        return not is_read and coded.length % coded.block > 0

    def _is_decoded(self, coded: CodedTensor) -> bool:
        # what reads DequantizeLinear in odd blocks wrong does the same to Cast and Mul
        return self.target.takes(Trait.DECODERS) and not self._is_odd(coded)

    def _is_linear(self, coded: CodedTensor) -> bool:
        takes, opset = self.target.takes, self.rw.opset
        if self._is_odd(coded):
            return False
        if coded.is_short or coded.block:
            since, needed = _BLOCKS_SINCE, Trait.FOUR_BITS if coded.is_short else Trait.BLOCKS
        else:
            since, needed = (_SCALES_SINCE if coded.scale.size > 1 else 10), Trait.INT8
        return opset >= since and takes(needed) and (coded.is_short or takes(Trait.INT8))

    def _linear(self, before: Node, coded: CodedTensor, name: str) -> gs.Tensor:
        is_padded = self._is_uneven(coded)
        codes = self._padded(coded) if is_padded else coded.codes
        dtype = INT4 if coded.is_short else np.dtype(np.int8)
        inputs = [
            self.rw.constant(codes.astype(dtype), f"{name}_codes"),
            self.rw.constant(coded.scale, f"{name}_scale"),
        ]
        if coded.zero.any():
            inputs.append(self.rw.constant(coded.zero.astype(dtype), f"{name}_zero_point"))
        attrs = {"axis": coded.axis} if coded.scale.size > 1 else {}
        if coded.block:
            attrs["block_size"] = coded.block
        made = self._insert(before, "DequantizeLinear", inputs, attrs, name, coded, codes.shape)
        return self._cut(before, made, coded, name) if is_padded else made

    def _decoded(self, before: Node, coded: CodedTensor, name: str) -> gs.Tensor:
        codes, scale, zero = coded.codes, coded.scale, coded.zero
        rest = -coded.length % coded.block if coded.block else 0
        padded = self._padded(coded) if rest else codes
        if coded.block:  # (..., length, ...) -> (..., blocks, block, ...)
            at, sizes = coded.axis, list(padded.shape)
            sizes[at : at + 1] = [coded.blocks, coded.block]
            codes, scale, zero = (
                padded.reshape(sizes), np.expand_dims(scale, at + 1), np.expand_dims(zero, at + 1)
            )  # fmt: skip
        else:
            scale, zero = coded.along(scale), coded.along(zero)
        stored = self.rw.constant(codes.astype(np.int8), f"{name}_codes")
        attrs = {"to": to_onnx_dtype(scale.dtype)}
        made = self._insert(before, "Cast", [stored], attrs, name, coded, codes.shape)
        if zero.any():
            zeros = self.rw.constant(zero.astype(scale.dtype), f"{name}_zero_point")
            made = self._insert(before, "Sub", [made, zeros], {}, name, coded, codes.shape)
        scales = self.rw.constant(np.ascontiguousarray(scale), f"{name}_scale")
        made = self._insert(before, "Mul", [made, scales], {}, name, coded, codes.shape)
        if coded.block:
            shape = self.rw.constant(np.array(padded.shape, np.int64), f"{name}_shape")
            made = self._insert(before, "Reshape", [made, shape], {}, name, coded, padded.shape)
        return self._cut(before, made, coded, name) if rest else made

    def _padded(self, coded: CodedTensor) -> np.ndarray:
        """The codes, with the last block filled up."""
        widths = [(0, 0)] * coded.codes.ndim
        widths[coded.axis] = (0, -coded.length % coded.block)
        return np.pad(coded.codes, widths)

    def _cut(self, before: Node, made: gs.Tensor, coded: CodedTensor, name: str) -> gs.Tensor:
        """`made` without what fills the last block up."""
        ends = [
            self.rw.constant(np.array([value], np.int64), f"{name}_{word}")
            for word, value in (("start", 0), ("end", coded.length), ("axis", coded.axis))
        ]
        return self._insert(before, "Slice", [made, *ends], {}, name, coded, coded.codes.shape)

    def _insert(
        self,
        before: Node,
        op: str,
        inputs: list[gs.Tensor],
        attrs: dict[str, int],
        name: str,
        coded: CodedTensor,
        shape: tuple[int, ...],
    ) -> gs.Tensor:
        (made,) = self.rw.insert(
            before, op, inputs, attrs, name=name, dtype=coded.scale.dtype, shape=shape
        )
        return made


def rewrite_linear(rw: Rewriter, target: TargetEngine, node: Node) -> None:
    """Write the codes of a DequantizeLinear in a form that the target takes."""
    coded = read_codes(node)
    if coded is None:
        return
    writer = CodeWriter(rw, target)
    made = writer.written(node, coded, str(node.outputs[0].name))
    what = f"the codes of the weight are read by {writer.form(coded)}"
    rw.substitute(node, made, what, Fidelity.LOSSY)


def widen_codes(rw: Rewriter) -> None:
    """Store 4-bit codes that operators of the standard move or cast in 8 bits."""
    for node in rw.walk("Cast", "Gather", "Reshape"):
        codes = const_array(node.inputs[0])
        if codes is None or codes.dtype not in FOUR_BIT_TYPES:
            continue
        wide = np.dtype(np.int8 if codes.dtype == INT4 else np.uint8)
        stored = rw.constant(codes.astype(wide), str(node.inputs[0].name))
        if node.op != "Cast":
            if any(user.op != "Cast" for user in node.outputs[0].outputs):
                continue
            node.outputs[0].dtype = wide
        what = "codes of 4 bits are stored in 8"
        rw.update(node, what, inputs=[stored, *node.inputs[1:]])


def rewrite_packed(rw: Rewriter, target: TargetEngine, node: Node) -> None:
    """Replace a MatMulNBits by a MatMul, and an Add of its bias."""
    coded = read_codes(node)
    if coded is None:
        rw.skip(node, "a MatMulNBits of this form is not read")
        return
    writer = CodeWriter(rw, target)
    weight = writer.written(node, coded, f"{node.inputs[1].name}_weight")
    what = f"MatMulNBits became a MatMul, whose weight is read by {writer.form(coded)}"
    op, inputs = "MatMul", [node.inputs[0], weight]
    if is_present(node, 5):
        (product,) = rw.insert(node, op, inputs, name=f"{node.outputs[0].name}_product")
        product.dtype, product.shape = node.outputs[0].dtype, node.outputs[0].shape
        op, inputs = "Add", [product, node.inputs[5]]
    rw.update(node, what, op=op, inputs=inputs, attrs={}, fidelity=Fidelity.LOSSY)
