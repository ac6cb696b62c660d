"""Passes that train between their steps: what one of them runs, and what it refuses."""

from __future__ import annotations

import pytest

from onnxslim.errors import UsageError
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import check_calibration
from onnxslim.pipeline.registry import get, names
from onnxslim.pipeline.trained_pass import TrainedPass


def unrolled(text: str) -> list[str]:
    (step,) = parse_pipeline(text).passes
    return [str(stage) for stage in step.unrolled()]


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("prune-weights", ["prune-weights"]),
        ("prune-weights:steps=4", ["prune-weights:steps=4"]),
        ("prune-blocks:macs=0.7:finetune=3", ["prune-blocks:macs=0.7", "finetune"]),
        ("prune-blocks:macs=0.7:finetune=true", ["prune-blocks:macs=0.7", "finetune"]),
        ("prune-blocks:macs=0.7:finetune=false", ["prune-blocks:macs=0.7"]),
        (
            "prune-weights:ratio=0.8:ratio-of='fc=0.5':steps=2:finetune=6",
            [
                "prune-weights:ratio=0.7:ratio-of='fc=0.4375'",
                "finetune:epochs=2.0",
                "prune-weights:ratio=0.8:ratio-of='fc=0.5'",
                "finetune:epochs=4.0",
            ],
        ),
        (
            "prune-weights:pattern='2:4':steps=2:finetune=1.5",
            [
                "prune-weights:ratio=0.4375",
                "finetune:epochs=0.5",
                "prune-weights:pattern='2:4'",
                "finetune:epochs=1.0",
            ],
        ),
        (
            "prune-channels:ratio=0.8:steps=2:finetune=1.5:training='batch=8:augment=shift+flip'",
            [
                "prune-channels:ratio=0.7:align=1",
                "finetune:epochs=0.5:batch=8:augment=shift+flip",
                "prune-channels:ratio=0.33333333333333337",
                "finetune:epochs=1.0:batch=8:augment=shift+flip",
            ],
        ),
        (
            "prune-weights:ratio=0.5:steps=2:finetune=3:training='checkpoint=run'",
            [
                "prune-weights:ratio=0.4375",
                "finetune:epochs=1.0:checkpoint='run.1'",
                "prune-weights:ratio=0.5",
                "finetune:epochs=2.0:checkpoint='run.2'",
            ],
        ),
        (
            "quantize-power-of-two:finetune=2:training='batch=8:start=given'",
            ["quantize-power-of-two", "finetune:epochs=2.0:codes=grow:start=given:batch=8"],
        ),
        ("binarize-weights:finetune=2", ["binarize-weights", "finetune:epochs=2.0:codes=move"]),
        (
            "prune-channels:finetune=1:plan='conv=3'",
            ["prune-channels:plan='conv=3'", "finetune:epochs=1.0"],
        ),
        (
            "quantize-int8:finetune=2:training='epochs=1'",
            ["quantize-int8", "finetune:epochs=1.0"],
        ),
    ],
)
def test_a_pass_and_training_take_turns(text: str, stages: list[str]) -> None:
    for one, other in zip(unrolled(text), stages, strict=True):
        (mine,), (wanted,) = parse_pipeline(one).passes, parse_pipeline(other).passes
        assert type(mine) is type(wanted)
        for spec in mine.options():
            left, right = getattr(mine, spec.field), getattr(wanted, spec.field)
            assert left == (pytest.approx(right) if isinstance(right, float) else right)


@pytest.mark.parametrize("kind", ["macs", "bytes", "latency", "ratio"])
def test_steps_of_a_budget_lead_to_what_it_asks_for(kind: str) -> None:
    (step,) = parse_pipeline(f"prune-channels:{kind}=0.3:steps=3:finetune=1").passes
    left = 1.0
    for stage in step.unrolled()[::2]:
        value = {spec.name: getattr(stage, spec.field) for spec in stage.options()}[kind]
        left *= 1 - value if kind == "ratio" else value
    assert left == pytest.approx(0.7 if kind == "ratio" else 0.3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune-weights:training='batch=8'", "is for use with `finetune=EPOCHS`"),
        ("prune-weights:finetune=1:training='bath=8'", "Did you mean `batch`?"),
        ("prune-weights:finetune=1:training='batch=0'", "at least 1"),
        ("prune-weights:finetune=0", "in (0, 10000], or true for 3"),
        ("prune-weights:finetune=yes", "must be a number"),
        ("finetune:epochs=true", "must be a number"),
        ("prune-channels:finetune=1:steps=2:plan='a=1'", "leave out `steps`"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text)
    assert words in str(caught.value)


def test_samples_to_train_on_are_asked_for_before_any_work() -> None:
    passes = parse_pipeline("prune-weights:criterion=magnitude:finetune=1").passes
    with pytest.raises(UsageError, match="needs calibration samples to train on"):
        check_calibration(passes)


def test_every_pass_that_trains_ends_with_training() -> None:
    owners = [get(name) for name in names() if issubclass(get(name), TrainedPass)]
    assert len(owners) >= 14
    for owner in owners:
        *_, last = owner(finetune=2.0).unrolled()  # type: ignore[call-arg]
        assert last.trains
        assert not owner().trains
