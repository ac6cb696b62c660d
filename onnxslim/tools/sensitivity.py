"""Run a pass on one target at a time, at several strengths, and measure drift, bytes and work.

A target is a name that the option `only` of the pass can match: a weight layer or a channel group.
Owns: what is measured of a target. Not here: the strengths, which a pass declares
(`Pass.strengths`).
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from onnxslim.errors import NotApplicable, UsageError
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.options import OptionValue
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.stats import measure_stats
from onnxslim.services.calibration import Distance

if TYPE_CHECKING:
    from onnxslim.io.model import Model


@dataclass(frozen=True)
class SensitivityPoint:
    """A pass on one target at one strength, and its effect.

    Attributes:
        target: name of the layer, or of the first layer of the group.
        option, strength: the option that sets the strength, and its value; None for a pass without
            such an option.
        spec: the pass as a pipeline spells it.
        distance: distance of the outputs from those of the model, on samples held back; None where
            the pass changed nothing.
        bytes_left: bytes of the file after the pass, as a share of those before.
        macs_left: multiply-accumulates after the pass, as a share of those before; None where they
            are unknown.
    """

    target: str
    option: str | None
    strength: OptionValue
    spec: str
    distance: Distance | None
    bytes_left: float
    macs_left: float | None


def check_has_targets(rewrite: Pass) -> None:
    """Refuse a pass that cannot be run on one target alone.

    Raises:
        UsageError: the pass has no option `only`.
    """
    if not any(spec.field == "only" for spec in rewrite.options()):
        raise UsageError(
            f"`{rewrite.name}` has no option `only`, so it cannot be tried on one layer or group "
            "at a time; sensitivity is for passes that have it, such as prune-channels, "
            "prune-weights, cluster-weights."
        )


def sweep(
    model: Model,
    rewrite: Pass,
    context: Context,
    *,
    strengths: Sequence[OptionValue] = (),
) -> Iterator[SensitivityPoint]:
    """Run `rewrite` on each target alone, at each strength.

    Args:
        model: a model with inferred shapes; never changed.
        rewrite: the pass; its options `only` and strength are set here. `check_has_targets` must
            have accepted it.
        context: services with calibration samples; a part of them is fitted on, the others measure.
        strengths: values to try; (): those that the pass declares.
    """
    assert context.calibration is not None
    fitted, held_back = context.calibration.halves()
    own = replace(context, calibration=fitted, stopwatch=None, model=model)
    before = measure_stats(model)
    option, values = _strengths(rewrite, strengths)
    pairs = [(target, value) for target in rewrite.targets(model.graph) for value in values]
    for target, value in context.progress.over("trying", pairs, f"settings of {rewrite.name}"):
        options: dict[str, OptionValue] = {"only": (glob.escape(target),)}
        if option is not None:
            options[option] = value
        trial = replace(rewrite, **options)
        result, distance = _run(model, trial, own), None
        if result is not model:
            (distance,) = held_back.distances(model, [result])
        after = measure_stats(result)
        yield SensitivityPoint(
            *(target, option, value, str(trial), distance),
            bytes_left=after.file_bytes / before.file_bytes,
            macs_left=after.macs / before.macs if before.macs and after.macs is not None else None,
        )


def _strengths(
    rewrite: Pass, given: Sequence[OptionValue]
) -> tuple[str | None, Sequence[OptionValue]]:
    option, declared = next(iter(rewrite.strengths.items()), (None, (None,)))
    return option, given or declared


def _run(model: Model, trial: Pass, context: Context) -> Model:
    """The model after the pass; `model` itself where the pass changes nothing."""
    try:
        result, _ = PassManager([trial]).run(model, context, policy=Policy(force=True))
    except NotApplicable:
        return model
    return result


_DISTANCE: Final = (
    *("divergence", "agreement", "expected_agreement", "sqnr_db"),
    *("mean_cosine", "least_cosine", "mean_kl", "largest_kl"),
)
CSV_HEADS: Final = (
    *("target", "option", "strength", "pass", "bytes_left", "macs_left"),
    *_DISTANCE,
)


def csv_text(points: Sequence[SensitivityPoint]) -> str:
    """The points as CSV, one line each; a cell is empty where nothing was measured."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEADS)
    for point in points:
        found = point.distance
        moved = (None if found is None else getattr(found, name) for name in _DISTANCE)
        writer.writerow(
            (
                *(point.target, point.option, point.strength, point.spec),
                *(point.bytes_left, point.macs_left),
                *moved,
            )
        )
    return stream.getvalue()
