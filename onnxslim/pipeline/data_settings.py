"""`DataSettings`: how what the user gives as data becomes the inputs of a model.

The same settings are options of the command (`--image-size 224`), keys of the table `[data]` of a
recipe (`image-size = 224`), and the argument `data` in Python (`data={"image_size": 224}`); each
spelling of a value is read here, once.

Owns: names, spellings and limits of the settings, and for which kind of data each of them is. Not
here: what is done with them (see `runtime.samples`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from fractions import Fraction
from typing import Final, Literal, NoReturn, TypedDict, get_args

from onnxslim.errors import UsageError
from onnxslim.pipeline.options import Interval, at_least
from onnxslim.pipeline.suggest import did_you_mean

Preset = Literal["imagenet", "zero-one", "minus-one-one", "none"]
Layout = Literal["nchw", "nhwc"]
Part = Literal["all", "most", "rest"]
Colors = Literal["rgb", "bgr"]

LABEL: Final = "label"
"""What `map` calls the labels."""


class DataKind(StrEnum):
    """What a source of samples is made of."""

    ARRAYS = "arrays"
    PICTURES = "pictures"
    TEXT = "text"
    SOUND = "sound"


class DataWords(TypedDict, total=False):
    """The settings as a mapping, each in any of its spellings; see `DataSettings`."""

    map: str | Mapping[str, str]
    fill: str | Mapping[str, float]
    scale: str | float
    preset: Preset
    mean: str | float | Sequence[float]
    std: str | float | Sequence[float]
    image_size: str | int | Sequence[int]
    layout: Layout
    colors: Colors
    tokenizer: str
    max_length: int
    sample_rate: int
    window: float
    samples: Part


@dataclass(frozen=True)
class DataSettings:
    """How data become inputs; None, or an empty mapping: not set.

    Attributes:
        map: name of an array by name of the input that it is for; `label` stands for the labels.
        fill: value of an input that the data do not give, by its name.
        scale: integers that are given for an input of floats are multiplied by it.
        preset: how pixels from 0 to 255 are scaled: `imagenet` (to [0, 1], then less the mean and
            over the standard deviation of ImageNet), `zero-one`, `minus-one-one`, or `none`.
        mean, std: of each channel, or of all: (pixel · scale - mean) / std, where `scale` is 1/255
            unless it is set.
        image_size: height and width in pixels.
        layout: order of the axes of pictures.
        colors: order of the channels of pictures.
        tokenizer: path of a `tokenizer.json`.
        max_length: tokens of a text at most.
        sample_rate: in Hz; sounds are resampled to it.
        window: length in seconds of the pieces that sounds are cut into.
        samples: which of the samples are used: `all`; `most`, four of five; or `rest`, those that
            `most` leaves out.
    """

    map: Mapping[str, str] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)
    scale: float | None = None
    preset: Preset | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    layout: Layout | None = None
    colors: Colors | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    sample_rate: int | None = None
    window: float | None = None
    samples: Part | None = None

    @classmethod
    def of(cls, words: Mapping[str, object]) -> DataSettings:
        """Settings by name, with `-` or `_`; each value as text or as a value of its type.

        Raises:
            UsageError: a name is unknown, or a value is none for it.
        """
        known = [option_name(name) for name in SETTINGS]
        read: dict[str, object] = {}
        for key, value in words.items():
            name = key.replace("-", "_")
            if name not in SETTINGS:
                listed = ", ".join(f"`{item}`" for item in known)
                raise UsageError(
                    f"`{key}` is no setting of data.{did_you_mean(key, known)} There are {listed}."
                )
            if value is not None:
                read[name] = SETTINGS[name].read(option_name(name), value)
        return cls(**read)  # type: ignore[arg-type]

    @property
    def given(self) -> dict[str, object]:
        """The settings that are set, by name of the field."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value != {}}

    def over(self, other: DataSettings) -> DataSettings:
        """These settings, completed by those of `other`; names of inputs are merged."""
        merged = {"map": {**other.map, **self.map}, "fill": {**other.fill, **self.fill}}
        return replace(other, **{**self.given, **merged})  # type: ignore[arg-type]

    def spelled(self) -> dict[str, str]:
        """The settings that are set, as text by name of the option of the command."""
        return {option_name(name): _spelled(value) for name, value in self.given.items()}

    def check_used(self, kinds: Mapping[str, DataKind]) -> None:
        """Refuse settings that say nothing of any source; `kinds` has the kind of each by name.

        Raises:
            UsageError: a setting is for another kind of data.
        """
        for name in self.given:
            wanted = SETTINGS[name].kinds
            if wanted.isdisjoint(kinds.values()):
                whose = " or ".join(sorted(kind.value for kind in wanted))
                have = ", ".join(f"`{source}` is {kind.value}" for source, kind in kinds.items())
                raise UsageError(
                    f"The setting `{option_name(name)}` is for {whose}; "
                    f"{have or 'no data are given'}. Leave it out, or give other data."
                )


@dataclass(frozen=True)
class Setting:
    """One setting: the kinds of data that it is for, its spelling on the command line, its help."""

    kinds: frozenset[DataKind]
    metavar: str
    help: str
    read: Callable[[str, object], object]


def option_name(name: str) -> str:
    """The name of a field as the command and recipes spell it."""
    return name.replace("_", "-")


# ------------------------------------------------------------------ spellings of values


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, Iterable):
        return [str(part) for part in value]
    return [str(value)]


def _number(name: str, value: object, limits: Interval) -> float:
    try:
        number = float(Fraction(value)) if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        number = float("nan")
    if not limits.accepts(number) or abs(number) == float("inf"):
        wanted = "" if limits == _ANY_NUMBER else f" {limits.describe()}"
        raise UsageError(f"`{name}` must be a number{wanted}; got {value!r}.")
    return number


def _read_number(limits: Interval) -> Callable[[str, object], float]:
    return lambda name, value: _number(name, value, limits)


def _read_whole(limits: Interval) -> Callable[[str, object], int]:
    def read(name: str, value: object) -> int:
        number = _number(name, value, limits)
        if number != int(number):
            raise UsageError(f"`{name}` must be an integer {limits.describe()}; got {value!r}.")
        return int(number)

    return read


def _read_channels(limits: Interval) -> Callable[[str, object], tuple[float, ...]]:
    return lambda name, value: tuple(_number(name, part, limits) for part in _texts(value))


def _read_word(words: Sequence[str]) -> Callable[[str, object], str]:
    def read(name: str, value: object) -> str:
        if value not in words:
            listed = ", ".join(words)
            hint = did_you_mean(str(value), words)
            raise UsageError(f"`{name}` must be one of {listed}; got {value!r}.{hint}")
        return str(value)

    return read


def _read_path(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"`{name}` must be the path of a file; got {value!r}.")
    return value


def _read_size(name: str, value: object) -> tuple[int, int]:
    parts = _texts(value.lower().replace("x", ",") if isinstance(value, str) else value)
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise UsageError(
            f"`{name}` must be one size, 224, or height and width, 224x320; got {value!r}."
        )
    return sizes[0], sizes[-1]


def _read_map(name: str, value: object) -> dict[str, str]:
    return _pairs(value) or _refuse(
        f"`{name}` must be INPUT=ARRAY for each input, separated by commas, and label=ARRAY for "
        f"labels; got {value!r}."
    )


def _read_fill(name: str, value: object) -> dict[str, float]:
    pairs = _pairs(value) or _refuse(
        f"`{name}` must be INPUT=NUMBER for each input that data do not give, separated by commas; "
        f"got {value!r}."
    )
    return {key: _number(f"{name}` of `{key}", item, _ANY_NUMBER) for key, item in pairs.items()}


def _pairs(value: object) -> dict[str, str]:
    """Texts by name, of a mapping or of `NAME=TEXT,...`; {} where `value` is neither."""
    if isinstance(value, Mapping):
        pairs = [(str(key), str(item)) for key, item in value.items()]
    else:
        parts = [text.partition("=") for text in _texts(value)]
        pairs = [(left, right) for left, _, right in parts]
    is_right = all(left and right for left, right in pairs) and len(dict(pairs)) == len(pairs)
    return dict(pairs) if is_right else {}


def _refuse(why: str) -> NoReturn:
    raise UsageError(why)


def _spelled(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_spelled(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ",".join(f"{part:.9g}" for part in value)
    return f"{value:.9g}" if isinstance(value, float) else f"{value}"


def _for(*kinds: DataKind) -> frozenset[DataKind]:
    return frozenset(kinds)


_ANY_NUMBER: Final = Interval(-float("inf"), float("inf"))
_POSITIVE: Final = Interval(0, float("inf"), open_left=True)

SETTINGS: Final[Mapping[str, Setting]] = {
    "map": Setting(
        _for(DataKind.ARRAYS, DataKind.TEXT),
        "INPUT=ARRAY,label=ARRAY",
        "Which array is for which input, and which holds the labels.",
        _read_map,
    ),
    "fill": Setting(
        frozenset(DataKind),
        "INPUT=0,INPUT=16000",
        "Values of inputs that the data do not give, such as a state or a rate.",
        _read_fill,
    ),
    "scale": Setting(
        _for(DataKind.ARRAYS, DataKind.PICTURES),
        "1/255",
        "Factor of integers that are given for an input of floats.",
        _read_number(_POSITIVE),
    ),
    "preset": Setting(
        _for(DataKind.PICTURES),
        "|".join(get_args(Preset)),
        "How pixels are scaled.",
        _read_word(get_args(Preset)),
    ),
    "mean": Setting(
        _for(DataKind.PICTURES),
        "0.485,0.456,0.406",
        "Mean of each channel, which is subtracted.",
        _read_channels(_ANY_NUMBER),
    ),
    "std": Setting(
        _for(DataKind.PICTURES),
        "0.229,0.224,0.225",
        "Standard deviation of each channel, which is divided by.",
        _read_channels(_POSITIVE),
    ),
    "image_size": Setting(
        _for(DataKind.PICTURES),
        "224|HxW",
        "Size of pictures, where the model leaves it open.",
        _read_size,
    ),
    "layout": Setting(
        _for(DataKind.PICTURES),
        "|".join(get_args(Layout)),
        "Order of the axes of pictures, where the model does not tell.",
        _read_word(get_args(Layout)),
    ),
    "colors": Setting(
        _for(DataKind.PICTURES),
        "|".join(get_args(Colors)),
        "Order of the channels of pictures; default: what the model's metadata say, else rgb.",
        _read_word(get_args(Colors)),
    ),
    "tokenizer": Setting(
        _for(DataKind.TEXT),
        "tokenizer.json",
        "Tokenizer of a file with one text a line.",
        _read_path,
    ),
    "max_length": Setting(
        _for(DataKind.TEXT),
        "N",
        "Tokens of a text at most; default: what model or tokenizer say.",
        _read_whole(at_least(1)),
    ),
    "sample_rate": Setting(
        _for(DataKind.SOUND),
        "HZ",
        "Sampling rate of sounds; default: that of the files.",
        _read_whole(at_least(1)),
    ),
    "window": Setting(
        _for(DataKind.SOUND),
        "SECONDS",
        "Length of the pieces that sounds are cut into; default: what the model takes.",
        _read_number(_POSITIVE),
    ),
    "samples": Setting(
        frozenset(DataKind),
        "|".join(get_args(Part)),
        "Which samples are used: `most`, four of five, or the `rest`; default: all.",
        _read_word(get_args(Part)),
    ),
}
"""Every setting by its name, in the order in which they are listed."""
