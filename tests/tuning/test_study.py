"""Trials that processes share: nothing is lost but what was in hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from onnxslim.errors import UsageError
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.tuning.aims import Measure
from onnxslim.tuning.families import Role, families_for
from onnxslim.tuning.study import SharedStudy, Space
from onnxslim.tuning.trials import TrialOutcome
from onnxslim.tuning.workers import is_dead, room_for, worker_name

OUTCOME = TrialOutcome(
    "simplify", "resolved:from=simplify,simplify", 10, use=0.5, kept={"a": "a:b=1"}
)


@pytest.fixture
def space() -> Space:
    families = families_for(Measure.BYTES, allowed=("prune-channels", "quantize-weights"))
    return Space(parse_pipeline("simplify").passes, families)


def spelled(space: Space, study: SharedStudy) -> str:
    return ",".join(map(str, space.proposed(study.ask("me"))))


def test_each_family_is_tried_alone_first(space: Space) -> None:
    study = SharedStudy("s", None, 0)
    study.enqueue(space.alone())
    assert spelled(space, study) == "simplify,prune-channels:bytes=0.1"
    assert spelled(space, study) == "simplify,quantize-weights:bits=4"


def test_families_that_are_best_alone_are_combined_first() -> None:
    families = families_for(
        Measure.BYTES, allowed=("prune-channels", "factorize-dense", "quantize-weights")
    )
    space = Space(parse_pipeline("simplify").passes, families)
    study = SharedStudy("s", None, 0)
    study.enqueue(space.combined(["quantize-weights", "prune-channels", "factorize-dense"])[:4])
    found = [spelled(space, study) for _ in range(4)]
    assert found[0] == "simplify,prune-channels:bytes=0.235,quantize-weights:bits=4"
    assert found[1] == "simplify,factorize-dense:bytes=0.235,quantize-weights:bits=4"
    assert found[2].count(",") == 3
    assert "quantize" not in found[3]


def test_an_equal_point_is_enqueued_once(space: Space, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    for _ in range(2):
        study = SharedStudy("s", journal, 0)
        study.enqueue(space.alone())
    assert len(study.study.get_trials()) == len(space.alone())


def test_what_came_of_a_trial_is_found_again(space: Space, tmp_path: Path) -> None:
    journal = str(tmp_path / "deep" / "journal")
    study = SharedStudy("s", journal, 0)
    trial = study.ask("me")
    space.proposed(trial)
    study.tell(trial, OUTCOME, -1.0)
    assert SharedStudy("s", journal, 0).outcomes() == [(0, OUTCOME)]
    assert SharedStudy("another", journal, 0).outcomes() == []


def test_a_torn_last_line_is_survived(space: Space, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    study = SharedStudy("s", str(journal), 0)
    trial = study.ask("me")
    space.proposed(trial)
    study.tell(trial, OUTCOME, -1.0)
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(whole.splitlines()[-1][:20])
    again = SharedStudy("s", str(journal), 0)
    assert again.outcomes() == [(0, OUTCOME)]
    assert again.ask("me").number == 1


def test_a_trial_of_a_process_that_died_is_tried_again(space: Space, tmp_path: Path) -> None:
    study = SharedStudy("s", str(tmp_path / "journal"), 0)
    study.enqueue(space.alone()[:1])
    first = spelled(space, study)
    trial = study.study.get_trials()[0]
    assert study.give_back(lambda worker, age: worker != "me") == 0
    assert study.give_back(lambda worker, age: worker == "me" and age >= 0) == 1
    assert spelled(space, study) == first
    assert study.study.get_trials()[trial.number].state.is_finished()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are\nno lines of a journal\n")
    with pytest.raises(UsageError, match="cannot be opened"):
        SharedStudy("s", str(path), 0)


def test_processes_are_known_to_be_alive_or_dead() -> None:
    assert not is_dead(worker_name(), 1e9)
    host = worker_name().rpartition(":")[0]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not is_dead(f"{host}:{process.pid}", 1e9)
        process.kill()
        process.wait()
        assert is_dead(f"{host}:{process.pid}", 0.0)
    assert not is_dead("another-machine:1", 60.0)
    assert is_dead("another-machine:1", 1e6)


def test_memory_limits_the_processes() -> None:
    assert room_for(10**9, 3 * 10**9) == 1
    assert room_for(10**6, 4 * 10**9) == 7
    assert room_for(10**6) >= 1


# ------------------------------------------------------------------- families


def test_families_are_those_that_help_with_the_goal() -> None:
    names = [family.name for family in families_for(Measure.LATENCY)]
    assert "cluster-weights" not in names
    assert "quantize-int8" in names
    assert "inject-exits" not in names
    with_data = families_for(Measure.LATENCY, has_samples=True)
    assert with_data[-1].role is Role.EXITS
    assert "cluster-weights" in [family.name for family in families_for(Measure.BYTES)]


def test_models_are_trained_where_that_is_asked_for() -> None:
    families = families_for(Measure.BYTES, allowed=("prune-channels", "finetune"), trains=True)
    space = Space(parse_pipeline("simplify").passes, families, {})
    study = SharedStudy("s", None, 0)
    point = {"finetune": True, "prune-channels": 0.5, "numbers": "none", "exits": False}
    study.enqueue([point, {**point, "prune-channels": 0.0}])
    assert spelled(space, study) == "simplify,prune-channels:bytes=0.55,finetune"
    assert spelled(space, study) == "simplify"  # there is nothing to bring back


def test_a_family_is_as_hard_as_it_could_be_alone_and_left_out_where_it_did_nothing() -> None:
    families = families_for(Measure.BYTES, allowed=("prune-channels", "quantize-weights"))
    (kept,) = parse_pipeline("prune-channels:bytes=0.6").passes
    plain = Space(parse_pipeline("simplify").passes, families)
    capped = replace(plain, capped={"prune-channels": replace(families[0], hardest=kept)})
    study = SharedStudy("s", None, 0)
    point = {
        **{"prune-channels": 1.0, "numbers": "quantize-weights"},
        **{"finetune": False, "exits": False},
    }
    study.enqueue([point])
    study.enqueue([{**point, "prune-channels": 0.5}])
    assert spelled(plain, study).startswith("simplify,prune-channels:bytes=0.1,quantize-weights")
    assert spelled(capped, study) == "simplify,prune-channels:bytes=0.8"


def test_names_that_nobody_combines_are_refused() -> None:
    with pytest.raises(UsageError, match="`simplify` is no pass that tune combines"):
        families_for(Measure.BYTES, allowed=("simplify",))


def test_a_family_at_a_part_of_its_strength() -> None:
    (family,) = families_for(Measure.LATENCY, allowed=("prune-channels",))
    assert str(family.at(1.0)) == "prune-channels:latency=0.1"
    assert str(family.at(0.5)) == "prune-channels:latency=0.55"
    assert family.at(0.0) is None
    (untimed,) = families_for(Measure.LATENCY, allowed=("prune-channels",), is_timed=False)
    assert str(untimed.at(1.0)) == "prune-channels:macs=0.1"
