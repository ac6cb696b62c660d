"""Small transformers whose stream is normalized before it is read, in the forms of exporters."""

from __future__ import annotations

import numpy as np
import onnx
from layer_nets import node, normal
from onnx import TensorProto, helper, numpy_helper

WIDTH, WORDS, LENGTH = 12, 20, 6
NORMS = (
    "LayerNormalization", "spelled LayerNormalization", "plain LayerNormalization",
    "RMSNormalization", "spelled RMS", "plain RMS",
)  # fmt: skip
ENDS = ("classes", "hidden", "sums", "tied", "mean")
STARTS = ("words", "pictures")


class ResidualNet:
    """A net that is written node after node.

    Args:
        norm: one of `NORMS`.
        rank: of what the stream holds; None: all of its columns.
    """

    def __init__(self, norm: str = NORMS[0], *, rank: int | None = None, seed: int = 0) -> None:
        self.norm, self.seed = norm, seed
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._plane = np.eye(WIDTH, dtype=np.float32)
        if rank is not None:
            self._plane = normal(WIDTH, rank, seed=90) @ normal(rank, WIDTH, seed=91)
            self._plane /= np.linalg.norm(self._plane, 2)

    @property
    def opset(self) -> int:
        """The least one that has the operators."""
        return 23 if self.norm == "RMSNormalization" else 17

    def add(self, op: str, *inputs: str | np.ndarray, **attrs: object) -> str:
        """The output of a new node; arrays among the inputs become constants."""
        names = [item if isinstance(item, str) else self._constant(item) for item in inputs]
        self.nodes.append(node(op, names, f"{op}_{len(self.nodes)}", **attrs))
        return self.nodes[-1].output[0]

    def weight(self, *shape: int) -> np.ndarray:
        """Random values."""
        self.seed += 1
        return normal(*shape, seed=self.seed, scale=shape[0] ** -0.5)

    def written(self, *shape: int) -> np.ndarray:
        """A weight whose last axis is the stream's."""
        return self.weight(*shape) @ self._plane

    def words(self) -> str:
        """The sum of rows of two tables, one of which is `table`."""
        info = helper.make_tensor_value_info("x", TensorProto.INT64, ["N", LENGTH])
        self.inputs.append(info)
        self.weights["table"] = self.written(WORDS, WIDTH)
        lengths = self.add("Range", np.array(0), np.array(LENGTH), np.array(1))
        places = self.add("Unsqueeze", lengths, np.array([0, 2]))  # as dynamo indexes by two axes
        rows = self.add("GatherND", self.written(LENGTH, WIDTH), places)
        return self.add("Add", self.add("Gather", "table", "x"), rows)

    def pictures(self) -> str:
        """Patches by a Conv, behind a token that is expanded to the batch."""
        info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])
        self.inputs.append(info)
        kernel = np.ascontiguousarray(self.written(3, 2, 2, WIDTH).transpose(3, 0, 1, 2))
        patches = self.add("Conv", "x", kernel, self.written(1, WIDTH)[0], strides=[2, 2])
        flat = self.add("Reshape", patches, np.array([0, WIDTH, -1]))
        rows = self.add("Transpose", flat, perm=[0, 2, 1])
        count = self.add("Slice", self.add("Shape", "x"), np.array([0]), np.array([1]))
        shape = self.add("Concat", count, np.array([1, WIDTH]), axis=0)
        token = self.add("Expand", self.written(1, 1, WIDTH), shape)
        whole = self.add("Concat", token, rows, axis=1)
        return self.add("Add", whole, self.written(1, 5, WIDTH))

    def normalized(self, x: str) -> str:
        """A normalization of `x`, with γ, and with β where it has one."""
        scale, bias = 1 + 0.3 * self.weight(1, WIDTH)[0], 0.5 * self.weight(1, WIDTH)[0]
        if self.norm == "LayerNormalization":
            return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
        if self.norm == "RMSNormalization":
            return self.add("RMSNormalization", x, scale, axis=-1, epsilon=1e-5)
        is_centred = self.norm.endswith("LayerNormalization")
        deviation = self.add("Sub", x, self._mean(x)) if is_centred else x
        quotient = self._quotient(deviation)
        if self.norm.startswith("plain"):
            return quotient
        scaled = self.add("Mul", quotient, scale)
        return self.add("Add", scaled, bias) if is_centred else scaled

    def branches(self, x: str, count: int = 2) -> str:
        """The stream after blocks of attention and of two layers."""
        for _ in range(count):
            x = self.add("Add", x, self._attention(self.normalized(x)))
            wide = self.add("MatMul", self.normalized(x), self.weight(WIDTH, 16))
            wide = self.add("Relu", self.add("Add", wide, self.weight(1, 16)[0]))
            back = self.add("MatMul", wide, self.written(16, WIDTH))
            x = self.add("Add", self.add("Add", back, self.written(1, WIDTH)[0]), x)
        return x

    def end(self, x: str, end: str) -> str:
        """One of `ENDS`."""
        if end == "sums":
            return self.add("Identity", x)
        last = self.normalized(x)
        if end == "hidden":
            return last
        if end == "tied":
            return self.add("MatMul", last, self.add("Transpose", "table", perm=[1, 0]))
        if end == "mean":
            return self.add("MatMul", self._mean(last, axis=1, keepdims=0), self.weight(WIDTH, 3))
        first = self.add("Gather", last, np.array(0), axis=1)
        return self.add("Gemm", first, self.weight(3, WIDTH), self.weight(1, 3)[0], transB=1)

    def model(self, y: str, rank: int = 2) -> onnx.ModelProto:
        """The model that returns `y`, of so many axes."""
        self.nodes[[n.output[0] for n in self.nodes].index(y)].output[0] = "y"
        for item in self.nodes:
            for place, name in enumerate(item.input):
                if name == y:
                    item.input[place] = "y"
        read = {name for item in self.nodes for name in item.input}
        graph = helper.make_graph(
            self.nodes,
            "g",
            self.inputs,
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("ABC")[:rank])],
            [numpy_helper.from_array(v, name) for name, v in self.weights.items() if name in read],
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, ir_version=8, opset_imports=imports)
        return onnx.shape_inference.infer_shapes(model)

    def _constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def _mean(self, x: str, axis: int = -1, keepdims: int = 1) -> str:
        if self.opset < 18:
            return self.add("ReduceMean", x, axes=[axis], keepdims=keepdims)
        return self.add("ReduceMean", x, np.array([axis]), keepdims=keepdims)

    def _quotient(self, x: str) -> str:
        square = self.add("Pow", x, np.array(2, np.float32))
        root = self.add("Sqrt", self.add("Add", self._mean(square), np.array(1e-5, np.float32)))
        return self.add("Div", x, root)

    def _attention(self, x: str) -> str:
        query, key, value = (self.add("MatMul", x, self.weight(WIDTH, 4)) for _ in range(3))
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 2, 1]))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        return self.add("MatMul", mixed, self.written(4, WIDTH))


def residual_net(
    norm: str = NORMS[0], start: str = STARTS[0], end: str = ENDS[0], *,
    rank: int | None = None, seed: int = 0,
) -> onnx.ModelProto:  # fmt: skip
    """A net of two blocks."""
    net = ResidualNet(norm, rank=rank, seed=seed)
    x = net.words() if start == "words" else net.pictures()
    return net.model(net.end(net.branches(x), end), 2 if end in ("classes", "mean") else 3)


def inputs_for(model: onnx.ModelProto, count: int, seed: int = 0) -> np.ndarray:
    """Samples of the input `x`."""
    rng = np.random.default_rng(seed)
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.INT64:
        return rng.integers(0, WORDS, (count, LENGTH))
    return rng.normal(size=(count, 3, 4, 4)).astype(np.float32)


__all__ = ["ENDS", "NORMS", "STARTS", "ResidualNet", "inputs_for", "residual_net"]
