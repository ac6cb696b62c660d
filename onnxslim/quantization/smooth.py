"""SmoothQuant: ranges of activations, moved into weights.

A few channels of the inputs of a transformer's MatMuls are far larger than all others, and a grid
for the whole tensor spends its codes on them. With s_j = max|X_j|^α / max|W_j|^(1−α) for each
channel j

    X·W = (X·diag(s)⁻¹)·(diag(s)·W)

is the same product, with the difficulty shared between tensor and weight (Xiao et al. 2022,
arXiv:2211.10438, eqs. 3 and 4). max|W_j| is over all layers that read the tensor. The operator
before takes the division: scale and bias of a normalization, a Mul and an Add with constants,
or the rows of another weight layer. In front of products that find their ranges at run time, a Mul
takes it where others read the tensor too, such as the residual stream (see `product_smoothing`).

Owns: which operators can take the division, and the scales. Not here: scaling a layer (see
`channel_scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.absorption import LinearLayer
from onnxslim.analysis.affine import cast
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.quantization.channel_scaling import (
    Array,
    ScaledLayer,
    reads,
    same_axis,
    scalable_layer,
)
from onnxslim.records import Fidelity, Skip

_MIN_SCALE: Final = 1e-5
_SETTLED: Final = 1e-3  # largest |log s| at which channels count as alike
Edit = Callable[[], None]


def smooth(rewriter: Rewriter, context: Context, *, alpha: float = 0.5) -> None:
    """Scale the inputs of Gemms and MatMuls of the main graph; edits the graph.

    The rewriter logs what was done, and which tensors are left alone and why.

    Args:
        rewriter: of the graph of `context.model`.
        context: with calibration data; without, nothing is done.
        alpha: how much of the difference between channels goes into weights, in [0, 1].
    """
    if context.calibration is None or context.model is None:
        return
    sites = _sites(rewriter)
    names = [node_label(site.readers[0].layer.node) for site in sites]
    # samples run through a snapshot, because the graph is edited meanwhile
    found = context.calibration.activity(context.model.clone(), names)
    seen = {item.node if isinstance(item, Skip) else item.layer: item for item in found}
    for site, name in zip(sites, names, strict=True):
        item = seen[name]
        why = item.why if isinstance(item, Skip) else _smooth(rewriter, site, item.most, alpha)
        if why is not None:
            rewriter.skip(site.tensor.name, f"it is not smoothed: {why}")


@dataclass(frozen=True)
class _SmoothedInput:
    """A tensor that only layers read, each along its last axis."""

    tensor: gs.Tensor
    readers: tuple[ScaledLayer, ...]


def _sites(rewriter: Rewriter) -> list[_SmoothedInput]:
    by_tensor: dict[gs.Tensor, list[LinearLayer]] = {}
    for node in rewriter.main.nodes:
        if node.op in ("Gemm", "MatMul"):
            layer = scalable_layer(rewriter, node)
            if isinstance(layer, str):
                rewriter.skip(node, f"its input is not smoothed: {layer}")
            elif layer is not None:
                by_tensor.setdefault(node.inputs[layer.data], []).append(layer)
    sites = []
    for tensor, layers in by_tensor.items():
        why = _why_no_site(rewriter, tensor, layers)
        if why is None:
            sites.append(_SmoothedInput(tensor, tuple(map(ScaledLayer, layers))))
        else:
            rewriter.skip(tensor.name, f"it is not smoothed: {why}")
    return sites


def _why_no_site(
    rewriter: Rewriter, tensor: gs.Tensor, layers: Sequence[LinearLayer]
) -> str | None:
    if not tensor.inputs:
        return "it is an input of the graph"
    if rewriter.uses(tensor) != len(layers):
        return "others than weight layers read it"
    along = (
        reads(layer, tensor) and same_axis(layer.in_axis, -1, rank(tensor)) for layer in layers
    )
    return None if all(along) else "its channels do not lie along its last axis"


def _smooth(rewriter: Rewriter, site: _SmoothedInput, most: Array, alpha: float) -> str | None:
    """Scale the channels of a tensor, of which `most` holds the largest |x|; or why it stays."""
    weights = np.max([layer.in_peaks() for layer in site.readers], axis=0)
    scale = smoothing_scale(most, weights, alpha)
    return scale if isinstance(scale, str) else _divide(rewriter, site, scale)


def smoothing_scale(most: Array, weights: Array, alpha: float) -> Array | str:
    """S for each channel, by the largest |x| and the largest |w| of each; or why there is none."""
    used = (most > 0) & (weights > 0)
    if not used.any():
        return "all its channels are zero"
    scale = np.ones_like(most)
    scale[used] = np.maximum(most[used] ** alpha / weights[used] ** (1 - alpha), _MIN_SCALE)
    # a factor common to all channels changes no grid, so the geometric mean becomes 1
    scale[used] /= np.exp(np.log(scale[used]).mean())
    return scale if np.abs(np.log(scale)).max() >= _SETTLED else "its channels are alike already"


def divided_upstream(rewriter: Rewriter, tensor: gs.Tensor, layers: int, scale: Array) -> bool:
    """Whether what makes `tensor` can divide it in constants that are vectors already.

    A number that became a vector would take the pattern that it is part of, such as the half of
    Gelu, from onnxruntime's fusions, which costs more than a Mul.

    Args:
        rewriter: of the graph.
        tensor: what is read.
        layers: the number of layers that are to read it divided.
        scale: (channels,).
    """
    if not tensor.inputs or rewriter.uses(tensor) != layers:
        return False
    return not isinstance(_taken(rewriter, tensor, 1 / scale, grows=False), str)


def divide_input(
    rewriter: Rewriter, tensor: gs.Tensor, layers: Sequence[LinearLayer], scale: Array
) -> str | None:
    """Divide what `layers` read by `scale`, and multiply their weights by it.

    What makes the tensor divides, where these layers alone read it and it can; else a Mul in front
    of them. Edits the graph.

    Args:
        rewriter: of the graph.
        tensor: the input, its channels along the last axis.
        layers: Gemms and MatMuls that read it.
        scale: (channels,).

    Returns:
        Why nothing was done; None where it was.
    """
    site = _SmoothedInput(tensor, tuple(map(ScaledLayer, layers)))
    return _divide(
        rewriter, site, scale, by_mul=not divided_upstream(rewriter, tensor, len(layers), scale)
    )


def _divide(
    rewriter: Rewriter, site: _SmoothedInput, scale: Array, *, by_mul: bool = False
) -> str | None:
    taken = [] if by_mul else _taken(rewriter, site.tensor, 1 / scale)
    if isinstance(taken, str):
        return taken
    for layer in site.readers:
        layer.ins *= scale
        arrays = layer.arrays()
        if isinstance(arrays, str):
            return arrays
        taken.append(_writing(rewriter, layer, arrays))
    for write in taken:
        write()
    if by_mul:
        _insert_mul(rewriter, site, 1 / scale)
    words = ", ".join(f"`{node_label(layer.layer.node)}`" for layer in site.readers)
    how = " by a Mul" if by_mul else ""
    rewriter.note(site.tensor.name, f"smoothed{how} for {words}", Fidelity.CLOSE)
    return None


def _insert_mul(rewriter: Rewriter, site: _SmoothedInput, factor: Array) -> None:
    """Let the readers of a tensor read it times `factor`."""
    tensor, first = site.tensor, site.readers[0].layer.node
    stored = rewriter.constant(factor.astype(np.float32), f"{tensor.name}_factor")
    (made,) = rewriter.insert(
        first,
        "Mul",
        [tensor, stored],
        name=f"{tensor.name}_smoothed",
        dtype=tensor.dtype,
        shape=tensor.shape,
    )
    for reader in site.readers:
        rewriter.set_input(reader.layer.node, reader.layer.data, made)


def _writing(
    rewriter: Rewriter, layer: ScaledLayer, arrays: tuple[np.ndarray, np.ndarray | None]
) -> Edit:
    return lambda: layer.write(rewriter, arrays)


# ---------------------------------------------------------------------------- factors upstream


def _taken(
    rewriter: Rewriter, tensor: gs.Tensor, factor: Array, *, grows: bool = True
) -> list[Edit] | str:
    """The edits that multiply `tensor` by `factor` along its last axis, or why there are none.

    With `grows` a number may become a vector.
    """
    writes: list[Edit] = []
    while True:
        node = rewriter.producer(tensor)
        if node is None or not node.is_onnx:
            return "no operator that makes it has parameters for each channel"
        layer = scalable_layer(rewriter, node)
        if isinstance(layer, str):
            return layer
        if layer is not None:
            return _into_layer(rewriter, layer, factor, writes)
        if node.op in ("LayerNormalization", "RMSNormalization"):
            return _into_normalization(rewriter, node, factor, writes)
        if node.op not in _SHIFTS and node.op not in _SCALES:
            return f"the {node.op} `{node_label(node)}` that makes it has no parameters"
        step = _into_constant(rewriter, node, factor, grows=grows)
        if isinstance(step, str):
            return step
        writes.append(step)
        if node.op in _SCALES:
            return writes
        tensor = next(item for item in node.inputs if const_array(item) is None)
        if rewriter.uses(tensor) != 1:
            return f"others read what the {node.op} `{node_label(node)}` reads"


_SHIFTS: Final = ("Add", "Sub")
_SCALES: Final = ("Mul", "Div")


def _into_layer(
    rewriter: Rewriter, layer: LinearLayer, factor: Array, writes: Sequence[Edit]
) -> list[Edit] | str:
    result = layer.node.outputs[0]
    if layer.outs != len(factor) or not same_axis(layer.out_axis, -1, rank(result) or layer.ndim):
        return f"`{node_label(layer.node)}` writes its channels along another axis"
    scaled = ScaledLayer(layer)
    scaled.outs *= factor
    arrays = scaled.arrays()
    return arrays if isinstance(arrays, str) else [*writes, _writing(rewriter, scaled, arrays)]


def _into_normalization(
    rewriter: Rewriter, node: Node, factor: Array, writes: Sequence[Edit]
) -> list[Edit] | str:
    if not same_axis(int(node.attrs.get("axis", -1)), -1, rank(node.inputs[0])):
        return f"the {node.op} `{node_label(node)}` is about more than its last axis"
    taken = list(writes)
    for index in (1, 2):
        if is_present(node, index):
            write = _multiplied(rewriter, node, index, factor)
            if isinstance(write, str):
                return write
            taken.append(write)
    return taken


def _into_constant(rewriter: Rewriter, node: Node, factor: Array, *, grows: bool) -> Edit | str:
    """Multiply the constant operand of `node`; the other operand of a sum is left to its maker."""
    constants = [i for i, item in enumerate(node.inputs) if const_array(item) is not None]
    if len(node.inputs) != 2 or len(constants) != 1:
        return f"the {node.op} `{node_label(node)}` that makes it has no constant operand"
    (index,) = constants
    array = const_array(node.inputs[index])
    if not grows and array is not None and array.size == 1:
        return f"a number of `{node_label(node)}` would become a vector"
    if node.op == "Div":
        if index == 0:
            return f"`{node_label(node)}` divides a constant"
        factor = 1 / factor
    return _multiplied(rewriter, node, index, factor)


def _multiplied(rewriter: Rewriter, node: Node, index: int, factor: Array) -> Edit | str:
    """Let `node` read its constant `index` times `factor` along the last axis."""
    tensor = node.inputs[index]
    array = const_array(tensor)
    if array is None:
        return f"`{tensor.name}` is computed at run time"
    if array.size > 1 and array.shape[-1] != len(factor):
        return f"`{tensor.name}` would grow"
    product = cast(array.astype(np.float64) * factor, array.dtype)
    if product is None:
        return f"`{tensor.name}` would overflow"

    def write() -> None:
        rewriter.set_input(node, index, rewriter.constant(product, tensor.name))

    return write
