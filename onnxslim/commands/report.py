"""`onnxslim report RUN.json [RUN2.json ...] -o FILE`: the page of reports that were written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import overwrite_option
from onnxslim.commands.console import say
from onnxslim.commands.files import check_report, write_report
from onnxslim.commands.streams import file_of, refuse_stream
from onnxslim.pages.formats import PAGES

if TYPE_CHECKING:
    from onnxslim.render.json import Json


@click.command("report", short_help=COMMANDS["report"])
@click.argument("reports", metavar="RUN.json [RUN2.json...]", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    metavar=PAGES.metavar,
    required=True,
    callback=refuse_stream,
    help="Where to write the page; the ending chooses the form.",
)
@overwrite_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(reports: tuple[str, ...], output: str, overwrite: bool, quiet: bool) -> None:
    """Make a page of what `--report` of any command wrote; of several reports, side by side.

    RUN.json may also be a page, which holds the JSON that it was made from. The models are not
    needed. `-` is standard input.
    """
    from onnxslim.pages.report_page import side_by_side

    target = Path(output)
    check_report(target, Path(reports[0]), Path(reports[-1]), PAGES, overwrite=overwrite)
    data: Json = side_by_side([_read(report) for report in reports])
    write_report(target, data, PAGES)
    if not quiet:
        say(f"wrote {target}")


def _read(report: str) -> Json:
    from onnxslim.tools.explanation import read_json

    with file_of(report) as path:
        data: Json = read_json(path)
        return data
