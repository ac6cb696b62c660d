"""What a stored weight is while it is trained: free tensors, and what is decided anew by them.

The optimizer moves free tensors. `settle` then decides anew what is discrete: which value of a
table an element takes, which elements are zero. `tensors` computes the weight from both, so that
gradients reach what is free; `store` writes the same in the form of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from onnxslim.analysis.affine import is_float
from onnxslim.constraints.stored import StoredWeight
from onnxslim.services.training import TrainingRequest

Stored = dict[str, np.ndarray]
Tensors = Mapping[str, Tensor]
W = TypeVar("W", bound=StoredWeight)


@dataclass(frozen=True)
class Settings:
    """Where and how a weight is trained.

    Attributes:
        dtype, device: of its tensors.
        request: how elements move.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    request: TrainingRequest = field(default_factory=TrainingRequest)


@dataclass(frozen=True)
class Moment:
    """A moment of training, for what is decided anew.

    Attributes:
        share: of the training that is over.
        chance: what rounding by chance draws from; None: to the nearest.
    """

    share: float
    chance: torch.Generator | None = None


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
        free: tensors that the optimizer moves.
        decided: tensors that `settle` gives new values.
    """

    def __init__(self, weight: W, output: str, settings: Settings) -> None:
        self.weight, self.output, self.settings = weight, output, settings
        self.free: list[Tensor] = []
        self.decided: list[Tensor] = []

    def tensors(self, leaves: Tensors) -> dict[str, Tensor]:
        """The weight by the name of its tensor, as gradients reach what is free.

        Args:
            leaves: the tensors of leaves, for weights that are computed from some.
        """
        raise NotImplementedError

    def store(self, leaves: Tensors) -> Stored:
        """Values of stored tensors, by name, of the same shapes and types."""
        raise NotImplementedError

    def begin(self, values: np.ndarray) -> bool:
        """Take other values to start from, within what the weight obeys.

        Args:
            values: of the shape of the weight.

        Returns:
            Whether they were taken: what no float follows has none to start from.
        """
        return False

    def settle(self, leaves: Tensors, moment: Moment) -> None:
        """Decide anew what is discrete, after free tensors have moved."""

    def learn(self, array: np.ndarray) -> Tensor:
        """A new free tensor."""
        made = tensor_of(array, self.settings.dtype, self.settings.device).requires_grad_()
        self.free.append(made)
        return made

    def constant(self, array: np.ndarray) -> Tensor:
        """A tensor that does not learn; integers and truth values keep their type."""
        if not is_float(array.dtype):
            return torch.from_numpy(np.array(array)).to(self.settings.device)
        return tensor_of(array, self.settings.dtype, self.settings.device)

    def decide(self, tensor: Tensor) -> Tensor:
        """A tensor that `settle` gives new values, and that copies of the weights hold."""
        self.decided.append(tensor)
        return tensor
