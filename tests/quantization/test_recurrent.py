"""LSTM on integers, held against onnxruntime's own in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import normal, output_error
from recurrent_nets import HIDDEN, SHAPE, WIDTH, recurrent_net

from onnxslim.graph.ir import Node
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.recurrent import direction_codes, objection_to_lstm, to_dynamic_lstm
from onnxslim.quantization.rules import rule_of
from onnxslim.quantization.weight_scales import PerTensor, WeightForm

X = normal(*SHAPE, seed=9)
# 7 bits: nothing saturates on any processor
REDUCED = WeightForm(GridForm(np.dtype(np.int8), symmetric=True, reduced=True))
UNSIGNED = WeightForm(GridForm(np.dtype(np.uint8), symmetric=True))


def loaded(source: onnx.ModelProto) -> tuple[Model, Node]:
    model = Model.load(source)
    infer_shapes(model)
    return model, model.graph.nodes[0]


def on_integers(source: onnx.ModelProto, form: WeightForm = REDUCED) -> Model:
    model, node = loaded(source)
    rewriter = Rewriter(model.graph)
    to_dynamic_lstm(rewriter, node, form)
    rewriter.result()
    return model


@pytest.mark.parametrize(
    "source",
    [
        recurrent_net(),
        recurrent_net("reverse"),
        recurrent_net("bidirectional"),
        recurrent_net(bias=False),
        recurrent_net(lengths=True),
        recurrent_net(initial=True),
        recurrent_net(peephole=True),
        recurrent_net(clip=0.5),
        recurrent_net(activations=["Sigmoid", "Relu", "Tanh"]),
        recurrent_net("bidirectional", lengths=True, initial=True, peephole=True),
    ],
)
@pytest.mark.parametrize("form", [REDUCED, UNSIGNED, WeightForm(REDUCED.grid, PerTensor())])
def test_an_lstm_on_integers_is_near_the_one_in_float(
    source: onnx.ModelProto, form: WeightForm
) -> None:
    model = on_integers(source, form)
    onnx.checker.check_model(model.to_proto())
    assert [node.op for node in model.graph.nodes] == ["DynamicQuantizeLSTM"]
    for name in ("y", "h", "c"):
        assert 0 < output_error(source, model, X, name) < 0.05**2


def test_codes_are_turned_and_have_a_scale_for_each_row() -> None:
    weight = normal(2, 4 * HIDDEN, WIDTH)
    codes, scale, zero_point = direction_codes(weight, UNSIGNED).values()
    assert codes.shape == (2, WIDTH, 4 * HIDDEN)
    assert scale.shape == zero_point.shape == (2, 4 * HIDDEN)
    steps = codes.astype(int) - zero_point.astype(int)[:, None]
    restored = (steps * scale[:, None]).transpose(0, 2, 1)
    assert np.abs(restored - weight).max() <= scale.max() / 2 * 1.001
    whole = direction_codes(weight, WeightForm(REDUCED.grid, PerTensor()))
    assert whole["scale"].shape == (2,)


def test_the_domain_of_the_operator_is_imported_once() -> None:
    model = on_integers(recurrent_net())
    domains = [entry.domain for entry in model.to_proto().opset_import]
    assert sorted(domains) == ["", "com.microsoft"]


def test_a_batch_that_comes_first_has_no_kernel() -> None:
    _, node = loaded(recurrent_net())
    node.attrs["layout"] = 1
    assert "batch first" in (objection_to_lstm(node) or "")


def test_weights_that_are_not_finite_stay_float() -> None:
    model, node = loaded(recurrent_net())
    weight = node.inputs[1].values.copy()
    weight[0, 0, 0] = np.inf
    node.inputs[1].values = weight
    assert "not finite" in (objection_to_lstm(node) or "")
    assert model.graph.nodes[0] is node


def test_weights_of_the_caller_stay_float() -> None:
    source = recurrent_net()
    (weight,) = (tensor for tensor in source.graph.initializer if tensor.name == "w")
    source.graph.initializer.remove(weight)
    source.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, list(weight.dims)))
    _, node = loaded(source)
    assert "computed at run time" in (objection_to_lstm(node) or "")


def test_gru_is_declined_with_the_reason() -> None:
    _, node = loaded(recurrent_net(op="GRU"))
    assert "no integer kernel for GRU" in str(rule_of(node))
