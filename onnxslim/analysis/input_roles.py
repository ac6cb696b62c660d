"""The role that a graph gives each of its inputs: a mask, indices into a table, lengths, ...

A file declares types, not meanings: `int64[batch, seq]` can be the ids of words, a mask of zeros
and ones, or the number of valid steps. What the graph does with the input tells them apart. Each
input is followed through operators that keep its values (Cast, Unsqueeze, Expand, ...) or shift
them by a constant, to those that only make sense of some values: Gather looks up rows of a table,
`1 - x` times a large negative number is the bias of an attention mask, Slice ends lie on an axis.

Owns: which uses tell which role. Not here: drawing values (see `runtime.samples.role_values`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Node, walk_graphs
from onnxslim.graph.operands import const_array, const_value, is_present
from onnxslim.graph.sizes import Size, add

_VANISHING: Final = -100.0  # a bias below it leaves nothing of a softmax
_BYTE_SCALE: Final = (200.0, 256.0)  # divisors that bring pixels to [0, 1]
_MEAN_PIXELS: Final = (50.0, 255.0)
_SMALL: Final = 1 << 16  # elements of a constant that is read


class RoleKind(enum.Enum):
    """What an input means to the graph."""

    CHOICE = "choice"  # one integer that the graph holds against constants, to choose what it does
    INDEX = "index"  # integers in [low, top): rows of a table, classes, places on an axis
    MASK = "mask"  # zeros and ones
    POSITIVE = "positive"  # floats above zero, such as probabilities or powers
    PIXELS = "pixels"  # floats from 0 to 255


@dataclass(frozen=True)
class InputRole:
    """The role of one input.

    Attributes:
        low: the least index; 0 for other kinds.
        tops: bounds that every index is below; they may depend on sizes of inputs.
        choices: constants that a choice is held against.
    """

    kind: RoleKind
    low: int = 0
    tops: tuple[Size, ...] = ()
    choices: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Follower:
    """A tensor that holds the values of an input, as `value + shift`, or `1 - value`."""

    tensor: gs.Tensor
    shift: int = 0
    flipped: bool = False


def input_roles(graph: gs.Graph, flow: SizeFlow) -> Mapping[str, InputRole]:
    """The roles of the inputs that have one, by name."""
    places = _places(graph)
    found = ((str(tensor.name), _role(tensor, flow, places)) for tensor in graph.inputs)
    return {name: role for name, role in found if role is not None}


Places = Mapping[tuple[int, int], Sequence[int]]
"""Where a node reads a tensor, by the ids of both."""


def _places(graph: gs.Graph) -> Places:
    found: dict[tuple[int, int], list[int]] = {}
    for each in walk_graphs(graph):
        for node in each.nodes:
            for place, tensor in enumerate(node.inputs):
                found.setdefault((id(node), id(tensor)), []).append(place)
    return found


def _role(tensor: gs.Tensor, flow: SizeFlow, places: Places) -> InputRole | None:
    uses = list(_uses(tensor, flow, places))
    indices = [use for use in uses if use.kind is RoleKind.INDEX]
    if indices:  # ids are also held against the id of padding, as masks are against zero
        tops = tuple(dict.fromkeys(top for use in indices for top in use.tops))
        return InputRole(RoleKind.INDEX, max(use.low for use in indices), tops)
    choices = [choice for use in uses for choice in use.choices]
    if choices:
        return InputRole(RoleKind.CHOICE, choices=tuple(dict.fromkeys(choices)))
    return next(iter(uses), None)


def _uses(source: gs.Tensor, flow: SizeFlow, places: Places) -> Iterator[InputRole]:
    """The roles that the operators behind `source` tell."""
    if source.dtype is None:
        return
    kind = np.dtype(source.dtype).kind
    stack = [_Follower(source)]
    seen = {(id(source), 0, False)}
    while stack:
        at = stack.pop()
        # a node that reads the tensor twice is listed twice
        for node in {id(node): node for node in at.tensor.outputs}.values():
            for place in places[id(node), id(at.tensor)]:
                use = _use(node, place, at, flow, kind)
                if use is not None:
                    yield use
                for further in _followers(node, place, at):
                    key = (id(further.tensor), further.shift, further.flipped)
                    if key not in seen:
                        seen.add(key)
                        stack.append(further)


# ------------------------------------------------------------------ the same values

_KEEPING: Final = frozenset(
    {
        *("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand", "Tile"),
        *("Transpose", "Slice", "Gather", "Split", "Pad", "Dropout"),
    }
)


def _followers(node: Node, place: int, at: _Follower) -> Iterator[_Follower]:
    joins = node.op == "Concat" or (node.op == "Where" and place > 0)
    if joins or (node.op in _KEEPING and place == 0):
        yield from (replace(at, tensor=tensor) for tensor in node.outputs)
        return
    other = _scalar(node, 1 - place) if node.op in ("Add", "Sub") else None
    if other is None or at.flipped:
        return
    if node.op == "Sub" and place == 1:
        if other == 1 and not at.shift:
            yield _Follower(node.outputs[0], flipped=True)
    elif other == int(other):
        sign = 1 if node.op == "Add" else -1
        yield _Follower(node.outputs[0], at.shift + sign * int(other))


def _scalar(node: Node, index: int) -> float | None:
    """The one value that operand `index` is filled with, None for anything else."""
    values = _values(node, index)
    return float(values[0]) if values is not None and (values == values[0]).all() else None


def _values(node: Node, index: int) -> np.ndarray | None:
    """The elements of a small numeric constant, as float64."""
    stored = const_value(node.inputs[index]) if is_present(node, index) else None
    if stored is None or not 0 < stored.size <= _SMALL:
        return None
    array = const_array(node.inputs[index])
    if array is None or array.dtype.kind not in "iufb":
        return None
    return array.reshape(-1).astype(np.float64)


# ---------------------------------------------------------------------- what tells a role

_MASK: Final = InputRole(RoleKind.MASK)


def _use(node: Node, place: int, at: _Follower, flow: SizeFlow, kind: str) -> InputRole | None:
    """The role that `node` gives its operand `place`; `kind` is numpy's for the input's type."""
    if kind in "iu":
        found = _look_up(node, place, at, flow) or _choice(node, place, at, flow)
        if found is not None:
            return found
    if _is_mask(node, place, at, kind):
        return _MASK
    return _number(node, place) if kind == "f" and at == _Follower(at.tensor) else None


def _look_up(node: Node, place: int, at: _Follower, flow: SizeFlow) -> InputRole | None:
    rule = None if at.flipped else _INDEXING.get((node.op, place))
    bounds = None if rule is None else rule(node, flow)
    if bounds is None and node.op in _COMPARING and not at.flipped:
        bounds = _compared(node, place, flow)
    if bounds is None:
        return None
    low, top = bounds
    return InputRole(RoleKind.INDEX, max(0, low - at.shift), (add(top, -at.shift),))


def _choice(node: Node, place: int, at: _Follower, flow: SizeFlow) -> InputRole | None:
    """The role of one integer that is held against one that is neither 0 nor 1."""
    if node.op != "Equal" or at.flipped or flow.shape(at.tensor) not in ((), (1,)):
        return None
    value = _scalar(node, 1 - place)
    if value is None or value != int(value) or int(value) - at.shift in (0, 1):
        return None
    return InputRole(RoleKind.CHOICE, choices=(int(value) - at.shift,))


Bounds = tuple[int, Size] | None  # the least index, and the size that all are below


def _axis_of(data: int, default: int = 0) -> Callable[[Node, SizeFlow], Bounds]:
    def rule(node: Node, flow: SizeFlow) -> Bounds:
        return _size(node, data, int(node.attrs.get("axis", default)), flow)

    return rule


def _size(node: Node, index: int, axis: int, flow: SizeFlow, *, first: int = 0) -> Bounds:
    """Indices from `first` to `first` less than the size of an axis."""
    shape = flow.shape(node.inputs[index]) if is_present(node, index) else None
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    return first, add(shape[axis], first)


def _depth(node: Node, flow: SizeFlow) -> Bounds:
    value = flow.value(node.inputs[1])
    size = value.items[0] if value is not None and len(value.items) == 1 else None
    return None if size is None else (0, size)


def _slice_bound(first: int) -> Callable[[Node, SizeFlow], Bounds]:
    def rule(node: Node, flow: SizeFlow) -> Bounds:
        axes = flow.ints(node.inputs[3]) if is_present(node, 3) else (0,)
        return _size(node, 0, axes[0], flow, first=first) if axes and len(axes) == 1 else None

    return rule


def _steps(node: Node, flow: SizeFlow) -> Bounds:
    return _size(node, 0, 1 if node.attrs.get("layout", 0) else 0, flow, first=1)


_INDEXING: Final[Mapping[tuple[str, int], Callable[[Node, SizeFlow], Bounds]]] = {
    ("Gather", 1): _axis_of(0),
    ("GatherElements", 1): _axis_of(0),
    ("ScatterElements", 1): _axis_of(0),
    ("EmbedLayerNormalization", 0): _axis_of(2),
    ("EmbedLayerNormalization", 1): _axis_of(4),
    ("OneHot", 0): _depth,
    ("Slice", 1): _slice_bound(0),
    ("Slice", 2): _slice_bound(1),
    **dict.fromkeys((("LSTM", 4), ("GRU", 4), ("RNN", 4)), _steps),
}
_COMPARING: Final = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


def _compared(node: Node, place: int, flow: SizeFlow) -> Bounds:
    """Bounds of what is held against 0, 1, 2, ...: lengths of sequences, or classes of one-hot."""
    if len(node.inputs) != 2 or not _counts_up(node, 1 - place):
        return None
    return _size(node, 1 - place, -1, flow, first=int(node.op != "Equal"))


def _counts_up(node: Node, index: int) -> bool:
    values = _values(node, index)
    if values is not None:
        return values.size > 2 and bool((values == np.arange(values.size)).all())
    tensor = node.inputs[index]
    while len(tensor.inputs) == 1 and tensor.inputs[0].op in ("Cast", "Unsqueeze", "Identity"):
        tensor = tensor.inputs[0].inputs[0]
    return len(tensor.inputs) == 1 and tensor.inputs[0].op == "Range"


def _is_mask(node: Node, place: int, at: _Follower, kind: str) -> bool:
    if kind == "b":
        return node.op in ("Not", "And", "Or", "Xor") or (node.op == "Where" and place == 0)
    if node.op == "Cast" and node.attrs.get("to") == onnx.TensorProto.BOOL:
        return True
    if node.op == "Mul":
        return _is_masking_product(node, place, at, kind)
    if kind not in "iu" or at.shift:
        return False
    if node.op == "EmbedLayerNormalization" and place == 7:
        return True
    if node.op == "Sub" and place == 1:
        return _scalar(node, 0) == 1
    return node.op in _COMPARING and _scalar(node, 1 - place) in (0.0, 0.5, 1.0)


def _is_masking_product(node: Node, place: int, at: _Follower, kind: str) -> bool:
    """A product with a large negative number, or of whole numbers with computed values."""
    if const_value(node.inputs[1 - place]) is None:
        return kind in "iu" and not at.shift
    factor = _scalar(node, 1 - place)
    if factor is None:
        return False
    return factor < _VANISHING or (at.shift == -1 and factor > -_VANISHING)


def _number(node: Node, place: int) -> InputRole | None:
    """The role of a float input by its first arithmetic."""
    if node.op in ("Log", "Sqrt"):
        return InputRole(RoleKind.POSITIVE)
    values = _values(node, 1 - place) if node.op in ("Div", "Mul", "Sub") else None
    if values is None or (place == 1 and node.op != "Mul"):
        return None
    if node.op == "Mul":
        values = 1 / np.where(values == 0, np.inf, values)
    low, high = _MEAN_PIXELS if node.op == "Sub" else _BYTE_SCALE
    is_pixels = bool(((values >= low) & (values <= high)).all())
    return InputRole(RoleKind.PIXELS) if is_pixels else None
