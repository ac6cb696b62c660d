"""Open sizes of inputs that the weights pin: an exporter leaves `F` open, a MatMul demands 180.

Each operator demands that sizes of its operands agree: the last axis of a MatMul's input is the
first of its weight, the channels of a Conv are those of its kernel. `SizeFlow` expresses all sizes
by the symbols of the inputs, so every demand is an equation, and one with a single unknown symbol
settles it. Broadcasting is a weaker demand, because a size of 1 fits as well: it counts only for
symbols that no other equation settles, and so do the operators of bodies, which may never run.

An equation of several symbols is a tie: it settles the last of them once the others are chosen. A
window must fit into what it slides over, which bounds a size from below.

Owns: which sizes each operator demands to be equal, or not to be less than. Not here: sizes that
are merely likely (see `runtime.samples.input_sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Node, walk_graphs
from onnxslim.graph.operands import ints_operand, is_present
from onnxslim.graph.sizes import (
    Shape,
    Size,
    Sum,
    add,
    multiply,
    product,
    substitute,
    subtract,
    symbols_in,
)

Equation = tuple[Size, Size]  # both sides are equal in every run that does not fail


@dataclass(frozen=True)
class SizeDemands:
    """What the operators of one graph demand of the sizes of its inputs, by symbol.

    Attributes:
        pinned: the sizes that leave no choice.
        ties: sums of several open symbols that are zero.
        least: the size that an open symbol must have at least.
    """

    pinned: Mapping[str, int] = field(default_factory=dict)
    ties: Sequence[Size] = ()
    least: Mapping[str, int] = field(default_factory=dict)

    def settled(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """The chosen sizes, and those that follow from them."""
        known = dict(chosen)
        _settle(self.ties, known)
        return known


def size_demands(graph: gs.Graph, flow: SizeFlow) -> SizeDemands:
    """What the operators of `graph` demand of the symbols of `flow`."""
    firm: list[Equation] = []
    weak: list[Equation] = []
    windows: list[Equation] = []
    for each in walk_graphs(graph):
        for node in each.nodes:
            (firm if each is graph else weak).extend(_demands(node, flow))
            weak.extend(_broadcasts(node, flow))
            windows.extend(_windows(node, flow))
    known: dict[str, int] = {}
    rest = _settle((subtract(*sides) for sides in firm), known)
    rest += _settle((subtract(*sides) for sides in weak), known)
    inputs = {
        str(size)
        for tensor in graph.inputs
        for size in flow.shape(tensor) or ()
        if isinstance(size, Sum)
    }
    ties = dict.fromkeys(substitute(tie, known) for tie in rest)
    least = _least(windows, known)
    return SizeDemands(
        known,
        [tie for tie in ties if len(symbols_in(tie)) > 1 and symbols_in(tie) <= inputs],
        {symbol: size for symbol, size in least.items() if symbol in inputs},
    )


def _least(windows: Iterable[Equation], known: Mapping[str, int]) -> dict[str, int]:
    """The least value of each symbol with which `size >= window` in all equations of one symbol."""
    least: dict[str, int] = {}
    for size, window in windows:
        rest = substitute(subtract(size, window), known)
        found = _linear(rest)
        if found is not None and found[1] > 0:
            symbol, times, constant = found
            least[symbol] = max(least.get(symbol, 1), -(constant // times))
    return least


def _settle(zeros: Iterable[Size], known: dict[str, int]) -> list[Size]:
    """Add the symbols to `known` that are the only unknown of a sum that is zero; return the rest.

    Edits `known`.
    """
    pending = list(zeros)
    settled = -1
    while settled != len(known):
        settled = len(known)
        for number, rest in enumerate(pending):
            pending[number] = substitute(rest, known)
            found = _only_unknown(pending[number])
            if found is not None:
                known[found[0]] = found[1]
    return pending


def _only_unknown(rest: Size) -> tuple[str, int] | None:
    """The symbol and its value where `rest == 0` has a single symbol, which is positive."""
    found = _linear(rest)
    if found is None:
        return None
    symbol, times, constant = found
    if constant % times or -constant // times < 1:
        return None
    return symbol, -constant // times


def _linear(rest: Size) -> tuple[str, int, int] | None:
    """The symbol, its factor and the constant where `rest` is `factor * symbol + constant`."""
    if not isinstance(rest, Sum):
        return None
    terms = dict(rest.terms)
    constant = terms.pop((), 0)
    if len(terms) != 1:
        return None
    factors, times = terms.popitem()
    return (factors[0], times, constant) if len(factors) == 1 else None


# ------------------------------------------------------------------------ demands


def _windows(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    """Pairs of a size and what it must reach: the kernel of a Conv, what a Pad reflects."""
    rule = _REACHING.get(node.op)
    if rule is not None and (shape := _sizes(node, 0, flow)):
        yield from rule(node, shape, flow)


def _kernel(node: Node, shape: Shape, flow: SizeFlow) -> Iterator[Equation]:
    weight = _sizes(node, 1, flow) if node.op == "Conv" else None
    kernel = node.attrs.get("kernel_shape") or (weight or ())[2:]
    spatial = len(shape) - 2
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    if len(kernel) != spatial or auto_pad not in ("NOTSET", "VALID"):
        return
    pads = (auto_pad == "NOTSET" and node.attrs.get("pads")) or [0] * (2 * spatial)
    dilations = node.attrs.get("dilations") or [1] * spatial
    for axis in range(spatial):
        padded = add(shape[2 + axis], int(pads[axis] + pads[axis + spatial]))
        yield padded, add(multiply(add(kernel[axis], -1), int(dilations[axis])), 1)


def _reflected(node: Node, shape: Shape, flow: SizeFlow) -> Iterator[Equation]:
    pads = ints_operand(node, flow.opset, "pads", 1, 11)
    if node.attrs.get("mode") == "reflect" and pads and len(pads) == 2 * len(shape):
        for axis, size in enumerate(shape):
            yield size, max(pads[axis], pads[axis + len(shape)]) + 1


_REACHING: Final[Mapping[str, Callable[[Node, Shape, SizeFlow], Iterator[Equation]]]] = {
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), _kernel),
    "Pad": _reflected,
}


def _demands(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    rule = _RULES.get(node.op)
    if rule is not None:
        yield from rule(node, flow)


def _sizes(node: Node, index: int, flow: SizeFlow) -> Shape | None:
    return flow.shape(node.inputs[index]) if is_present(node, index) else None


def _pair(
    node: Node, flow: SizeFlow, first: tuple[int, int], second: tuple[int, int]
) -> Iterator[Equation]:
    """Equality of two axes, each as (operand, axis); nothing where one of them is unknown."""
    found = []
    for index, axis in (first, second):
        shape = _sizes(node, index, flow)
        if shape is None or not -len(shape) <= axis < len(shape):
            return
        found.append(shape[axis])
    yield found[0], found[1]


def _product_of(weight: int) -> Callable[[Node, SizeFlow], Iterator[Equation]]:
    def rule(node: Node, flow: SizeFlow) -> Iterator[Equation]:
        right = _sizes(node, weight, flow)
        if right:
            yield from _pair(node, flow, (0, -1), (weight, -2 if len(right) > 1 else 0))

    return rule


def _gemm(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    left, right = int(not node.attrs.get("transA", 0)), int(node.attrs.get("transB", 0))
    yield from _pair(node, flow, (0, left), (1, right))


def _conv_of(weight: int) -> Callable[[Node, SizeFlow], Iterator[Equation]]:
    def rule(node: Node, flow: SizeFlow) -> Iterator[Equation]:
        for channels, per_group in _pair(node, flow, (0, 1), (weight, 1)):
            yield channels, multiply(per_group, int(node.attrs.get("group", 1)))

    return rule


def _conv_transpose(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    yield from _pair(node, flow, (0, 1), (1, 0))


def _channels(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    yield from _pair(node, flow, (0, 1), (1, 0))


def _recurrent(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    yield from _pair(node, flow, (0, -1), (1, -1))  # features: W is (directions, gates, features)
    batch_first = bool(node.attrs.get("layout", 0))
    for state in (5, 6):  # initial_h and initial_c: (directions, batch, hidden)
        yield from _pair(node, flow, (state, 1 if batch_first else 0), (1, 0))
        yield from _pair(node, flow, (state, -1), (2, -1))


def _concat(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    first = shapes[0]
    if first is None:
        return
    axis = int(node.attrs.get("axis", 0)) % max(len(first), 1)
    for other in shapes[1:]:
        if other is not None and len(other) == len(first):
            pairs = zip(first, other, strict=True)
            yield from (pair for place, pair in enumerate(pairs) if place != axis)


def _split(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    shape = _sizes(node, 0, flow)
    lengths = node.attrs.get("split")
    if lengths is None and is_present(node, 1):
        lengths = flow.ints(node.inputs[1])
    if shape and lengths is not None:
        yield shape[int(node.attrs.get("axis", 0))], sum(map(int, lengths))


def _reshape(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    shape = _sizes(node, 0, flow)
    target = flow.ints(node.inputs[1]) if is_present(node, 1) else None
    if shape is not None and target is not None and all(size > 0 for size in target):
        yield product(shape), product(target)


def _blocks(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    """MatMulNBits: the weight is packed, and an attribute gives the size."""
    shape = _sizes(node, 0, flow)
    if shape and "K" in node.attrs:
        yield shape[-1], int(node.attrs["K"])


_RULES: Final[Mapping[str, Callable[[Node, SizeFlow], Iterator[Equation]]]] = {
    "MatMul": _product_of(1),
    "MatMulInteger": _product_of(1),
    "QLinearMatMul": _product_of(3),
    "DynamicQuantizeMatMul": _product_of(1),
    "MatMulIntegerToFloat": _product_of(1),
    "FusedMatMul": lambda node, flow: (
        iter(()) if {"transA", "transB"} & node.attrs.keys() else _product_of(1)(node, flow)
    ),
    "MatMulNBits": _blocks,
    "Gemm": _gemm,
    "Conv": _conv_of(1),
    "ConvInteger": _conv_of(1),
    "FusedConv": _conv_of(1),
    "QLinearConv": _conv_of(3),
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _channels,
    "InstanceNormalization": _channels,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Concat": _concat,
    "Split": _split,
    "Reshape": _reshape,
}
_BROADCASTING: Final = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "PRelu", "Mod"),
        *("And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
        *("LayerNormalization", "RMSNormalization", "SkipLayerNormalization"),
    }
)


def _broadcasts(node: Node, flow: SizeFlow) -> Iterator[Equation]:
    """Equal sizes of operands that are aligned at their last axes, but for sizes of 1."""
    if node.op not in _BROADCASTING or "broadcast" in node.attrs:
        return
    shapes = [flow.shape(tensor) for tensor in node.inputs if tensor.name]
    known = [shape[::-1] for shape in shapes if shape is not None]
    for axis in range(max(map(len, known), default=0)):
        sizes = [shape[axis] for shape in known if axis < len(shape)]
        fixed = [size for size in sizes if isinstance(size, int) and size != 1]
        if fixed:
            yield from ((size, fixed[0]) for size in sizes if isinstance(size, Sum))
