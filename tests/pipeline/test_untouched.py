"""A weight pass says which weights it left as they were, where these are much of the file."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, rewritten

from onnxslim.render.json import report_to_json
from onnxslim.render.text import report_to_text
from onnxslim.report import FileReport, Report, Stats


def untouched(source: onnx.ModelProto, step: str) -> str | None:
    _, (report,) = rewritten(source, None, step)
    return report.untouched


def scaled(size: int) -> onnx.ModelProto:
    """A MatMul of 40 kB behind a product with `size` floats, which is no layer."""
    nodes = [node("Mul", ["x", "s"], "a"), node("MatMul", ["a", "w"], "y")]
    return net(nodes, {"s": normal(size // 100, 100), "w": normal(100, 100)}, [size // 100, 100])


@pytest.mark.parametrize("step", ["cluster-weights", "quantize-weights", "prune-weights:ratio=0.8"])
def test_operands_that_are_no_layer_are_named_with_their_bytes(step: str) -> None:
    assert untouched(scaled(30_000), step) == (
        "120 of 160 kB of weights were left as they are: Mul (120 kB): no weights of a layer"
    )


def test_a_small_share_is_not_worth_a_word() -> None:
    assert untouched(scaled(1_000), "cluster-weights") is None


def test_the_reason_of_the_pass_is_given() -> None:
    infinite = normal(100, 100)
    infinite[0, 0] = np.inf
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "y")]
    source = net(nodes, {"w": normal(100, 100), "v": infinite}, ["N", 100])
    assert untouched(source, "cluster-weights") == (
        "40.0 of 80.0 kB of weights were left as they are: MatMul (40.0 kB): it has values that "
        "are not finite"
    )


def test_what_the_user_left_out_is_not_declined() -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "y")]
    source = net(nodes, {"w": normal(100, 100), "v": normal(100, 100, seed=2)}, ["N", 100])
    assert untouched(source, "cluster-weights:only=a") is None
    assert untouched(source, "cluster-weights") is None


def test_the_report_says_it() -> None:
    _, steps = rewritten(scaled(30_000), None, "cluster-weights")
    file = FileReport(None, None, Stats(2, 2, 1, 0, 0))
    report = Report("onnxslim", {}, file, file, steps)
    line = "left as it was: cluster-weights: 120 of 160 kB of weights were left as they are"
    assert line in report_to_text(report)
    assert json.dumps(report_to_json(report)).count('"untouched": "120 of 160 kB') == 1
