"""`onnxslim unpack FILE [OUTPUT]`: write the model of a packed file."""

from __future__ import annotations

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import one_output, output_option, overwrite_option, talk_options
from onnxslim.commands.console import say
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import STREAM, file_of, output_of, target_of


@click.command("unpack", short_help=COMMANDS["unpack"])
@click.argument("file")
@click.argument("output", required=False)
@output_option
@overwrite_option
@talk_options
def command(
    file: str,
    output: str | None,
    named_output: str | None,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the model in the packed FILE to OUTPUT: FILE with the ending `.onnx` by default.

    OUTPUT is the file that was packed, to the byte. A model with external data gets them again.
    `-` is standard input and output.
    """
    output = output_of(file, one_output(output, named_output), ".onnx")
    from onnxslim import api

    with (
        progress(quiet=quiet, verbose=verbose) as shown,
        shown.step("unpacking"),
        file_of(file) as source,
        target_of(output) as target,
    ):
        api.unpack(source, target, overwrite=overwrite)
    if not quiet and output != STREAM:
        say(f"wrote {output}")
