"""Models are timed at sizes that people use, as large as the time allows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal

from onnxslim.io.model import Model
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.runtime.samples.timing_sizes import MOST_MACS, macs_at


def conv(shape: list[object], *, wide: int = 4, **attrs: object) -> onnx.ModelProto:
    """A Conv over an input of this shape."""
    rank = len(shape) - 2
    weight = normal(wide, int(str(shape[1])), *[3] * rank, scale=0.1)
    return net([node("Conv", ["x", "w"], "y", **attrs)], {"w": weight}, shape)


def timed(proto: onnx.ModelProto, **options: object) -> str | None:
    prover = RuntimeProver(**options)  # type: ignore[arg-type]
    prover.begin(Model.load(proto))
    return prover.timed_on


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (["N", 3, "H", "W"], "1x3x640x640"),
        ([2, 3, "H", 64], "2x3x640x64"),
        (["N", 1, "T"], "1x1x32000"),
        (["N", 80, "T"], "1x80x256"),
        (["N", 3, 48, 48], "1x3x48x48"),
    ],
)
def test_sizes_follow_what_the_axis_is(shape: list[object], sizes: str) -> None:
    assert timed(conv(shape)) == f"x {sizes}"


def test_a_larger_net_is_timed_on_smaller_images() -> None:
    source = conv(["N", 64, "H", "W"], wide=64)
    said = timed(source)
    assert said == "x 1x64x224x224"
    assert (macs_at(Model.load(source), {"x": (1, 64, 224, 224)}) or 0) <= MOST_MACS
    assert (macs_at(Model.load(source), {"x": (1, 64, 320, 320)}) or 0) > MOST_MACS


def test_sizes_of_the_user_and_of_his_samples_stay() -> None:
    source = conv(["N", 3, "H", "W"])
    assert timed(source, input_shapes={"x": (1, 3, 40, 48)}) == "x 1x3x40x48"
    samples = {"x": np.zeros((5, 3, 20, 24), np.float32)}
    assert timed(source, calibration=samples) == "x 1x3x20x24"
    assert timed(source, latency=False) is None


def test_sizes_that_a_model_refuses_are_left_for_smaller_ones() -> None:
    nodes = [node("Add", ["x", "v"], "y")]
    source = net(nodes, {"v": normal(64)}, ["N", 3, "H", "W"])
    assert str(timed(source)).endswith("x64")


def test_proofs_keep_their_small_sizes() -> None:
    prover = RuntimeProver()
    prover.begin(Model.load(conv(["N", 3, "H", "W"])))
    workload = prover._workload
    assert workload is not None
    assert workload.probes[0].feeds["x"].shape[2] < 640
