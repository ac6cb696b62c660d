"""What channels do to outputs by gradients: against the closed form, and as an order."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import dense_net, net, node, normal, samples

from onnxslim.api import compress
from onnxslim.io.model import Model
from onnxslim.records import OutputKind
from onnxslim.runtime.training.trainer import SampleTrainer

pytest.importorskip("torch")


def test_of_a_linear_reader_they_are_energy_times_the_squares_of_its_weights() -> None:
    rows = samples(400, 6, rank=6)
    first, second = normal(6, 5), normal(5, 3, seed=2)
    model = Model.load(
        net(
            [node("MatMul", ["x", "a"], "h"), node("MatMul", ["h", "b"], "y")],
            {"a": first, "b": second},
            [1, 6],
        )
    )
    trainer = SampleTrainer({"x": rows}, kinds={"y": OutputKind.VALUES})
    found = trainer.effects(model, {"h": -1}, 400)["h"]
    # E[(h_c Σ_o r_o b_co / σ)²] = h_c² ‖b_c‖² / σ², σ of the outputs of the sample
    hidden = rows @ first
    spread = (hidden @ second).std(axis=1, keepdims=True)
    wanted = ((hidden / spread) ** 2).mean(axis=0) * (second**2).sum(axis=1)
    order = np.argsort(wanted)
    assert found.shape == (5,)
    assert np.allclose(found, wanted, rtol=0.5)
    assert np.argsort(found)[-1] == order[-1]


def test_the_channel_that_nothing_depends_on_leaves_first() -> None:
    source = dense_net(8, 12, 4)
    model = Model.load(source)
    reader = model.graph.nodes[-1].inputs[1]
    reader.values = np.where(np.arange(12)[:, None] == 7, 0.0, reader.values).astype(np.float32)
    rows = {"x": samples(60, 8, rank=8)}
    pruned, report = compress(
        model.to_proto(),
        passes="prune-channels:ratio=0.05:criterion=fisher:align=1:reconstruct=false",
        calibration=rows,
        measure=False,
        floors=None,
    )
    assert report.steps[0].committed
    assert report.steps[0].comparison is not None
    assert report.steps[0].comparison.original["y"].sqnr_db > 60
    assert pruned.graph.nodes[0].inputs[1].shape[-1] == 11
