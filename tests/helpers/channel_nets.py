"""Small nets whose channels are cut, and the proof: masking a channel is the same as cutting it.

A net is ONNX text; what it lists without a value (`<float[8,4,3,3] w>`) is a weight, and filled
with seeded random numbers.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxslim.channels.groups import Channels, channel_groups, shrink
from onnxslim.channels.tracing import Member
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import random_feeds, run, signature

Gone = npt.NDArray[np.bool_]

_TOLERANCE = 1e-5  # of the largest output


def net(
    text: str, *, opset: int = 17, ir_version: int = 8, seed: int = 0, checked: bool = True
) -> onnx.ModelProto:
    """A model from the text of a graph, or of a whole model; weights are filled in."""
    if "opset_import" not in text:
        text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    made |= {info.name for info in graph.output}
    for info in [info for info in graph.value_info if info.name not in made]:
        dense = info.type.tensor_type
        array = weights(rng, info.name, [dim.dim_value for dim in dense.shape.dim])
        array = array.astype(helper.tensor_dtype_to_np_dtype(dense.elem_type))
        graph.initializer.append(numpy_helper.from_array(array, info.name))
        graph.value_info.remove(info)
    if checked:
        onnx.checker.check_model(model, full_check=True)
    return model


def conv_net(body: str, weights: str = "", *, opset: int = 17, spatial: int = 8) -> onnx.ModelProto:
    """A Conv `a` of 8 channels, `body` that makes `b`, and a Conv `y` over its channels."""
    text = f"""
    g (float[N,3,{spatial},{spatial}] x) => (float[N,O,H,W] y)
    <float[8,3,3,3] w_first, float[8] b_first {"," if weights else ""} {weights}> {{
      a = Conv <pads = [1,1,1,1]> (x, w_first, b_first)
      {body}
      y = Conv (b, w_last)
    }}"""
    return net(text, opset=opset)


LAST = "float[5,8,1,1] w_last"
"""The weight of `y` in `conv_net` where `b` has 8 channels."""


def weights(rng: np.random.Generator, name: str, shape: list[int]) -> np.ndarray:
    """Random numbers; positive where the name says that they are variances."""
    values = rng.standard_normal(shape)
    return np.abs(values) + 0.5 if re.search("var", name) else values


def follow(source: onnx.ModelProto) -> tuple[Model, Channels]:
    """The model with shapes, and its channels."""
    model = Model.load(source)
    infer_shapes(model)
    return model, channel_groups(model.graph)


def free_channels(source: onnx.ModelProto) -> dict[str, int]:
    """For each layer that writes channels, how many may leave."""
    _, channels = follow(source)
    pinned = channels.units.pinned
    return {
        member.label: int((~pinned[channels.units.of[member.ids]]).sum())
        for member in channels.trace.writers
    }


def reads(source: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """For each group, by its name, the layers that read it."""
    _, channels = follow(source)
    return {group.name: tuple(m.label for m in group.readers) for group in channels.groups}


def writes(source: onnx.ModelProto) -> set[tuple[str, ...]]:
    """The layers of each group."""
    _, channels = follow(source)
    return {tuple(member.label for member in group.writers) for group in channels.groups}


def pins(source: onnx.ModelProto) -> dict[str, int]:
    """Reasons why units must stay, with their number."""
    _, channels = follow(source)
    found: dict[str, int] = {}
    for why in channels.units.pins.values():
        found[why] = found.get(why, 0) + 1
    return found


def some_gone(channels: Channels, rng: np.random.Generator, share: float = 0.5) -> Gone:
    """Units to remove: free ones, equally many of balanced parts, never the last of a tensor."""
    gone = (rng.random(channels.units.count) < share) & ~channels.units.pinned
    while True:
        before = int(gone.sum())
        for parts in channels.units.balances:
            _balance(gone, parts, rng)
        for own in channels.slices:
            if gone[own].all():
                gone[rng.choice(own)] = False
        if int(gone.sum()) == before:
            return gone


def _balance(gone: Gone, parts: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
    """Keep more, until every part loses as many channels as the one that loses fewest."""
    while True:
        lost = (gone[parts] & (parts >= 0)).sum(axis=1)
        if (lost == lost.min()).all():
            return
        part = parts[int(lost.argmax())]
        gone[rng.choice(part[(part >= 0) & gone[part]])] = False


def cut(source: onnx.ModelProto, gone: Gone) -> onnx.ModelProto:
    """The model without some units; its shapes are inferred strictly, its signature is the same."""
    model, channels = follow(source)
    rewriter = Rewriter(model.graph)
    shrink(rewriter, channels, gone)
    rewriter.result()
    result = model.to_proto()
    onnx.checker.check_model(result, full_check=True)
    assert list(map(signature, result.graph.input)) == list(map(signature, source.graph.input))
    assert list(map(signature, result.graph.output)) == list(map(signature, source.graph.output))
    if _inferred(source) is not None:
        _check_shapes(model, result)
    return result


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto | None:
    """Shapes by strict inference, which fails on some valid models (GroupNormalization)."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    except onnx.shape_inference.InferenceError:
        return None


def _check_shapes(model: Model, result: onnx.ModelProto) -> None:
    """What `shrink` wrote on tensors is what inference finds."""
    inferred = _inferred(result)
    assert inferred is not None
    found = {info.name: info.type.tensor_type.shape for info in inferred.value_info}
    for node in model.graph.nodes:
        for tensor in node.outputs:
            if tensor.shape is None or tensor.name not in found:
                continue
            pairs = zip(tensor.shape, found[tensor.name].dim, strict=True)
            for size, dim in pairs:
                if isinstance(size, int) and dim.HasField("dim_value"):
                    assert size == dim.dim_value, (tensor.name, tensor.shape)


def masked(source: onnx.ModelProto, gone: Gone) -> onnx.ModelProto:
    """The model in which what reads the units that are gone takes them for zero."""
    model, channels = follow(source)
    names = gone[channels.units.of]
    for member in channels.trace.readers:
        _zero_columns(member, names)
    result = model.to_proto()
    for node, ids in channels.trace.weightless_readers:
        _zero_operand(result, node.outputs[0].name, np.where(ids < 0, True, ~names[ids]))
    return result


def _zero_columns(member: Member, names: Gone) -> None:
    layer = member.layer
    assert layer is not None
    weight = np.asarray(layer.canonical(), np.float64)
    groups, _, columns = weight.shape
    keeps = np.where(member.ids < 0, True, ~names[member.ids]).reshape(groups, -1)
    taps = columns // keeps.shape[1]
    layer.holder.values = layer.restored(weight * keeps.repeat(taps, axis=1)[:, None, :])


def _zero_operand(model: onnx.ModelProto, output: str, keeps: Gone) -> None:
    """Multiply what a product sums over by zero where it is gone."""
    graph = model.graph
    index = next(i for i, node in enumerate(graph.node) if output in node.output)
    node = graph.node[index]
    dtype = np.float32
    graph.initializer.append(numpy_helper.from_array(keeps.astype(dtype), f"{output}_mask"))
    made = f"{output}_masked"
    graph.node.insert(index, helper.make_node("Mul", [node.input[0], f"{output}_mask"], [made]))
    graph.node[index + 1].input[0] = made


def assert_cut_is_mask(
    source: onnx.ModelProto, gone: Gone, *, feeds: dict[str, np.ndarray] | None = None
) -> None:
    """Outputs of the model without units are those of the model in which they count as zero."""
    inputs = random_feeds(source) if feeds is None else feeds
    expected = run(masked(source, gone), inputs)
    for ref, new in zip(expected, run(cut(source, gone), inputs), strict=True):
        assert new.shape == ref.shape
        scale = float(np.abs(ref).max(initial=0.0))
        np.testing.assert_allclose(new, ref, rtol=0, atol=_TOLERANCE * max(scale, 1e-3))


def check(
    source: onnx.ModelProto, free: dict[str, int] | None = None, *, seeds: int = 3
) -> Channels:
    """Some units can leave, masking is cutting; and `free` channels of each layer may leave."""
    if free is not None:
        assert free_channels(source) == free, pins(source)
    _, channels = follow(source)
    assert channels.units.count
    found = False
    for seed in range(seeds):
        gone = some_gone(channels, np.random.default_rng(seed))
        found |= bool(gone.any())
        assert_cut_is_mask(source, gone)
    assert found, channels.units.pins
    return channels
