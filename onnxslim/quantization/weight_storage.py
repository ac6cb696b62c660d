"""Which form of integer weights suits the nodes that read a weight.

The behaviour of onnxruntime 1.31 with each form was read off the graphs that it runs:

    LINEAR    DequantizeLinear. Where it has one reader, a MatMul or a Gemm that multiplies by the
              matrix as it lies (no transB, alpha = beta = 1), and scales go by output channel or by
              blocks of 16, 32, 64, ... columns, both become one MatMulNBits: the weight stays
              small in memory, and the input is rounded to 8 bits for each block. Everywhere else,
              and where Relu or Clip and more come next, the weight is computed in every run.
    FOLDED    a local function of Cast and Mul, computed once, when a session starts. From then on
              it is the float weight, in memory and in speed.
    PACKED    MatMulNBits written out, by any number of products, of Gemm too (an Add takes its
              bias), in bodies too. Gather nodes may pick rows of the same codes: a table of
              embeddings that is the head as well is one set of codes, and both are fast.
    GATHERED  a table of embeddings stays codes in memory: Gather picks rows of codes and of
              scales, Cast and Mul make floats of the picked rows.

MatMulNBits rounds its input to 8 bits for each block of the weight (accuracy level 4), or computes
in float (level 0). Measured with VNNI, one thread, a matrix of 1024×32000, times float's speed with
1 / 16 / 128 rows: 4 bits in blocks of 32 3.9 / 1.6 / 1.4, of 128 5.9 / 2.2 / 1.9; 8 bits 3.0 / 1.7
/ 1.5, of 128 3.7 / 2.2 / 2.1; at level 0 4 bits 1.4 / 0.8 / 1.0, and 8 bits 0.03 / 0.06 / 0.3.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import LinearOperator
from onnxslim.codebook.replacement import why_not_replaceable
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Graph, Node, walk_graphs
from onnxslim.pipeline.targets import TargetEngine, Trait
from onnxslim.quantization import weight_layouts
from onnxslim.quantization.weight_layouts import DequantizeFunction
from onnxslim.quantization.weight_readers import (
    MatrixReaders,
    is_matrix,
    is_plain_product,
    matrix_readers,
)

_BLOCKS: Final = {4: 32, 8: 0}  # default, by bits, of weights that become floats
KERNEL_BLOCKS: Final = {4: 32, 8: 64}  # and of those that MatMulNBits reads
_BIT_SHIFT_OPSET: Final = 11


class StorageForm(enum.StrEnum):
    """Which storage kinds a user allows.

    AUTO: what is measured to be best of NATIVE, MATMUL_NBITS and FOLDED. NATIVE: LINEAR where
    onnxruntime makes a kernel of it, GATHERED for embeddings, FOLDED elsewhere; a table that is
    the head too is untied for that. DEQUANTIZE: LINEAR everywhere. FOLDED: everywhere.
    MATMUL_NBITS: PACKED for MatMul and Gemm, NATIVE elsewhere.
    """

    AUTO = "auto"
    NATIVE = "native"
    DEQUANTIZE = "dequantize"
    FOLDED = "folded"
    MATMUL_NBITS = "matmul-nbits"


class StorageKind(enum.Enum):
    """How one weight is stored; the text of the module describes each kind."""

    LINEAR = "DequantizeLinear"
    FOLDED = "integers that become floats when a session starts"
    PACKED = "MatMulNBits"
    GATHERED = "rows of integers that Gather picks"


@dataclass(frozen=True)
class StoragePlan:
    """How one weight is stored, and with which codes.

    Attributes:
        kind: how the codes are held in the graph.
        bits: the bits of a code, 8 or 4.
        block: columns that share a scale; None: all of a row.
        accuracy_level: of MatMulNBits: 4 rounds its input to 8 bits, 0 and 1 compute in float.
        is_picked: whether Gather nodes pick rows of the codes, which then have no zero points.
    """

    kind: StorageKind
    bits: int
    block: int | None
    accuracy_level: int = 4
    is_picked: bool = False

    @property
    def needs_opset(self) -> int:
        """The first opset that can express it."""
        if self.kind is StorageKind.PACKED:
            return _BIT_SHIFT_OPSET if self.is_picked and self.bits == 4 else 1
        if self.bits == 4 or (self.kind is StorageKind.LINEAR and self.block is not None):
            return weight_layouts.INT4_OPSET
        return 13 if self.kind is StorageKind.LINEAR else 7

    @property
    def traits(self) -> tuple[Trait, ...]:
        """What an engine has to take for it."""
        if self.kind is StorageKind.PACKED:
            picked = (Trait.DECODERS,) if self.is_picked else ()
            wide = (Trait.MATMUL_8BITS,) if self.bits == 8 else ()
            return (Trait.MATMUL_NBITS, *wide, *picked)
        if self.kind is not StorageKind.LINEAR:
            return (Trait.DECODERS, Trait.FOUR_BITS) if self.bits == 4 else (Trait.DECODERS,)
        if self.bits == 4:
            return (Trait.FOUR_BITS,)
        return (Trait.INT8, Trait.BLOCKS) if self.block else (Trait.INT8,)

    def objection(self, target: TargetEngine) -> str | None:
        """Why the engine would not take it; None: it would."""
        return next(filter(None, map(target.objection, self.traits)), None)


def storage_plan(
    layer: WeightLayer,
    form: StorageForm,
    bits: int,
    block: int | None,
    level: int,
    target: TargetEngine,
) -> StoragePlan:
    """How the weight of `layer` is stored under `form`.

    Where the engine that the file is for does not take that, it is the first of the other kinds
    that it takes, if any.

    Args:
        layer: that reads the weight.
        form: what the user allows.
        bits: of a code, 8 or 4.
        block: columns that share a scale, at most; 0: all of a row; None: what suits the kind.
        level: accuracy level of MatMulNBits.
        target: the engine.
    """
    readers = matrix_readers(layer)
    preferred = _plan(layer, readers, _kind(layer, readers, form, bits, block), bits, block, level)
    if preferred.objection(target) is None:
        return preferred
    kinds = [StorageKind.LINEAR, StorageKind.FOLDED]
    if readers is not None and readers.products and _is_packable(layer, readers):
        kinds.insert(0, StorageKind.PACKED)
    others = [] if is_half(layer) else [_plan(layer, readers, k, bits, block, level) for k in kinds]
    if block is None:
        others += [replace(plan, block=None) for plan in others if plan.kind is StorageKind.LINEAR]
    return next((plan for plan in others if plan.objection(target) is None), preferred)


def _plan(
    layer: WeightLayer,
    readers: MatrixReaders | None,
    kind: StorageKind,
    bits: int,
    block: int | None,
    level: int,
) -> StoragePlan:
    """How the weight is stored as `kind`, in blocks that divide the columns where that matters."""
    columns = layer.columns
    if kind is StorageKind.PACKED:
        assert readers is not None
        packed = weight_layouts.kernel_block(columns, block or KERNEL_BLOCKS[bits])
        return StoragePlan(kind, bits, packed, level, is_picked=bool(readers.picks))
    is_kernel = kind is StorageKind.LINEAR and has_kernel(layer, block)
    wanted = (KERNEL_BLOCKS if is_kernel else _BLOCKS)[bits] if block is None else block
    size = _block(layer, kind, wanted) if wanted else None
    if size is not None and kind is StorageKind.LINEAR:
        whole = weight_layouts.whole_block(columns, size, for_kernel=True) if is_kernel else None
        by_channel = whole is None and is_kernel and bits == 8 and block is None
        size = None if by_channel else whole or weight_layouts.whole_block(columns, size)
    return StoragePlan(kind, bits, size if size and size < columns else None)


def is_half(layer: WeightLayer) -> bool:
    """Whether the weight is float16; its codes have float32 scales all the same."""
    return bool(layer.holder.dtype == np.float16)


def _block(layer: WeightLayer, kind: StorageKind, block: int) -> int | None:
    """How many columns of the weight can have a scale, `block` at most; None: only all."""
    if kind is StorageKind.LINEAR:
        return block if is_matrix(layer) else None
    return weight_layouts.folding_block(layer, block) if kind is StorageKind.FOLDED else block


def _kind(
    layer: WeightLayer,
    readers: MatrixReaders | None,
    form: StorageForm,
    bits: int,
    block: int | None,
) -> StorageKind:
    if form is StorageForm.FOLDED or is_half(layer):
        return StorageKind.FOLDED
    if form is StorageForm.DEQUANTIZE:
        return StorageKind.LINEAR
    if readers is not None and readers.picks and not readers.products:
        return StorageKind.GATHERED
    if form is StorageForm.MATMUL_NBITS and readers is not None and _is_packable(layer, readers):
        return StorageKind.PACKED
    is_kernel = has_kernel(layer, block) and has_whole_blocks(layer, bits, block)
    return StorageKind.LINEAR if is_kernel else StorageKind.FOLDED


def has_whole_blocks(layer: WeightLayer, bits: int, block: int | None) -> bool:
    """Whether a kernel's block divides the columns, or scales can go by output channel.

    DequantizeLinear in other blocks is valid, and other engines refuse it.
    """
    wanted = KERNEL_BLOCKS[bits] if block is None else block
    if not wanted or wanted >= layer.columns or (bits == 8 and block is None and layer.rows > 1):
        return True
    return weight_layouts.whole_block(layer.columns, wanted, for_kernel=True) is not None


def _is_packable(layer: WeightLayer, readers: MatrixReaders) -> bool:
    """Whether MatMulNBits can multiply, and Gather can pick from what it reads."""
    if not readers.picks:
        return is_matrix(layer)
    # a row of blocks that are not full has more codes than the table has columns
    return layer.columns % weight_layouts.MIN_BLOCK == 0 and readers.are_ranks_known


def has_kernel(layer: WeightLayer, block: int | None) -> bool:
    """Whether onnxruntime makes one kernel of DequantizeLinear and what reads it."""
    is_alone = len(layer.weight_tensor.outputs) == 1 and not layer.bodies and not layer.views
    return is_alone and is_matrix(layer) and could_have_kernel(layer.operator, layer.graph, block)


def could_have_kernel(operator: LinearOperator, graph: Graph, block: int | None) -> bool:
    """Whether `operator` would be one kernel with a DequantizeLinear that it alone reads."""
    is_allowed = weight_layouts.is_block_of_kernel(block or None)
    return is_allowed and is_plain_product(operator) and not _is_clipped(operator.node, graph)


def _is_clipped(node: Node, graph: Graph) -> bool:
    """Whether Relu or Clip and another operator follow: onnxruntime then fuses no MatMulNBits.

    A bias may stand between, where onnxruntime first makes a Gemm of MatMul and Add.
    """
    made = node.outputs[0]
    user = _sole_user(graph, made)
    if node.op == "MatMul" and user is not None and user.op == "Add" and rank(made) in (2, None):
        made = user.outputs[0]
        user = _sole_user(graph, made)
    if user is None or user.op not in ("Relu", "Clip"):
        return False
    return not any(user.outputs[0] is out for out in graph.outputs)


def _sole_user(graph: Graph, tensor: gs.Tensor) -> Node | None:
    if len(tensor.outputs) != 1 or any(tensor is out for out in graph.outputs):
        return None
    return tensor.outputs[0]  # type: ignore[no-any-return]


def why_not_stored(graph: Graph, layer: WeightLayer, plan: StoragePlan) -> str | None:
    """Why the weight of `layer` cannot be stored by `plan`; None when it can."""
    tensors = [layer.weight_tensor, *(node.outputs[0] for node in layer.views)]
    if any(tensor is out for g in walk_graphs(graph) for out in g.outputs for tensor in tensors):
        return "its weight is an output of a graph"
    opset = graph.opset_of("") or 1
    if opset < plan.needs_opset:
        return f"the model has opset {opset}, and this takes {plan.needs_opset}"
    if plan.kind is not StorageKind.FOLDED:
        return None
    is_cut = plan.block is not None and layer.columns % plan.block
    blocks = ["places" if is_cut else "shape"] if plan.block else []
    axis = 0 if layer.inputs_first else 1
    for zero in (["zero_point"], []):  # the codes decide which of the two functions it becomes
        names = ["codes", "scale", *zero, *blocks]
        made = DequantizeFunction(names, plan.bits, is_half(layer), axis)
        why = why_not_replaceable(graph, made)
        if why is not None:
            return why
    return None
