"""Public functions that look and write nothing: inspect, groups, sensitivity, exits, passes.

Owns: arguments checked, settings made. Not here: the work (see `tools` and `exits.candidates`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxslim.errors import ModelError, NotApplicable
from onnxslim.io.bounds import check_bounds
from onnxslim.io.model import Model, ModelSource
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline import registry
from onnxslim.pipeline.data_settings import SETTINGS, DataSettings, option_name
from onnxslim.pipeline.floors import Floors, check_measured
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.output_words import parse_kinds
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.registry import Description
from onnxslim.run.declared import declared_settings
from onnxslim.run.record import processor_name
from onnxslim.run.requests import (
    FloorWord,
    PassesArgument,
    check_numbers,
    data_settings,
    floors_to_hold,
    loaded,
    parsed,
    refuse_both,
)
from onnxslim.run.settings import RunSettings, provider_of
from onnxslim.services.progress import Progress
from onnxslim.tools.claims import Claim, ClaimSettings, judged_claims, report_of_output
from onnxslim.tools.explanation import read_reports
from onnxslim.tools.inspection import Inspection, inspect_model

if TYPE_CHECKING:
    from onnxslim.exits.candidates import ExitRow
    from onnxslim.pipeline.data_settings import DataWords
    from onnxslim.runtime.measure.accuracy import EvaluationSource
    from onnxslim.runtime.samples.given import SampleSource
    from onnxslim.tools.grouping import GroupSurvey
    from onnxslim.tools.sensitivity import SensitivityPoint


DATA_OPTIONS = frozenset(map(option_name, SETTINGS))
"""Names of the settings of data, as options and as records spell them."""


def inspect(model: ModelSource | Model) -> Inspection:
    """Signature, operators, weights and sizes of a model.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`.

    Raises:
        UsageError: there is no such file.
        ModelError: it is no model.
    """
    return inspect_model(loaded(model))


def check(
    output: str | os.PathLike[str],
    against: str | os.PathLike[str],
    report: str | os.PathLike[str],
    *,
    calibration: SampleSource | None = None,
    evaluation: EvaluationSource | None = None,
    data: DataSettings | DataWords | None = None,
    floors: Floors | Mapping[FloorWord, float] | None = None,
    needs_floors: bool = True,
    threads: int | None = None,
    provider: str | None = None,
    seed: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    measure: bool = True,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> list[Claim]:
    """Hold what a report claims against its files once more, on this machine.

    Settings that are not given are those of the run.

    Args:
        output: the file that the run wrote.
        against: the file that it began with.
        report: what `--report` wrote of it, as JSON.
        calibration: the samples of the run; without them what it says of outputs is not judged.
        evaluation: its labelled samples or its metric.
        data: how both are read.
        floors: limits to hold beside those of the run.
        needs_floors: whether lossy steps without any floor break a claim.
        threads: threads of onnxruntime.
        provider: the execution provider of onnxruntime, such as `CUDA` or `OpenVINO`.
        seed: of seeded inputs.
        input_shapes: shape by input name, for seeded inputs.
        measure: time the models.
        progress: is called when a step of the work begins, advances or ends.

    Raises:
        UsageError: a file is missing, or is no report of such a run.
        ModelError: a file is no model.
        RuntimeFailure: onnxruntime refuses a model.
    """
    source, result = loaded(against), loaded(output)
    for model in (source, result):
        check_bounds(model)
    claimed = report_of_output(read_reports(Path(report)), result.origin)
    record = claimed.get("record") or {}
    said = {str(name): str(value) for name, value in record.get("settings", {}).items()}
    words = data_settings(data)
    if calibration is not None or evaluation is not None:
        words = words.over(DataSettings.of({k: v for k, v in said.items() if k in DATA_OPTIONS}))
    seed = int(said.get("seed", 0)) if seed is None else seed
    threads = int(said["threads"]) if threads is None and "threads" in said else threads
    provider = provider_of(said.get("provider") if provider is None else provider)
    check_numbers(seed=seed, threads=threads)
    limits = None if floors is None else floors_to_hold(floors)
    if limits is not None:
        check_measured(limits, has_evaluation=evaluation is not None, verify=True)
    settings = RunSettings(
        calibration,
        evaluation,
        seed=seed,
        threads=threads,
        provider=provider,
        input_shapes=input_shapes,
        output_kinds=parse_kinds(filter(None, said.get("output-kind", "").split(","))),
        measure=measure,
        progress=Progress.of(progress),
        data=words,
        declared=declared_settings(source),
    )
    how = ClaimSettings(settings.data_sha256(), processor_name(), limits, needs_floors, provider)
    return list(judged_claims(claimed, source, result, settings.prover(), how))


def passes() -> tuple[Description, ...]:
    """All passes: name, promise and first sentence of each, sorted by name."""
    return registry.describe()


def groups(
    model: ModelSource | Model,
    *,
    passes: PassesArgument | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
) -> GroupSurvey:
    """The channel groups of a model: what pruning could remove, and why not the rest.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        passes: what is run first, such as `simplify`; nothing is verified.
        progress: as for `exits`.

    Raises:
        UsageError: the pipeline is wrong, or there is no such file.
        ModelError: the model is invalid, corrupt or not supported.
    """
    from onnxslim.tools.grouping import survey_groups

    pipeline = None if passes is None else parsed(passes)
    source = loaded(model)
    sha256 = source.origin.sha256
    source = source.clone()
    if pipeline is None:
        check_bounds(source)
    else:
        settings = RunSettings(verify=False, measure=False, progress=Progress.of(progress))
        settings.admit(source)
        manager = PassManager(pipeline.passes)
        source, _ = manager.run(source, settings.context(), policy=Policy(force=True))
    return survey_groups(source, sha256)


def sensitivity(
    model: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    passes: PassesArgument = "simplify,prune-channels",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | Callable[[Progress], None] | None = None,
    calib: SampleSource | None = None,
) -> Iterator[SensitivityPoint]:
    """How far the outputs move when the last of `passes` treats one layer or channel group alone.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        calibration: unlabelled samples; four fifths are fitted on, the rest measures.
        data: how they are read.
        passes: those before the last are run first, on the whole model.
        seed: seed of all randomness.
        threads: threads of onnxruntime; None for its own choice.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.
        calib: the same as `calibration`, as the command calls it.

    Yields:
        A point for each target and strength, as soon as it is measured.

    Raises:
        UsageError: the last pass works on whole models only, or the samples do not fit.
        ModelError: the model is invalid, corrupt or not supported.
        RuntimeFailure: onnxruntime failed.
    """
    from onnxslim.tools.sensitivity import check_has_targets, sweep

    *first, last = parsed(passes).passes
    check_has_targets(last)
    refuse_both(calibration, calib, "`calibration` and `calib`")
    check_numbers(seed=seed, threads=threads)
    words = data_settings(data)
    source = loaded(model)
    settings = RunSettings(
        calibration if calib is None else calib,
        seed=seed,
        threads=threads,
        progress=Progress.of(progress),
        data=words,
        declared=declared_settings(source),
    )
    settings.admit(source)
    context = settings.context()
    if first:
        source, _ = PassManager(first).run(source, context, policy=Policy(force=True))
    source = source.clone()
    infer_shapes(source)
    yield from sweep(source, last, context)


def exits(
    model: ModelSource | Model,
    *,
    calibration: SampleSource | None = None,
    data: DataSettings | DataWords | None = None,
    output: str | None = None,
    head: Literal["linear", "mlp"] = "linear",
    seed: int = 0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    measure: bool = True,
    progress: Progress | Callable[[Progress], None] | None = None,
    calib: SampleSource | None = None,
) -> tuple[list[ExitRow], list[str]]:
    """Where a classifier can be left early; with samples, how good a head is at each place.

    Args:
        model: a path, the bytes of a file, a ModelProto, or a loaded `Model`; never changed.
        calibration: samples that heads are fitted to and judged by.
        data: how they are read.
        output: name of the output that holds the class scores; None: it is found.
        head: `linear` or `mlp`.
        seed: seed of all randomness.
        threads: threads of onnxruntime; None for its own choice.
        input_shapes: shape by input name, for inputs that are made up.
        measure: time the model up to each place.
        progress: is called when a step of the work begins, advances or ends; `str` of what it is
            given says in words what is being done.
        calib: the same as `calibration`, as the command calls it.

    Returns:
        The places in order, and notes.

    Raises:
        UsageError: the samples do not fit.
        ModelError: the model is invalid, corrupt, or no classifier that could be left.
        RuntimeFailure: onnxruntime failed.
    """
    from onnxslim.analysis.output_kinds import output_kinds
    from onnxslim.exits.candidates import ExitAnalysis, exit_rows, scores_named

    refuse_both(calibration, calib, "`calibration` and `calib`")
    check_numbers(seed=seed, threads=threads)
    words = data_settings(data)
    source = loaded(model)
    settings = RunSettings(
        calibration if calib is None else calib,
        seed=seed,
        threads=threads,
        input_shapes=input_shapes,
        verify=False,
        measure=measure,
        progress=Progress.of(progress),
        data=words,
        declared=declared_settings(source),
    )
    settings.admit(source)
    source = source.clone()
    infer_shapes(source)
    kinds = output_kinds(source)
    try:
        scores_named(source.graph, output, kinds)  # before anything runs
        prover = None
        if measure:
            prover = settings.prover()
            prover.begin(source)
        context = replace(settings.context(prover), output_kinds=kinds)
        survey = ExitAnalysis(source, context, output, hidden=head == "mlp")
        return exit_rows(survey)
    except NotApplicable as reason:
        raise ModelError(f"The model cannot be left early: {reason}") from reason
