"""An opset raised inside a pass, and the proof that the raised model computes the same.

A lossy pass may need operators of a later opset. Raising is lossless, and is held to that by itself
before the pass goes on: a fault in it cannot hide behind the error that the pass may make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.clone import adopt, clone_graph
from onnxslim.graph.opset import raise_opset
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.passes import Context
from onnxslim.records import Change, PassResult, Skip


def raise_proven(model: Model, target: int, context: Context) -> tuple[Change, ...]:
    """Bring `model` to opset `target`, and prove the result against the model before.

    Shapes are inferred afterwards. Without `context.why_not_same` nothing is proven.

    Args:
        model: the model to raise; left as it is when that is declined.
        target: the opset to reach.
        context: of the pass; its model computes the same as `model`.

    Returns:
        The nodes whose form changed; () where the opset was high enough or no node changed.

    Raises:
        NotApplicable: the engine takes no such opset; the model cannot be raised, is refused by
            onnxruntime at the later opset, or returns something else there; the message says which.
    """
    before = model.graph.opset_of("")
    if before is not None and before >= target:
        return ()
    most = context.engine.opsets.most
    if target > most:
        raise NotApplicable(
            f"its opset is {before}, and the target {context.engine.name} takes none above {most}"
        )
    infer_shapes(model)
    raised = model.clone()
    try:
        changes = raise_opset(raised.graph, target)
    except NotApplicable as reason:
        raise NotApplicable(
            f"its opset is {before} and cannot be raised to {target}: {reason}"
        ) from reason
    raised.has_shapes = False
    if context.why_not_same is not None:
        with context.progress.step(f"comparing outputs at opset {target}"):
            why = context.why_not_same(context.model or model, raised)
        if why is not None:
            raise NotApplicable(
                f"its opset is {before} and cannot be raised to {target}: raised, it {why}"
            )
    adopt(model.graph, raised.graph)
    model.has_shapes = False
    infer_shapes(model)
    return changes


def raise_for(model: Model, target: int, needs: str, context: Context) -> Change | None:
    """As `raise_proven`, for a pass that needs the opset.

    Args:
        model: the model to raise.
        target: the opset to reach.
        needs: what needs it, in words, in the plural.
        context: of the pass.

    Returns:
        The change in words; None where the opset was high enough.

    Raises:
        NotApplicable: as for `raise_proven`; the message says what needs the opset.
    """
    before = model.graph.opset_of("")
    if before is not None and before >= target:
        return None
    try:
        raise_proven(model, target, context)
    except NotApplicable as reason:
        raise NotApplicable(f"{needs} need opset {target}; {reason}") from reason
    return Change(model.graph.name, f"opset raised from {before} to {target}: {needs} need it")


def run_raised(
    graph: gs.Graph,
    context: Context,
    target: int,
    needs: str,
    run: Callable[[gs.Graph, Context], PassResult],
) -> PassResult:
    """What `run` does to `graph`, brought to opset `target` first where it is older.

    The graph stays as it is where it cannot be raised, which is said, and where `run` changes
    nothing.

    Args:
        graph: the graph to change.
        context: of the pass.
        target: the opset to reach.
        needs: what needs it, in words, in the plural.
        run: the pass, given a graph of that opset and a context with its model.
    """
    before = graph.opset_of("")
    if before is None or before >= target:
        return run(graph, context)
    copy = Model.of(clone_graph(graph)) if context.model is None else context.model.clone()
    try:
        raised = raise_for(copy, target, needs, context)
    except NotApplicable as reason:
        return PassResult(skips=(Skip(graph.name, str(reason)),))
    result = run(copy.graph, replace(context, model=context.model and copy))
    if not result.changed:
        return result
    adopt(graph, copy.graph)
    return replace(result, changes=(*([raised] if raised else ()), *result.changes))
