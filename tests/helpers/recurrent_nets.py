"""Random recurrent layers, with whatever their operator takes."""

from __future__ import annotations

import numpy as np
import onnx
from layer_nets import net, normal

STEPS, BATCH, WIDTH, HIDDEN = 7, 3, 12, 16
SHAPE = [STEPS, BATCH, WIDTH]
LENGTHS = np.array([STEPS, 3, 5], np.int32)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent_net(
    direction: str = "forward",
    *,
    bias: bool = True,
    lengths: bool = False,
    initial: bool = False,
    peephole: bool = False,
    op: str = "LSTM",
    **attrs: object,
) -> onnx.ModelProto:
    """One layer, from `x` of `SHAPE` to `y`, `h` (and `c`)."""
    count = 2 if direction == "bidirectional" else 1
    gates = GATES[op]
    weights = {
        "w": normal(count, gates * HIDDEN, WIDTH, scale=WIDTH**-0.5),
        "r": normal(count, gates * HIDDEN, HIDDEN, seed=2, scale=HIDDEN**-0.5),
    }
    inputs = ["x", "w", "r", "", "", "", "", ""]
    optional = {
        3: ("b", bias, normal(count, 2 * gates * HIDDEN, seed=3, scale=0.1)),
        4: ("n", lengths, LENGTHS),
        5: ("h0", initial, normal(count, BATCH, HIDDEN, seed=4, scale=0.3)),
        6: ("c0", initial and op == "LSTM", normal(count, BATCH, HIDDEN, seed=5, scale=0.3)),
        7: ("p", peephole, normal(count, 3 * HIDDEN, seed=6, scale=0.3)),
    }
    for index, (name, is_there, values) in optional.items():
        if is_there:
            inputs[index], weights[name] = name, values
    while not inputs[-1]:
        inputs.pop()
    outputs = ["y", "h", "c"] if op == "LSTM" else ["y", "h"]
    layer = onnx.helper.make_node(
        op, inputs, outputs, hidden_size=HIDDEN, direction=direction, **attrs
    )
    return net([layer], weights, SHAPE, outputs=outputs)
