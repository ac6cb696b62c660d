"""`onnxslim tune`, as a user calls it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from layer_nets import dense_net, samples

from onnxslim import cli

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(dense_net(8, 96, 96, 4), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(100, 8, rank=8))
    return tmp_path


def arguments(folder: Path, *options: str) -> list[str]:
    return [
        *("tune", str(folder / "model.onnx"), str(folder / "o.onnx"), "--overwrite", "-q"),
        *("--calib", str(folder / "calib.npz"), "--goal", "bytes", "--no-clock"),
        *("--allow", "prune-channels", "--allow", "cluster-weights", "--allow", "quantize-weights"),
        *("--trials", "6", "--report", str(folder / "report.json"), *options),
    ]


def tune(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = cli.run(arguments(folder, *options))
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return code, found


def test_the_answer_is_a_file_and_the_pipeline_that_makes_it_again(folder: Path) -> None:
    code, report = tune(folder, "--min-sqnr", "20", "--front", str(folder / "front"))
    assert code == 0
    tuning = report["tuning"]
    assert tuning["trials"] >= 6
    (chosen,) = (point for point in tuning["front"] if point["chosen"])
    assert chosen["closeness"] >= 20
    assert chosen["file_bytes"] < 0.3 * report["before"]["stats"]["file_bytes"]
    smaller = [p for p in tuning["front"] if p["file_bytes"] < chosen["file_bytes"]]
    assert not smaller or any("misses a floor on the others" in note for note in report["notes"])
    assert {entry["variant"] for entry in tuning["table"]} > {"as it is"}
    for point in tuning["front"]:
        assert Path(point["path"]).stat().st_size >= point["file_bytes"]
    with (folder / "front" / "front.csv").open(newline="") as table:
        listed = [(row["path"], int(row["file_bytes"])) for row in csv.DictReader(table)]
    assert listed == [(point["path"], point["file_bytes"]) for point in tuning["front"]]
    first = (folder / "o.onnx").read_bytes()
    resolved = report["record"]["resolved"]
    again = [str(folder / "model.onnx"), str(folder / "again.onnx"), "-q", "--no-latency"]
    data = ["--calib", str(folder / "calib.npz"), "--samples", "most", "--min-sqnr", "20"]
    assert cli.run([*again, *data, "--passes", resolved]) == 0
    assert (folder / "again.onnx").read_bytes() == first


def test_a_search_goes_on_where_it_ended(folder: Path) -> None:
    study = ("--study", str(folder / "journal"), "--min-sqnr", "20")
    _, first = tune(folder, *study)
    first_bytes = (folder / "o.onnx").read_bytes()
    _, second = tune(folder, *study)
    assert (folder / "o.onnx").read_bytes() == first_bytes
    rows = [(row["pipeline"], row["file_bytes"]) for row in first["tuning"]["trial_log"]]
    again = [(row["pipeline"], row["file_bytes"]) for row in second["tuning"]["trial_log"]]
    assert again == rows  # those of the journal were not run again
    seconds = [
        [row["seconds"] for row in found["tuning"]["trial_log"]] for found in (first, second)
    ]
    assert seconds[0][:6] == seconds[1][:6]


def test_a_target_that_suffices_is_met_with_the_closest_model(folder: Path) -> None:
    code, report = tune(folder, "--target-size", "0.5x", "--min-sqnr", "5")
    (chosen,) = (point for point in report["tuning"]["front"] if point["chosen"])
    assert code == 0
    assert chosen["file_bytes"] <= 0.5 * report["before"]["stats"]["file_bytes"]
    others = [p for p in report["tuning"]["front"] if p["file_bytes"] <= chosen["file_bytes"]]
    assert chosen["closeness"] >= max(point["closeness"] for point in others)


def test_a_target_out_of_reach_ends_with_exit_code_4_and_the_best_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = tune(folder, "--target-size", "10B", "--min-sqnr", "20")
    assert code == 4
    assert "reaches the targets under the floors" in capsys.readouterr().err
    assert (folder / "o.onnx").stat().st_size < report["before"]["stats"]["file_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--no-floor",), "tune needs floors"),
        (("--goal", "latency"), "A goal of latency needs models to be timed"),
        (("--jobs", "2"), "give --study FILE"),
        (("--jobs", "2", "--study", "j", "--clock"), "give --no-clock"),
        (("--allow", "simplify"), "no pass that tune combines"),
        (("--target-size", "1x"), "--target-size must be"),
        (("--for", "soon"), "must be a time"),
    ],
)
def test_requests_that_cannot_succeed_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert cli.run(arguments(folder, *options)) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "o.onnx").exists()


def test_four_processes_of_which_two_are_killed_find_the_same_answer(folder: Path) -> None:
    options = ("--min-sqnr", "20", "--deny", "prune-channels", "--trials", "3")
    _, alone = tune(folder, *options, "--study", str(folder / "alone"))
    expected = (folder / "o.onnx").read_bytes()
    shared = arguments(folder, *options, "--study", str(folder / "shared"), "--worker")
    processes = [
        subprocess.Popen([sys.executable, "-m", "onnxslim", *shared], stdout=subprocess.DEVNULL)
        for _ in range(4)
    ]
    journal = folder / "shared"
    while not journal.exists() and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    for process in processes[:2]:
        os.kill(process.pid, signal.SIGKILL)
    assert [process.wait() for process in processes[2:]] == [0, 0]
    for process in processes[:2]:
        process.wait()
    _, report = tune(folder, *options, "--study", str(journal))
    names = {line["study_name"] for line in map(json.loads, journal.open()) if "study_name" in line}
    assert len(names) == 1  # all of them took part in one search
    held = {row["pipeline"] for row in report["tuning"]["trial_log"]}
    assert {row["pipeline"] for row in alone["tuning"]["trial_log"][:2]} <= held
    assert len((folder / "o.onnx").read_bytes()) <= len(expected)


def test_a_trial_is_interrupted_when_the_time_is_over_and_tried_again_when_the_search_goes_on(
    folder: Path,
) -> None:
    shared = ("--study", str(folder / "journal"), "--min-sqnr", "20")
    code, short = tune(folder, *shared, "--for", "0.05s")
    assert code == 0
    assert short["tuning"]["trials"] <= 1
    _, whole = tune(folder, *shared)
    assert whole["tuning"]["trials"] >= 6
    assert all(row["state"] != "failed" for row in whole["tuning"]["trial_log"])
