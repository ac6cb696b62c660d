"""Remove what exporters write about nodes and values, and nothing reads.

Rewrite:
    ```
    <opset_import: ["" : 17, "d" : 1]>
    before (float[N] x) => (float[N] y) {
        y = d.Block (x)
    }
    <domain: "d", opset_import: ["" : 17], doc_string: "net.py, line 88, in forward: y = -x">
    Block (x) => (y) { y = Neg (x) }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "d" : 1]>
    after (float[N] x) => (float[N] y) {
        y = d.Block (x)
    }
    <domain: "d", opset_import: ["" : 17]>
    Block (x) => (y) { y = Neg (x) }
    ```
    In the same way, doc strings and entries of `metadata_props` of nodes, initializers, values and
    bodies are removed: stack traces, names of Python modules, versions of operators. Whoever
    debugs an export keeps them with `simplify:skip=strip-metadata`, or some of them by their keys
    with `strip-metadata:keep=namespace+pkg.torch.onnx.*`.

Why it is correct:
    None of these fields has a meaning in ONNX, and onnxruntime reads none of those removed.

Declines when:
    1. They belong to the model, its main graph, its inputs or its outputs: author, licence, class
       names, what tools that use the model look up.
    2. The key begins with the name of a runtime or with `onnxslim`, or is named in `keep`.
    3. It is no text about the graph: names, quantization annotations, devices.

Fidelity:
    EXACT.

Reference:
    The ONNX IR specification, section "Optional metadata".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, TypeVar

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message

from onnxslim.graph.ir import Constant, Stored, walk_graphs
from onnxslim.pipeline.options import option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Change, Fidelity, PassResult

_READ: Final = ("onnxslim*", "onnxruntime*", "ort*", "com.microsoft*", "layer_ann*", "openvino*")
_Annotated = TypeVar(
    "_Annotated",
    onnx.NodeProto,
    onnx.GraphProto,
    onnx.ValueInfoProto,
    onnx.TensorProto,
    onnx.FunctionProto,
)


@dataclass(frozen=True)
class StripMetadata(Pass):
    """Remove doc strings and metadata of nodes, values and functions, which nothing reads."""

    name: ClassVar[str] = "strip-metadata"
    examples: ClassVar[Mapping[str, str]] = {
        "strip-metadata": "names and texts that nothing reads",
        "strip-metadata:keep=license": "all but one entry",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    keep: tuple[str, ...] = option((), help="keys of metadata that stay, such as namespace")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Replace every proto that carries metadata by a copy without."""
        stripper = _Stripper((*_READ, *self.keep))
        for current in walk_graphs(graph):
            stripper.strip_graph(current, is_main=current is graph)
        functions = graph.local_functions
        functions[:] = [stripper.without_inside(function) for function in functions]
        return PassResult(tuple(stripper.changes(graph)))


class _Stripper:
    def __init__(self, kept: tuple[str, ...]) -> None:
        self.kept = kept
        self.bytes: Counter[str] = Counter()  # by key

    def changes(self, graph: gs.Graph) -> Iterator[Change]:
        """One change for each key: stack traces of ten thousand nodes are one fact."""
        for key, size in self.bytes.most_common():
            yield Change(graph.name, f"removed {size:,} bytes of `{key}` of nodes and values")

    def strip_graph(self, graph: gs.Graph, *, is_main: bool) -> None:
        """Strip the nodes and values of one graph, and the graph itself unless it is the main."""
        if not is_main:
            graph.extra = None if graph.extra is None else self.without(graph.extra)
            if graph.doc_string:
                self.bytes["doc_string"] += len(graph.doc_string.encode())
                graph.doc_string = ""
        ends = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)} if is_main else set()
        for node in graph.nodes:
            node.extra = None if node.extra is None else self.without(node.extra)
            for tensor in (*node.inputs, *node.outputs):
                if id(tensor) not in ends and getattr(tensor, "info", None) is not None:
                    tensor.info = self.without(tensor.info)
            for constant in (*node.inputs, *node.attrs.values()):
                if isinstance(constant, Constant):
                    self.strip_constant(constant)

    def strip_constant(self, constant: Constant) -> None:
        """Strip an initializer or the value of a Constant node."""
        stored = constant.stored
        if isinstance(stored, Stored):
            light = self.without(stored.tensor)
            if light is not stored.tensor:
                constant.values = Stored(light, stored.buffer)

    def without(self, proto: _Annotated) -> _Annotated:
        """A copy of `proto` without metadata, `proto` itself where it has none."""
        if not proto.doc_string and not proto.metadata_props:
            return proto
        return self.without_inside(proto)

    def without_inside(self, proto: _Annotated) -> _Annotated:
        """As `without`, also for what `proto` contains."""
        copy = type(proto)()
        copy.CopyFrom(proto)
        before = self.bytes.total()
        self.clear(copy)
        return proto if self.bytes.total() == before else copy

    def clear(self, proto: Message) -> None:
        """Clear doc strings and metadata of `proto` and of all messages in it."""
        for field, value in proto.ListFields():
            if field.name == "doc_string":
                self.bytes["doc_string"] += len(value.encode())
                proto.ClearField("doc_string")
            elif field.name == "metadata_props":
                self.clear_entries(value)
            elif field.message_type is not None:
                for inner in [value] if isinstance(value, Message) else value:
                    self.clear(inner)

    def clear_entries(self, entries: Any) -> None:
        """Remove the entries that nothing reads."""
        for index in reversed(range(len(entries))):
            entry = entries[index]
            if not any(fnmatchcase(entry.key, pattern) for pattern in self.kept):
                self.bytes[entry.key] += entry.ByteSize()
                del entries[index]
