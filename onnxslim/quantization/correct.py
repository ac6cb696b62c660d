"""Bias correction: rounded weights shift the mean of what a layer returns; its bias takes it back.

    b ← b + E[y] − E[ŷ],   E[y] = W·E[x] of the model as it was, E[ŷ] = Ŵ·E[x̃] of the model now

(Nagel et al. 2019, arXiv:1906.04721, section 4.2). Means are measured on calibration data. Layers
are gone through from the inputs on, those behind seeing what the corrected ones before them
return. The bias of a MatMul is the Add behind it, if there is one.

`objective.problems` corrects biases while it assigns weights; this is for weights that were rounded
without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.affine import cast
from onnxslim.analysis.layers import Vectors, WeightLayer, bias_of, weight_layers
from onnxslim.analysis.operands import const_array
from onnxslim.contract import Context, Fidelity, Skip
from onnxslim.objective.moments import LayerMoments
from onnxslim.objective.problems import Problem, assign, layer_depths
from onnxslim.rewrite import Rewriter

NO_DATA = "bias correction needs calibration data and the model as it was"


@dataclass(frozen=True)
class Corrected:
    """A layer whose bias was corrected.

    Attributes:
        layer: its name.
        shift: root mean square, over its outputs, of what was added to the bias.
    """

    layer: str
    shift: float


def correct_biases(
    rewriter: Rewriter, context: Context, layers: Sequence[str] | None = None
) -> tuple[Corrected, ...]:
    """Keep the mean output that each layer had in `context.reference`; edits the graph.

    What was done, and which layers are left alone and why, is said to the rewriter.

    Args:
        rewriter: of the graph of `context.model`.
        context: with calibration data, the model and its reference.
        layers: names of those whose weights were rounded; None: all.
    """
    if context.calibration is None or context.model is None or context.reference is None:
        for name in layers or ():
            rewriter.skip(name, NO_DATA)
        return ()
    originals = {layer.name: layer for layer in weight_layers(context.reference.graph)[0]}
    done = []
    for level in _by_depth(rewriter, layers):
        names = [name for name in level if name in originals]
        for name in level.keys() - names:
            rewriter.skip(name, "its bias stays: the model as it was has no such layer")
        snapshot = context.model.clone()
        for found in context.calibration.moments(snapshot, names, context.reference):
            name = found.layer if isinstance(found, LayerMoments) else found.node
            shift = _corrected(rewriter, level[name], originals[name], found)
            if isinstance(shift, str):
                rewriter.skip(name, f"its bias stays: {shift}")
                continue
            done.append(Corrected(name, shift))
            rewriter.note(name, "corrected its bias", Fidelity.LOSSY)
    return tuple(done)


def _by_depth(rewriter: Rewriter, names: Sequence[str] | None) -> list[Mapping[str, WeightLayer]]:
    """The layers, those together that do not read each other, from the inputs on."""
    layers = weight_layers(rewriter.main)[0]
    depths = layer_depths(rewriter.main, {layer.node for layer in layers})
    levels: dict[int, dict[str, WeightLayer]] = {}
    for layer in layers:
        if names is None or layer.name in names:
            levels.setdefault(depths[layer.node], {})[layer.name] = layer
    return [levels[depth] for depth in sorted(levels)]


def _corrected(
    rewriter: Rewriter, layer: WeightLayer, twin: WeightLayer, found: LayerMoments | Skip
) -> float | str:
    """Correct one layer; returns the size of the shift, or why there is none."""
    if isinstance(found, Skip) or found.goal is None:
        return found.why if isinstance(found, Skip) else "its output is not comparable"
    before, now = bias_of(twin), bias_of(layer)
    if isinstance(before, str) or isinstance(now, str):
        return before if isinstance(before, str) else str(now)
    weight = np.asarray(layer.canonical(), np.float64)
    # (g, rows, columns)·(g, columns, 1) -> (g, rows)
    present = np.matmul(weight, found.mean[:, :, None])[:, :, 0]
    wished = before + found.goal
    shift = wished - present - now
    if layer.bias is None:
        why = _into_add(rewriter, layer, shift)
        if why is not None:
            return why
    else:
        problem = Problem((layer,), (), goals=((wished, found.mean),))
        assign(rewriter, problem, layer.canonical())
    return float(np.sqrt(np.mean(shift**2)))


def _into_add(rewriter: Rewriter, layer: WeightLayer, shift: np.ndarray) -> str | None:
    """Add `shift` to the constant that the Add behind a MatMul adds, or say why not."""
    result = layer.node.outputs[0]
    lone = rewriter.uses(result) == 1 and not rewriter.is_output(result)
    add = result.outputs[0] if lone else None
    axis = layer.unfolding.out_axis if isinstance(layer.unfolding, Vectors) else None
    if add is None or not add.is_onnx or add.op != "Add" or layer.groups != 1 or axis is None:
        return "it has none"
    index = 1 if add.inputs[0] is result else 0
    stored = const_array(add.inputs[index])
    flat = shift[0] if axis == -1 else shift[0][:, None]  # (rows,) or (rows, 1)
    if stored is None or np.broadcast(stored, flat).size > shift.size:
        return "it has none"
    values = cast(stored.astype(np.float64) + flat, stored.dtype)
    if values is None:
        return "it would overflow"
    rewriter.set_input(add, index, rewriter.constant(values, add.inputs[index].name))
    return None


__all__ = ["Corrected", "correct_biases"]
