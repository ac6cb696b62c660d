"""Per-layer latency on this machine, and the multiple of channels that runs fastest.

Owns: models of single layers to be timed. Not here: the clock (see `services.stopwatch`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Final

import onnx

from onnxslim.analysis.layer_models import LayerOp, StaticShape, op_of, small_model
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import is_present
from onnxslim.io.model import Model
from onnxslim.report import Latency
from onnxslim.services.stopwatch import Stopwatch

UNMEASURED: Final = 16  # onnxruntime's blocks of channels with AVX-512
_MULTIPLES: Final = (32, 16, 8, 4, 2, 1)
_AS_GOOD: Final = 1.05  # times the least time per work: as good as the fastest
_MIN_CHANNELS: Final = 64  # of a Conv that is worth timing


def layer_milliseconds(
    stopwatch: Stopwatch, model: Model, nodes: Sequence[Node]
) -> dict[Node, float]:
    """Median latency in milliseconds of each layer alone, at its real shapes.

    Layers of unknown shape are left out.

    Raises:
        RuntimeFailure: onnxruntime refuses a layer.
    """
    shapes = stopwatch.shapes(model)
    asked = {node: _alone(node, shapes) for node in nodes}
    known = {node: found for node, found in asked.items() if found is not None}
    times: Sequence[Latency] = stopwatch.milliseconds(list(known.values()))
    return {node: time.median for node, time in zip(known, times, strict=True)}


def _alone(node: Node, shapes: Mapping[str, StaticShape]) -> onnx.ModelProto | None:
    sizes = [_shape(node, index, shapes) for index in range(len(node.inputs))]
    data = next((i for i, tensor in enumerate(node.inputs) if _is_data(tensor)), None)
    if data is None or sizes[data] is None:
        return None
    if any(size is None and is_present(node, i) for i, size in enumerate(sizes)):
        return None
    x_shape = sizes[data]
    assert x_shape is not None
    return small_model(x_shape, [op_of(node, data, sizes)])


def _is_data(tensor: object) -> bool:
    return bool(getattr(tensor, "name", "")) and not hasattr(tensor, "values")


def _shape(node: Node, index: int, shapes: Mapping[str, StaticShape]) -> StaticShape | None:
    if not is_present(node, index):
        return None
    tensor = node.inputs[index]
    if not _is_data(tensor):
        return tuple(int(size) for size in tensor.shape)
    return shapes.get(tensor.name)


def fastest_multiple(stopwatch: Stopwatch, model: Model, nodes: Sequence[Node]) -> int | None:
    """The smallest multiple of channels at which a Conv of this model runs about as fast as at any.

    The Conv with the most work is timed with half its channels and with a few fewer. None if no
    Conv is large enough.

    Raises:
        RuntimeFailure: onnxruntime refuses a layer.
    """
    found = _heaviest(nodes, stopwatch.shapes(model))
    if found is None:
        return None
    conv, x_shape, w_shape = found
    # about half the channels, in multiples of 32, from which each multiple takes some away
    half = [max(64, size // 2 // 32 * 32) for size in (w_shape[1], w_shape[0])]
    trials = []
    for multiple in _MULTIPLES:
        inputs, outputs = (size if multiple == 32 else size - 32 + multiple for size in half)
        trials.append((multiple, inputs, outputs))
    protos = [
        small_model(
            (x_shape[0], inputs, *x_shape[2:]),
            [replace(conv, inputs=(conv.inputs[0], (outputs, inputs, *w_shape[2:])))],
        )
        for _, inputs, outputs in trials
    ]
    times = stopwatch.milliseconds(protos)
    # time per amount of work: models differ in size
    pace = {
        multiple: time.median / (inputs * outputs)
        for (multiple, inputs, outputs), time in zip(trials, times, strict=True)
    }
    best = min(pace.values())
    return min(multiple for multiple, value in pace.items() if value <= _AS_GOOD * best)


def _heaviest(
    nodes: Sequence[Node], shapes: Mapping[str, StaticShape]
) -> tuple[LayerOp, StaticShape, StaticShape] | None:
    best: tuple[int, LayerOp, StaticShape, StaticShape] | None = None
    for node in nodes:
        if node.op != "Conv" or int(node.attrs.get("group", 1)) != 1:
            continue
        x_shape = shapes.get(node.inputs[0].name)
        y_shape = shapes.get(node.outputs[0].name)
        w_shape = tuple(int(size) for size in node.inputs[1].shape)
        if x_shape is None or y_shape is None or min(w_shape[:2]) < _MIN_CHANNELS:
            continue
        work = prod(y_shape[2:]) * prod(w_shape)
        if best is None or work > best[0]:
            op = replace(op_of(node, 0, [x_shape, w_shape]), attrs=dict(node.attrs))
            best = (work, op, x_shape, w_shape)
    return None if best is None else best[1:]
