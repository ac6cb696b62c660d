"""`onnxslim unpack FILE [OUTPUT]`: write the model of a packed file."""

from __future__ import annotations

from pathlib import Path

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import talk_options
from onnxslim.commands.console import progress, say
from onnxslim.commands.files import check_output


@click.command("unpack", short_help=COMMANDS["unpack"])
@click.argument("file")
@click.argument("output", required=False)
@talk_options
def command(file: str, output: str | None, quiet: bool, verbose: bool) -> None:
    """Write the model in the packed FILE to OUTPUT: FILE with the ending `.onnx` by default.

    OUTPUT is the file that was packed, to the byte. A model with external data gets them again.
    """
    source = Path(file)
    target = Path(output) if output else source.with_suffix(".onnx")
    check_output(target, source)
    from onnxslim.io.copying import unpack

    with progress(quiet=quiet, verbose=verbose) as tell:
        if tell:
            tell("unpacking")
        unpack(source, target)
    if not quiet:
        say(f"wrote {target}")
