"""First and second moments of the channels of one tensor, as two models compute it.

With x what the changed model computes and y what the reference does, channel by channel, a·x + b
comes nearest to y for a = cov(x, y) / var(x) and b = E[y] − a·E[x].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelMoments:
    """Moments along the last axis of a tensor, each (channels,).

    Attributes:
        tensor: its name.
        count: number of rows.
        mean, goal: E[x] and E[y].
        second, cross: E[x²] and E[x·y].
    """

    tensor: str
    count: int
    mean: Array
    goal: Array
    second: Array
    cross: Array

    def line(self) -> tuple[Array, Array]:
        """The slope a and the intercept b of each channel; a is 1 where x does not vary."""
        variance = self.second - self.mean**2
        known = variance > _ROUNDING * self.second
        covariance = self.cross - self.mean * self.goal
        slope = np.divide(covariance, variance, out=np.ones_like(variance), where=known)
        return slope, self.goal - slope * self.mean

    def ratio(self) -> Array:
        """The slope of each channel without an intercept; 1 where x is zero."""
        known = self.second > 0
        return np.divide(self.cross, self.second, out=np.ones_like(self.second), where=known)


_ROUNDING = 1e-9  # of E[x²]: a smaller variance of float32 values is rounding
