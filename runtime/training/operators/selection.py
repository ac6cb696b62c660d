"""Operators that choose by comparing values: no gradient passes, they run on numpy.

Rare ones are computed by the reference evaluator of the onnx package.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from onnxslim.graph.ir import Constant, to_onnx_dtype
from onnxslim.runtime.training.operators.casts import held_tensor
from onnxslim.runtime.training.operators.element_types import stored_tensor
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator


@operator("NonMaxSuppression", 10, 11)
def _non_max_suppression(form: NodeForm) -> Computation:
    by_centre = bool(form.integer("center_point_box"))

    def run(
        boxes: Tensor,
        scores: Tensor,
        most: Tensor | None = None,
        overlap: Tensor | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        count = 0 if most is None else int(most)
        share = 0.0 if overlap is None else float(overlap)
        floor = None if least is None else float(least)
        values, corners = scores.detach().cpu().numpy(), _corners(boxes, by_centre)
        kept = [
            (batch, kind, box)
            for batch in range(len(values))
            for kind in range(values.shape[1])
            for box in _suppressed(corners[batch], values[batch, kind], count, share, floor)
        ]
        found = np.array(kept, np.int64).reshape(-1, 3)
        return torch.from_numpy(found).to(boxes.device)

    return run


def _corners(boxes: Tensor, by_centre: bool) -> np.ndarray:
    """Boxes as (y1, x1, y2, x2), y1 and x1 the smaller ones."""
    array = boxes.detach().cpu().numpy()
    if by_centre:
        x, y, w, h = np.moveaxis(array, -1, 0)
        return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    low, high = array[..., :2], array[..., 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], -1)


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, most: int, share: float, floor: float | None
) -> list[int]:
    """The boxes that stay, best first: those that overlap a better one by more than `share` go."""
    order = np.argsort(-scores, kind="stable")
    if floor is not None:
        order = order[scores[order] > floor]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        union = areas[best] + areas[order] - common
        order = order[common <= share * union]
    return kept


_BY_REFERENCE: Final = {
    "Unique": (11, 28),
    "MelWeightMatrix": (17,),
}


def _by_reference(form: NodeForm) -> Computation:
    """The node alone, computed by the reference evaluator."""
    node = form.node
    given = [f"in{place}" if tensor.name else "" for place, tensor in enumerate(node.inputs)]
    wanted = [f"out{place}" if form.gives(place) else "" for place in range(len(node.outputs))]
    attributes = {name: _plain(value) for name, value in node.attrs.items()}
    proto = helper.make_node(node.op, given, wanted, **attributes)
    names = [name for name in wanted if name]

    def run(*values: Tensor | None) -> tuple[Tensor | None, ...]:
        arrays = {
            name: value.detach().cpu().numpy()
            for name, value in zip(given, values, strict=False)
            if value is not None
        }
        found = iter(_evaluator(proto, arrays, names, form.version).run(names, arrays))
        results: list[Tensor | None] = []
        for name in wanted:
            stored = stored_tensor(np.asarray(next(found))) if name else None
            results.append(
                None if stored is None else held_tensor(stored, form.dtype).to(form.device)
            )
        return tuple(results)

    return run


def _held(array: Any, form: NodeForm) -> Tensor | None:
    stored = stored_tensor(np.asarray(array))
    return None if stored is None else held_tensor(stored, form.dtype).to(form.device)


def _plain(value: Any) -> Any:
    return onnx.numpy_helper.from_array(value.values) if isinstance(value, Constant) else value


def _evaluator(
    node: onnx.NodeProto, arrays: dict[str, np.ndarray], names: list[str], opset: int
) -> ReferenceEvaluator:
    inputs = [
        helper.make_tensor_value_info(name, to_onnx_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph([node], "one", inputs, outputs)
    imports = [helper.make_opsetid("", opset)]
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=imports))


for _name, _versions in _BY_REFERENCE.items():
    operator(_name, *_versions)(_by_reference)
