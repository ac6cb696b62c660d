"""The command `onnxslim`: find the subcommand, and turn errors into sentences and exit codes.

`onnxslim MODEL ...` is short for `onnxslim compress MODEL ...`. The module of a subcommand is
imported when the subcommand runs, and only then are numpy and onnx imported.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

import onnxslim
from onnxslim.commands import COMMANDS
from onnxslim.commands.console import complain, say
from onnxslim.errors import (
    OnnxslimError,
    PromiseBroken,
    RuntimeFailure,
    UsageError,
    is_out_of_memory,
)
from onnxslim.limits import STARTING_BYTES

INTERRUPTED = 130  # as shells count: 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
_received: list[int] = []  # signals


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
    arguments = sys.argv[1:]
    _log_to_stderr(logging.INFO if _is_verbose(arguments) else logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):  # so that temporary files are removed
        signal.signal(number, _stop)
    sys.exit(run(arguments))


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
        complain(error.format_message() + hint)
        return UsageError.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted.")
        return INTERRUPTED
    except OnnxslimError as error:
        if verbose and isinstance(error, PromiseBroken):  # a bug in a pass
            traceback.print_exception(error)
        complain(str(error))
        return error.exit_code
    except SystemExit as stop:  # SIGTERM, or click on a closed pipe
        if stop.code == TERMINATED:
            complain("terminated.")
        return stop.code if isinstance(stop.code, int) else 1
    except (MemoryError, OSError) as error:
        return _system_error(error)
    except Exception as error:  # a bug; the user gets a sentence all the same
        return _internal_error(error, verbose)
    return result if isinstance(result, int) else 0


def _system_error(error: MemoryError | OSError) -> int:
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        complain("there is not enough memory for this model on this machine.")
        return RuntimeFailure.exit_code
    place = f"`{error.filename}`" if error.filename else "a file"
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    complain(f"the system refused {place}: {reason}. Check its disk and the process's limits.")
    return UsageError.exit_code


def _internal_error(error: Exception, verbose: bool) -> int:
    if _received:  # a C extension that was being imported made another error of the signal's
        is_interrupt = _received[0] == signal.SIGINT
        complain("interrupted." if is_interrupt else "terminated.")
        return INTERRUPTED if is_interrupt else TERMINATED
    if is_out_of_memory(error):  # a library that could not be loaded
        return _system_error(MemoryError())
    if verbose:
        traceback.print_exception(error)
    advice = "" if verbose else " Run again with --verbose for the traceback."
    text = " ".join(str(error).split()) or "no message"
    complain(f"internal error, which is a bug in onnxslim: {type(error).__name__}: {text}.{advice}")
    return PromiseBroken.exit_code


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
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(TERMINATED)
