"""The order in which the nodes of a graph run, and when values are let go.

A plan is made for the tensors that are given and those that are wanted: only nodes that lead from
one to the other run. Each body of If, Loop and Scan is a plan of its own; what it reads of outer
graphs is given to it by the node that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx_graphsurgeon as gs
import torch

from onnxslim.errors import ModelError, OnnxslimError, OutOfMemory, RuntimeFailure
from onnxslim.graph.ir import Constant, Node, node_label, subgraphs_of, walk_graphs
from onnxslim.runtime.training.operators.table import Body

_NOTHING: Final = 0  # the slot of inputs that are left out; it holds None


@dataclass(frozen=True)
class PlanStep:
    """A node in a plan.

    Attributes:
        compute: its function.
        inputs: slots of its arguments.
        outputs: slots of its results; `_NOTHING` for those that nobody reads.
        last_uses: slots that no later step reads.
        label: how messages name the node.
    """

    compute: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last_uses: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class PlannedNode:
    """A node, and the function that computes it.

    Attributes:
        compute: takes the values of `inputs`.
        inputs: tensors of the graph; None where an input is left out.
        outputs: the tensors that it gives.
        label: how messages name the node.
    """

    compute: Callable[..., Any]
    inputs: tuple[gs.Tensor | None, ...]
    outputs: tuple[gs.Tensor, ...]
    label: str


class Plan:
    """Steps that compute the wanted tensors from the given ones."""

    def __init__(
        self,
        nodes: Iterable[PlannedNode],
        given: Sequence[gs.Tensor],
        wanted: Sequence[gs.Tensor],
    ) -> None:
        slots: dict[gs.Tensor, int] = {}
        for tensor in given:
            slots[tensor] = len(slots) + 1
        drafts: list[tuple[PlannedNode, tuple[int, ...], tuple[int, ...]]] = []
        for node in nodes:
            sources = tuple(_NOTHING if t is None else slots[t] for t in node.inputs)
            for tensor in node.outputs:
                if tensor.name:
                    slots[tensor] = len(slots) + 1
            drafts.append((node, sources, tuple(slots.get(t, _NOTHING) for t in node.outputs)))
        self.wanted = tuple(slots[tensor] for tensor in wanted)
        self.given = len(given)
        self.size = len(slots) + 1
        self.steps = _with_last_uses(drafts, {*self.wanted, _NOTHING})

    def run(self, given: Sequence[Any]) -> list[Any]:
        """Values of the wanted tensors.

        Raises:
            RuntimeFailure: torch fails on a node; the message names it.
        """
        values: list[Any] = [None, *given, *[None] * (self.size - 1 - self.given)]
        del given
        step = None
        try:
            for step in self.steps:
                found = step.compute(*[values[slot] for slot in step.inputs])
                if type(found) is tuple:
                    for slot, value in zip(step.outputs, found, strict=False):
                        values[slot] = value
                    values[_NOTHING] = None
                else:
                    values[step.outputs[0]] = found
                del found
                for slot in step.last_uses:
                    values[slot] = None
        except OnnxslimError:
            raise
        except Exception as error:  # torch raises many kinds, with no common base
            assert step is not None
            raise _failure(step, error) from error
        return [values[slot] for slot in self.wanted]


def _failure(step: PlanStep, error: Exception) -> OnnxslimError:
    text = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return OutOfMemory(f"`{step.label}`: torch has not enough memory: {text}")
    return RuntimeFailure(f"`{step.label}`: torch failed: {text}")


def _with_last_uses(
    drafts: Sequence[tuple[PlannedNode, tuple[int, ...], tuple[int, ...]]], kept: Container[int]
) -> tuple[PlanStep, ...]:
    seen: set[int] = set()
    steps = []
    for node, inputs, outputs in reversed(drafts):
        last = {slot for slot in (*inputs, *outputs) if slot not in seen and slot not in kept}
        seen |= last
        steps.append(PlanStep(node.compute, inputs, outputs, tuple(sorted(last)), node.label))
    return tuple(reversed(steps))


# ---------------------------------------------------------------------------- what nodes need


def outer_reads(node: gs.Node) -> list[gs.Tensor]:
    """The tensors that the bodies of `node` read and do not make, constants included."""
    found: dict[gs.Tensor, None] = {}
    for body in subgraphs_of(node):
        graphs = list(walk_graphs(body))
        inside = {t for graph in graphs for t in graph.inputs}
        inside |= {t for graph in graphs for inner in graph.nodes for t in inner.outputs}
        for graph in graphs:
            read = (t for inner in graph.nodes for t in inner.inputs)
            for tensor in (*read, *graph.outputs):
                if tensor.name and tensor not in inside:
                    found[tensor] = None
    return list(found)


def needed_nodes(wanted: Iterable[gs.Tensor], given: Container[gs.Tensor]) -> list[Node]:
    """The nodes that make `wanted` from `given` and constants, producers first.

    A tensor of a branch of If can be wanted as well: a branch has no inputs of its own.

    Raises:
        ModelError: some tensor is neither given nor made.
    """
    order: list[Node] = []
    placed: dict[Node, bool] = {}  # False while its producers are being visited
    stack = [node for tensor in wanted for node in _producers([tensor], given)]
    while stack:
        node = stack[-1]
        if node not in placed:
            placed[node] = False
            needs = (*node.inputs, *outer_reads(node))
            stack += [made for made in _producers(needs, given) if made not in placed]
        else:
            stack.pop()
            if not placed[node]:
                placed[node] = True
                order.append(node)
    return order


def _producers(tensors: Iterable[gs.Tensor], given: Container[gs.Tensor]) -> Iterator[Node]:
    for tensor in tensors:
        if not tensor.name or tensor in given or isinstance(tensor, Constant):
            continue
        if not tensor.inputs:
            raise ModelError(f"No node and no input gives the tensor `{tensor.name}`.")
        yield tensor.inputs[0]


def reads(node: gs.Node) -> list[gs.Tensor]:
    """The tensors that `node` reads, those that its bodies read of outer graphs included."""
    return [*(tensor for tensor in node.inputs if tensor.name), *outer_reads(node)]


def label_of(node: gs.Node) -> str:
    """How messages name a node, with its operator."""
    return f"{node_label(node)} ({node.op})"


Bodies = dict[str, Body]
