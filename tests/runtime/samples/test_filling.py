"""Inputs that data lack, one value each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said, run

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.session import TensorInfo
from support import parse

X = TensorInfo("x", "tensor(float)", np.dtype("float32"), ("batch", "length"))
STATE = TensorInfo("state", "tensor(float)", np.dtype("float32"), (2, "batch", 3))
RATE = TensorInfo("rate", "tensor(int64)", np.dtype("int64"), ())
MASK = TensorInfo("mask", "tensor(bool)", np.dtype("bool"), ("batch", "length"))
ARRAYS = np.ones((4, 5), np.float32)


def feeds_of(fill: object, *infos: TensorInfo, rows: int = 1) -> Mapping[str, np.ndarray]:
    given = GivenData({"x": ARRAYS}, DataSettings.of({"fill": fill}))
    return next(iter(open_samples(given, infos).batches(rows))).feeds


def test_what_data_lack_holds_one_value_in_the_size_of_the_data() -> None:
    feeds = feeds_of("state=1/2,rate=16000,mask=1", X, STATE, RATE, MASK, rows=4)
    assert feeds["x"].shape == (1, 5)  # the state has no batch axis in front
    assert feeds["state"].shape == (2, 1, 3)
    assert (feeds["state"] == 0.5).all()
    assert feeds["rate"] == np.int64(16000)
    assert feeds["rate"].dtype == np.int64
    assert feeds["mask"].shape == (1, 5)
    assert feeds["mask"].dtype == bool
    assert feeds_of({"mask": 0}, X, MASK, rows=4)["mask"].shape == (4, 5)


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        ("stat=0", r"no input `stat`, which --fill names\. Did you mean `state`"),
        ("state=0,rate=0.5", "Input `rate` is int64; --fill says 0.5"),
        ("state=0,rate=1e30", "Input `rate` is int64; --fill says"),
        ("x=0,state=0,rate=1", "--fill names all inputs"),
        ("state=none", "`fill` of `state` must be a number"),
        ("state", "`fill` must be INPUT=NUMBER"),
        ("rate=16000", "no array for input `state` .* --fill state=VALUE"),
    ],
)
def test_values_that_cannot_be_are_refused(fill: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        feeds_of(fill, X, STATE, RATE)


def test_the_command_fills_inputs_and_says_so(tmp_path: Path, capsys: Said) -> None:
    model = parse("""<opset_import: ["" : 17]>
    g (float[N, 4] x, float[N, 1] gain, int64 steps) => (float[N, 4] y)
    { s = Cast <to = 1> (steps)  g = Mul (x, gain)  h = Identity (g)  y = Mul (h, s) }""")
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((8, 4), np.float32))
    words = (tmp_path / "m.onnx", "--calib", tmp_path / "x.npz", "--no-latency")
    assert run(*words) == 2
    assert "--fill gain=VALUE" in capsys.readouterr().err
    assert run(*words, "--fill", "gain=2,steps=3") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "`gain` float32 [1, 1], all 2; `steps` int64 [], all 3" in said
