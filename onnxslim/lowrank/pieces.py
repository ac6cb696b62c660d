"""A layer as several smaller operators, from the factors of its weight.

`conv_pieces` and `dense_pieces` say which operators, with which attributes and which weights; a
`Piece` can be put into a graph, or timed on its own (`Piece.as_op`, for which arrays of zeros do).
Factors come with the axis of groups in front, in the order of `solvers.decompositions`.

Why the pieces may follow each other: only the last has a bias, so where a Conv pads with zeros the
pieces before it return zeros too; kernel axes are independent of each other, so each keeps its
stride, dilation and pads in the piece that treats it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxslim.analysis.layer_models import INPUT, LayerOp, StaticShape
from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches, Vectors

OUTPUT = "y"
_GEMM_WITHOUT_C = 11  # the opset from which Gemm's third operand may be left out


@dataclass(frozen=True)
class Piece:
    """One of the operators that take a layer's place.

    Attributes:
        op: its type.
        inputs: `x`, the outputs of pieces before it, and weights.
        output: its name; the last piece returns `y`.
        attrs: attributes by name.
    """

    op: str
    inputs: tuple[str | np.ndarray, ...]
    output: str = OUTPUT
    attrs: dict[str, Any] = field(default_factory=dict)

    def as_op(self) -> LayerOp:
        """The same with the shapes of weights in place of the weights."""
        inputs = tuple(_without_weights(item) for item in self.inputs)
        return LayerOp(self.op, inputs, self.output, self.attrs)


def _without_weights(item: str | np.ndarray) -> str | StaticShape | np.ndarray:
    """The shape of a weight; indices and sizes are what they are."""
    if isinstance(item, str) or item.dtype.kind == "i":
        return item
    return tuple(item.shape)


def pieces_of(
    layer: WeightLayer, method: str, factors: Sequence[np.ndarray], opset: int
) -> list[Piece]:
    """The operators that take the place of `layer`; the bias is still to be given to the last.

    Args:
        layer: any weight layer but a MatMul with a vector.
        method: one of `solvers.decompositions.methods.METHODS`; for Gemm and MatMul `svd`.
        factors: (groups, ...) each.
        opset: of the model.
    """
    if isinstance(layer.unfolding, ConvPatches):
        return conv_pieces(layer.unfolding, method, factors)
    assert isinstance(layer.unfolding, Vectors), layer.name
    return dense_pieces(layer, layer.unfolding, factors, opset)


# ---------------------------------------------------------------------------- dense


def dense_pieces(
    layer: WeightLayer, vectors: Vectors, factors: Sequence[np.ndarray], opset: int
) -> list[Piece]:
    """Two products; `factors` are B (groups, r, columns) and A (groups, rows, r)."""
    first, last = factors
    first = first.reshape(*first.shape[:2], -1)
    if layer.node.op == "Gemm":
        return _gemm_pieces(layer, first[0], last[0], opset)
    matrices = [matrix.reshape(*vectors.batch, *matrix.shape[1:]) for matrix in (first, last)]
    if layer.weight == 0:
        return [Piece("MatMul", (matrices[0], INPUT), "h"), Piece("MatMul", (matrices[1], "h"))]
    right, left = (matrix.swapaxes(-1, -2) for matrix in matrices)
    return [Piece("MatMul", (INPUT, right), "h"), Piece("MatMul", ("h", left))]


def _gemm_pieces(
    layer: WeightLayer, first: np.ndarray, last: np.ndarray, opset: int
) -> list[Piece]:
    attrs = dict(layer.node.attrs)
    mine, other = ("transB", "transA") if layer.weight else ("transA", "transB")
    stored = [first, last]
    if layer.inputs_first:
        stored = [matrix.T for matrix in stored]
    before = {name: attrs[name] for name in ("alpha", "transA", "transB") if name in attrs}
    after = {name: attrs[name] for name in ("beta", mine) if name in attrs and name != other}
    nothing = () if opset >= _GEMM_WITHOUT_C else (np.zeros(1, first.dtype),)
    if layer.weight:
        pair = ((INPUT, stored[0]), ("h", stored[1]))
    else:
        pair = ((stored[0], INPUT), (stored[1], "h"))  # type: ignore[assignment]
    return [Piece("Gemm", (*pair[0], *nothing), "h", before), Piece("Gemm", pair[1], OUTPUT, after)]


# ---------------------------------------------------------------------------- convolutions


def conv_pieces(patches: ConvPatches, method: str, factors: Sequence[np.ndarray]) -> list[Piece]:
    """The Convs (ConvTransposes) that a decomposition consists of."""
    return _BUILDERS[method](ConvBuilder(patches), *factors)


def why_not_conv(patches: ConvPatches, method: str) -> str | None:
    """Why a method cannot be laid out for such a layer; None when it can."""
    if patches.output_shape and method in ("spatial", "cp", "flattened"):
        return f"its output_shape leaves open which pads each part of {method} would have"
    return None


class ConvBuilder:
    """Makes Convs that treat some of the kernel axes of a layer."""

    def __init__(self, patches: ConvPatches) -> None:
        self.patches = patches
        self.ndim = len(patches.kernel)
        self.every = tuple(range(self.ndim))

    @property
    def first_axis(self) -> int:
        """As `KernelShape.first_axis`."""
        return next((i for i, size in enumerate(self.patches.kernel) if size > 1), 0)

    def has_effect(self, axis: int) -> bool:
        """Whether leaving an axis of kernel size 1 to a pointwise Conv would lose something."""
        p = self.patches
        pads = (p.pads[axis], p.pads[axis + self.ndim])
        extra = p.output_padding[axis : axis + 1]
        return p.kernel[axis] > 1 or p.strides[axis] > 1 or any(pads) or any(extra)

    def mix(self, weight: np.ndarray, x: str, output: str = OUTPUT) -> Piece:
        """A pointwise Conv; weight (groups, out, in)."""
        groups, outs, ins = weight.shape
        stored = weight.reshape(groups * outs, ins, *[1] * self.ndim)
        return Piece("Conv", (x, stored), output, _with_group({}, groups))

    def over(self, weight: np.ndarray, axes: Sequence[int], x: str, output: str = OUTPUT) -> Piece:
        """A layer of the same kind over some axes; weight (groups, out, in, kernel...)."""
        groups, outs, ins, *kernel = weight.shape
        transposed = self.patches.transposed
        if transposed:
            stored = weight.swapaxes(1, 2).reshape(groups * ins, outs, *kernel)
        else:
            stored = weight.reshape(groups * outs, ins, *kernel)
        attrs = _with_group(self._attributes(axes), groups)
        return Piece("ConvTranspose" if transposed else "Conv", (x, stored), output, attrs)

    def _attributes(self, axes: Sequence[int]) -> dict[str, Any]:
        p = self.patches
        kept = [axis in axes for axis in self.every]
        attrs: dict[str, Any] = {
            "strides": [s if keep else 1 for s, keep in zip(p.strides, kept, strict=True)],
            "dilations": [d if keep else 1 for d, keep in zip(p.dilations, kept, strict=True)],
        }
        if p.auto_pad != "NOTSET":
            attrs["auto_pad"] = p.auto_pad
        elif any(p.pads):
            attrs["pads"] = [n if keep else 0 for n, keep in zip(p.pads, kept * 2, strict=True)]
        if any(p.output_padding):
            attrs["output_padding"] = [
                n if keep else 0 for n, keep in zip(p.output_padding, kept, strict=True)
            ]
        if p.output_shape:
            attrs["output_shape"] = list(p.output_shape)
        return {name: value for name, value in attrs.items() if not _is_default(name, value)}

    def along(self, axis: int, factor: np.ndarray) -> np.ndarray:
        """(groups, ..., k) as (groups, ..., 1, k, 1) with the kernel's number of axes."""
        shape = [1] * self.ndim
        shape[axis] = factor.shape[-1]
        return factor.reshape(*factor.shape[:-1], *shape)


def _is_default(name: str, value: Any) -> bool:
    return name in ("strides", "dilations") and all(item == 1 for item in value)


def _with_group(attrs: dict[str, Any], groups: int) -> dict[str, Any]:
    return {**attrs, "group": groups} if groups > 1 else attrs


def _channel(build: ConvBuilder, first: np.ndarray, last: np.ndarray) -> list[Piece]:
    return [build.over(first, build.every, INPUT, "h"), build.mix(last, "h")]


def _spatial(build: ConvBuilder, first: np.ndarray, last: np.ndarray) -> list[Piece]:
    axis = build.first_axis
    rest = [i for i in build.every if i != axis]
    kernel = [1 if i == axis else size for i, size in enumerate(build.patches.kernel)]
    last = last.reshape(*last.shape[:3], *kernel)
    return [
        build.over(build.along(axis, first), [axis], INPUT, "h"),
        build.over(last, rest, "h"),
    ]


def _tucker2(
    build: ConvBuilder, first: np.ndarray, core: np.ndarray, last: np.ndarray
) -> list[Piece]:
    return [
        build.mix(first, INPUT, "h0"),
        build.over(core, build.every, "h0", "h1"),
        build.mix(last, "h1"),
    ]


def _separable(build: ConvBuilder, first: np.ndarray, *filters: np.ndarray) -> list[Piece]:
    """A pointwise Conv, then one Conv along each axis that treats every map by itself."""
    axes = [axis for axis in build.every if build.has_effect(axis)]
    for axis in build.every:
        if axis not in axes:  # (g, r, 1): a factor of each map
            first = first * filters[axis]
    groups, maps = first.shape[:2]
    pieces = [build.mix(first, INPUT, "h0")]
    for number, axis in enumerate(axes):
        each = filters[axis].reshape(groups * maps, 1, 1, -1)
        pieces.append(build.over(build.along(axis, each), [axis], f"h{number}", f"h{number + 1}"))
    return pieces


def _cp(build: ConvBuilder, *factors: np.ndarray) -> list[Piece]:
    pieces = _separable(build, *factors[:-1])
    return [*pieces, build.mix(factors[-1], pieces[-1].output)]


def _flattened(build: ConvBuilder, *factors: np.ndarray) -> list[Piece]:
    first, *filters, last = factors
    groups, rows, terms = last.shape
    if terms == 1:  # nothing to add up: the last factor goes into the first
        pieces = _separable(build, first * last.reshape(groups, rows, 1), *filters)
        return [*pieces[:-1], replace(pieces[-1], output=OUTPUT)]
    pieces = _separable(build, first, *filters)
    return [*pieces, build.mix(last.reshape(groups * rows, 1, terms), pieces[-1].output)]


def _depthwise(build: ConvBuilder, filters: np.ndarray, last: np.ndarray) -> list[Piece]:
    groups, channels, terms = filters.shape[:3]
    kernel = filters.shape[3:]
    rows = last.shape[1]
    if terms == 1 or groups > 1:
        each = filters.reshape(groups * channels, terms, 1, *kernel)
        return [
            build.over(each, build.every, INPUT, "h"),
            build.mix(last.reshape(groups, rows, -1), "h"),
        ]
    # one Conv for each term: onnxruntime has a fast kernel for as many outputs as groups only
    names = [f"h{term}" for term in range(terms)]
    parts = [
        build.over(filters[0, :, term].reshape(channels, 1, 1, *kernel), build.every, INPUT, name)
        for term, name in enumerate(names)
    ]
    mixed = last.transpose(0, 1, 3, 2).reshape(1, rows, -1)  # (1, n, t·c)
    return [*parts, Piece("Concat", tuple(names), "h", {"axis": 1}), build.mix(mixed, "h")]


_BUILDERS: dict[str, Callable[..., list[Piece]]] = {
    "channel": _channel,
    "spatial": _spatial,
    "tucker2": _tucker2,
    "cp": _cp,
    "flattened": _flattened,
    "depthwise": _depthwise,
}
