"""How integer weights are written into a graph, for each storage kind (see `weight_storage`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import LinearOperator
from onnxslim.codebook import replacement
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import MICROSOFT_DOMAIN, Constant, Node, Variable
from onnxslim.graph.operands import is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization import weight_layouts
from onnxslim.quantization.weight_layouts import DequantizeFunction, StoredCodes
from onnxslim.quantization.weight_readers import MatrixReaders, matrix_readers
from onnxslim.quantization.weight_rounding import QuantizedWeight
from onnxslim.quantization.weight_storage import StorageKind, StoragePlan, is_half
from onnxslim.records import Fidelity


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
        axis = 0 if self.layer.inputs_first else 1
        names, half = tuple(stored.inputs), is_half(self.layer)
        function = DequantizeFunction(names, self.plan.bits, half, axis)
        arrays, lossy = stored.inputs.values(), Fidelity.LOSSY
        holder, what = self.layer.holder, self.what
        for note in replacement.replace_constant(self.rw, holder, function, arrays, what, lossy):
            self.rw.note(self.rw.main.name, note)

    def packed(self) -> None:
        assert self.plan.block is not None
        block, readers = self.plan.block, matrix_readers(self.layer)
        assert readers is not None, self.name  # `storage_plan` asked
        stored = weight_layouts.packed(self.weight, self.layer, self.plan.bits, block)
        attributes = {**stored.attributes, "accuracy_level": self.plan.accuracy_level}
        constants = self._constants(stored)
        self.rw.main.import_domain(MICROSOFT_DOMAIN, 1)
        for product in readers.products:
            self._multiply(product, constants, attributes)
        for pick in readers.picks:
            self._pick_packed(pick, constants[0], constants[1])

    def gathered(self) -> None:
        weight = self.weight
        codes, scale = weight.codes[0], weight.scale[0]  # (rows, columns), (rows, blocks)
        codes = weight_layouts.as_codes(codes, self.plan.bits)
        if self._has_equal_blocks():
            codes, scale = codes.reshape(*scale.shape, -1), scale[..., None]
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

    def _has_equal_blocks(self) -> bool:
        """Whether Reshape can cut the columns into blocks; else each column picks its scale."""
        block = self.plan.block
        readers = MatrixReaders((), tuple(self.tensor.outputs))
        return block is not None and not self.layer.columns % block and readers.are_ranks_known

    def _multiply(
        self, product: LinearOperator, constants: list[Constant], attributes: Mapping[str, int]
    ) -> None:
        """Let MatMulNBits multiply; the bias of a Gemm is added by an Add."""
        node, lossy = product.node, Fidelity.LOSSY
        inputs, attrs = [node.inputs[product.data], *constants], dict(attributes)
        if product.bias is None or not is_present(node, product.bias):
            self.rw.update(
                node,
                self.what,
                op="MatMulNBits",
                inputs=inputs,
                attrs=attrs,
                fidelity=lossy,
                domain=MICROSOFT_DOMAIN,
            )
            return
        made = self.rw.insert(
            node,
            "MatMulNBits",
            inputs,
            attrs,
            name=f"{node.outputs[0].name}_product",
            dtype=np.dtype(np.float32),
            shape=node.outputs[0].shape,
            domain=MICROSOFT_DOMAIN,
        )
        both = [*made, node.inputs[product.bias]]
        self.rw.update(node, self.what, op="Add", inputs=both, attrs={}, fidelity=lossy)

    def _pick(self, user: Node, table: Constant, scales: Constant) -> None:
        """Let `user` pick rows of codes and of scales, and make floats of them."""
        indices, picking = user.inputs[1], RowPicking(self.rw, user)
        source: gs.Tensor = table
        if self.plan.bits == 4:  # Gather moves no codes of 4 bits; this is folded at the start
            source = picking.cast(table, np.int8)
        floats = picking.cast(picking.rows(source, indices), np.float32)
        own = picking.rows(scales, indices)
        op, inputs = "Mul", [floats, own]
        if self._has_equal_blocks():
            inputs = [picking.add("Mul", inputs), picking.shape(indices, [self.layer.columns])]
            op = "Reshape"
        elif self.plan.block is not None:
            places = weight_layouts.block_of_columns(self.layer.columns, self.plan.block)
            inputs = [floats, picking.columns(own, places)]
        self.rw.update(user, self.what, op=op, inputs=inputs, attrs={}, fidelity=Fidelity.LOSSY)

    def _pick_packed(self, user: Node, table: Constant, scales: Constant) -> None:
        """Let `user` pick rows of the codes that MatMulNBits reads, and make floats of them."""
        indices, picking, bits = user.inputs[1], RowPicking(self.rw, user), self.plan.bits
        block = self.plan.block
        assert block is not None
        codes = picking.rows(table, indices)  # (..., blocks, bytes of a block)
        if bits == 4:
            # each byte twice, moved up so that its lower, then its upper code ends in the upper
            # four bits, and down again
            codes = picking.columns(codes, np.arange(block) // 2)
            up = np.resize(np.array([4, 0], np.uint8), block)
            codes = picking.add("BitShift", [codes, picking.constant(up)], direction="LEFT")
            down = picking.constant(np.array(4, np.uint8))
            codes = picking.add("BitShift", [codes, down], direction="RIGHT")
        middle = picking.constant(np.array(1 << (bits - 1), np.float32))
        steps = picking.add("Sub", [picking.cast(codes, np.float32), middle])
        blocks = self.layer.columns // block
        own = picking.rows(scales, indices)  # (..., blocks)
        wide = picking.add("Reshape", [own, picking.shape(indices, [blocks, 1])])
        inputs = [picking.add("Mul", [steps, wide]), picking.shape(indices, [blocks * block])]
        lossy = Fidelity.LOSSY
        self.rw.update(user, self.what, op="Reshape", inputs=inputs, attrs={}, fidelity=lossy)


@dataclass
class RowPicking:
    """Nodes in front of a Gather that make the rows which it picked."""

    rw: Rewriter
    user: Node

    def add(
        self, op: str, inputs: list[gs.Tensor], dtype: object = None, **attrs: object
    ) -> Variable:
        """A new node; its outputs have the type of its first input, or `dtype`."""
        name, dtype = f"{self.user.outputs[0].name}_part", dtype or inputs[0].dtype
        return self.rw.insert(self.user, op, inputs, attrs, name=name, dtype=dtype)[0]

    def constant(self, values: np.ndarray) -> Constant:
        """A new constant."""
        return self.rw.constant(values, f"{self.user.outputs[0].name}_part")

    def rows(self, table: gs.Tensor, indices: gs.Tensor) -> Variable:
        """The rows of a table, each at the place of its index."""
        return self.add("Gather", [table, indices], axis=0)

    def columns(self, tensor: gs.Tensor, places: np.ndarray) -> Variable:
        """Entries along the last axis."""
        index = self.constant(np.asarray(places, np.int64))
        return self.add("Gather", [tensor, index], axis=-1)

    def cast(self, tensor: gs.Tensor, dtype: type[np.generic]) -> Variable:
        """The same values in another type."""
        to = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        return self.add("Cast", [tensor], np.dtype(dtype), to=to)

    def shape(self, indices: gs.Tensor, last: list[int]) -> Constant:
        """The shape of `indices`, as far as Reshape can keep it, and the `last` axes."""
        known = rank(indices)
        assert known is not None  # `storage_plan` asked
        return self.constant(np.array([0] * known + last, np.int64))  # 0: as it is
