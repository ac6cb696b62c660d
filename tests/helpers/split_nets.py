"""What the tests of both factorize passes share: layers of low rank, and runs with a stopwatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from fake_stopwatch import FakeStopwatch
from layer_nets import FORCE, REPRODUCERS, Given, runs

from onnxslim.io.model import Model
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.policy import Goal
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate
from onnxslim.services.stopwatch import Stopwatch


def low_rank(
    rows: int, columns: int, rank: int, *, seed: int = 0, noise: float = 0.0
) -> np.ndarray:
    """A float32 matrix of a rank, with noise of a relative size."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / rank**0.5
    return (made + noise * rng.standard_normal((rows, columns))).astype(np.float32)


def split(
    source: onnx.ModelProto | Model,
    x: Given | None,
    rewrite: Pass | str,
    *,
    stopwatch: Stopwatch | None = None,
    timed: bool = True,
    goal: Goal = Goal.BOTH,
) -> tuple[Model, list[StepReport]]:
    """The model after a pass, with times that are multiply-accumulates unless said otherwise."""
    model = source if isinstance(source, Model) else Model.load(source)
    if stopwatch is None and timed:
        stopwatch = FakeStopwatch()
    context = Context(
        evaluate=evaluate, calibration=None if x is None else runs(x), stopwatch=stopwatch
    )
    return PassManager.parse(str(rewrite)).run(
        model, context, policy=replace(FORCE, goal=goal), reproducers=REPRODUCERS
    )


def ops(model: Model) -> list[str]:
    """The operators, in order."""
    return [node.op for node in model.graph.nodes]


def why_of(reports: list[StepReport]) -> Mapping[str, str]:
    """Why layers were left alone, by layer."""
    return {skip.node: skip.why for report in reports for skip in report.skips}
