"""Nodes converted to float16, with one Cast for a tensor and direction where the type changes.

A tensor that some node reads as float32, or that the graph returns, keeps its name and type. A
tensor with float16 readers alone becomes float16 under its own name.

Owns: how a border is written. Not here: where borders are (see `placement`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, Node, Variable, node_label
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.precision.operand_types import CAST_TO, FLOAT16, FLOAT32, HalfOperands, is_bridge
from onnxslim.precision.placement import readings
from onnxslim.precision.stored_weights import NodeFilter, stays_float32
from onnxslim.precision.value_ranges import rounded_to_half
from onnxslim.records import Fidelity

_WORDS = "computes in float16"


@dataclass
class NodeConverter:
    """Converts the nodes of `halves`, all graphs of a model at once.

    Attributes:
        rewriter: the rewriter of the model.
        halves: the operands that become float16, of each node that is converted.
        wanted: whether a node may be changed at all.
        twins: float16 versions of constants that float32 operators use as well.
    """

    rewriter: Rewriter
    halves: Mapping[Node, HalfOperands]
    wanted: NodeFilter
    twins: dict[gs.Tensor, gs.Tensor] = field(default_factory=dict)
    _made: dict[gs.Tensor, gs.Tensor] = field(default_factory=dict)  # by nodes in float16
    _cast: dict[tuple[gs.Graph, gs.Tensor], gs.Tensor] = field(default_factory=dict)
    _wide: frozenset[gs.Tensor] = frozenset()
    _bridges: frozenset[Node] = frozenset()

    def write(self) -> None:
        """Convert all nodes; the caller takes the rewriter's result."""
        self._wide = frozenset(
            tensor
            for node, half in self.halves.items()
            for tensor in half.tensors(node)
            if self._is_wide(tensor)
        )
        nodes = [node for graph in self.rewriter.graphs() for node in graph.nodes]
        self._bridges = frozenset(node for node in nodes if is_bridge(node))
        for graph in list(self.rewriter.graphs()):  # outer before inner, makers before readers
            for node in list(graph.nodes):
                half = self.halves.get(node)
                if half is not None:
                    self._convert(node, half)

    def _is_wide(self, tensor: gs.Tensor) -> bool:
        """Whether some node, or the caller, reads `tensor` as float32."""
        if self.rewriter.is_output(tensor):
            return True
        return any(not is_half for _, is_half in readings(self.halves, tensor))

    # ----------------------------------------------------------------- one node

    def _convert(self, node: Node, half: HalfOperands) -> None:
        if node in self._bridges:
            self._bypass(node, half)
            return
        for index in sorted(half.inputs):
            self.rewriter.set_input(node, index, self._half(node, node.inputs[index]))
        self._retype(node, half)
        if any(node.outputs[index] in self._wide for index in half.outputs):
            self._convert_outputs(node, half)
            return
        for index in half.outputs:
            output = node.outputs[index]
            output.dtype = FLOAT16
            self._made[output] = output
        self.rewriter.note(node_label(node), f"{node.op} {_WORDS}", Fidelity.LOSSY)

    def _bypass(self, node: Node, half: HalfOperands) -> None:
        """Remove a Cast between two types whose both sides are float16 now."""
        if half.outputs:
            self._made[node.outputs[0]] = node.inputs[0]
            return
        source = self._half(node, node.inputs[0])
        words = "a Cast between float16 and float16 went"
        if self.rewriter.can_substitute(node, source):
            self.rewriter.substitute(node, source, words, Fidelity.LOSSY)
        else:
            self.rewriter.set_input(node, 0, source)
            self.rewriter.note(node_label(node), "Cast reads float16", Fidelity.LOSSY)

    def _retype(self, node: Node, half: HalfOperands) -> None:
        """Set the attribute that gives the type of the result."""
        if node.op == "Cast" and half.outputs:
            node.attrs = {**node.attrs, "to": CAST_TO[FLOAT16]}
        elif node.op == "ConstantOfShape":
            value = node.attrs.get("value")
            filled = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
            node.attrs = {**node.attrs, "value": Constant("", rounded_to_half(filled))}

    def _convert_outputs(self, node: Node, half: HalfOperands) -> None:
        """Let a copy compute in float16, and Casts make the outputs that are read as float32."""
        inner = self.rewriter.copied(node, "float16")
        for index in half.outputs:
            inner[index].dtype = FLOAT16
        words = f"{node.op} {_WORDS}"
        outputs = list(node.outputs)
        if len(outputs) == 1:
            self._made[outputs[0]] = inner[0]
            self.rewriter.update(
                node,
                words,
                op="Cast",
                inputs=inner,
                attrs={"to": CAST_TO[FLOAT32]},
                fidelity=Fidelity.LOSSY,
            )
            return
        results: list[gs.Tensor] = []
        for index, (made, output) in enumerate(zip(inner, outputs, strict=True)):
            is_read = index in half.outputs and output in self._wide
            results.append(self._cast_to(node, made, FLOAT32, output) if is_read else made)
            if index in half.outputs:
                self._made[output] = self._made[results[-1]] = made
        self.rewriter.replace(node, results, words)
        self.rewriter.fidelity = Fidelity.LOSSY

    # ----------------------------------------------------------------- operands

    def _half(self, node: Node, tensor: gs.Tensor) -> gs.Tensor:
        """The float16 tensor that `node` reads in place of `tensor`."""
        if tensor in self._made:
            return self._made[tensor]
        values = const_array(tensor)
        if values is not None and not self._stays(tensor):
            return self._half_constant(tensor, values)
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker in self._bridges:
            source: gs.Tensor = maker.inputs[0]
            return source
        key = (self.rewriter.graph_of(node), tensor)
        if key not in self._cast:
            self._cast[key] = self._cast_to(node, tensor, FLOAT16, tensor)
        return self._cast[key]

    def _stays(self, tensor: gs.Tensor) -> bool:
        return tensor in self._wide and stays_float32(self.rewriter, tensor, self.wanted)

    def _half_constant(self, tensor: gs.Tensor, values: np.ndarray) -> gs.Tensor:
        if tensor not in self.twins:
            half = rounded_to_half(values)
            if isinstance(tensor, Constant) and tensor not in self._wide:
                self.rewriter.set_values(tensor, half)
                tensor.info = None
                self._made[tensor] = tensor
                return tensor
            self.twins[tensor] = self.rewriter.constant(half, f"{tensor.name}_float16")
        return self.twins[tensor]

    def _cast_to(
        self, before: Node, source: gs.Tensor, dtype: np.dtype[Any], named: gs.Tensor
    ) -> Variable:
        (made,) = self.rewriter.insert(
            before,
            "Cast",
            [source],
            {"to": CAST_TO[dtype]},
            name=f"{named.name}_{dtype.name}",
            dtype=dtype,
            shape=named.shape,
        )
        return made
