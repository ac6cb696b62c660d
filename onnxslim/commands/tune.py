"""`onnxslim tune MODEL [OUTPUT]`: find the pipeline that floors and targets ask for."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    BoundedNumber,
    cache_option,
    calib_option,
    data_options,
    eval_option,
    floor_options,
    output_kind_option,
    overwrite_option,
    provider_option,
    report_option,
    run_options,
    talk_options,
    train_option,
)
from onnxslim.commands.console import complain, paper, say, warn
from onnxslim.commands.failures import failure_of
from onnxslim.commands.files import check_report, write_report
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import output_of, refuse_stream
from onnxslim.errors import FloorMissed, UsageError
from onnxslim.pages.formats import REPORTS
from onnxslim.pipeline.options import at_least
from onnxslim.pipeline.recipe import Recipe
from onnxslim.report import report_of

if TYPE_CHECKING:
    from onnxslim.details import FrontPoint, Tuning
    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.records import OutputKind
    from onnxslim.report import Report

_TIMES: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(context: click.Context, option: click.Parameter, text: str) -> float:
    """The seconds that `90s`, `30m` or `2h` spell."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"must be a time such as 90s, 30m or 2h; got {text!r}.")
    return float(found[1]) * _TIMES[found[2]]


@dataclass(frozen=True)
class _Workers:
    """More processes for one search."""

    jobs: int
    study: str | None

    def start(self, model: Path) -> list[Any]:
        """Start the processes, which take part in the search of this command."""
        from onnxslim.tuning.workers import room_for, start

        room = room_for(model.stat().st_size)
        if self.jobs > room:
            warn(f"memory allows {room} of {self.jobs} processes; the others are not started.")
        if min(self.jobs, room) <= 1:
            return []
        arguments = [*sys.argv[1:], "--worker", "--quiet", "--jobs", "1"]
        return start(arguments, min(self.jobs, room) - 1)


@click.command("tune", short_help=COMMANDS["tune"])
@click.argument("model", callback=refuse_stream)
@click.argument("output", required=False, callback=refuse_stream)
@overwrite_option
@calib_option("Sample inputs without labels: four of five choose, the others confirm.")
@eval_option
@train_option
@data_options
@floor_options
@output_kind_option
@click.option(
    "--goal",
    type=click.Choice(["latency", "bytes", "energy"]),
    help="What becomes as small as the floors allow; default: latency, or what a target is for.",
)
@click.option("--target-latency", metavar="5ms|0.5x", help="Latency that suffices.")
@click.option("--target-size", metavar="1MB|0.25x", help="Bytes of the file that suffice.")
@click.option(
    "--for",
    "seconds",
    metavar="30m",
    default="30m",
    callback=_seconds,
    help="Time after which no further trial begins; default: 30m.",
)
@click.option(
    "--trials",
    type=BoundedNumber(at_least(1), whole=True),
    default=60,
    help="Largest number of trials; default: 60.",
)
@click.option(
    "--jobs",
    type=BoundedNumber(at_least(1), whole=True),
    default=1,
    help="Processes that share the search; more than one needs --study and --no-clock.",
)
@click.option(
    "--study",
    metavar="FILE|URL",
    callback=refuse_stream,
    help="Journal of the search, which goes on where it ended, and which processes can share.",
)
@click.option("--allow", metavar="PASS", multiple=True, help="Combine this pass only; repeatable.")
@click.option("--deny", metavar="PASS", multiple=True, help="Leave this pass out; repeatable.")
@click.option(
    "--front",
    metavar="DIR",
    callback=refuse_stream,
    help="Write every model that nothing beats in bytes, latency and closeness at once.",
)
@click.option(
    "--clock/--no-clock",
    default=True,
    help="Whether this process times models; one process a machine may.",
)
@click.option("--worker", is_flag=True, help="Only take part in the search of --study.")
@cache_option
@report_option(REPORTS, "Write every figure that was measured to a file, or as a page.")
@run_options
@provider_option
@talk_options
def command(
    model: str,
    output: str | None,
    overwrite: bool,
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
    goal: Any,
    target_latency: str | None,
    target_size: str | None,
    seconds: float,
    trials: int,
    jobs: int,
    study: str | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    front: str | None,
    clock: bool,
    worker: bool,
    cache: str | None,
    report: str | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    provider: str | None,
    seed: int | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Find the pipeline that makes MODEL as small or fast as the floors allow, and write OUTPUT.

    Each pass is tried alone, then a table of what each layer costs in each variant is measured,
    then pipelines are proposed and run whole. A fifth of the samples chooses nothing and confirms
    the answer. The exit code is 4 where a target is out of reach. OUTPUT is MODEL with the ending
    `.slim.onnx` by default.
    """
    _check_shared(jobs, study, is_worker=worker, clock=clock)
    floors = Recipe(
        max_drop=max_drop,
        min_agreement=min_agreement,
        min_sqnr=min_sqnr,
        min_cosine=min_cosine,
        min_row_cosine=min_row_cosine,
        max_kl=max_kl,
        max_row_kl=max_row_kl,
        floor=floor,
    ).floors
    source, target = Path(model), Path(output_of(model, output, ".slim.onnx"))
    _check_files(source, target, report, overwrite=overwrite)
    from onnxslim import api

    started = _Workers(jobs, study).start(source)
    failure, found = None, None
    try:
        with progress(quiet=quiet, verbose=verbose) as shown:
            _, found = api.tune(
                source,
                target,
                calibration=calib,
                evaluation=evaluation,
                train=train,
                data=data,
                floors=floors,
                goal=goal,
                target_latency=target_latency,
                target_size=target_size,
                seconds=seconds,
                trials=trials,
                study=study,
                allow=allow,
                deny=deny,
                front=front,
                clock=clock,
                is_worker=worker,
                threads=threads,
                provider=provider,
                seed=seed or 0,
                input_shapes=input_shapes,
                output_kinds=output_kinds,
                overwrite=overwrite,
                cache=cache,
                details=report is not None,
                command=shlex.join(["onnxslim", *sys.argv[1:]]),
                progress=shown,
            )
    except FloorMissed as error:
        found = report_of(error)
        if found is None:
            raise
        failure = found.error = failure_of(error)
    finally:
        for process in started:
            process.wait()
    assert found is not None
    if worker:
        return 0
    if report is not None:
        write_report(Path(report), found, REPORTS)
    if not quiet:
        _show(found, target)
    if failure is None:
        return 0
    complain(failure.message)
    return failure.exit_code


def _check_shared(jobs: int, study: str | None, *, is_worker: bool, clock: bool) -> None:
    if (jobs > 1 or is_worker) and study is None:
        raise UsageError("Several processes share a search by its journal: give --study FILE.")
    if jobs > 1 and clock:
        raise UsageError(
            "Models that are timed at the same moment slow each other down: give --no-clock with "
            "--jobs, and a goal of bytes or energy."
        )


def _check_files(source: Path, target: Path, report: str | None, *, overwrite: bool) -> None:
    if not source.exists():
        raise UsageError(f"There is no file `{source}`.")
    if report is not None:
        check_report(Path(report), source, target, REPORTS, overwrite=overwrite)


def _show(report: Report, target: Path) -> None:
    from onnxslim.render.text import report_to_text

    if report.tuning is not None:
        say(_front_text(report.tuning))
    say(report_to_text(report, paper()))
    if report.record is not None:
        say(f"again, without a search: --passes {shlex.quote(report.record.resolved)}")
    say(f"wrote {target}")


def _front_text(tuning: Tuning) -> str:
    from onnxslim.render.tables import FigureTable

    heads = ("", "bytes", "ms", "times as fast", "closeness", "accuracy", "pipeline")
    grid = FigureTable(heads, droppable=("ms", "closeness", "accuracy"))
    for point in tuning.front:
        grid.add(*_cells(point))
    title = f"{tuning.trials} trials in {tuning.seconds:.0f} s; {tuning.goal}; {tuning.floors}"
    return f"{title}\n{grid.without_empty_columns().render(paper())}\n"


def _cells(point: FrontPoint) -> tuple[str, ...]:
    from onnxslim.render.units import bytes_text

    close = "" if point.closeness is None else f"{point.closeness:.4g} {point.closeness_unit}"
    return (
        "->" if point.chosen else "",
        bytes_text(point.file_bytes),
        "" if point.latency_ms is None else f"{point.latency_ms:.3g}",
        "" if point.speedup is None else f"{point.speedup:.2f}",
        close,
        "" if point.accuracy is None else f"{100 * point.accuracy:.2f} %",
        point.tried,
    )
