"""What a graph demands of its inputs: the sizes that operators ask for, and values it can use.

Owns: both answers for one model, by name of the input. Not here: how they are found (see
`pinned_sizes` and `input_roles`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.input_roles import InputRole, input_roles
from onnxslim.analysis.pinned_sizes import SizeDemands, size_demands
from onnxslim.graph.sizes import Shape, Size, Sum, substitute
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes


@dataclass(frozen=True)
class InputDemands:
    """What one graph demands of its inputs.

    Attributes:
        shapes: the symbolic shape by name; inputs of unknown rank are absent.
        symbols: what the graph demands of the symbols in `shapes`.
        roles: by name; inputs that may hold anything are absent.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    symbols: SizeDemands = field(default_factory=SizeDemands)
    roles: Mapping[str, InputRole] = field(default_factory=dict)

    def sizes(self, name: str) -> tuple[int | None, ...] | None:
        """The demanded size of each axis of an input, None where there is a choice."""
        shape = self.shapes.get(name)
        if shape is None:
            return None
        settled = (substitute(size, self.symbols.pinned) for size in shape)
        return tuple(size if isinstance(size, int) else None for size in settled)

    def symbol(self, name: str, axis: int) -> str | None:
        """The symbol of an open axis of an input; None where nothing is known of it."""
        shape = self.shapes.get(name, ())
        size = shape[axis] if axis < len(shape) else None
        return str(size) if isinstance(size, Sum) else None

    @property
    def is_empty(self) -> bool:
        """Whether the graph takes any sizes and values."""
        return not self.roles and self.symbols == SizeDemands()

    def sizes_by_symbol(self, shapes: Mapping[str, Sequence[int]]) -> Mapping[str, int]:
        """The symbols of the inputs' sizes where they have these `shapes`."""
        bound: dict[str, int] = {}
        for name, symbolic in self.shapes.items():
            for size, value in zip(symbolic, shapes.get(name, ()), strict=False):
                if isinstance(size, Sum):
                    bound[str(size)] = value
        return bound


def bound_size(size: Size, symbols: Mapping[str, int]) -> int | None:
    """`size` as a number; None where a symbol is unknown."""
    found = substitute(size, symbols)
    return found if isinstance(found, int) else None


def input_demands(model: Model) -> InputDemands:
    """What the graph of `model` demands of its inputs."""
    model = model.clone()  # shapes are inferred for the copy
    infer_shapes(model)
    graph = model.graph
    flow = SizeFlow(graph, int(graph.opset or 17))
    shapes = {str(tensor.name): flow.shape(tensor) for tensor in graph.inputs}
    return InputDemands(
        {name: shape for name, shape in shapes.items() if shape is not None},
        size_demands(graph, flow),
        input_roles(graph, flow),
    )
