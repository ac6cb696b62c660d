"""A regularizer that brings groups of elements to zero, as a step of its own after the optimizer's.

The proximal step of group lasso shrinks each group towards zero by a length, and leaves it at zero
where it was shorter: w ← w·max(0, 1 − t/‖w‖) (Yuan, Lin 2006; Parikh, Boyd 2014, section 6.5.1).
With single elements as groups this is the soft threshold of l1. Added to the loss instead, a norm
would bring no group to zero exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from onnxslim.runtime.training.schedule import cycle_between


class Regularizer:
    """Shrinks groups of the free tensors of weights.

    Args:
        weights: free tensors by name.
        groups: the group of each element, of the same shapes, by name.
        decay: how many times the mean norm of its weight's groups a group shrinks over a whole
            training, where no gradient holds it.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], groups: Mapping[str, np.ndarray], decay: float
    ) -> None:
        self._weights = [
            (tensor, torch.from_numpy(groups[name].reshape(-1).copy()))
            for name, tensor in weights.items()
            if name in groups and groups[name].shape == tuple(tensor.shape)
        ]
        norms = [_norms(tensor.detach(), numbers) for tensor, numbers in self._weights]
        self._lengths = [decay * float(found[found > 0].mean()) for found in norms if found.any()]
        self._weights = [
            pair for pair, found in zip(self._weights, norms, strict=True) if found.any()
        ]
        self.count = len(self._weights)

    def shrink(self, before: float, after: float) -> None:
        """Shrink by the part of training from the share `before` to the share `after`.

        As the rate of the optimizer does, the length follows the cycle: what gradients hold against
        it at first, they hold at the end.
        """
        part = cycle_between(before, after)
        with torch.no_grad():
            for (tensor, numbers), length in zip(self._weights, self._lengths, strict=True):
                norms = _norms(tensor, numbers)
                factors = (1 - part * length / norms.clamp_min(1e-30)).clamp_min(0)
                kept = factors.index_select(0, numbers).view_as(tensor)
                tensor.mul_(kept).add_(0.0)  # -0.0 would be stored as a value

    def zero_share(self) -> tuple[int, int]:
        """How many groups are zero, and how many there are."""
        found = [_norms(tensor.detach(), numbers) for tensor, numbers in self._weights]
        return sum(int((norms == 0).sum()) for norms in found), sum(map(len, found))


def _norms(tensor: Tensor, numbers: Tensor) -> Tensor:
    """The length of each group."""
    squares = tensor.new_zeros(int(numbers.max()) + 1)
    return squares.index_add(0, numbers, tensor.reshape(-1).square()).sqrt()
