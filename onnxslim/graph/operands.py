"""The operands of a node as far as they are known: constants, axes, pads.

Many operators took a list of integers as an attribute first and as an input later. The functions
here hide that: they answer for the opset of the model, with None for what is only known at run
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import (
    Constant,
    Node,
    Stored,
    StoredSparse,
    subgraphs_of,
    to_onnx_dtype,
    walk_graphs,
)
from onnxslim.graph.proto import raw_bytes
from onnxslim.graph.wire import Buffer

# operator -> (first opset in which `axes` is an input, index of that input)
_AXES_INPUT: Final[Mapping[str, tuple[int, int]]] = {
    "Squeeze": (13, 1),
    "Unsqueeze": (13, 1),
    "ReduceSum": (13, 1),
    **{
        f"Reduce{kind}": (18, 1)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
    "Slice": (10, 3),
    "Pad": (18, 3),
}
_WINDOWS: Final = ("BlackmanWindow", "HammingWindow", "HannWindow")
_DEEPEST: Final = 16  # operators between constants and an operand
# operator -> inputs that ONNX wants as scalars. Where they are computed, onnxruntime takes any
# tensor of one element; of constants it sees the shape, and refuses the model.
_SCALARS: Final[Mapping[str, tuple[int, ...]]] = {
    "DFT": (2,),
    "Dropout": (1, 2),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "Range": (0, 1, 2),
    **dict.fromkeys(_WINDOWS, (0,)),
}
RANDOM_OPS: Final = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def const_array(tensor: gs.Tensor) -> np.ndarray | None:
    """The values of a constant (initializer or output of a `Constant` node), else None.

    The array is read-only, and for a large weight a view on the file: reading it is not free.
    """
    value = const_value(tensor)
    return value if value is None or isinstance(value, np.ndarray) else value.load()


def const_value(tensor: gs.Tensor) -> np.ndarray | Stored | StoredSparse | None:
    """As `const_array`, but not read from the file yet."""
    if isinstance(tensor, Constant):
        return tensor.stored
    if len(tensor.inputs) != 1:
        return None
    node = tensor.inputs[0]
    if node.op != "Constant" or (node.domain or "") not in ("", "ai.onnx"):
        return None
    return constant_node_value(node)


def constant_node_value(node: Node) -> np.ndarray | Stored | StoredSparse | None:
    """The value of a `Constant` node; None for a sparse one."""
    for name, value in node.attrs.items():
        if name == "value" and isinstance(value, Constant):
            return value.stored
        if name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
        if name in ("value_string", "value_strings"):
            return np.array(value, object)
    return None


def is_filled_with(tensor: gs.Tensor, value: float | bool) -> bool:
    """Whether `tensor` is a constant, not empty, with every element equal to `value`.

    +0 and -0 are told apart, since adding the wrong one changes bits.
    """
    stored = const_value(tensor)
    if stored is None or stored.size == 0 or stored.dtype == object:
        return False
    array = stored if isinstance(stored, np.ndarray) else stored.load()
    first = array[(0,) * array.ndim]
    if first != value or not bool(np.all(array == first)):  # the first one decides, mostly
        return False
    if value == 0 and array.dtype.kind not in "biu":
        signs = np.signbit(array.astype(np.float64))
        return bool(np.all(signs == np.signbit(np.float64(value))))
    return True


def is_present(node: Node, index: int) -> bool:
    """Whether the optional input at `index` is given."""
    return index < len(node.inputs) and bool(node.inputs[index].name)


def vectors_for_scalars(node: Node) -> Iterator[int]:
    """The inputs of `node` that ONNX wants as scalars, and that are, or become, constant vectors.

    Those that are computed from constants alone become constants in onnxruntime.
    """
    for index in _SCALARS.get(node.op, ()) if node.is_onnx else ():
        operand = node.inputs[index] if is_present(node, index) else None
        if operand is not None and operand.shape and _is_determined(operand, _DEEPEST):
            yield index


def _is_determined(tensor: gs.Tensor, depth: int) -> bool:
    """Whether constants alone give the value of `tensor`, in a branch of an If at least."""
    if isinstance(tensor, Constant) or not tensor.inputs or not depth:
        return isinstance(tensor, Constant)
    (node,) = tensor.inputs
    branches = subgraphs_of(node)
    if not all(_is_determined(operand, depth - 1) for operand in node.inputs if operand.name):
        return False
    if not branches or node.op != "If":
        return not branches
    place = next(index for index, output in enumerate(node.outputs) if output is tensor)
    return any(_is_determined(branch.outputs[place], depth - 1) for branch in branches)


def clip_of_relu(node: Node) -> tuple[Node, np.ndarray] | None:
    """The one reader of a Relu, a Clip, and the lower bound that stands for both of them.

    Only for types in which onnxruntime does not load the two: it joins every Relu with a Clip that
    has a constant lower bound, and knows the bounds of float32 and float16 alone.
    """
    readers = node.outputs[0].outputs if node.op == "Relu" and node.is_onnx else []
    if len(readers) != 1 or readers[0].op != "Clip" or not is_present(readers[0], 1):
        return None
    bound = readers[0].inputs[1]
    while bound.inputs and bound.inputs[0].op == "Identity":  # onnxruntime removes these first
        bound = bound.inputs[0].inputs[0]
    low = const_array(bound)
    if low is None or low.dtype in (np.float32, np.float16) or np.isnan(low).any():
        return None
    return readers[0], np.where(low > 0, low, np.zeros_like(low))


def ints_operand(
    node: Node, opset: int, name: str, input_index: int, since: int
) -> tuple[int, ...] | None:
    """A list of integers that is an attribute before opset `since` and an input from it on.

    Returns:
        The integers; () when the operand is absent; None when it is computed at run time.
    """
    if opset < since:
        value = node.attrs.get(name, ())
        if isinstance(value, int):
            return (value,)
        return tuple(value) if isinstance(value, list | tuple) else None
    if not is_present(node, input_index):
        return ()
    array = const_array(node.inputs[input_index])
    return None if array is None else tuple(int(item) for item in array.reshape(-1))


def axes_of(node: Node, opset: int) -> tuple[int, ...] | None:
    """The `axes` of a node, as they are written: negative ones count from the end.

    Returns:
        The axes; () when there are none, which means the operator's default; None when they are
        computed at run time.
    """
    since, index = _AXES_INPUT.get(node.op, (10**6, 0))
    return ints_operand(node, opset, "axes", index, since)


def normalized(axes: tuple[int, ...] | None, ndim: int | None) -> tuple[int, ...] | None:
    """`axes` counted from the front; None when anything is unknown or out of range."""
    if axes is None or ndim is None or not all(-ndim <= axis < ndim for axis in axes):
        return None
    return tuple(axis % ndim for axis in axes)


def is_random(node: Node, opset: int) -> bool:
    """Whether two runs of a standard operator, or of one in its bodies, may give other results."""
    inner = (n for body in subgraphs_of(node) for graph in walk_graphs(body) for n in graph.nodes)
    return any(
        item.op in RANDOM_OPS or (item.op == "Dropout" and is_training_dropout(item, opset))
        for item in (node, *inner)
    )


def is_training_dropout(node: Node, opset: int) -> bool:
    """Whether a Dropout may drop something."""
    if opset < 7:
        return not node.attrs.get("is_test", 0)
    if opset < 12 or not is_present(node, 2):  # from 7 to 11, it only describes inference
        return False
    mode = const_array(node.inputs[2])
    return mode is None or bool(mode.any())


def content(constant: Constant) -> tuple[tuple[str, int, tuple[int, ...]], Buffer]:
    """A constant's kind, element type and shape, and its bytes: equal for equal constants.

    Bytes, so -0.0 is not 0.0, and a NaN is equal to a NaN with the same bits. Weights in a file
    are neither copied nor read before somebody reads the buffer.
    """
    stored = constant.stored
    if isinstance(stored, StoredSparse):
        parts = onnx.SparseTensorProto()
        parts.CopyFrom(stored.tensor)
        parts.values.ClearField("name")
        return ("sparse", stored.data_type, stored.shape), parts.SerializeToString(
            deterministic=True
        )
    data_type = stored.data_type if isinstance(stored, Stored) else to_onnx_dtype(stored.dtype)
    kind = ("dense", data_type, tuple(stored.shape))
    if isinstance(stored, Stored) and stored.buffer is not None:
        return kind, stored.buffer
    if stored.dtype.kind in "OUS":
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in constant.values.flat]
        return kind, repr(texts).encode()
    return kind, raw_bytes(constant.values)
