"""What one pass does to each of its targets alone, at several strengths: drift, bytes, work.

A target is what the pass's `only` names: a weight layer, a channel group. What may change here:
what is measured of each. Which strengths there are, a pass declares (`Pass.strengths`).
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from onnxslim.errors import NotApplicable, UsageError
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.options import OptionValue
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.stats import measure_stats
from onnxslim.services.calibration import Distance

if TYPE_CHECKING:
    from onnxslim.io.model import Model
    from onnxslim.report import Stats


@dataclass(frozen=True)
class SensitivityPoint:
    """A pass on one target at one strength.

    Attributes:
        target: name of the layer, or of the group's first layer.
        option: that says how strong; None for a pass without one.
        strength: its value.
        spec: the pass as a pipeline spells it.
        distance: of the outputs from those of the model, on samples held back; None where the pass
            changed nothing.
        bytes_left: share of the file's bytes.
        macs_left: share of the multiply-accumulates, None where they are not known.
    """

    target: str
    option: str | None
    strength: OptionValue
    spec: str
    distance: Distance | None
    bytes_left: float
    macs_left: float | None


def check(rewrite: Pass) -> None:
    """Refuse a pass that cannot be swept.

    Raises:
        UsageError: it has no option `only`.
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
    progress: Callable[[str], None] | None = None,
) -> Iterator[SensitivityPoint]:
    """Run `rewrite` on one target after the other, at each strength.

    Args:
        model: with inferred shapes; left as it is.
        rewrite: the pass, with options of its own; `only` and its strength are set here.
        context: with calibration samples: a part of them is fitted on, the others measure.
        strengths: in place of those that the pass declares.
        progress: told in words what is going on.

    `check` has to have accepted the pass.
    """
    assert context.calibration is not None
    tried, held = context.calibration.halves()
    own = replace(context, calibration=tried, stopwatch=None, model=model)
    before = measure_stats(model)
    option, values = _strengths(rewrite, strengths)
    for target in rewrite.targets(model.graph):
        for value in values:
            options: dict[str, OptionValue] = {"only": (glob.escape(target),)}
            if option is not None:
                options[option] = value
            trial = replace(rewrite, **options)
            if progress is not None:
                progress(f"{trial}")
            result = _run(model, trial, own)
            distance = None
            if result is not model:
                (distance,) = held.distances(model, [result])
            yield _point(target, option, value, trial, distance, before, result)


def _strengths(
    rewrite: Pass, given: Sequence[OptionValue]
) -> tuple[str | None, Sequence[OptionValue]]:
    option, declared = next(iter(rewrite.strengths.items()), (None, (None,)))
    return option, given or declared


def _run(model: Model, trial: Pass, context: Context) -> Model:
    """The model after the pass; itself where the pass does nothing."""
    try:
        result, _ = PassManager([trial]).run(model, context, policy=Policy(force=True))
    except NotApplicable:
        return model
    return result


def _point(
    target: str,
    option: str | None,
    value: OptionValue,
    trial: Pass,
    distance: Distance | None,
    before: Stats,
    result: Model,
) -> SensitivityPoint:
    after = measure_stats(result)
    macs = None
    if before.macs and after.macs is not None:
        macs = after.macs / before.macs
    left = after.file_bytes / before.file_bytes
    return SensitivityPoint(target, option, value, str(trial), distance, left, macs)


def csv_text(points: Sequence[SensitivityPoint]) -> str:
    """The points as a table, a line each; an empty cell where nothing was measured."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        (
            *("target", "option", "strength", "pass", "bytes_left", "macs_left"),
            *("divergence", "agreement", "expected_agreement", "sqnr_db"),
        )
    )
    for point in points:
        moved = (None, None, None, None) if point.distance is None else astuple(point.distance)
        writer.writerow(
            (
                *(point.target, point.option, point.strength, point.spec),
                *(point.bytes_left, point.macs_left),
                *moved,
            )
        )
    return stream.getvalue()


__all__ = ["SensitivityPoint", "check", "csv_text", "sweep"]
