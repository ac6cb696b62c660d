"""The opset that a file declares, as low as its operators allow, or as high as a target needs."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from onnxslim.errors import NotApplicable
from onnxslim.graph.ir import Graph, walk_graphs
from onnxslim.graph.local_functions import calls_of
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.raising import raise_proven
from onnxslim.pipeline.targets import TargetEngine
from onnxslim.records import Change, PassResult, Skip

_STANDARD = ("", "ai.onnx")


def lowered_opset(graph: Graph, target: TargetEngine) -> PassResult:
    """Declare the highest opset that the target takes, where every operator is the same there."""
    opset, most = graph.opset_of(""), target.opsets.most
    if opset is None or opset <= most:
        return PassResult()
    ops = {n.op for g in walk_graphs(graph) for n in g.nodes if (n.domain or "") in _STANDARD}
    functions = (op for f in graph.local_functions for domain, op, _ in calls_of(f.node)
                 if domain in _STANDARD)  # fmt: skip
    changed = sorted(_changed_since((*ops, *functions), opset, most))
    if changed:
        why = f"{', '.join(changed)} changed after opset {most}, the last that {target.name} takes"
        return PassResult(skips=(Skip(str(graph.name), why),))
    entries = [
        helper.make_opsetid(entry.domain, most) if entry.domain in _STANDARD else entry
        for entry in graph.import_domains
    ]
    for current in walk_graphs(graph):
        current.opset, current.import_domains = most, entries
    for index, function in enumerate(graph.local_functions):
        graph.local_functions[index] = _lowered_function(function, most)
    what = f"opset {opset} is declared as {most}: every operator is the same in both"
    return PassResult((Change(str(graph.name), what),))


def _changed_since(ops: Iterable[str], opset: int, most: int) -> set[str]:
    found = set()
    for op in ops:
        try:
            since = onnx.defs.get_schema(op, opset, "").since_version
        except onnx.defs.SchemaError:
            since = opset
        if since > most:
            found.add(op)
    return found


def _lowered_function(function: onnx.FunctionProto, most: int) -> onnx.FunctionProto:
    made = onnx.FunctionProto()
    made.CopyFrom(function)
    for entry in made.opset_import:
        if entry.domain in _STANDARD:
            entry.version = min(entry.version, most)
    return made


def raised_opset(model: Model, least: int, context: Context) -> PassResult:
    """Raise the opset of a model to the first that a target takes, with proof."""
    opset = model.graph.opset_of("")
    if opset is None or opset >= least:
        return PassResult()
    try:
        changes = raise_proven(model, least, context)
    except NotApplicable as reason:
        return PassResult(skips=(Skip(str(model.graph.name), str(reason)),))
    what = f"opset raised from {opset} to {least}"
    return PassResult((Change(str(model.graph.name), what), *changes))
