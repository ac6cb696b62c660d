"""Whether a file computes the same in another engine, on the samples that outputs are compared on.

The reference is onnxruntime on the same file, so the difference is the engine's alone: some engines
round where onnxruntime does not, and some compute other values from forms that they misread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from onnxslim.records import OutputKind
from onnxslim.report import Drift
from onnxslim.runtime.engines.opened import EngineFailure, Feeds, OpenedModel
from onnxslim.runtime.engines.opening import open_in
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.session import open_session

_SAMPLES: Final = 4
_RUNS: Final = 5  # of the first sample, for the latency
_LEAST_DB: Final = 10.0  # below, outputs have less than a third of the reference's shape


def agreement(
    engine: str,
    file: Path,
    samples: Sequence[Feeds],
    kinds: Mapping[str, OutputKind],
    threads: int | None = None,
) -> str:
    """How near the outputs of a file in an engine are to those in onnxruntime, as a sentence.

    Args:
        engine: its name, one of `opening.ENGINES`.
        file: of the model.
        samples: inputs by name; the first few are run.
        kinds: what outputs hold, by name.
        threads: of both engines.

    Raises:
        UsageError: the engine is not installed.
        EngineFailure: it refuses the file, fails on it, or computes something else.
    """
    # tract opens a model for inputs of one shape
    chosen = [feeds for feeds in samples if _shapes(feeds) == _shapes(samples[0])][:_SAMPLES]
    meters: dict[str, DriftMeter] = {}
    with open_session(file, threads=threads) as session:
        names = [info.name for info in session.inputs]
        ordered = [{name: feeds[name] for name in names} for feeds in chosen]
        other = open_in(engine, file, ordered[0], threads)
        try:
            for feeds in ordered:
                outputs, found = session.run(feeds), other.timed(feeds)[0]
                for (name, ref), new in zip(outputs.items(), found, strict=True):
                    if ref.shape != new.shape:
                        raise EngineFailure(
                            f"{other.engine} returns `{name}` in the shape {new.shape}, not "
                            f"{ref.shape}."
                        )
                    meter = meters.setdefault(name, DriftMeter(kinds.get(name, OutputKind.VALUES)))
                    meter.update(ref, new.astype(ref.dtype, copy=False))
            there = median(other.timed(ordered[0])[1] for _ in range(_RUNS))
            run = session.runner(ordered[0])
            here = median(_milliseconds(run) for _ in range(_RUNS))
        finally:
            other.close()
    return _told(other, {name: meter.result() for name, meter in meters.items()}, there, here)


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def _milliseconds(run: object) -> float:
    started = time.perf_counter()
    assert callable(run)
    run()
    return 1000 * (time.perf_counter() - started)


def _told(other: OpenedModel, drifts: Mapping[str, Drift], there: float, here: float) -> str:
    worst = min(drifts, key=lambda name: drifts[name].sqnr_db)
    drift = drifts[worst]
    figures = f"`{worst}` has {drift.sqnr_db:.1f} dB, its largest difference is {drift.max_abs:.3g}"
    if drift.sqnr_db < _LEAST_DB:
        raise EngineFailure(
            f"{other.engine} computes something else than onnxruntime from the file: {figures}."
        )
    return (
        f"{other.engine} runs the file and agrees with onnxruntime: {figures}; {there:.3g} ms a "
        f"run there, {here:.3g} ms here."
    )
