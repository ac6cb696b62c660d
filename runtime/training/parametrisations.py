"""Parametrisations: free tensors that become what a stored weight obeys, and back into its form.

One class for each record of `onnxslim.constraints.stored`, in the table `PARAMETRISATIONS`. What is
discrete follows latent floats through straight-through estimators; steps of grids learn by the
gradients of LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3), as a factor, so that they stay
positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from onnxslim.analysis.affine import is_float
from onnxslim.codebook import lookup
from onnxslim.constraints.dense import dense_values
from onnxslim.constraints.read import Constraints
from onnxslim.constraints.stored import (
    BiasWeight,
    CodedWeight,
    FreeWeight,
    GridWeight,
    LeafWeight,
    LevelCodes,
    LevelWeight,
    ScaleWeight,
    SparseWeight,
    StoredWeight,
    TableWeight,
    TiedWeight,
)
from onnxslim.runtime.training.operators.straight_through import rounded, rounded_to

Stored = dict[str, np.ndarray]
Tensors = Mapping[str, Tensor]
W = TypeVar("W", bound=StoredWeight)
L = TypeVar("L", bound=LeafWeight)
_NARROW: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def tensor_of(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of `array`, of any type of floats, as a tensor."""
    wide = array.astype(np.float64 if dtype == torch.float64 else np.float32)
    return torch.from_numpy(np.array(wide)).to(device, dtype)


def array_of(tensor: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
    """The values of `tensor`, in the type of a file."""
    return np.asarray(tensor.detach().cpu().numpy()).astype(dtype)


class Parametrisation(Generic[W]):
    """A stored weight while it is trained.

    Attributes:
        weight: the record.
        output: name of the tensor of the training graph that holds the weight.
    """

    def __init__(self, weight: W, output: str, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight, self.output, self.dtype, self.device = weight, output, dtype, device
        self.free: list[Tensor] = []

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """The weight by the name of its tensor, as gradients reach what is free.

        Args:
            leaves: the tensors of leaves, for weights that are computed from some.
        """
        raise NotImplementedError

    def store(self, leaves: Tensors) -> Stored:
        """Values of stored tensors, by name, of the same shapes and types."""
        raise NotImplementedError

    def learn(self, array: np.ndarray) -> Tensor:
        """A new free tensor."""
        made = tensor_of(array, self.dtype, self.device).requires_grad_()
        self.free.append(made)
        return made

    def constant(self, array: np.ndarray) -> Tensor:
        """A tensor that does not learn; integers and truth values keep their type."""
        if not is_float(array.dtype):
            return torch.from_numpy(np.array(array)).to(self.device)
        return tensor_of(array, self.dtype, self.device)


# ---------------------------------------------------------------------------- leaves


class LeafParametrisation(Parametrisation[L]):
    """A float constant; subclasses say what its values are."""

    def value(self) -> Tensor:
        """The constant, as what is free makes it."""
        raise NotImplementedError

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`; rounded where the file stores fewer bits."""
        narrow = _NARROW.get(np.dtype(self.weight.holder.dtype).name)
        value = self.value()
        return {self.output: value if narrow is None else rounded_to(value, narrow)}

    def store(self, leaves: Tensors) -> Stored:
        """See `Parametrisation`."""
        return {self.weight.name: array_of(self.value(), np.dtype(self.weight.holder.dtype))}


class FreeParametrisation(LeafParametrisation[FreeWeight]):
    """All elements learn."""

    def __init__(self, weight: FreeWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        self._values = self.learn(weight.holder.values)

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        return self._values


class SparseParametrisation(LeafParametrisation[SparseWeight]):
    """Zeros stay zero."""

    def __init__(self, weight: SparseWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        self._values = self.learn(weight.holder.values)
        self._kept = self.constant((weight.holder.values != 0).astype(np.float32))

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        return self._values * self._kept


class TiedParametrisation(LeafParametrisation[TiedWeight]):
    """One number for each value; those of code -1 are zero."""

    def __init__(self, weight: TiedWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        codes = weight.codes.reshape(-1).astype(np.int64)
        count = int(codes.max()) + 1
        numbers = np.zeros(count, np.float64)
        learns = codes >= 0
        numbers[codes[learns]] = weight.holder.values.reshape(-1)[learns]
        self._numbers = self.learn(numbers)
        self._zero = self.constant(np.zeros(1, np.float32))
        self._codes = self.constant(np.where(learns, codes, count))

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        made = torch.cat([self._numbers, self._zero]).index_select(0, self._codes)
        return made.reshape(self.weight.codes.shape)


class Levels:
    """The nearest of some levels, as floats move; the gradient passes between the outermost."""

    def __init__(self, levels: Tensor) -> None:
        self._levels = levels
        self._borders = (levels[1:] + levels[:-1]) / 2

    def numbers(self, values: Tensor) -> Tensor:
        """Which level is nearest to each value."""
        return torch.bucketize(values.detach(), self._borders)

    def __call__(self, values: Tensor) -> Tensor:
        """The levels themselves."""
        found = self._levels[self.numbers(values)]
        held = values.clamp(self._levels[0], self._levels[-1])
        return held + (found - held).detach()


class LevelParametrisation(LeafParametrisation[LevelWeight]):
    """Each element is the nearest level to a float that learns."""

    def __init__(self, weight: LevelWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        self._values = self.learn(weight.holder.values)
        self._levels = Levels(self.constant(weight.levels))
        self._kept = None
        if weight.zeros_stay:
            self._kept = self.constant((weight.holder.values != 0).astype(np.float32))

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        found = self._levels(self._values)
        return found if self._kept is None else found * self._kept


class ScaleParametrisation(LeafParametrisation[ScaleWeight]):
    """Steps times a factor that learns."""

    def __init__(self, weight: ScaleWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        self._first = self.constant(weight.holder.values)
        self._logarithm = self.learn(np.zeros(weight.holder.values.shape, np.float32))

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        return self._first * torch.exp(self._logarithm)

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """The same steps under each of their names."""
        (value,) = super().tensors(leaves).values()
        shapes = {name: holder.shape for name, holder in self.weight.twins}
        return {self.output: value, **{n: value.reshape(s) for n, s in shapes.items()}}

    def store(self, leaves: Tensors) -> Stored:
        """The same steps under each of their names."""
        (value,) = super().store(leaves).values()
        twins = {name: value.reshape(holder.shape) for name, holder in self.weight.twins}
        return {self.weight.name: value, **twins}


# ---------------------------------------------------------------------------- coded weights


class TableParametrisation(Parametrisation[TableWeight]):
    """Values of tables, by codes that stay."""

    def __init__(self, weight: TableWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        self._places = []
        for stage in weight.weight.stages:
            codes = stage.codes.astype(np.int64)
            if stage.is_blocked:  # the tables lie one behind the other
                codes = codes + np.arange(stage.blocks)[:, None] * stage.levels
            self._places.append(self.constant(codes.reshape(-1)))

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`."""
        weight = self.weight.weight
        total: Tensor | None = None
        for stage, name, places in zip(
            weight.stages, self.weight.tables, self._places, strict=True
        ):
            table = leaves.get(name)
            if table is None:
                table = self.constant(stage.table)
            rows = table.reshape(-1, stage.vector)
            made = rows.index_select(0, places).reshape(weight.inner_shape)
            total = made if total is None else total + made
        assert total is not None
        return {self.output: _laid_out(total, weight.perm, weight.shape)}

    def store(self, leaves: Tensors) -> Stored:
        """Nothing: the tables are leaves."""
        return {}


class LevelCodesParametrisation(Parametrisation[LevelCodes]):
    """Codes of the nearest values of a table to floats that learn."""

    def __init__(self, weight: LevelCodes, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        (stage,) = weight.weight.stages
        levels, self._codes = np.unique(stage.table, return_index=True)
        self._levels = Levels(self.constant(levels))
        values = stage.values(np.dtype(np.float32))
        self._values = self.learn(values)
        self._kept = None
        if weight.zeros_stay:
            self._kept = self.constant((values != 0).astype(np.float32))

    def _latent(self) -> Tensor:
        return self._values if self._kept is None else self._values * self._kept

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`."""
        weight = self.weight.weight
        made = self._levels(self._latent()).reshape(weight.inner_shape)
        return {self.output: _laid_out(made, weight.perm, weight.shape)}

    def store(self, leaves: Tensors) -> Stored:
        """The planes of codes."""
        numbers = self._levels.numbers(self._latent()).cpu().numpy()
        (stage,) = self.weight.weight.stages
        codes = self._codes[numbers].astype(stage.codes.dtype)
        planes = lookup.with_codes(self.weight.weight, codes)
        return {name: plane for (name, _), plane in zip(self.weight.planes, planes, strict=True)}


class GridParametrisation(Parametrisation[GridWeight]):
    """Codes of floats that learn, on a grid whose step is a leaf."""

    def __init__(self, weight: GridWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        steps = weight.steps
        self._zero = self.constant(steps.zero.astype(np.float32))
        places = steps.scale_places
        self._places = None if places is None else self.constant(places.reshape(-1))
        offsets = steps.codes.astype(np.float32) - steps.zero.astype(np.float32)
        self._stored = self.constant(weight.scales.values)
        with torch.no_grad():
            start = self.constant(offsets) * self._scale({})
        self._values = start.requires_grad_()
        self.free.append(self._values)
        self._kept = self.constant((offsets != 0).astype(np.float32)) if weight.zeros_stay else None

    def _scale(self, leaves: Tensors) -> Tensor:
        flat = leaves.get(self.weight.scale, self._stored).reshape(-1)
        flat = flat if self._places is None else flat.index_select(0, self._places)
        return flat.reshape(self.weight.steps.scale_shape)

    def _grid_codes(self, scale: Tensor) -> Tensor:
        places = self._values / scale + self._zero
        return rounded(places.clamp(self.weight.low, self.weight.high))

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`."""
        steps, scale = self.weight.steps, self._scale(leaves)
        made = (self._grid_codes(scale) - self._zero) * scale
        if self._kept is not None:
            made = made * self._kept
        if steps.rows:
            made = made.reshape(steps.rows)[:, : steps.columns]
        return {self.output: (made.T if steps.is_turned else made).reshape(steps.shape)}

    def store(self, leaves: Tensors) -> Stored:
        """The codes; the scale is a leaf."""
        with torch.no_grad():
            codes = self._grid_codes(self._scale(leaves))
            if self._kept is not None:
                codes = torch.where(self._kept == 0, self._zero.expand_as(codes), codes)
        return {self.weight.name: self.weight.packed(codes.cpu().numpy().astype(np.int32))}


class BiasParametrisation(Parametrisation[BiasWeight]):
    """Codes of floats that learn, by the product of two steps."""

    def __init__(self, weight: BiasWeight, output: str, **where: Any) -> None:
        super().__init__(weight, output, **where)
        self._values = self.learn(dense_values(weight))
        self._stored = self.constant(weight.scales.values)

    def _scale(self, leaves: Tensors) -> Tensor:
        factors = [leaves.get(n) for n in (self.weight.input_scale, self.weight.weight_scale)]
        if factors[0] is None or factors[1] is None:
            return self._stored
        product = factors[0].reshape(-1) * factors[1].reshape(-1)
        return product.expand(self._stored.numel()).reshape(self._stored.shape)

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`."""
        scale = self._scale(leaves)
        return {self.output: rounded(self._values / scale) * scale}

    def store(self, leaves: Tensors) -> Stored:
        """The codes, and the products of steps."""
        scale = self._scale(leaves).detach()
        limits = np.iinfo(np.int32)
        codes = torch.round(self._values.detach().double() / scale.double())
        held = codes.clamp(limits.min, limits.max).cpu().numpy().astype(np.int32)
        return {
            self.weight.name: held,
            self.weight.scale: array_of(scale, np.dtype(self.weight.scales.dtype)),
        }


def _laid_out(values: Tensor, perm: Sequence[int], shape: Sequence[int]) -> Tensor:
    return (values.permute(*perm) if perm else values).reshape(tuple(shape))


def _leaves_of(weight: CodedWeight) -> tuple[str, ...]:
    """Names of the leaves that a coded weight is computed from."""
    if isinstance(weight, TableWeight):
        return weight.tables
    if isinstance(weight, GridWeight):
        return (weight.scale,)
    if isinstance(weight, BiasWeight):
        return weight.input_scale, weight.weight_scale
    return ()


# ---------------------------------------------------------------------------- all of a graph

PARAMETRISATIONS: Final[Mapping[type[StoredWeight], type[Parametrisation[Any]]]] = {
    FreeWeight: FreeParametrisation,
    SparseWeight: SparseParametrisation,
    TiedWeight: TiedParametrisation,
    LevelWeight: LevelParametrisation,
    ScaleWeight: ScaleParametrisation,
    TableWeight: TableParametrisation,
    LevelCodes: LevelCodesParametrisation,
    GridWeight: GridParametrisation,
    BiasWeight: BiasParametrisation,
}
"""What trains each kind of stored weight."""


class TrainedWeights:
    """The parametrisations of all weights of a graph that learn.

    Args:
        constraints: what the graph stores.
        names: of the dense tensors of coded weights, by the record's name.
        accepts: whether a weight learns, by the labels of the nodes that read it.
    """

    def __init__(
        self,
        constraints: Constraints,
        names: Mapping[str, str],
        accepts: Callable[[Sequence[str]], bool] = lambda readers: True,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        place = device or torch.device("cpu")

        def made(weight: StoredWeight, output: str) -> Parametrisation[Any]:
            return PARAMETRISATIONS[type(weight)](weight, output, dtype=dtype, device=place)

        chosen = {item.name for item in constraints.weights if accepts(item.readers)}
        for item in constraints.coded():  # what is computed from a step that learns follows it
            if not chosen.isdisjoint(_leaves_of(item)):
                chosen.add(item.name)
        self._leaves = [made(x, x.name) for x in constraints.leaves() if x.name in chosen]
        self._coded = [made(x, names[x.name]) for x in constraints.coded() if x.name in chosen]

    @property
    def parameters(self) -> list[Tensor]:
        """All free tensors."""
        return [tensor for item in (*self._leaves, *self._coded) for tensor in item.free]

    def tensors(self) -> dict[str, Tensor]:
        """All weights by the names of tensors of the training graph; asked for at each step."""
        leaves: dict[str, Tensor] = {}
        for item in self._leaves:
            leaves |= item.tensors({})
        coded: dict[str, Tensor] = {}
        for item in self._coded:
            coded |= item.tensors(leaves)
        return leaves | coded

    def store(self) -> Stored:
        """New values of all stored tensors, by name."""
        with torch.no_grad():
            leaves: dict[str, Tensor] = {}
            found: Stored = {}
            for item in self._leaves:
                leaves |= item.tensors({})
                found |= item.store({})
            for item in self._coded:
                found |= item.store(leaves)
        return found

    def copy(self) -> list[Tensor]:
        """The values of all free tensors as they are now."""
        return [tensor.detach().clone() for tensor in self.parameters]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Give free tensors the values of a `copy`."""
        with torch.no_grad():
            for tensor, value in zip(self.parameters, values, strict=True):
                tensor.copy_(value)
