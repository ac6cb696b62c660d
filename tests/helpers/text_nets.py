"""Small transformers on tokens, in the form that exporters write, and texts for them.

A text is a first token, then tokens of which some tell its class; the rest of a batch is padding.
Weights are random; the last layer of a classifier is fitted to the classes, so that its answers
have sense.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from layer_nets import node, normal
from onnx import TensorProto, helper, numpy_helper

CLASSES = 3
TOKENS = 40  # rows of the table
WIDTH, HEADS = 16, 2
LENGTH = 12
_LOW = -1e4


def texts(count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Texts of different lengths, padded to `LENGTH`: `ids` and `mask` (count, L), and classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    ids = rng.integers(10, TOKENS, (count, LENGTH))
    share = rng.uniform(0.4, 1.0, (count, 1))  # how much of a text tells its class
    tells = rng.random((count, LENGTH)) < share
    ids = np.where(tells, 1 + 3 * labels[:, None] + rng.integers(0, 3, ids.shape), ids)
    ids[:, 0] = 0
    lengths = rng.integers(LENGTH // 3, LENGTH + 1, (count, 1))
    mask = (np.arange(LENGTH) < lengths).astype(np.int64)
    return {"ids": np.where(mask, ids, 9), "mask": mask}, labels


def transformer(
    output: str = "classes",
    *,
    layers: int = 3,
    batch: int | str = "N",
    length: int | str = "T",
    pads: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """A transformer with the inputs `ids` and `mask` and the output `y`.

    `output` says what `y` is: `hidden` states, `tokens` (logits), the `mean` of the states over the
    mask, the scores of `classes`, or such scores `late`, which read `ids` again. With `pads`, the
    mask is true where there is padding, as PyTorch's own encoder has it.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "table": normal(TOKENS, WIDTH, seed=seed, scale=0.7),
        "second": np.array([1, 2], np.int64),
        "one": np.array(1, np.float32),
        "low": np.array(_LOW, np.float32),
        "root": np.array(np.sqrt(WIDTH / HEADS), np.float32),
        "cut": np.array([0, 0, HEADS, WIDTH // HEADS], np.int64),
        "join": np.array([0, 0, WIDTH], np.int64),
        "scale": np.ones(WIDTH, np.float32),
        "shift": np.zeros(WIDTH, np.float32),
    }
    nodes = [
        node("Gather", ["table", "ids"], "words"),
        node("Cast", ["mask"], "float_mask", to=TensorProto.FLOAT),
        node("Unsqueeze", ["float_mask", "second"], "wide"),
        node("Identity" if pads else "Sub", ["wide"] if pads else ["one", "wide"], "off"),
        node("Mul", ["off", "low"], "bias"),
        node("LayerNormalization", ["words", "scale", "shift"], "h0"),
    ]
    for number in range(layers):
        nodes += _layer(number, weights, rng)
    nodes += _end(output, f"h{layers}", weights, seed)
    read = {name for item in nodes for name in item.input}
    flags = TensorProto.BOOL if pads else TensorProto.INT64
    shapes = {"tokens": [batch, length, TOKENS], "hidden": [batch, length, WIDTH]}
    made = shapes.get(output, [batch, WIDTH if output == "mean" else CLASSES])
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, length]),
            helper.make_tensor_value_info("mask", flags, [batch, length]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(weights[name], name) for name in weights if name in read],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    if output in ("classes", "late"):
        _fit(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _layer(
    number: int, weights: dict[str, np.ndarray], rng: np.random.Generator
) -> Sequence[onnx.NodeProto]:
    """Attention and a feed-forward layer, each added and normalised."""
    x, p = f"h{number}", f"l{number}."
    for name, rows, columns in (
        *((f"{p}{part}", WIDTH, WIDTH) for part in ("q", "k", "v", "o")),
        (f"{p}up", WIDTH, 2 * WIDTH),
        (f"{p}down", 2 * WIDTH, WIDTH),
    ):
        weights[name] = (rng.normal(size=(rows, columns)) / np.sqrt(rows)).astype(np.float32)
    nodes = []
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", [x, f"{p}{part}"], f"{p}{part}m"),
            node("Reshape", [f"{p}{part}m", "cut"], f"{p}{part}c"),
            node("Transpose", [f"{p}{part}c"], f"{p}{part}t", perm=perm),
        ]
    return [
        *nodes,
        node("MatMul", [f"{p}qt", f"{p}kt"], f"{p}raw"),
        node("Div", [f"{p}raw", "root"], f"{p}scaled"),
        node("Add", [f"{p}scaled", "bias"], f"{p}masked"),
        node("Softmax", [f"{p}masked"], f"{p}shares", axis=-1),
        node("MatMul", [f"{p}shares", f"{p}vt"], f"{p}mixed"),
        node("Transpose", [f"{p}mixed"], f"{p}turned", perm=[0, 2, 1, 3]),
        node("Reshape", [f"{p}turned", "join"], f"{p}joined"),
        node("MatMul", [f"{p}joined", f"{p}o"], f"{p}out"),
        node("Add", [x, f"{p}out"], f"{p}sum"),
        node("LayerNormalization", [f"{p}sum", "scale", "shift"], f"{p}middle"),
        node("MatMul", [f"{p}middle", f"{p}up"], f"{p}wide"),
        node("Relu", [f"{p}wide"], f"{p}relu"),
        node("MatMul", [f"{p}relu", f"{p}down"], f"{p}narrow"),
        node("Add", [f"{p}middle", f"{p}narrow"], f"{p}last"),
        node("LayerNormalization", [f"{p}last", "scale", "shift"], f"h{number + 1}"),
    ]


def _end(
    output: str, last: str, weights: dict[str, np.ndarray], seed: int
) -> Sequence[onnx.NodeProto]:
    if output == "hidden":
        return [node("Identity", [last], "y")]
    if output == "tokens":
        return [
            node("Transpose", ["table"], "turned_table", perm=[1, 0]),
            node("MatMul", [last, "turned_table"], "y"),
        ]
    weights["last_axis"], weights["first"] = np.array([2], np.int64), np.array(0, np.int64)
    weights["positions"] = np.array([1], np.int64)
    if output == "mean":
        return [
            node("Unsqueeze", ["float_mask", "last_axis"], "tall"),
            node("Mul", [last, "tall"], "counted"),
            node("ReduceSum", ["counted", "positions"], "total", keepdims=0),
            node("ReduceSum", ["float_mask", "positions"], "number", keepdims=1),
            node("Div", ["total", "number"], "y"),
        ]
    weights["head"], weights["head_bias"] = (
        np.zeros((WIDTH, CLASSES), "f4"),
        np.zeros(CLASSES, "f4"),
    )
    nodes = [
        node("Gather", [last, "first"], "features", axis=1),
        node("Gemm", ["features", "head", "head_bias"], "scores"),
    ]
    if output == "classes":
        return [*nodes, node("Identity", ["scores"], "y")]
    return [  # the words are read again
        *nodes,
        node("ReduceMean", ["words"], "mean_word", axes=[1, 2], keepdims=0),
        node("Unsqueeze", ["mean_word", "positions"], "mean_row"),
        node("Add", ["scores", "mean_row"], "y"),
    ]


def _fit(model: onnx.ModelProto) -> None:
    """Ridge regression from the features to the classes."""
    given, labels = texts(2000, seed=7)
    flags = model.graph.input[1].type.tensor_type.elem_type == TensorProto.BOOL
    feeds = {"ids": given["ids"], "mask": given["mask"] == 0 if flags else given["mask"]}
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    open_model.graph.output.append(
        helper.make_tensor_value_info("features", TensorProto.FLOAT, None)
    )
    session = ort.InferenceSession(
        open_model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (x,) = session.run(["features"], feeds)
    targets = 6 * np.eye(CLASSES)[labels] - 2
    x = np.hstack([x, np.ones((len(x), 1))]).astype(np.float64)
    solved = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ targets)
    for stored in model.graph.initializer:
        if stored.name in ("head", "head_bias"):
            found = solved[:-1] if stored.name == "head" else solved[-1]
            stored.CopyFrom(numpy_helper.from_array(found.astype(np.float32), stored.name))
