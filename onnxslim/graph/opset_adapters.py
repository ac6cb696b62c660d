"""What changed in the standard's operators from opset 8 to 23, as edits of one node.

An adapter is listed under the operator and the first opset of its new form. Operators and opsets
without an adapter took more types, new attributes whose default is the old meaning, or words only;
`tests/graph/test_opset_adapters.py` compares this table with the schemas. Where the standard is
vague, onnxruntime's kernel decides what the old form means, since it runs both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import known_dim, rank, static_shape
from onnxslim.graph.ir import Constant, Node, Variable, node_label
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter


class NotExpressible(Exception):
    """The newer form of an operator cannot say what the node does; the message says why."""


@dataclass(frozen=True)
class Raising:
    """A graph on its way to a later opset.

    Attributes:
        rw: of the graph.
        target: the opset to reach.
        constants: the operands made so far, by content: nodes share equal ones.
    """

    rw: Rewriter
    target: int
    constants: dict[tuple[str, tuple[int, ...], bytes], Constant] = field(default_factory=dict)

    def constant(self, values: np.ndarray, name: str) -> Constant:
        """A constant operand."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self.constants:
            self.constants[key] = self.rw.constant(values, name)
        return self.constants[key]

    def longs(self, values: list[int], name: str) -> Constant:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64), name)

    def rewrite(
        self,
        node: Node,
        *without: str,
        op: str | None = None,
        inputs: list[gs.Tensor] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Give `node` another form: attributes dropped and added, another operator or inputs."""
        kept = {name: value for name, value in node.attrs.items() if name not in without}
        what = f"{node.op} written as at opset {self.target}"
        domain = node.domain
        self.rw.update(node, what, op=op, inputs=inputs, attrs={**kept, **(attrs or {})})
        node.domain = domain


Adapter = Callable[[Raising, Node], None]


def _attribute(node: Node, name: str, default: Any = None) -> Any:
    """The value of an attribute.

    Raises:
        NotExpressible: the caller of a local function gives it.
    """
    value = node.attrs.get(name, default)
    if isinstance(value, onnx.AttributeProto):
        raise NotExpressible(f"the caller of its function gives its attribute `{name}`")
    return value


def _dtype(tensor: gs.Tensor) -> np.dtype[Any]:
    if tensor.dtype is None:
        raise NotExpressible(f"the type of its input `{tensor.name}` is not known")
    dtype: np.dtype[Any] = np.dtype(tensor.dtype)
    return dtype


def _to_input(attribute: str, name: str | None = None) -> Adapter:
    """An attribute that is a list of integers becomes the second input."""

    def adapt(raising: Raising, node: Node) -> None:
        values = _attribute(node, attribute)
        inputs = list(node.inputs)[:1]
        if values:  # an empty list means what no list means
            inputs.append(raising.longs(list(values), name or attribute))
        raising.rewrite(node, attribute, inputs=inputs)

    return adapt


def _renamed_modes(attribute: str, names: Mapping[str, str]) -> Adapter:
    def adapt(raising: Raising, node: Node) -> None:
        value = _attribute(node, attribute)
        if value in names:
            raising.rewrite(node, attrs={attribute: names[value]})

    return adapt


# ------------------------------------------------------------------- attributes become inputs


def _clip(raising: Raising, node: Node) -> None:
    bounds = [_attribute(node, name) for name in ("min", "max")]
    inputs = list(node.inputs)[:1]
    for name, bound in zip(("min", "max"), bounds, strict=True):
        if bound is None:
            inputs.append(Variable(""))
        else:
            inputs.append(raising.constant(np.array(bound, _dtype(node.inputs[0])), name))
    while not inputs[-1].name:
        inputs.pop()
    raising.rewrite(node, "min", "max", inputs=inputs)


def _dropout(raising: Raising, node: Node) -> None:
    """The ratio was an attribute; the mask told which values are zero, and now which are kept."""
    if any(raising.rw.uses(mask) for mask in list(node.outputs)[1:]):
        raise NotExpressible("its mask is used, which is the opposite later")
    ratio = _attribute(node, "ratio")
    inputs = list(node.inputs)
    if ratio is not None:
        inputs.append(raising.constant(np.array(ratio, np.float32), "ratio"))
    raising.rewrite(node, "ratio", inputs=inputs)


def _pad(raising: Raising, node: Node) -> None:
    value, pads = _attribute(node, "value", 0.0), _attribute(node, "pads")
    inputs = [node.inputs[0], raising.longs(list(pads), "pads")]
    if value:
        inputs.append(raising.constant(np.array(value, _dtype(node.inputs[0])), "value"))
    raising.rewrite(node, "pads", "value", inputs=inputs)


def _slice(raising: Raising, node: Node) -> None:
    names = ("starts", "ends", "axes")
    inputs = [node.inputs[0]]
    for name in names:
        values = _attribute(node, name)
        if values is not None:
            inputs.append(raising.longs(list(values), name))
    raising.rewrite(node, *names, inputs=inputs)


def _topk(raising: Raising, node: Node) -> None:
    count = raising.longs([_attribute(node, "k")], "k")
    raising.rewrite(node, "k", inputs=[node.inputs[0], count])


def _upsample_scales(raising: Raising, node: Node) -> None:
    scales = np.array(_attribute(node, "scales"), np.float32)
    inputs = [node.inputs[0], raising.constant(scales, "scales")]
    raising.rewrite(node, "scales", inputs=inputs)


def _dft(raising: Raising, node: Node) -> None:
    axis = raising.constant(np.array(_attribute(node, "axis", 1), np.int64), "axis")
    length = node.inputs[1] if is_present(node, 1) else Variable("")
    raising.rewrite(node, "axis", inputs=[node.inputs[0], length, axis])


# ------------------------------------------------------------------- another meaning


def _flattened(raising: Raising, node: Node) -> None:
    """Softmax and its like took all axes from `axis` on as one, now they take one axis."""
    axis, x = int(_attribute(node, "axis", 1)), node.inputs[0]
    ndim = rank(x)
    if axis == -1 or (ndim is not None and axis == ndim - 1):
        raising.rewrite(node, attrs={"axis": axis})
        return
    rw, label = raising.rw, node_label(node)
    sizes = static_shape(x)
    shape: gs.Tensor
    if sizes is None or not all(sizes):
        (shape,) = rw.insert(node, "Shape", [x], name=f"{label}_shape", dtype=np.int64)
    else:
        shape = raising.longs(list(sizes), "shape")
    (rows,) = rw.insert(node, "Flatten", [x], {"axis": axis}, name=f"{label}_rows", dtype=x.dtype)
    kept = {name: value for name, value in node.attrs.items() if name != "axis"}
    (result,) = rw.insert(
        node, node.op, [rows], {**kept, "axis": -1}, name=f"{label}_flat", dtype=x.dtype
    )
    # where x is empty, a size of 0 is meant as such
    attrs = {"allowzero": 1} if raising.target >= 14 and sizes is not None and 0 in sizes else {}
    raising.rewrite(node, *node.attrs, op="Reshape", inputs=[result, shape], attrs=attrs)


def _resize(raising: Raising, node: Node) -> None:
    """Coordinates were asymmetric: output i is taken at i / scale of the input.

    The nearest element of an axis that grows lies below; of one that shrinks, above (so it is in
    onnxruntime; the standard does not say).
    """
    if _attribute(node, "mode", "nearest") != "nearest":
        _resize_to(raising, node, node.inputs[1], {})
        return
    scales = const_array(node.inputs[1])
    if scales is None:
        raise NotExpressible("its scales are computed at run time, and decide how it rounds")
    shrinks = scales < 1
    if not shrinks.any():
        _resize_to(raising, node, node.inputs[1], {"nearest_mode": "floor"})
        return
    if not shrinks.all() and (scales > 1).any():
        down = raising.constant(np.where(shrinks, scales, 1).astype(np.float32), "scales")
        inputs = _resize_inputs(raising, node.inputs[0], down)
        attrs = {**node.attrs, **_ASYMMETRIC, "nearest_mode": "ceil"}
        name = f"{node_label(node)}_shrunk"
        (shrunk,) = raising.rw.insert(
            node, "Resize", inputs, attrs, name=name, dtype=node.inputs[0].dtype
        )
        up = raising.constant(np.where(shrinks, 1, scales).astype(np.float32), "scales")
        raising.rw.set_input(node, 0, shrunk)
        _resize_to(raising, node, up, {"nearest_mode": "floor"})
        return
    _resize_to(raising, node, node.inputs[1], {"nearest_mode": "ceil"})


_ASYMMETRIC: Final = {"coordinate_transformation_mode": "asymmetric"}


def _resize_inputs(raising: Raising, x: gs.Tensor, scales: gs.Tensor) -> list[gs.Tensor]:
    roi: gs.Tensor = Variable("")
    if raising.target < 13:  # there, it must be given
        roi = raising.constant(np.zeros(0, np.float32), "roi")
    return [x, roi, scales]


def _resize_to(raising: Raising, node: Node, scales: gs.Tensor, attrs: Mapping[str, Any]) -> None:
    inputs = _resize_inputs(raising, node.inputs[0], scales)
    raising.rewrite(node, inputs=inputs, attrs={**_ASYMMETRIC, **attrs})


def _only_known_coordinates(raising: Raising, node: Node) -> None:
    if _attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise NotExpressible("later opsets have no coordinates tf_half_pixel_for_nn")


def _split(raising: Raising, node: Node) -> None:
    if not is_present(node, 1):
        raising.rewrite(node, attrs={"num_outputs": len(node.outputs)})


def _roi_align(raising: Raising, node: Node) -> None:
    raising.rewrite(node, attrs={"coordinate_transformation_mode": "output_half_pixel"})


def _group_normalization(raising: Raising, node: Node) -> None:
    """Scale and bias were one for each group and are one for each channel."""
    groups, channels = int(_attribute(node, "num_groups")), known_dim(node.inputs[0], 1)
    arrays = [const_array(tensor) for tensor in list(node.inputs)[1:3]]
    known = [array for array in arrays if array is not None]
    if channels is None or len(known) < len(arrays):
        raise NotExpressible("its scale, its bias or its number of channels is not constant")
    repeated = [np.repeat(array, channels // groups) for array in known]
    names = ("scale", "bias")
    made = [raising.constant(a, name) for a, name in zip(repeated, names, strict=True)]
    raising.rewrite(node, inputs=[node.inputs[0], *made])


# ------------------------------------------------------------------- forms that are gone


def _spatial(raising: Raising, node: Node) -> None:
    if not _attribute(node, "spatial", 1):
        raise NotExpressible("later opsets have no statistics for each position (spatial=0)")
    raising.rewrite(node, "spatial")


def _inference(raising: Raising, node: Node) -> None:
    if any(tensor.name for tensor in list(node.outputs)[1:]):
        raise NotExpressible("it has the outputs of training, which mean something else later")


def _mask(raising: Raising, node: Node) -> None:
    """The mask had the type of the data, and is bool."""
    masks = list(node.outputs)[1:]
    if any(raising.rw.uses(mask) for mask in masks):
        raise NotExpressible("its mask is used, which is of another type later")
    raising.rw.keep_outputs(node, list(node.outputs)[:1])


def _batched_scan(raising: Raising, node: Node) -> None:
    raise NotExpressible("Scan goes over batches before opset 9")


def _operator(name: str) -> Adapter:
    def adapt(raising: Raising, node: Node) -> None:
        raising.rewrite(node, op=name)

    return adapt


_REDUCTIONS: Final = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: Final[Mapping[tuple[str, int], Adapter]] = {
    ("BatchNormalization", 9): _spatial,
    ("BatchNormalization", 14): _inference,
    ("Clip", 11): _clip,
    ("DFT", 20): _dft,
    ("Dropout", 10): _mask,
    ("Dropout", 12): _dropout,
    ("GridSample", 20): _renamed_modes("mode", {"bilinear": "linear", "bicubic": "cubic"}),
    ("GroupNormalization", 21): _group_normalization,
    ("Hardmax", 13): _flattened,
    ("LogSoftmax", 13): _flattened,
    ("Pad", 11): _pad,
    ("ReduceSum", 13): _to_input("axes"),
    **{(f"Reduce{kind}", 18): _to_input("axes") for kind in _REDUCTIONS},
    ("Resize", 11): _resize,
    ("Resize", 13): _only_known_coordinates,
    ("RoiAlign", 16): _roi_align,
    ("Scan", 9): _batched_scan,
    ("Scatter", 11): _operator("ScatterElements"),
    ("Slice", 10): _slice,
    ("Softmax", 13): _flattened,
    ("Split", 13): _to_input("split"),
    ("Split", 18): _split,
    ("Squeeze", 13): _to_input("axes"),
    ("TopK", 10): _topk,
    ("Unsqueeze", 13): _to_input("axes"),
    ("Upsample", 9): _upsample_scales,
    ("Upsample", 10): _operator("Resize"),
}
"""Operator and first opset of its new form -> the edit that brings a node there."""
