"""From nodes to functions: looks up operators, and builds the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import onnx_graphsurgeon as gs
import torch

from onnxslim.errors import ModelError
from onnxslim.graph.ir import Constant, Graph, Node, Variable, node_label, to_onnx_dtype
from onnxslim.runtime.training.operators import (
    attention,
    casts,
    control_flow,
    convolution,
    elementwise,
    linear,
    microsoft,
    movement,
    normalization,
    pooling,
    quantization,
    random,
    recurrent,
    reductions,
    resizing,
    sampling,
    selection,
    sequences,
    signal,
)
from onnxslim.runtime.training.operators.table import (
    Body,
    Entry,
    NodeForm,
    entry_of,
    version_of,
)
from onnxslim.runtime.training.plan import Plan, PlannedNode, needed_nodes, outer_reads, reads

OPERATORS: Final = (  # modules that enter operators into the table
    attention,
    casts,
    control_flow,
    convolution,
    elementwise,
    linear,
    microsoft,
    movement,
    normalization,
    pooling,
    quantization,
    random,
    recurrent,
    reductions,
    resizing,
    sampling,
    selection,
    sequences,
    signal,
)
_HOST_ELEMENTS: Final = 4096  # larger lists of integers are codes or indices rather than sizes


class Compiler:
    """Makes the functions of nodes; each node is built once.

    Attributes:
        is_training: whether BatchNormalization takes the statistics of the batch.
        separates_host: whether what is computed on the CPU must be moved to be read elsewhere.
    """

    def __init__(
        self, graph: Graph, device: torch.device, dtype: torch.dtype, is_training: bool = False
    ) -> None:
        self.graph, self.device, self.dtype = graph, device, dtype
        self.is_training = is_training
        self.separates_host = device.type != "cpu"
        self._built: dict[Node, PlannedNode] = {}
        self._on_host: dict[gs.Tensor, bool] = {}
        self._moved: dict[gs.Tensor, Variable] = {}
        self._averages: dict[Node, list[tuple[str, gs.Tensor]]] = {}
        self._training: Compiler | None = None

    def training(self) -> Compiler:
        """The compiler of the same graph while it is trained."""
        if self._training is None:
            self._training = Compiler(self.graph, self.device, self.dtype, is_training=True)
        return self._training

    def check(self, wanted: Sequence[gs.Tensor], stored: Container[gs.Tensor]) -> None:
        """Build all nodes that `wanted` needs; `stored` are the constants that torch can hold.

        Raises:
            ModelError: operators are missing: all of them, with a node of each; or a constant is.
        """
        nodes = needed_nodes(wanted, set(self.graph.inputs))
        missing: dict[str, str] = {}
        for node in _with_inner(nodes):
            if self._entry(node) is None:
                missing.setdefault(self._described(node), node_label(node))
        if missing:
            found = ", ".join(f"{what} (`{label}`)" for what, label in missing.items())
            raise ModelError(
                f"The model cannot be trained: no function of torch is known for {found}."
            )
        for node in nodes:
            for tensor in reads(node):
                if isinstance(tensor, Constant) and tensor not in stored:
                    raise ModelError(
                        f"The model cannot be trained: `{tensor.name}` holds values of type "
                        f"{tensor.dtype}, which torch does not have."
                    )
            self._planned(node)

    def planned(self, nodes: Iterable[Node]) -> Iterator[PlannedNode]:
        """The nodes with their functions, and moves from the host to the device between them."""
        moved: set[gs.Tensor] = set()
        for node in nodes:
            built = self._planned(node)
            if self.separates_host:
                entry = self._entry(node)
                assert entry is not None
                for tensor in self._to_move(node, entry):
                    if tensor not in moved:
                        moved.add(tensor)
                        yield self._move(tensor)
                built = replace(built, inputs=self._moved_inputs(node, entry, built))
            yield built

    def statistics(self, nodes: Iterable[Node]) -> list[tuple[str, gs.Tensor]]:
        """Names of stored moving averages, and the tensors that hold the new ones."""
        return [found for node in nodes for found in self._averages.get(node, ())]

    def is_random(self, node: Node) -> bool:
        """Whether two runs of `node` give different values."""
        return any((entry := self._entry(n)) and entry.is_random for n in _with_inner([node]))

    # ----------------------------------------------------------------- nodes

    def _version(self, node: Node) -> int:
        return version_of(node, self.graph.opset_of(node.domain or ""))

    def _entry(self, node: Node) -> Entry | None:
        return entry_of(node, self._version(node))

    def _described(self, node: Node) -> str:
        if not node.is_onnx:
            return f"`{node.domain}.{node.op}`"
        version = self._version(node)
        return f"`{node.op}` of opset {version}" if version else f"`{node.op}`"

    def _planned(self, node: Node) -> PlannedNode:
        built = self._built.get(node)
        if built is None:
            built = self._built[node] = self._build(node)
        return built

    def _build(self, node: Node) -> PlannedNode:
        entry = self._entry(node)
        assert entry is not None, node
        inputs = [tensor if tensor.name else None for tensor in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        captured = outer_reads(node)
        form = NodeForm(
            node,
            self._version(node),
            self.dtype,
            self.device,
            tuple(_element_type(tensor) for tensor in node.inputs),
            self._bodies(node, captured, len(inputs)),
            self.is_training,
        )
        outputs = list(node.outputs)
        if self.is_training and node.op == "BatchNormalization":
            outputs = self._with_averages(node, outputs)
        compute = entry.build(form)
        return PlannedNode(compute, (*inputs, *captured), tuple(outputs), form.label)

    def _with_averages(self, node: Node, outputs: list[gs.Tensor]) -> list[gs.Tensor]:
        averages = [Variable(f"{node_label(node)}_new_{word}") for word in ("mean", "var")]
        names = [tensor.name for tensor in node.inputs[3:5]]
        self._averages[node] = list(zip(names, averages, strict=True))
        return [outputs[0], *averages]

    # ----------------------------------------------------------------- bodies

    def _bodies(
        self, node: Node, captured: Sequence[gs.Tensor], first: int
    ) -> dict[str, Body] | None:
        bodies = {name: value for name, value in node.attrs.items() if isinstance(value, Graph)}
        if not bodies:
            return None
        places = tuple(range(first, first + len(captured)))
        return {name: self._body(body, captured, places) for name, body in bodies.items()}

    def _body(self, body: Graph, captured: Sequence[gs.Tensor], places: tuple[int, ...]) -> Body:
        inside = self._for_bodies()
        given = [*body.inputs, *captured]
        nodes = needed_nodes(body.outputs, set(given))
        plan = Plan(inside.planned(nodes), given, body.outputs)
        return Body(plan.run, len(body.inputs), places)

    def _for_bodies(self) -> Compiler:
        return Compiler(self.graph, self.device, self.dtype) if self.is_training else self

    # ----------------------------------------------------------------- host and device

    def is_on_host(self, tensor: gs.Tensor) -> bool:
        """Whether the values of a tensor are kept on the CPU, as sizes are."""
        stack = [tensor]  # chains of sizes may be long
        while tensor not in self._on_host:
            current = stack[-1]
            unknown = [t for made in current.inputs for t in reads(made) if t not in self._on_host]
            if unknown and current not in self._on_host:
                stack += unknown
                continue
            stack.pop()
            self._on_host.setdefault(current, self._looks_like_sizes(current))
        return self._on_host[tensor]

    def _looks_like_sizes(self, tensor: gs.Tensor) -> bool:
        if isinstance(tensor, Constant):
            return tensor.dtype.kind in "iub" and tensor.size <= _HOST_ELEMENTS
        return bool(tensor.inputs) and self._gives_sizes(tensor.inputs[0])

    def _gives_sizes(self, node: Node) -> bool:
        entry = self._entry(node)
        if entry is None or entry.gives_sizes:
            return entry is not None
        data = [t for place, t in enumerate(node.inputs) if t.name and place not in entry.sizes]
        data += outer_reads(node)
        return bool(data) and all(self.is_on_host(tensor) for tensor in data)

    def _to_move(self, node: Node, entry: Entry) -> list[gs.Tensor]:
        """What a node on the device reads from the host."""
        if self._gives_sizes(node):
            return []
        data = [t for place, t in enumerate(node.inputs) if place not in entry.sizes]
        return [t for t in data if t.name and self.is_on_host(t)]

    def _moved_inputs(
        self, node: Node, entry: Entry, built: PlannedNode
    ) -> tuple[gs.Tensor | None, ...]:
        moved = set(self._to_move(node, entry))
        own = [
            self._on_device(t) if t in moved and place not in entry.sizes else t
            for place, t in enumerate(built.inputs[: len(node.inputs)])
        ]
        return (*own, *built.inputs[len(node.inputs) :])

    def _on_device(self, tensor: gs.Tensor) -> Variable:
        if tensor not in self._moved:
            self._moved[tensor] = Variable(f"{tensor.name}_on_device")
        return self._moved[tensor]

    def _move(self, tensor: gs.Tensor) -> PlannedNode:
        copy: Callable[..., Any] = lambda value: value.to(self.device)  # noqa: E731
        return PlannedNode(copy, (tensor,), (self._on_device(tensor),), tensor.name)


def _with_inner(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes, and those of their bodies."""
    for node in nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, Graph):
                yield from _with_inner(value.nodes)


def _element_type(tensor: gs.Tensor) -> int:
    """The ONNX element type of a tensor, 0 where it is unknown."""
    if not tensor.name or tensor.dtype is None:
        return 0
    return int(to_onnx_dtype(tensor.dtype))
