"""Weights of float32 operators stored as float16, with a Cast that onnxruntime folds at load.

Owns: which constants are worth a Cast. Not here: operators that compute in float16 (see
`conversion`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, Node, StoredSparse, node_label, walk_graphs
from onnxslim.graph.moved_constants import final_readers, why_no_constant
from onnxslim.graph.operands import const_array, constant_node_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.precision.doubts import Doubts
from onnxslim.precision.operand_types import CAST_TO, FLOAT16, FLOAT32, positions_of
from onnxslim.precision.value_ranges import MATRICES, rounded_to_half
from onnxslim.records import Fidelity

_NODE_BYTES: Final = 48  # of a Cast in the file, without names

NodeFilter = Callable[[Node], bool]


def store_weights(
    rewriter: Rewriter, wanted: NodeFilter, twins: Mapping[gs.Tensor, gs.Tensor], doubts: Doubts
) -> None:
    """Store the constants that pay as float16; the rewriter logs why others do not fit.

    Args:
        rewriter: of the model.
        wanted: whether a node is selected; a constant is stored when all its readers are.
        twins: float16 versions of constants that are in the graph already.
        doubts: what is known of constants that do not fit as they are.
    """
    for tensor in list(storable(rewriter, wanted, twins)):
        why = doubts.objection(tensor, is_matrix=is_matrix(tensor))
        if why is not None:
            rewriter.skip(tensor.name, f"stays float32: it {why}")
            continue
        _store(rewriter, tensor, doubts, twins.get(tensor))
    for tensor in rewriter.main.inputs:
        why = why_no_constant(tensor)
        if why is not None and tensor.dtype is not None and np.dtype(tensor.dtype) == FLOAT32:
            rewriter.skip(tensor.name, f"it is {why}")


def storable(
    rewriter: Rewriter, wanted: NodeFilter, twins: Mapping[gs.Tensor, gs.Tensor]
) -> Iterator[gs.Tensor]:
    """The constants that selected nodes alone read, and that pay as float16, whatever they hold."""
    for tensor in dict.fromkeys(_constants(rewriter)):
        if all(map(wanted, tensor.outputs)) and _is_worth_it(tensor, has_twin=tensor in twins):
            yield tensor


def is_matrix(tensor: gs.Tensor) -> bool:
    """Whether products with a constant are all that is made of it."""
    return all(node.op in MATRICES for node in final_readers(tensor))


def stays_float32(rewriter: Rewriter, tensor: gs.Tensor, wanted: NodeFilter) -> bool:
    """Whether a large constant with float32 readers must be stored as float32."""
    is_open = _is_data(rewriter, tensor) and all(map(wanted, tensor.outputs))
    return not is_open and _is_worth_it(tensor, has_twin=True)


def _constants(rewriter: Rewriter) -> Iterator[gs.Tensor]:
    """The float32 constants that operators read only where the schema allows float16."""
    for graph in walk_graphs(rewriter.main):
        for node in list(graph.nodes):
            for tensor in node.inputs:
                if _is_constant(tensor) and _is_data(rewriter, tensor):
                    yield tensor


def _is_constant(tensor: gs.Tensor) -> bool:
    if isinstance(tensor, Constant):
        is_dense = not isinstance(tensor.stored, StoredSparse)
        return is_dense and np.dtype(tensor.dtype) == FLOAT32
    maker = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if maker is None or maker.op != "Constant" or not maker.is_onnx:
        return False
    value = constant_node_value(maker)
    is_dense = value is not None and not isinstance(value, StoredSparse)
    return is_dense and value is not None and np.dtype(value.dtype) == FLOAT32


def _is_data(rewriter: Rewriter, tensor: gs.Tensor) -> bool:
    """Whether the schema allows float16 at every use: the constant is a weight, no parameter."""
    if rewriter.is_output(tensor):
        return False
    opset = rewriter.opset
    return all(
        tensor is not read or index in positions
        for node, positions in ((n, positions_of(n, opset)) for n in dict.fromkeys(tensor.outputs))
        for index, read in enumerate(node.inputs)
    )


def _is_worth_it(tensor: gs.Tensor, *, has_twin: bool) -> bool:
    values = tensor if isinstance(tensor, Constant) else constant_node_value(tensor.inputs[0])
    assert values is not None
    saved = (4 if has_twin else 2) * int(values.size)
    return saved > _NODE_BYTES + 3 * len(tensor.name)


def _store(rewriter: Rewriter, tensor: gs.Tensor, doubts: Doubts, twin: gs.Tensor | None) -> None:
    values = const_array(tensor)
    assert values is not None
    exact = doubts.rounding(tensor).is_exact
    fidelity = Fidelity.EXACT if exact else Fidelity.LOSSY
    rounding = "without rounding" if exact else f"rounded to 11 bits{doubts.remark(tensor)}"
    what = f"{values.size:,} values stored as float16, {rounding}"
    attrs = {"to": CAST_TO[FLOAT32]}
    if twin is None and isinstance(tensor, Constant):
        twin = rewriter.constant(rounded_to_half(values), f"{tensor.name}_float16")
    elif twin is None:
        node = tensor.inputs[0]
        stored = Constant("", rounded_to_half(values))
        (twin,) = rewriter.insert(
            node,
            "Constant",
            [],
            {"value": stored},
            name=f"{node_label(node)}_float16",
            dtype=FLOAT16,
            shape=list(values.shape),
        )
    rewriter.replace_constant(tensor, "Cast", [twin], what, fidelity, attrs=attrs)
