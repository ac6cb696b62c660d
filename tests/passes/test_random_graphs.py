"""Every pass that keeps the outputs, on random graphs, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import models

from onnxslim.io.model import Model
from onnxslim.pipeline import registry
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Preset
from onnxslim.pipeline.policy import Policy
from onnxslim.records import Fidelity
from support import CONTEXT, assert_equivalent, random_feeds, run, signature

pytestmark = pytest.mark.slow

KEEPING = [
    found.name
    for found in registry.describe()
    if found.fidelity in (Fidelity.EXACT, Fidelity.CLOSE)
]
SHRINKING = ("fold-", "dedup-", "eliminate-", "simplify")
FORCE = Policy(force=True)  # what does not pay is looked at as well
SETTINGS = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", KEEPING)
@SETTINGS
@given(source=models())
def test_outputs_signature_and_size_are_kept(name: str, source: onnx.ModelProto) -> None:
    check(name, source)


def check(name: str, source: onnx.ModelProto) -> None:
    """Run the pass `name` on `source` and hold it to what it promises."""
    manager = PassManager.parse(name)
    model = Model.load(source)
    before = model.to_bytes()
    after, reports = manager.run(model, CONTEXT, policy=FORCE)
    assert model.to_bytes() == before
    proto = after.to_proto()
    changes = [change for report in reports for change in report.changes]
    if not changes:
        assert after.to_bytes() == before
        return
    fidelity = max(report.fidelity for report in reports)
    if fidelity is Fidelity.EXACT:
        assert_equivalent(source, proto, fidelity)
    else:
        assert_close(source, proto)
    if name.startswith(SHRINKING):
        assert len(after.to_bytes()) <= len(before)
    again, reports = manager.run(after, CONTEXT, policy=FORCE)
    assert [change for report in reports for change in report.changes] == []
    assert again.to_bytes() == after.to_bytes()


def assert_close(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """Outputs agree up to rounding, measured by the largest value that `a` has anywhere.

    A random graph may subtract a value from itself in two ways; what is left is rounding of the
    terms, however small the difference.
    """
    onnx.checker.check_model(b, full_check=True)
    assert [signature(o) for o in b.graph.output] == [signature(o) for o in a.graph.output]
    feeds = random_feeds(a)
    largest = largest_value(a, feeds)
    for ref, new in zip(run(a, feeds), run(b, feeds), strict=True):
        assert new.dtype == ref.dtype
        np.testing.assert_allclose(new, ref, rtol=0, atol=1e-6 + 1e-4 * largest)


def largest_value(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    del everything.graph.output[:]
    names = [name for node in model.graph.node for name in node.output]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return max(float(np.abs(array).max(initial=0)) for array in run(everything, feeds))


def test_presets_are_among_what_is_tested() -> None:
    presets = [p for name in KEEPING for p in parse_pipeline(name).passes if isinstance(p, Preset)]
    assert presets
