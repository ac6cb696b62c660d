from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import UsageError
from onnxslim.pipeline import registry
from onnxslim.pipeline.grammar import Pipeline, build_pass, parse_pipeline
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.spelling import spell
from onnxslim.records import Fidelity


@dataclass(frozen=True)
class PruneSample(Pass):
    """Has an option of every type."""

    name: ClassVar[str] = "prune-sample"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    ratio: float = option(0.5, help="a number")
    share: float = option(0.5, interval(0, 1), help="a number within limits")
    rank: int | None = option(None, at_least(1), help="an optional integer")
    depth: int | None = option(3, help="an optional integer with a default")
    fast: bool = option(False, help="a flag")
    word: str = option("l2", help="a word")
    label: str | None = option("x", help="an optional word")
    method: str = option("l1", one_of("l1", "none", "true"), help="a choice")
    exclude: tuple[str, ...] = option(("a",), help="names")
    sizes: tuple[int, ...] = option((), help="integers")
    scales: tuple[float, ...] | None = option(None, help="optional numbers")
    flags: tuple[bool, ...] = option((), help="flags")


@dataclass(frozen=True)
class FuseSample(Pass):
    """Has no option."""

    name: ClassVar[str] = "fuse-sample"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT


@pytest.fixture(autouse=True, scope="module")
def sample_passes() -> Iterator[None]:
    classes: dict[str, type[Pass]] = {"prune-sample": PruneSample, "fuse-sample": FuseSample}
    with pytest.MonkeyPatch.context() as patch:
        entries = {
            name: (registry._Entry(name, f"{__name__}:{owner.__name__}", "the tests"),)
            for name, owner in classes.items()
        }
        patch.setattr(registry, "_entries", lambda: entries)
        patch.setattr(registry, "_load", lambda entry: classes[entry.name])
        yield


floats = st.floats(allow_nan=False) | st.sampled_from(
    [1e-3, 0.5, 1e300, -1e300, 5e-324, -0.0, 3.0, math.inf, -math.inf]
)
texts = st.text(max_size=12) | st.sampled_from(
    [
        "", "3", "-3", "1e5", "1e+5", ".5", "true", "false", "none", "None", "inf", "+", "-",
        "conv1/BiasAdd:0", "a,b", "it's", "''", "'", "ä/ö:ü", "名前:0", "a b", "a\nb", "x=1",
    ]
)  # fmt: skip
sample = st.builds(
    PruneSample,
    ratio=floats,
    share=st.floats(0, 1),
    rank=st.none() | st.integers(min_value=1),
    depth=st.none() | st.integers(),
    fast=st.booleans(),
    word=texts,
    label=st.none() | texts,
    method=st.sampled_from(["l1", "none", "true"]),
    exclude=st.lists(texts, max_size=3).map(tuple),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    scales=st.none() | st.lists(floats, max_size=3).map(tuple),
    flags=st.lists(st.booleans(), max_size=3).map(tuple),
)


@pytest.mark.slow
@given(st.lists(sample | st.just(FuseSample()), min_size=1, max_size=3))
def test_text_of_a_pipeline_parses_back_to_an_equal_pipeline(passes: list[Pass]) -> None:
    pipeline = Pipeline(tuple(passes))
    assert parse_pipeline(str(pipeline)) == pipeline


@given(st.text(alphabet="prune-sample fuse:,+='\n1e.-_ratioexclude", max_size=40) | st.text())
def test_any_text_is_a_pipeline_or_a_usage_error(text: str) -> None:
    try:
        pipeline = parse_pipeline(text)
    except UsageError:
        return
    assert parse_pipeline(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prune-sample", PruneSample()),
        ("prune-sample:ratio=1e-3", PruneSample(ratio=1e-3)),
        ("prune-sample:ratio=.5", PruneSample(ratio=0.5)),
        ("prune-sample:ratio=-2", PruneSample(ratio=-2.0)),
        ("prune-sample:ratio=1e+5", PruneSample(ratio=1e5)),
        ("prune-sample:ratio=5.", PruneSample(ratio=5.0)),
        ("prune-sample:ratio=inf", PruneSample(ratio=math.inf)),
        ("prune-sample:depth=none", PruneSample(depth=None)),
        ("prune-sample:label=none", PruneSample(label=None)),
        ("prune-sample:label='none'", PruneSample(label="none")),
        ("prune-sample:word=none", PruneSample(word="none")),
        ("prune-sample:word=3", PruneSample(word="3")),
        ("prune-sample:word=007", PruneSample(word="007")),
        ("prune-sample:word=true", PruneSample(word="true")),
        ("prune-sample:word='it''s'", PruneSample(word="it's")),
        ("prune-sample:word=''", PruneSample(word="")),
        ("prune-sample:method=none", PruneSample(method="none")),
        ("prune-sample:fast=true", PruneSample(fast=True)),
        ("prune-sample:exclude=b", PruneSample(exclude=("b",))),
        ("prune-sample:exclude=+", PruneSample(exclude=())),
        ("prune-sample:exclude=none", PruneSample(exclude=("none",))),
        (
            "prune-sample:exclude=block/conv1.weight+'a:0'+7",
            PruneSample(exclude=("block/conv1.weight", "a:0", "7")),
        ),
        ("prune-sample:sizes=3+4", PruneSample(sizes=(3, 4))),
        ("prune-sample:scales=1+2.5", PruneSample(scales=(1.0, 2.5))),
        (" prune-sample : sizes = 3 + 4 : fast = true ", PruneSample(sizes=(3, 4), fast=True)),
    ],
)
def test_text_means(text: str, expected: Pass) -> None:
    assert parse_pipeline(text) == Pipeline((expected,))


def test_items_stand_in_order_and_line_breaks_are_space() -> None:
    pipeline = parse_pipeline("fuse-sample,\n  prune-sample:rank=8 ,fuse-sample")
    assert pipeline.passes == (FuseSample(), PruneSample(rank=8), FuseSample())
    assert str(pipeline) == "fuse-sample,prune-sample:rank=8,fuse-sample"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "The pipeline is empty"),
        ("  ", "The pipeline is empty"),
        ("fuse-sampel", "There is no pass `fuse-sampel`. Did you mean `fuse-sample`?"),
        ("Fuse_Sample", "Did you mean `fuse-sample`?"),
        ("zzz", "There is no pass `zzz`. `onnxslim passes` lists all."),
        ("fuse-sample,", "Expected a pass name here."),
        (",fuse-sample", "Expected a pass name here."),
        ("fuse-sample,,fuse-sample", "Expected a pass name here."),
        ("fuse-sample fuse-sample", "Expected `,` before the next pass or `:`"),
        ("fuse-sample=3", "Expected `,` before the next pass or `:`"),
        ("fuse-sample:", "Expected the name of an option of `fuse-sample` here."),
        ("fuse-sample:fast=true", "`fuse-sample` has no option `fast`; it takes none."),
        ("prune-sample:ration=1", "no option `ration`. Did you mean `ratio`? It takes `ratio`"),
        ("prune-sample:fast", "Option `fast` of `prune-sample` has no value; write `fast=true`"),
        ("prune-sample:ratio=", "Option `ratio` of `prune-sample` has no value"),
        ("prune-sample:ratio=,fuse-sample", "Option `ratio` of `prune-sample` has no value"),
        ("prune-sample:sizes=3+", "Option `sizes` of `prune-sample` has no value"),
        ("prune-sample:rank=1:rank=2", "Option `rank` of `prune-sample` is given twice."),
        ("prune-sample:rank=0", "must be an integer at least 1; got 0"),
        ("prune-sample:rank=1.5", "must be an integer; got 1.5"),
        ("prune-sample:rank='3'", "must be an integer; got '3'"),
        ("prune-sample:share=1.5", "must be a number in [0, 1]; got 1.5"),
        ("prune-sample:share=nan", "must be a number; got 'nan'"),
        ("prune-sample:ratio=none", "must be a number; got None"),
        ("prune-sample:ratio=1e999", "`1e999` is too large for a number."),
        (f"prune-sample:depth={'9' * 5000}", "A number of 5,000 digits is too large."),
        ("prune-sample:fast=1", "must be true or false; got 1"),
        ("prune-sample:fast=yes", "must be true or false; got 'yes'"),
        ("prune-sample:method=l3", "one of l1, none, true; got 'l3'"),
        ("prune-sample:ratio=1+2", "must be a number; got (1, 2)"),
        ("prune-sample:word='abc", "This quote is never closed."),
        ("prune-sample:word='a'b", "Expected `,`, `:` or `+` after a value"),
        ("prune-sample:word=a b", "Expected `,`, `:` or `+` after a value"),
    ],
)
def test_bad_text_gets_its_own_message(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text)
    assert part in str(caught.value)


def caret_lines(text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text)
    return str(caught.value).split("\n")[1:]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("fuse-sample,fuze-sample", "fuze-sample"),
        ("prune-sample:ration=1,fuse-sample", "ration"),
        ("prune-sample:rank=8:share=1.5", "1.5"),
        ("prune-sample:exclude='名前:0':share=-1", "-1"),
        ("prune-sample:word='abc", "'abc"),
        ("prune-sample:sizes=1+x+3", "1+x+3"),
    ],
)
def test_carets_stand_under_the_place(text: str, place: str) -> None:
    shown, carets = caret_lines(text)
    assert shown == f"    {text}"
    wide = sum(ord(sign) > 0x2E80 for sign in text)
    assert carets.index("^") == 4 + text.index(place) + wide
    assert carets.count("^") == len(place)


def test_only_the_line_with_the_fault_is_shown() -> None:
    assert caret_lines("fuse-sample,\n  nope,\nfuse-sample") == ["      nope,", "      ^^^^"]


def test_a_long_line_is_shown_around_the_fault() -> None:
    shown, carets = caret_lines("fuse-sample," * 40 + "nope" + ",fuse-sample" * 40)
    assert len(shown) < 130
    assert shown.startswith("    ... ")
    assert shown.endswith(" ...")
    assert shown[carets.index("^") :].startswith("nope,")


def test_spelling_quotes_what_could_be_read_otherwise() -> None:
    options = {"a": "3", "b": "true", "c": "x:0", "d": ("y", "it's"), "e": 1e300, "f": None}
    assert spell("p", options) == "p:a='3':b='true':c='x:0':d=y+'it''s':e=1e300:f=none"


def test_default_options_are_not_spelt() -> None:
    assert str(PruneSample(ratio=0.25, word="l2")) == "prune-sample:ratio=0.25"


def test_pass_is_built_from_plain_values() -> None:
    assert build_pass("prune-sample", {"sizes": (1, 2), "rank": 4}) == PruneSample(
        sizes=(1, 2), rank=4
    )
    with pytest.raises(UsageError, match=r"no option `rnk`\. Did you mean `rank`"):
        build_pass("prune-sample", {"rnk": 4})


def test_empty_pipeline_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        Pipeline(())
