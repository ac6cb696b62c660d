"""Inner tensors that a student shares with its teachers, to be matched as outputs are.

Romero et al. 2014, arXiv:1412.6550 (FitNets). We differ: tensors of one name and shape are matched
as they are, without a layer between.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.errors import UsageError
from onnxslim.graph.ir import Variable
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.patterns import matches
from onnxslim.pipeline.suggest import did_you_mean


def shared_tensors(models: Sequence[Model], patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of float tensors that all models compute, by shell patterns.

    Tensors of different shapes do not count, and outputs are matched anyway.

    Raises:
        UsageError: a pattern matches none.
    """
    if not patterns:
        return ()
    tables = [_tensors(model) for model in models]
    known = [
        name
        for name, tensor in tables[0].items()
        if all(name in table and table[name].shape == tensor.shape for table in tables[1:])
    ]
    found: dict[str, None] = {}
    for pattern in patterns:
        own = [name for name in known if matches(name, pattern)]
        if not own:
            raise UsageError(
                f"`features` names `{pattern}`, which is no inner tensor of one shape in the model "
                f"and its teacher.{did_you_mean(pattern.strip('*?'), known)}"
            )
        found |= dict.fromkeys(own)
    return tuple(found)


def returning(model: Model, names: Sequence[str]) -> Model:
    """A copy of `model` that returns the named tensors, too."""
    if not names:
        return model
    copy = model.clone()
    infer_shapes(copy)
    tensors = _tensors(copy)
    copy.graph.outputs = [*copy.graph.outputs, *(tensors[name] for name in names)]
    return copy


def _tensors(model: Model) -> dict[str, Variable]:
    """The float tensors that the nodes of the main graph compute, without the outputs."""
    infer_shapes(model)
    outputs = {id(tensor) for tensor in model.graph.outputs}
    return {
        str(tensor.name): tensor
        for node in model.graph.nodes
        if node.inputs
        for tensor in node.outputs
        if tensor.name
        and id(tensor) not in outputs
        and tensor.dtype is not None
        and tensor.dtype.kind == "f"
    }
