from __future__ import annotations

import numpy as np
import pytest
from layer_nets import FORCE, REPRODUCERS, dense_net, output_error, runs, samples

from onnxslim.codebook.nodes import codebook_nodes
from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.lossy import allocation
from onnxslim.passes.compress_weights import CompressWeights
from onnxslim.passes.deep_compression import DeepCompression
from onnxslim.passes.simplify import Simplify
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity

X = samples(300, 16)


@pytest.fixture(autouse=True)
def _fewer_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse menus, for speed."""
    monkeypatch.setattr(allocation, "KEPT_SHARES", (1.0, 0.5, 0.2))
    monkeypatch.setattr(allocation, "VALUES", (3, 8))
    monkeypatch.setattr(allocation, "DENSE_VALUES", (4, 16))


# ----------------------------------------------------------------- fires


def test_training_is_asked_for_by_one_word() -> None:
    (preset,) = parse_pipeline("deep-compression:finetune=true").passes
    assert isinstance(preset, DeepCompression)
    _, compress = preset.members()
    assert str(compress) == "compress-weights:finetune=3.0"
    assert compress.trains


def test_members_are_steps_of_their_own() -> None:
    """A preset of one round is judged, and reported, member by member."""
    model = Model.load(dense_net(16, 48, 8))
    context = Context(calibration=runs(X))
    slim, steps = PassManager.parse("deep-compression:agreement=0.95").run(
        model, context, policy=FORCE, reproducers=REPRODUCERS
    )
    assert [step.spec for step in steps] == ["simplify", "compress-weights:agreement=0.95"]
    assert steps[-1].fidelity is Fidelity.LOSSY
    assert list(codebook_nodes(slim.graph))
    assert np.isfinite(output_error(model, slim, X))


def test_options_reach_the_member() -> None:
    members = DeepCompression(agreement=0.9, sqnr=12.0).members()
    assert members == (Simplify(), CompressWeights(agreement=0.9, sqnr=12.0))


# ----------------------------------------------------------------- declines


def test_without_samples_only_simplify_runs() -> None:
    model = Model.load(dense_net(16, 48, 8))
    slim, steps = PassManager.parse("deep-compression").run(model, Context(), policy=FORCE)
    assert not list(codebook_nodes(slim.graph))
    assert "give --calib" in steps[-1].skips[0].why


# ----------------------------------------------------------------- edges


def test_an_agreement_above_one_is_refused() -> None:
    with pytest.raises(UsageError, match="`agreement`"):
        DeepCompression(agreement=1.5)
