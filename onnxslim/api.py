"""The main job, from Python: `compress`, `compare_models`, `bench_models`.

The only module that joins the core with `onnxslim.runtime`; both are imported when a function
needs them, so `import onnxslim` stays cheap.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxslim.errors import FloorMissed, UsageError
from onnxslim.io.check import check_model
from onnxslim.io.copying import copy_file
from onnxslim.io.model import Model, ModelSource
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import Pipeline, parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal, Policy
from onnxslim.pipeline.stats import measure_stats
from onnxslim.report import (
    Comparison,
    FileReport,
    Latency,
    LatencyPair,
    Report,
    Stats,
)

if TYPE_CHECKING:
    from onnxslim.exits.survey import ExitRow
    from onnxslim.runtime.measure.accuracy import EvaluationSource
    from onnxslim.runtime.measure.verify import RuntimeProver
    from onnxslim.runtime.samples.sources import SampleSource
    from onnxslim.runtime.session import Feeds
    from onnxslim.tools.sensitivity import SensitivityPoint

_METADATA_PIPELINE = "onnxslim.pipeline"
_METADATA_SOURCE = "onnxslim.input_sha256"


def compress(
    model: ModelSource | Model,
    output: str | os.PathLike[str] | None = None,
    *,
    passes: str | Pipeline = "simplify",
    calibration: SampleSource | None = None,
    evaluation: EvaluationSource | None = None,
    floors: Floors = Floors(),  # noqa: B008 - frozen
    goal: str = "both",
    force: bool = False,
    verify: bool = True,
    measure: bool = True,
    threads: int | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
    reproducers: str | os.PathLike[str] = "onnxslim-repro",
) -> tuple[Model, Report]:
    """Run a pipeline on a model, prove what it did, and write the result.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        output: where to write; None writes nothing. Nothing is written on an error.
        passes: a pipeline, as text or parsed.
        calibration: unlabelled samples, for passes that use data and for verification.
        evaluation: labelled samples or a metric, for accuracy.
        floors: what lossy steps may not go below.
        goal: `both`, `latency` or `bytes`: which of the two may not get worse.
        force: keep steps that do not pay.
        verify: compare outputs after every step.
        measure: time models, which also decides whether a step pays.
        threads: of onnxruntime; None for its own choice.
        seed: of all randomness.
        input_shapes: shape by input name, for inputs that are made up.
        command: what to record as the command in the report.
        progress: told in words what is going on.
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
    pipeline = parse_pipeline(passes) if isinstance(passes, str) else passes
    policy = Policy(_goal(goal), force, floors)
    if floors.max_drop is not None and evaluation is None:
        raise UsageError("A floor on accuracy (--max-drop) needs labelled samples: give --eval.")
    source = model if isinstance(model, Model) else Model.load(model)
    check_model(source)
    before = FileReport(
        str(source.origin.path) if source.origin.path else None,
        source.origin.sha256,
        measure_stats(source, file_bytes=source.origin.file_bytes),
    )
    report = Report(
        command or f"onnxslim.compress(passes={str(pipeline)!r})", _versions(), before, before
    )
    _note_defaults(source, report)
    prover = None
    if verify or measure:
        prover = _prover(
            source,
            report,
            calibration=calibration,
            evaluation=evaluation,
            seed=seed,
            threads=threads,
            input_shapes=input_shapes,
            latency=measure,
            verify=verify,
            progress=progress,
        )
        before.accuracy = prover.accuracy(source)
        policy = replace(policy, baseline_accuracy=before.accuracy)
    context = _context(
        seed,
        threads,
        calibration,
        prover if evaluation is not None else None,
        prover.sample if prover is not None and measure else None,
    )
    result, report.steps = PassManager(pipeline.passes).run(
        source,
        replace(context, floors=floors),
        prover=prover,
        policy=policy,
        stats=before.stats,
        progress=progress,
        reproducers=Path(reproducers),
    )
    _finish(source, result, report, prover)
    if output is not None:
        _write(source, result, Path(output), report, prover)
    report.seconds = time.perf_counter() - started
    _raise_for_floors(report)
    return result, report


def compare_models(
    a: ModelSource | Model,
    b: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    seed: int = 0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    measure: bool = True,
) -> tuple[Comparison, LatencyPair | None, Stats, Stats, str]:
    """Drift, latency and size of two models side by side.

    Returns:
        Drift of `b` against `a`, their latency in turn, their sizes, and what inputs were used.

    Raises:
        UsageError: the models do not take the same inputs.
        RuntimeFailure: onnxruntime runs `a` on no inputs that could be made up, or refuses one.
    """
    from onnxslim.errors import RuntimeFailure
    from onnxslim.records import Fidelity

    first = a if isinstance(a, Model) else Model.load(a)
    second = b if isinstance(b, Model) else Model.load(b)
    _same_inputs(first, second)
    stats = [measure_stats(model, file_bytes=model.origin.file_bytes) for model in (first, second)]
    prover = _make_prover(
        calibration=calibration,
        evaluation=None,
        seed=seed,
        threads=threads,
        input_shapes=input_shapes,
        latency=measure,
        verify=True,
    )
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
) -> list[tuple[str, Latency, LatencyPair | None]]:
    """Latency of models, timed in turn; each after the first also as a pair with the first.

    `seconds` are for each pair of models, by default two; more make the bounds narrower.

    Raises:
        RuntimeFailure: onnxruntime refuses a model, or no inputs could be made up.
    """
    from onnxslim.runtime.measure.bench import bench

    loaded = [model if isinstance(model, Model) else Model.load(model) for model in models]
    for other in loaded[1:]:
        _same_inputs(loaded[0], other)
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
    progress: Callable[[str], None] | None = None,
) -> Iterator[SensitivityPoint]:
    """What the last of `passes` does to the outputs on each layer or channel group alone.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        calibration: unlabelled samples; four fifths are fitted on, the rest measures.
        passes: those before the last are run first, on the whole model.
        seed: of all randomness.
        threads: of onnxruntime; None for its own choice.
        progress: told in words what is going on.

    Yields:
        A point for each target and strength, as soon as it is measured.

    Raises:
        UsageError: the last pass works on whole models only, or the samples do not fit.
        ModelError: the model is invalid, corrupt or not supported.
        RuntimeFailure: onnxruntime failed.
    """
    from onnxslim.io.shapes import infer_shapes
    from onnxslim.tools.sensitivity import check, sweep

    pipeline = parse_pipeline(passes) if isinstance(passes, str) else passes
    *first, last = pipeline.passes
    check(last)
    source = model if isinstance(model, Model) else Model.load(model)
    check_model(source)
    context = _context(seed, threads, calibration, None, None)
    if first:
        source, _ = PassManager(first).run(source, context, policy=Policy(force=True))
    source = source.clone()
    infer_shapes(source)
    yield from sweep(source, last, context, progress=progress)


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
    progress: Callable[[str], None] | None = None,
) -> tuple[list[ExitRow], list[str]]:
    """Where a classifier can be left early; with samples, how good a head there is.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        calibration: samples that heads are fitted to and judged by.
        output: name of the class scores; None: found.
        head: `linear` or `mlp`.
        seed: of all randomness.
        threads: of onnxruntime; None for its own choice.
        input_shapes: shape by input name, for inputs that are made up.
        measure: time the model up to each place.
        progress: told in words what is going on.

    Returns:
        The places in order, and notes.

    Raises:
        UsageError: the samples do not fit.
        ModelError: the model is invalid, corrupt, or no classifier that could be left.
        RuntimeFailure: onnxruntime failed.
    """
    from onnxslim.errors import ModelError, NotApplicable
    from onnxslim.exits.survey import Survey, exit_rows
    from onnxslim.io.shapes import infer_shapes

    source = (model if isinstance(model, Model) else Model.load(model)).clone()
    check_model(source)
    infer_shapes(source)
    sample = None
    if measure:
        prover = _make_prover(
            calibration=calibration,
            evaluation=None,
            seed=seed,
            threads=threads,
            input_shapes=input_shapes,
            latency=True,
            verify=False,
        )
        prover.begin(source)
        sample = prover.sample
    context = _context(seed, threads, calibration, None, sample)
    survey = Survey(source, replace(context, progress=progress), output, hidden=head == "mlp")
    try:
        return exit_rows(survey)
    except NotApplicable as reason:
        raise ModelError(f"The model cannot be left early: {reason}") from reason


def _goal(goal: str) -> Goal:
    try:
        return Goal(goal)
    except ValueError:
        words = ", ".join(item.value for item in Goal)
        raise UsageError(f"The goal must be one of {words}; got {goal!r}.") from None


def _versions() -> dict[str, str]:
    names = ("onnxslim-compiler", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _context(
    seed: int,
    threads: int | None,
    calibration: SampleSource | None,
    judge: RuntimeProver | None,
    sample: Feeds | None,
) -> Context:
    """What passes may use.

    `judge` measures accuracy, where there are evaluation data; `sample` is what models are timed
    on, where they are.
    """
    from onnxslim.runtime.evaluate import evaluate
    from onnxslim.runtime.measure.stopwatch import SessionStopwatch
    from onnxslim.runtime.probes.calibration_runs import CalibrationRuns

    runs = None
    if calibration is not None:
        runs = CalibrationRuns(calibration, seed=seed, threads=threads)
    accuracy = None if judge is None else judge.accuracy
    stopwatch = None
    if sample is not None:
        stopwatch = SessionStopwatch(sample, threads=threads, seed=seed)
    return Context(
        seed=seed,
        evaluate=evaluate,
        calibration=runs,
        accuracy=accuracy,
        stopwatch=stopwatch,
    )


def _make_prover(
    *,
    calibration: SampleSource | None,
    evaluation: EvaluationSource | None,
    seed: int,
    threads: int | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    latency: bool,
    verify: bool,
    progress: Callable[[str], None] | None = None,
) -> RuntimeProver:
    from onnxslim.runtime.measure.verify import RuntimeProver

    return RuntimeProver(
        calibration=calibration,
        evaluation=evaluation,
        seed=seed,
        threads=threads,
        input_shapes=input_shapes,
        latency=latency,
        verify=verify,
        progress=progress,
    )


def _note_defaults(source: Model, report: Report) -> None:
    """Say that initializers which callers may override are left alone."""
    names = [t.name for t in source.graph.inputs if getattr(t, "default", None) is not None]
    if names:
        report.notes.append(
            f"{len(names)} initializers are inputs as well (`{names[0]}`"
            f"{', ...' if len(names) > 1 else ''}): callers may override them, so they were not "
            "treated as constants. Remove them from the inputs to have them folded."
        )


def _prover(source: Model, report: Report, **options: object) -> RuntimeProver:
    prover = _make_prover(**options)  # type: ignore[arg-type]
    prover.begin(source)
    report.verified_on = prover.verified_on
    return prover


def _finish(source: Model, result: Model, report: Report, prover: RuntimeProver | None) -> None:
    """The figures of the result, and of the whole way from the input to it."""
    last = next((step for step in reversed(report.steps) if step.committed and step.stats), None)
    stats = last.stats if last and last.stats else report.before.stats
    accuracy = last.accuracy if last else report.before.accuracy
    report.after = FileReport(None, None, stats, accuracy=accuracy)
    if prover is not None:
        report.verified_on = prover.verified_on
        report.notes += prover.notes
    report.floors_missed = [
        f"{step.spec}: {step.why_not_committed}" for step in report.steps if step.floor_missed
    ]
    timed = [step for step in report.steps if step.committed and step.latency]
    if prover is not None and len(timed) > 1:
        report.latency = prover.time(source, result)
    elif timed:
        report.latency = timed[0].latency
    if report.latency is not None:
        report.before.latency = report.latency.before
        report.after.latency = report.latency.after


def _write(
    source: Model,
    result: Model,
    output: Path,
    report: Report,
    prover: RuntimeProver | None,
) -> None:
    changed = [step.spec for step in report.steps if step.committed and step.changes]
    if not changed and source.origin.path is not None:
        copy_file(source.origin, output)
        report.after.sha256 = source.origin.sha256
    else:
        marked = _marked(result, changed, report)
        with marked.stage(output) as staged:
            if prover is not None and changed:
                prover.check_file(staged.file, marked)
            report.after.stats = replace(report.after.stats, file_bytes=staged.file_bytes)
            report.after.sha256 = staged.sha256
            staged.commit()
    report.after.path = str(output)


def _marked(result: Model, pipeline: Sequence[str], report: Report) -> Model:
    """The result with its pipeline and origin in `metadata_props`.

    Left out where the mark would make the file larger than the input: never bigger.
    """
    entries = {_METADATA_PIPELINE: ",".join(pipeline), _METADATA_SOURCE: report.before.sha256}
    marked = result.with_metadata(entries)
    mark_bytes = marked.shell.ByteSize() - result.shell.ByteSize()
    before, after = report.before.stats.file_bytes, report.after.stats.file_bytes
    if after <= before < after + mark_bytes:
        report.notes.append("The file does not name its pipeline: that would have made it larger.")
        return result
    return marked


def _raise_for_floors(report: Report) -> None:
    if not report.floors_missed:
        return
    dropped = "; ".join(report.floors_missed)
    error = FloorMissed(f"Left out, to hold your floor: {dropped}. All other steps were kept.")
    error.report = report
    raise error


def _same_inputs(a: Model, b: Model) -> None:
    names = [[tensor.name for tensor in model.graph.inputs] for model in (a, b)]
    if names[0] != names[1]:
        raise UsageError(
            f"The models take different inputs: {', '.join(names[0])} and {', '.join(names[1])}."
        )


__all__ = ["bench_models", "compare_models", "compress", "measure_sensitivity"]
