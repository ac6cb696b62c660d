"""Parametrisations of coded weights: dense tensors that nodes compute from codes.

Codes follow latent floats through straight-through estimators. Steps of grids have the gradients of
LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3), tables the sums over the elements of each value
(Han et al. 2016, arXiv:1510.00149, section 3; Zhu et al. 2017, arXiv:1612.01064, eq. 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from onnxslim.codebook import lookup
from onnxslim.constraints.dense import dense_values
from onnxslim.constraints.stored import (
    BiasWeight,
    GridWeight,
    LevelCodes,
    LookupWeight,
    StoredWeight,
    TableWeight,
)
from onnxslim.runtime.training.operators.straight_through import rounded
from onnxslim.runtime.training.parametrisation import (
    Moment,
    Parametrisation,
    Settings,
    Stored,
    Tensors,
    array_of,
)
from onnxslim.runtime.training.projections import Choice, Latent
from onnxslim.services.training import CodeMovement

T = TypeVar("T", bound=LookupWeight)


class LookupParametrisation(Parametrisation[T]):
    """Values of tables, by codes that stay, or that follow floats."""

    def __init__(self, weight: T, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
        stages = weight.weight.stages
        self._choice = Choice(self, stages)
        self._stored = [self.constant(stage.table) for stage in stages]
        self._latent = None
        follows = settings.request.codes is not CodeMovement.STAY or isinstance(weight, LevelCodes)
        if weight.planes and follows:
            parts = [stage.values(np.dtype(np.float32)).reshape(-1) for stage in stages]
            values = np.asarray(sum(parts[1:], parts[0]))
            zeros_stay, vector = weight.zeros_stay, stages[0].vector
            self._latent = Latent(self, values, zeros_stay=zeros_stay, vector=vector)

    def _tables(self, leaves: Tensors) -> list[Tensor]:
        pairs = zip(self.weight.tables, self._stored, strict=True)
        return [leaves.get(name, table) for name, table in pairs]

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`."""
        weight = self.weight.weight
        made = self._choice.value(self._tables(leaves))
        if self._latent is not None:
            made = self._latent.weight(made)
        return {self.output: _laid_out(made.reshape(weight.inner_shape), weight.perm, weight.shape)}

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`; where codes stay, tables are as they are."""
        if self._latent is None:
            return False
        weight = self.weight.weight
        if weight.perm:
            moved = values.reshape([weight.inner_shape[axis] for axis in weight.perm])
            values = moved.transpose(np.argsort(weight.perm))
        self._latent.begin(values)
        return True

    def settle(self, leaves: Tensors, moment: Moment) -> None:
        """See `Parametrisation`."""
        if self._latent is not None:
            self._latent.settle(moment)
            self._choice.settle(self._latent, self._tables(leaves), moment)

    def store(self, leaves: Tensors) -> Stored:
        """The planes of codes, where these move; the tables are leaves."""
        if self._latent is None:
            return {}
        planes = lookup.with_codes(self.weight.weight, self._choice.stored())
        return {name: plane for (name, _), plane in zip(self.weight.planes, planes, strict=True)}


class TableParametrisation(LookupParametrisation[TableWeight]):
    """Tables that are leaves."""


class LevelCodesParametrisation(LookupParametrisation[LevelCodes]):
    """Tables that stay, so that codes always follow floats."""


class GridParametrisation(Parametrisation[GridWeight]):
    """Codes of floats that learn, on a grid whose step is a leaf."""

    def __init__(self, weight: GridWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
        steps = weight.steps
        self._zero = self.constant(steps.zero.astype(np.float32))
        places = steps.scale_places
        self._places = None if places is None else self.constant(places.reshape(-1))
        self._codes = self.decide(self.constant(steps.codes.astype(np.float32)))
        self._stored = self.constant(weight.scales.values)
        start = (self._codes - self._zero) * self._scale({})
        self._latent = Latent(self, start.cpu().numpy(), zeros_stay=weight.zeros_stay, vector=1)

    def _scale(self, leaves: Tensors) -> Tensor:
        flat = leaves.get(self.weight.scale, self._stored).reshape(-1)
        flat = flat if self._places is None else flat.index_select(0, self._places)
        return flat.reshape(self.weight.steps.scale_shape)

    def _at(self, scale: Tensor) -> Tensor:
        """Where on the grid the floats are."""
        places = self._latent.floats / scale + self._zero
        return places.clamp(self.weight.low, self.weight.high)

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """See `Parametrisation`."""
        steps, scale = self.weight.steps, self._scale(leaves)
        places = self._at(scale)
        passing = (places + (self._codes - places).detach() - self._zero) * scale
        made = self._latent.weight((self._codes - self._zero) * scale, passing)
        if steps.rows:
            made = made.reshape(steps.rows)[:, : steps.columns]
        return {self.output: (made.T if steps.is_turned else made).reshape(steps.shape)}

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`."""
        steps = self.weight.steps
        matrix = values.T if steps.is_turned else values
        if steps.rows:  # columns of padding
            missing = steps.rows[1] - steps.columns
            matrix = np.pad(matrix.reshape(steps.rows[0], steps.columns), ((0, 0), (0, missing)))
        self._latent.begin(matrix)
        return True

    def settle(self, leaves: Tensors, moment: Moment) -> None:
        """See `Parametrisation`."""
        self._latent.settle(moment)
        places, chance = self._at(self._scale(leaves)), self._latent.chance(moment)
        if chance is None:
            new = torch.round(places)
        else:
            drawn = torch.rand(
                places.shape, generator=chance, dtype=places.dtype, device=places.device
            )
            new = torch.floor(places + drawn).clamp(self.weight.low, self.weight.high)
        if self._latent.zeros is not None:
            new = torch.where(self._latent.zeros, self._zero, new)
        stays = self._latent.stays
        self._codes.copy_(new if stays is None else torch.where(stays, self._codes, new))

    def store(self, leaves: Tensors) -> Stored:
        """The codes; the scale is a leaf."""
        return {self.weight.name: self.weight.packed(self._codes.cpu().numpy().astype(np.int32))}


class BiasParametrisation(Parametrisation[BiasWeight]):
    """Codes of floats that learn, by the product of two steps."""

    def __init__(self, weight: BiasWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
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

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`."""
        with torch.no_grad():
            self._values.copy_(torch.from_numpy(np.array(values, np.float64)))
        return True

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


CODED_PARAMETRISATIONS: Final[dict[type[StoredWeight], type[Parametrisation[Any]]]] = {
    TableWeight: TableParametrisation,
    LevelCodes: LevelCodesParametrisation,
    GridWeight: GridParametrisation,
    BiasWeight: BiasParametrisation,
}
