"""What a target does not take of a graph, node by node; nothing is edited here.

Each trait of the table has a finder, which is the only place that says what the trait looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.counts import constants_of
from onnxslim.graph.ir import (
    MICROSOFT_DOMAIN,
    Graph,
    Node,
    StoredSparse,
    node_label,
    to_numpy_dtype,
    walk_graphs,
)
from onnxslim.graph.local_functions import call_key, calls, function_name
from onnxslim.graph.operands import const_value, is_present
from onnxslim.pipeline.targets import TargetEngine, Trait

FOUR_BIT_TYPES: Final = frozenset(
    to_numpy_dtype(kind) for kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
)
_CODES: Final = FOUR_BIT_TYPES | {np.dtype(name) for name in ("int8", "uint8", "int16", "uint16")}
_QUANTIZING: Final = ("QuantizeLinear", "DequantizeLinear")
_RUN_TIME: Final = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_HALF: Final = np.dtype(np.float16)
_STANDARD: Final = ("", "ai.onnx")
_STAYING: Final = (Trait.CONTRIB, Trait.BRANCHES, Trait.OPEN_SHAPES)


@dataclass(frozen=True)
class Obstacle:
    """One thing that a target does not take.

    Attributes:
        where: name of the node, tensor or function.
        what: what stands there, in words.
        trait: of the table; None: its opset, or an operator that the engine lacks.
    """

    where: str
    what: str
    trait: Trait | None = None

    @property
    def is_replaceable(self) -> bool:
        """Whether `retarget` has another form for such a thing, as a rule."""
        return self.trait is not None and self.trait not in _STAYING

    def __str__(self) -> str:
        """`name`: what stands there."""
        return f"`{self.where}`: {self.what}"


def obstacles(graph: Graph, target: TargetEngine) -> Iterator[Obstacle]:
    """What of `graph` and its bodies the target does not take, by trait in the order of the table.

    Args:
        graph: the main graph, with inferred types as far as float16 is to be found.
        target: the engine.
    """
    if target.is_default:
        return
    for trait in Trait:
        if not target.takes(trait):
            yield from of_trait(graph, trait)
    yield from _opset(graph, target)
    for node in _nodes(graph):
        if (node.domain or "") in _STANDARD and node.op in target.missing:
            yield Obstacle(node_label(node), f"{target.name} has no {node.op}")


def of_trait(graph: Graph, trait: Trait) -> Iterator[Obstacle]:
    """Where `graph` or a body of it has a trait."""
    for where, what in _FINDERS[trait](graph):
        yield Obstacle(where, what, trait)


def _nodes(graph: Graph) -> Iterator[Node]:
    for current in walk_graphs(graph):
        yield from current.nodes


def _standard(graph: Graph, *ops: str) -> Iterator[Node]:
    return (n for n in _nodes(graph) if n.op in ops and (n.domain or "") in _STANDARD)


# ---------------------------------------------------------------------------- finders

_Found = Iterable[tuple[str, str]]


def _functions(graph: Graph) -> _Found:
    for key, nodes in calls(graph, with_own=True).items():
        many = f", and {len(nodes) - 1} nodes more" if len(nodes) > 1 else ""
        yield node_label(nodes[0]), f"calls the local function {function_name(key)}{many}"


def decoders(graph: Graph) -> Iterator[Node]:
    """The nodes that read codes and are part of what computes a weight, calls included."""
    local = calls(graph, with_own=True)
    for node in _nodes(graph):
        if not any(map(is_coded_constant, node.inputs)):
            continue
        if (node.domain or "") not in _STANDARD:
            if call_key(node) in local:
                yield node
        elif node.op not in (*_QUANTIZING, *_RUN_TIME) and not node.op.startswith("QLinear"):
            yield node


def _decoders(graph: Graph) -> _Found:
    return ((node_label(n), f"{n.op} reads codes of a weight") for n in decoders(graph))


def is_coded_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant of integers of 16 bits or fewer, as codes are."""
    value = const_value(tensor)
    return value is not None and value.dtype in _CODES


def _sparse(graph: Graph) -> _Found:
    for current in walk_graphs(graph):
        for constant in constants_of(current):
            if isinstance(constant.stored, StoredSparse):
                yield constant.name, "is a sparse initializer"
        for node in current.nodes:
            if node.op == "Constant" and "sparse_value" in node.attrs:
                yield node_label(node), "is a sparse constant"


def is_matmul_nbits(node: Node) -> bool:
    """Whether a node is onnxruntime's MatMulNBits."""
    return bool(node.op == "MatMulNBits" and node.domain == MICROSOFT_DOMAIN)


def _matmul_nbits(graph: Graph) -> _Found:
    return ((node_label(n), "is a MatMulNBits") for n in _nodes(graph) if is_matmul_nbits(n))


def _matmul_8bits(graph: Graph) -> _Found:
    for node in _nodes(graph):
        if is_matmul_nbits(node) and int(node.attrs.get("bits", 4)) == 8:
            yield node_label(node), "is a MatMulNBits of 8 bits"


def _contrib(graph: Graph) -> _Found:
    local = calls(graph, with_own=True)
    for node in _nodes(graph):
        is_other = (node.domain or "") not in _STANDARD and not is_matmul_nbits(node)
        if is_other and call_key(node) not in local:
            yield node_label(node), f"is a {node.domain}.{node.op}"


def _four_bits(graph: Graph) -> _Found:
    for node in _nodes(graph):
        for tensor in node.inputs:
            value = const_value(tensor)
            if value is not None and value.dtype in FOUR_BIT_TYPES:
                yield tensor.name, "has codes of 4 bits"


def block_size(node: Node) -> int:
    """The block of a DequantizeLinear along its axis; 0 where it has none."""
    return int(node.attrs.get("block_size", 0)) if node.op == "DequantizeLinear" else 0


def _blocked(graph: Graph) -> Iterator[tuple[Node, int, int]]:
    """DequantizeLinear nodes in blocks, with their axes and the length of these."""
    for node in _standard(graph, "DequantizeLinear"):
        value = const_value(node.inputs[0])
        if block_size(node) and value is not None:
            axis = int(node.attrs.get("axis", 1)) % len(value.shape)
            yield node, axis, int(value.shape[axis])


def _uneven(graph: Graph) -> _Found:
    for node, axis, length in _blocked(graph):
        if length % block_size(node):
            what = f"has blocks of {block_size(node)} on axis {axis} of {length}"
            yield node.inputs[0].name, what


def is_odd_block(block: int) -> bool:
    """Whether kernels that take codes by four, or by 32, read codes with this block wrong.

    OpenVINO 2026.4.1 does so without a word: 4-bit codes are right in even blocks up to 32 and in
    multiples of 32, 8-bit codes in multiples of 4.
    """
    return block % 4 > 0 or (block > 32 and block % 32 > 0)


def _odd_blocks(graph: Graph) -> _Found:
    for node, axis, _ in _blocked(graph):
        if is_odd_block(block_size(node)):
            yield node.inputs[0].name, f"has blocks of {block_size(node)} on axis {axis}"


def _blocks(graph: Graph) -> _Found:
    for node, axis, _ in _blocked(graph):
        if code_type(node) not in FOUR_BIT_TYPES:
            yield node.inputs[0].name, f"has a scale for each {block_size(node)} on axis {axis}"


def _int8(graph: Graph) -> _Found:
    for node in _standard(graph, *_QUANTIZING):
        if code_type(node) not in FOUR_BIT_TYPES:
            yield node_label(node), f"is a {node.op}"


def zero_point_of(node: Node) -> np.ndarray | None:
    """The constant zero points of a QuantizeLinear or DequantizeLinear; None where it has none."""
    value = const_value(node.inputs[2]) if is_present(node, 2) else None
    if value is None:
        return None
    return value if isinstance(value, np.ndarray) else np.asarray(value.load())


def _zero_points(graph: Graph) -> _Found:
    for node in _standard(graph, *_QUANTIZING):
        zero = zero_point_of(node)
        is_computed = zero is None and is_present(node, 2)
        if is_computed or (zero is not None and zero.astype(np.int64).any()):
            yield node_label(node), f"{node.op} has zero points other than 0"


def code_type(node: Node) -> np.dtype[np.generic] | None:
    """The type of the codes of a QuantizeLinear or DequantizeLinear, as far as it is written."""
    zero = zero_point_of(node)
    if zero is not None:
        return zero.dtype
    if node.op == "QuantizeLinear":
        wanted = int(node.attrs.get("output_dtype", 0))
        return to_numpy_dtype(wanted) if wanted else np.dtype(np.uint8)
    dtype = node.inputs[0].dtype
    return None if dtype is None else np.dtype(dtype)


def _unsigned(graph: Graph) -> _Found:
    for node in _standard(graph, *_QUANTIZING):
        dtype = code_type(node)
        if dtype is not None and dtype.name.startswith("uint"):
            yield node_label(node), f"{node.op} has codes of type {dtype.name}"


def _integer_biases(graph: Graph) -> _Found:
    for node in _standard(graph, "DequantizeLinear"):
        value = const_value(node.inputs[0])
        if value is not None and value.dtype == np.int32:
            yield node_label(node), "is computed from 32-bit codes"


def _run_time(graph: Graph) -> _Found:
    return ((node_label(n), f"is a {n.op}") for n in _standard(graph, *_RUN_TIME))


def _branches(graph: Graph) -> _Found:
    return ((node_label(node), "is an If") for node in _standard(graph, "If"))


def _open_shapes(graph: Graph) -> _Found:
    for tensor in graph.inputs:
        if tensor.shape is None or not all(isinstance(size, int) for size in tensor.shape):
            yield tensor.name, "is an input whose sizes are open"


def computes_in_half(node: Node) -> bool:
    """Whether an operator computes in float16; a Cast and a Constant do not."""
    if node.op in ("Cast", "Constant", "CastLike") or (node.domain or "") not in _STANDARD:
        return False
    tensors = (*node.inputs, *node.outputs)
    return any(t.name and t.dtype is not None and t.dtype == _HALF for t in tensors)


def _float16(graph: Graph) -> _Found:
    for node in _nodes(graph):
        if computes_in_half(node):
            yield node_label(node), f"{node.op} computes in float16"


_FINDERS: Final[Mapping[Trait, Callable[[Graph], _Found]]] = {
    Trait.FUNCTIONS: _functions,
    Trait.DECODERS: _decoders,
    Trait.SPARSE: _sparse,
    Trait.MATMUL_NBITS: _matmul_nbits,
    Trait.MATMUL_8BITS: _matmul_8bits,
    Trait.CONTRIB: _contrib,
    Trait.FOUR_BITS: _four_bits,
    Trait.UNEVEN_BLOCKS: _uneven,
    Trait.ODD_BLOCKS: _odd_blocks,
    Trait.BLOCKS: _blocks,
    Trait.INT8: _int8,
    Trait.ZERO_POINTS: _zero_points,
    Trait.UNSIGNED: _unsigned,
    Trait.INTEGER_BIASES: _integer_biases,
    Trait.RUN_TIME_RANGES: _run_time,
    Trait.BRANCHES: _branches,
    Trait.OPEN_SHAPES: _open_shapes,
    Trait.FLOAT16: _float16,
}


def _opset(graph: Graph, target: TargetEngine) -> Iterator[Obstacle]:
    opset, allowed = graph.opset_of(""), target.opsets
    if opset is not None and not allowed.least <= opset <= allowed.most:
        what = f"opset {opset}; {target.name} takes {allowed.least} to {allowed.most}"
        yield Obstacle(str(graph.name), what)
