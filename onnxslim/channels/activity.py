"""The worth of units by how their channels behave on calibration samples, before they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.importance import Criterion
from onnxslim.pipeline.passes import Context
from onnxslim.services.activity import ChannelActivity

Array = npt.NDArray[np.float64]


def activity_worth(
    context: Context, channels: Channels, groups: Sequence[ChannelGroup], measure: Criterion
) -> Array:
    """For each unit the mean over the layers that read it; 0 where none can be observed.

    Each layer's values are divided by their mean, so that layers count alike.
    """
    assert context.calibration is not None
    assert context.model is not None
    readers = {
        member.layer.name: member
        for group in groups
        for member in group.readers
        if member.layer is not None
    }
    worth = np.zeros(channels.units.count)
    seen = np.zeros(channels.units.count)
    for found in context.calibration.activity(context.model, list(readers)):
        if not isinstance(found, ChannelActivity):
            continue
        values = _values(found, measure)
        units = channels.units.of_ids(readers[found.layer].ids)
        named = units >= 0
        np.add.at(worth, units[named], values[named] / max(float(values.mean()), 1e-300))
        np.add.at(seen, units[named], 1.0)
    return worth / np.maximum(seen, 1.0)


def _values(found: ChannelActivity, measure: Criterion) -> Array:
    if measure is Criterion.APOZ:
        return 1.0 - found.zeros
    return found.entropy if measure is Criterion.ENTROPY else found.mean


__all__ = ["activity_worth"]
