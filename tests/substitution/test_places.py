"""Where a block fits, and how a run of convolutions reads its input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import net, node, normal, outputs

from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.substitution.measuring import patches_at
from onnxslim.substitution.places import BlockPlace, places_of

pytestmark = pytest.mark.slow


def found(source: onnx.ModelProto, most: int = 1) -> tuple[list[BlockPlace], dict[str, str]]:
    places, skips = places_of(Rewriter(Model.load(source).graph), most)
    return places, {skip.node: skip.why for skip in skips}


def chain(*kernels: int, stride: int = 1) -> onnx.ModelProto:
    """Convolutions of 4 channels with BatchNormalization and Relu between."""
    nodes, weights, last = [], {}, "x"
    for number, size in enumerate(kernels):
        end = number == len(kernels) - 1
        name = "y" if end else f"c{number}"
        weights[f"w{number}"] = normal(4, 4, size, size, seed=number)
        pads = [size // 2] * 4
        strides = [stride] * 2
        nodes.append(node("Conv", [last, f"w{number}"], name, pads=pads, strides=strides))
        if end:
            break
        weights |= {f"{part}{number}": np.ones(4, np.float32) for part in "sbmv"}
        scales = [f"{part}{number}" for part in "sbmv"]
        nodes.append(node("BatchNormalization", [name, *scales], f"n{number}"))
        nodes.append(node("Relu", [f"n{number}"], f"r{number}"))
        last = f"r{number}"
    return net(nodes, weights, ["N", 4, 16, 16])


def test_each_convolution_is_a_place() -> None:
    places, _ = found(chain(3, 3, 1))
    assert [place.name for place in places] == ["c0", "c1"]


def test_a_run_has_what_lies_between() -> None:
    (place,), _ = found(chain(3, 3), most=2)
    assert [n.op for n in place.nodes] == ["Conv", "BatchNormalization", "Relu", "Conv"]
    assert place.cell.kernel == (5, 5)
    assert place.cell.may_add_input


def test_a_long_chain_is_cut_into_runs() -> None:
    places, _ = found(chain(3, 3, 3, 3, 3), most=2)
    assert [[la.name for la in place.layers] for place in places] == [
        ["c0", "c1"],
        ["c2", "c3"],
        ["y"],
    ]


def test_a_run_ends_where_another_node_reads_along() -> None:
    source = chain(3, 3)
    source.graph.node.append(node("Relu", ["r0"], "other"))
    source.graph.output.append(onnx.ValueInfoProto(name="other"))
    source.graph.output[-1].type.CopyFrom(source.graph.output[0].type)
    source = onnx.shape_inference.infer_shapes(source)
    places, _ = found(source, most=2)
    assert [len(place.layers) for place in places] == [1, 1]


@st.composite
def convs(draw: st.DrawFn) -> tuple[int, ...]:
    """Kernel, stride, dilation and pads of one axis."""
    size = draw(st.integers(1, 4))
    pads = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return size, draw(st.integers(1, 2)), draw(st.integers(1, 2)), *pads


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(convs(), min_size=2, max_size=3), st.integers(20, 27))
def test_a_run_reads_what_its_convolutions_read(every: list[tuple[int, ...]], size: int) -> None:
    """Away from pads, the one kernel that a run of linear convolutions makes returns the same."""
    nodes, weights, last = [], {}, "x"
    for number, (kernel, stride, dilation, *pads) in enumerate(every):
        name = "y" if number == len(every) - 1 else f"c{number}"
        weights[f"w{number}"] = normal(2, 2, kernel, seed=number)
        attrs = {"strides": [stride], "dilations": [dilation], "pads": pads}
        nodes.append(node("Conv", [last, f"w{number}"], name, **attrs))
        last = name
    source = net(nodes, weights, ["N", 2, size])
    places, _ = found(source, most=3)
    if not places:
        assert all(kernel == 1 for kernel, *_ in every)
        return
    if len(places) != 1 or len(places[0].layers) != len(every):
        return
    (place,) = places
    x = np.random.default_rng(0).standard_normal((3, 2, size)).astype(np.float32)
    y = outputs(source, x)["y"]
    # an impulse at a position that the patch of an output does not have leaves this output alone
    at = y.shape[2] // 2
    index = (np.zeros(1, int), np.array([at]))
    numbers = np.arange(1.0, size + 1).reshape(1, 1, -1)
    read = patches_at(numbers, y.shape[2:], place.patches, index)
    outside = np.setdiff1d(np.arange(1, size + 1), read.reshape(-1))
    changed = x.copy()
    changed[:, :, outside - 1] += 5
    np.testing.assert_allclose(outputs(source, changed)["y"][:, :, at], y[:, :, at], rtol=1e-5)
    assert read.shape[1] == place.cell.kernel[0]


def test_why_a_convolution_is_no_place() -> None:
    nodes = [
        node("Conv", ["x", "p"], "point"),
        node("Conv", ["x", "d"], "depthwise", group=4),
        node("Conv", ["x", "w"], "first", pads=[1, 1, 1, 1]),
        node("Conv", ["first", "w"], "second", pads=[1, 1, 1, 1]),
    ]
    weights = {"p": normal(4, 4, 1, 1), "d": normal(4, 1, 3, 3), "w": normal(4, 4, 3, 3)}
    source = net(nodes, weights, ["N", 4, 8, 8], outputs=["point", "depthwise", "second"])
    places, whys = found(source)
    assert places == []
    assert whys == {
        "point": "its kernel has one position",
        "depthwise": "each of its groups has a single input or a single output",
        "first": "its weight is also used by `second`",
        "second": "its weight is also used by `first`",
    }


def test_automatic_pads_make_no_run() -> None:
    source = chain(3, 3)
    for item in source.graph.node:
        if item.op_type == "Conv":
            kept = [a for a in item.attribute if a.name != "pads"]
            del item.attribute[:]
            item.attribute.extend(kept)
            item.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    places, whys = found(source, most=2)
    assert places == []
    assert "auto_pad" in whys["y"]
    assert len(found(source)[0]) == 2


def test_geometry_of_an_empty_pad_list() -> None:
    (place,), _ = found(net([node("Conv", ["x", "w"], "y")], {"w": normal(4, 4, 3)}, ["N", 4, 9]))
    assert place.patches == ConvPatches(1, (3,), (1,), (1,), (0, 0))
    assert place.cell.center is None
