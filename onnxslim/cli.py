"""The command `onnxslim`: find the subcommand, and turn errors into sentences and exit codes.

`onnxslim MODEL ...` is short for `onnxslim compress MODEL ...`. The module of a subcommand is
imported when the subcommand runs, and only then are numpy and onnx imported.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

import onnxslim
from onnxslim.commands import COMMANDS
from onnxslim.commands.console import complain, say
from onnxslim.commands.failures import INTERRUPTED, TERMINATED, failure_of, received
from onnxslim.errors import UsageError
from onnxslim.limits import STARTING_BYTES
from onnxslim.pipeline.other_words import pipeline_for

COMPLETION_VARIABLE = "_ONNXSLIM_COMPLETE"  # by which the script of a shell asks


class _Commands(click.Group):
    """Subcommands by name, imported on demand; any other first argument means `compress`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"onnxslim.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and args[0] not in COMMANDS and args[0] not in own:
            args = ["compress", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="",
    subcommand_metavar="MODEL [OUTPUT] [OPTIONS] | COMMAND ...",
    no_args_is_help=True,
)
@click.version_option(onnxslim.__version__, prog_name="onnxslim", message="%(prog)s %(version)s")
def cli() -> None:
    """Make trained ONNX models smaller and faster, and prove every step by running it.

    `onnxslim MODEL` simplifies MODEL and writes MODEL.slim.onnx beside it; it is short for
    `onnxslim compress MODEL`. `onnxslim demo` shows what it does on a bundled model.
    """


def main() -> None:
    """Run the command line of this process, and exit."""
    asked = os.environ.get(COMPLETION_VARIABLE)
    if asked:
        from onnxslim.commands.completion import answer

        sys.exit(answer(cli, asked))
    arguments = sys.argv[1:]
    _log_to_stderr(logging.INFO if _is_verbose(arguments) else logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):  # so that temporary files are removed
        signal.signal(number, _stop)
    code = run(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # all is done: what comes now is too late
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code and never raises."""
    verbose = _is_verbose(arguments)
    try:
        bytes(STARTING_BYTES)  # a MemoryError, or let go at once, untouched
        result = cli.main(arguments, prog_name="onnxslim", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return UsageError.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" See `{context.command_path} --help`." if context else ""
        complain(_with_meant_pass(error) + hint)
        return UsageError.exit_code
    except click.Abort:
        complain("interrupted.")
        return INTERRUPTED
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # bugs too: a sentence all the same
        failure = failure_of(error, verbose=verbose)
        if failure.message:
            complain(failure.message)
        return failure.exit_code
    return result if isinstance(result, int) else 0


def _with_meant_pass(error: click.ClickException) -> str:
    """The sentence of `error`; of an unknown option such as `--int8`, with the pass it is here."""
    pipeline = pipeline_for(error.option_name) if isinstance(error, click.NoSuchOption) else None
    if pipeline is None:
        return error.format_message()
    return f"{error.message} That is done by passes here: `--passes {pipeline}`."


def _is_verbose(arguments: list[str]) -> bool:
    # read before the command line is parsed, because parsing may fail already
    return "--verbose" in arguments or "-v" in arguments


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("onnxslim: %(message)s"))
    logger = logging.getLogger("onnxslim")
    logger.addHandler(handler)
    logger.setLevel(level)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(TERMINATED)
