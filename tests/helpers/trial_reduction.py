"""Make a failing trial small: drop what can be dropped as long as it fails in the same way.

Delta debugging (A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input",
2002) on steps of the pipeline, inputs to run on, outputs, nodes, sizes, and what nothing reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from random_graphs import names_read, quiet_options
from rewrite_trials import Failure, Refused, Trial

from onnxslim.passes.simplify import MEMBERS

_SECONDS: Final = 20.0
Model = onnx.ModelProto


def reduced(trial: Trial, failure: Failure, seconds: float = _SECONDS) -> tuple[Trial, Failure]:
    """The smallest trial found in so many seconds that fails as `trial` does."""
    end = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for step in (_pipelines, _feeds, _cut_outputs, _models):
            for candidate in step(trial):
                if time.monotonic() > end:
                    break
                found = _fails_alike(candidate, failure)
                if found is not None:
                    trial, progress = candidate, True
                    failure = found
                    break
    return trial, failure


def _fails_alike(candidate: Trial, failure: Failure) -> Failure | None:
    try:
        found = candidate.failure()
    except Refused:
        return None
    if found is None:
        return None
    same = _symptom(found) == _symptom(failure)
    return found if same else None


def _symptom(failure: Failure) -> str:
    """The kind without the pipeline."""
    return failure.kind.partition(": ")[2]


def _pipelines(trial: Trial) -> Iterator[Trial]:
    steps = trial.pipeline.split(",")
    if len(steps) > 1:
        for index in range(len(steps)):
            kept = [step for at, step in enumerate(steps) if at != index]
            yield replace(trial, pipeline=",".join(kept))
    if steps == ["simplify"]:
        for member in MEMBERS:
            yield replace(trial, pipeline=member)
        for first in MEMBERS:
            for second in MEMBERS:
                yield replace(trial, pipeline=f"{first},{second}")


def _feeds(trial: Trial) -> Iterator[Trial]:
    if trial.special:
        yield replace(trial, special=())
    if len(trial.feeds) > 1:
        for feed in trial.feeds:
            yield replace(trial, feeds=(feed,))
        yield replace(trial, feeds=trial.feeds[:2], special=())
        yield replace(trial, feeds=(trial.feeds[0], trial.feeds[-1]), special=())


# ----------------------------------------------------------------- the model


def _models(trial: Trial) -> Iterator[Trial]:
    model = Model.FromString(trial.model)
    values = _values(trial)
    for change in _changes(model, values):
        candidate = Model()
        candidate.CopyFrom(model)
        change(candidate)
        _drop_unread(candidate)
        yield _with_model(trial, candidate, values)


def _cut_outputs(trial: Trial) -> Iterator[Trial]:
    """One output alone, then one value inside as the only output: this cuts off all behind it."""
    model = Model.FromString(trial.model)
    values = _values(trial)
    given = [info.name for info in model.graph.output]
    inner = [name for node in model.graph.node for name in node.output if name in values]
    choices = [[name] for name in given] if len(given) > 1 else []
    choices += [[name] for name in inner if name not in given]
    if len(given) > 2:
        choices += [[other for other in given if other != name] for name in given]
    for names in choices:
        candidate = Model()
        candidate.CopyFrom(model)
        kept = [info for info in model.graph.output if info.name in names]
        del candidate.graph.output[:]
        candidate.graph.output.extend(kept)
        for name in names if not kept else ():
            candidate.graph.output.append(_declared(name, values[name]))
        size = len(candidate.graph.node)
        _drop_unread(candidate)
        if len(candidate.graph.node) < size or len(names) < len(given):
            yield _with_model(trial, candidate, values)


def _changes(model: Model, values: dict[str, Any]) -> Iterator[Callable[[Model], None]]:
    """Edits that each make the model smaller."""
    for position in reversed(range(len(model.graph.node))):
        yield from _node_changes(model.graph.node[position], position, values)
    for path in _bodies(model):
        for position in reversed(range(len(_body_at(model, path).node))):
            yield lambda m, at=path, p=position: _bypass_in_body(_body_at(m, at), p)
    if model.graph.value_info:
        yield lambda m: m.graph.ClearField("value_info")
    if any(node.name for node in model.graph.node):
        yield _without_names
    for index, info in enumerate(model.graph.input):
        if any(not dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim):
            yield lambda m, i=index: _fix_sizes(m, i, values)


def _node_changes(
    node: onnx.NodeProto, position: int, values: dict[str, Any]
) -> Iterator[Callable[[Model], None]]:
    """Edits that take one node out."""
    wanted = values.get(node.output[0])
    for name in node.input:
        if np.shape(values.get(name)) == np.shape(wanted) and name in values:
            yield lambda m, p=position, n=name: _bypass(m.graph, p, n)
    outputs = [values.get(name) for name in node.output if name]
    if node.op_type != "Constant" and all(isinstance(value, np.ndarray) for value in outputs):
        yield lambda m, p=position: _as_inputs(m, p, values)
        yield lambda m, p=position: _as_constants(m, p, values)


def _bypass(graph: onnx.GraphProto, position: int, name: str) -> None:
    """Put an operand of a node in the place of its first output."""
    output = graph.node[position].output[0]
    if any(info.name == output for info in graph.output):
        graph.node[position].CopyFrom(helper.make_node("Identity", [name], [output]))
    else:
        _rename_reads(graph, output, name)


def _bypass_in_body(body: onnx.GraphProto, position: int) -> None:
    if body.node[position].input:
        _bypass(body, position, body.node[position].input[0])
        return
    del body.node[position]


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_reads(attribute.g, old, new)


def _as_inputs(model: Model, position: int, values: dict[str, Any]) -> None:
    """Outputs of a node become inputs."""
    for name in filter(None, model.graph.node[position].output):
        model.graph.input.append(_declared(name, values[name]))
    del model.graph.node[position]


def _as_constants(model: Model, position: int, values: dict[str, Any]) -> None:
    """Outputs of a node become initializers."""
    if model.ir_version < 4:
        model.ir_version = 4
    for name in filter(None, model.graph.node[position].output):
        model.graph.initializer.append(numpy_helper.from_array(values[name], name))
    del model.graph.node[position]


def _without_names(model: Model) -> None:
    for node in model.graph.node:
        node.ClearField("name")


def _fix_sizes(model: Model, index: int, values: dict[str, Any]) -> None:
    info = model.graph.input[index]
    if info.name in values:
        info.CopyFrom(_declared(info.name, values[info.name]))


def _declared(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        return onnx.ValueInfoProto(name=name)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, list(value.shape))


def _bodies(model: Model) -> Iterator[tuple[tuple[int, int], ...]]:
    """The place of each body as node and attribute numbers from the main graph."""

    def inside(
        graph: onnx.GraphProto, path: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[tuple[int, int], ...]]:
        for at, node in enumerate(graph.node):
            for number, attribute in enumerate(node.attribute):
                if attribute.HasField("g"):
                    yield (*path, (at, number))
                    yield from inside(attribute.g, (*path, (at, number)))

    yield from inside(model.graph, ())


def _body_at(model: Model, path: tuple[tuple[int, int], ...]) -> onnx.GraphProto:
    graph = model.graph
    for node, attribute in path:
        graph = graph.node[node].attribute[attribute].g
    return graph


def _drop_unread(model: Model) -> None:
    """Drop nodes, initializers, inputs and functions that nothing reads."""
    graph = model.graph
    while True:
        read = {info.name for info in graph.output}
        read.update(name for node in graph.node for name in names_read(node))
        kept = [node for node in graph.node if read.intersection(node.output)]
        if len(kept) == len(graph.node):
            break
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)
    for items in (graph.initializer, graph.input):
        for index in reversed(range(len(items))):
            if items[index].name not in read:
                del items[index]
    called = {node.op_type for node in graph.node}
    for index in reversed(range(len(model.functions))):
        if model.functions[index].name not in called:
            del model.functions[index]


def _values(trial: Trial) -> dict[str, Any]:
    """Every value of the main graph for the first inputs."""
    model = Model.FromString(trial.model)
    feed = dict(trial.feeds[0])
    found: dict[str, Any] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    found |= feed
    known = {info.name for info in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"]
        )
        names = [item.name for item in session.get_outputs()]
        found |= dict(zip(names, session.run(None, feed), strict=True))
    except Exception:  # then only inputs and constants are known
        pass
    return found


def _with_model(trial: Trial, model: Model, values: dict[str, Any]) -> Trial:
    """The trial with another model, and values for the inputs that it has now."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [info.name for info in model.graph.input]

    def fitted(feed: Any) -> dict[str, Any]:
        found = {}
        for name in names:
            if name in feed:
                found[name] = feed[name]
            elif name not in constants and name in values:
                found[name] = values[name]
        return found

    return replace(
        trial,
        model=model.SerializeToString(),
        feeds=tuple(map(fitted, trial.feeds)),
        special=tuple(map(fitted, trial.special)),
    )
