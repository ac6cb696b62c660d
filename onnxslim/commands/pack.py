"""`onnxslim pack MODEL [OUTPUT]`: write one small file for storage and transfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    one_output,
    output_option,
    overwrite_option,
    report_option,
    talk_options,
)
from onnxslim.commands.console import paper
from onnxslim.commands.files import check_report, write_report
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import STREAM, file_of, output_of, target_of, teller
from onnxslim.render.formats import JSON

if TYPE_CHECKING:
    from onnxslim.render.json import Json
    from onnxslim.tools.pack import ClassFigures, PackReport

_CODERS = ("entropy", "huffman", "zstd")


@click.command("pack", short_help=COMMANDS["pack"])
@click.argument("model")
@click.argument("output", required=False)
@click.option(
    "--coder",
    type=click.Choice(_CODERS),
    default=_CODERS[0],
    help="How weights are coded; default: entropy, the smallest.",
)
@report_option(JSON, "Write the figures of all coders as JSON.")
@output_option
@overwrite_option
@talk_options
def command(
    model: str,
    output: str | None,
    named_output: str | None,
    coder: Literal["entropy", "huffman", "zstd"],
    report: str | None,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Pack MODEL, with its external data, into OUTPUT: MODEL with the ending `.onnxz` by default.

    `onnxslim unpack` gives the same model back, and all other commands read packed files as they
    are. The table shows the bytes of each class of tensors, by every coder. `-` is standard input
    and output.
    """
    output = output_of(model, one_output(output, named_output), ".onnxz")
    if report is not None:
        check_report(Path(report), Path(model), Path(output), JSON, overwrite=overwrite)
    from onnxslim import api

    with file_of(model) as source, target_of(output) as target:
        with progress(quiet=quiet, verbose=verbose) as shown:
            done = api.pack(
                source,
                target,
                coder=coder,
                measure=not quiet or report is not None,
                overwrite=overwrite,
                progress=shown,
            )
        if report is not None:
            write_report(Path(report), _json(done, model, output), JSON)
        if not quiet:
            tell = teller(output)
            tell(_text(done))
            if output != STREAM:
                tell(f"wrote {target}")


# --------------------------------------------------------------------------- text


def _text(report: PackReport) -> str:
    from onnxslim.render.tables import FigureTable, wrapped

    grid = FigureTable(
        (
            "class", "tensors", "float32", "in .onnx", "Huffman", "entropy coder", "zstd",
            "order-0 entropy", "packed",
        ),
        droppable=("order-0 entropy", "zstd", "Huffman", "entropy coder", "float32", "tensors"),
    )  # fmt: skip
    for item in report.classes:
        grid.add(*_cells(item))
    grid.add(*_cells(report.total), style="bold")
    return f"{grid.render(paper())}\n\n{wrapped(_verdict(report), paper())}"


def _cells(item: ClassFigures) -> list[str]:
    sizes = (
        item.float32_bytes, item.file_bytes, item.huffman, item.entropy, item.zstd, item.bound,
        item.packed,
    )  # fmt: skip
    tensors = f"{item.tensors:,}" if item.tensors else ""
    return [item.name, tensors, *("" if size is None else f"{size:,}" for size in sizes)]


def _verdict(report: PackReport) -> str:
    from onnxslim.render.units import bytes_text

    dense = report.total.float32_bytes
    parts = [
        f"{bytes_text(report.input_bytes)} -> {report.packed_bytes:,} bytes "
        f"({report.input_bytes / report.packed_bytes:.2f}x smaller)",
        f"{dense / report.packed_bytes:.2f}x smaller than with dense float32 weights",
    ]
    if report.whole_zstd is not None:
        size, level = report.whole_zstd
        parts.append(f"`zstd -{level}` of the .onnx: {size:,} bytes")
    return ", ".join(parts)


# --------------------------------------------------------------------------- JSON


def _json(report: PackReport, source: str, target: str) -> Json:
    import onnxslim

    whole = report.whole_zstd
    return {
        "onnxslim": onnxslim.__version__,
        "input": {"path": source, "sha256": report.sha256, "bytes": report.input_bytes},
        "output": {"path": target, "bytes": report.packed_bytes},
        "coder": report.coder.value,
        "classes": [_class_json(item) for item in report.classes],
        "total": _class_json(report.total),
        "ratio": report.input_bytes / report.packed_bytes,
        "ratio_float32": report.total.float32_bytes / report.packed_bytes,
        "zstd_of_file": None if whole is None else {"bytes": whole[0], "level": whole[1]},
    }


def _class_json(item: ClassFigures) -> dict[str, Json]:
    return {
        "class": item.name,
        "tensors": item.tensors,
        "float32_bytes": item.float32_bytes,
        "file_bytes": item.file_bytes,
        "huffman_bytes": item.huffman,
        "entropy_bytes": item.entropy,
        "zstd_bytes": item.zstd,
        "order0_entropy_bytes": item.bound,
        "packed_bytes": item.packed,
    }
