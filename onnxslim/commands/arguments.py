"""Options that several subcommands share, each declared once, and their parameter types.

Owns: spelling, type and help of an option. Not here: files that cannot be written (see `files`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from onnxslim.commands.streams import refuse_stream
from onnxslim.errors import UsageError
from onnxslim.pipeline.options import Interval
from onnxslim.pipeline.output_words import NAMED_KINDS, parse_kinds

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from onnxslim.records import OutputKind
    from onnxslim.render.formats import Formats

CACHE_VARIABLE: Final = "ONNXSLIM_STEP_CACHE"
"""The variable of the environment that names the folder of the cache for all commands."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class BoundedNumber(click.ParamType[float]):
    """A number within limits; NaN is refused."""

    name = "number"

    def __init__(self, limits: Interval, *, whole: bool = False) -> None:
        self.limits = limits
        self.whole = whole

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | int:
        """The number that `value` spells; fails outside the limits."""
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            number = math.nan
        if not self.limits.accepts(number):
            kind = "an integer" if self.whole else "a number"
            self.fail(f"must be {kind} {self.limits.describe()}; got {value!r}.", param, ctx)
        return number


def calib_option(
    help: str = "Sample inputs without labels, on which models are run.",
    *,
    required: bool = False,
) -> Callable[[_Command], _Command]:
    """`--calib`."""
    return click.option(
        "--calib",
        "--calibration",
        "calib",
        metavar="FILE|DIR|module:function",
        required=required,
        callback=refuse_stream,
        help=help,
    )


def eval_option(command: _Command) -> _Command:
    """`--eval`: argument `evaluation`."""
    return click.option(
        "--eval",
        "--evaluation",
        "evaluation",
        metavar="FILE|DIR|module:function",
        callback=refuse_stream,
        help="Sample inputs with labels, or a metric: measures accuracy before and after.",
    )(command)


def floor_options(command: _Command) -> _Command:
    """Floors, by the names of `recipe.Recipe`; `--no-floor`: argument `floor`, False when given."""
    from onnxslim.pipeline import recipe

    command = click.option(
        "--no-floor",
        "floor",
        is_flag=True,
        flag_value=False,
        default=None,
        help="Keep lossy passes whatever they cost: no default floor.",
    )(command)
    for name, limits, text in reversed(
        (
            ("--max-drop", recipe.MAX_DROP, "Points of accuracy that may be lost."),
            (
                "--min-agreement",
                recipe.MIN_AGREEMENT,
                "Share of top-1 answers that must stay those of MODEL.",
            ),
            ("--min-sqnr", recipe.MIN_SQNR, "Least SQNR in dB of every output."),
            (
                "--min-cosine",
                recipe.MIN_COSINE,
                "Least mean cosine of the rows of embeddings and hidden states with those of "
                "MODEL.",
            ),
            ("--min-row-cosine", recipe.MIN_COSINE, "Least cosine of every such row."),
            (
                "--max-kl",
                recipe.MAX_KL,
                "Largest mean Kullback-Leibler divergence, in nats, of token logits from those of "
                "MODEL.",
            ),
            ("--max-row-kl", recipe.MAX_KL, "Largest such divergence at every position."),
        )
    ):
        command = click.option(name, type=BoundedNumber(limits), help=text)(command)
    return command


def no_latency_option(command: _Command) -> _Command:
    """`--no-latency`: argument `latency`, False when given."""
    return click.option(
        "--no-latency",
        "latency",
        is_flag=True,
        flag_value=False,
        default=None,
        help="Do not measure latency.",
    )(command)


def junit_option(command: _Command) -> _Command:
    """`--junit`."""
    return click.option(
        "--junit",
        metavar="FILE.xml",
        callback=refuse_stream,
        help="Write what held and what did not as JUnit XML, for CI.",
    )(command)


def data_options(command: _Command) -> _Command:
    """The options that say how data are read: argument `data`.

    Raises:
        UsageError: by the command, where a value is none for its option.
    """
    from onnxslim.pipeline.data_settings import SETTINGS, DataSettings, option_name

    @functools.wraps(command)
    def with_data(**values: Any) -> Any:
        words = {name: values.pop(name) for name in SETTINGS}
        return command(data=DataSettings.of(words), **values)

    wrapped: Any = with_data
    for name, setting in reversed(list(SETTINGS.items())):
        if name == "colors":  # two words of their own, as people know them
            for word in ("bgr", "rgb"):
                wrapped = click.option(
                    f"--{word}", name, flag_value=word, default=None, help=f"Channels are {word}."
                )(wrapped)
            continue
        wrapped = click.option(
            f"--{option_name(name)}", name, metavar=setting.metavar, help=setting.help
        )(wrapped)
    return cast("_Command", wrapped)


class PipelineText(click.ParamType[str]):
    """The text of a pipeline, which shells complete."""

    name = "pipeline"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names of passes, of their options, and words that options take."""
        from click.shell_completion import CompletionItem

        from onnxslim.pipeline.completing import continuations

        return [CompletionItem(text) for text in continuations(incomplete)]


def passes_option(command: _Command) -> _Command:
    """`--passes`."""
    return click.option(
        "--passes",
        "-p",
        type=PipelineText(),
        metavar="PIPELINE",
        help="Passes in order; default: simplify.",
    )(command)


def target_option(help: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    """`--target`."""
    from onnxslim.pipeline.targets import targets

    return click.option("--target", type=click.Choice([*targets()]), required=required, help=help)


def engine_option(command: _Command) -> _Command:
    """`--verify-with`."""
    return click.option(
        "--verify-with",
        "verify_with",
        type=click.Choice(["openvino", "tract", "web"]),
        help="Run OUTPUT in this engine too, where it is installed; say how near its outputs are.",
    )(command)


def report_option(
    formats: Formats[Any], help: str, *, takes_stream: bool = False
) -> Callable[[_Command], _Command]:
    """`--report`, for a file in one of `formats`; `-` may stand for standard output."""
    callback = None if takes_stream else refuse_stream
    metavar = f"{formats.metavar}|-" if takes_stream else formats.metavar
    return click.option("--report", metavar=metavar, callback=callback, help=help)


def trace_option(command: _Command) -> _Command:
    """`--trace`."""
    return click.option(
        "--trace",
        metavar="FILE",
        callback=refuse_stream,
        help="Write a Chrome trace of onnxruntime's kernels, a process for each model.",
    )(command)


def _output_kinds(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, OutputKind] | None:
    return parse_kinds(texts) or None


def output_kind_option(command: _Command) -> _Command:
    """`--output-kind`: argument `output_kinds`."""
    return click.option(
        "--output-kind",
        "output_kinds",
        metavar=f"NAME={'|'.join(NAMED_KINDS)}",
        multiple=True,
        callback=_output_kinds,
        help="What an output holds, where the graph was read wrong; repeatable.",
    )(command)


def train_option(command: _Command) -> _Command:
    """`--train`."""
    return click.option(
        "--train",
        "train",
        metavar="FILE|DIR|module:function",
        callback=refuse_stream,
        help="Sample inputs for passes that train, in place of those of --calib.",
    )(command)


def output_option(command: _Command) -> _Command:
    """`--output`: argument `named_output`, beside the positional `output`."""
    return click.option(
        "--output", "-o", "named_output", metavar="OUTPUT", help="The same as OUTPUT above."
    )(command)


def one_output(positional: str | None, named: str | None) -> str | None:
    """The output that is given in one of two ways.

    Raises:
        UsageError: it is given in both.
    """
    if positional is not None and named is not None:
        raise UsageError(
            f"The output is given twice, as `{positional}` and as --output `{named}`. Leave one "
            "out; to run several models, give --out-dir DIR."
        )
    return positional if named is None else named


def overwrite_option(command: _Command) -> _Command:
    """`--overwrite`."""
    return click.option(
        "--overwrite", is_flag=True, help="Replace existing files that onnxslim did not write, too."
    )(command)


def explain_option(command: _Command) -> _Command:
    """`--explain`."""
    return click.option(
        "--explain", is_flag=True, help="List what each pass changed and what it declined, and why."
    )(command)


def run_options(command: _Command) -> _Command:
    """`--input-shape`, `--threads` and `--seed`: arguments `input_shapes`, `threads`, `seed`.

    Each is None when it is not given.
    """
    from onnxslim.pipeline.recipe import SEED, THREADS

    command = click.option(
        "--seed",
        type=BoundedNumber(SEED, whole=True),
        help="Seed of all randomness; default: 0.",
    )(command)
    command = click.option(
        "--threads",
        type=BoundedNumber(THREADS, whole=True),
        help="Threads of onnxruntime; default: its own choice.",
    )(command)
    return click.option(
        "--input-shape",
        "input_shapes",
        metavar="NAME:1,3,224,224",
        multiple=True,
        callback=_input_shapes,
        help="Shape of an input where the model leaves it open; repeatable.",
    )(command)


def provider_option(command: _Command) -> _Command:
    """`--provider`; None when it is not given."""
    return click.option(
        "--provider",
        metavar="NAME",
        help="Execution provider of onnxruntime on which models are verified and timed, such as "
        "CUDA or OpenVINO; default: the processor.",
    )(command)


class ByteSize(click.ParamType[int]):
    """A size such as `2GB`, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes that `value` spells."""
        from onnxslim.render.units import bytes_of

        found = value if isinstance(value, int) else bytes_of(str(value))
        if found is None:
            self.fail(f"must be a size such as 500MB or 2GB; got {value!r}.", param, ctx)
        return found


def cache_option(command: _Command) -> _Command:
    """`--cache`: argument `cache`, which the environment may give."""
    return click.option(
        "--cache",
        metavar="DIR",
        envvar=CACHE_VARIABLE,
        show_envvar=True,
        callback=refuse_stream,
        help="Keep what steps come to in DIR, and do none of them a second time.",
    )(command)


def json_option(command: _Command) -> _Command:
    """`--json`: argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def talk_options(command: _Command) -> _Command:
    """`--quiet` and `--verbose`, which exclude each other."""
    command = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        callback=_refuse_both,
        help="Say what is going on; show tracebacks of errors.",
    )(command)
    return click.option(
        "-q", "--quiet", is_flag=True, callback=_refuse_both, help="Print nothing but errors."
    )(command)


def _refuse_both(context: click.Context, option: click.Parameter, value: bool) -> bool:
    """Refuse `--quiet` together with `--verbose`: the later of the two finds the earlier set."""
    if value and (context.params.get("quiet") or context.params.get("verbose")):
        raise UsageError("--quiet and --verbose exclude each other; give one of them.")
    return value


def _input_shapes(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[int, ...]] | None:
    return input_shapes(texts) or None


def input_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from texts such as `NAME:1,3,224,224`; a name may hold colons.

    Raises:
        UsageError: a text has another form, or a name is given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        numbers = [size.strip() for size in sizes.split(",")]
        if not name or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers):
            raise UsageError(
                f"--input-shape must be NAME:1,3,224,224, with sizes of at least 1; got {text!r}."
            )
        if name in shapes:
            raise UsageError(f"--input-shape gives the shape of `{name}` twice.")
        shapes[name] = tuple(map(int, numbers))
    return shapes
