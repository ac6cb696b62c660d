"""One record for each weight that a graph stores: what it obeys, and how it is stored again.

A leaf is a float constant whose elements learn:

    FreeWeight     all of them
    SparseWeight   those that are not zero
    TiedWeight     equal elements stay equal: one number for each value
    LevelWeight    each element moves among the values that there are
    ScaleWeight    positive numbers: the steps of grids

A coded weight is computed from codes by nodes; in training it is one dense tensor:

    TableWeight    codes stay, or move where that is asked for; the tables are leaves
    LevelCodes     codes move among the values of tables that stay
    GridWeight     integer codes move, and the scale is a leaf
    BiasWeight     int32 codes move, and the scale is a product of two others

Names are those of tensors: of an initializer, or the output of a `Constant` node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxslim.codebook.weight import CodebookWeight
from onnxslim.graph.ir import Constant


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """What all records say.

    Attributes:
        name: of the stored tensor; of its codes, where it has some.
        readers: labels of the nodes that compute with it, and of those that compute it from codes.
    """

    name: str
    readers: tuple[str, ...]


# ---------------------------------------------------------------------------- leaves


@dataclass(frozen=True, eq=False)
class LeafWeight(StoredWeight):
    """A float constant of which elements learn.

    Attributes:
        holder: the constant.
    """

    holder: Constant


@dataclass(frozen=True, eq=False)
class FreeWeight(LeafWeight):
    """All elements learn."""


@dataclass(frozen=True, eq=False)
class SparseWeight(LeafWeight):
    """Elements that are zero stay zero."""


@dataclass(frozen=True, eq=False)
class TiedWeight(LeafWeight):
    """Elements of one number stay equal.

    Attributes:
        codes: int32, of the shape of the constant: which number each element has; -1: it stays as
            it is.
    """

    codes: np.ndarray


@dataclass(frozen=True, eq=False)
class LevelWeight(LeafWeight):
    """Each element is one of `levels`.

    Attributes:
        levels: (L,), ascending, of the type of the constant.
        zeros_stay: whether elements that are zero stay so.
    """

    levels: np.ndarray
    zeros_stay: bool


@dataclass(frozen=True, eq=False)
class ScaleWeight(LeafWeight):
    """Steps of a grid: positive numbers.

    Attributes:
        twins: names and constants of others that hold the same steps, as those of a
            DequantizeLinear behind a QuantizeLinear.
    """

    twins: tuple[tuple[str, Constant], ...] = ()


# ---------------------------------------------------------------------------- coded weights


@dataclass(frozen=True, eq=False)
class CodedWeight(StoredWeight):
    """A weight that nodes compute from codes.

    Attributes:
        outputs: names of the tensors that hold the weight as it is computed with.
    """

    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LookupWeight(CodedWeight):
    """Codes into tables.

    Attributes:
        weight: codes and tables as they are.
        tables: names of the constants that hold the tables, one for each stage.
        planes: names and constants that hold the codes; () where the codes cannot move, as other
            nodes read them.
        zeros_stay: whether codes of zero are there by choice.
    """

    weight: CodebookWeight
    tables: tuple[str, ...]
    planes: tuple[tuple[str, Constant], ...]
    zeros_stay: bool


@dataclass(frozen=True, eq=False)
class TableWeight(LookupWeight):
    """The tables are leaves."""


@dataclass(frozen=True, eq=False)
class LevelCodes(LookupWeight):
    """The values of the tables stay, and codes move among them."""


@dataclass(frozen=True, eq=False)
class Steps:
    """How integer codes and scales make a weight: (codes - zero)·scale, laid out anew.

    Attributes:
        codes: integers in the shape in which scales broadcast.
        zero: zero points, broadcastable to `codes`.
        scale_shape: the shape in which the scales broadcast to `codes`.
        scale_places: indices into the flat scales, of that shape; None: they are as many.
        rows: shape of the matrix (rows, columns) that the product is reshaped to, before columns
            of padding are cut off; () for none.
        columns: that stay, with `rows`.
        is_turned: whether that matrix is transposed.
        shape: of the weight.
    """

    codes: np.ndarray
    zero: np.ndarray
    scale_shape: tuple[int, ...]
    shape: tuple[int, ...]
    scale_places: np.ndarray | None = None
    rows: tuple[int, ...] = ()
    columns: int = 0
    is_turned: bool = False

    def dense(self, scale: np.ndarray) -> np.ndarray:
        """The weight as float32, by the scales as they are stored."""
        flat = np.asarray(scale, np.float32).reshape(-1)
        if self.scale_places is not None:
            flat = flat[self.scale_places.reshape(-1)]
        steps = (self.codes.astype(np.int32) - self.zero.astype(np.int32)).astype(np.float32)
        made = steps * flat.reshape(self.scale_shape)
        if self.rows:
            made = made.reshape(self.rows)[:, : self.columns]
        return np.ascontiguousarray((made.T if self.is_turned else made).reshape(self.shape))


@dataclass(frozen=True, eq=False)
class GridWeight(CodedWeight):
    """Integer codes that move on a grid whose step learns.

    Attributes:
        holder: the constant with the codes.
        scale: name of the constant with the scales.
        scales: that constant.
        steps: how codes make the weight.
        low, high: the least and the largest code.
        zeros_stay: whether codes of zero stay so.
        packed: codes of the shape of `steps.codes` as the file stores them.
        dtype: of the weight.
    """

    holder: Constant
    scale: str
    scales: Constant
    steps: Steps
    low: int
    high: int
    zeros_stay: bool
    packed: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    dtype: np.dtype[np.floating]


@dataclass(frozen=True, eq=False)
class BiasWeight(CodedWeight):
    """A bias of int32 codes, whose scale is that of the input times that of the weight.

    Attributes:
        holder: the constant with the codes.
        scales: the constant with the products, (channels,) or one.
        scale: name of that constant.
        input_scale, weight_scale: names of the constants with the factors.
    """

    holder: Constant
    scales: Constant
    scale: str
    input_scale: str
    weight_scale: str
