"""Operators with bodies, and calls of local functions: the rest of the table of operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from random_graphs import LOCAL_DOMAIN, Scope, Unfit, Value
from random_operators import OPERATORS, draws

_MOST_BODIES = 2  # one inside another
SIMPLE = (
    "Add", "Mul", "Relu", "Sigmoid", "Identity", "Transpose", "MatMul", "Concat", "Slice", "Cast",
    "Reshape", "Sub", "Clip", "Unsqueeze", "Gather", "Where", "Shape", "ReduceMean", "Neg", "Tanh",
    "Div", "Max", "Conv", "Expand", "Squeeze", "Equal",
)  # fmt: skip
"""Operators that bodies are mostly made of."""


def _depth(s: Scope) -> int:
    return 0 if s.outer is None else 1 + _depth(s.outer)


def _body(s: Scope, inputs: Sequence[tuple[str, Any]] = ()) -> Scope:
    """An empty body of a node of `s`, whose inputs hold these values at first."""
    if _depth(s) >= _MOST_BODIES:
        raise Unfit
    body = Scope(s.rng, s.opset, s.functions, s, f"b{_depth(s)}_", is_function=s.is_function)
    body.inputs = [Value(name, array) for name, array in inputs]
    body.values = list(body.inputs)
    return body


def fill(s: Scope, steps: int, ops: Sequence[str] = SIMPLE) -> None:
    """Draw so many operators, each where it fits."""
    for _ in range(steps):
        op = s.one(*ops) if s.often(0.9) else s.one(*OPERATORS)
        try:
            OPERATORS[op](s, op)
        except Unfit:
            continue


def _like(s: Scope, wanted: Value) -> Value:
    """The last value of the graph that has the type and shape of `wanted`, made where none has."""
    for value in reversed(s.values):
        if value.kind == wanted.kind and value.shape == wanted.shape and value not in s.inputs:
            return value
    if isinstance(wanted.array, list):
        raise Unfit
    known = [v for v in s.visible() if v.kind == wanted.kind and v.shape == wanted.shape]
    return s.add("Identity", s.one(*known)) if known else s.constant(wanted.array)


def _graph(body: Scope, outputs: Sequence[Value], name: str) -> onnx.GraphProto:
    rankless = body.often(0.3)
    declared = [value.declared() for value in outputs]
    for info in declared if rankless else ():
        info.type.tensor_type.ClearField("shape")
    return helper.make_graph(
        body.nodes,
        name,
        [value.declared(value.shape) for value in body.inputs],
        declared,
        [numpy_helper.from_array(value.array, value.name) for value in body.initializers],
    )


@draws("If")
def if_(s: Scope, op: str) -> None:
    """Branches that read values from outside; the condition is constant, an input, or computed."""
    branches = [_body(s), _body(s)]
    for branch in branches:
        fill(branch, s.rng.randint(0, 3))
    first, second = branches
    made = [value for value in first.values if not isinstance(value.array, list)]
    wanted = made[-1] if made else s.take("Identity")
    outputs = [_like(first, wanted), _like(second, wanted)]
    if s.often(0.2):
        # other sizes in one branch: the size of the output depends on data
        others = [v for v in second.values if v.kind == wanted.kind and v.rank == wanted.rank]
        outputs[1] = others[-1] if others else outputs[1]
    known = [v for v in s.visible() if v.kind == "tensor(bool)" and v.array.size == 1]
    condition = s.one(*known) if known else s.made(np.array(s.often(), bool))
    graphs = [
        _graph(branch, [output], f"branch{index}")
        for index, (branch, output) in enumerate(zip(branches, outputs, strict=True))
    ]
    s.append(op, "", [condition], 1, {"then_branch": graphs[0], "else_branch": graphs[1]})


@draws("Loop")
def loop(s: Scope, op: str) -> None:
    """A state that each turn changes, and often a value that each turn gives."""
    state = s.floats("Identity")
    body = _body(
        s,
        [
            ("turn", np.array(0, np.int64)),
            ("go", np.array(True)),
            ("state", state.array),
        ],
    )
    body.focus = body.inputs[2]
    fill(body, s.rng.randint(1, 4))
    ends = body.add("Identity", body.inputs[1])
    outputs = [ends, _like(body, state)]
    count = s.one(0, 1, 2, 3)
    # how large a list without entries is, depends on what onnxruntime infers
    scanned = count > 0 and s.often()
    if scanned:
        outputs.append(body.add("Identity", outputs[1]))
    trips = s.made(np.array(count, np.int64))
    go = s.constant(np.array(True)) if s.often(0.7) else None
    graph = _graph(body, outputs, "turns")
    s.append(op, "", [trips, go, state], 2 if scanned else 1, {"body": graph})


@draws("Scan")
def scan(s: Scope, op: str) -> None:
    """A sum along the first axis, changed in each step."""
    if s.opset < 9:
        raise Unfit
    x = s.take("Relu", 0, lambda v: v.is_float and v.rank >= 2 and 0 not in v.shape)
    start = s.made(np.zeros(x.shape[1:], x.dtype))
    body = _body(s, [("sum", start.array), ("item", x.array[0])])
    total = body.add("Add", *body.inputs)
    body.focus = total
    fill(body, s.rng.randint(0, 3))
    result = _like(body, total)
    item = body.add("Identity", result)
    graph = _graph(body, [result, item], "steps")
    s.append(op, "", [start, x], 2, {"body": graph, "num_scan_inputs": 1})


@draws("SequenceMap")
def sequence_map(s: Scope, op: str) -> None:
    x = s.take("Relu", 0, lambda v: v.is_float and v.rank > 0 and 0 < v.shape[0] < 6)
    parts = s.add("SplitToSequence", x, axis=0)
    body = _body(s, [("item", parts.array[0])])
    graph = _graph(body, [body.add("Relu", body.inputs[0])], "each")
    mapped = s.append(op, "", [parts], 1, {"body": graph})[0]
    s.add("SequenceAt", mapped, s.constant(np.array(0, np.int64)))


def call(s: Scope) -> None:
    """Call a function that is there, or a new one of a few nodes."""
    if s.is_function or s.outer is not None:
        raise Unfit
    x = s.floats("Identity")
    if s.functions and s.often():
        function = s.one(*s.functions)
        s.append(function.name, LOCAL_DOMAIN, [x], len(function.output), {})
        return
    inner = Scope(s.rng, s.opset, [], None, "f", is_function=True)
    inner.values = inner.inputs = [Value("in", x.array)]
    inner.values = list(inner.inputs)
    inner.focus = inner.inputs[0]
    fill(inner, s.rng.randint(1, 4))
    made = [v for v in inner.values[1:] if not v.is_constant and not isinstance(v.array, list)]
    if not made:
        raise Unfit
    outputs = [made[-1], *(made[:1] if len(made) > 1 and s.often(0.3) else [])]
    function = helper.make_function(
        LOCAL_DOMAIN,
        f"F{len(s.functions)}",
        ["in"],
        [value.name for value in outputs],
        inner.nodes,
        [helper.make_opsetid("", s.opset)],
    )
    s.functions.append(function)
    try:
        s.append(function.name, LOCAL_DOMAIN, [x], len(outputs), {})
    except Unfit:
        s.functions.pop()
        raise
