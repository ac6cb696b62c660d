"""Statistics of single input channels of a layer over the calibration samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelActivity:
    """Statistics of the input channels of one layer, each (channels,).

    Attributes:
        layer: the layer's name.
        mean: E|x| over samples and positions (Molchanov 2016).
        zeros: share of exact zeros (APoZ, Hu 2016, eq. 1).
        entropy: in nats, of a histogram of the channel's mean in each sample (Luo 2017, eq. 2).
        most: the largest |x|.
        average: E[x].
    """

    layer: str
    mean: Array
    zeros: Array
    entropy: Array
    most: Array
    average: Array
