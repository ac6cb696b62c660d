"""LSTM on integers: onnxruntime's DynamicQuantizeLSTM, which finds ranges at run time.

Its inputs and outputs stay float, so it needs no calibration and no QuantizeLinear. Weights are
int8 or uint8 with a scale for each row, or for each direction, rounded to nearest.

Owns: the layout of the operator's operands. Not here: which nodes become it (see `rules`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import MICROSOFT_DOMAIN, Node, Variable
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization.weight_scales import WeightForm
from onnxslim.records import Fidelity

KERNEL: Final = "DynamicQuantizeLSTM"
_OPERANDS: Final = 8  # of LSTM: X, W, R, B, sequence_lens, initial_h, initial_c, P
_W, _R = 1, 2
_VERSION: Final = 1


def objection_to_lstm(node: Node) -> str | None:
    """Why onnxruntime's kernel does not compute an LSTM, or None."""
    if node.attrs.get("layout", 0):
        return "onnxruntime's integer LSTM has no layout with the batch first"
    if node.inputs[0].dtype != np.float32:
        return f"its input `{node.inputs[0].name}` is not float32"
    for index in (_W, _R):
        values = const_array(node.inputs[index])
        if values is None:
            return "its weights are computed at run time"
        if not np.isfinite(values).all():
            return "its weights are not finite"
    return None


def direction_codes(weight: np.ndarray, form: WeightForm) -> dict[str, np.ndarray]:
    """A weight (directions, 4 * hidden_size, columns), rounded to nearest, as the kernel reads it.

    Returns:
        In the order of the inputs: codes (directions, columns, 4 * hidden_size), then scale and
        zero point, each (directions, 4 * hidden_size), or (directions,) with one scale in all.
    """
    axis = None if form.is_per_tensor else 1
    across = None if form.is_per_tensor else 0
    turned = weight.transpose(0, 2, 1)  # (directions, columns, 4 * hidden_size)
    grids = [form.grid.over(each.min(across), each.max(across), axis) for each in turned]
    return {
        "codes": np.stack([g.quantized(each) for g, each in zip(grids, turned, strict=True)]),
        "scale": np.stack([grid.scale for grid in grids]),
        "zero_point": np.stack([grid.zero_point for grid in grids]),
    }


def to_dynamic_lstm(rewriter: Rewriter, node: Node, form: WeightForm) -> None:
    """Replace `node`, an LSTM without objection, with DynamicQuantizeLSTM."""
    inputs: list[gs.Tensor] = list(node.inputs)
    inputs += [Variable("") for _ in range(_OPERANDS - len(inputs))]
    for index in (_W, _R):
        values = const_array(inputs[index])
        assert values is not None
        name = inputs[index].name
        inputs[index], *parameters = (
            rewriter.constant(array, f"{name}_{part}")
            for part, array in direction_codes(values, form).items()
        )
        inputs += parameters
    attrs = {name: value for name, value in node.attrs.items() if name != "layout"}
    rewriter.update(
        node,
        f"LSTM became {KERNEL}: ranges are found at run time, weights are rounded to nearest",
        op=KERNEL,
        inputs=inputs,
        attrs=attrs,
        fidelity=Fidelity.LOSSY,
        domain=MICROSOFT_DOMAIN,
    )
    rewriter.main.import_domain(MICROSOFT_DOMAIN, _VERSION)
