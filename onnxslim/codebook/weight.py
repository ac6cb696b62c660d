"""A codebook weight: codes and tables of values, and the dense tensor that they stand for.

A `Stage` has codes (B, n) and a table of values: one table if B is 1, else one for each of the B
blocks. A value is a number, or a sub-vector of v numbers (vector quantization). The weight is the
sum of its stages (usually one), of shape (B, n[, v]), reshaped to `inner_shape`, its axes permuted
by `perm`, and reshaped to `shape`:

    dense = sum(table[code]).reshape(inner_shape).transpose(perm).reshape(shape)

`codebook_for_layer` finds `inner_shape` and `perm` for a canonical weight (groups, rows, columns).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final

import numpy as np

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.packing.radix import MAX_LEVELS, packed_bytes

TABLE_TYPES: Final = (np.dtype(np.float32), np.dtype(np.float16))
_CHUNK: Final = 1 << 18  # codes: numpy turns an index into eight bytes each
WEIGHT_TYPES: Final = (*TABLE_TYPES, np.dtype(np.float64))


@dataclass(frozen=True, eq=False)
class Stage:
    """Codes and the table of their values.

    Attributes:
        codes: unsigned integers (B, n), below L.
        table: float32 or float16; (L,) or (L, v) when B is 1, else (B, L) or (B, L, v).
    """

    codes: np.ndarray
    table: np.ndarray

    def __post_init__(self) -> None:
        """Check shapes and types; that codes are below L, `radix.pack` checks."""
        codes, table = self.codes, self.table
        if codes.ndim != 2 or codes.dtype.kind != "u":
            raise ValueError(
                f"Codes are unsigned integers of shape (B, n), not {codes.dtype} {codes.shape}."
            )
        if table.dtype not in TABLE_TYPES:
            raise ValueError(f"A table is float32 or float16, not {table.dtype}.")
        if table.ndim - self.is_blocked not in (1, 2) or 0 in table.shape:
            raise ValueError(f"A table of shape {table.shape} does not fit {self.blocks} blocks.")
        if self.is_blocked and len(table) != self.blocks:
            raise ValueError(f"There are {len(table)} tables for {self.blocks} blocks.")
        if self.levels > MAX_LEVELS:
            raise ValueError(f"A table has at most {MAX_LEVELS:,} levels, not {self.levels:,}.")

    @property
    def blocks(self) -> int:
        """B, the number of blocks."""
        return len(self.codes)

    @property
    def is_blocked(self) -> bool:
        """Whether each block has its own table."""
        return len(self.codes) != 1

    @property
    def levels(self) -> int:
        """L, the length of the table."""
        return int(self.table.shape[1 if self.is_blocked else 0])

    @property
    def vector(self) -> int:
        """v, the numbers that a code stands for."""
        return int(self.table.shape[-1]) if self.table.ndim - self.is_blocked == 2 else 1

    @property
    def nbytes(self) -> int:
        """Bytes of the planes of codes and of the table in a file."""
        return packed_bytes(self.levels, self.codes.size) + self.table.nbytes

    def values(self, dtype: np.dtype[np.floating]) -> np.ndarray:
        """The values of the codes, (B, n) or (B, n, v), of type `dtype`."""
        table = self.table.astype(dtype, copy=False)
        tables = table if self.is_blocked else table[None]
        values = np.empty(self.codes.shape + tables.shape[2:], dtype)
        blocks = max(_CHUNK // max(self.codes.shape[1], 1), 1)
        for row in range(0, self.blocks, blocks):
            rows = np.arange(row, min(row + blocks, self.blocks))[:, None]
            for start in range(0, self.codes.shape[1], _CHUNK):
                at = (slice(row, row + blocks), slice(start, start + _CHUNK))
                values[at] = tables[rows, self.codes[at]]
        return values


@dataclass(frozen=True, eq=False)
class CodebookWeight:
    """A weight that takes few values.

    Attributes:
        stages: the stages whose values add up to the weight.
        shape, dtype: of the tensor that nodes use; float32, float16 or float64.
        inner_shape: shape of the values before `perm`; `shape` where `perm` is ().
        perm: permutation of the axes of `inner_shape`; () for none.
    """

    stages: tuple[Stage, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[np.floating]
    inner_shape: tuple[int, ...] = ()
    perm: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that everything fits together; a permutation that moves no number becomes ()."""
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        moved = [axis for axis in self.perm if self.inner_shape[axis : axis + 1] != (1,)]
        is_perm = sorted(self.perm) == list(range(len(self.perm)))
        if is_perm and moved == sorted(moved) and len(self.perm) in (0, len(self.inner_shape)):
            object.__setattr__(self, "perm", ())
            object.__setattr__(self, "inner_shape", self.shape)
        if not self.stages:
            raise ValueError("A codebook weight has at least one stage.")
        if self.dtype not in WEIGHT_TYPES:
            raise ValueError(f"A codebook weight is float16, 32 or 64, not {self.dtype}.")
        elements = prod(self.shape)
        if any(stage.codes.size * stage.vector != elements for stage in self.stages):
            found = [(stage.codes.shape, stage.vector) for stage in self.stages]
            raise ValueError(f"Codes and vectors of {found} do not fill the shape {self.shape}.")
        if elements == 0:
            raise ValueError("A codebook weight has at least one element.")
        if sorted(self.perm) != list(range(len(self.perm))):
            raise ValueError(f"{self.perm} is no permutation of axes.")
        if prod(self.inner_shape) != elements or (
            self.perm and len(self.perm) != len(self.inner_shape)
        ):
            raise ValueError(
                f"The inner shape {self.inner_shape} does not fit {self.shape} and {self.perm}."
            )

    @property
    def levels(self) -> int:
        """The most values that one element may take: the product over the stages."""
        return prod(stage.levels for stage in self.stages)

    @property
    def nbytes(self) -> int:
        """Bytes of all planes and tables in a file."""
        return sum(stage.nbytes for stage in self.stages)

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def sum_dtype(self) -> np.dtype[np.floating]:
        """The type that stages are added in: never float16, which rounds at every addition."""
        if len(self.stages) > 1 and self.dtype == np.float16:
            return np.dtype(np.float32)
        return self.dtype

    def dense(self) -> np.ndarray:
        """The tensor, bit for bit as onnxruntime computes it."""
        total = self.stages[0].values(self.sum_dtype).reshape(self.inner_shape)
        for stage in self.stages[1:]:
            total = total + stage.values(self.sum_dtype).reshape(self.inner_shape)
        if self.perm:
            total = total.transpose(self.perm)
        return np.ascontiguousarray(total.reshape(self.shape).astype(self.dtype, copy=False))


# ---------------------------------------------------------------------------- layers


class TableGranularity(enum.StrEnum):
    """The part of a weight that has its own table: all of it, an output row, a run of columns."""

    TENSOR = "tensor"
    ROW = "row"
    RUN = "run"


def codebook_for_layer(
    layer: WeightLayer,
    stages: Sequence[tuple[np.ndarray, np.ndarray]],
    per: TableGranularity = TableGranularity.TENSOR,
    width: int | None = None,
) -> CodebookWeight:
    """A codebook weight from canonical codes, laid out as the tensor that the layer's node uses.

    Args:
        layer: the layer.
        stages: codes (groups, rows, columns) of the canonical weight, or of its sub-vectors of v
            neighbouring columns (groups, rows, columns / v), each with its table: (L[, v]) for
            TENSOR, (groups · rows, L[, v]) for ROW, (groups · columns / width, L[, v]) for RUN.
        per: the part of the weight that has its own table.
        width: columns in a run, for RUN; it divides the number of columns.

    Raises:
        ValueError: codes, tables and layer do not fit together.
    """
    vector = _vector_of(stages[0][1], per)
    if any(_vector_of(table, per) != vector for _, table in stages):
        raise ValueError("All stages of a weight have sub-vectors of one length.")
    sizes = (layer.groups, layer.rows, layer.columns)
    if any(codes.shape != (*sizes[:2], sizes[2] // vector) for codes, _ in stages):
        raise ValueError(f"Codes of shape {stages[0][0].shape} do not fit a weight of {sizes}.")
    axes = _LayerAxes.of(layer, per, vector, _run(layer, per, width, vector))
    laid = tuple(axes.stage(codes, table) for codes, table in stages)
    stored = layer.holder.stored
    return CodebookWeight(
        laid, tuple(stored.shape), np.dtype(stored.dtype), axes.inner_shape, axes.perm
    )


def _vector_of(table: np.ndarray, per: TableGranularity) -> int:
    return int(table.shape[-1]) if table.ndim - (per is not TableGranularity.TENSOR) == 2 else 1


def _run(layer: WeightLayer, per: TableGranularity, width: int | None, vector: int) -> int:
    """Columns in a run: `width` for RUN, else all columns."""
    if (per is TableGranularity.RUN) != (width is not None):
        raise ValueError("A table for each run of columns, and only that, needs a `width`.")
    run = layer.columns if width is None else width
    if run < 1 or layer.columns % run or run % vector:
        raise ValueError(
            f"{layer.columns} columns are no whole number of runs of {run}, in vectors of {vector}."
        )
    return run


@dataclass(frozen=True)
class _LayerAxes:
    """The axes of a canonical weight, and their order in the codes and in the tensor.

    Attributes:
        split: sizes of the axes: groups, rows, then columns split at runs and at kernels.
        order: order of the axes in the values.
        stored: order of the axes in the tensor.
        outer: number of leading axes of `order` that number the blocks.
        vector: numbers that a code stands for.
        run: columns in a run.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    stored: tuple[int, ...]
    outer: int
    vector: int
    run: int

    @classmethod
    def of(cls, layer: WeightLayer, per: TableGranularity, vector: int, run: int) -> _LayerAxes:
        unfolding = layer.unfolding
        taps = 1
        if layer.inputs_first and isinstance(unfolding, ConvPatches):
            taps = prod(unfolding.kernel)  # (g, C_in/g, C_out/g, k): rows stand inside columns
        columns, strides = _split_columns(layer.columns, run, taps)
        axes = range(2, 2 + len(columns))
        channels = [axis for axis in axes if strides[axis - 2] >= taps]
        kernel = [axis for axis in axes if strides[axis - 2] < taps]
        runs = [axis for axis in axes if strides[axis - 2] >= run]
        stored = (0, *channels, 1, *kernel) if layer.inputs_first else (0, 1, *axes)
        outer = {
            TableGranularity.TENSOR: (),
            TableGranularity.ROW: (0, 1),
            TableGranularity.RUN: (0, *runs),
        }[per]
        # inside a block the order is free: the order of the tensor saves the permutation, but the
        # numbers of a sub-vector have to be neighbouring columns
        inside = stored if vector == 1 else (0, *runs, 1, *axes)
        order = (*outer, *dict.fromkeys(axis for axis in inside if axis not in outer))
        split = (layer.groups, layer.rows, *columns)
        return cls(split, order, stored, len(outer), vector, run)

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Sizes of the axes in the order of the values."""
        return tuple(self.split[axis] for axis in self.order)

    @property
    def perm(self) -> tuple[int, ...]:
        """The permutation from the order of the values to that of the tensor."""
        return tuple(self.order.index(axis) for axis in self.stored)

    def stage(self, codes: np.ndarray, table: np.ndarray) -> Stage:
        """A stage from canonical `codes`."""
        blocks = prod(self.inner_shape[: self.outer])
        if self.vector == 1:
            ordered = codes.reshape(self.split).transpose(self.order)
        else:  # (groups, rows, runs, sub-vectors): only rows and runs can be swapped
            ordered = codes.reshape(*self.split[:2], -1, self.run // self.vector)
            if self.order[1] != 1:
                ordered = ordered.transpose(0, 2, 1, 3)
        if blocks == 1 and self.outer and len(table) == 1:
            table = table[0]
        return Stage(np.ascontiguousarray(ordered).reshape(blocks, -1), table)


def _split_columns(columns: int, run: int, taps: int) -> tuple[list[int], list[int]]:
    """Split the columns axis at runs and at kernels: sizes, outermost first, and strides."""
    bounds = sorted({columns, run, taps, 1}, reverse=True)
    sizes = []
    for outer, inner in pairwise(bounds):
        if outer % inner:
            raise ValueError(
                f"Runs of {outer if inner == taps else inner} columns and kernels of {taps} "
                "do not fit into each other."
            )
        sizes.append(outer // inner)
    return sizes or [1], bounds[1:] or [1]
