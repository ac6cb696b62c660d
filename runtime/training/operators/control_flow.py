"""If, Loop, Scan and SequenceMap. Only the branch that is taken runs, and gets gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onnxslim.runtime.training.operators.table import Body, Computation, NodeForm, operator


def _body(form: NodeForm, name: str) -> Body:
    assert form.bodies is not None
    return form.bodies[name]


def _split(body: Body, values: Sequence[Any]) -> tuple[list[Any], Sequence[Any]]:
    """The inputs of the node itself, and the outer tensors that its bodies read."""
    if not body.captured:
        return list(values), ()
    return list(values[: body.captured[0]]), values[body.captured[0] :]


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
    scanned = form.node.attrs["body"].outputs[1 + carried :]

    def run(*values: Any) -> tuple[Any, ...]:
        own, captured = _split(body, values)
        own += [None] * (2 + carried - len(own))
        most = None if own[0] is None else int(own[0])
        goes_on = own[1] is None or bool(own[1])
        state = own[2:]
        rows: list[list[Any]] = [[] for _ in scanned]
        number = 0
        while goes_on and (most is None or number < most):
            start = [torch.tensor(number), torch.tensor(True)]
            found = body.run([*start, *state, *captured])
            goes_on, state = bool(found[0]), found[1 : 1 + carried]
            for row, value in zip(rows, found[1 + carried :], strict=True):
                row.append(value)
            number += 1
        stacked = (
            torch.stack(row) if row else _no_rows(tensor.shape, form)
            for row, tensor in zip(rows, scanned, strict=True)
        )
        return (*state, *stacked)

    return run


def _no_rows(shape: Sequence[int | str | None] | None, form: NodeForm) -> Tensor:
    """What a loop that never ran has collected, as far as its sizes are known."""
    sizes = [size if isinstance(size, int) else 0 for size in shape or ()]
    return torch.zeros(0, *sizes, dtype=form.dtype, device=form.device)


@operator("Scan", 9, 11, 16, 19, 21, 23, 24, 25)
def _scan(form: NodeForm) -> Computation:
    body, count = _body(form, "body"), form.integer("num_scan_inputs")
    carried = body.inputs - count
    scanned = len(form.node.attrs["body"].outputs) - carried
    axes = form.integers("scan_input_axes") or [0] * count
    backwards = form.integers("scan_input_directions") or [0] * count
    out_axes = form.integers("scan_output_axes") or [0] * scanned
    out_backwards = form.integers("scan_output_directions") or [0] * scanned

    def run(*values: Any) -> tuple[Any, ...]:
        own, captured = _split(body, values)
        state, sources = own[:carried], own[carried:]
        slices = [
            parts[::-1] if flips else parts
            for parts, flips in zip(
                (x.unbind(axis) for x, axis in zip(sources, axes, strict=True)),
                backwards,
                strict=True,
            )
        ]
        rows: list[list[Any]] = [[] for _ in range(scanned)]
        for parts in zip(*slices, strict=True):
            found = body.run([*state, *parts, *captured])
            state = found[:carried]
            for row, value in zip(rows, found[carried:], strict=True):
                row.append(value)
        ordered = (
            row[::-1] if flips else row for row, flips in zip(rows, out_backwards, strict=True)
        )
        stacked = (torch.stack(row, axis) for row, axis in zip(ordered, out_axes, strict=True))
        return (*state, *stacked)

    return run


@operator("SequenceMap", 17)
def _sequence_map(form: NodeForm) -> Computation:
    body, outputs = _body(form, "body"), len(form.node.outputs)

    def run(*values: Any) -> tuple[Any, ...]:
        own, captured = _split(body, values)
        rows: list[list[Any]] = [[] for _ in range(outputs)]
        for number in range(len(own[0])):
            given = [value[number] if isinstance(value, list) else value for value in own]
            for row, value in zip(rows, body.run([*given, *captured]), strict=True):
                row.append(value)
        return tuple(rows)

    return run
