from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest

from onnxslim.errors import UsageError
from onnxslim.pipeline.options import Assigned, Constraint, at_least, interval, one_of, option
from onnxslim.pipeline.passes import Pass
from onnxslim.records import Fidelity


@dataclass(frozen=True)
class PruneSample(Pass):
    name: ClassVar[str] = "prune-sample"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    bits: int = option(8, interval(1, 16), help="bits")
    energy: float = option(0.9, interval(0, 1, open_left=True), help="share kept")
    rank: int | None = option(None, at_least(1), help="rank")
    norm: str = option("l1", one_of("l1", "l2"), help="norm")
    exclude: tuple[str, ...] = option((), help="names")
    in_: bool = option(False, help="a Python keyword as a name")


def test_constructor_takes_fields_and_keeps_them() -> None:
    built = PruneSample(bits=4, energy=1, exclude=["a"])  # type: ignore[arg-type]
    assert (built.bits, built.energy, built.exclude) == (4, 1.0, ("a",))
    assert isinstance(built.energy, float)


def test_options_are_declared_in_order_and_spelt_in_kebab_case() -> None:
    assert [spec.name for spec in PruneSample.options()] == [
        "bits", "energy", "rank", "norm", "exclude", "in",
    ]  # fmt: skip


def test_one_word_is_a_list_of_one() -> None:
    assert PruneSample(exclude="a").exclude == ("a",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bits", 17, "Option `bits` of `prune-sample` must be an integer in [1, 16]; got 17."),
        ("bits", 8.0, "Option `bits` of `prune-sample` must be an integer; got 8.0."),
        ("bits", True, "Option `bits` of `prune-sample` must be an integer; got True."),
        ("bits", None, "Option `bits` of `prune-sample` must be an integer; got None."),
        ("energy", 0.0, "Option `energy` of `prune-sample` must be a number in (0, 1]; got 0.0."),
        ("energy", math.nan, "`energy` of `prune-sample` must be a number in (0, 1]; got nan."),
        ("energy", "x", "Option `energy` of `prune-sample` must be a number; got 'x'."),
        ("rank", 0, "Option `rank` of `prune-sample` must be an integer at least 1; got 0."),
        ("norm", "l3", "Option `norm` of `prune-sample` must be a word one of l1, l2; got 'l3'."),
        ("in_", 1, "Option `in` of `prune-sample` must be true or false; got 1."),
    ],
)  # fmt: skip
def test_bad_value_names_pass_option_range_and_value(
    field: str, value: object, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        PruneSample(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    "constraint",
    [
        at_least(1),
        interval(0, 1),
        interval(0, 1, open_left=True),
        interval(0, 1, open_right=True),
        interval(-2.5, math.inf, open_left=True),
        one_of("a", "b"),
        one_of("a"),
        Assigned(interval(0, 1, open_right=True)),
        Assigned(interval(2, 256), whole=True),
        Assigned(at_least(1)),
    ],
)
def test_constraint_refuses_the_values_that_it_generates(constraint: Constraint) -> None:
    refused = list(constraint.invalid())
    assert refused
    assert not any(map(constraint.accepts, refused))
    assert constraint.describe()


def test_option_without_help_is_refused() -> None:
    with pytest.raises(TypeError, match="help"):
        option(3)


def test_type_that_no_text_can_spell_is_refused() -> None:
    @dataclass(frozen=True)
    class Bad(Pass):
        name: ClassVar[str] = "bad"
        where: dict[str, int] = option(None, help="a table")  # noqa: RUF009

    with pytest.raises(TypeError, match="no text can spell"):
        Bad.options()


def test_set_options_are_those_that_differ_from_their_defaults() -> None:
    changed = PruneSample(rank=3, in_=True)
    assert [(spec.name, value) for spec, value in changed.set_options()] == [
        ("rank", 3),
        ("in", True),
    ]


def test_auto_is_how_a_missing_number_is_spelled() -> None:
    assert PruneSample(rank="auto").rank is None  # type: ignore[arg-type]
    assert str(PruneSample(rank="auto")) == "prune-sample"  # type: ignore[arg-type]


def test_auto_is_a_word_like_others_where_words_are_asked_for() -> None:
    @dataclass(frozen=True)
    class Named(Pass):
        name: ClassVar[str] = "named"
        fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
        layer: str | None = option(None, help="a name")

    assert Named(layer="auto").layer == "auto"


@pytest.mark.parametrize("field", ["bits", "energy", "in_"])
def test_auto_is_refused_where_a_value_is_needed(field: str) -> None:
    with pytest.raises(UsageError, match="got 'auto'"):
        PruneSample(**{field: "auto"})  # type: ignore[arg-type]


# ------------------------------------------------------------------- PATTERN=NUMBER

SHARE = Assigned(interval(0, 1, open_right=True))
COUNT = Assigned(interval(2, 256), whole=True)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("conv1=0.5", ("conv1", 0.5)),
        ("/a/b:0=1e-3", ("/a/b:0", 0.001)),
        ("a=b=.25", ("a=b", 0.25)),  # a name may hold the sign
        ("*=0", ("*", 0.0)),
    ],
)
def test_a_number_for_a_pattern_is_what_follows_the_last_sign(
    text: str, split: tuple[str, float]
) -> None:
    assert SHARE.accepts(text)
    assert SHARE.split(text) == split


@pytest.mark.parametrize("text", ["", "a", "=0.5", "a=", "a=x", "a=1", "a=-0.1", "a=nan", "a=inf"])
def test_what_is_no_allowed_number_for_a_pattern_is_refused(text: str) -> None:
    assert not SHARE.accepts(text)


def test_whole_numbers_are_asked_for_where_only_they_make_sense() -> None:
    assert COUNT.accepts("a=16")
    assert COUNT.split("a=16") == ("a", 16)
    assert not COUNT.accepts("a=16.0")
    assert not COUNT.accepts("a=257")
    assert COUNT.describe() == "of the form PATTERN=NUMBER with an integer in [2, 256]"
    assert SHARE.describe() == "of the form PATTERN=NUMBER with a number in [0, 1)"


def test_the_first_pattern_that_matches_decides() -> None:
    entries = ("conv1=0.1", "conv*=0.2", "*[0-9]=0.3")
    names = ("conv1", "conv2", "fc3", "Conv1", "fc")
    assert [SHARE.find(entries, (name,), -1.0) for name in names] == [0.1, 0.2, 0.3, 0.3, -1.0]
    assert SHARE.find((), ("conv1",), 0.7) == 0.7
