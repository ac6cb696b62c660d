from __future__ import annotations

import builtins
import csv
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said, run
from layer_nets import dense_net, samples

from onnxslim import surveys
from onnxslim.errors import UsageError
from onnxslim.tools.sensitivity import CSV_HEADS, SensitivityPoint


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, calib = tmp_path / "model.onnx", tmp_path / "calib.npz"
    onnx.save(dense_net(6, 12, 12, 4), model)
    np.savez(calib, x=samples(60, 6, rank=6))
    return model, calib


def points_of(model: Path, calib: Path, passes: str) -> list[SensitivityPoint]:
    return list(surveys.sensitivity(model, calibration=calib, passes=passes))


def test_every_group_is_tried_at_every_strength(files: tuple[Path, Path]) -> None:
    points = points_of(*files, "prune-channels:align=1")
    targets = dict.fromkeys(point.target for point in points)
    assert len(targets) == 2  # the last layer makes the output
    assert [p.strength for p in points] == [0.25, 0.5, 0.75] * 2
    for target in targets:
        left = [p.bytes_left for p in points if p.target == target]
        assert left == sorted(left, reverse=True)
        assert left[0] < 1
        drift = [p.distance.divergence for p in points if p.target == target and p.distance]
        assert 0 <= drift[0] < drift[-1]


def test_a_layer_pass_is_tried_on_every_layer_alone(files: tuple[Path, Path]) -> None:
    points = points_of(*files, "prune-weights:criterion=magnitude")
    assert len({point.target for point in points}) == 3
    assert all(point.distance is not None for point in points)
    assert points[0].option == "ratio"
    assert f"only={points[0].target}" in points[0].spec


def test_the_passes_before_the_last_are_run_on_the_whole_model(files: tuple[Path, Path]) -> None:
    plain = points_of(*files, "prune-channels:align=1")
    after = points_of(*files, "prune-channels:ratio=0.5:align=1,prune-channels:align=1")
    assert after[0].distance != plain[0].distance


def test_the_model_is_left_as_it_is(files: tuple[Path, Path]) -> None:
    before = files[0].read_bytes()
    points_of(*files, "prune-channels:align=1")
    assert files[0].read_bytes() == before


def test_a_pass_over_whole_models_is_refused(files: tuple[Path, Path], capsys: Said) -> None:
    assert run("sensitivity", files[0], "--calib", files[1], "--passes", "simplify") == 2
    assert "`simplify` has no option `only`" in capsys.readouterr().err


def test_samples_are_asked_for(files: tuple[Path, Path], capsys: Said) -> None:
    assert run("sensitivity", files[0]) == 2
    assert "--calib" in capsys.readouterr().err


def test_the_table_names_targets_and_strengths(files: tuple[Path, Path], capsys: Said) -> None:
    assert run("sensitivity", files[0], "--calib", files[1]) == 0
    out = capsys.readouterr().out
    assert out.startswith("target")
    assert "0.75" in out


def test_the_report_is_a_table_and_a_picture(files: tuple[Path, Path], tmp_path: Path) -> None:
    report = tmp_path / "found.csv"
    assert run("sensitivity", files[0], "--calib", files[1], "--report", report, "--quiet") == 0
    rows = list(csv.DictReader(io.StringIO(report.read_text())))
    assert len(rows) == 6
    assert all(tuple(row) == CSV_HEADS for row in rows)
    assert all(float(row["divergence"]) >= 0 for row in rows)
    assert report.with_suffix(".svg").read_text().lstrip().startswith("<?xml")


def test_a_report_of_another_kind_is_refused(files: tuple[Path, Path], capsys: Said) -> None:
    assert run("sensitivity", files[0], "--calib", files[1], "--report", "found.txt") == 2
    assert "must end in .csv, .svg, .png, .json, .html or .md" in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    files: tuple[Path, Path], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    report = tmp_path / "found.csv"
    assert run("sensitivity", files[0], "--calib", files[1], "--report", report) == 2
    assert "needs matplotlib" in capsys.readouterr().err
    assert not report.exists()


def test_python_refuses_it_too(files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="has no option `only`"):
        points_of(*files, "simplify")
