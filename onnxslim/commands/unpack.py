"""`onnxslim unpack FILE [OUTPUT]`: write the model of a packed file."""

from __future__ import annotations

from pathlib import Path

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import one_output, output_option, overwrite_option, talk_options
from onnxslim.commands.console import say
from onnxslim.commands.files import check_output
from onnxslim.commands.progress import progress


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
    """
    source = Path(file)
    output = one_output(output, named_output)
    target = Path(output) if output else source.with_suffix(".onnx")
    from onnxslim.io.copying import unpack, unpacked_sha256

    # what was unpacked before carries no mark, but it is the same file
    check_output(target, source, overwrite=True)
    content = unpacked_sha256(source) if target.exists() else None
    if content is not None:
        check_output(target, source, overwrite=overwrite, content=content)

    with (
        progress(quiet=quiet, verbose=verbose) as shown,
        shown.step("unpacking"),
    ):
        unpack(source, target)
    if not quiet:
        say(f"wrote {target}")
