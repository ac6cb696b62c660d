"""No kernel that onnxruntime fuses is lost by `simplify`: sessions are asked before and after."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
from qdq_nets import kernels
from transformer_blocks import SPELLED, Block, Part, biased_product, composed, mixed_norm

from onnxslim.analysis.compound_operators import compounds
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.passes.simplify import Simplify
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.records import Fidelity
from support import CONTEXT, assert_equivalent

OPSETS = (13, 17, 20, 23)
KINDS = {
    "Gelu": "Gelu",
    "BiasGelu": "Gelu",
    "FastGelu": "Gelu",
    "QuickGelu": "QuickGelu",
    "LayerNormalization": "LayerNormalization",
    "SkipLayerNormalization": "LayerNormalization",
    "RMSNormalization": "RMSNormalization",
    "SimplifiedLayerNormalization": "RMSNormalization",
    "SkipSimplifiedLayerNormalization": "RMSNormalization",
}


def simplified(source: onnx.ModelProto) -> Model:
    return PassManager((Simplify(),)).run(Model.load(source), CONTEXT)[0]


def fused(model: Model) -> Counter[str]:
    """How many kernels of each kind a session makes; both kinds of Gelu have one name there."""
    return Counter(KINDS[kernel] for kernel in kernels(model) if kernel in KINDS)


def kernel_count(model: Model) -> int:
    """How many kernels a session makes; a SkipLayerNormalization counts as the two it replaces."""
    found = kernels(model)
    return len(found) + sum(kernel.startswith("Skip") for kernel in found)


def spelled(part: Part, opset: int, seed: int) -> onnx.ModelProto:
    """One operator between two layers."""
    b = Block(opset, seed)
    return b.model(biased_product(b, part(b, biased_product(b, "x"))))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("part", SPELLED)
def test_every_spelling_runs_as_one_kernel_afterwards(part: Part, opset: int) -> None:
    for seed in range(2):
        source = spelled(part, opset, seed)
        result = simplified(source)
        assert fused(result) == {SPELLED[part]: 1}
        assert_equivalent(source, result.to_proto(), Fidelity.CLOSE)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("is_centred", [True, False])
def test_normalizations_of_float16_in_float32_stay_whole(is_centred: bool, opset: int) -> None:
    b = Block(opset)
    source = b.model(mixed_norm(b, "x", is_centred=is_centred))
    kind = "LayerNormalization" if is_centred else "RMSNormalization"
    assert fused(Model.load(source)) == fused(simplified(source)) == {kind: 1}


@pytest.mark.parametrize("part", SPELLED)
def test_a_raised_opset_names_them(part: Part) -> None:
    pipeline = parse_pipeline("raise-opset:to=23,simplify")
    result, _ = PassManager(pipeline.passes).run(Model.load(spelled(part, 13, 0)), CONTEXT)
    assert fused(result) == {SPELLED[part]: 1}
    named = [node.op for node in result.graph.nodes if node.op in KINDS]
    assert named == ([] if SPELLED[part] == "QuickGelu" else [SPELLED[part]])


@pytest.mark.parametrize("part", SPELLED)
def test_the_spellings_that_are_said_to_be_fused_are(part: Part) -> None:
    for seed in range(6):
        model = Model.load(spelled(part, 13, seed))
        found = Counter(item.name for item in compounds(Rewriter(model.graph)))
        assert found == fused(model)


def test_no_composition_loses_a_kernel() -> None:
    for seed in range(16):
        source = composed(OPSETS[seed % 4], seed)
        before, after = Model.load(source), simplified(source)
        assert fused(after) >= fused(before), seed
        assert kernel_count(after) <= kernel_count(before), seed
        assert_equivalent(source, after.to_proto(), Fidelity.CLOSE)
