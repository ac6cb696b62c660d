"""The weights of a graph while they are trained: one parametrisation for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from onnxslim.constraints.read import Constraints
from onnxslim.constraints.stored import (
    BiasWeight,
    CodedWeight,
    FreeWeight,
    GridWeight,
    LookupWeight,
    SparseWeight,
    StoredWeight,
)
from onnxslim.runtime.training.coded_parametrisations import CODED_PARAMETRISATIONS
from onnxslim.runtime.training.leaf_parametrisations import LEAF_PARAMETRISATIONS
from onnxslim.runtime.training.parametrisation import (
    Moment,
    Parametrisation,
    Settings,
    Stored,
)
from onnxslim.services.training import CodeMovement, ZeroMovement

PARAMETRISATIONS: Final[Mapping[type[StoredWeight], type[Parametrisation[Any]]]] = {
    **LEAF_PARAMETRISATIONS,
    **CODED_PARAMETRISATIONS,
}
"""What trains each kind of stored weight."""


class TrainedWeights:
    """The parametrisations of all weights of a graph that learn.

    Args:
        constraints: what the graph stores.
        names: of the dense tensors of coded weights, by the record's name.
        accepts: whether a weight learns, by the labels of the nodes that read it.
        settings: where and how they are trained.
    """

    def __init__(
        self,
        constraints: Constraints,
        names: Mapping[str, str],
        accepts: Callable[[Sequence[str]], bool] = lambda readers: True,
        settings: Settings | None = None,
    ) -> None:
        plain = settings or Settings()
        # values of tables are no elements of a weight: their zeros and equal values stay
        stays = replace(plain.request, zeros=ZeroMovement.STAY, codes=CodeMovement.STAY)
        coded = list(constraints.coded())
        tables = {n for item in coded if isinstance(item, LookupWeight) for n in item.tables}

        def made(weight: StoredWeight, output: str) -> Parametrisation[Any]:
            own = replace(plain, request=stays) if weight.name in tables else plain
            return PARAMETRISATIONS[type(weight)](weight, output, own)

        chosen = {item.name for item in constraints.weights if accepts(item.readers)}
        for item in coded:  # what is computed from a step that learns follows it
            if not chosen.isdisjoint(_leaves_of(item)):
                chosen.add(item.name)
        self._count = len(constraints.weights)
        self._leaves = [made(x, x.name) for x in constraints.leaves() if x.name in chosen]
        self._coded = [made(x, names[x.name]) for x in coded if x.name in chosen]
        with torch.no_grad():
            self._shapes = {name: tuple(made.shape) for name, made in self.tensors().items()}

    @property
    def are_all(self) -> bool:
        """Whether all stored weights of the graph learn."""
        return len(self._leaves) + len(self._coded) == self._count

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

    @property
    def dense_leaves(self) -> dict[str, Tensor]:
        """The free tensors of float constants whose elements learn each for itself, by name."""
        kinds = FreeWeight | SparseWeight
        return {x.output: x.free[0] for x in self._leaves if isinstance(x.weight, kinds)}

    def begin(self, values: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Take other values to start from, where they have the shape of a weight.

        Args:
            values: by the name of a record, or of the dense tensor in its place.

        Returns:
            How many weights took some, and how many there are.
        """
        items = (*self._leaves, *self._coded)
        taken = 0
        for item in items:
            names = (item.output, item.weight.name)
            found = next((values[name] for name in names if name in values), None)
            if found is not None and found.shape == self._shapes[item.output]:
                taken += item.begin(found)
        return taken, len(items)

    def settle(self, moment: Moment) -> None:
        """Decide anew what is discrete; to be called whenever free tensors have moved."""
        with torch.no_grad():
            leaves: dict[str, Tensor] = {}
            for item in self._leaves:
                item.settle({}, moment)
                leaves |= item.tensors({})
            for item in self._coded:
                item.settle(leaves, moment)

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
        """What the weights are now: the values of all free tensors, and what was decided."""
        return [tensor.detach().clone() for tensor in self._state()]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Let the weights be what they were at a `copy`."""
        with torch.no_grad():
            for tensor, value in zip(self._state(), values, strict=True):
                tensor.copy_(value)

    def _state(self) -> list[Tensor]:
        decided = [tensor for item in (*self._leaves, *self._coded) for tensor in item.decided]
        return [*self.parameters, *decided]


def _leaves_of(weight: CodedWeight) -> tuple[str, ...]:
    """Names of the leaves that a coded weight is computed from."""
    if isinstance(weight, LookupWeight):
        return weight.tables
    if isinstance(weight, GridWeight):
        return (weight.scale,)
    if isinstance(weight, BiasWeight):
        return weight.input_scale, weight.weight_scale
    return ()
