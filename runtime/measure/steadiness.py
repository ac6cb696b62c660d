"""Which outputs the input model itself gives differently when it runs again on the same sample.

It may draw random numbers or keep a state. And onnxruntime may return memory that nothing wrote: a
Concat whose first operand is empty has the sizes of that operand, and leaves the rest of its output
as it lies there. Whether this shows depends on what the memory held before, so models run again
with other values in it: samples come in another order, and with memory from the system, which
arrays of zeros and of NaN have just left.

Owns: which outputs differ. Not here: what becomes of them (see `verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

import numpy as np

from onnxslim.records import Fidelity
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.promise import breach, shape_breach
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Outputs, Session

_SIZES: Final = tuple(2**power for power in range(6, 16))  # of arrays, in bytes
_COUNT: Final = 8
_SMALL: Final = 1 << 16  # outputs that are compared as bytes first


def differing_outputs(
    reference: Outputs, found: Outputs, session: Session, fidelity: Fidelity = Fidelity.CLOSE
) -> dict[str, str]:
    """How outputs of two runs on one sample differ beyond what `fidelity` allows, by name."""
    differing = {}
    for info in session.outputs:
        if info.dtype is None or info.name not in reference:
            continue
        name, old, new = info.name, reference[info.name], found[info.name]
        if old.nbytes <= _SMALL and _is_same(old, new):
            continue
        how = shape_breach({name: old}, {name: new})
        if how is None:
            meter = DriftMeter()
            meter.update(old, new)
            how = breach(name, meter, info.dtype, fidelity)
        if how is not None:
            differing[name] = how
    return differing


def _is_same(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether type, shape and bytes are equal, faster than it is measured."""
    is_alike = old.dtype == new.dtype and old.shape == new.shape
    return is_alike and old.tobytes() == new.tobytes()


def unsteady_outputs(
    opened: Callable[..., Session],
    runs: Sequence[Sample],
    reference: Sequence[Outputs],
    fidelity: Fidelity,
) -> dict[str, str]:
    """The outputs that differ when the model runs again, and how, by name.

    Args:
        opened: opens a session of the model; takes `keeps_memory` of `open_session`.
        runs: samples.
        reference: outputs of the model on each of them.
        fidelity: what two runs may differ by.

    Raises:
        RuntimeFailure: onnxruntime fails.
    """
    found: dict[str, str] = {}
    for keeps_memory, fill in ((True, 0.0), (False, 0.0), (False, np.nan)):
        with opened(keeps_memory=keeps_memory) as session:
            for sample, old in reversed(list(zip(runs, reference, strict=True))):
                _leave(fill)
                new = session.run(sample.feeds)
                found = differing_outputs(old, new, session, fidelity) | found
    return found


def _leave(fill: float) -> None:
    """Free arrays full of `fill`, so that the next allocations of these sizes find it."""
    litter = [np.full(size // 4, fill, np.float32) for size, _ in product(_SIZES, range(_COUNT))]
    del litter
