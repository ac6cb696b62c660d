"""How hard the structure may be where training follows: rays, halved between held and missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.tuning.aims import Measure
from onnxslim.tuning.families import families_for
from onnxslim.tuning.study import SharedStudy, Space
from onnxslim.tuning.trained import TrainedSearch
from onnxslim.tuning.trials import TrialOutcome

ALLOWED = ("prune-channels", "factorize-conv", "finetune", "quantize-int8")


@pytest.fixture
def space() -> Space:
    families = families_for(Measure.BYTES, allowed=ALLOWED, trains=True)
    return Space(parse_pipeline("simplify").passes, families)


class Model:
    """Made up models: bytes fall with strength, and the floors allow a sum of strengths."""

    def __init__(self, allows: float) -> None:
        self.allows, self.points = allows, list[Mapping[str, Any]]()

    def run(self, point: Mapping[str, Any]) -> TrialOutcome:
        self.points.append(point)
        strengths = {name: point[name] for name in ALLOWED[:2] if point[name] > 0}
        strength = sum(strengths.values())
        size = int(1000 * (1 - 0.4 * strength) * (0.5 if point["numbers"] != "none" else 1))
        kept = dict.fromkeys([*strengths, "finetune"], "kept")
        return TrialOutcome("p", file_bytes=size, use=strength / self.allows, kept=kept)


def score(outcome: TrialOutcome) -> float:
    return outcome.file_bytes if outcome.holds else float("inf")


def test_the_hardest_point_that_holds_is_approached_and_numbers_follow(space: Space) -> None:
    model = Model(allows=0.9)
    TrainedSearch(space, model.run, score).search(["prune-channels"])
    assert all(point["finetune"] for point in model.points)
    alone = [p["prune-channels"] for p in model.points[:3]]
    assert alone[0] < alone[1]  # it held with room: harder
    last = model.points[-1]
    assert last["numbers"] == "quantize-int8"
    assert model.run(last).holds


def test_a_ray_that_misses_floors_gets_weaker(space: Space) -> None:
    model = Model(allows=0.05)
    TrainedSearch(space, model.run, score).search([])
    first = [point["prune-channels"] for point in model.points[:3]]
    assert first == sorted(first, reverse=True)
    assert {point["numbers"] for point in model.points} == {"none"}  # nothing held


def test_nothing_is_run_when_the_time_is_over(space: Space) -> None:
    TrainedSearch(space, lambda _point: None, score).search(["prune-channels"])


def test_points_are_proposed_as_they_were_set(space: Space) -> None:
    study = SharedStudy("s", None, 0)
    point = space.trained({"prune-channels": 0.9}, "quantize-int8")
    study.enqueue([point])
    trial = study.ask("me")
    steps = [step.name for step in space.proposed(trial)]
    assert steps == ["simplify", "prune-channels", "finetune", "quantize-int8"]
    outcome = TrialOutcome("p", "resolved:from=simplify,simplify", 10)
    study.tell(trial, outcome, 0.5)
    assert study.outcome_at(point) == outcome
    assert study.outcome_at(space.trained({"prune-channels": 0.8})) is None
