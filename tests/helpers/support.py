"""What pass tests share: models from ONNX text, running them, before/after comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.execution import run_pass
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult
from onnxslim.runtime.evaluate import evaluate

CONTEXT = Context(seed=0, evaluate=evaluate)


def parse(text: str, ir_version: int = 8) -> onnx.ModelProto:
    """A model from ONNX text; the `<ir_version, ...>` header may leave the IR version out."""
    if "ir_version" not in text:
        text = re.sub(
            r"<\s*opset_import", f"<ir_version: {ir_version}, opset_import", text, count=1
        )
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


def apply(rewrite: Pass, source: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    """Run one pass alone on a copy of `source`, as the manager does, without verifying."""
    model = Model.load(source)
    infer_shapes(model)
    result = run_pass(rewrite, model, CONTEXT)
    return (model.to_proto() if result.changed else source), result


def assert_rewrites(before: str, rewrite: Pass, after: str) -> PassResult:
    """`rewrite` turns `before` into `after` (text up to tensor names inside), outputs hold."""
    source = parse(before)
    result_model, result = apply(rewrite, source)
    assert canonical(result_model) == canonical(parse(after))
    assert result.changed
    assert_equivalent(source, result_model, rewrite.fidelity)
    return result


def assert_declines(text: str, rewrite: Pass, why: str | None = None) -> PassResult:
    """`rewrite` leaves the model as it is; some skip's reason contains `why`."""
    source = parse(text)
    result_model, result = apply(rewrite, source)
    assert result.changes == ()
    assert canonical(result_model) == canonical(source)
    if why is not None:
        assert any(why in skip.why for skip in result.skips), result.skips
    return result


def assert_equivalent(
    a: onnx.ModelProto, b: onnx.ModelProto, fidelity: Fidelity, seed: int = 0
) -> None:
    """Both models check, have one signature, and give outputs that agree as `fidelity` says."""
    # onnx's own inference refuses sparse initializers, which the standard allows
    onnx.checker.check_model(b, full_check=not b.graph.sparse_initializer)
    assert inputs_of(b) == inputs_of(a)
    assert [signature(o) for o in b.graph.output] == [signature(o) for o in a.graph.output]
    feeds = random_feeds(a, seed)
    for name, ref, new in zip(
        [o.name for o in a.graph.output], run(a, feeds), run(b, feeds), strict=True
    ):
        assert new.dtype == ref.dtype, name
        assert new.shape == ref.shape, name
        if fidelity is Fidelity.EXACT or ref.dtype.kind != "f":
            np.testing.assert_array_equal(new, ref, err_msg=name)
        else:
            finite = ref[np.isfinite(ref)]
            span = float(np.ptp(finite)) if finite.size else 0.0
            atol = 1e-6 + max(1e-4, float(np.finfo(ref.dtype).eps)) * span
            np.testing.assert_allclose(new, ref, rtol=0, atol=atol, err_msg=name)


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `model` in onnxruntime with its optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def random_feeds(model: onnx.ModelProto, seed: int = 0, symbol: int = 3) -> dict[str, np.ndarray]:
    """Seeded inputs; every symbolic dimension has the size `symbol`."""
    rng = np.random.default_rng(seed)
    initializers = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name in initializers:
            continue
        dense = info.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else symbol for d in dense.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(dense.elem_type)
        if dtype.kind == "f":
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[info.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feeds[info.name] = rng.integers(0, 4, shape).astype(dtype)
    return feeds


def inputs_of(model: onnx.ModelProto) -> list[bytes]:
    """The inputs as declared; below IR version 4 initializers are listed there, too."""
    constants = {tensor.name for tensor in model.graph.initializer if model.ir_version < 4}
    return [signature(info) for info in model.graph.input if info.name not in constants]


def signature(info: onnx.ValueInfoProto) -> bytes:
    """Name, type and shape of an input or output."""
    return info.SerializeToString(deterministic=True)


def canonical(model: onnx.ModelProto) -> str:
    """The graph as text with interior names numbered and initializers inlined by value."""
    names: dict[str, str] = {}

    def name(value: str) -> str:
        return names.setdefault(value, f"v{len(names)}") if value else ""

    def graph_lines(graph: onnx.GraphProto, indent: str) -> list[str]:
        for tensor in graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            names[tensor.name] = f"{array.dtype}{list(array.shape)}{array.tolist()}"
        lines = []
        for value in graph.input:
            names[value.name] = value.name
        for value in graph.output:
            names[value.name] = value.name
        for node in graph.node:
            attributes = sorted(node.attribute, key=lambda a: a.name)
            plain = [_attribute(a) for a in attributes if not a.HasField("g")]
            inputs = ", ".join(map(name, node.input))
            outputs = ", ".join(map(name, node.output))
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            lines.append(f"{indent}{outputs} = {op} <{', '.join(plain)}> ({inputs})")
            for attribute in attributes:
                if attribute.HasField("g"):
                    lines.append(f"{indent}  {attribute.name}:")
                    lines += graph_lines(attribute.g, indent + "    ")
        lines.append(f"{indent}return {', '.join(map(name, (o.name for o in graph.output)))}")
        return lines

    return "\n".join(graph_lines(model.graph, ""))


def _attribute(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        return f"{attribute.name}={array.dtype}{list(array.shape)}{array.tolist()}"
    if attribute.type == onnx.AttributeProto.FLOAT:
        return f"{attribute.name}={np.float32(value)!r}"
    return f"{attribute.name}={list(value) if hasattr(value, '__len__') else value}"
