"""The codes of all layers of a model: to nearest, or solved in one sweep over a copy of the model.

Owns: the problem that each layer poses (target, moments, bias). Not here: how one weight is rounded
(see `weight_rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from glob import escape

import numpy as np

from onnxslim.analysis.layers import WeightLayer, bias_of, linear_layers
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import (
    MAX_INPUTS,
    Problem,
    Problems,
    Schedule,
    Target,
    current_bias_target,
)
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.quantization.clusters import Clusters
from onnxslim.quantization.grid import S8_SYMMETRIC, LayerCodes
from onnxslim.quantization.kernel_forms import channel_map
from onnxslim.quantization.rules import KernelKind
from onnxslim.quantization.weight_rounding import QuantizedWeight, Rounding, quantized_weight
from onnxslim.quantization.weight_scales import WeightForm, channel_axis
from onnxslim.services.activity import ChannelActivity


def nearest_codes(model: Model, clusters: Clusters, form: WeightForm) -> dict[str, LayerCodes]:
    """Codes of all layers that can have some, rounded to nearest: good enough for timing.

    The factors of channel maps have a scale each, so their codes are exact to float rounding.
    Tables of embeddings have a scale for each row: this is final.
    """
    found: dict[str, LayerCodes] = {}
    for cluster in clusters.all:
        if cluster.rule.kind is KernelKind.CHANNEL_MAP:
            kept = channel_map(cluster.node)
            assert not isinstance(kept, str)
            grid = form.grid.over(kept.factor, kept.factor, 0)
            found[cluster.name] = LayerCodes(grid.quantized(kept.weight), grid, kept.bias)
        elif cluster.rule.kind is KernelKind.TABLE:
            table = const_array(cluster.node.inputs[0])
            assert table is not None
            grid = S8_SYMMETRIC.over(table.min(1), table.max(1), 0)
            found[cluster.name] = LayerCodes(grid.quantized(table), grid, None)
    dynamic = {item.name for item in clusters.all if item.rule.kind is KernelKind.DYNAMIC}
    for layer in linear_layers(model.graph)[0]:
        has_other_bias = isinstance(bias_of(layer), str) and layer.name not in dynamic
        if layer.bodies or has_other_bias:
            continue
        weight = layer.holder.values
        axis = None if form.is_per_tensor else channel_axis(layer)
        across = tuple(index for index in range(weight.ndim) if index != axis)
        least, most = weight.min(across), weight.max(across)
        grid = form.grid.over(
            *((least, most) if axis is not None else (weight.min(), weight.max())), axis
        )
        found[layer.name] = LayerCodes(grid.quantized(weight), grid, _bias(layer))
    return found


def solved_codes(
    model: Model,
    names: Sequence[str],
    context: Context,
    form: WeightForm,
    rounding: Rounding,
    *,
    keep_means: bool,
) -> dict[str, LayerCodes]:
    """Codes of the named layers, and biases that go with them.

    Args:
        model: the float model; it does not change.
        names: the names of the layers.
        context: with calibration samples, and the model whose layers give the targets.
        form: which codes weights may have.
        rounding: how weights are rounded.
        keep_means: whether biases correct the mean of the outputs: b + E[y] − Ŵ·E[x] (Nagel et al.
            2019, arXiv:1906.04721, section 4.2, with observed means).
    """
    patterns = tuple(escape(name) for name in names)
    if not patterns:
        return {}
    copy = model.clone()
    layers = [layer for layer in linear_layers(copy.graph)[0] if layer.name in set(names)]
    is_plain = rounding is Rounding.NEAREST  # needs no second moments
    plain = [layer for layer in layers if is_plain or layer.columns > MAX_INPUTS]
    biased = [layer for layer in plain if _bias(layer) is not None]
    means = _mean_inputs(copy, biased, context) if keep_means and biased else {}
    if is_plain:
        context = replace(context, calibration=None)
    rewriter = Rewriter(copy.graph)
    problems = Problems(
        rewriter,
        replace(context, model=copy),
        LayerFilter(only=patterns),
        Schedule(sequential=False, aim=Target.ORIGINAL),
        MAX_INPUTS,
    )
    found: dict[str, LayerCodes] = {}
    for problem in problems:
        if not keep_means:
            problem.bias_targets = ()
        elif not problem.has_data:
            own = [(layer, means.get(layer.name)) for layer in problem.layers]
            problem.bias_targets = tuple(
                None if m is None else current_bias_target(la, m) for la, m in own
            )
        weight = quantized_weight(problem, form, rounding)
        holder = problem.layer.holder
        before = holder.stored
        problems.apply(problem, weight.weight, "int8")
        for layer in problem.layers:
            codes, grid = weight.stored(layer)
            found[layer.name] = LayerCodes(codes, grid, _bias(layer), _words(problem, weight))
        # no layer is fitted to another, so that rounded floats only take memory, all together as
        # much as the model
        rewriter.set_values(holder, before)
    return found


def _mean_inputs(
    model: Model, chosen: Sequence[WeightLayer], context: Context
) -> dict[str, np.ndarray]:
    """E[x] of the inputs of layers, (groups, columns), by name.

    Each entry of a patch takes the mean of its channel; padding makes borders less, which is
    ignored.
    """
    assert context.calibration is not None
    layers = {layer.name: layer for layer in chosen}
    found: dict[str, np.ndarray] = {}
    for seen in context.calibration.activity(model, list(layers)):
        if isinstance(seen, ChannelActivity):
            layer = layers[seen.layer]
            found[seen.layer] = _by_column(layer, seen.average)
    return found


def _by_column(layer: WeightLayer, by_channel: np.ndarray) -> np.ndarray:
    groups = layer.groups if isinstance(layer.unfolding, ConvPatches) else 1
    split = by_channel.reshape(groups, -1)  # (groups, channels of a group)
    columns = np.repeat(split, layer.columns // split.shape[1], axis=1)
    return np.broadcast_to(columns, (layer.groups, layer.columns))


def _words(problem: Problem, weight: QuantizedWeight) -> str:
    notes = "".join(f"; {note}" for note in problem.notes)
    return f"relative error of its weight's rounding {weight.error:.2g}{notes}"


def _bias(layer: WeightLayer) -> np.ndarray | None:
    if layer.bias is None or not is_present(layer.node, layer.bias):
        return None
    bias = bias_of(layer)
    return None if isinstance(bias, str) else bias.reshape(-1)
