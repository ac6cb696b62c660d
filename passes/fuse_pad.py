"""Fuse Pad into the convolution or pooling behind it.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float[1, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
        a = Pad (x, p)
        y = Conv (a, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[1, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
        y = Conv <pads = [1, 1, 1, 1]> (x, w)
    }
    ```

Why it is correct:
    Conv pads with zeros: pads add up. ConvTranspose with stride s crops `pads` from its result, and
    p zeros before its input add s·p to it: `pads` shrink by s·p. AveragePool that counts its own
    padding pads with zeros. MaxPool pads with -∞, and padding with v ≤ min(x) gives the same
    maximum as long as every window holds an element of x: v = -∞ (or the lowest finite number),
    or v = 0 behind a Relu.

Declines when:
    1. Pad is not constant padding, its amounts or value are computed at run time, it crops
       (negative amounts), or it pads the batch or the channels.
    2. The value is not zero; for MaxPool, not known to be at most every element.
    3. The padded tensor is used elsewhere or is a graph output.
    4. `auto_pad` is SAME_UPPER or SAME_LOWER (it depends on the size), or a pool has `ceil_mode`.
    5. A window of the pool could lie in the padding alone, or the pool returns indices.
    6. AveragePool has padding of its own that it does not count.
    7. ConvTranspose has an `output_shape`, or crops less than the Pad adds.

Fidelity:
    CLOSE; EXACT where only MaxPool is concerned.

Reference:
    The ONNX operator specification, sections Conv, ConvTranspose, AveragePool, MaxPool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value, is_present, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

Pads = tuple[int, ...]
"""Amounts as in `pads` of Conv: first of every spatial axis before it, then after it."""


@dataclass(frozen=True)
class FusePad(RewritePass):
    """Fuse Pad into the convolution or pooling behind it."""

    name: ClassVar[str] = "fuse-pad"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Let every convolution and pool pad by itself."""
        rw = self.rewriter(graph)
        for node in rw.walk(*_NEW_PADS):
            pad = rw.producer(node.inputs[0], "Pad")
            if pad is None:
                continue
            attrs = _padded_attrs(rw, node, pad)
            if isinstance(attrs, str):
                rw.skip(node, attrs)
                continue
            fidelity = Fidelity.EXACT if node.op == "MaxPool" else Fidelity.CLOSE
            inputs = [pad.inputs[0], *node.inputs[1:]]
            rw.update(node, "took the Pad before it", inputs=inputs, attrs=attrs, fidelity=fidelity)
        return rw.result()


def _padded_attrs(rw: Rewriter, node: Node, pad: Node) -> dict[str, Any] | str:
    """The attributes with which `node` pads by itself, or why it cannot."""
    if rw.private_producer(node.inputs[0]) is None:
        return f"the padded `{node.inputs[0].name}` is used elsewhere"
    ndim = _rank_before(node)
    amounts = _amounts(pad, rw.opset, ndim)
    if isinstance(amounts, str):
        return amounts
    mode = _text(node.attrs.get("auto_pad", "NOTSET"))
    if mode.startswith("SAME"):
        return f"its auto_pad {mode} depends on the size of its input"
    spatial = len(amounts) // 2
    own: Sequence[int] = node.attrs.get("pads") or [0] * 2 * spatial
    if mode == "VALID":
        own = [0] * 2 * spatial
    if len(own) != len(amounts):
        return "its pads do not fit the rank of its input"
    value = _value(pad, rw.opset)
    pads = _NEW_PADS[node.op](node, pad, amounts, tuple(own), value)
    if isinstance(pads, str):
        return pads
    attrs = {name: item for name, item in node.attrs.items() if name != "auto_pad"}
    if node.op == "AveragePool":
        attrs["count_include_pad"] = 1
    return {**attrs, "pads": list(pads)}


def _rank_before(node: Node) -> int | None:
    """Rank of the input of a convolution or pool."""
    if node.op in ("Conv", "ConvTranspose") and rank(node.inputs[1]) is not None:
        return rank(node.inputs[1])
    kernel = node.attrs.get("kernel_shape")
    return rank(node.inputs[0]) if kernel is None else len(kernel) + 2


def _amounts(pad: Node, opset: int, ndim: int | None) -> Pads | str:
    """The amounts that `pad` adds along the spatial axes, or why they cannot be moved."""
    mode = _text(pad.attrs.get("mode", "constant"))
    if mode != "constant":
        return f"the Pad before it has the mode {mode}"
    listed = _listed_amounts(pad, opset)
    axes = _padded_axes(pad, opset, ndim)
    if listed is None or axes is None or ndim is None:
        return "the amounts of the Pad before it are not known"
    if len(listed) != 2 * len(axes):
        return "the Pad before it has another number of amounts than axes"
    full = [0] * 2 * ndim
    for place, axis in enumerate(axes):
        full[axis] += listed[place]
        full[ndim + axis] += listed[len(axes) + place]
    if any(full[axis] for axis in (0, 1, ndim, ndim + 1)):
        return "the Pad before it pads the batch or the channels"
    if min(full) < 0:
        return "the Pad before it crops"
    return (*full[2:ndim], *full[ndim + 2 :])


def _listed_amounts(pad: Node, opset: int) -> list[int] | None:
    if opset < 11:
        amounts = pad.attrs.get("pads", pad.attrs.get("paddings"))  # opset 2, opset 1
        return None if amounts is None else [int(item) for item in amounts]
    array = const_array(pad.inputs[1])
    return None if array is None else [int(item) for item in array.reshape(-1)]


def _padded_axes(pad: Node, opset: int, ndim: int | None) -> tuple[int, ...] | None:
    if opset < 18 or not is_present(pad, 3):
        return None if ndim is None else tuple(range(ndim))
    array = const_array(pad.inputs[3])
    listed = None if array is None else tuple(int(item) for item in array.reshape(-1))
    return normalized(listed, ndim)


def _value(pad: Node, opset: int) -> float | None:
    """The padding value; None when it is computed at run time."""
    if opset < 11:
        return float(pad.attrs.get("value", 0.0))
    if not is_present(pad, 2):
        return 0.0
    array = const_array(pad.inputs[2])
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


# ------------------------------------------------------------------------------ pads by operator

New = Pads | str
"""New `pads`, or why not."""


def _sum(amounts: Pads, own: Pads) -> Pads:
    return tuple(a + b for a, b in zip(amounts, own, strict=True))


def _for_conv(node: Node, pad: Node, amounts: Pads, own: Pads, value: float | None) -> New:
    if value != 0:
        return "the Pad before it does not pad with zeros"
    return _sum(amounts, own)


def _for_conv_transpose(
    node: Node, pad: Node, amounts: Pads, own: Pads, value: float | None
) -> New:
    if value != 0:
        return "the Pad before it does not pad with zeros"
    if node.attrs.get("output_shape"):
        return "its output_shape decides what it crops"
    spatial = len(own) // 2
    strides = list(node.attrs.get("strides") or [1] * spatial) * 2
    pads = tuple(o - s * a for o, s, a in zip(own, strides, amounts, strict=True))
    return pads if min(pads) >= 0 else "it crops less than the Pad adds"


def _for_average(node: Node, pad: Node, amounts: Pads, own: Pads, value: float | None) -> New:
    if value != 0:
        return "the Pad before it does not pad with zeros"
    if any(own) and not node.attrs.get("count_include_pad", 0):
        return "it has padding of its own that it does not count"
    pads = _sum(amounts, own)
    return _why_not_pool(node, pads) or pads


def _for_max(node: Node, pad: Node, amounts: Pads, own: Pads, value: float | None) -> New:
    if any(tensor.name for tensor in node.outputs[1:]):
        return "it returns indices into the padded tensor"
    least = _lower_bound(pad.inputs[0])
    if value is None or not value <= least:
        return "the Pad before it may pad with more than the largest element of a window"
    pads = _sum(amounts, own)
    return _why_not_pool(node, pads) or pads


def _why_not_pool(node: Node, pads: Pads) -> str | None:
    """Why a window could see nothing but padding, or the result could have another shape."""
    if node.attrs.get("ceil_mode", 0):
        return "it has ceil_mode, which counts its own padding in another way"
    kernel = node.attrs.get("kernel_shape", ())
    if any(size != 1 for size in node.attrs.get("dilations") or ()):
        return "its window is dilated"
    if len(pads) != 2 * len(kernel) or any(
        amount >= size for amount, size in zip(pads, [*kernel, *kernel], strict=True)
    ):
        return "a window could lie in the padding alone"
    return None


_NEW_PADS: Final[dict[str, Callable[[Node, Node, Pads, Pads, float | None], New]]] = {
    "Conv": _for_conv,
    "ConvTranspose": _for_conv_transpose,
    "AveragePool": _for_average,
    "MaxPool": _for_max,
}

# operators whose result is never negative, and those that return elements of their first input
_NEVER_NEGATIVE: Final = frozenset(
    {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt"}
)
_SELECT: Final = frozenset({"MaxPool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})


def _lower_bound(tensor: gs.Tensor, depth: int = 8) -> float:
    """A lower bound of all elements of `tensor`."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if node is None or (node.domain or "") not in ("", "ai.onnx") or depth == 0:
        return _lowest_of_type(tensor.dtype)
    if node.op in _NEVER_NEGATIVE:
        return 0.0
    if node.op in _SELECT:
        return _lower_bound(node.inputs[0], depth - 1)
    if node.op == "Concat":
        return min(_lower_bound(item, depth - 1) for item in node.inputs)
    if node.op == "Clip":
        low = node.attrs.get("min")
        if is_present(node, 1) and const_value(node.inputs[1]) is not None:
            array = const_array(node.inputs[1])
            low = None if array is None else float(array.reshape(-1)[0])
        if low is not None:
            return float(low)
    return _lowest_of_type(tensor.dtype)


def _lowest_of_type(dtype: Any) -> float:
    if dtype is not None and np.dtype(dtype).kind in "iu":
        return float(np.iinfo(np.dtype(dtype)).min)
    # the lowest finite number: onnxruntime's MaxPool returns it for a window of -inf, too
    return float(ml_dtypes.finfo(dtype).min) if is_float(dtype) else -np.inf


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
