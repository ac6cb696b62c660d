"""`onnxslim compress MODEL [OUTPUT]`, which `onnxslim MODEL [OUTPUT]` is short for.

Owns: the request checked, one model run, what is shown of it and which exit code it has. Not here:
models on standard input (see `streams`), the table of several models (see `several`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    cache_option,
    calib_option,
    data_options,
    engine_option,
    eval_option,
    explain_option,
    floor_options,
    junit_option,
    no_latency_option,
    one_output,
    output_kind_option,
    output_option,
    overwrite_option,
    passes_option,
    provider_option,
    report_option,
    run_options,
    talk_options,
    target_option,
    trace_option,
    train_option,
)
from onnxslim.commands.console import complain, paper, say, warn
from onnxslim.commands.failures import failure_of, worst
from onnxslim.commands.files import check_beside, check_report, check_trace, write_report
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import STREAM, output_of, refuse_stream, source_of, target_of, teller
from onnxslim.errors import FloorMissed, StepIdle, TargetMissed, UsageError
from onnxslim.pages.formats import REPORTS, REPORTS_OF_SEVERAL
from onnxslim.pipeline.floors import check_measured
from onnxslim.pipeline.other_words import command_for, pipeline_for
from onnxslim.pipeline.recipe import GOALS, Recipe, load_recipe
from onnxslim.pipeline.suggest import closest
from onnxslim.report import report_of

if TYPE_CHECKING:
    from onnxslim.commands.several import ModelOutcome
    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.pipeline.grammar import Pipeline
    from onnxslim.pipeline.policy import GoalWord
    from onnxslim.records import OutputKind
    from onnxslim.render.json import Json
    from onnxslim.render.junit import JunitSuite
    from onnxslim.report import Report
    from onnxslim.services.progress import Progress


@click.command("compress", short_help=COMMANDS["compress"])
@click.argument("models", metavar="MODEL [OUTPUT]", nargs=-1, required=True)
@output_option
@click.option(
    "--out-dir",
    metavar="DIR",
    callback=refuse_stream,
    help="Run all MODELs, and write each to DIR under its name.",
)
@overwrite_option
@passes_option
@target_option("The engine that the file is for: passes write what it takes; default: onnxruntime.")
@engine_option
@calib_option("Sample inputs without labels, for passes that use data and for comparing outputs.")
@eval_option
@train_option
@data_options
@floor_options
@output_kind_option
@click.option(
    "--goal",
    type=click.Choice(GOALS),
    help="Which of bytes and latency may not get worse; default: both.",
)
@report_option(
    REPORTS, "Write every figure that was measured to a file, or as a page.", takes_stream=True
)
@trace_option
@junit_option
@click.option(
    "--provenance",
    metavar="FILE.json",
    callback=refuse_stream,
    help="Write where OUTPUT comes from, as an in-toto statement with SLSA provenance.",
)
@click.option(
    "--model-card",
    metavar="FILE.md",
    callback=refuse_stream,
    help="Write a part of a model card: how OUTPUT was made, and how close it is.",
)
@run_options
@provider_option
@cache_option
@click.option(
    "--recipe",
    metavar="FILE.toml",
    callback=refuse_stream,
    help="Take settings that are not given here from a file.",
)
@click.option("--force", is_flag=True, default=None, help="Keep passes that do not pay as well.")
@click.option(
    "--no-verify", "verify", is_flag=True, flag_value=False, default=None,
    help="Do not compare outputs; the result is unproven.",
)  # fmt: skip
@no_latency_option
@click.option(
    "--strict",
    is_flag=True,
    default=None,
    help="Exit code 4 where a step that was asked for was left out or changed nothing.",
)
@explain_option
@talk_options
def command(
    models: tuple[str, ...],
    named_output: str | None,
    out_dir: str | None,
    overwrite: bool,
    passes: str | None,
    target: str | None,
    verify_with: str | None,
    calib: str | None,
    evaluation: str | None,
    train: str | None,
    data: DataSettings,
    max_drop: float | None,
    min_agreement: float | None,
    min_sqnr: float | None,
    min_cosine: float | None,
    min_row_cosine: float | None,
    max_kl: float | None,
    max_row_kl: float | None,
    floor: bool | None,
    output_kinds: Mapping[str, OutputKind] | None,
    goal: GoalWord | None,
    report: str | None,
    trace: str | None,
    junit: str | None,
    provenance: str | None,
    model_card: str | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    provider: str | None,
    seed: int | None,
    cache: str | None,
    recipe: str | None,
    force: bool | None,
    verify: bool | None,
    latency: bool | None,
    strict: bool | None,
    explain: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run a pipeline of passes on MODEL, prove every step by running it, write OUTPUT.

    By default OUTPUT is MODEL with the ending `.slim.onnx`; `-` is standard input and output. A
    pass that does not pay for itself is left out, and the report gives the numbers. With --out-dir,
    any number of models can be given; the exit code is then the worst of theirs.
    """
    from onnxslim.pipeline.grammar import parse_pipeline

    settings = Recipe(
        passes=None if passes is None else parse_pipeline(passes),
        calib=calib,
        eval=evaluation,
        train=train,
        data=data,
        target=target,
        goal=goal,
        force=force,
        verify=verify,
        latency=latency,
        strict=strict,
        threads=threads,
        provider=provider,
        seed=seed,
        max_drop=max_drop,
        min_agreement=min_agreement,
        min_sqnr=min_sqnr,
        min_cosine=min_cosine,
        min_row_cosine=min_row_cosine,
        max_kl=max_kl,
        max_row_kl=max_row_kl,
        floor=floor,
        output_kinds=output_kinds,
        input_shapes=input_shapes,
    )
    if recipe is not None:
        settings = settings.over(load_recipe(Path(recipe)))
    named = {"--junit": junit, "--provenance": provenance, "--model-card": model_card}
    beside = {option: Path(name) for option, name in named.items() if name is not None}
    wanted = Wanted(
        settings,
        Path(report) if report else None,
        Path(trace) if trace else None,
        overwrite,
        explain,
        quiet,
        verbose,
        details=report is not None,
        cache=cache,
        beside=beside,
        verify_with=verify_with,
    )
    if out_dir is not None:
        return _run_all(list(dict.fromkeys(map(Path, models))), Path(out_dir), named_output, wanted)
    return run_one(*_one_model(models, named_output), wanted)


def run_one(model: str, output: str, wanted: Wanted) -> int:
    """Run one model, which may be on standard input; returns the exit code.

    Raises:
        UsageError: output and report are both standard output.
    """
    if wanted.has_stream and output == STREAM:
        raise UsageError("OUTPUT and --report are both `-`: standard output takes one of them.")
    with target_of(output) as written:
        tell = teller(STREAM if wanted.has_stream else output)
        outcome = _run_one(source_of(model), written, wanted, tell=tell)
    return 0 if outcome.failure is None else outcome.failure.exit_code


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each model: the run, and what is shown of it.

    Attributes:
        report: file of the report; `-` is standard output.
        beside: other files of the run, by option (see `render.formats.BESIDE`).
        verify_with: another engine, in which the output is run too.
    """

    settings: Recipe
    report: Path | None
    trace: Path | None
    overwrite: bool
    explain: bool
    quiet: bool
    verbose: bool
    details: bool  # what a page shows of layers, samples and graphs takes time to measure
    cache: str | None = None
    beside: Mapping[str, Path] = field(default_factory=dict)
    verify_with: str | None = None

    @property
    def has_stream(self) -> bool:
        """Whether the report goes to standard output."""
        return self.report == Path(STREAM)

    @property
    def pipeline(self) -> Pipeline:
        """The passes, by default `simplify`."""
        from onnxslim.pipeline.grammar import parse_pipeline

        return self.settings.passes or parse_pipeline("simplify")


def _one_model(models: Sequence[str], named_output: str | None) -> tuple[str, str]:
    """The model and its output, where no --out-dir is given.

    Raises:
        UsageError: there are more models, or no place for the output can be derived.
    """
    if len(models) > 2:
        _check_exists(Path(models[0]))
        raise UsageError(
            f"{len(models)} files are given: a model and its output are two. To run several "
            "models, give --out-dir DIR."
        )
    output = one_output(models[1] if len(models) > 1 else None, named_output)
    return models[0], output_of(models[0], output, ".slim.onnx")


def _run_all(models: Sequence[Path], folder: Path, output: str | None, wanted: Wanted) -> int:
    """Run every model, whatever becomes of the others; returns the worst exit code."""
    from onnxslim.commands.several import ModelOutcome, summary, targets_in
    from onnxslim.io.files import make_folders

    _check_several(models, output, wanted)
    targets = targets_in(folder, models)
    _check_files_of_all(models[0], targets[0], wanted)
    outcomes: list[ModelOutcome] = []
    for model, target in zip(models, targets, strict=True):
        if not wanted.quiet:
            say(f"{model} -> {target}")
        make_folders(target.parent)
        try:
            outcome = _run_one(model, target, replace(wanted, report=None, beside={}))
        except Exception as error:
            failure = failure_of(error, verbose=wanted.verbose)
            complain(failure.message)
            outcome = ModelOutcome(model, target, report_of(error), failure)
        outcomes.append(outcome)
        _write_files_of_all(outcomes, wanted)
        if not wanted.quiet:
            say("")
    if not wanted.quiet:
        say(summary(outcomes))
    return worst([item.failure.exit_code for item in outcomes if item.failure])


def _check_several(models: Sequence[Path], output: str | None, wanted: Wanted) -> None:
    """Refuse what is for one model alone.

    Raises:
        UsageError: naming the option.
    """
    if output is not None:
        raise UsageError("--output names one file and --out-dir a folder; leave one of them out.")
    if wanted.trace is not None:
        raise UsageError("--trace is of one model; leave it out, or run the models one by one.")
    if STREAM in map(str, models):
        raise UsageError("Standard input has no name for --out-dir; give files.")
    for option in wanted.beside.keys() - {"--junit"}:
        raise UsageError(f"{option} is of one model; leave it out, or run models one by one.")
    if wanted.has_stream:
        raise UsageError("--report - is of one model; give a file for those of --out-dir.")


def _check_files_of_all(model: Path, target: Path, wanted: Wanted) -> None:
    """Refuse files that cannot be written, of runs whose first model and output are given.

    Raises:
        UsageError: naming the option.
    """
    check_beside(wanted.beside, model, target, overwrite=wanted.overwrite)
    if wanted.report is not None:
        check_report(wanted.report, model, target, REPORTS_OF_SEVERAL, overwrite=wanted.overwrite)


def _write_files_of_all(outcomes: Sequence[ModelOutcome], wanted: Wanted) -> None:
    if wanted.report is not None:
        write_report(wanted.report, [_reported(item) for item in outcomes], REPORTS_OF_SEVERAL)
    if "--junit" in wanted.beside:
        from onnxslim.render.beside import JUNIT

        write_report(wanted.beside["--junit"], list(map(_suite, outcomes)), JUNIT)


def _suite(outcome: ModelOutcome) -> JunitSuite:
    from onnxslim.render.junit import JunitCase, JunitSuite, suite_of

    if outcome.report is not None:
        outcome.report.error = outcome.failure
        return suite_of(outcome.report)
    failed = None if outcome.failure is None else outcome.failure.message
    return JunitSuite(f"onnxslim {outcome.source}", [JunitCase("run", failed=failed)])


def _run_one(
    model: Path | bytes, output: Path, wanted: Wanted, *, tell: Callable[[str], None] = say
) -> ModelOutcome:
    """Run a pipeline, write the output and the report, print the table.

    Args:
        model: a path, or the content of a file.
        output: where to write the result.
        wanted: the run, and what is shown of it.
        tell: shows what is not the model.

    Raises:
        OnnxslimError: nothing was written but the report.
    """
    from onnxslim.commands.several import ModelOutcome

    _check_request(model, output, wanted)
    outcome = ModelOutcome(model if isinstance(model, Path) else Path(STREAM), output)
    try:
        with progress(quiet=wanted.quiet, verbose=wanted.verbose) as shown:
            outcome.report = _compress(model, output, wanted, shown)
        if wanted.settings.strict:
            _check_steps(wanted.pipeline, outcome.report)
    except (FloorMissed, TargetMissed, StepIdle) as error:  # the output was written all the same
        outcome.report = outcome.report or report_of(error)
        if outcome.report is None:
            raise
        outcome.failure = outcome.report.error = failure_of(error)
    except BaseException as error:
        _report_failure(error, wanted)
        raise
    report = outcome.report
    if tell is not say and report.after.path is not None and not wanted.has_stream:
        report.after.path = STREAM
    _write_files(report, wanted)
    if not wanted.quiet:
        _show(report, output, explain=wanted.explain, tell=tell)
    if outcome.failure is not None:
        complain(outcome.failure.message)
    if report.unjudged:
        from onnxslim.render.text import unjudged_text

        warn(unjudged_text(report))
    return outcome


def _write_files(report: Report, wanted: Wanted) -> None:
    """Write what was asked for of a run that ended."""
    if wanted.has_stream:
        say(REPORTS.to_bytes(report, Path("report.json")).decode().rstrip())
    elif wanted.report is not None:
        write_report(wanted.report, report, REPORTS)
    if not wanted.beside:
        return
    from onnxslim.render.beside import BESIDE

    for option, path in wanted.beside.items():
        if option != "--provenance" or report.after.path is not None:
            write_report(path, report, BESIDE[option])


def _show(report: Report, output: Path, *, explain: bool, tell: Callable[[str], None]) -> None:
    from onnxslim.render.text import report_to_text

    tell(report_to_text(report, paper(), explain=explain))
    if report.after.path == STREAM:
        return
    tell(f"wrote {output}" if report.after.path else "nothing was written")


def _report_failure(error: BaseException, wanted: Wanted) -> None:
    """Write the report of a run that `error` ended, where a model had been opened."""
    report = report_of(error)
    if report is None:
        return
    report.error = failure_of(error)
    told = {option: path for option, path in wanted.beside.items() if option == "--junit"}
    try:
        _write_files(report, replace(wanted, beside=told))
    except UsageError as second:  # the first error is the one to end with
        complain(str(second))


def _check_steps(pipeline: Pipeline, report: Report) -> None:
    """Refuse a run in which a step that was asked for did nothing.

    Raises:
        StepIdle: naming the steps, each with the reason.
    """
    from onnxslim.pipeline.manager import idle_steps

    idle = idle_steps(pipeline.passes, report.steps)
    if idle:
        steps = "; ".join(f"{spec}: {why}" for spec, why in idle.items())
        raise StepIdle(f"--strict: steps that were asked for did nothing: {steps}.")


def _reported(outcome: ModelOutcome) -> Json:
    """The report of one of several models; of a model that was not opened, its path and error."""
    from dataclasses import asdict

    from onnxslim.render.json import report_to_json

    if outcome.report is not None:
        outcome.report.error = outcome.failure
        return report_to_json(outcome.report)
    error = None if outcome.failure is None else asdict(outcome.failure)
    return {"input": {"path": str(outcome.source), "sha256": None}, "error": error}


def _compress(model: Path | bytes, output: Path, wanted: Wanted, shown: Progress) -> Report:
    from onnxslim import api

    settings = wanted.settings

    _, report = api.compress(
        model,
        output,
        passes=settings.passes or "simplify",
        target=settings.target,
        verify_with=wanted.verify_with,
        calibration=settings.calib,
        evaluation=settings.eval,
        train=settings.train,
        data=settings.data,
        floors=settings.floors,
        goal=settings.goal or "both",
        force=bool(settings.force),
        verify=settings.verify is not False,
        measure=settings.latency is not False,
        threads=settings.threads,
        provider=settings.provider,
        seed=settings.seed or 0,
        input_shapes=settings.input_shapes,
        output_kinds=settings.output_kinds,
        overwrite=wanted.overwrite,
        command=shlex.join(["onnxslim", *sys.argv[1:]]),
        progress=shown,
        cache=wanted.cache,
        details=wanted.details,
        trace=wanted.trace,
    )
    return report


# ----------------------------------------------------------- checks before a long run


def _check_request(model: Path | bytes, output: Path, wanted: Wanted) -> None:
    """Refuse a request that cannot succeed before the run, not after it."""
    settings, source = wanted.settings, model if isinstance(model, Path) else None
    if source is not None:
        _check_exists(source)
    from onnxslim.io.marks import check_output

    check_output(output, source, overwrite=wanted.overwrite)
    given = source or output
    if wanted.report is not None and not wanted.has_stream:
        check_report(wanted.report, given, output, REPORTS, overwrite=wanted.overwrite)
    if wanted.trace is not None:
        check_trace(wanted.trace, given, output, overwrite=wanted.overwrite)
    check_beside(wanted.beside, given, output, overwrite=wanted.overwrite)
    check_measured(
        settings.floors,
        has_evaluation=settings.eval is not None,
        verify=settings.verify is not False,
    )


def _check_exists(model: Path) -> None:
    if not model.exists():
        raise UsageError(f"There is no file `{model}`.{_meant_command(model)}")


def _meant_command(model: Path) -> str:
    """What a name that is no file was meant for: a command or a pass, by any name."""
    from onnxslim.pipeline import registry

    word = str(model)
    command = command_for(word)
    pipeline = word if word in registry.names() else pipeline_for(word)
    if command is None and pipeline is not None:
        return f" That is done by passes here: `onnxslim MODEL --passes {pipeline}`."
    command = command or closest(word, COMMANDS)
    return f" Did you mean the command `onnxslim {command}`?" if command else ""
