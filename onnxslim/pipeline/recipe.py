"""Recipes: the pipeline and the settings of a run in a TOML file, for `--recipe FILE.toml`.

    passes = "simplify,prune-channels:ratio=0.3"    # as on the command line, or [[passes]] below
    calib = "samples.npz"               # relative paths start at the recipe's folder
    eval = "labelled.npz"               # or module:function, as on the command line
    train = "more.npz"                  # for passes that train, in place of calib
    target = "openvino"                 # the engine that the file is for
    goal = "both"                       # both, latency or bytes
    force = false                       # keep steps that do not pay
    verify = true                       # compare outputs after every step
    latency = true                      # measure latency
    strict = false                      # exit code 4 where a step does nothing
    floor = true                        # hold the default floors where `floors` sets none
    threads = 2
    seed = 0

    [floors]
    max-drop = 0.5                      # points of accuracy
    min-agreement = 0.99                # share of top-1 answers
    min-sqnr = 30                       # dB
    min-cosine = 0.99                   # mean over the rows of an embedding or of hidden states
    min-row-cosine = 0.9                # of every row
    max-kl = 0.1                        # nats, mean over the rows of token logits
    max-row-kl = 3                      # of every row

    [data]                              # how calib and eval are read, as the options of the command
    image-size = 224
    preset = "imagenet"
    map = { image = "pixels", label = "class" }
    tokenizer = "tokenizer.json"

    [output-kinds]
    logits = "classes"                  # what it holds: not as the graph says

    [input-shapes]
    data = [1, 3, 224, 224]

Every key is optional. Instead of text, `passes` can be one table for each pass, in order:

    [[passes]]
    name = "simplify"

    [[passes]]
    name = "prune-channels"
    ratio = 0.3

The command line overrides the recipe. An unknown key is an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.pipeline.floors import DEFAULT, Floors
from onnxslim.pipeline.grammar import Pipeline, build_pass, parse_pipeline
from onnxslim.pipeline.options import Interval, at_least, interval
from onnxslim.pipeline.output_words import parse_kinds
from onnxslim.pipeline.policy import Goal, GoalWord
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.pipeline.targets import target_of
from onnxslim.records import OutputKind

MAX_DROP = interval(0, 100)
MIN_AGREEMENT = interval(0, 1)
MIN_SQNR = at_least(0)
MIN_COSINE = interval(-1, 1)
MAX_KL = at_least(0)
THREADS = at_least(1)
SEED = interval(0, 2**32 - 1)
GOALS = tuple(goal.value for goal in Goal)

SOURCES = {
    "calib": "calib",
    "calibration": "calib",
    "eval": "eval",
    "evaluation": "eval",
    "train": "train",
}
_TABLES = (*SOURCES, "data", "floors", "input-shapes", "output-kinds")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
FLOORS = {
    "max-drop": MAX_DROP,
    "min-agreement": MIN_AGREEMENT,
    "min-sqnr": MIN_SQNR,
    "min-cosine": MIN_COSINE,
    "min-row-cosine": MIN_COSINE,
    "max-kl": MAX_KL,
    "max-row-kl": MAX_KL,
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; None: not set.

    Attributes:
        calib, eval, train: a path, or `module:function`.
        data: how both are read.
        target: the engine that the file is for.
        provider: the execution provider on which models are verified and timed.
        max_drop: points of accuracy that may be lost.
        min_agreement: share in [0, 1] of top-1 answers that must stay the same.
        min_sqnr: least SQNR in dB.
        min_cosine, min_row_cosine: least cosine of the rows of an embedding or of hidden states,
            mean and single.
        max_kl, max_row_kl: largest Kullback-Leibler divergence of the rows of token logits in nats,
            mean and single.
        floor: False for no default floors.
        output_kinds: what an output holds, by name.
        input_shapes: shape by input name.
    """

    passes: Pipeline | None = None
    calib: str | None = None
    eval: str | None = None
    train: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    target: str | None = None
    goal: GoalWord | None = None
    force: bool | None = None
    verify: bool | None = None
    latency: bool | None = None
    strict: bool | None = None
    threads: int | None = None
    provider: str | None = None
    seed: int | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None
    min_cosine: float | None = None
    min_row_cosine: float | None = None
    max_kl: float | None = None
    max_row_kl: float | None = None
    floor: bool | None = None
    output_kinds: Mapping[str, OutputKind] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None

    @property
    def floors(self) -> Floors:
        """The floors that are set; without any, the default ones, or none where `floor` is False.

        Raises:
            UsageError: floors are set, and `floor` says that there are none.
        """
        own = Floors(
            self.max_drop,
            self.min_agreement,
            self.min_sqnr,
            self.min_cosine,
            self.min_row_cosine,
            self.max_kl,
            self.max_row_kl,
        )
        if own.limits_anything and self.floor is False:
            raise UsageError("--no-floor and a floor exclude each other; leave one of them out.")
        return own if own.limits_anything or self.floor is False else DEFAULT

    def over(self, other: Recipe) -> Recipe:
        """These settings, completed by those of `other` where a setting is None.

        Settings of data, input shapes and kinds of outputs are merged by name.
        """
        own = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) is not None
        }
        if self.input_shapes is not None and other.input_shapes is not None:
            own["input_shapes"] = {**other.input_shapes, **self.input_shapes}
        if self.output_kinds is not None and other.output_kinds is not None:
            own["output_kinds"] = {**other.output_kinds, **self.output_kinds}
        own["data"] = self.data.over(other.data)
        return replace(other, **own)


def load_recipe(path: Path) -> Recipe:
    """The recipe in the file `path`.

    Raises:
        UsageError: the file cannot be read, is not TOML, or holds an unknown key or a bad value.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe `{path}` cannot be read: {_reason(error)}.") from error
    try:
        return parse_recipe(text, path.parent)
    except UsageError as error:
        raise UsageError(f"Recipe `{path}`: {error}") from None


def parse_recipe(text: str, folder: Path = Path()) -> Recipe:
    """The recipe that the TOML `text` holds; relative paths in it start at `folder`.

    Raises:
        UsageError: the text is not TOML, or holds an unknown key or a bad value.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"This is not valid TOML: {error}.") from error
    _refuse_unknown(table, [*_READERS, *_TABLES], "A recipe")
    settings: dict[str, object] = {
        key: read(key, table[key]) for key, read in _READERS.items() if key in table
    }
    for key, name in SOURCES.items():
        if key in table and name in settings:
            raise UsageError(f"`{name}` and `{key}` mean the same; leave one of them out.")
        if key in table:
            settings[name] = _source(key, table[key], folder)
    if "data" in table:
        settings["data"] = _data(_table("data", table["data"]), folder)
    settings.update(read_floors(_table("floors", table.get("floors", {}))))
    if "input-shapes" in table:
        shapes = _table("input-shapes", table["input-shapes"])
        settings["input_shapes"] = {name: _shape(name, value) for name, value in shapes.items()}
    if "output-kinds" in table:
        kinds = _table("output-kinds", table["output-kinds"])
        settings["output_kinds"] = parse_kinds(f"{name}={kind}" for name, kind in kinds.items())
    return replace(Recipe(), **settings)  # type: ignore[arg-type]


def read_floors(table: Mapping[str, object]) -> dict[str, float]:
    """Floors by name of the field of a `Recipe`, from names as recipes and the command spell them.

    Raises:
        UsageError: a name is unknown, or a value is out of range.
    """
    _refuse_unknown(table, FLOORS, "`floors`")
    return {
        key.replace("-", "_"): float(_number(key, value, FLOORS[key]))
        for key, value in table.items()
    }


def _refuse_unknown(table: Mapping[str, object], known: Iterable[str], owner: str) -> None:
    names = list(known)
    for key in table:
        if key not in names:
            listed = ", ".join(f"`{name}`" for name in names)
            raise UsageError(
                f"{owner} has no key `{key}`.{did_you_mean(key, names)} It takes {listed}."
            )


def _pipeline(key: str, value: object) -> Pipeline:
    if isinstance(value, str):
        return parse_pipeline(value)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        built = []
        for item in value:
            options = dict(item)
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise UsageError('Every table of `passes` needs a name, such as name = "simplify".')
            built.append(build_pass(name, options))
        return Pipeline(tuple(built))
    raise UsageError(f"`{key}` must be text or an array of tables; got {value!r}.")


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"`{key}` must be true or false; got {value!r}.")
    return value


def _goal(key: str, value: object) -> str:
    if not isinstance(value, str) or value not in GOALS:
        raise UsageError(f"`{key}` must be one of {', '.join(GOALS)}; got {value!r}.")
    return value


def _provider(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"`{key}` must be the name of an execution provider; got {value!r}.")
    return value


def _target(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"`{key}` must be the name of an engine; got {value!r}.")
    return target_of(value).name


def _whole(limits: Interval) -> Callable[[str, object], int]:
    def read(key: str, value: object) -> int:
        if not isinstance(value, int):
            raise UsageError(f"`{key}` must be an integer {limits.describe()}; got {value!r}.")
        return int(_number(key, value, limits))

    return read


def _number(key: str, value: object, limits: Interval) -> int | float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not limits.accepts(value):  # type: ignore[arg-type]
        raise UsageError(f"`{key}` must be a number {limits.describe()}; got {value!r}.")
    return value  # type: ignore[return-value]


def _source(key: str, value: object, folder: Path) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"`{key}` must be a path or module:function; got {value!r}.")
    return value if _FUNCTION.fullmatch(value) else str(folder / value)


def _data(table: Mapping[str, object], folder: Path) -> DataSettings:
    settings = DataSettings.of(table)
    if settings.tokenizer is None:
        return settings
    return replace(settings, tokenizer=str(folder / settings.tokenizer))


def _table(key: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UsageError(f"`{key}` must be a table, [{key}]; got {value!r}.")
    return value


def _shape(name: str, value: object) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise UsageError(
            f"The shape of input `{name}` must be a list of positive integers; got {value!r}."
        )
    return tuple(sizes)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return "it is not UTF-8 text"


_READERS: Mapping[str, Callable[[str, object], object]] = {
    "passes": _pipeline,
    "target": _target,
    "provider": _provider,
    "goal": _goal,
    "force": _flag,
    "verify": _flag,
    "latency": _flag,
    "strict": _flag,
    "floor": _flag,
    "threads": _whole(THREADS),
    "seed": _whole(SEED),
}
