"""Open sizes of inputs that the weights pin: an exporter leaves `F` open, a MatMul demands 180.

Each operator demands that sizes of its operands agree: the last axis of a MatMul's input is the
first of its weight, the channels of a Conv are those of its kernel. `SizeFlow` expresses all sizes
by the symbols of the inputs, so every demand is an equation, and one with a single unknown symbol
settles it. Broadcasting is a weaker demand, because a size of 1 fits as well: it counts only for
symbols that no other equation settles, and so do the operators of bodies, which may never run.

Owns: which sizes each operator demands to be equal. Not here: sizes that are merely likely (see
`runtime.samples.input_sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Node, walk_graphs
from onnxslim.graph.operands import is_present
from onnxslim.graph.sizes import Shape, Size, Sum, multiply, product, substitute, subtract

Equation = tuple[Size, Size]  # both sides are equal in every run that does not fail


def pinned_symbols(graph: gs.Graph, flow: SizeFlow) -> Mapping[str, int]:
    """The sizes of the symbols of `flow` that the operators of `graph` leave no choice for."""
    firm: list[Equation] = []
    weak: list[Equation] = []
    for each in walk_graphs(graph):
        for node in each.nodes:
            (firm if each is graph else weak).extend(_demands(node, flow))
            weak.extend(_broadcasts(node, flow))
    known: dict[str, int] = {}
    _settle(firm, known)
    _settle(weak, known)
    return known


def _settle(equations: Iterable[Equation], known: dict[str, int]) -> None:
    """Add the symbols to `known` that are the only unknown of an equation, until none is left."""
    pending = [subtract(left, right) for left, right in equations]
    pending = [rest for rest in pending if isinstance(rest, Sum)]
    settled = -1
    while settled != len(known):
        settled = len(known)
        for number, rest in enumerate(pending):
            pending[number] = substitute(rest, known)
            found = _only_unknown(pending[number])
            if found is not None:
                known[found[0]] = found[1]


def _only_unknown(rest: Size) -> tuple[str, int] | None:
    """The symbol and its value where `rest == 0` has a single symbol, which is positive."""
    if not isinstance(rest, Sum):
        return None
    terms = dict(rest.terms)
    constant = terms.pop((), 0)
    if len(terms) != 1:
        return None
    factors, times = terms.popitem()
    if len(factors) != 1 or constant % times or -constant // times < 1:
        return None
    return factors[0], -constant // times


# ------------------------------------------------------------------------ demands


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
