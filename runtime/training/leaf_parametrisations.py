"""Parametrisations of leaves: float constants of which elements learn.

Steps of grids learn as a factor, so that they stay positive.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from onnxslim.codebook.weight import Stage
from onnxslim.constraints.stored import (
    FreeWeight,
    LeafWeight,
    LevelWeight,
    ScaleWeight,
    SparseWeight,
    StoredWeight,
    TiedWeight,
)
from onnxslim.constraints.values import zeros_stand_out
from onnxslim.runtime.training.operators.straight_through import rounded_to
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

L = TypeVar("L", bound=LeafWeight)
_NARROW: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}


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

    def __init__(self, weight: FreeWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
        self._latent = Latent(self, weight.holder.values, zeros_stay=False, vector=0)

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        return self._latent.weight()

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`."""
        self._latent.begin(values)
        return True


class SparseParametrisation(LeafParametrisation[SparseWeight]):
    """Zeros stay zero, or as many as there are."""

    def __init__(self, weight: SparseWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
        self._latent = Latent(self, weight.holder.values, zeros_stay=True, vector=0)

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        return self._latent.weight()

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`."""
        self._latent.begin(values)
        return True

    def settle(self, leaves: Tensors, moment: Moment) -> None:
        """See `Parametrisation`."""
        self._latent.settle(moment)


class TiedParametrisation(LeafParametrisation[TiedWeight]):
    """One number for each value; those of code -1 are zero."""

    def __init__(self, weight: TiedWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
        count = int(weight.codes.max()) + 1
        codes = np.where(weight.codes < 0, count, weight.codes).astype(np.uint16)
        numbers = np.zeros(count, np.float32)
        numbers[weight.codes[weight.codes >= 0]] = weight.holder.values[weight.codes >= 0]
        self._numbers = self.learn(numbers)
        self._zero = self.constant(np.zeros(1, np.float32))
        stage = Stage(codes.reshape(1, -1), np.append(numbers, np.float32(0)))
        self._choice = Choice(self, [stage])
        self._latent = None
        if settings.request.codes is not CodeMovement.STAY:
            zeros_stay = zeros_stand_out(codes, codes == count)
            self._latent = Latent(self, weight.holder.values, zeros_stay=zeros_stay, vector=1)

    def _table(self) -> Tensor:
        return torch.cat([self._numbers, self._zero])

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        made = self._choice.value([self._table()]).reshape(self.weight.codes.shape)
        return made if self._latent is None else self._latent.weight(made)

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`; each number is the mean of its elements where codes stay."""
        if self._latent is not None:
            self._latent.begin(values)
            return True
        learns = self.weight.codes >= 0
        codes = self.weight.codes[learns]
        means = np.bincount(codes, values[learns]) / np.bincount(codes)
        with torch.no_grad():
            self._numbers.copy_(torch.from_numpy(means))
        return True

    def settle(self, leaves: Tensors, moment: Moment) -> None:
        """See `Parametrisation`."""
        if self._latent is not None:
            self._latent.settle(moment)
            self._choice.settle(self._latent, [self._table()], moment)


class LevelParametrisation(LeafParametrisation[LevelWeight]):
    """Each element is a level, near to a float that learns."""

    def __init__(self, weight: LevelWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
        values = weight.holder.values
        self._latent = Latent(self, values, zeros_stay=weight.zeros_stay, vector=1)
        codes = np.searchsorted(weight.levels, values).astype(np.uint16)
        self._choice = Choice(self, [Stage(codes.reshape(1, -1), weight.levels.astype(np.float32))])
        self._levels = self.constant(weight.levels)

    def value(self) -> Tensor:
        """See `LeafParametrisation`."""
        made = self._choice.value([self._levels])
        return self._latent.weight(made.reshape(self._latent.floats.shape))

    def begin(self, values: np.ndarray) -> bool:
        """See `Parametrisation`."""
        self._latent.begin(values)
        return True

    def settle(self, leaves: Tensors, moment: Moment) -> None:
        """See `Parametrisation`."""
        self._latent.settle(moment)
        self._choice.settle(self._latent, [self._levels], moment)


class ScaleParametrisation(LeafParametrisation[ScaleWeight]):
    """Steps times a factor that learns."""

    def __init__(self, weight: ScaleWeight, output: str, settings: Settings) -> None:
        super().__init__(weight, output, settings)
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


LEAF_PARAMETRISATIONS: Final[dict[type[StoredWeight], type[Parametrisation[Any]]]] = {
    FreeWeight: FreeParametrisation,
    SparseWeight: SparseParametrisation,
    TiedWeight: TiedParametrisation,
    LevelWeight: LevelParametrisation,
    ScaleWeight: ScaleParametrisation,
}
