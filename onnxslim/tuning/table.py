"""What each layer, or group of channels, costs in each variant: bytes, milliseconds, error.

    table = measured_table(model, families, context, ...)        # once
    chosen = table.within(allowed_error)                         # for each budget
    steps = passes_of(chosen.values())                           # as a pipeline

A variant is a pass on one layer alone (its option `only`), at one strength. The error is that of
the outputs of the model, on samples held back, with all other layers as they were; errors of small
changes add up. Costs are differences of the whole model. What a table promises of many changes at
once is a prediction; whole models have the last word (see `trials`).
"""

from __future__ import annotations

import glob
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from onnxslim.details import TableEntry
from onnxslim.errors import NotApplicable
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.options import OptionValue
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.policy import Policy
from onnxslim.tuning.aims import Measure
from onnxslim.tuning.families import Family
from onnxslim.tuning.program import least_cost_within

if TYPE_CHECKING:
    from onnxslim.io.model import Model
    from onnxslim.services.stopwatch import Stopwatch

AS_IT_IS: Final = "as it is"
_MOST_TARGETS: Final = 24  # of a pass: those that take the most
_MOST_SAMPLES: Final = 64
_LEAST_SHARE: Final = 1e-3  # of the model, that a change of one layer leaves
_KERNEL_NOISE: Final = 0.05  # relative difference of a kernel's times that may be chance


@dataclass(frozen=True)
class Variant:
    """One way to have a layer.

    Attributes:
        layer: its name, or that of the group.
        step: the pass on that layer alone; None: the layer as it is.
        error: divergence of the model's outputs.
        bytes, ms: what the whole model has more than with the layer as it is; negative: less.
        cost: logarithm of the share that the model keeps of what is to become small.
    """

    layer: str
    step: Pass | None
    error: float
    bytes: int
    ms: float | None
    cost: float


@dataclass
class VariantTable:
    """The variants of each layer.

    Attributes:
        bytes, ms: of the model with all layers as they are; ms is the sum of its kernels.
        menus: by layer; the first is the layer as it is.
        left_out: passes and layers that there was no time to measure.
    """

    bytes: int = 0
    ms: float | None = None
    menus: dict[str, list[Variant]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, variant: Variant) -> None:
        """Add a variant that costs less than the layer as it is."""
        if variant.cost < 0:
            same = Variant(variant.layer, None, 0.0, 0, 0.0, 0.0)
            self.menus.setdefault(variant.layer, [same]).append(variant)

    def shares(self, chosen: Iterable[Variant]) -> tuple[float, float | None]:
        """The shares of bytes and of milliseconds that the model keeps with some variants."""
        chosen = list(chosen)
        left = math.prod(_share(variant.bytes, self.bytes) for variant in chosen)
        if self.ms is None:
            return left, None
        return left, math.prod(_share(variant.ms or 0.0, self.ms) for variant in chosen)

    def within(self, allowed_error: float) -> dict[str, Variant]:
        """The variants of least cost whose errors add up to at most `allowed_error`."""
        return least_cost_within(self.menus, allowed_error)

    def entries(self, chosen: Mapping[str, Variant]) -> list[TableEntry]:
        """The table for a report."""
        return [
            TableEntry(
                layer,
                AS_IT_IS if variant.step is None else str(_without_only(variant.step)),
                variant.bytes,
                variant.ms,
                variant.error,
                chosen.get(layer) is variant,
            )
            for layer, variants in self.menus.items()
            for variant in variants
        ]


def measured_table(
    model: Model,
    families: Iterable[Family],
    context: Context,
    goal: Measure,
    seconds: float,
) -> VariantTable:
    """Measure every variant of the layers that take the most.

    Args:
        model: its shapes inferred; never changed.
        families: the passes; those without `only` or strengths give no variants.
        context: services; calibration samples to fit and to judge on.
        goal: what costs are of.
        seconds: after which no further variant is measured; those left out are named.
    """
    samples = context.calibration or context.seeded
    if samples is None:
        return VariantTable()
    fitted, held = samples.some(_MOST_SAMPLES).halves()
    is_real = context.calibration is not None
    own = replace(context, calibration=fitted if is_real else None, model=model, stopwatch=None)
    deadline = time.monotonic() + seconds
    clock = context.stopwatch if goal is Measure.LATENCY else None
    meter = _Meter(model, clock)
    table = VariantTable(meter.bytes, meter.ms)
    trials = list(_trials(model, families))
    for target, trial in context.progress.over("measuring", trials, "variants of layers"):
        if time.monotonic() > deadline:
            table.left_out.append(str(trial))
            continue
        changed = _changed(model, trial, own)
        if changed is None:
            continue
        (distance,) = held.distances(model, [changed])
        saved, ms = meter.differences(changed)
        if goal is not Measure.LATENCY:
            share = _share(saved, meter.bytes)
        elif ms is not None and meter.ms is not None:
            share = _share(ms, meter.ms)
        else:
            share = _share(_macs(changed) - meter.macs, meter.macs)
        table.add(Variant(target, trial, distance.divergence, saved, ms, math.log(share)))
    return table


def passes_of(chosen: Iterable[Variant], families: Sequence[Family]) -> list[Pass]:
    """The variants as steps, in the order of the families; equal settings in one step."""
    order = [family.name for family in families]
    groups: dict[Pass, list[str]] = {}
    for variant in chosen:
        if variant.step is not None:
            groups.setdefault(_without_only(variant.step), []).extend(variant.step.only)  # type: ignore[attr-defined]
    steps = []
    for step, only in sorted(groups.items(), key=lambda item: order.index(item[0].name)):
        changed: Any = {"only": tuple(only)}
        steps.append(replace(step, **changed))
    return steps


def _trials(model: Model, families: Iterable[Family]) -> Iterator[tuple[str, Pass]]:
    """Each pass on each target alone at each strength; targets that take the most come first."""
    bytes_of = _bytes_by_layer(model)
    pairs: list[tuple[float, str, Pass]] = []
    for family in families:
        plain = type(family.hardest)()
        fields = {spec.name: spec.field for spec in plain.options()}
        if "only" not in fields or not plain.strengths:
            continue
        targets = sorted(plain.targets(model.graph), key=lambda name: -bytes_of.get(name, 0))
        ((option, strengths),) = plain.strengths.items()
        for target in targets[:_MOST_TARGETS]:
            for strength in strengths:
                changed: dict[str, OptionValue] = {fields[option]: strength}
                if "scope" in fields:  # this group loses that share, whatever others would
                    changed["scope"] = "layer"
                changed["only"] = (glob.escape(target),)
                pairs.append((-bytes_of.get(target, 0), target, replace(plain, **changed)))
    pairs.sort(key=lambda item: item[0])
    return ((target, trial) for _, target, trial in pairs)


def _bytes_by_layer(model: Model) -> dict[str, int]:
    from onnxslim.analysis.layers import weight_layers

    layers, _ = weight_layers(model.graph)
    return {layer.name: layer.holder.nbytes for layer in layers}


def _changed(model: Model, trial: Pass, context: Context) -> Model | None:
    try:
        result, _ = PassManager([trial]).run(model, context, policy=Policy(force=True))
    except NotApplicable:
        return None
    return None if result is model else result


def _without_only(step: Pass) -> Pass:
    changed: Any = {"only": ()}
    return replace(step, **changed)


class _Meter:
    """What a changed model takes beyond the model as it was.

    Attributes:
        bytes, macs, ms: of the model as it was; ms is None without a clock.
    """

    def __init__(self, model: Model, clock: Stopwatch | None) -> None:
        self.bytes, self.macs = model.file_bytes(), _macs(model)
        self._clock = clock
        self._kernels = {} if clock is None else _times(clock, model)
        self.ms = None if clock is None else sum(self._kernels.values())

    def differences(self, changed: Model) -> tuple[int, float | None]:
        """Bytes and milliseconds; of kernels, those that differ by more than chance count."""
        saved = changed.file_bytes() - self.bytes
        if self._clock is None:
            return saved, None
        now, before, total = _times(self._clock, changed), self._kernels, 0.0
        for key in {*now, *before}:
            new, old = now.get(key, 0.0), before.get(key, 0.0)
            if abs(new - old) > _KERNEL_NOISE * max(new, old):
                total += new - old
        return saved, total


def _share(more: float, whole: float) -> float:
    """What is left of a whole with so much more, which is negative for less."""
    return max(1 + more / max(whole, 1e-300), _LEAST_SHARE)


def _macs(model: Model) -> int:
    from onnxslim.pipeline.stats import measure_stats

    return measure_stats(model).macs or 0


def _times(clock: Stopwatch, model: Model) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for kernel in clock.profile(model):
        key = kernel.node, kernel.operator
        found[key] = found.get(key, 0.0) + kernel.ms
    return found
