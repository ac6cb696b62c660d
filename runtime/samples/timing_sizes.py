"""Sizes for the open dimensions of inputs that models are timed on.

What is proven on 32×32 pixels holds for larger images; what is faster there may be slower on
416×416. So times are taken at sizes that people use, by what an axis is: pixels, tokens or frames,
samples of sound. Of these, the largest with no more than `MOST_MACS` multiply-accumulates is taken,
so that timing ends soon; it does not depend on the clock.

Owns: which sizes are timed. Not here: sizes for proofs (see `input_sizes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from onnxslim.analysis.input_demands import InputDemands
from onnxslim.graph.counts import count_macs
from onnxslim.io.model import Model
from onnxslim.io.shapes import with_input_shapes
from onnxslim.runtime.samples.input_sizes import (
    NO_DEMANDS,
    SizeChoices,
    StaticShape,
    StaticShapes,
)
from onnxslim.runtime.session import TensorInfo

MOST_MACS: Final = 3_000_000_000
"""Of one run: 60 ms on a core of 50 billion multiply-accumulates a second."""

# pixels of a side, tokens or frames, samples of sound: a second has 16,000
_LEVELS: Final = (
    (640, 256, 32_000),
    (416, 128, 16_000),
    (320, 128, 16_000),
    (224, 128, 16_000),
    (128, 64, 8_000),
    (64, 32, 4_000),
)
_UNKNOWN: Final = 3  # the level from which sizes are tried where the work is not known


def timing_shapes(
    inputs: Sequence[TensorInfo],
    accepted: StaticShapes,
    given: StaticShapes,
    model: Model,
    demands: InputDemands = NO_DEMANDS,
) -> Iterator[StaticShapes]:
    """Shapes to time `model` on, the best first; none where no size is open or all are too large.

    Args:
        inputs: with the sizes that the graph leaves no choice for.
        accepted: shapes that the model is known to run on; batch and channels stay as they are.
        given: shapes that the user chose.
        model: counts the work.
        demands: of its graph.
    """
    seen = [accepted]
    for level, sizes in enumerate(_LEVELS):
        plan, choices = dict(accepted), SizeChoices(inputs, given, demands)
        for info in inputs:
            if info.name not in given and info.shape is not None:
                plan[info.name] = _sized(info, accepted[info.name], sizes, choices)
        if plan in seen or _is_smaller(plan, accepted):
            continue
        macs = macs_at(model, plan)
        if macs is None and level < _UNKNOWN:
            continue  # the same sizes may come again at a later level
        seen.append(plan)
        if macs is None or macs <= MOST_MACS:
            yield plan


def macs_at(model: Model, shapes: StaticShapes) -> int | None:
    """Multiply-accumulates of a run on inputs of these shapes; None where a size stays unknown."""
    return count_macs(with_input_shapes(model, shapes).graph)


def _sized(
    info: TensorInfo,
    accepted: StaticShape,
    sizes: tuple[int, int, int],
    choices: SizeChoices,
) -> StaticShape:
    assert info.shape is not None
    pixels, tokens, sound = sizes
    by_role = {"image": pixels, "sequence": sound if _is_sound(info) else tokens}
    found = []
    for axis, (size, now) in enumerate(zip(info.shape, accepted, strict=True)):
        value = by_role.get(choices.role(info, axis), now)
        found.append(now if isinstance(size, int) else choices.take(info, axis, value))
    return tuple(found)


def _is_sound(info: TensorInfo) -> bool:
    """Whether an input is a waveform: floats along the last axis, in one or two channels."""
    *others, last = info.shape or (0,)
    is_float = info.dtype is not None and info.dtype.kind == "f"
    is_thin = len(others) <= 2 and all(not isinstance(d, int) or d <= 2 for d in others)
    is_open = not isinstance(last, int) and all(isinstance(d, int) for d in others[1:])
    return is_float and is_thin and is_open


def _is_smaller(plan: Mapping[str, StaticShape], accepted: StaticShapes) -> bool:
    """Whether no axis is longer than it is known to work."""
    return all(
        size <= now
        for name, shape in plan.items()
        for size, now in zip(shape, accepted[name], strict=True)
    )
