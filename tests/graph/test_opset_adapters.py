"""Every operator whose form or meaning changed, at each old opset, run before and after."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from cases import case
from onnx import TensorProto, helper, numpy_helper

from onnxslim.errors import NotApplicable
from onnxslim.graph.opset import COMPLETE, LATEST, OLDEST, raise_opset
from onnxslim.graph.opset_adapters import ADAPTERS
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import run

MAP = (2, 4, 7, 9)
Arrays = dict[str, np.ndarray]


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def longs(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def one_node(
    op: str,
    opset: int,
    x: np.ndarray,
    operands: Arrays | None = None,
    outputs: int = 1,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node that reads input `x` and constant `operands`."""
    operands = operands or {}
    names = [f"y{number}" for number in range(outputs)]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *operands], names, name="it", **attrs)],
        "one",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info(name, kind, x.shape) for name in names],
        [numpy_helper.from_array(array, name) for name, array in operands.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    _declare_outputs(model)
    return model


def _declare_outputs(model: onnx.ModelProto) -> None:
    """Types as inferred, where they are; ranks as well."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for info in plain.graph.output:
        info.ClearField("type")
    inferred = onnx.shape_inference.infer_shapes(plain)
    for info, found in zip(model.graph.output, inferred.graph.output, strict=True):
        if found.type.tensor_type.HasField("shape"):
            info.CopyFrom(found)


def raised(source: onnx.ModelProto, target: int) -> onnx.ModelProto:
    model = Model.load(source)
    infer_shapes(model)
    raise_opset(model.graph, target)
    result = model.to_proto()
    onnx.checker.check_model(result)
    assert list(result.graph.input) == list(source.graph.input)
    assert list(result.graph.output) == list(source.graph.output)
    return result


def assert_raised_alike(source: onnx.ModelProto, x: np.ndarray, last: int = LATEST) -> None:
    """The model gives the same bits at every later opset, onnxruntime's optimisations off."""
    reference = run(source, {"x": x})
    for target in range(source.opset_import[0].version + 1, last + 1):
        with case("raised to", target):
            found = run(raised(source, target), {"x": x})
            for old, new in zip(reference, found, strict=True):
                np.testing.assert_array_equal(new, old)
                assert new.dtype == old.dtype


# ------------------------------------------------------------------- operands


def sampled(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operand_cases() -> Iterator[tuple[str, range, dict[str, Any]]]:
    """Operator, the opsets of the old form, and attributes."""
    for bounds in ({}, {"min": -0.5}, {"max": 0.25}, {"min": 0.0, "max": 6.0}):
        yield "Clip", range(7, 11), bounds
    for mode in ("constant", "reflect", "edge"):
        pads = [0, 0, 1, 2, 0, 0, 2, 1]
        yield "Pad", range(7, 11), {"pads": pads, "mode": mode, "value": -1.5}
        yield "Pad", range(7, 11), {"pads": pads, "mode": mode}
    yield "Pad", range(7, 11), {"pads": [0, 0, -1, 2, 0, 0, 0, -2]}
    yield "Slice", range(7, 10), {"starts": [1, -3], "ends": [2**31, -1]}
    yield "Slice", range(7, 10), {"starts": [0, 1], "ends": [9, 3], "axes": [3, 1]}
    yield "TopK", range(7, 10), {"k": 3, "axis": 3}
    yield "Squeeze", range(7, 13), {}
    yield "Unsqueeze", range(7, 13), {"axes": [0, 3]}
    yield "Unsqueeze", range(11, 13), {"axes": [-1]}
    yield "Split", range(7, 13), {"axis": 1}
    yield "Split", range(7, 13), {"axis": 3, "split": [2, 7]}
    for axes in ({}, {"axes": [1, 3]}, {"axes": [2], "keepdims": 0}):
        yield "ReduceSum", range(7, 13), axes
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
            yield f"Reduce{kind}", range(7, 18), axes
    yield "ReduceMean", range(11, 18), {"axes": [-1, -2]}
    yield "Dropout", range(7, 12), {"ratio": 0.3}
    yield "Dropout", range(7, 12), {}


@pytest.mark.parametrize(("op", "opsets", "attrs"), list(operand_cases()), ids=str)
def test_operands_that_were_attributes(op: str, opsets: range, attrs: dict[str, Any]) -> None:
    x = sampled(*MAP)
    if op == "Squeeze":
        x = x[:, :1, :, :1]
    if op.startswith("ReduceLog"):
        x = np.abs(x)
    outputs = 2 if op in ("Split", "TopK") else 1
    for opset in opsets:
        with case("opset", opset):
            assert_raised_alike(one_node(op, opset, x, outputs=outputs, **attrs), x)


def test_a_clip_has_bounds_of_the_type_of_its_data() -> None:
    result = raised(one_node("Clip", 10, sampled(3).astype(np.float16), min=-1.0), 13)
    assert [tensor.data_type for tensor in result.graph.initializer] == [TensorProto.FLOAT16]


def test_equal_operands_are_one_constant() -> None:
    source = one_node("Unsqueeze", 11, sampled(3), axes=[0])
    source.graph.node.append(helper.make_node("Unsqueeze", ["x"], ["z"], axes=[0]))
    source.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3]))
    assert len(raised(source, 13).graph.initializer) == 1


# ------------------------------------------------------------------- meanings


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("attrs", [{}, {"axis": 0}, {"axis": 2}, {"axis": 3}])
def test_softmax_over_all_axes_from_one_on(op: str, attrs: dict[str, int]) -> None:
    x = sampled(*MAP)
    for opset in range(7, 13):
        with case("opset", opset):
            assert_raised_alike(one_node(op, opset, x, **attrs), x)


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_softmax_from_an_axis_counted_from_the_end(axis: int) -> None:
    x = sampled(*MAP)
    assert_raised_alike(one_node("Softmax", 11, x, axis=axis), x)


def test_softmax_of_open_sizes() -> None:
    x = sampled(*MAP)
    source = one_node("Softmax", 11, x, axis=1)
    for info in (*source.graph.input, *source.graph.output):
        for size in info.type.tensor_type.shape.dim:
            size.Clear()
    assert_raised_alike(source, x)
    assert "Shape" in [node.op_type for node in raised(source, 13).graph.node]


def test_softmax_over_the_last_axis_stays_one_node() -> None:
    result = raised(one_node("Softmax", 11, sampled(2, 5)), 13)
    assert [(node.op_type, node.attribute[0].i) for node in result.graph.node] == [("Softmax", 1)]


SCALES = (0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.3, 1.37, 1.7, 2.0, 2.5, 3.0)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("size", [(7, 9), (8, 8), (1, 5)])
def test_resize_and_upsample_have_asymmetric_coordinates(mode: str, size: tuple[int, int]) -> None:
    x = sampled(2, 3, *size)
    pairs = [(s, s) for s in SCALES] + [(0.5, 2.5), (1.7, 0.4), (1.0, 0.6), (1.3, 1.0)]
    for scales in pairs:
        if min(size[0] * scales[0], size[1] * scales[1]) < 1:
            continue
        full = floats(1, 1, *scales)
        with case("Resize", scales):
            assert_raised_alike(one_node("Resize", 10, x, {"s": full}, mode=mode), x)
        if min(scales) < 1:
            continue
        with case("Upsample", scales):
            assert_raised_alike(one_node("Upsample", 9, x, {"s": full}, mode=mode), x)
            values = [float(item) for item in full]
            assert_raised_alike(one_node("Upsample", 7, x, mode=mode, scales=values), x)


def test_other_resizes_stay_what_they_are() -> None:
    x = sampled(2, 3, 7, 9)
    empty = floats()
    for opset in range(11, 19):
        for mode in ("nearest", "linear", "cubic"):
            for coordinates in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
                with case(opset, mode, coordinates):
                    operands = {"roi": empty, "s": floats(1, 1, 1.3, 0.6)}
                    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
                    assert_raised_alike(one_node("Resize", opset, x, operands, **attrs), x)


def test_roi_align_keeps_its_pixels() -> None:
    x = sampled(1, 2, 8, 8)
    operands = {
        "rois": np.array([[0.4, 0.8, 5.1, 6.3], [1, 1, 7, 4]], np.float32),
        "batch": longs(0, 0),
    }
    for opset in range(10, 16):
        for mode in ("avg", "max"):
            attrs = {"mode": mode, "output_height": 3, "output_width": 2, "sampling_ratio": 2}
            with case(opset, mode):
                assert_raised_alike(one_node("RoiAlign", opset, x, operands, **attrs), x, COMPLETE)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_grid_sample_has_new_names_of_modes(mode: str) -> None:
    x = sampled(1, 2, 5, 5)
    operands = {"grid": np.random.default_rng(1).uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)}
    for opset in range(16, 20):
        assert_raised_alike(one_node("GridSample", opset, x, operands, mode=mode), x)


def test_scatter_is_called_scatter_elements() -> None:
    x = sampled(3, 3)
    operands = {"i": np.array([[0, 2, 1]], np.int64), "u": floats(7, 8, 9)[None]}
    for opset in (9, 10):
        assert_raised_alike(one_node("Scatter", opset, x, operands, axis=0), x)


def test_group_normalization_reads_an_operand_for_each_channel() -> None:
    x = sampled(2, 6, 4)
    operands = {"scale": floats(1.5, -2), "bias": floats(0.25, 3)}
    source = one_node("GroupNormalization", 18, x, operands, num_groups=2)
    result = raised(source, 21)
    sizes = {tuple(tensor.dims) for tensor in result.graph.initializer}
    assert sizes == {(6,)}
    shaped = x.reshape(2, 2, -1)
    centred = shaped - shaped.mean(-1, keepdims=True)
    expected = (centred / np.sqrt(shaped.var(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    each = [np.repeat(operands[name], 3)[:, None] for name in ("scale", "bias")]
    (found,) = run(result, {"x": x})
    np.testing.assert_allclose(found, expected * each[0] + each[1], rtol=1e-5, atol=1e-5)


def test_a_discrete_fourier_transform_has_its_axis_as_input() -> None:
    x = sampled(1, 8, 4, 1)
    for attrs in ({}, {"axis": 2}, {"axis": 1, "onesided": 1}):
        assert_raised_alike(one_node("DFT", 17, x, **attrs), x)


NORMALIZATION = {"s": floats(1, 2), "b": floats(0, 1), "m": floats(0.5, 0), "v": floats(1, 2)}


@pytest.mark.parametrize("opset", range(7, 15))
def test_batch_normalization_for_each_channel(opset: int) -> None:
    x = sampled(2, 2, 3)
    attrs = {"spatial": 1} if opset < 9 else {}
    assert_raised_alike(one_node("BatchNormalization", opset, x, NORMALIZATION, **attrs), x)


def test_an_average_pool_only_rounds_otherwise() -> None:
    """The one operator whose kernel changes: onnxruntime sums in another order from opset 19 on."""
    x = sampled(1, 2, 9, 9)
    for ceil_mode in (0, 1):
        for counted in (0, 1):
            attrs = {"ceil_mode": ceil_mode, "count_include_pad": counted, "strides": [2, 2]}
            source = one_node("AveragePool", 10, x, kernel_shape=[4, 4], pads=[1, 1, 2, 2], **attrs)
            (old,), (new,) = run(source, {"x": x}), run(raised(source, 21), {"x": x})
            np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------- declined


def declined(source: onnx.ModelProto, why: str, target: int = LATEST) -> None:
    model = Model.load(source)
    infer_shapes(model)
    before = model.to_proto()
    with pytest.raises(NotApplicable, match=why):
        raise_opset(model.graph, target)
    assert model.to_proto() == before


def test_a_nearest_resize_of_unknown_scales_is_declined() -> None:
    source = one_node("Resize", 10, sampled(1, 1, 4, 4), {"s": floats(1, 1, 2, 2)})
    del source.graph.initializer[:]
    source.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [4]))
    declined(source, r"`y0` \(Resize\): its scales are computed at run time")


def test_coordinates_that_are_gone_are_declined() -> None:
    operands = {"roi": floats(), "s": floats(1, 1, 2, 2)}
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}
    declined(one_node("Resize", 11, sampled(1, 1, 4, 4), operands, **attrs), "tf_half_pixel")


def test_statistics_for_each_position_are_declined() -> None:
    x = sampled(2, 2)
    declined(one_node("BatchNormalization", 7, x, NORMALIZATION, spatial=0), "spatial=0")


def test_a_batch_normalization_that_trains_is_declined() -> None:
    x = sampled(2, 2)
    source = one_node("BatchNormalization", 9, x, NORMALIZATION, outputs=5)
    declined(source, "outputs of training")
    assert raised(source, 13).opset_import[0].version == 13


def test_a_mask_that_is_used_is_declined() -> None:
    """It was of the type of the data below opset 10, and false where a value stays below 12."""
    for opset in (7, 10, 11):
        with case("opset", opset):
            declined(one_node("Dropout", opset, sampled(3), outputs=2), "its mask is used")


def test_an_attribute_of_no_opset_is_declined() -> None:
    source = one_node("Relu", 11, sampled(3))
    source.graph.node[0].attribute.append(helper.make_attribute("consumed_inputs", [0]))
    declined(source, "no attribute `consumed_inputs`")


def test_an_operator_of_no_opset_is_declined() -> None:
    source = one_node("Relu", 7, sampled(3))
    source.graph.node[0].op_type = "ParametricSoftplus"
    declined(source, "has no operator ParametricSoftplus")


# ------------------------------------------------------------------- nothing is forgotten


def changed_forms() -> set[tuple[str, int]]:
    """Operators and opsets at which a node of the old form is none of the new form, or may not be.

    That is: an attribute is gone or has another default, an input moved or must be given now, or
    the operator is deprecated.
    """
    by_name: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            by_name.setdefault(schema.name, []).append(schema)
    found = set()
    for name, schemas in by_name.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for old, new in pairwise(schemas):
            if OLDEST < new.since_version <= LATEST and not _takes(new, old):
                found.add((name, new.since_version))
    return found


def _takes(new: onnx.defs.OpSchema, old: onnx.defs.OpSchema) -> bool:
    kept = all(
        name in new.attributes and new.attributes[name].default_value == attribute.default_value
        for name, attribute in old.attributes.items()
    )
    required = {name for name, attribute in new.attributes.items() if attribute.required}
    kept = kept and required <= old.attributes.keys()
    kept = kept and new.min_input <= old.min_input and new.max_input >= old.max_input
    kept = kept and new.min_output <= old.min_output and new.max_output >= old.max_output
    before = [item.name for item in old.inputs]
    return (
        kept and [item.name for item in new.inputs][: len(before)] == before and not new.deprecated
    )


def test_every_changed_form_has_an_adapter() -> None:
    forms = changed_forms()
    assert {("Clip", 11), ("Softmax", 13), ("Upsample", 10), ("Split", 13)} <= forms
    assert forms - ADAPTERS.keys() == set()


def test_adapters_belong_to_opsets_in_which_the_operator_changed() -> None:
    known = {
        (schema.name, schema.since_version)
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == ""
    }
    assert ADAPTERS.keys() <= known
