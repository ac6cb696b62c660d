"""`onnxslim demo`: `compress` on a LeNet-5 that comes with onnxslim."""

from __future__ import annotations

import importlib.resources
from contextlib import ExitStack
from pathlib import Path

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import explain_option, passes_option, talk_options
from onnxslim.commands.compress import compress
from onnxslim.commands.console import say
from onnxslim.errors import UsageError
from onnxslim.io import files
from onnxslim.pipeline.recipe import Recipe

_MODEL = "lenet5.onnx"
_CALIB = "mnist_calib.npz"
_EVAL = "mnist_eval.npz"


@click.command("demo", short_help=COMMANDS["demo"])
@click.option(
    "--output", "-o", metavar="FILE.onnx", help="File to write; default: one in a temporary folder."
)
@passes_option
@explain_option
@talk_options
def command(
    output: str | None, passes: str | None, explain: bool, quiet: bool, verbose: bool
) -> int:
    """Compress the bundled LeNet-5, trained on MNIST, with bundled digits as data.

    The last line of the output names the result's file.
    """
    from onnxslim.pipeline.grammar import parse_pipeline

    pipeline = None if passes is None else parse_pipeline(passes)
    with ExitStack() as stack:
        model, calib, evaluation = (
            stack.enter_context(importlib.resources.as_file(_asset(name)))
            for name in (_MODEL, _CALIB, _EVAL)
        )
        target = Path(output) if output else _new_file()
        if not quiet:
            say(f"$ onnxslim {model.name} {target} --calib {calib.name} --eval {evaluation.name}\n")
        settings = Recipe(passes=pipeline, calib=str(calib), eval=str(evaluation))
        return compress(model, target, settings, explain=explain, quiet=quiet, verbose=verbose)


def _asset(name: str) -> importlib.resources.abc.Traversable:
    found = importlib.resources.files("onnxslim") / "assets" / name
    if not found.is_file():
        raise UsageError(
            f"This installation of onnxslim lacks its bundled file `{name}`. Install it again."
        )
    return found


def _new_file() -> Path:
    return files.lasting_folder("onnxslim-demo") / "lenet5.slim.onnx"
