"""The table of operators: which functions of torch compute an operator of ONNX.

An operator is entered under its domain, its name and the versions of it that the entry is true for:
the `since_version` of its schemas. An entry is a builder: it reads the attributes of a node once
and returns the function that computes it. The function takes a tensor, or None, for each input of
the node and returns a tensor, or a tuple of one for each output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxslim.errors import ModelError
from onnxslim.graph.ir import ONNX_DOMAIN, Node, node_label

Computation = Callable[..., Any]
"""Tensors, or None, in; a tensor or a tuple of tensors out."""


@dataclass(frozen=True)
class Body:
    """A graph that is an attribute, as a function of its inputs and of tensors of outer graphs.

    Attributes:
        run: takes the values of its inputs, then those of `captured`; returns a list.
        inputs: number of its own inputs.
        captured: places, among the inputs of the step, of the outer tensors that it reads.
    """

    run: Callable[[Sequence[Any]], list[Any]]
    inputs: int
    captured: tuple[int, ...]


@dataclass(frozen=True)
class NodeForm:
    """What a builder knows of the node that it builds.

    Attributes:
        node: of the graph.
        version: the `since_version` of its schema.
        dtype: the type that stands for float32, and for all narrower types of floats.
        device: where floats are.
        element_types: ONNX element types of its inputs, 0 where unknown.
        bodies: its graphs, by attribute.
        is_training: whether BatchNormalization takes the statistics of the batch.
    """

    node: Node
    version: int
    dtype: torch.dtype
    device: torch.device
    element_types: tuple[int, ...] = ()
    bodies: Mapping[str, Body] | None = None
    is_training: bool = False

    @property
    def label(self) -> str:
        """How messages name the node."""
        return node_label(self.node)

    def has(self, name: str) -> bool:
        """Whether the node has an attribute."""
        return name in self.node.attrs

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute that is an integer."""
        return int(self.node.attrs.get(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        """An attribute that is a float."""
        return float(self.node.attrs.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        """An attribute that is a string."""
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> list[int] | None:
        """An attribute that is a list of integers, None where it is missing."""
        value = self.node.attrs.get(name)
        return None if value is None else [int(item) for item in value]

    def numbers(self, name: str) -> list[float] | None:
        """An attribute that is a list of floats, None where it is missing."""
        value = self.node.attrs.get(name)
        return None if value is None else [float(item) for item in value]

    def texts(self, name: str) -> list[str] | None:
        """An attribute that is a list of strings, None where it is missing."""
        value = self.node.attrs.get(name)
        return None if value is None else [str(item) for item in value]

    def array(self, name: str) -> np.ndarray | None:
        """An attribute that is a tensor, None where it is missing."""
        value = self.node.attrs.get(name)
        return None if value is None else np.asarray(value.values)

    def gives(self, output: int) -> bool:
        """Whether the node has an output at this place."""
        outputs = self.node.outputs
        return output < len(outputs) and bool(outputs[output].name)

    def takes(self, place: int) -> bool:
        """Whether the node has an input at this place."""
        inputs = self.node.inputs
        return place < len(inputs) and bool(inputs[place].name)

    def element_type(self, place: int) -> int:
        """ONNX element type of an input, 0 where unknown."""
        types = self.element_types
        return types[place] if place < len(types) else 0

    def unsupported(self, what: str) -> ModelError:
        """An error that says what about the node no function here computes."""
        return ModelError(f"`{self.label}` ({self.node.op}) cannot be trained through: {what}.")


Builder = Callable[[NodeForm], Computation]


@dataclass(frozen=True)
class Entry:
    """How an operator is computed.

    Attributes:
        build: makes the function of a node.
        sizes: places of inputs that are sizes, axes and the like, which are read as Python numbers.
        gives_sizes: whether the output is made of sizes, whatever the inputs are.
        is_random: whether two runs give different values.
    """

    build: Builder
    sizes: tuple[int, ...] = ()
    gives_sizes: bool = False
    is_random: bool = False


ENTRIES: Final[dict[tuple[str, str, int], Entry]] = {}


def operator(
    name: str,
    *versions: int,
    domain: str = ONNX_DOMAIN,
    sizes: tuple[int, ...] = (),
    gives_sizes: bool = False,
    is_random: bool = False,
) -> Callable[[Builder], Builder]:
    """Enter the decorated builder into the table; the arguments are those of `Entry`."""

    def enter(build: Builder) -> Builder:
        entry = Entry(build, sizes, gives_sizes, is_random)
        for version in versions or (1,):
            key = (domain, name, version)
            assert key not in ENTRIES, key
            ENTRIES[key] = entry
        return build

    return enter


def plain(name: str, *versions: int, domain: str = ONNX_DOMAIN) -> Callable[[Computation], None]:
    """Enter a function that needs no attribute."""

    def enter(function: Computation) -> None:
        operator(name, *versions, domain=domain)(lambda form: function)

    return enter


def version_of(node: gs.Node, opset: int | None) -> int:
    """The `since_version` of the schema of `node` at `opset` of its domain, 0 where it has none."""
    if not node.is_onnx:
        return 1
    try:
        return int(onnx.defs.get_schema(node.op, opset or 1, ONNX_DOMAIN).since_version)
    except onnx.defs.SchemaError:
        return 0


def entry_of(node: gs.Node, version: int) -> Entry | None:
    """The entry of `node`, None where there is none."""
    domain = ONNX_DOMAIN if node.is_onnx else node.domain
    return ENTRIES.get((domain, node.op, version))


def ints(tensor: Tensor | None) -> list[int]:
    """The values of a tensor of sizes as Python numbers, one-dimensional."""
    if tensor is None:
        return []
    found = tensor.tolist()
    return [int(item) for item in found] if isinstance(found, list) else [int(found)]
