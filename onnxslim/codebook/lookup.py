"""Nodes that look a weight up in tables: `onnxslim.Lookup…`, one for each codebook weight.

`replace_constant` stores a weight as such a node; `read` gets its codes and tables back, whatever
wrote the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.codebook import replacement
from onnxslim.codebook.lookup_function import LookupVariant, StageVariant, variant_of
from onnxslim.codebook.replacement import check_replaceable, function_of, why_not_replaceable
from onnxslim.codebook.weight import CodebookWeight, Stage
from onnxslim.graph.functions import DOMAIN
from onnxslim.graph.ir import Constant, Graph, Node
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.packing.radix import pack, planes_for, unpack
from onnxslim.records import Fidelity

_MAX_AXES: Final = 10  # the name of a function has one digit for each


# ---------------------------------------------------------------------------- storing


def why_not(graph: Graph, weight: CodebookWeight, holder: Constant | None = None) -> str | None:
    """Why `weight` cannot be stored in `graph`, in place of `holder` where that is given; or None.

    Says nothing of whether it saves bytes.
    """
    variant = LookupVariant.of(weight)
    if len(variant.perm) > _MAX_AXES:
        return f"its codes would be permuted over {len(variant.perm)} axes"
    return why_not_replaceable(graph, variant, holder)


def replace_constant(
    rw: Rewriter,
    holder: Constant,
    weight: CodebookWeight,
    what: str = "stored as codes",
    fidelity: Fidelity = Fidelity.LOSSY,
) -> tuple[str, ...]:
    """Put `weight` in place of `holder`, wherever that is used.

    Arguments and result are those of `replacement.replace_constant`.

    Raises:
        ValueError: it cannot be stored, see `why_not`, or is of another shape or type.
    """
    check_replaceable(holder, weight.dtype, weight.shape, why_not(rw.main, weight, holder))
    variant = LookupVariant.of(weight)
    return replacement.replace_constant(
        rw, holder, variant, _arrays(variant, weight), what, fidelity
    )


def _arrays(variant: LookupVariant, weight: CodebookWeight) -> Iterator[np.ndarray]:
    """The inputs of the node, in the order of `LookupVariant.inputs`."""
    for stage, form in zip(weight.stages, variant.stages, strict=True):
        yield from pack(stage.codes, stage.levels)
        yield _filled(stage.table, form)
    yield np.array(weight.shape, np.int64)
    if variant.perm:
        yield np.array(weight.inner_shape, np.int64)


def _filled(table: np.ndarray, form: StageVariant) -> np.ndarray:
    """The table, padded with its last value where the function looks up unused codes too."""
    missing = (form.table_length or 0) - len(table)
    if missing <= 0:
        return table.copy()
    return np.concatenate([table, np.repeat(table[-1:], missing, axis=0)])


# ---------------------------------------------------------------------------- reading


def read(graph: Graph, node: Node) -> CodebookWeight | None:
    """The weight that a Lookup node of `graph`, or of one of its bodies, gives.

    A table may come back longer than it was, its last value repeated.

    Returns:
        None for another node, and where its function or its inputs are not those of
        `replace_constant`.
    """
    function = function_of(graph, node.op) if is_lookup(node) else None
    variant = None if function is None else _read_variant(function)
    if variant is None or len(node.inputs) != len(variant.inputs):
        return None
    arrays = [const_array(tensor) for tensor in node.inputs]
    known = [array for array in arrays if array is not None]
    if len(known) != len(arrays):
        return None
    try:
        return _weight(variant, known)
    except ValueError:
        return None


def _weight(variant: LookupVariant, arrays: Sequence[np.ndarray]) -> CodebookWeight:
    """The inverse of `_arrays`.

    Raises:
        ValueError: the arrays do not fit together.
    """
    shapes = arrays[-2:] if variant.perm else arrays[-1:]
    if any(array.dtype != np.int64 or array.ndim != 1 for array in shapes):
        raise ValueError("A shape is a vector of int64.")
    shape, *inner = (tuple(array.tolist()) for array in shapes)
    if min(shape, default=1) < 1:
        raise ValueError(f"{shape} is the shape of nothing.")
    rest = iter(arrays)
    stages = []
    for form in variant.stages:
        planes = [next(rest) for _ in form.bases]
        stages.append(_stage(form, planes, next(rest), prod(shape)))
    dtype = stages[0].table.dtype if variant.to is None else variant.to
    return CodebookWeight(tuple(stages), shape, dtype, inner[0] if inner else shape, variant.perm)


def _stage(form: StageVariant, planes: Sequence[np.ndarray], table: np.ndarray, size: int) -> Stage:
    if table.ndim != 1 + form.blocked + (form.vector > 1):
        raise ValueError(f"A table of shape {table.shape} does not fit `{form}`.")
    levels = table.shape[int(form.blocked)]
    if tuple(plane.base for plane in planes_for(levels)) != form.bases:
        raise ValueError(f"{levels} levels are not stored as `{form}`.")
    codes = unpack(planes, levels, size // form.vector)
    blocks = len(table) if form.blocked else 1
    return Stage(codes.reshape(blocks, -1), table)


def tables_and_planes(node: Node) -> tuple[list[gs.Tensor], list[gs.Tensor]]:
    """The inputs of a Lookup node that hold tables, one for each stage, and those with codes."""
    variant = LookupVariant.parse(node.op)
    names = () if variant is None else variant.inputs
    pairs = list(zip(names, node.inputs, strict=False))
    tables = [tensor for name, tensor in pairs if name.startswith("table")]
    return tables, [tensor for name, tensor in pairs if name.startswith("codes")]


def with_codes(weight: CodebookWeight, codes: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The planes of other `codes` for the stages of `weight`, in the order of a Lookup node."""
    pairs = zip(weight.stages, codes, strict=True)
    return tuple(plane for stage, own in pairs for plane in pack(own, stage.levels))


def element_count(node: Node) -> int:
    """Number of elements of the weight that a Lookup node computes; 0 if its shape is unknown."""
    variant = LookupVariant.parse(node.op)
    index = len(node.inputs) if variant is None else variant.inputs.index("shape")
    shape = const_array(node.inputs[index]) if index < len(node.inputs) else None
    return 0 if shape is None else prod(int(size) for size in shape.flat)


def is_lookup(node: gs.Node) -> bool:
    """Whether `node` calls a function of a name that a `LookupVariant` has."""
    return node.domain == DOMAIN and LookupVariant.parse(node.op) is not None


def _read_variant(function: onnx.FunctionProto) -> LookupVariant | None:
    return _variant_of_bytes(function.SerializeToString(deterministic=True))


@lru_cache(maxsize=256)
def _variant_of_bytes(function: bytes) -> LookupVariant | None:
    return variant_of(onnx.FunctionProto.FromString(function))
