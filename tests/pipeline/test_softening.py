"""Steps that miss a floor are done with as much of their strength as it allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim import cli
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.softening import SofteningSearch, is_open, settings_of

SAMPLES = 60


def bundle(text: str) -> Sequence[Pass]:
    return parse_pipeline(text).passes


def spelled(text: str, *, has_own_floors: bool = False) -> list[str]:
    found = settings_of(bundle(text), has_own_floors=has_own_floors)
    return [",".join(map(str, steps)) for steps in found]


@pytest.mark.parametrize(
    ("text", "weakest", "strongest"),
    [
        ("prune-channels:macs=0.2", "prune-channels:macs=0.95", "prune-channels:macs=0.25"),
        ("prune-channels", "prune-channels:ratio=0.03125", "prune-channels:ratio=0.46875"),
        (
            "prune-blocks:latency=0.5",
            "prune-blocks:latency=0.96875",
            "prune-blocks:latency=0.53125",
        ),
        ("prune-weights:ratio=0.8", "prune-weights:ratio=0.05", "prune-weights:ratio=0.75"),
        ("factorize-conv:energy=0.2", "factorize-conv:energy=0.95", "factorize-conv:energy=0.25"),
        ("factorize-conv:ratio=0.8", "factorize-conv:ratio=0.05", "factorize-conv:ratio=0.75"),
        ("cluster-weights:bits=2", "cluster-weights:bits=8", "cluster-weights:bits=3"),
        ("cluster-weights:values=16", "cluster-weights:values=241", "cluster-weights:values=31"),
        ("quantize-weights:bits=4", "quantize-weights", "quantize-weights"),
        ("binarize-weights", "binarize-weights:bases=4", "binarize-weights:bases=2"),
    ],
)
def test_settings_go_from_next_to_nothing_to_almost_what_was_asked(
    text: str, weakest: str, strongest: str
) -> None:
    found = spelled(text)
    assert (found[0], found[-1]) == (weakest, strongest)
    assert len(set(found)) == len(found)
    assert text not in found


@pytest.mark.parametrize(
    "text",
    [
        "simplify",
        "quantize-int8",
        "prune-channels:plan='conv=3'",
        "prune-weights:ratio-of='a*=0.5'",
        "factorize-conv:rank=3",
        "quantize-weights",
    ],
)
def test_what_has_no_strength_to_choose_has_no_settings(text: str) -> None:
    assert spelled(text) == []


def test_training_is_not_repeated() -> None:
    assert spelled("prune-channels:macs=0.5:finetune=3") == []


def test_steps_that_are_judged_together_get_weaker_together() -> None:
    assert spelled("prune-weights:ratio=0.8,cluster-weights:bits=2")[7] == (
        "prune-weights:ratio=0.4,cluster-weights:bits=5"
    )


def test_a_strength_that_nobody_gave_may_be_the_hardest_under_floors_of_the_user() -> None:
    assert is_open(bundle("prune-channels"))
    assert not is_open(bundle("prune-channels:macs=0.5"))
    assert spelled("prune-channels", has_own_floors=True)[-1] == "prune-channels:ratio=0.95"
    assert spelled("cluster-weights", has_own_floors=True)[-1] == "cluster-weights:bits=1"
    last = spelled("prune-channels:ratio=0.6", has_own_floors=True)[-1]
    assert last == "prune-channels:ratio=0.5625"


@given(st.integers(0, 15), st.integers(1, 15))
def test_the_strongest_setting_that_holds_is_found_in_four_trials(limit: int, count: int) -> None:
    settings = [bundle(f"prune-channels:ratio={(n + 1) / 20}") for n in range(count)]
    search = SofteningSearch(lambda steps: list(settings).index(steps) < limit)
    found = search.strongest(settings)
    assert found == (settings[min(limit, count) - 1] if limit else None)
    assert search.tried <= 4


# ------------------------------------------------------------------- through the command


def lenet(folder: Path, *options: str) -> tuple[int, dict[str, object]]:
    with as_file(files("onnxslim") / "assets") as assets:
        report = folder / "report.json"
        arguments = [str(assets / "lenet5.onnx"), str(folder / "o.onnx"), "--overwrite", "-q"]
        images = np.load(assets / "mnist_calib.npz")["image"][:SAMPLES]
        np.savez(folder / "x.npz", image=images)
        data = ["--calib", str(folder / "x.npz")]
        code = cli.run([*arguments, *data, "--no-latency", "--report", str(report), *options])
    found: dict[str, object] = json.loads(report.read_text())
    return code, found


def test_a_strength_that_misses_a_floor_is_lowered_until_it_holds(tmp_path: Path) -> None:
    asked = "cluster-weights:bits=1"
    code, report = lenet(tmp_path, "--passes", asked, "--min-sqnr", "40")
    (step,) = report["passes"]  # type: ignore[misc]
    assert code == 4
    assert step["committed"]
    assert step["spec"] == asked
    assert "--min-sqnr is 40; of " in step["why_partly"]
    resolved = report["record"]["resolved"]  # type: ignore[index]
    first = (tmp_path / "o.onnx").read_bytes()
    assert ",cluster-weights:bits=" in str(resolved)
    code, _ = lenet(tmp_path, "--passes", str(resolved), "--min-sqnr", "40")
    assert code == 0
    assert (tmp_path / "o.onnx").read_bytes() == first


def test_a_strength_that_nobody_gave_is_as_much_as_the_floor_allows(tmp_path: Path) -> None:
    code, report = lenet(tmp_path, "--passes", "cluster-weights", "--min-sqnr", "40")
    (step,) = report["passes"]  # type: ignore[misc]
    assert code == 0
    assert step["committed"]
