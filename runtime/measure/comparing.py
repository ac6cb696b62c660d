"""Compare the outputs of one session with kept reference outputs.

Owns: the walk over runs and references. Not here: which differences are allowed (see `promise`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from onnxslim.analysis.output_kinds import OutputKinds
from onnxslim.analysis.output_parts import Parts
from onnxslim.analysis.token_inputs import PaddingMask
from onnxslim.records import Fidelity, OutputKind
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.padding import positions_that_count
from onnxslim.runtime.measure.promise import breach, shape_breach
from onnxslim.runtime.measure.row_matching import comparable
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Outputs, Session, TensorInfo


def measure_drift(
    session: Session,
    runs: Iterable[Sample],
    references: Sequence[Sequence[Outputs]],
    kept: list[Outputs] | None = None,
    parts: Parts | None = None,
    elastic: Sequence[Container[str]] = (),
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    kinds: OutputKinds = MappingProxyType({}),
    padding: PaddingMask | None = None,
) -> tuple[list[dict[str, DriftMeter]], str | None]:
    """Drift of every output against each reference, or why arrays do not match.

    `references` has the outputs of each reference model on the same samples. `kept` receives the
    outputs of `session`. `parts` of outputs are also measured separately, under their labels.
    `elastic` names, for each reference, the outputs whose sizes may differ from its own; `resized`
    receives the first pair of different shapes of each output. `kinds` of outputs, by name, choose
    the figures that are measured; positions that `padding` leaves out do not count.
    """
    parts = parts or {}
    elastic = elastic or [()] * len(references)
    meters = [_meters(reference[0], parts, kinds) for reference in references]
    for sample, *expected in zip(runs, *references, strict=True):
        outputs = session.run(sample.feeds)
        counts = positions_that_count(padding, sample.feeds)
        if kept is not None:
            kept.append(outputs)
        for found, whole, free in zip(meters, expected, elastic, strict=True):
            reference = session.narrowed(whole)
            broken = shape_breach(reference, outputs, free)
            if broken is not None:
                return meters, broken
            for name, array in reference.items():
                if resized is not None and array.shape != outputs[name].shape:
                    resized.setdefault(name, (array.shape, outputs[name].shape))
                _update(found, name, (array, outputs[name]), parts, counts)
    return meters, None


def _update(
    meters: Mapping[str, DriftMeter],
    name: str,
    pair: tuple[np.ndarray, np.ndarray],
    parts: Parts,
    counts: np.ndarray | None,
) -> None:
    """Add one run of output `name` to its meter and those of its parts."""
    ref, new = pair
    left, right = comparable(ref, new)
    meters[name].update(left, right, counts)
    unmatched = max(ref.size, new.size) - min(left.size, right.size)
    meters[name].unmatched += unmatched
    meters[name].unequal += unmatched
    for part in parts.get(name, ()):
        meters[part.label].update(part.of(left), part.of(right), counts)


def _meters(reference: Outputs, parts: Parts, kinds: OutputKinds) -> dict[str, DriftMeter]:
    meters = {}
    for name in reference:
        meters[name] = DriftMeter(kinds.get(name, OutputKind.VALUES))
        for part in parts.get(name, ()):
            meters[part.label] = DriftMeter()
    return meters


def first_breach(
    meters: Mapping[str, DriftMeter], outputs: Sequence[TensorInfo], fidelity: Fidelity
) -> str | None:
    """The first breach of `fidelity`, in words; None when every output keeps to it."""
    for info in outputs:
        if info.name not in meters:  # the reference did not have it yet
            continue
        assert info.dtype is not None
        broken = breach(info.name, meters[info.name], info.dtype, fidelity)
        if broken is not None:
            return broken
    return None
