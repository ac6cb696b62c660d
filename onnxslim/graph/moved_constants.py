"""Constants that a file moves, or casts, before an operator reads them; and how to undo that.

Exporters write a weight as a constant behind Identity, Transpose, Reshape or Cast. A pass that
changes weights needs the constant that the operator reads: `settle` puts it there, and `Settled`
stores it again in the fewer bits that the file had for it.

Owns: what chains of such operators make of a constant. Not here: all other operators on constants
(the pass fold-constants runs them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import (
    Constant,
    Node,
    StoredSparse,
    to_numpy_dtype,
    to_onnx_dtype,
    walk_graphs,
)
from onnxslim.graph.operands import axes_of, const_array, const_value, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Change, Fidelity

_MOVING: Final = frozenset(
    {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
_FLOATS: Final = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
_FAR: Final = 32  # nodes that are looked at before a tensor counts as computed at run time

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """One thing that is done to an array.

    Attributes:
        does: the method of `numpy.ndarray` that does it.
        argument: of the method: an order of axes, a shape, or a dtype.
    """

    does: str
    argument: Any

    def __call__(self, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # too large becomes infinite, as in the operator
            made: np.ndarray = getattr(array, self.does)(self.argument)
        return made


@dataclass(frozen=True)
class _Moved:
    """A tensor that is a constant, moved.

    Attributes:
        source: the constant, or the output of the `Constant` node.
        steps: what is done to the constant; () where the tensor is the constant itself.
        shapes: of the constant, and after each step.
        dtype: of the tensor.
    """

    source: gs.Tensor
    steps: tuple[_Step, ...]
    shapes: tuple[Shape, ...]
    dtype: np.dtype[Any]

    def values(self) -> np.ndarray:
        """The value of the tensor."""
        array = const_array(self.source)
        assert array is not None
        for step in self.steps:
            array = step(array)
        return np.ascontiguousarray(array)

    def then(self, step: _Step, shape: Shape) -> _Moved:
        """The tensor after one more step, which gives `shape`; steps that cancel out go."""
        steps, shapes = list(self.steps), list(self.shapes)
        dtype = np.dtype(step.argument) if step.does == "astype" else self.dtype
        if step.does != "astype" and steps and steps[-1].does == step.does:
            last = steps.pop().argument
            shapes.pop()
            if step.does == "transpose":
                step = _Step(step.does, tuple(last[axis] for axis in step.argument))
        if not _is_idle(step, shapes[-1], self.dtype):
            steps.append(step)
            shapes.append(shape)
        return _Moved(self.source, tuple(steps), tuple(shapes), dtype)


def _is_idle(step: _Step, shape: Shape, dtype: np.dtype[Any]) -> bool:
    """Whether `step` leaves an array of that shape and type as it is."""
    if step.does == "astype":
        return bool(step.argument == dtype)
    if step.does == "reshape":
        return bool(step.argument == shape)
    return bool(step.argument == tuple(range(len(shape))))


def _source(tensor: gs.Tensor) -> _Moved | None:
    """A float constant that no step has moved yet; None for any other tensor."""
    stored = const_value(tensor)
    if stored is None or isinstance(stored, StoredSparse) or stored.dtype not in _FLOATS:
        return None
    return _Moved(tensor, (), (tuple(stored.shape),), np.dtype(stored.dtype))


def _after(node: Node, moved: _Moved, opset: int) -> _Moved | None:
    """What `node` makes of its first input; None where that is not known."""
    shape = moved.shapes[-1]
    if node.op == "Identity":
        return moved
    if node.op == "Cast":
        target = to_numpy_dtype(int(node.attrs["to"]))
        return moved.then(_Step("astype", target), shape) if target in _FLOATS else None
    if node.op == "Transpose":
        order = tuple(node.attrs.get("perm") or range(len(shape))[::-1])
        return moved.then(_Step("transpose", order), tuple(shape[axis] for axis in order))
    target_shape = _SHAPES[node.op](node, shape, opset)
    if target_shape is None or prod(target_shape) != prod(shape):
        return None
    return moved.then(_Step("reshape", target_shape), target_shape)


def _flattened(node: Node, shape: Shape, _opset: int) -> Shape | None:
    axis = int(node.attrs.get("axis", 1))
    return prod(shape[:axis]), prod(shape[axis:])


def _reshaped(node: Node, shape: Shape, _opset: int) -> Shape | None:
    given = node.attrs.get("shape") if len(node.inputs) < 2 else const_array(node.inputs[1])
    if given is None or node.attrs.get("allowzero", 0):
        return None
    wanted = [int(size) for size in given]
    if 0 in wanted[len(shape) :]:
        return None
    wanted = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    rest = prod(size for size in wanted if size != -1)
    return tuple(prod(shape) // max(rest, 1) if size == -1 else size for size in wanted)


def _squeezed(node: Node, shape: Shape, opset: int) -> Shape | None:
    axes = axes_of(node, opset)
    if axes == ():
        return tuple(size for size in shape if size != 1)
    gone = normalized(axes, len(shape))
    if gone is None:
        return None
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _unsqueezed(node: Node, shape: Shape, opset: int) -> Shape | None:
    axes = axes_of(node, opset)
    ndim = len(shape) + len(axes or ())
    new = normalized(axes, ndim)
    if new is None or len(set(new)) != len(axes or ()):
        return None
    rest = iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(ndim))


_SHAPES: Final[dict[str, Callable[[Node, Shape, int], Shape | None]]] = {
    "Flatten": _flattened,
    "Reshape": _reshaped,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
}


# ---------------------------------------------------------------------------- the graph


@dataclass(frozen=True)
class _Widened:
    """A constant that the file stores in a shorter type: that type, and the values read."""

    short: np.dtype[Any]
    wide: np.ndarray


@dataclass(frozen=True)
class Settled:
    """What `settle` did.

    Attributes:
        changes: the edits.
        widened: by name, constants that the file stores in a shorter type.
    """

    changes: tuple[Change, ...]
    widened: Mapping[str, _Widened] = field(default_factory=dict)

    def store_again(self, graph: gs.Graph) -> tuple[Change, ...]:
        """Store what is still in use in its shorter type, with a Cast behind; edits `graph`.

        Values that were changed since are rounded to the type.
        """
        if not self.widened:
            return ()
        rewriter = Rewriter(graph)
        nodes = (node for current in list(rewriter.graphs()) for node in current.nodes)
        for constant in dict.fromkeys(tensor for node in nodes for tensor in node.inputs):
            found = self.widened.get(constant.name)
            is_same = isinstance(constant, Constant) and constant.home is graph
            if found is None or not is_same or np.dtype(constant.dtype) != found.wide.dtype:
                continue
            if constant.nbytes <= constant.size * found.short.itemsize:
                continue  # it is sparse by now
            values = constant.values.astype(found.short)
            twin = rewriter.constant(values, f"{constant.name}_{found.short.name}")
            fidelity = Fidelity.EXACT if constant.stored is found.wide else Fidelity.LOSSY
            what = f"{values.size:,} values stored as {found.short.name}, as they were before"
            attrs = {"to": to_onnx_dtype(found.wide.dtype)}
            rewriter.replace_constant(constant, "Cast", [twin], what, fidelity, attrs=attrs)
        return rewriter.result().changes


def has_moved_constants(graph: gs.Graph) -> bool:
    """Whether some operator moves or casts a float constant."""
    nodes = (node for current in walk_graphs(graph) for node in current.nodes)
    return any(_moves(node) and _source(node.inputs[0]) is not None for node in nodes)


def settle(graph: gs.Graph) -> Settled:
    """Replace each constant that is read in one moved form alone by that form; edits `graph`.

    What an Identity, or steps that cancel out, make of a constant is the constant itself. A
    constant that is read in several forms, or returned by a graph, is moved when the model runs,
    as before: written twice, it would enlarge the file.
    """
    rewriter = Rewriter(graph)
    known = _moved_tensors(rewriter)
    movers = {tensor.inputs[0] for tensor in known}
    forms: dict[gs.Tensor, dict[tuple[_Step, ...], list[gs.Tensor]]] = {}
    for tensor, moved in known.items():
        readers = set(tensor.outputs) - movers
        if rewriter.is_output(tensor):  # it holds on to the form that the constant has in the file
            forms.setdefault(moved.source, {}).setdefault((), [])
        elif readers:
            forms.setdefault(moved.source, {}).setdefault(moved.steps, []).append(tensor)
    widened: dict[str, _Widened] = {}
    for source, by_steps in forms.items():
        is_read = rewriter.is_output(source) or bool(set(source.outputs) - movers)
        for steps, tensors in by_steps.items():
            if not steps:
                _let_read(rewriter, tensors, source)
            elif len(by_steps) == 1 and not is_read:
                moved = known[tensors[0]]
                made = _constant(rewriter, tensors[0], moved.values())
                first = np.dtype(const_value(source).dtype)  # type: ignore[union-attr]
                _let_read(rewriter, tensors, made)  # a `Constant` that nobody reads goes
                if first.itemsize < made.values.dtype.itemsize:
                    widened[made.name] = _Widened(first, made.values)
    return Settled(rewriter.result().changes, widened)


def _moved_tensors(rewriter: Rewriter) -> dict[gs.Tensor, _Moved]:
    known: dict[gs.Tensor, _Moved] = {}
    for node in (node for current in rewriter.graphs() for node in current.nodes):
        if not _moves(node):
            continue
        data = node.inputs[0]
        moved = known.get(data) or _source(data)
        made = None if moved is None else _after(node, moved, rewriter.opset)
        if made is not None:
            known[node.outputs[0]] = made
    return known


def _moves(node: Node) -> bool:
    return node.op in _MOVING and node.is_onnx and bool(node.inputs) and len(node.outputs) == 1


def _constant(rewriter: Rewriter, tensor: gs.Tensor, values: np.ndarray) -> Constant:
    """A constant of the main graph, with the name of the tensor that it replaces if it can be."""
    is_main = rewriter.graph_of(tensor.inputs[0]) is rewriter.main
    values.flags.writeable = False
    made = Constant(tensor.name if is_main else rewriter.fresh_name(tensor.name), values)
    made.home = rewriter.main
    return made


def _let_read(rewriter: Rewriter, tensors: Sequence[gs.Tensor], constant: gs.Tensor) -> None:
    for tensor in tensors:
        node = tensor.inputs[0]
        if rewriter.is_alive(node):
            what = f"what {node.op} makes of a constant was made a constant"
            if node.op == "Identity":
                what = "an Identity of a constant was left out"
            rewriter.substitute(node, constant, what)


def final_readers(tensor: gs.Tensor) -> Iterator[Node]:
    """The nodes that do more with `tensor` than to move or cast it, seen through those that do."""
    for node in dict.fromkeys(tensor.outputs):
        if _moves(node) and node.outputs[0].outputs:
            yield from final_readers(node.outputs[0])
        else:
            yield node


def why_no_constant(tensor: gs.Tensor) -> str | None:
    """Why a tensor that constants alone determine is no constant, and what makes it one.

    Returns:
        A clause to follow "it is"; None where inputs of the model have a part in the tensor, or a
        quantized constant.
    """
    if getattr(tensor, "default", None) is not None:
        return "an input of the graph too, which callers may set"
    ops: dict[str, None] = {}
    stack, seen = [tensor], set[Node]()
    while stack:
        current = stack.pop()
        if const_value(current) is not None or not current.name:
            continue
        node = current.inputs[0] if len(current.inputs) == 1 else None
        if node is None or len(seen) == _FAR or not node.is_onnx or node.op == "DequantizeLinear":
            return None
        if node not in seen:
            seen.add(node)
            ops.setdefault(str(node.op))
            stack += node.inputs
    names = " and ".join(ops)
    if _MOVING.issuperset(ops):
        return f"a constant behind {names}, which is read in another form too"
    return f"computed from constants by {names}: run simplify first"
