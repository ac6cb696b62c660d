"""Keep the outputs right once some units are gone: the refit of the layers that read them.

Until the very end nothing is cut out. The columns of units that are gone are zero in the layers
that read them, which gives the outputs of the smaller graph and leaves every layer comparable with
that of the original model.

Owns: weights while units are gone but not yet cut out. Not here: the cut (see `cutting`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.channels.cutting import Removal
from onnxslim.channels.edits_operands import SliceOperand
from onnxslim.channels.groups import Channels
from onnxslim.channels.readers import ReaderColumns
from onnxslim.channels.units import indexable
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Problems, assign
from onnxslim.solvers.least_squares import refit

Mask = npt.NDArray[np.bool_]


def refit_readers(
    readers: ReaderColumns, problems: Problems, gone: Mask
) -> Iterator[tuple[str, float]]:
    """Give every reader the best weight whose columns for units that are gone are zero.

    Yields:
        The name of each layer and its relative output error.
    """
    leaves = indexable(gone)
    for problem in problems:
        names = [layer.name for layer in problem.layers if layer.name in readers.units]
        support = np.logical_and.reduce([~leaves[readers.units[name]] for name in names])
        if support.all() and not problem.has_data:
            continue
        parts = zip(problem.target, problem.metrics, support, strict=True)
        weight = np.stack([refit(target, metric, keeps) for target, metric, keeps in parts])
        assign(problems.rewriter, problem, weight)
        yield problem.name, problem.relative_error(weight)


def zero_removed(rewriter: Rewriter, channels: Channels, gone: Mask) -> None:
    """Make the values of the units that are `gone`, (units,), zero, until they are cut out.

    Needed where a product of two activations reads the units, which has no weights to set to zero.
    The layers that write the units get weights and biases of zero, and so do the constants that are
    added before the units are read.
    """
    removal = Removal(gone[channels.units.of])
    for member in channels.trace.writers:
        leaves = ~removal.kept(member.ids)
        if member.layer is None or not leaves.any():
            continue
        weight = np.array(member.layer.canonical())
        weight.reshape(-1, weight.shape[2])[leaves] = 0  # (outputs, weights)
        rewriter.set_values(member.layer.holder, member.layer.restored(weight))
    for edit in channels.trace.edits:
        if isinstance(edit, SliceOperand) and _adds(edit):
            _zero(rewriter, edit, removal.kept_along(edit.array, edit.at))


def _adds(edit: SliceOperand) -> bool:
    """Whether the constant operand of an edit is added to the channels."""
    if edit.node.op in ("Add", "Sub", "Sum"):
        return True
    return edit.operand in _ADDED.get(edit.node.op, ())


_ADDED: Final = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    # a scale of zero removes the mean, too
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (2,),
}


def _zero(rewriter: Rewriter, edit: SliceOperand, keeps: Mask) -> None:
    """Give a node its own copy of a constant, with zeros for the channels that are not kept."""
    values = const_array(edit.node.inputs[edit.operand])
    if keeps.all() or values is None:
        return
    changed = values.copy()
    np.moveaxis(changed, edit.axis, 0)[~keeps] = 0
    name = edit.node.inputs[edit.operand].name or f"{edit.node.outputs[0].name}_silent"
    rewriter.set_input(edit.node, edit.operand, rewriter.constant(changed, name))
