"""Operators of an exit, written down: features, head, scores, confidence.

`NodeBuilder` collects nodes; where they go is up to `graph`. Everything is computed in float32 from
the features on, whatever the network's type: heads are small, and not every type has all operators.

What may change here: which operators say it. All are of opset 11 or older, in the spelling of the
model's own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, prod
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.exits.points import Dim, ExitPoint
from onnxslim.graph.ir import Constant, Node, Variable, to_onnx_dtype

MIN_OPSET: Final = 11
_FLOAT: Final[np.dtype[Any]] = np.dtype(np.float32)
_INT: Final[np.dtype[Any]] = np.dtype(np.int64)
_BOOL: Final[np.dtype[Any]] = np.dtype(np.bool_)
_LAST: Final = 1  # axis of the classes in (N, classes)
_AXES_INPUT: Final = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18, "ReduceMean": 18}


class ScoreForm(enum.StrEnum):
    """What class scores are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log-probabilities"


class Confidence(enum.StrEnum):
    """How sure a head is, from 0 to 1; all from its probabilities p.

    MAX_PROBABILITY: max p. ENTROPY: 1 + Σ p·log p / log(classes). MARGIN: the largest p less the
    second.
    """

    MAX_PROBABILITY = "max-probability"
    ENTROPY = "entropy"
    MARGIN = "margin"


@dataclass(frozen=True)
class Pooling:
    """How a tensor becomes features: averages over the cells of a grid.

    Attributes:
        point: the tensor.
        cells: of the grid, along each spatial axis; () where the tensor is no map.
    """

    point: ExitPoint
    cells: tuple[int, ...] = ()

    @property
    def features(self) -> int:
        """How many there are of one sample."""
        return self.point.channels * prod(self.cells)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of a cell: neighbours overlap where the grid does not divide the map."""
        sizes = self.point.shape[2:]
        steps = zip(sizes, self.cells, self.strides, strict=True)
        return tuple(int(size or 0) - (cells - 1) * step for size, cells, step in steps)

    @property
    def strides(self) -> tuple[int, ...]:
        """From one cell to the next."""
        pairs = zip(self.point.shape[2:], self.cells, strict=True)
        return tuple(int(size or 0) // cells for size, cells in pairs)

    def __str__(self) -> str:
        """E.g. `4x4 cells of 32 channels`."""
        if not self.cells:
            return f"{self.point.channels} features"
        if prod(self.cells) == 1:
            return f"{self.point.channels} channels, averaged"
        return f"{'x'.join(map(str, self.cells))} cells of {self.point.channels} channels"


@dataclass(frozen=True)
class Head:
    """A classifier on pooled features; it returns logits that are calibrated.

    Attributes:
        pooling: where its features come from.
        weight: (classes, features), of hidden units behind the features themselves.
        bias: (classes,).
        hidden: weight (units, features) and bias (units,) of a layer of random units, if any.
    """

    pooling: Pooling
    weight: np.ndarray
    bias: np.ndarray
    hidden: tuple[np.ndarray, np.ndarray] | None = None


class NodeBuilder:
    """Nodes in the order in which they can run.

    Args:
        opset: of the model.
        fresh: makes a wish for a name one that is free.
    """

    def __init__(self, opset: int, fresh: Callable[[str], str]) -> None:
        self.opset, self.fresh = opset, fresh
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
        """A node of one output."""
        made = Variable(self.fresh(name), dtype, None if shape is None else list(shape))
        self.nodes.append(Node(op, None, dict(attrs), list(inputs), [made]))
        return made

    def constant(self, values: np.ndarray, name: str) -> Constant:
        """A constant, written in the innermost graph around its uses."""
        values = np.require(values, requirements="C")
        values.flags.writeable = False
        return Constant(self.fresh(name), values)

    def ints(self, *values: int) -> Constant:
        """A list of integers."""
        return self.constant(np.array(values, np.int64), "ints")

    def cast(self, tensor: gs.Tensor, dtype: np.dtype[Any], name: str) -> gs.Tensor:
        """`tensor` as `dtype`; itself where it is that already."""
        if np.dtype(tensor.dtype) == dtype:
            return tensor
        return self.add("Cast", [tensor], name, dtype=dtype, to=to_onnx_dtype(dtype))

    def reduced(self, op: str, tensor: gs.Tensor, axis: int | None, name: str) -> Variable:
        """A reduction over one axis, which goes, or over all."""
        if axis is None:
            return self.add(op, [tensor], name, keepdims=0)
        if self.opset >= _AXES_INPUT[op]:
            return self.add(op, [tensor, self.ints(axis)], name, keepdims=0)
        return self.add(op, [tensor], name, keepdims=0, axes=[axis])

    # ----------------------------------------------------------------- an exit

    def features(self, tensor: gs.Tensor, pooling: Pooling) -> gs.Tensor:
        """(N, features), float32."""
        if pooling.cells:
            tensor = self._pooled(tensor, pooling)
            tensor = self.cast(tensor, _FLOAT, "exit_pooled")
            # (N, C, cells...) -> (N, C·cells)
            return self.add("Flatten", [tensor], "exit_features", axis=1)
        tensor = self.cast(tensor, _FLOAT, "exit_point")
        if len(pooling.point.shape) == 2:
            return tensor
        return self.reduced("ReduceMean", tensor, 1, "exit_features")  # (N, T, F) -> (N, F)

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
        self, tensor: gs.Tensor, pooling: Pooling, hidden: tuple[np.ndarray, np.ndarray] | None
    ) -> gs.Tensor:
        """What the last layer of a head reads: features, and hidden units behind them."""
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
        """(N, classes), float32."""
        x = self.head_input(tensor, head.pooling, head.hidden)
        weight = self.constant(head.weight.astype(np.float32), f"{name}_weight")
        bias = self.constant(head.bias.astype(np.float32), f"{name}_bias")
        return self.add("Gemm", [x, weight, bias], name, transB=1, shape=(None, len(head.bias)))

    def softmax(self, logits: gs.Tensor, name: str, op: str = "Softmax") -> Variable:
        """Along the classes."""
        return self.add(op, [logits], name, axis=_LAST)

    def confidence(self, logits: gs.Tensor, kind: Confidence, classes: int) -> Variable:
        """(N,): how sure, up to a scale and a shift that `level` knows."""
        p = self.softmax(logits, "exit_probabilities")
        if kind is Confidence.MAX_PROBABILITY:
            return self.reduced("ReduceMax", p, _LAST, "exit_confidence")
        if kind is Confidence.ENTROPY:
            logs = self.softmax(logits, "exit_log_probabilities", "LogSoftmax")
            terms = self.add("Mul", [p, logs], "exit_entropy_terms")
            return self.reduced("ReduceSum", terms, _LAST, "exit_confidence")
        best = Variable(self.fresh("exit_best"), _FLOAT, [None, 2])
        places = Variable(self.fresh("exit_best_places"), _INT, [None, 2])
        self.nodes.append(Node("TopK", None, {"axis": _LAST}, [p, self.ints(2)], [best, places]))
        signs = self.constant(np.array([1, -1], np.float32), "exit_signs")
        return self.reduced(
            "ReduceSum", self.add("Mul", [best, signs], "exit_margin"), _LAST, "exit_confidence"
        )

    def scores(
        self, logits: gs.Tensor, form: ScoreForm, output: gs.Tensor, name: str | None = None
    ) -> Variable:
        """The logits in the form, the shape and the type of `output`."""
        ops = {ScoreForm.PROBABILITIES: "Softmax", ScoreForm.LOG_PROBABILITIES: "LogSoftmax"}
        dtype = np.dtype(output.dtype)
        made = logits
        if form in ops:
            made = self.softmax(made, "exit_scores", ops[form])
        if len(output.shape) > 2:  # 0: as in the input, which is the batch
            sizes = self.ints(0, *output.shape[1:])
            made = self.add("Reshape", [made, sizes], "exit_shaped")
        made = self.cast(made, dtype, "exit_cast")
        last = self.add("Identity", [made], name or "exit_scores", dtype=dtype)
        last.shape = [None, *output.shape[1:]]
        return last

    def above(self, values: gs.Tensor, level: float, name: str) -> Variable:
        """Whether values reach `level`; NaN does not. GreaterOrEqual itself came with opset 12."""
        below = np.nextafter(np.float32(level), np.float32(-np.inf))
        threshold = self.constant(np.array(below, np.float32), f"{name}_threshold")
        return self.add("Greater", [values, threshold], name, dtype=_BOOL)


def level(threshold: float, kind: Confidence, classes: int) -> float:
    """What `NodeBuilder.confidence` must reach for a confidence of `threshold`."""
    if kind is Confidence.ENTROPY:
        return (threshold - 1) * log(classes)
    return threshold


def confidences(logits: np.ndarray, kind: Confidence) -> np.ndarray:
    """(N,): the confidence that the graph computes, for logits (N, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(logs)
    if kind is Confidence.MAX_PROBABILITY:
        return np.asarray(p.max(axis=1))
    if kind is Confidence.ENTROPY:
        return np.asarray(1 + (p * logs).sum(axis=1) / log(p.shape[1]))
    best = np.partition(p, -2, axis=1)[:, -2:]  # the two largest, in order
    return np.asarray(best[:, 1] - best[:, 0])


__all__ = [
    "MIN_OPSET",
    "Confidence",
    "Head",
    "NodeBuilder",
    "Pooling",
    "ScoreForm",
    "confidences",
    "level",
]
