"""Give the light graphs of the onnx wheel seeded weights.

The wheel ships the real graphs of nine classic networks with their weights taken out: a weight is
a `ConstantOfShape` node fed by a `<name>__SHAPE` initializer, and only vectors of up to 64 values
were kept. Random filters do not go with trained batch statistics, so every weight is drawn anew
here, by the role it plays:

| role | values |
|---|---|
| Conv and Gemm weight | normal, standard deviation `sqrt(2 / fan_in)` (He et al., 2015) |
| bias, BatchNormalization bias and mean, a constant `Add` | normal, standard deviation 0.1 |
| BatchNormalization scale and variance, a constant `Mul` | uniform in [0.8, 1.2] |
| scale of a BatchNormalization before a `Sum` | the same, times 0.3: sums do not grow |

The last Conv or Gemm is scaled once more, by a gain per network that puts the deviation of the
logits near 2: a softmax that is neither flat nor one-hot. The generator of a weight is seeded by
the weight's name, so order does not matter.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

IR_VERSION = 8  # the one of opset 17; below 4 every initializer would have to be a graph input too
RESIDUAL_SCALE = 0.3
SMALL = 0.1

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Role:
    """What a weight is to the node that uses it."""

    op: str
    position: int
    transposed: bool
    is_damped: bool  # of a BatchNormalization before a Sum
    is_head: bool  # the last layer's weight


def build(file: str, *, opset: int, head_gain: float) -> onnx.ModelProto:
    """Return the light graph `file` at `opset`, its weights as initializers that are not inputs."""
    light = onnx.load(Path(onnx.__file__).parent / "backend/test/data/light" / file)
    model = version_converter.convert_version(light, opset)
    model.ir_version = IR_VERSION
    graph = model.graph
    roles = _roles(graph)
    filled = [
        numpy_helper.from_array(_values(name, shape, roles[name], head_gain), name)
        for name, shape in _weight_shapes(graph)
        if name in roles
    ]
    _replace(graph, filled)
    return model


def _weight_shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    shapes = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name, tuple(tensor.dims)
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            dims = numpy_helper.to_array(shapes[node.input[0]])
            yield node.output[0], tuple(int(size) for size in dims)


def _roles(graph: onnx.GraphProto) -> dict[str, Role]:
    """Map every tensor to its role at its first consumer, looking through Unsqueeze and Reshape."""
    summed = {name for node in graph.node if node.op_type == "Sum" for name in node.input}
    head = [node.output[0] for node in graph.node if node.op_type in {"Conv", "Gemm"}][-1]
    roles: dict[str, Role] = {}
    for node in reversed(graph.node):
        if node.op_type in {"Unsqueeze", "Reshape"}:
            if node.output[0] in roles:
                roles[node.input[0]] = roles[node.output[0]]
            continue
        transposed = any(attr.name == "transB" and attr.i for attr in node.attribute)
        is_damped = node.op_type == "BatchNormalization" and node.output[0] in summed
        for position, name in enumerate(node.input):
            is_head = node.output[0] == head
            roles[name] = Role(node.op_type, position, transposed, is_damped, is_head)
    return roles


def _values(name: str, shape: tuple[int, ...], role: Role, head_gain: float) -> FloatArray:
    digest = hashlib.sha256(name.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    match role.op, role.position:
        case ("Conv" | "Gemm", 1):
            gain = head_gain if role.is_head else 1.0
            return _normal(generator, shape, gain * (2 / _fan_in(shape, role)) ** 0.5)
        case ("BatchNormalization", 1):
            return _near_one(generator, shape) * np.float32(RESIDUAL_SCALE if role.is_damped else 1)
        case ("BatchNormalization", 4) | ("Mul", _):
            return _near_one(generator, shape)
        case ("Conv" | "Gemm", 2) | ("BatchNormalization", 2 | 3) | ("Add", _):
            return _normal(generator, shape, SMALL)
    message = f"`{name}`: no values are known for input {role.position} of {role.op}"
    raise ValueError(message)


def _near_one(generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return generator.uniform(0.8, 1.2, shape).astype(np.float32)


def _normal(generator: np.random.Generator, shape: tuple[int, ...], deviation: float) -> FloatArray:
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(deviation)
    return values


def _fan_in(shape: tuple[int, ...], role: Role) -> int:
    if role.op == "Conv":
        return int(np.prod(shape[1:]))  # (C_out, C_in/g, kH, kW)
    return shape[-1] if role.transposed else shape[-2]


def _replace(graph: onnx.GraphProto, filled: list[onnx.TensorProto]) -> None:
    names = {tensor.name for tensor in filled}
    generators = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    dropped = names | {node.input[0] for node in generators}
    kept = [tensor for tensor in graph.initializer if tensor.name not in dropped]
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    constant = dropped | {tensor.name for tensor in kept}
    inputs = [value for value in graph.input if value.name not in constant]
    for field in ("node", "input", "initializer"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.initializer.extend(kept + filled)
