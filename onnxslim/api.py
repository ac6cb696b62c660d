"""Public functions that run models or write files: compress, tune, pack and others.

Owns: arguments checked, settings made, errors of a request. Not here: functions that only look (see
`surveys`); how one model runs through pipelines (see `run`). `onnxslim.runtime` is
imported when a function needs it, so `import onnxslim` stays cheap.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from onnxslim.details import Details
from onnxslim.errors import FloorMissed, RuntimeFailure, TargetMissed, UsageError
from onnxslim.io.bounds import check_bounds
from onnxslim.io.marks import check_output
from onnxslim.io.model import Model, ModelSource
from onnxslim.io.staging import check_target, stage_file
from onnxslim.lowering.obstacles import obstacles
from onnxslim.pipeline.floors import ALLOWING, DEFAULT, Floors, check_measured
from onnxslim.pipeline.layer_filter import FilteredPass, check_named
from onnxslim.pipeline.output_words import parse_kinds
from onnxslim.pipeline.passes import check_calibration, unrolled_members
from onnxslim.pipeline.policy import GoalWord, Policy
from onnxslim.pipeline.stats import measure_stats
from onnxslim.pipeline.targets import target_of
from onnxslim.records import Fidelity, OutputKind
from onnxslim.render.json import json_text
from onnxslim.report import Comparison, Latency, LatencyPair, Report, Stats
from onnxslim.run.conditions import cache_folder, cache_while
from onnxslim.run.declared import declared_settings
from onnxslim.run.failed import reporting
from onnxslim.run.output import write_output
from onnxslim.run.prepared import PreparedRun
from onnxslim.run.requests import (
    FloorWord,
    KindWord,
    PassesArgument,
    check_numbers,
    data_settings,
    file_of,
    floors_to_hold,
    for_target,
    goal_of,
    loaded,
    parsed,
    refuse_both,
)
from onnxslim.run.settings import RunSettings, provider_of
from onnxslim.runtime.samples.extras import SEARCH, TRAINING, require_extra
from onnxslim.services.progress import Progress
from onnxslim.tools.details import DetailSurvey

if TYPE_CHECKING:
    from onnxslim.pipeline.data_settings import DataSettings, DataWords
    from onnxslim.pipeline.grammar import Pipeline
    from onnxslim.runtime.measure.accuracy import EvaluationSource
    from onnxslim.runtime.samples.given import SampleSource
    from onnxslim.runtime.session import Feeds
    from onnxslim.tools.pack import PackReport

_SHOWN: Final = 3


def compress(
    model: ModelSource | Model,
    output: str | os.PathLike[str] | None = None,
    *,
    passes: PassesArgument = "simplify",
    target: str | None = None,
    verify_with: str | None = None,
    calibration: SampleSource | None = None,
    evaluation: EvaluationSource | None = None,
    data: DataSettings | DataWords | None = None,
    floors: Floors | Mapping[FloorWord, float] | None = DEFAULT,
    goal: GoalWord = "both",
    force: bool = False,
    verify: bool = True,
    measure: bool = True,
    threads: int | None = None,
    provider: str | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    output_kinds: Mapping[str, KindWord | OutputKind] | None = None,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
    reproducers: str | os.PathLike[str] = "onnxslim-repro",
    cache: str | os.PathLike[str] | None = None,
    calib: SampleSource | None = None,
    eval: EvaluationSource | None = None,
    train: SampleSource | None = None,
    details: bool = False,
    trace: str | os.PathLike[str] | None = None,
) -> tuple[Model, Report]:
    """Run a pipeline on a model, prove what it did, and write the result.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        output: where to write the result; None writes nothing. Nothing is written on an error.
        passes: a pipeline as text or parsed, a pass, or a list of passes.
        target: the engine that the file is for, such as `openvino`; None: onnxruntime, or that of
            the pass `retarget` at the end of the pipeline.
        verify_with: `openvino`, `tract` or `web`: another engine, in which the written file is run
            too; the report says how near its outputs are to onnxruntime's.
        calibration: unlabelled samples, for passes that use data and for verification: a path or
            `module:function`; arrays by input name; an iterable, dataset or data loader of
            samples or batches, as arrays, tensors, mappings or tuples of them; or a function
            that returns one of these. None of them is held in memory.
        evaluation: the same with labels, for top-1 accuracy; or a metric: a function that gets
            the model as a function of arrays by name, and returns a share in [0, 1].
        data: how both are read: `{"image_size": 224, "preset": "imagenet"}`; see `DataSettings`.
        floors: limits on what lossy steps may cost, in place of the default ones, as `Floors` or
            by name: `{"max-drop": 0.5, "min-sqnr": 30}`; None: no limits.
        goal: `both`, `latency` or `bytes`: which of the two may not get worse.
        force: keep steps that do not pay.
        verify: compare outputs after every step.
        measure: time models, which also decides whether a step pays.
        threads: threads of onnxruntime; None for its own choice.
        provider: the execution provider of onnxruntime on which models are verified and timed, such
            as `CUDA` or `OpenVINO`; None: the processor.
        seed: seed of all randomness.
        input_shapes: shape by input name, for inputs that are made up.
        output_kinds: `classes`, `embedding`, ... by output name, where the graph was read
            wrong.
        overwrite: replace an existing `output` that onnxslim did not write, too.
        command: what to record as the command in the report.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.
        reproducers: folder for a model that shows a broken promise.
        cache: folder in which outcomes of steps are kept and found again; None: all steps are run.
        calib: the same as `calibration`, as the command calls it.
        eval: the same as `evaluation`.
        train: samples for passes that train, in place of `calibration`; without that, they are the
            calibration samples, too.
        details: put into the report, as `details`, what each layer takes before and after, the
            samples that moved farthest, energy by arithmetic, and outlines of both graphs. With
            `measure`, layers are timed, too.
        trace: where to write a Chrome trace of onnxruntime's kernels, before and after; None: none
            is made.

    Returns:
        The resulting model and the report.

    Raises:
        UsageError: the request is wrong, or the output cannot be written.
        ModelError: the model is invalid, corrupt or not supported.
        FloorMissed: a step was dropped for a floor; the output, without that step, was written.
            The best model that holds the floor is in its `model`, the report in its `report`.
        TargetMissed: the target does not take all of the output, which was written.
        PromiseBroken: a pass broke its promise; nothing was written.
        RuntimeFailure: onnxruntime failed.
    """
    started = time.perf_counter()
    pipeline = for_target(parsed(passes), target)
    refuse_both(calibration, calib, "`calibration` and `calib`")
    check_numbers(seed=seed, threads=threads)
    provider = provider_of(provider)
    limits = floors_to_hold(floors)
    policy = Policy(goal_of(goal), force, limits)
    refuse_both(evaluation, eval, "`evaluation` and `eval`")
    evaluation = evaluation if eval is None else eval
    check_measured(limits, has_evaluation=evaluation is not None, verify=verify)
    calibration = calibration if calib is None else calib
    calibration = train if calibration is None else calibration
    if calibration is None:
        check_calibration(pipeline.passes)
    if any(stage.trains for item in pipeline.passes for stage in unrolled_members(item)):
        require_extra(*TRAINING)
    words = data_settings(data)
    if output is not None:
        check_output(Path(output), file_of(model), overwrite=overwrite)
    if trace is not None:
        check_target(Path(trace), None)
    _check_engine(verify_with, output)
    source = loaded(model)
    settings = RunSettings(
        calibration,
        evaluation,
        train,
        seed,
        threads,
        input_shapes,
        parse_kinds(f"{name}={kind}" for name, kind in (output_kinds or {}).items()),
        verify,
        measure,
        Progress.of(progress),
        words,
        declared_settings(source),
        cache_folder(cache),
        provider,
    )
    command = command or f"onnxslim.compress(passes={str(pipeline)!r})"
    with reporting(source, command) as watched:
        if pipeline.passes and isinstance(pipeline.passes[0], FilteredPass):
            check_named(pipeline.passes[0], source.graph)  # before the model is run and timed
        watched.run = run = PreparedRun(source, settings)
        attempt = run.try_pipeline(pipeline, policy, reproducers=Path(reproducers))
        report = run.report(attempt, command)
        if output is not None:
            write_output(run, attempt, report, Path(output))
        if output is not None and verify_with is not None:
            report.notes.append(_agreement(run, verify_with, Path(output)))
        if details:
            _add_details(report, run, attempt.model)
        if trace is not None:
            _write_trace(Path(trace), run, attempt.model, report)
        report.seconds = time.perf_counter() - started
        _raise_for_floors(report, attempt.model)
        _raise_for_target(pipeline, report, attempt.model)
    return attempt.model, report


def tune(
    model: ModelSource | Model,
    output: str | os.PathLike[str] | None = None,
    *,
    calibration: SampleSource | None = None,
    evaluation: EvaluationSource | None = None,
    train: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    floors: Floors | Mapping[FloorWord, float] | None = DEFAULT,
    goal: Literal["latency", "bytes", "energy"] | None = None,
    target_latency: str | None = None,
    target_size: str | None = None,
    seconds: float = 1800.0,
    trials: int = 60,
    study: str | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    front: str | os.PathLike[str] | None = None,
    clock: bool = True,
    is_worker: bool = False,
    threads: int | None = None,
    provider: str | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    output_kinds: Mapping[str, KindWord | OutputKind] | None = None,
    overwrite: bool = False,
    command: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    details: bool = False,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> tuple[Model, Report]:
    """Find the pipeline that makes a model as small or as fast as the floors allow.

    Four of five samples choose; the others confirm what was chosen. `report.tuning` has the search.

    Args:
        model: as for `compress`.
        output: where to write the result; None writes nothing.
        calibration: unlabelled samples.
        evaluation: labelled samples, or a metric.
        train: samples for passes that train, in place of `calibration`.
        data: how all of them are read.
        floors: what must hold, as for `compress`; None is refused.
        goal: what is to become least; by default latency, or what the first target is for.
        target_latency: latency that suffices: `5ms`, or `0.5x` of the model's.
        target_size: bytes that suffice: `1MB`, or `0.25x` of the model's.
        seconds: after which no further trial begins.
        trials: the largest number of trials.
        study: file of a journal, or URL of a storage of Optuna, in which trials are kept and
            shared: an equal request goes on with them.
        allow: names of the passes that may be combined; (): all that help with the goal.
        deny: names of passes that may not.
        front: folder for the models that nothing beats in bytes, latency and closeness at once.
        clock: whether this process times models; without it there is no goal of latency.
        is_worker: whether this process only takes part in the search, and writes nothing.
        threads: threads of onnxruntime; None for its own choice.
        provider: the execution provider of onnxruntime on which models are verified and timed, such
            as `CUDA` or `OpenVINO`; None: the processor.
        seed: seed of all randomness.
        input_shapes: shape by input name, for inputs that are made up.
        output_kinds: `classes`, `embedding`, ... by output name, where the graph was read wrong.
        overwrite: replace an existing `output` that onnxslim did not write, too.
        command: what to record as the command in the report.
        cache: folder in which outcomes of steps are kept and found again; None: one that goes with
            the search.
        details: put into the report what `compress` does with `details`.
        progress: is called when a step of the work begins, advances or ends.

    Returns:
        The resulting model and the report.

    Raises:
        UsageError: the request is wrong, Optuna is missing, or the output cannot be written.
        ModelError: the model is invalid, corrupt or not supported.
        FloorMissed: the targets are out of reach; the best model that holds the floors was written,
            and is in its `model`.
        RuntimeFailure: onnxruntime failed.
    """
    started = time.perf_counter()
    provider = provider_of(provider)
    require_extra(*SEARCH)
    from onnxslim.tuning.aims import Aim
    from onnxslim.tuning.run import Tuner, TuneRequest

    check_numbers(seed=seed, threads=threads)
    aim = Aim.of(goal, target_latency, target_size)
    if aim.needs_clock and not clock:
        raise UsageError(
            "A goal of latency needs models to be timed: leave out --no-clock, or give a goal of "
            "bytes."
        )
    limits = floors_to_hold(floors)
    if not limits.limits_anything:
        raise UsageError("tune needs floors: without any, the smallest model is an empty one.")
    check_measured(limits, has_evaluation=evaluation is not None, verify=True)
    words = data_settings(data)
    if output is not None:
        check_output(Path(output), file_of(model), overwrite=overwrite)
    source = loaded(model)
    has_parts = calibration is not None or evaluation is not None
    settings = RunSettings(
        calibration,
        evaluation,
        train,
        seed,
        threads,
        input_shapes,
        parse_kinds(f"{name}={kind}" for name, kind in (output_kinds or {}).items()),
        measure=clock,
        progress=Progress.of(progress),
        data=replace(words, samples="most") if has_parts else words,
        declared=declared_settings(source),
        provider=provider,
    )
    request = TuneRequest(
        aim,
        Policy(floors=limits),
        seconds,
        trials,
        tuple(allow),
        tuple(deny),
        study,
        seed,
        is_worker=is_worker,
    )
    with (
        cache_while(cache) as folder,
        reporting(source, command or "onnxslim.tune(...)") as watched,
    ):
        settings = replace(settings, cache=folder)
        watched.run = run = PreparedRun(source, settings)
        confirming = None
        if has_parts and not is_worker:
            rest = replace(words, samples="rest")
            confirming = PreparedRun(source, replace(settings, data=rest, measure=False))
        tuner = Tuner(request, run, confirming)
        attempt, report = tuner.run()
        report.command = command or report.command
        if not is_worker:
            if output is not None:
                write_output(run, attempt, report, Path(output))
            if front is not None and report.tuning is not None:
                report.tuning = tuner.write_front(Path(front), report.tuning)
            if details:
                _add_details(report, run, attempt.model)
        report.seconds = time.perf_counter() - started
        if report.floors_missed:
            told = "; ".join(report.floors_missed)
            raise _with_report(FloorMissed(f"{told[0].upper()}{told[1:]}."), report, attempt.model)
    return attempt.model, report


def _add_details(report: Report, run: PreparedRun, result: Model) -> None:
    survey = DetailSurvey(run.prover, run.stopwatch, run.settings)
    report.details = survey.details(run.source, result)
    report.notes += survey.notes


def _check_engine(engine: str | None, output: object) -> None:
    """Refuse an engine that is not installed, or that no file is written for.

    Raises:
        UsageError: why.
    """
    if engine is None:
        return
    from onnxslim.runtime.engines.opening import require_engine

    if output is None:
        raise UsageError("`verify_with` runs the written file; give an output.")
    require_engine(engine)


def _agreement(run: PreparedRun, engine: str, output: Path) -> str:
    from onnxslim.runtime.engines.agreement import agreement

    prover = run.prover
    if prover is None or not prover.probes:
        raise UsageError(
            f"There are no inputs to run the file in {engine} on; give samples with --calib, and "
            "do not turn off both comparison and timing."
        )
    return agreement(
        engine, output, prover.probes, prover.output_kinds, threads=run.settings.threads
    )


def retarget(
    model: ModelSource | Model,
    output: str | os.PathLike[str] | None = None,
    *,
    target: str,
    verify_with: str | None = None,
    calibration: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    floors: Floors | Mapping[FloorWord, float] | None = DEFAULT,
    verify: bool = True,
    threads: int | None = None,
    provider: str | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    overwrite: bool = False,
    progress: Progress | Callable[[Progress], None] | None = None,
    calib: SampleSource | None = None,
) -> tuple[Model, Report]:
    """Write a model in the forms that an engine takes, and compare outputs.

    The engine is called `target`, such as `openvino`, `tensorrt` or `portable`. All other
    arguments, the result and the errors are those of `compress`.
    """
    return compress(
        model,
        output,
        passes=f"retarget:to={target_of(target).name}",
        verify_with=verify_with,
        calibration=calibration,
        data=data,
        floors=floors,
        verify=verify,
        measure=False,
        threads=threads,
        provider=provider,
        seed=seed,
        input_shapes=input_shapes,
        overwrite=overwrite,
        command=f"onnxslim.retarget(target={target!r})",
        progress=progress,
        calib=calib,
    )


def compare_models(
    a: ModelSource | Model,
    b: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    measure: bool = True,
    progress: Progress | Callable[[Progress], None] | None = None,
    calib: SampleSource | None = None,
) -> tuple[Comparison, LatencyPair | None, Stats, Stats, str]:
    """Drift, latency and size of two models side by side; arguments as for `compress`.

    Returns:
        Drift of `b` against `a`, their latency timed in turn, the size of `a`, the size of `b`, and
        a description of the inputs that they were run on.

    Raises:
        UsageError: the models do not take the same inputs.
        RuntimeFailure: no inputs could be made up on which `a` runs, or onnxruntime refuses a
            model.
    """
    refuse_both(calibration, calib, "`calibration` and `calib`")
    samples = calibration if calib is None else calib
    pair = _ModelPair(
        a, b, samples, data, seed, threads, provider, input_shapes, measure, Progress.of(progress)
    )
    return pair.compared()


def compare_in_detail(
    a: ModelSource | Model,
    b: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> tuple[tuple[Comparison, LatencyPair | None, Stats, Stats, str], Details]:
    """As `compare_models`, and both models part by part: layers, samples, energy, graphs.

    Raises:
        UsageError: as there.
        RuntimeFailure: as there.
    """
    pair = _ModelPair(
        a, b, calibration, data, seed, threads, provider, input_shapes, True, Progress.of(progress)
    )
    return pair.compared(), pair.details()


class _ModelPair:
    """Two models that take the same inputs, ready to be compared."""

    def __init__(
        self,
        a: ModelSource | Model,
        b: ModelSource | Model,
        calibration: SampleSource | None,
        data: DataSettings | DataWords | None,
        seed: int,
        threads: int | None,
        provider: str | None,
        input_shapes: Mapping[str, Sequence[int]] | None,
        measure: bool,
        progress: Progress,
    ) -> None:
        check_numbers(seed=seed, threads=threads)
        words = data_settings(data)
        self._first, self._second = loaded(a), loaded(b)
        for model in (self._first, self._second):
            check_bounds(model)
        _check_same_inputs(self._first, self._second)
        self._settings = RunSettings(
            calibration,
            seed=seed,
            threads=threads,
            provider=provider_of(provider),
            input_shapes=input_shapes,
            measure=measure,
            progress=progress,
            data=words,
            declared=declared_settings(self._first),
        )
        self._stats = [
            measure_stats(model, file_bytes=model.origin.file_bytes)
            for model in (self._first, self._second)
        ]
        self._prover = self._settings.prover()
        if not self._prover.begin(self._first):
            raise RuntimeFailure(f"The models cannot be compared: {self._prover.verified_on}")

    def compared(self) -> tuple[Comparison, LatencyPair | None, Stats, Stats, str]:
        """See `compare_models`."""
        prover = self._prover
        comparison = prover.compare(self._second, Fidelity.LOSSY)
        pair = prover.time(self._first, self._second)
        a, b = self._stats
        return comparison, pair, a, b, prover.verified_on

    def details(self) -> Details:
        """Both models, part by part."""
        stopwatch = self._settings.context(self._prover).stopwatch
        survey = DetailSurvey(self._prover, stopwatch, self._settings)
        return survey.details(self._first, self._second)


def bench_models(
    models: Sequence[ModelSource | Model],
    *,
    calibration: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
    calib: SampleSource | None = None,
    trace: str | os.PathLike[str] | None = None,
) -> list[tuple[str, Latency, LatencyPair | None]]:
    """Latency of models, timed in turn; each after the first also as a pair with the first.

    Arguments are as for `compress`.
    `seconds` are for each pair of models, by default two; more make the bounds narrower.
    `trace` is where to write a Chrome trace of the kernels of all models.

    Raises:
        RuntimeFailure: onnxruntime refuses a model, or no inputs could be made up.
    """
    from onnxslim.runtime.measure.bench import bench

    refuse_both(calibration, calib, "`calibration` and `calib`")
    check_numbers(seed=seed, threads=threads)
    provider = provider_of(provider)
    words = data_settings(data)
    opened = list(map(loaded, models))
    for model in opened:
        check_bounds(model)
    for other in opened[1:]:
        _check_same_inputs(opened[0], other)
    settings = RunSettings(
        calibration if calib is None else calib,
        data=words,
        declared=declared_settings(opened[0]),
    )
    if trace is not None:
        check_target(Path(trace), None)
    with Progress.of(progress).step(f"timing {len(opened)} models in turn"):
        rows, sample = bench(
            opened,
            calibration=settings.given_calibration,
            seed=seed,
            threads=threads,
            provider=provider,
            input_shapes=input_shapes,
            seconds=seconds,
        )
    if trace is not None:
        named = [(name, model) for (name, *_), model in zip(rows, opened, strict=True)]
        _traced(Path(trace), named, sample, threads, provider)
    return rows


def pack(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    coder: Literal["entropy", "huffman", "zstd"] = "entropy",
    measure: bool = True,
    overwrite: bool = False,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> PackReport:
    """Write the smallest file of a model, which `unpack` gives back to the byte.

    Args:
        model: an .onnx file; external data are packed with it.
        output: the packed file; None: that of the model with the ending `.onnxz`.
        coder: how weights are coded.
        measure: code everything by the other coders too, for the figures.
        overwrite: replace an existing `output` that onnxslim did not write, too.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.

    Raises:
        UsageError: a path is wrong, or the output cannot be written.
        ModelError: it is no valid model.
    """
    from onnxslim.packing.streams import CodingMethod
    from onnxslim.tools import pack as tool

    words = [method.value for method in CodingMethod]
    if coder not in words:
        raise UsageError(f"`coder` must be one of {', '.join(words)}; got {coder!r}.")
    source = Path(model)
    target = Path(output) if output is not None else source.with_suffix(".onnxz")
    check_output(target, source, overwrite=overwrite)
    return tool.pack(
        source, target, coder=CodingMethod(coder), measure=measure, progress=Progress.of(progress)
    )


def unpack(
    packed: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the model in a packed file, and return where it lies.

    Args:
        packed: the packed file.
        output: the .onnx file; None: that of the packed file with the ending `.onnx`.
        overwrite: replace an existing `output` that is neither this model nor written by onnxslim.

    Raises:
        UsageError: a path is wrong, the file is not packed, or the output cannot be written.
        ModelError: the file is damaged, or claims more than it may.
    """
    from onnxslim.io import copying

    source = Path(packed)
    target = Path(output) if output is not None else source.with_suffix(".onnx")
    check_output(target, source, overwrite=True)
    # what was unpacked before carries no mark, but it is the same file
    content = copying.unpacked_sha256(source) if target.exists() else None
    if content is not None:  # else `unpack` says what the file is instead
        check_output(target, source, overwrite=overwrite, content=content)
    copying.unpack(source, target)
    return target


def _write_trace(path: Path, run: PreparedRun, result: Model, report: Report) -> None:
    """Write a trace of source and result; a note where no inputs are known to run them on."""
    sample = None if run.prover is None else run.prover.sample
    if sample is None:
        report.notes.append(f"No trace was written: {report.verified_on}")
        return
    names = (report.before.path or "input", report.after.path or "result")
    models = [
        (f"before: {names[0]}", run.source),
        (f"after: {names[1]}", result),
    ]
    _traced(path, models, sample, run.settings.threads, run.settings.provider)


def _traced(
    path: Path,
    models: Sequence[tuple[str, Model]],
    sample: Feeds,
    threads: int | None,
    provider: str | None,
) -> None:
    """Write a Chrome trace of one run of each of the named models, all or nothing.

    Raises:
        UsageError: the file cannot be written.
        RuntimeFailure: onnxruntime refuses a model.
    """
    from onnxslim.runtime.measure.trace import chrome_trace

    found = chrome_trace(models, sample, threads=threads, provider=provider)
    content = json_text(found).encode()
    with stage_file(path) as staged:
        staged.write([content])
        staged.commit()


def _raise_for_floors(report: Report, model: Model) -> None:
    if not report.floors_missed:
        return
    dropped = "; ".join(report.floors_missed)
    if report.has_default_floors:
        why, advice = "the default floor", f" {ALLOWING}"
    else:
        why, advice = "your floor", ""
    error = FloorMissed(
        f"Left out or weakened, to hold {why}: {dropped}. All other steps were kept.{advice}"
    )
    raise _with_report(error, report, model)


def _with_report(error: FloorMissed, report: Report, model: Model) -> FloorMissed:
    error.report, error.model = report, model
    return error


def _raise_for_target(pipeline: Pipeline, report: Report, model: Model) -> None:
    name = pipeline.passes[-1].engine if pipeline.passes else None
    left = [] if name is None else list(obstacles(model.graph, target_of(name)))
    if not left:
        return
    more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    error = TargetMissed(
        f"The target {name} does not take all of the file: {'; '.join(map(str, left[:_SHOWN]))}"
        f"{more}. Nothing replaces that; the file was made all the same."
    )
    error.report, error.model = report, model
    raise error


def _check_same_inputs(a: Model, b: Model) -> None:
    names = [[tensor.name for tensor in model.graph.inputs] for model in (a, b)]
    if names[0] != names[1]:
        raise UsageError(
            f"The models take different inputs: {', '.join(names[0])} and {', '.join(names[1])}."
        )
