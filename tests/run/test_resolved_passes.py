"""What each pass decided by timing or by search is spelled out, and gives the same file again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from exit_nets import ExitStopwatch, classifier, images
from fake_stopwatch import FakeStopwatch, fake_times
from layer_nets import net, node, normal, samples
from qdq_nets import ScriptedStopwatch

import onnxslim
from onnxslim.services.stopwatch import Stopwatch

PICTURES, CLASSES = images(400)
ROWS = samples(200, 24, rank=10)
INTEGERS_PAY = {("Conv", False): 5.0, ("Gemm", False): 5.0}


def residual() -> onnx.ModelProto:
    """Four residual branches of unlike weight, and a layer of low rank behind them."""
    nodes, weights, last = [], {}, "x"
    for number, scale in enumerate((0.3, 1, 0.1, 0.6)):
        weights[f"u{number}"] = normal(24, 48, seed=2 * number, scale=0.2)
        weights[f"w{number}"] = normal(48, 24, seed=2 * number + 1, scale=0.2 * scale)
        nodes += [
            node("MatMul", [last, f"u{number}"], f"h{number}"),
            node("Relu", [f"h{number}"], f"r{number}"),
            node("MatMul", [f"r{number}", f"w{number}"], f"b{number}"),
            node("Add", [last, f"b{number}"], f"s{number}"),
        ]
        last = f"s{number}"
    weights["o"] = normal(24, 4, seed=98) @ normal(4, 48, seed=99)
    weights["c"] = normal(48, seed=97)
    return net([*nodes, node("Gemm", [last, "o", "c"], "y")], weights, ["N", 24])


def two_layers() -> onnx.ModelProto:
    """A layer that bears few values, and one behind it."""
    weights = {"u": normal(24, 96), "w": normal(96, 24, seed=1)}
    return net(
        [node("MatMul", ["x", "u"], "h"), node("MatMul", ["h", "w"], "y")], weights, ["N", 24]
    )


@dataclass(frozen=True)
class Decision:
    """A pipeline in which something is decided, on a model, by what a stopwatch says."""

    passes: str
    source: Callable[[], onnx.ModelProto]
    stopwatch: Callable[[], Stopwatch] = FakeStopwatch
    goal: str = "both"

    @property
    def data(self) -> np.ndarray:
        return PICTURES if self.source is classifier else ROWS


def integers_pay() -> Stopwatch:
    return ScriptedStopwatch(INTEGERS_PAY)


DECISIONS = (
    Decision("quantize-int8:max-error=0.02", classifier, integers_pay),
    Decision("quantize-weights", residual, ScriptedStopwatch, "bytes"),
    Decision("prune-channels:latency=0.6", classifier),
    Decision("prune-blocks:latency=0.7", residual),
    Decision("factorize-dense", residual),
    Decision("factorize-conv:latency=0.7", classifier),
    Decision("inject-exits:target=0.95", classifier, ExitStopwatch, "latency"),
    Decision("compress-weights", two_layers, goal="bytes"),
    Decision("simplify,prune-channels:latency=0.8,quantize-weights", residual, goal="bytes"),
)


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.passes)
def test_a_decision_is_repeated_to_the_byte_whatever_the_clock_says(
    decision: Decision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calib = tmp_path / "m.onnx", tmp_path / "x.npz"
    onnx.save(decision.source(), source)
    np.savez(calib, x=decision.data)

    def made(passes: str, name: str) -> onnxslim.Report:
        _, report = onnxslim.compress(
            source, tmp_path / name, passes=passes, calibration=calib, seed=3, floors=None,
            goal=decision.goal,
        )  # fmt: skip
        return report

    fake_times(monkeypatch, lambda model: False, decision.stopwatch())
    first = made(decision.passes, "a.onnx")
    assert all(step.committed for step in first.steps)
    assert first.steps[-1].changes
    assert first.record is not None
    resolved = first.record.resolved
    assert decision.passes.rpartition(",")[2] not in resolved.rpartition("',")[2].split(",")
    fake_times(monkeypatch, lambda model: True, ScriptedStopwatch(faster=0.4))
    again = made(resolved, "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    assert again.record == first.record
    names = {entry.key for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert {"onnxslim.resolved", "onnxslim.data_sha256", "onnxslim.processor"} <= names
