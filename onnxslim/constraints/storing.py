"""New values for stored weights, written into a graph in the form that they have there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxslim.codebook.sparse import with_values
from onnxslim.constraints.read import Constraints
from onnxslim.constraints.stored import (
    BiasWeight,
    GridWeight,
    LeafWeight,
    LookupWeight,
    ScaleWeight,
)
from onnxslim.graph.ir import Constant, StoredSparse
from onnxslim.graph.operands import content
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Fidelity


def stored_tensors(constraints: Constraints) -> dict[str, tuple[Constant, tuple[str, ...]]]:
    """What holds each stored tensor that may get new values, with the labels of its readers."""
    found: dict[str, tuple[Constant, tuple[str, ...]]] = {}
    for item in constraints.weights:
        pairs: list[tuple[str, Constant]] = []
        if isinstance(item, LeafWeight | GridWeight | BiasWeight):
            pairs.append((item.name, item.holder))
        if isinstance(item, ScaleWeight):
            pairs += item.twins
        if isinstance(item, LookupWeight):
            pairs += item.planes
        if isinstance(item, BiasWeight):
            pairs.append((item.scale, item.scales))
        found |= {name: (holder, item.readers) for name, holder in pairs}
    return found


def store_values(rw: Rewriter, constraints: Constraints, values: Mapping[str, np.ndarray]) -> None:
    """Give stored tensors new values, by name; what is stored sparse stays sparse.

    Args:
        rw: of the graph that `constraints` were read from; it logs a change for each tensor.
        constraints: its weights.
        values: of the shapes and types that are stored.
    """
    holders = stored_tensors(constraints)
    for name, array in values.items():
        holder, readers = holders[name]
        stored = holder.stored
        array.flags.writeable = False
        new = with_values(stored, array) if isinstance(stored, StoredSparse) else array
        rw.set_values(holder, new)
        label = readers[0] if readers else name
        rw.note(label, f"`{name}` learned: {array.size:,} stored values", Fidelity.LOSSY)


def are_equal(first: Constraints, second: Constraints) -> bool:
    """Whether two graphs store the same weights, to the bit."""
    own, others = stored_tensors(first), stored_tensors(second)
    return own.keys() == others.keys() and all(
        content(holder) == content(others[name][0]) for name, (holder, _) in own.items()
    )
