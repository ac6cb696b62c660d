"""The public functions: `compress`, `compare_models`, `bench_models` and what other commands call.

Owns: arguments checked, settings made, errors of a request. Not here: how one model runs through
pipelines (see `run`). `onnxslim.runtime` is imported when a function needs it, so `import onnxslim`
stays cheap.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxslim.errors import FloorMissed, ModelError, NotApplicable, RuntimeFailure, UsageError
from onnxslim.io.bounds import check_bounds
from onnxslim.io.check import admit
from onnxslim.io.model import Model, ModelSource
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.floors import ALLOWING, DEFAULT, Floors, check_measured
from onnxslim.pipeline.grammar import Pipeline, parse_pipeline
from onnxslim.pipeline.layer_filter import FilteredPass, check_named
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.output_words import parse_kinds
from onnxslim.pipeline.passes import check_calibration
from onnxslim.pipeline.policy import Goal, Policy
from onnxslim.pipeline.recipe import GOALS
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from onnxslim.report import Comparison, Latency, LatencyPair, Report, Stats
from onnxslim.run.failed import reporting
from onnxslim.run.output import write_output
from onnxslim.run.prepared import PreparedRun
from onnxslim.run.settings import RunSettings
from onnxslim.services.progress import Progress

if TYPE_CHECKING:
    from onnxslim.exits.candidates import ExitRow
    from onnxslim.runtime.measure.accuracy import EvaluationSource
    from onnxslim.runtime.samples.sources import SampleSource
    from onnxslim.tools.sensitivity import SensitivityPoint


def compress(
    model: ModelSource | Model,
    output: str | os.PathLike[str] | None = None,
    *,
    passes: str | Pipeline = "simplify",
    calibration: SampleSource | None = None,
    evaluation: EvaluationSource | None = None,
    floors: Floors | None = DEFAULT,
    goal: str = "both",
    force: bool = False,
    verify: bool = True,
    measure: bool = True,
    threads: int | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    output_kinds: Mapping[str, str] | None = None,
    command: str | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
    reproducers: str | os.PathLike[str] = "onnxslim-repro",
) -> tuple[Model, Report]:
    """Run a pipeline on a model, prove what it did, and write the result.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        output: where to write the result; None writes nothing. Nothing is written on an error.
        passes: a pipeline, as text or parsed.
        calibration: unlabelled samples, for passes that use data and for verification.
        evaluation: labelled samples or a metric, for accuracy.
        floors: limits on what lossy steps may cost, in place of the default ones; None: no limits.
        goal: `both`, `latency` or `bytes`: which of the two may not get worse.
        force: keep steps that do not pay.
        verify: compare outputs after every step.
        measure: time models, which also decides whether a step pays.
        threads: threads of onnxruntime; None for its own choice.
        seed: seed of all randomness.
        input_shapes: shape by input name, for inputs that are made up.
        output_kinds: `classes`, `embedding` or `values` by output name, where the graph was read
            wrong.
        command: what to record as the command in the report.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.
        reproducers: folder for a model that shows a broken promise.

    Returns:
        The resulting model and the report.

    Raises:
        UsageError: the request is wrong, or the output cannot be written.
        ModelError: the model is invalid, corrupt or not supported.
        FloorMissed: a step was dropped for a floor; the output, without that step, was written.
            The report is in its `report`.
        PromiseBroken: a pass broke its promise; nothing was written.
        RuntimeFailure: onnxruntime failed.
    """
    started = time.perf_counter()
    pipeline = _parsed(passes)
    floors = floors or Floors()
    policy = Policy(_goal(goal), force, floors)
    check_measured(floors, has_evaluation=evaluation is not None, verify=verify)
    if calibration is None:
        check_calibration(pipeline.passes)
    settings = RunSettings(
        calibration,
        evaluation,
        seed,
        threads,
        input_shapes,
        parse_kinds(f"{name}={kind}" for name, kind in (output_kinds or {}).items()),
        verify,
        measure,
        Progress.of(progress),
    )
    command = command or f"onnxslim.compress(passes={str(pipeline)!r})"
    source = _loaded(model)
    with reporting(source, command) as watched:
        if pipeline.passes and isinstance(pipeline.passes[0], FilteredPass):
            check_named(pipeline.passes[0], source.graph)  # before the model is run and timed
        watched.run = run = PreparedRun(source, settings)
        attempt = run.try_pipeline(pipeline, policy, reproducers=Path(reproducers))
        report = run.report(attempt, command)
        if output is not None:
            write_output(run, attempt, report, Path(output))
        report.seconds = time.perf_counter() - started
        _raise_for_floors(report)
    return attempt.model, report


def compare_models(
    a: ModelSource | Model,
    b: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    seed: int = 0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    measure: bool = True,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> tuple[Comparison, LatencyPair | None, Stats, Stats, str]:
    """Drift, latency and size of two models side by side.

    Returns:
        Drift of `b` against `a`, their latency timed in turn, the size of `a`, the size of `b`, and
        a description of the inputs that they were run on.

    Raises:
        UsageError: the models do not take the same inputs.
        RuntimeFailure: no inputs could be made up on which `a` runs, or onnxruntime refuses a
            model.
    """
    first, second = _loaded(a), _loaded(b)
    for model in (first, second):
        check_bounds(model)
    _check_same_inputs(first, second)
    stats = [measure_stats(model, file_bytes=model.origin.file_bytes) for model in (first, second)]
    prover = RunSettings(
        calibration,
        seed=seed,
        threads=threads,
        input_shapes=input_shapes,
        measure=measure,
        progress=Progress.of(progress),
    ).prover()
    if not prover.begin(first):
        raise RuntimeFailure(f"The models cannot be compared: {prover.verified_on}")
    comparison = prover.compare(second, Fidelity.LOSSY)
    return comparison, prover.time(first, second), stats[0], stats[1], prover.verified_on


def bench_models(
    models: Sequence[ModelSource | Model],
    *,
    calibration: SampleSource | None = None,
    seed: int = 0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> list[tuple[str, Latency, LatencyPair | None]]:
    """Latency of models, timed in turn; each after the first also as a pair with the first.

    `seconds` are for each pair of models, by default two; more make the bounds narrower.

    Raises:
        RuntimeFailure: onnxruntime refuses a model, or no inputs could be made up.
    """
    from onnxslim.runtime.measure.bench import bench

    loaded = list(map(_loaded, models))
    for model in loaded:
        check_bounds(model)
    for other in loaded[1:]:
        _check_same_inputs(loaded[0], other)
    with Progress.of(progress).step(f"timing {len(loaded)} models in turn"):
        return bench(
            loaded,
            calibration=calibration,
            seed=seed,
            threads=threads,
            input_shapes=input_shapes,
            seconds=seconds,
        )


def measure_sensitivity(
    model: ModelSource | Model,
    *,
    calibration: SampleSource,
    passes: str | Pipeline = "simplify,prune-channels",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> Iterator[SensitivityPoint]:
    """How far the outputs move when the last of `passes` treats one layer or channel group alone.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        calibration: unlabelled samples; four fifths are fitted on, the rest measures.
        passes: those before the last are run first, on the whole model.
        seed: seed of all randomness.
        threads: threads of onnxruntime; None for its own choice.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.

    Yields:
        A point for each target and strength, as soon as it is measured.

    Raises:
        UsageError: the last pass works on whole models only, or the samples do not fit.
        ModelError: the model is invalid, corrupt or not supported.
        RuntimeFailure: onnxruntime failed.
    """
    from onnxslim.tools.sensitivity import check_has_targets, sweep

    *first, last = _parsed(passes).passes
    check_has_targets(last)
    source = _loaded(model)
    settings = RunSettings(calibration, seed=seed, threads=threads, progress=Progress.of(progress))
    check_bounds(source)
    list(admit(source, settings.load))
    context = settings.context()
    if first:
        source, _ = PassManager(first).run(source, context, policy=Policy(force=True))
    source = source.clone()
    infer_shapes(source)
    yield from sweep(source, last, context)


def survey_exits(
    model: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    output: str | None = None,
    head: str = "linear",
    seed: int = 0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    measure: bool = True,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> tuple[list[ExitRow], list[str]]:
    """Where a classifier can be left early; with samples, how good a head is at each place.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        calibration: samples that heads are fitted to and judged by.
        output: name of the output that holds the class scores; None: it is found.
        head: `linear` or `mlp`.
        seed: seed of all randomness.
        threads: threads of onnxruntime; None for its own choice.
        input_shapes: shape by input name, for inputs that are made up.
        measure: time the model up to each place.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.

    Returns:
        The places in order, and notes.

    Raises:
        UsageError: the samples do not fit.
        ModelError: the model is invalid, corrupt, or no classifier that could be left.
        RuntimeFailure: onnxruntime failed.
    """
    from onnxslim.exits.candidates import ExitAnalysis, exit_rows

    source = _loaded(model).clone()
    infer_shapes(source)
    settings = RunSettings(
        calibration,
        seed=seed,
        threads=threads,
        input_shapes=input_shapes,
        verify=False,
        measure=measure,
        progress=Progress.of(progress),
    )
    check_bounds(source)
    list(admit(source, settings.load))
    prover = None
    if measure:
        prover = settings.prover()
        prover.begin(source)
    survey = ExitAnalysis(source, settings.context(prover), output, hidden=head == "mlp")
    try:
        return exit_rows(survey)
    except NotApplicable as reason:
        raise ModelError(f"The model cannot be left early: {reason}") from reason


def _loaded(model: ModelSource | Model) -> Model:
    return model if isinstance(model, Model) else Model.load(model)


def _parsed(passes: str | Pipeline) -> Pipeline:
    return parse_pipeline(passes) if isinstance(passes, str) else passes


def _goal(goal: str) -> Goal:
    try:
        return Goal(goal)
    except ValueError:
        words = ", ".join(GOALS)
        raise UsageError(f"The goal must be one of {words}; got {goal!r}.") from None


def _raise_for_floors(report: Report) -> None:
    if not report.floors_missed:
        return
    dropped = "; ".join(report.floors_missed)
    if report.has_default_floors:
        why, advice = "the default floor", f" {ALLOWING}"
    else:
        why, advice = "your floor", ""
    error = FloorMissed(f"Left out, to hold {why}: {dropped}. All other steps were kept.{advice}")
    error.report = report
    raise error


def _check_same_inputs(a: Model, b: Model) -> None:
    names = [[tensor.name for tensor in model.graph.inputs] for model in (a, b)]
    if names[0] != names[1]:
        raise UsageError(
            f"The models take different inputs: {', '.join(names[0])} and {', '.join(names[1])}."
        )
