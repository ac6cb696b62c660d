"""What a file says, held against `limits` before a graph is made of it or shapes are inferred."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final

import onnx

from onnxslim.errors import ModelError
from onnxslim.limits import MOST_LIST_ENTRIES


def check_lists(nodes: Iterable[onnx.NodeProto]) -> None:
    """Refuse attributes that are longer than any operator reads.

    Raises:
        ModelError: one is; with its node.
    """
    for node in nodes:
        for attribute in node.attribute:
            entries = max(len(attribute.ints), len(attribute.floats), len(attribute.strings))
            if entries > MOST_LIST_ENTRIES and node.op_type != "Constant":
                label = node.name or next(iter(node.output), "")
                raise ModelError(
                    f"Attribute `{attribute.name}` of node `{label}` "
                    f"({node.op_type}) has {entries:,} entries; {MOST_LIST_ENTRIES:,} are taken "
                    "at most."
                )
            for body in (attribute.g, *attribute.graphs):
                check_lists(body.node)


HIDDEN: Final = "onnxslim.hidden"
"""The domain of operators that shape inference is not to look at."""
_ANSWERS = frozenset({"Shape", "Size", "Constant"})
"""Operators whose values it knows, whatever their inputs."""


@cache
def _followed() -> frozenset[str]:
    """Operators whose values shape inference computes, where those of their inputs are known."""
    return frozenset(
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.has_data_propagation_function
    )


def hide_unfollowed(graph: onnx.GraphProto, outer: tuple[set[str], ...] = ()) -> bool:
    """Hide the nodes whose values shape inference would write out without knowing them.

    It makes an entry for each element of a one-dimensional tensor that such a node reads: for the
    Range of 2^40 in a file of 100 bytes, terabytes. Shapes of tensors that inference can only see
    through such a node get lost.

    Args:
        graph: edited: such nodes get a domain that nobody knows. Bodies are edited, too.
        outer: for each graph around this one the names of tensors whose values inference knows.

    Returns:
        Whether there were such nodes.
    """
    names = {tensor.name for tensor in graph.initializer}
    scopes = (names, *outer)  # not one set: it would be copied for every body
    followed, found = _followed(), False
    for node in graph.node:
        if node.op_type in _ANSWERS or (
            node.op_type in followed and all(_is_known(name, scopes) for name in node.input)
        ):
            names.update(node.output)
        elif node.op_type in followed and node.domain == "":
            node.domain = HIDDEN
            found = True
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else []
            for body in (*bodies, *attribute.graphs):
                found |= hide_unfollowed(body, scopes)
    return found


def _is_known(name: str, scopes: tuple[set[str], ...]) -> bool:
    return not name or any(name in names for names in scopes)
