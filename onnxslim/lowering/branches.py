"""If without an If: both branches are computed, and Where takes the outputs of one.

What the branch that does not count computes is thrown away, so it may be anything but a failure:
outputs of both branches need the same type, which Where selects from, and the same shape, as a
branch that is only right for other inputs (a Squeeze where an axis is 1) shows by another one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.graph.ir import Graph, Node, node_label
from onnxslim.graph.rewrite import Rewriter

_SELECTED: Final = frozenset(
    np.dtype(name) for name in ("float32", "float64", "int32", "int64", "uint8")
)
_WHERE_SINCE: Final = 9


def join_branches(rw: Rewriter) -> None:
    """Replace every If that can be, inner ones first."""
    for node in reversed(list(rw.walk("If"))):
        why = _objection(rw, node)
        if why is not None:
            rw.skip(node, why)
            continue
        _join(rw, node)


def _objection(rw: Rewriter, node: Node) -> str | None:
    """Why both branches cannot be computed; None: they can."""
    if rw.opset < _WHERE_SINCE:
        return f"the model has opset {rw.opset}, which has no Where"
    yes, no = _branches(node)
    for result, one, other in zip(node.outputs, yes.outputs, no.outputs, strict=True):
        if one.dtype != other.dtype or one.dtype not in _SELECTED:
            return f"`{result.name}` has a type that Where does not select from"
        if one.shape is None or list(one.shape) != list(other.shape or ()) or None in one.shape:
            return f"its branches may return `{result.name}` in different shapes"
    return None


def _branches(node: Node) -> tuple[Graph, Graph]:
    return node.attrs["then_branch"], node.attrs["else_branch"]


def _join(rw: Rewriter, node: Node) -> None:
    condition, count = node.inputs[0], len(node.outputs)
    what = "both branches are computed, and Where takes the outputs of one"
    found = []
    for body in _branches(node):
        # an If of its own, whose outputs the nodes of the branch take over
        made = rw.insert(
            node, "If", [condition], {"then_branch": body}, name="branch", outputs=count
        )
        for new, result in zip(made, body.outputs, strict=True):
            new.dtype, new.shape = result.dtype, result.shape
        found.append(made)
    results = []
    for result, one, other in zip(node.outputs, *found, strict=True):
        selected = condition
        if not one.shape and condition.shape != []:  # [1] would give a scalar an axis
            shape = rw.constant(np.array([], np.int64), f"{result.name}_scalar")
            (selected,) = rw.insert(
                *(node, "Reshape", [condition, shape]),
                name=f"{result.name}_condition",
                dtype=np.dtype(bool),
                shape=[],
            )
        results += rw.insert(
            *(node, "Where", [selected, one, other]),
            name=str(result.name),
            dtype=one.dtype,
            shape=one.shape,
        )
    for made, body in zip(found, _branches(node), strict=True):
        (carrier,) = made[0].inputs
        made[0].name = node_label(node)  # by which the report calls it, until it is gone
        rw.inline(carrier, body, [], what)
    rw.replace(node, results, what)
