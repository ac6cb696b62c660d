"""`onnxslim retarget MODEL [OUTPUT] --target T`: write a model as another engine takes it.

It is `onnxslim compress` with one pass, which is kept whatever it costs and without timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    calib_option,
    data_options,
    engine_option,
    explain_option,
    one_output,
    output_option,
    overwrite_option,
    provider_option,
    report_option,
    run_options,
    talk_options,
    target_option,
)
from onnxslim.commands.compress import Wanted, run_one
from onnxslim.commands.streams import output_of
from onnxslim.pages.formats import REPORTS

if TYPE_CHECKING:
    from onnxslim.pipeline.data_settings import DataSettings


@click.command("retarget", short_help=COMMANDS["retarget"])
@click.argument("model")
@click.argument("output", required=False)
@output_option
@overwrite_option
@target_option("The engine that the file is for.", required=True)
@engine_option
@calib_option("Sample inputs without labels, on which outputs are compared.")
@data_options
@report_option(REPORTS, "Write every figure that was measured to a file.", takes_stream=True)
@run_options
@provider_option
@click.option(
    "--no-verify", "verify", is_flag=True, flag_value=False, default=None,
    help="Do not compare outputs; the result is unproven.",
)  # fmt: skip
@explain_option
@talk_options
def command(
    model: str,
    output: str | None,
    named_output: str | None,
    overwrite: bool,
    target: str,
    verify_with: str | None,
    calib: str | None,
    data: DataSettings,
    report: str | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    provider: str | None,
    seed: int | None,
    verify: bool | None,
    explain: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Write MODEL in the forms that an engine takes, compare outputs, and say what that costs.

    By default OUTPUT is MODEL with the ending `.TARGET.onnx`; `-` is standard input and output.
    What the engine does not take and nothing replaces is named, with exit code 4; the file is
    written all the same. `onnxslim inspect MODEL` shows what stands in the way of every engine.
    """
    from onnxslim.pipeline.grammar import parse_pipeline
    from onnxslim.pipeline.recipe import Recipe

    settings = Recipe(
        passes=parse_pipeline(f"retarget:to={target}"),
        calib=calib,
        data=data,
        latency=False,
        verify=verify,
        threads=threads,
        provider=provider,
        seed=seed,
        input_shapes=input_shapes,
    )
    written = output_of(model, one_output(output, named_output), f".{target}.onnx")
    wanted = Wanted(
        settings,
        Path(report) if report else None,
        None,
        overwrite,
        explain,
        quiet,
        verbose,
        details=report is not None,
        verify_with=verify_with,
    )
    return run_one(model, written, wanted)
