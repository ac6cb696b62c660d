"""`onnxslim compress MODEL [OUTPUT]`, which `onnxslim MODEL [OUTPUT]` is short for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    BoundedNumber,
    calib_option,
    explain_option,
    passes_option,
    report_option,
    run_options,
    talk_options,
)
from onnxslim.commands.console import complain, paper, progress, say, warn
from onnxslim.commands.files import check_output, check_report, write_report
from onnxslim.errors import FloorMissed, UsageError
from onnxslim.pipeline.floors import check_measured
from onnxslim.pipeline.output_words import parse_kinds
from onnxslim.pipeline.recipe import (
    GOALS,
    MAX_DROP,
    MIN_AGREEMENT,
    MIN_COSINE,
    MIN_SQNR,
    Recipe,
    load_recipe,
)
from onnxslim.pipeline.suggest import closest
from onnxslim.render.formats import REPORTS

if TYPE_CHECKING:
    from onnxslim.records import OutputKind
    from onnxslim.report import Report


def _output_kinds(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, OutputKind] | None:
    return parse_kinds(texts) or None


@click.command("compress", short_help=COMMANDS["compress"])
@click.argument("model")
@click.argument("output", required=False)
@passes_option
@calib_option("Sample inputs without labels, for passes that use data and for comparing outputs.")
@click.option(
    "--eval",
    "evaluation",
    metavar="FILE.npz|module:function",
    help="Sample inputs with labels, or a metric: measures accuracy before and after.",
)
@click.option(
    "--max-drop", type=BoundedNumber(MAX_DROP), help="Points of accuracy that may be lost."
)
@click.option(
    "--min-agreement",
    type=BoundedNumber(MIN_AGREEMENT),
    help="Share of top-1 answers that must stay those of MODEL.",
)
@click.option("--min-sqnr", type=BoundedNumber(MIN_SQNR), help="Least SQNR in dB of every output.")
@click.option(
    "--min-cosine",
    type=BoundedNumber(MIN_COSINE),
    help="Least mean cosine of the rows of an embedding with those of MODEL.",
)
@click.option(
    "--min-row-cosine",
    type=BoundedNumber(MIN_COSINE),
    help="Least cosine of every row of an embedding.",
)
@click.option(
    "--no-floor", "floor", is_flag=True, flag_value=False, default=None,
    help="Keep lossy passes whatever they cost: no default floor.",
)  # fmt: skip
@click.option(
    "--output-kind",
    "output_kinds",
    metavar="NAME=classes|embedding|values",
    multiple=True,
    callback=_output_kinds,
    help="What an output holds, where the graph was read wrong; repeatable.",
)
@click.option(
    "--goal",
    type=click.Choice(GOALS),
    help="Which of bytes and latency may not get worse; default: both.",
)
@report_option(REPORTS, "Write every figure that was measured to a file.")
@run_options
@click.option(
    "--recipe", metavar="FILE.toml", help="Take settings that are not given here from a file."
)
@click.option("--force", is_flag=True, default=None, help="Keep passes that do not pay as well.")
@click.option(
    "--no-verify", "verify", is_flag=True, flag_value=False, default=None,
    help="Do not compare outputs; the result is unproven.",
)  # fmt: skip
@click.option(
    "--no-latency", "latency", is_flag=True, flag_value=False, default=None,
    help="Do not measure latency.",
)  # fmt: skip
@explain_option
@talk_options
def command(
    model: str,
    output: str | None,
    passes: str | None,
    calib: str | None,
    evaluation: str | None,
    max_drop: float | None,
    min_agreement: float | None,
    min_sqnr: float | None,
    min_cosine: float | None,
    min_row_cosine: float | None,
    floor: bool | None,
    output_kinds: Mapping[str, OutputKind] | None,
    goal: str | None,
    report: str | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    seed: int | None,
    recipe: str | None,
    force: bool | None,
    verify: bool | None,
    latency: bool | None,
    explain: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run a pipeline of passes on MODEL, prove every step by running it, write OUTPUT.

    By default OUTPUT is MODEL with the ending `.slim.onnx`. A pass that does not pay for itself is
    left out, and the report gives the numbers.
    """
    from onnxslim.pipeline.grammar import parse_pipeline

    settings = Recipe(
        passes=None if passes is None else parse_pipeline(passes),
        calib=calib,
        eval=evaluation,
        goal=goal,
        force=force,
        verify=verify,
        latency=latency,
        threads=threads,
        seed=seed,
        max_drop=max_drop,
        min_agreement=min_agreement,
        min_sqnr=min_sqnr,
        min_cosine=min_cosine,
        min_row_cosine=min_row_cosine,
        floor=floor,
        output_kinds=output_kinds,
        input_shapes=input_shapes,
    )
    if recipe is not None:
        settings = settings.over(load_recipe(Path(recipe)))
    target = Path(output) if output else _default_output(model)
    return compress(
        Path(model),
        target,
        settings,
        report_path=Path(report) if report else None,
        explain=explain,
        quiet=quiet,
        verbose=verbose,
    )


def compress(
    model: Path,
    output: Path,
    settings: Recipe,
    *,
    report_path: Path | None = None,
    explain: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Run a pipeline, write the output and the report, print the table; returns the exit code.

    Raises:
        OnnxslimError: nothing was written, so there is nothing to report.
    """
    from onnxslim.render.text import report_to_text, unjudged_text

    _check_request(model, output, settings, report_path)
    failure: FloorMissed | None = None
    try:
        with progress(quiet=quiet, verbose=verbose) as tell:
            report = _compress(model, output, settings, tell)
    except FloorMissed as error:  # the output was written all the same
        if error.report is None:
            raise
        report, failure = error.report, error
    if report_path is not None:
        write_report(report_path, report, REPORTS)
    if not quiet:
        say(report_to_text(report, paper(), explain=explain))
        say(f"wrote {output}" if report.after.path else "nothing was written")
    if failure is not None:
        complain(str(failure))
    if report.unjudged:
        warn(unjudged_text(report))
    return 0 if failure is None else failure.exit_code


def _default_output(model: str) -> Path:
    path = Path(model)
    return path.with_name(f"{path.stem}.slim.onnx") if path.name else path


def _compress(
    model: Path, output: Path, settings: Recipe, tell: Callable[[str], None] | None
) -> Report:
    from onnxslim import api

    _, report = api.compress(
        model,
        output,
        passes=settings.passes or "simplify",
        calibration=settings.calib,
        evaluation=settings.eval,
        floors=settings.floors,
        goal=settings.goal or "both",
        force=bool(settings.force),
        verify=settings.verify is not False,
        measure=settings.latency is not False,
        threads=settings.threads,
        seed=settings.seed or 0,
        input_shapes=settings.input_shapes,
        output_kinds=settings.output_kinds,
        command=shlex.join(["onnxslim", *sys.argv[1:]]),
        progress=tell,
    )
    return report


# ----------------------------------------------------------- checks before a long run


def _check_request(model: Path, output: Path, settings: Recipe, report: Path | None) -> None:
    """Refuse a request that cannot succeed before the run, not after it."""
    if not model.exists():
        raise UsageError(f"There is no file `{model}`.{_meant_command(model)}")
    check_output(output, model)
    if report is not None:
        check_report(report, model, output)
    check_measured(
        settings.floors,
        has_evaluation=settings.eval is not None,
        verify=settings.verify is not False,
    )


def _meant_command(model: Path) -> str:
    name = closest(str(model), COMMANDS)
    return f" Did you mean the command `onnxslim {name}`?" if name else ""
