"""If, Loop and Scan. Only the branch that is taken runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxslim.runtime.training.operators.table import Body, Computation, NodeForm, operator


def _body(form: NodeForm, name: str) -> Body:
    assert form.bodies is not None
    return form.bodies[name]


@operator("If", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def _if(form: NodeForm) -> Computation:
    yes, no = _body(form, "then_branch"), _body(form, "else_branch")

    def run(condition: Tensor, *captured: Any) -> tuple[Any, ...]:
        return tuple((yes if bool(condition) else no).run(captured))

    return run


@operator("Loop", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def _loop(form: NodeForm) -> Computation:
    body = _body(form, "body")
    carried = body.inputs - 2
    scanned = len(form.node.attrs["body"].outputs) - 1 - carried
    first = body.captured[0] if body.captured else None

    def run(*values: Any) -> tuple[Any, ...]:
        own, captured = (values, ()) if first is None else (values[:first], values[first:])
        own = (*own, *[None] * (2 + carried - len(own)))
        most = None if own[0] is None else int(own[0])
        goes_on = True if own[1] is None else bool(own[1])
        state, rows = list(own[2:]), [[] for _ in range(scanned)]  # type: list[Any], list[list[Any]]
        number = 0
        while goes_on and (most is None or number < most):
            start = [torch.tensor(number), torch.tensor(True)]
            found = body.run([*start, *state, *captured])
            goes_on = bool(found[0])
            state = found[1 : 1 + carried]
            for row, value in zip(rows, found[1 + carried :], strict=True):
                row.append(value)
            number += 1
        return (*state, *(torch.stack(row) if row else torch.zeros(0) for row in rows))

    return run
