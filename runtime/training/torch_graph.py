"""An ONNX graph as a function of torch tensors, which torch differentiates.

Each operator is a function of torch (see `operators`). Weights are arguments: a call may put any
tensor in place of a stored one, or of a computed one, by its name. What follows from stored tensors
that a call does not replace is computed once.

Sizes and what is computed from them stay on the CPU, as integers that no gradient reaches.

Float16 and narrower types of floats are computed in `dtype`, as onnxruntime does on a CPU: a Cast
to such a type rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxslim.errors import UsageError
from onnxslim.graph.ir import Constant, Graph, Variable, walk_graphs
from onnxslim.runtime.training.compiler import Compiler
from onnxslim.runtime.training.operators.casts import held_tensor
from onnxslim.runtime.training.operators.element_types import stored_tensor
from onnxslim.runtime.training.plan import Plan, needed_nodes, reads
from onnxslim.runtime.training.preparing import prepared


@dataclass(frozen=True)
class _Variant:
    """How to run for one choice of replaced and wanted tensors.

    Attributes:
        plan: what runs at each call.
        inputs: names of the inputs that it takes.
        replaced: names of the tensors that the call gives.
        fixed: values that do not change from call to call.
        names: of the outputs.
        statistics: names of the moving averages behind them.
    """

    plan: Plan
    inputs: tuple[str, ...]
    replaced: tuple[str, ...]
    fixed: tuple[Tensor, ...]
    names: tuple[str, ...]
    statistics: tuple[str, ...]


class TorchGraph:
    """An ONNX graph as a pure function of torch tensors.

    Attributes:
        weights: every constant that is a tensor of numbers, by name, as it is stored: initializers
            of the graph and of bodies, and what Constant nodes hold. They are never edited.
        inputs: names of the inputs.
        outputs: names of the outputs.
        device: where it runs.
        dtype: the type that stands for float32 and for narrower types of floats.
    """

    weights: Mapping[str, Tensor]

    def __init__(
        self, graph: Graph, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Prepare `graph`, which is not edited.

        Raises:
            ModelError: an operator has no function of torch; the message names all such.
        """
        self.device, self.dtype = device, dtype
        self._graph = prepared(graph)
        self._compiler = Compiler(self._graph, device, dtype)
        self._stored = _all_stored(self._graph)
        self._compiler.check(self._graph.outputs, self._stored)
        self.inputs = tuple(tensor.name for tensor in self._graph.inputs)
        self.outputs = tuple(tensor.name for tensor in self._graph.outputs)
        self._tensors = {tensor.name: tensor for tensor in _all_tensors(self._graph)}
        self.weights = {tensor.name: stored for tensor, stored in self._stored.items()}
        self._defaults = frozenset(
            tensor.name for tensor in self._graph.inputs if tensor.name in self.weights
        )
        self._variants: dict[tuple[object, ...], _Variant] = {}

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        *,
        also: Sequence[str] = (),
        running: MutableMapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The outputs by name.

        Args:
            inputs: tensors by the names of inputs; floats are converted to `dtype`.
            weights: tensors in place of stored ones or of computed ones, by name. Integers may be
                replaced by floats that are whole numbers: gradients then reach them.
            also: names of inner tensors to return as well, those of branches of If included.
            running: where given, BatchNormalization takes the statistics of the batch, and puts
                the new moving averages here under the names of the stored ones. Those in bodies
                keep the stored ones.

        Raises:
            UsageError: an input is missing, or a name means no tensor.
            RuntimeFailure: torch fails on a node.
        """
        weights = weights or {}
        given = self._defaults.intersection(inputs) if self._defaults else frozenset()
        key = (frozenset(weights), given, tuple(also), running is not None)
        variant = self._variants.get(key)
        if variant is None:
            variant = self._variants[key] = self._variant(weights, given, also, running is not None)
        values = [
            *(self._input(inputs, name) for name in variant.inputs),
            *(self._held(name, weights[name]) for name in variant.replaced),
            *variant.fixed,
        ]
        found = variant.plan.run(values)
        if running is not None:
            running.update(zip(variant.statistics, found[len(variant.names) :], strict=True))
        return dict(zip(variant.names, found, strict=False))

    def frontier(self, weights: Iterable[str]) -> tuple[str, ...]:
        """Names of tensors that no tensor in `weights` reaches, and that nodes behind those read.

        A call may give them in place of having them computed again: they depend on inputs alone.
        """
        moving = {self._tensor(name) for name in weights}
        fed, found = set(self._graph.inputs), dict[str, None]()
        computed: set[gs.Tensor] = set()
        for node in needed_nodes(self._graph.outputs, fed.copy()):
            read = reads(node)
            if moving.intersection(read) or self._compiler.is_random(node):
                moving.update(node.outputs)
                found.update(dict.fromkeys(str(t.name) for t in read if t in computed))
            elif fed.intersection(read):
                fed.update(node.outputs)
                computed.update(node.outputs)
        return tuple(found)

    def _input(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in inputs:
            raise UsageError(
                f"The input `{name}` is missing: the model has {_listed(self.inputs)}."
            )
        value = inputs[name]
        if isinstance(value, Tensor):
            return held_tensor(value, self.dtype).to(self.device)
        return value  # a sequence, or nothing

    def _held(self, name: str, value: Tensor) -> Tensor:
        stored = self.weights.get(name)
        if stored is not None and value.is_floating_point():
            wide = stored.dtype == torch.float64
            return value.to(torch.float64 if wide else self.dtype)
        return value

    def _variant(
        self, weights: Iterable[str], given: Iterable[str], also: Sequence[str], is_training: bool
    ) -> _Variant:
        replaced = [self._tensor(name) for name in weights]
        inputs = [t for t in self._graph.inputs if t.name in given or t.name not in self._defaults]
        wanted = [*self._graph.outputs, *(self._tensor(name) for name in also)]
        known = {*replaced, *inputs}
        defaults = {t for t in self._graph.inputs if t.name in self._defaults} - known
        nodes = needed_nodes(wanted, known | defaults)
        compiler = self._compiler.training() if is_training else self._compiler
        changing = set(known)
        fixed_nodes, running_nodes = [], []
        for node in nodes:
            if changing.intersection(reads(node)) or compiler.is_random(node):
                changing.update(node.outputs)
                running_nodes.append(node)
            else:
                fixed_nodes.append(node)
        read = {tensor for node in running_nodes for tensor in reads(node)}
        frontier = list(dict.fromkeys(t for t in (*read, *wanted) if t not in changing))
        planned = list(compiler.planned(running_nodes))
        statistics = compiler.statistics(running_nodes)
        return _Variant(
            Plan(
                planned,
                [*inputs, *replaced, *frontier],
                [*wanted, *(tensor for _, tensor in statistics)],
            ),
            tuple(tensor.name for tensor in inputs),
            tuple(tensor.name for tensor in replaced),
            self._fixed(fixed_nodes, frontier),
            tuple(tensor.name for tensor in wanted),
            tuple(name for name, _ in statistics),
        )

    def _fixed(self, nodes: Sequence[gs.Node], frontier: Sequence[gs.Tensor]) -> tuple[Tensor, ...]:
        """The values of `frontier`, which follow from stored tensors alone."""
        made = {tensor for node in nodes for tensor in node.outputs}
        needed = {tensor for node in nodes for tensor in reads(node)} | set(frontier)
        stored = [tensor for tensor in needed if tensor not in made]
        with torch.no_grad():
            values = [self._stored_value(tensor) for tensor in stored]
            return tuple(Plan(self._compiler.planned(nodes), stored, frontier).run(values))

    def _stored_value(self, tensor: gs.Tensor) -> Tensor:
        held = held_tensor(self._stored[tensor], self.dtype)
        return held if self._compiler.is_on_host(tensor) else held.to(self.device)

    def _tensor(self, name: str) -> gs.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise UsageError(f"The model has no tensor `{name}`.")
        return tensor


def _all_tensors(graph: Graph) -> Iterator[gs.Tensor]:
    """The tensors of the graph and of its bodies, some of them several times."""
    for current in walk_graphs(graph):
        yield from current.inputs
        yield from current.outputs
        for node in current.nodes:
            yield from node.inputs
            yield from node.outputs


def _all_stored(graph: Graph) -> dict[gs.Tensor, Tensor]:
    """The values of all constants that are tensors of numbers."""
    found: dict[gs.Tensor, Tensor] = {}
    for tensor in _all_tensors(graph):
        if tensor not in found and (stored := _stored(tensor)) is not None:
            found[tensor] = stored
    return found


def _stored(tensor: gs.Tensor) -> Tensor | None:
    """The values of a constant, or of an input that has a default; None for other tensors."""
    if isinstance(tensor, Constant):
        return stored_tensor(tensor.values)
    if isinstance(tensor, Variable) and tensor.default is not None:
        return stored_tensor(tensor.default.load())
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
