"""A classifier of sentences on a trained transformer: which package does a docstring come from?

    python -m benchmarks.models.text_classifier FOLDER

Writes `minilm_packages.onnx`, `calib.npz` and `eval.npz`, padded to 40 tokens. The encoder is that
of `sentence_encoder` as it was trained; a softmax layer on the mean of its last states, without
padding, is fitted to a third of the sentences. Another third is for calibration, without labels,
and the last with labels.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from scipy import optimize, special

from benchmarks.models.sentence_encoder import (
    MAX,
    WIDTH,
    first_sentences,
    model_file,
    padded,
    tokenized,
)

PACKAGES: Final = ("matplotlib", "networkx", "numpy", "onnxruntime", "rich", "scipy")
NAME: Final = "minilm_packages"
_DECAY: Final = 1e-3
_TOGETHER: Final = 64


def write(folder: Path) -> None:
    """Write the model and both files of samples to `folder`."""
    texts, labels = _labelled()
    feeds = padded(tokenized(texts), MAX)
    parts = [slice(part, None, 3) for part in range(3)]
    model = _with_head(feeds, labels, parts[0])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / f"{NAME}.onnx")
    np.savez(folder / "calib.npz", **{name: array[parts[1]] for name, array in feeds.items()})
    held = {name: array[parts[2]] for name, array in feeds.items()}
    np.savez(folder / "eval.npz", **held, label=labels[parts[2]])


def _labelled() -> tuple[list[str], np.ndarray]:
    """Sentences in random order, and the number of the package of each."""
    found = {text: number for number, name in enumerate(PACKAGES) for text in _sentences(name)}
    texts = sorted(found)
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[k] for k in order], np.array([found[texts[k]] for k in order])


def _sentences(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for file in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "tests" not in file.parts:
            yield from first_sentences(ast.parse(file.read_text(encoding="utf-8")))


def _with_head(feeds: dict[str, np.ndarray], labels: np.ndarray, known: slice) -> onnx.ModelProto:
    """The encoder with the mean of its states and a fitted layer of classes."""
    model = onnx.load(model_file())
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["kept_rows"]),
        helper.make_node("Mul", ["last_hidden_state", "kept_rows"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "middle"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["kept", "middle"], ["number"], keepdims=1),
        helper.make_node("Div", ["total", "number"], ["mean"]),
    ]
    model.graph.node.extend(nodes)
    for name, axis in (("last", 2), ("middle", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), name))
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", WIDTH])
    )
    features = _features(model, {name: array[known] for name, array in feeds.items()})
    weight, bias = _fitted(features, labels[known])
    model.graph.node.append(helper.make_node("Gemm", ["mean", "head", "bias"], ["logits"]))
    for name, array in (("head", weight), ("bias", bias)):
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    scores = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(PACKAGES)])
    model.graph.output[0].CopyFrom(scores)
    onnx.checker.check_model(model, full_check=True)
    return model


def _features(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    batches = (slice(start, start + _TOGETHER) for start in range(0, count, _TOGETHER))
    runs = (session.run(None, {k: a[batch] for k, a in feeds.items()})[0] for batch in batches)
    return np.concatenate(list(runs)).astype(np.float64)


def _fitted(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (D, classes) and bias of a softmax regression with a little decay."""
    wanted = np.eye(len(PACKAGES))[labels]
    shape = (features.shape[1] + 1, len(PACKAGES))
    x = np.hstack([features, np.ones((len(features), 1))])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat.reshape(shape)
        logs = special.log_softmax(x @ weight, axis=1)
        slope = x.T @ (np.exp(logs) - wanted) / len(x) + _DECAY * weight
        value = -float((wanted * logs).sum()) / len(x) + _DECAY / 2 * float((weight**2).sum())
        return value, slope.reshape(-1)

    found = optimize.minimize(loss, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B").x
    weight = found.reshape(shape)
    return weight[:-1], weight[-1]


def main(arguments: Sequence[str]) -> None:
    """Write to the folder that is named."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    write(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
