from __future__ import annotations

from collections import Counter

import onnx
import pytest
from qdq_nets import kernels
from transformer_blocks import Block, layer_norm

from onnxslim.io.model import Model
from onnxslim.passes.convert_residual_sums import ConvertResidualSums
from support import apply, assert_declines, assert_equivalent, parse


def residual(
    shape: str = "N, L, 4", other: str = "N, L, 4", *, opset: int = 17, outputs: str = ""
) -> str:
    """A sum that is normalized."""
    return f"""<opset_import: ["" : {opset}]>
        g (float[{shape}] x, float[{other}] r) => (float[{shape}] y{outputs})
            <float[4] g = {{1, 2, 3, 4}}, float[4] b = {{1, 2, 3, 4}}> {{
            t = Relu (x)
            s = Add (t, r)
            n = LayerNormalization (s, g, b)
            y = Neg (n)
        }}"""


def spelled() -> onnx.ModelProto:
    """A sum that is normalized by several nodes, which onnxruntime fuses with it."""
    for seed in range(20):
        b = Block(13, seed)
        model = b.model(layer_norm(b, b.add("Add", b.add("Relu", "x"), b.add("Neg", "x"))))
        if "SkipLayerNormalization" in kernels(Model.load(model)):
            return model
    raise AssertionError("no spelling is fused")


# ------------------------------------------------------------------------------ fires


def test_onnxruntime_no_longer_fuses_the_sum() -> None:
    source = parse(residual())
    assert "SkipLayerNormalization" in kernels(Model.load(source))  # the reason for the pass
    result, report = apply(ConvertResidualSums(), source)
    assert sorted(kernels(Model.load(result))) == ["LayerNormalization", "Neg", "Relu", "Sum"]
    assert_equivalent(source, result, ConvertResidualSums.fidelity)
    assert [change.node for change in report.changes] == ["s"]


def test_sizes_that_may_be_equal_count() -> None:
    _, report = apply(ConvertResidualSums(), parse(residual(other="M, K, 4")))
    assert report.changed


def test_a_spelled_layer_normalization_counts() -> None:
    result, _ = apply(ConvertResidualSums(), spelled())
    found = Counter(kernels(Model.load(result)))
    assert (found["Sum"], found["LayerNormalization"]) == (1, 1)


# ------------------------------------------------------------------------------ declines


@pytest.mark.parametrize(
    ("shape", "other"), [("N, 4", "N, 4"), ("N, L, 4", "1, L, 4"), ("N, L, 4", "4")]
)
def test_what_onnxruntime_does_not_fuse_stays(shape: str, other: str) -> None:
    text = residual(shape, other)
    assert "SkipLayerNormalization" not in kernels(Model.load(parse(text)))
    assert_declines(text, ConvertResidualSums(), "does not fuse")


def test_a_sum_that_is_returned_stays() -> None:
    assert_declines(residual(outputs=", float[N, L, 4] s"), ConvertResidualSums())


def test_a_sum_that_nothing_normalizes_stays() -> None:
    text = residual().replace("LayerNormalization (s, g, b)", "Relu (s)")
    assert_declines(text, ConvertResidualSums())
