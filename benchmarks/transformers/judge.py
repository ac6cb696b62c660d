"""What a file is worth beside the model that it came from: `judge.py MODEL FILE THREADS SECONDS`.

MODEL is a name of `benchmarks.models.transformers`. Prints one line of JSON: nodes, what the
session makes of the graph, agreement of outputs, and ratios of latency where SECONDS (for each
pair) are more than 0. It runs in a process of its own: a broken model can take onnxruntime down.
Nothing but latency is measured by this project itself.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.models.transformers import (
    Arrays,
    Transformer,
    path,
    samples,
    shaped,
    transformers,
)
from benchmarks.models.zoo import cache_folder

HELD: Final = 16  # samples to judge by; other ones than those to calibrate with
FEW_HELD: Final = 6  # pictures and sounds, which have many rows each
SEED: Final = 1
TEXT_SIZES: Final = ((1, 16, 0), (1, 128, 0), (8, 32, 0))  # batch, length, past
DECODING: Final = (1, 1, 128)
PICTURE_SIZES: Final = ((1, 1, 0), (8, 1, 0))
COMPOSED: Final = frozenset(  # operators of ONNX that stand for a whole pattern
    {
        "Attention",
        "Gelu",
        "LayerNormalization",
        "RMSNormalization",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "Swish",
    }
)


def main() -> None:
    """Judge one file."""
    name, file, threads, seconds = sys.argv[1:]
    (model,) = (item for item in transformers([name]) if item.name == name)
    target = Path(file)
    found: dict[str, Any] = {"nodes": node_count(target), "bytes": size_bytes(target)}
    session, graph = opened(target)
    found |= graph
    if target != path(model):
        found |= agreement(model, session)
        if float(seconds):
            found["faster"] = faster(model, target, json.loads(threads), float(seconds))
    sys.stdout.write(json.dumps(found) + "\n")


# ---------------------------------------------------------------------------- graphs


def node_count(file: Path) -> int:
    """Nodes of a file: bodies of If, Loop and Scan, and of local functions included."""
    model = onnx.load(file, load_external_data=False)
    graphs = [model.graph.node, *(function.node for function in model.functions)]
    return sum(1 for nodes in graphs for _ in _nodes(nodes))


def size_bytes(file: Path) -> int:
    """A model and its external data, which lie beside it under its name."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))


def opened(file: Path) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """A session, how many nodes it runs, and how many of each fused kernel are among them."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(1)
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    nodes = list(_nodes(model.graph.node))
    fused = Counter(node.op_type for node in nodes if _is_fused(node))
    return session, {"session_nodes": len(nodes), "fused": dict(sorted(fused.items()))}


def _is_fused(node: onnx.NodeProto) -> bool:
    return node.op_type in COMPOSED or node.domain not in {"", "ai.onnx", "ai.onnx.ml"}


def _nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node)


# ---------------------------------------------------------------------------- outputs


def agreement(model: Transformer, session: ort.InferenceSession) -> dict[str, float]:
    """How near the first output is to the model's own, on samples that calibrate nothing."""
    rows = samples(model, HELD if model.words else FEW_HELD, SEED)
    before, after = _reference(model, rows), _outputs(session, rows)
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        message = f"the output has shape {after[0].shape} instead of {before[0].shape}"
        raise ValueError(message)
    masks = [row["attention_mask"] if model.kind == "text" else None for row in rows]
    pairs = [
        (_rows(model, a, mask), _rows(model, np.asarray(b, np.float64), mask))
        for a, b, mask in zip(before, after, masks, strict=True)
    ]
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    signal, noise = float(np.square(left).sum()), float(np.square(left - right).sum())
    found = {"sqnr_db": min(float(10 * np.log10(signal / max(noise, 1e-300))), 200.0)}
    if model.output in {"logits", "classes"}:
        return {**found, **_of_distributions(left, right)}
    return {**found, **_of_directions(left, right)}


def _reference(model: Transformer, rows: Sequence[Arrays]) -> list[np.ndarray]:
    """The model's own outputs, which are kept beside its samples."""
    kept = cache_folder() / "transformers" / "samples" / f"{model.name}.outputs.npy"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        own = ort.InferenceSession(path(model), _options(1), providers=["CPUExecutionProvider"])
        np.save(kept, np.stack(_outputs(own, rows)))
    return [np.asarray(output, np.float64) for output in np.load(kept)]


def _outputs(session: ort.InferenceSession, rows: Sequence[Arrays]) -> list[np.ndarray]:
    first = session.get_outputs()[0].name
    return [np.asarray(session.run([first], row)[0]) for row in rows]


def _rows(model: Transformer, output: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """(N, ..., C) as rows: words that a mask leaves, or their mean where that is what counts."""
    if model.output == "values":
        return output.reshape(len(output), -1)
    rows = output.reshape(-1, output.shape[-1])
    if mask is not None and output.ndim > 2:
        rows = rows[mask.reshape(-1) == 1]
    return rows.mean(axis=0, keepdims=True) if model.output == "embedding" else rows


def _of_directions(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    norms = np.sqrt(np.square(left).sum(axis=1) * np.square(right).sum(axis=1))
    cosines = (left * right).sum(axis=1) / np.maximum(norms, 1e-300)
    return {"cosine_mean": float(cosines.mean()), "cosine_least": float(cosines.min())}


def _of_distributions(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Divergence in nats, and the share of rows with the same first choice."""
    logs = [_log_softmax(side) for side in (left, right)]
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    same = left.argmax(axis=1) == right.argmax(axis=1)
    return {"divergence": float(divergence.mean()), "top_1": float(same.mean())}


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    moved = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=1, keepdims=True)))


# ---------------------------------------------------------------------------- latency


def faster(
    model: Transformer, file: Path, threads: Sequence[int], seconds: float
) -> Mapping[str, Sequence[float]]:
    """How many times as fast, with 95 % intervals, by size and number of threads."""
    from onnxslim.api import bench_models

    found: dict[str, Sequence[float]] = {}
    for batch, length, past in sizes(model):
        feeds = shaped(model, batch, length, past)
        for count in threads:
            pair = bench_models(
                [path(model), file], calibration=[feeds], threads=count, seconds=seconds
            )[1][2]
            if pair is not None:
                what = size_name(model, batch, length, past)
                found[f"{what}, {count}"] = [pair.ratio, pair.low, pair.high]
    return found


def sizes(model: Transformer) -> Sequence[tuple[int, int, int]]:
    """Batch, length and length of the cache that a model is timed at."""
    if model.kind in {"picture", "sound"}:
        return PICTURE_SIZES
    return (*TEXT_SIZES, DECODING) if model.kind == "cached" else TEXT_SIZES


def size_name(model: Transformer, batch: int, length: int, past: int) -> str:
    """What a table calls a size."""
    if model.kind in {"picture", "sound"}:
        return str(batch)
    return f"{batch}x{length} after {past}" if past else f"{batch}x{length}"


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return options


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # sessions that are torn down late have nothing to say any more
