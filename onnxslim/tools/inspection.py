"""Read the signature, operators, weights and sizes of a model file, for `onnxslim inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.energy import estimate_energy
from onnxslim.details import Energy
from onnxslim.graph.counts import constants_of
from onnxslim.graph.ir import Constant, to_onnx_dtype, walk_graphs
from onnxslim.io.model import Model
from onnxslim.lowering.obstacles import obstacles
from onnxslim.pipeline.stats import measure_stats
from onnxslim.pipeline.targets import TargetEngine, targets
from onnxslim.report import Stats

_MAX = 5


@dataclass(frozen=True)
class Port:
    """An input or output of a model, or one of its weights; `dtype` and `shape` as ONNX says."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class WeightSummary:
    """All weights of one element type."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class TargetFit:
    """What an engine does not take of a model, a text for each node or tensor.

    Attributes:
        replaced: what `retarget` writes in another form, as a rule.
        staying: what nothing replaces.
    """

    replaced: tuple[str, ...] = ()
    staying: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """The contents of a model file.

    Attributes:
        path: None for a model given in memory.
        opsets: opset version by domain; the standard domain is `ai.onnx`.
        operators: number of nodes by operator, bodies of If, Loop and Scan included; operators of
            other domains are `domain.Name`.
        functions: number of nodes of each local function, by `domain.Name`.
        largest: the largest weights, with their size in bytes.
        external: names of the external data files.
        packed_bytes: size of the packed file; None for an .onnx file.
        energy: for one sample, by arithmetic from operations and bytes; see `analysis.energy`.
        targets: what stands in the way of each engine, by the name of the target.
    """

    path: Path | None
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    operators: Mapping[str, int]
    functions: Mapping[str, int]
    weights: tuple[WeightSummary, ...]
    largest: tuple[tuple[Port, int], ...]
    external: tuple[str, ...]
    metadata: Mapping[str, str]
    stats: Stats
    packed_bytes: int | None = None
    energy: Energy | None = None
    targets: Mapping[str, TargetFit] = field(default_factory=dict)


def inspect_model(model: Model) -> Inspection:
    """Inspect a model as it was read."""
    stats = replace(measure_stats(model), file_bytes=model.origin.file_bytes)
    constants = _all_constants(model.graph)
    shell = model.shell
    return Inspection(
        path=model.origin.path,
        sha256=model.origin.sha256,
        inputs=tuple(map(_port, model.graph.inputs)),
        outputs=tuple(map(_port, model.graph.outputs)),
        opsets={item.domain or "ai.onnx": item.version for item in shell.opset_import},
        ir_version=shell.ir_version,
        producer=f"{shell.producer_name} {shell.producer_version}".strip(),
        operators=_operators(model.graph),
        functions=_functions(shell.functions or model.graph.local_functions),
        weights=_weights(constants),
        largest=_largest(constants),
        external=tuple(item.name for item in model.origin.external),
        metadata={item.key: item.value for item in shell.metadata_props},
        stats=stats,
        packed_bytes=model.origin.packed_bytes,
        energy=estimate_energy(model.graph),
        targets={name: _fit(model, target) for name, target in targets().items()},
    )


def _fit(model: Model, target: TargetEngine) -> TargetFit:
    found = list(obstacles(model.graph, target))
    return TargetFit(
        tuple(str(item) for item in found if item.is_replaceable),
        tuple(str(item) for item in found if not item.is_replaceable),
    )


def _all_constants(graph: gs.Graph) -> list[Constant]:
    found = {id(c): c for nested in walk_graphs(graph) for c in constants_of(nested)}
    return list(found.values())


def _port(tensor: gs.Tensor) -> Port:
    shape = None if tensor.shape is None else tuple(tensor.shape)
    if tensor.dtype is None:
        info = getattr(tensor, "info", None)
        return Port(tensor.name, _kind(info.type) if info is not None else "unknown", shape)
    return Port(tensor.name, _type_name(np.dtype(tensor.dtype)), shape)


def _kind(proto: onnx.TypeProto) -> str:
    """The name of a type that is no dense tensor, such as `sequence(float)`."""
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return f"{kind.removesuffix('_type')}({_kind(getattr(proto, kind).elem_type)})"
    if kind == "map_type":
        key = onnx.TensorProto.DataType.Name(proto.map_type.key_type).lower()
        return f"map({key}, {_kind(proto.map_type.value_type)})"
    if kind in ("tensor_type", "sparse_tensor_type"):
        element = onnx.TensorProto.DataType.Name(getattr(proto, kind).elem_type).lower()
        return element if kind == "tensor_type" else f"sparse({element})"
    return "unknown"


def _type_name(dtype: np.dtype[np.generic]) -> str:
    return str(onnx.TensorProto.DataType.Name(to_onnx_dtype(dtype))).lower()


def _operators(graph: gs.Graph) -> dict[str, int]:
    counts = Counter(
        node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}.{node.op}"
        for nested in walk_graphs(graph)
        for node in nested.nodes
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _functions(functions: Iterable[onnx.FunctionProto]) -> dict[str, int]:
    return {f"{item.domain}.{item.name}": len(item.node) for item in functions}


def _weights(constants: Iterable[Constant]) -> tuple[WeightSummary, ...]:
    groups: dict[str, list[Constant]] = {}
    for constant in constants:
        groups.setdefault(_type_name(np.dtype(constant.dtype)), []).append(constant)
    found = [
        WeightSummary(dtype, len(group), sum(c.size for c in group), sum(c.nbytes for c in group))
        for dtype, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda item: (-item.bytes, item.dtype)))


def _largest(constants: Iterable[Constant]) -> tuple[tuple[Port, int], ...]:
    ranked = sorted(constants, key=lambda constant: (-constant.nbytes, constant.name))
    return tuple((_port(constant), constant.nbytes) for constant in ranked[:_MAX])
