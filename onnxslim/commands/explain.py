"""`onnxslim explain REPORT [LAYER]`: why something was or was not done, from a report alone."""

from __future__ import annotations

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.console import paper, say
from onnxslim.commands.streams import file_of
from onnxslim.errors import UsageError


@click.command("explain", short_help=COMMANDS["explain"])
@click.argument("report", metavar="REPORT.json")
@click.argument("layer", required=False)
def command(report: str, layer: str | None) -> None:
    """Say what each step of a run did, and what it did not do and why.

    REPORT.json is what `--report` wrote, `-` is standard input; the models are not needed. LAYER is
    the name of a node, a weight or an output; `*` and `?` match. Then only what was said of it is
    shown.
    """
    from onnxslim.render.printable import printable
    from onnxslim.render.tables import wrapped
    from onnxslim.tools.explanation import explain_layer, explain_run, read_reports

    with file_of(report) as path:
        reports = read_reports(path)
    texts, refused = [], None
    for item in reports:
        try:
            texts.append(explain_run(item) if layer is None else explain_layer(item, layer))
        except UsageError as error:  # another of the models may have the layer
            refused = error
    if refused is not None and not texts:
        raise refused
    lines = "\n\n".join(texts).split("\n")
    say("\n".join(wrapped(printable(line), paper()) for line in lines))
