"""How integer weights take the place of a constant in a graph, and which form suits its readers.

The behaviour of onnxruntime 1.31 with each form was read off the graphs that it runs:

    LINEAR    DequantizeLinear. Where it has one reader, a MatMul or a Gemm that multiplies by the
              matrix as it lies (no transB, alpha = beta = 1), and scales go by output channel or by
              blocks of 16, 32, 64, ... columns, both become one MatMulNBits: the weight stays
              small in memory, and the input is rounded to 8 bits for each block. Everywhere else,
              and where Relu or Clip and more come next, the weight is computed in every run.
    FOLDED    a local function of Cast and Mul, computed once, when a session starts. From then on
              it is the float weight, in memory and in speed.
    PACKED    MatMulNBits written out.
    GATHERED  a table of embeddings stays codes in memory: Gather picks rows of codes and of
              scales, Cast and Mul make floats of the picked rows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import Vectors
from onnxslim.codebook import replacement
from onnxslim.codebook.replacement import why_not_replaceable
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import MICROSOFT_DOMAIN, Constant, Graph, Node, walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization import weight_layouts
from onnxslim.quantization.weight_layouts import DequantizeFunction, StoredCodes
from onnxslim.quantization.weight_rounding import QuantizedWeight
from onnxslim.records import Fidelity


class StorageForm(enum.StrEnum):
    """Which storage kinds a user allows.

    AUTO: NATIVE, or FOLDED where that is measured to be slower. NATIVE: LINEAR where onnxruntime
    makes a kernel of it, GATHERED for embeddings, FOLDED elsewhere. DEQUANTIZE: LINEAR everywhere.
    FOLDED: everywhere. MATMUL_NBITS: PACKED for MatMul, NATIVE elsewhere.
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
    """

    kind: StorageKind
    bits: int
    block: int | None
    accuracy_level: int = 4

    @property
    def needs_opset(self) -> int:
        """The first opset that can express it."""
        if self.kind is StorageKind.PACKED:
            return 1
        if self.bits == 4 or (self.kind is StorageKind.LINEAR and self.block is not None):
            return weight_layouts.INT4_OPSET
        return 13 if self.kind is StorageKind.LINEAR else 7


def storage_plan(
    layer: WeightLayer, form: StorageForm, bits: int, block: int | None, level: int
) -> StoragePlan:
    """How the weight of `layer` is stored under `form`."""
    kind = _kind(layer, form, block)
    if kind is StorageKind.PACKED:
        return StoragePlan(kind, bits, block, level)
    has_blocks = block and block < layer.columns and _takes_blocks(layer, kind, block)
    return StoragePlan(kind, bits, block if has_blocks else None)


def is_half(layer: WeightLayer) -> bool:
    """Whether the weight is float16; its codes have float32 scales all the same."""
    return bool(layer.holder.dtype == np.float16)


def _takes_blocks(layer: WeightLayer, kind: StorageKind, block: int) -> bool:
    """Whether the weight can have a scale for each `block` columns."""
    if kind is StorageKind.LINEAR:
        return _is_one_matrix(layer)
    if kind is StorageKind.FOLDED:
        return weight_layouts.can_fold(layer, block)
    return layer.columns % block == 0 and _ranks_known(layer)  # all readers are Gather


def _kind(layer: WeightLayer, form: StorageForm, block: int | None) -> StorageKind:
    if form is StorageForm.FOLDED or is_half(layer):
        return StorageKind.FOLDED
    if form is StorageForm.DEQUANTIZE:
        return StorageKind.LINEAR
    if form is StorageForm.MATMUL_NBITS and _are_packable(layer):
        return StorageKind.PACKED
    if _is_picked_by_rows(layer):
        return StorageKind.GATHERED
    return StorageKind.LINEAR if _has_kernel(layer, block) else StorageKind.FOLDED


def _are_packable(layer: WeightLayer) -> bool:
    """Whether all readers multiply by the matrix from the right."""
    tensor = layer.weight_tensor
    return _is_one_matrix(layer) and all(
        user.op == "MatMul" and user.is_onnx and user.inputs[1] is tensor is not user.inputs[0]
        for user in tensor.outputs
    )


def _has_kernel(layer: WeightLayer, block: int | None) -> bool:
    """Whether onnxruntime makes one kernel of DequantizeLinear and what reads it."""
    is_alone = len(layer.weight_tensor.outputs) == 1 and not layer.bodies and not layer.views
    if not is_alone or layer.weight != 1 or not _is_one_matrix(layer):
        return False
    operator = layer.operator
    is_plain = operator.scale == operator.bias_scale == 1.0 and operator.in_axis == -1
    return is_plain and weight_layouts.is_block_of_kernel(block or None) and not _is_clipped(layer)


def _is_clipped(layer: WeightLayer) -> bool:
    """Whether Relu or Clip and another operator follow: onnxruntime then fuses no MatMulNBits.

    A bias may stand between, where onnxruntime first makes a Gemm of MatMul and Add.
    """
    made = layer.node.outputs[0]
    user = _sole_user(layer.graph, made)
    if (
        layer.node.op == "MatMul"
        and user is not None
        and user.op == "Add"
        and rank(made) in (2, None)
    ):
        made = user.outputs[0]
        user = _sole_user(layer.graph, made)
    if user is None or user.op not in ("Relu", "Clip"):
        return False
    return not any(user.outputs[0] is out for out in layer.graph.outputs)


def _sole_user(graph: Graph, tensor: gs.Tensor) -> Node | None:
    if len(tensor.outputs) != 1 or any(tensor is out for out in graph.outputs):
        return None
    return tensor.outputs[0]  # type: ignore[no-any-return]


def _is_one_matrix(layer: WeightLayer) -> bool:
    return isinstance(layer.unfolding, Vectors) and len(layer.holder.stored.shape) == 2


# ---------------------------------------------------------------------------- tables


def _is_picked_by_rows(layer: WeightLayer) -> bool:
    """Whether the weight is a matrix that Gather nodes alone read, whole rows of it."""
    return len(layer.holder.stored.shape) == 2 and all(
        user.is_onnx and user.op == "Gather" and int(user.attrs.get("axis", 0)) in (0, -2)
        for user in layer.weight_tensor.outputs
    )


def _ranks_known(layer: WeightLayer) -> bool:
    return all(rank(user.inputs[1]) is not None for user in layer.weight_tensor.outputs)


# ---------------------------------------------------------------------------- writing


def why_not_stored(graph: Graph, layer: WeightLayer, plan: StoragePlan) -> str | None:
    """Why the weight of `layer` cannot be stored by `plan`; None when it can."""
    tensor = layer.weight_tensor
    if any(tensor is out for inner in walk_graphs(graph) for out in inner.outputs):
        return "its weight is an output of a graph"
    opset = graph.opset_of("") or 1
    if opset < plan.needs_opset:
        return f"the model has opset {opset}, and this takes {plan.needs_opset}"
    if plan.kind is not StorageKind.FOLDED:
        return None
    shape = ["shape"] if plan.block else []
    for zero in (["zero_point"], []):  # the codes decide which of the two functions it becomes
        made = DequantizeFunction(["codes", "scale", *zero, *shape], plan.bits, is_half(layer))
        why = why_not_replaceable(graph, made)
        if why is not None:
            return why
    return None


def replace_constant(
    rw: Rewriter, layer: WeightLayer, weight: QuantizedWeight, plan: StoragePlan, what: str
) -> None:
    """Store `weight` in place of the weight of `layer`, for all that read it.

    `why_not_stored` must be None for `plan`. The rewriter logs the change as `what`.
    """
    writer = _WeightStorer(rw, layer, weight, plan, what)
    if plan.bits == 4 and plan.kind is not StorageKind.PACKED:
        writer.raise_ir()
    {
        StorageKind.LINEAR: writer.linear,
        StorageKind.FOLDED: writer.folded,
        StorageKind.PACKED: writer.packed,
        StorageKind.GATHERED: writer.gathered,
    }[plan.kind]()


@dataclass
class _WeightStorer:
    rw: Rewriter
    layer: WeightLayer
    weight: QuantizedWeight
    plan: StoragePlan
    what: str

    @property
    def tensor(self) -> gs.Tensor:
        return self.layer.weight_tensor

    @property
    def name(self) -> str:
        return str(self.tensor.name)

    def raise_ir(self) -> None:
        """Raise the IR version to the first that has codes of 4 bits."""
        old = self.rw.main.ir_version
        if old is None or old >= weight_layouts.INT4_IR:
            return
        for graph in self.rw.graphs():
            graph.ir_version = weight_layouts.INT4_IR
        self.rw.note(
            self.rw.main.name,
            f"IR version raised from {old} to {weight_layouts.INT4_IR}, the first with codes of "
            "4 bits",
        )

    def linear(self) -> None:
        if self._is_flipped():
            self._unflip()
        stored = weight_layouts.linear(self.weight, self.layer, self.plan.bits)
        inputs, attrs, lossy = self._constants(stored), dict(stored.attributes), Fidelity.LOSSY
        self.rw.replace_constant(
            self.tensor, "DequantizeLinear", inputs, self.what, lossy, attrs=attrs
        )

    def folded(self) -> None:
        stored = weight_layouts.folded(self.weight, self.layer, self.plan.bits)
        function = DequantizeFunction(tuple(stored.inputs), self.plan.bits, is_half(self.layer))
        arrays, lossy = stored.inputs.values(), Fidelity.LOSSY
        holder, what = self.layer.holder, self.what
        for note in replacement.replace_constant(self.rw, holder, function, arrays, what, lossy):
            self.rw.note(self.rw.main.name, note)

    def packed(self) -> None:
        assert self.plan.block is not None
        block = self.plan.block
        stored = weight_layouts.packed(self.weight, self.layer, self.plan.bits, block)
        attributes = {**stored.attributes, "accuracy_level": self.plan.accuracy_level}
        graph, constants = self.rw.main, self._constants(stored)
        graph.import_domain(MICROSOFT_DOMAIN, 1)
        for user in list(self.tensor.outputs):
            self.rw.update(
                user,
                self.what,
                op="MatMulNBits",
                inputs=[user.inputs[0], *constants],
                attrs=dict(attributes),
                fidelity=Fidelity.LOSSY,
                domain=MICROSOFT_DOMAIN,
            )

    def gathered(self) -> None:
        layer, weight, block = self.layer, self.weight, self.plan.block
        codes, scale = weight.codes[0], weight.scale[0]  # (rows, columns), (rows, blocks)
        if block is not None:
            codes, scale = codes.reshape(layer.rows, -1, block), scale[..., None]
        codes = weight_layouts.as_codes(codes, self.plan.bits)
        table = self.rw.constant(codes, f"{self.name}_codes")
        scales = self.rw.constant(np.ascontiguousarray(scale), f"{self.name}_scale")
        for user in list(self.tensor.outputs):
            self._pick(user, table, scales)

    # ----------------------------------------------------------------- inside

    def _is_flipped(self) -> bool:
        """Whether it is a Gemm whose matrix would have a kernel if it lay the other way."""
        node = self.layer.node
        one_reader = len(self.tensor.outputs) == 1 and self.layer.weight == 1
        return node.op == "Gemm" and one_reader and bool(node.attrs.get("transB", 0))

    def _unflip(self) -> None:
        node, holder = self.layer.node, self.layer.holder
        self.rw.set_values(holder, np.ascontiguousarray(holder.values.T))
        if isinstance(self.tensor, gs.Variable):
            self.tensor.shape = list(self.layer.holder.shape)
        attrs = {name: value for name, value in node.attrs.items() if name != "transB"}
        self.rw.update(node, "its matrix lies as onnxruntime's kernel wants it", attrs=attrs)
        self.layer = replace(self.layer, inputs_first=True)

    def _constants(self, stored: StoredCodes) -> list[Constant]:
        return [self.rw.constant(x, f"{self.name}_{part}") for part, x in stored.inputs.items()]

    def _pick(self, user: Node, table: Constant, scales: Constant) -> None:
        """Let `user` pick rows of codes and of scales, and make floats of them."""
        indices, made = user.inputs[1], user.outputs[0]

        def insert(op: str, inputs: list[gs.Tensor], dtype: object, **attrs: int) -> gs.Variable:
            return self.rw.insert(user, op, inputs, attrs, name=f"{made.name}_part", dtype=dtype)[0]

        source: gs.Tensor = table
        if self.plan.bits == 4:  # Gather moves no codes of 4 bits; this is folded at the start
            to = onnx.TensorProto.INT8
            source = insert("Cast", [table], np.dtype(np.int8), to=to)
        codes = insert("Gather", [source, indices], np.dtype(np.int8), axis=0)
        floats = insert("Cast", [codes], np.dtype(np.float32), to=onnx.TensorProto.FLOAT)
        own = insert("Gather", [scales, indices], np.dtype(np.float32), axis=0)
        op, inputs = "Mul", [floats, own]
        if self.plan.block is not None:
            known = rank(indices)
            assert known is not None
            whole = np.array([0] * known + [self.layer.columns], np.int64)  # 0: as it is
            cut = insert("Mul", inputs, np.dtype(np.float32))
            op, inputs = "Reshape", [cut, self.rw.constant(whole, f"{made.name}_shape")]
        lossy = Fidelity.LOSSY
        self.rw.update(user, self.what, op=op, inputs=inputs, attrs={}, fidelity=lossy)
