"""Latency of several models side by side, for `onnxslim bench`.

Owns: how several models are compared with the first. Not here: measuring (see `latency`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from onnxslim.analysis.input_demands import input_demands
from onnxslim.errors import RuntimeFailure
from onnxslim.io.model import Model
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.measure.latency import BUDGET_S, Run, compare_times, summarise, time_sessions
from onnxslim.runtime.measure.workload import from_seed
from onnxslim.runtime.samples.given import AnySource
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.session import Feeds, Session, open_session


def bench(
    models: Sequence[Model],
    *,
    calibration: AnySource | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float | None = None,
) -> tuple[list[tuple[str, Latency, LatencyPair | None]], Feeds]:
    """Name, latency, and latency against the first model, of models that take the same inputs.

    They run on the first calibration sample, or on seeded inputs; `seconds` is the time for each
    pair of models, and more of it narrows the interval.

    Returns:
        A row for each model, and the sample that they ran on.

    Raises:
        RuntimeFailure: onnxruntime refuses a model, or no inputs could be made up.
        UsageError: the calibration data do not fit.
    """
    feeds: list[Feeds] = []

    @contextmanager
    def opened() -> Iterator[Sequence[Run]]:
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(open_session(m, threads=threads, provider=provider))
                for m in models
            ]
            for session in sessions:
                session.provider_share()  # none that falls back to the processor alone
            if not feeds:
                feeds.append(one_sample(models[0], sessions[0], calibration, seed, input_shapes))
            for session in sessions:
                session.run(feeds[0])  # an error here names the fault; one in a timed run would not
            yield [session.runner(feeds[0]) for session in sessions]

    times = time_sessions(opened, seed=seed, budget_s=BUDGET_S if seconds is None else seconds)
    rows = [
        (
            _name(model, index),
            summarise(row),
            compare_times(times.rows(0, index)) if index else None,
        )
        for index, (model, row) in enumerate(zip(models, times.ms, strict=True))
    ]
    return rows, feeds[0]


def one_sample(
    model: Model,
    session: Session,
    calibration: AnySource | None,
    seed: int,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> Feeds:
    """The first of the user's samples, or a seeded one.

    Raises:
        RuntimeFailure: the model runs on no inputs that could be made up.
    """
    if calibration is not None:
        return next(iter(open_samples(calibration, session.inputs))).feeds
    workload, why = from_seed(session, seed, input_shapes, input_demands(model), model)
    if workload is None:
        raise RuntimeFailure(
            f"No inputs could be made up that the model accepts. {why} Give samples (--calib) or "
            "sizes (--input-shape)."
        )
    return workload.single


def _name(model: Model, index: int) -> str:
    return str(model.origin.path) if model.origin.path else f"model {index + 1}"
