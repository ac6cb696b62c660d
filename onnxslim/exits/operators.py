"""The operators of an exit: features, head, scores, confidence.

`NodeBuilder` collects nodes; `nested_ifs` inserts them. From the features on, all values are
float32, whatever the type of the network: heads are small, and not every type has all operators.

Owns: which operators an exit consists of. All of them exist in opset 11; they are written in the
form that the opset of the model requires.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.exits.points import Dim, ExitPoint
from onnxslim.graph.ir import Constant, Node, Variable, to_onnx_dtype
from onnxslim.graph.rewrite import Rewriter

MIN_OPSET: Final = 11
_FLOAT: Final[np.dtype[Any]] = np.dtype(np.float32)
_INT: Final[np.dtype[Any]] = np.dtype(np.int64)
_BOOL: Final[np.dtype[Any]] = np.dtype(np.bool_)
_LAST: Final = 1  # axis of the classes in (N, classes)
_AXES_INPUT: Final = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18, "ReduceMean": 18}


class ScoreForm(enum.StrEnum):
    """The form of class scores."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log-probabilities"


class Confidence(enum.StrEnum):
    """A measure of confidence from 0 to 1, computed from the probabilities p of a head.

    MAX_PROBABILITY: max p. ENTROPY: 1 + Σ p·log p / log(classes). MARGIN: the largest p minus the
    second largest.
    """

    MAX_PROBABILITY = "max-probability"
    ENTROPY = "entropy"
    MARGIN = "margin"


@dataclass(frozen=True)
class Pooling:
    """How a tensor becomes features: averages over the cells of a grid, or over positions.

    Attributes:
        cells: number of cells along each spatial axis; () where the tensor is no feature map.
        is_first: whether the features of a sequence are those of its first position, the place of
            the token for classification.
        is_masked: whether the average over a sequence leaves padding out.
    """

    point: ExitPoint
    cells: tuple[int, ...] = ()
    is_first: bool = False
    is_masked: bool = False

    @property
    def features(self) -> int:
        """Number of features of one sample."""
        return self.point.channels * prod(self.cells)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of a cell along each axis; cells overlap where the grid does not divide the map."""
        sizes = self.point.shape[2:]
        steps = zip(sizes, self.cells, self.strides, strict=True)
        return tuple(int(size or 0) - (cells - 1) * step for size, cells, step in steps)

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps from one cell to the next, along each axis."""
        pairs = zip(self.point.shape[2:], self.cells, strict=True)
        return tuple(int(size or 0) // cells for size, cells in pairs)

    def __str__(self) -> str:
        """E.g. `4x4 cells of 32 channels`."""
        if not self.cells:
            of_what = ""
            if self.point.is_sequence:
                averaged = ", averaged" + (" over the mask" if self.is_masked else "")
                of_what = " of the first position" if self.is_first else averaged
            return f"{self.point.channels} features{of_what}"
        if prod(self.cells) == 1:
            return f"{self.point.channels} channels, averaged"
        return f"{'x'.join(map(str, self.cells))} cells of {self.point.channels} channels"


HiddenUnits = tuple[np.ndarray, np.ndarray]
"""Weight (units, features) and bias (units,) of a layer of random ReLU units."""


@dataclass(frozen=True)
class Head:
    """An exit head: a linear classifier on pooled features that returns calibrated logits.

    Attributes:
        weight: (classes, features); the columns of hidden units come after the features themselves.
        bias: (classes,).
    """

    pooling: Pooling
    weight: np.ndarray
    bias: np.ndarray
    hidden: HiddenUnits | None = None


class NodeBuilder:
    """Builds nodes for the opset of a graph, in an order in which they can run."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.opset, self.fresh = rewriter.opset, rewriter.fresh_name
        self._given = {tensor.name: tensor for tensor in rewriter.main.inputs}
        self.nodes: list[Node] = []

    # ----------------------------------------------------------------- plain operators

    def add(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        name: str,
        *,
        dtype: np.dtype[Any] = _FLOAT,
        shape: Sequence[Dim] | None = None,
        **attrs: object,
    ) -> Variable:
        """Add a node of one output; returns the output."""
        made = Variable(self.fresh(name), dtype, None if shape is None else list(shape))
        self.nodes.append(Node(op, None, dict(attrs), list(inputs), [made]))
        return made

    def constant(self, values: np.ndarray, name: str) -> Constant:
        """A constant; it is written in the innermost graph around its uses."""
        values = np.require(values, requirements="C")
        values.flags.writeable = False
        return Constant(self.fresh(name), values)

    def ints(self, *values: int) -> Constant:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64), "ints")

    def cast(self, tensor: gs.Tensor, dtype: np.dtype[Any], name: str) -> gs.Tensor:
        """`tensor` cast to `dtype`; `tensor` itself where it has that type."""
        if np.dtype(tensor.dtype) == dtype:
            return tensor
        return self.add("Cast", [tensor], name, dtype=dtype, to=to_onnx_dtype(dtype))

    def reduced(self, op: str, tensor: gs.Tensor, axis: int | None, name: str) -> Variable:
        """A reduction over one axis, which is removed; None: over all axes, to a scalar."""
        if axis is None:
            return self.add(op, [tensor], name, keepdims=0)
        if self.opset >= _AXES_INPUT[op]:
            return self.add(op, [tensor, self.ints(axis)], name, keepdims=0)
        return self.add(op, [tensor], name, keepdims=0, axes=[axis])

    # ----------------------------------------------------------------- an exit

    def features(self, tensor: gs.Tensor, pooling: Pooling) -> gs.Tensor:
        """The pooled features of `tensor`: (N, features), float32."""
        if pooling.cells:
            tensor = self._pooled(tensor, pooling)
            tensor = self.cast(tensor, _FLOAT, "exit_pooled")
            # (N, C, cells...) -> (N, C·cells)
            return self.add("Flatten", [tensor], "exit_features", axis=1)
        tensor = self.cast(tensor, _FLOAT, "exit_point")
        if len(pooling.point.shape) == 2:
            return tensor
        if pooling.is_first:
            first = self.constant(np.array(0, np.int64), "exit_first")
            return self.add("Gather", [tensor, first], "exit_features", axis=1)
        if pooling.is_masked:
            return self._averaged(tensor, pooling)
        return self.reduced("ReduceMean", tensor, 1, "exit_features")  # (N, T, F) -> (N, F)

    def _averaged(self, tensor: gs.Tensor, pooling: Pooling) -> Variable:
        """The mean (N, F) over positions of `tensor` (N, T, F), without those of padding."""
        mask = pooling.point.mask
        assert mask is not None
        counts = self.cast(self._given[mask.name], _BOOL, "exit_mask")
        if mask.left_out:
            counts = self.add("Not", [counts], "exit_counts", dtype=_BOOL)
        weights = self.cast(counts, _FLOAT, "exit_weights")
        tall = self.add("Reshape", [weights, self.ints(0, -1, 1)], "exit_tall")  # (N, T, 1)
        total = self.reduced(
            "ReduceSum", self.add("Mul", [tensor, tall], "exit_counted"), 1, "exit_total"
        )
        number = self.reduced("ReduceSum", tall, 1, "exit_number")  # (N, 1)
        one = self.constant(np.array(1, np.float32), "exit_one")
        return self.add(
            "Div", [total, self.add("Max", [number, one], "exit_divisor")], "exit_features"
        )

    def _pooled(self, tensor: gs.Tensor, pooling: Pooling) -> Variable:
        dtype = np.dtype(tensor.dtype)
        if prod(pooling.cells) == 1:
            return self.add("GlobalAveragePool", [tensor], "exit_pooled", dtype=dtype)
        kernel, strides = list(pooling.kernel), list(pooling.strides)
        return self.add(
            "AveragePool",
            [tensor],
            "exit_pooled",
            dtype=dtype,
            kernel_shape=kernel,
            strides=strides,
        )

    def head_input(
        self, tensor: gs.Tensor, pooling: Pooling, hidden: HiddenUnits | None
    ) -> gs.Tensor:
        """The input of the last layer of a head: the features, then the hidden units."""
        features = self.features(tensor, pooling)
        if hidden is None:
            return features
        weight, bias = (
            self.constant(part.astype(np.float32), "exit_hidden_weight") for part in hidden
        )
        units = self.add("Gemm", [features, weight, bias], "exit_hidden", transB=1)
        units = self.add("Relu", [units], "exit_units")
        return self.add("Concat", [features, units], "exit_hidden_features", axis=1)

    def logits(self, tensor: gs.Tensor, head: Head, name: str) -> Variable:
        """The logits of a head on `tensor`: (N, classes), float32."""
        x = self.head_input(tensor, head.pooling, head.hidden)
        weight = self.constant(head.weight.astype(np.float32), f"{name}_weight")
        bias = self.constant(head.bias.astype(np.float32), f"{name}_bias")
        return self.add("Gemm", [x, weight, bias], name, transB=1, shape=(None, len(head.bias)))

    def softmax(self, logits: gs.Tensor, name: str, op: str = "Softmax") -> Variable:
        """A softmax, or another `op` of its kind, along the classes."""
        return self.add(op, [logits], name, axis=_LAST)

    def confidence(self, logits: gs.Tensor, kind: Confidence, classes: int) -> Variable:
        """The confidence of each sample, (N,), up to the scale and shift that `level` undoes."""
        p = self.softmax(logits, "exit_probabilities")
        if kind is Confidence.MAX_PROBABILITY:
            return self.reduced("ReduceMax", p, _LAST, "exit_confidence")
        if kind is Confidence.ENTROPY:
            logs = self.softmax(logits, "exit_log_probabilities", "LogSoftmax")
            terms = self.add("Mul", [p, logs], "exit_entropy_terms")
            return self.reduced("ReduceSum", terms, _LAST, "exit_confidence")
        # margin: the difference of the two largest probabilities
        best = Variable(self.fresh("exit_best"), _FLOAT, [None, 2])
        indices = Variable(self.fresh("exit_best_places"), _INT, [None, 2])
        self.nodes.append(Node("TopK", None, {"axis": _LAST}, [p, self.ints(2)], [best, indices]))
        signs = self.constant(np.array([1, -1], np.float32), "exit_signs")
        return self.reduced(
            "ReduceSum", self.add("Mul", [best, signs], "exit_margin"), _LAST, "exit_confidence"
        )

    def scores(
        self, logits: gs.Tensor, score_form: ScoreForm, output: gs.Tensor, name: str | None = None
    ) -> Variable:
        """The logits as scores of the form, shape and type of `output`."""
        ops = {ScoreForm.PROBABILITIES: "Softmax", ScoreForm.LOG_PROBABILITIES: "LogSoftmax"}
        dtype = np.dtype(output.dtype)
        made = logits
        if score_form in ops:
            made = self.softmax(made, "exit_scores", ops[score_form])
        if len(output.shape) > 2:  # 0 copies the batch size from the input
            sizes = self.ints(0, *output.shape[1:])
            made = self.add("Reshape", [made, sizes], "exit_shaped")
        made = self.cast(made, dtype, "exit_cast")
        last = self.add("Identity", [made], name or "exit_scores", dtype=dtype)
        last.shape = [None, *output.shape[1:]]
        return last

    def above(self, values: gs.Tensor, level: float, name: str) -> Variable:
        """Whether values reach `level`, elementwise; NaN does not."""
        # GreaterOrEqual needs opset 12: greater than the float32 just below is the same
        below = np.nextafter(np.float32(level), np.float32(-np.inf))
        threshold = self.constant(np.array(below, np.float32), f"{name}_threshold")
        return self.add("Greater", [values, threshold], name, dtype=_BOOL)


def level(threshold: float, kind: Confidence, classes: int) -> float:
    """The value of `NodeBuilder.confidence` at a confidence of `threshold`."""
    if kind is Confidence.ENTROPY:
        return (threshold - 1) * log(classes)
    return threshold


def confidences(logits: np.ndarray, kind: Confidence) -> np.ndarray:
    """The confidence that the graph computes, (N,), for logits (N, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(logs)
    if kind is Confidence.MAX_PROBABILITY:
        return np.asarray(p.max(axis=1))
    if kind is Confidence.ENTROPY:
        return np.asarray(1 + (p * logs).sum(axis=1) / log(p.shape[1]))
    best = np.partition(p, -2, axis=1)[:, -2:]  # the two largest, in order
    return np.asarray(best[:, 1] - best[:, 0])
