"""The normal form of a model: what files write in several ways, or leave out, written in one.

onnxruntime runs many files that the ONNX standard forbids. What can be repaired without a guess is
repaired here, once, when a file is read, and a note says so: no pass needs a case for it. The rest
is judged by `check.admit`.

| a file has | the normal form has |
|---|---|
| `ai.onnx` as domain of a node or an import | the empty domain |
| operators of a domain that is not imported | an import: the newest form of each operator used |
| a main graph without a name | the name `graph` |
| an input or an initializer without a name | no such input or initializer |
| nodes before those that they need | producers first |
| a type that ONNX does not know, for a tensor inside | no declaration of that tensor |
| an input without a shape that an initializer gives a value | the shape of the initializer |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx

from onnxslim.errors import ModelError
from onnxslim.graph.ir import ELEMENT_TYPES, WITH_BODIES

_SPELLED_OUT = "ai.onnx"
_OWN_OUTPUTS = {"If": 0, "Loop": 1, "Scan": 0}
"""How many outputs of a body the operator keeps to itself."""


def normalise(model: onnx.ModelProto) -> list[str]:
    """Bring `model` into its normal form.

    Args:
        model: edited; large weights may be placeholders.

    Returns:
        A note for the report on each kind of repair.

    Raises:
        ModelError: what cannot be repaired: no outputs, two functions of one name, a node that has
            more outputs than its body or its attributes say, an input or output of a type that
            ONNX does not know, nodes that need each other in a circle.
    """
    if not model.graph.output:
        raise ModelError("The graph has no outputs, so it computes nothing.")
    _check_functions(model.functions)
    graphs = list(_graphs(model.graph.node, model.graph))
    notes = [
        *_import_domains(model, [node for graph in graphs for node in graph.node]),
        *_name(model.graph),
        *_drop_nameless(model.graph),
        *_drop_nameless_initializers(graphs),
        *_drop_unknown_types(graphs),
        *_shape_inputs(model.graph),
        *_sort(graphs),
    ]
    _check_outputs(node for graph in graphs for node in graph.node)
    for function in model.functions:
        bodies = list(_graphs(function.node))
        nodes = [*function.node, *(node for body in bodies for node in body.node)]
        notes += [*_import_domains(function, nodes), *_drop_nameless_initializers(bodies)]
        _check_outputs(nodes)
    return notes


def _graphs(
    nodes: Iterable[onnx.NodeProto], graph: onnx.GraphProto | None = None
) -> Iterator[onnx.GraphProto]:
    """`graph` and the bodies of `nodes`, outer before inner."""
    if graph is not None:
        yield graph
    for node in nodes:
        for body in _bodies(node):
            yield from _graphs(body.node, body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    if node.op_type not in WITH_BODIES and not node.domain:  # nearly every node
        return
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


# ----------------------------------------------------------------- what cannot be repaired


def _check_functions(functions: Iterable[onnx.FunctionProto]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for function in functions:
        key = (function.domain, function.name, function.overload)
        if key in seen:
            raise ModelError(f"Two local functions are called `{function.domain}.{function.name}`.")
        seen.add(key)


def _check_outputs(nodes: Iterable[onnx.NodeProto]) -> None:
    """Require of each node as many outputs as its bodies and attributes say.

    Shape inference of onnx ends the process where a Split has more outputs than it says.
    """
    for node in nodes:
        if node.domain:
            continue
        label = node.name or next(iter(node.output), "")
        for attribute in node.attribute:
            if attribute.HasField("g") and node.op_type in _OWN_OUTPUTS:
                needed = len(node.output) + _OWN_OUTPUTS[node.op_type]
                if len(attribute.g.output) < needed:
                    raise ModelError(
                        f"`{attribute.name}` of node `{label}` ({node.op_type}) has "
                        f"{len(attribute.g.output)} outputs; the node needs {needed}."
                    )
            is_count = (node.op_type, attribute.name) == ("Split", "num_outputs")
            if is_count and attribute.i != len(node.output):
                raise ModelError(
                    f"Node `{label}` (Split) has {len(node.output)} outputs, but num_outputs "
                    f"is {attribute.i}."
                )


# ----------------------------------------------------------------- domains


def _import_domains(
    owner: onnx.ModelProto | onnx.FunctionProto, nodes: list[onnx.NodeProto]
) -> Iterator[str]:
    """Spell the domain of the standard in one way, and import each domain that is used."""
    for entry in owner.opset_import:
        if entry.domain == _SPELLED_OUT:
            entry.domain = ""
    used: dict[str, set[str]] = {}
    for node in nodes:
        if node.domain == _SPELLED_OUT:
            node.domain = ""
        used.setdefault(node.domain, set()).add(node.op_type)
    for domain in used.keys() - {entry.domain for entry in owner.opset_import}:
        version = max(_since_version(operator, domain) for operator in used[domain])
        owner.opset_import.add(domain=domain, version=version)
        yield (
            f"The domain `{domain or _SPELLED_OUT}` is used but not imported: version {version} "
            "was assumed."
        )


def _since_version(operator: str, domain: str) -> int:
    """The version that brought the newest form of an operator; 1 where ONNX does not know it."""
    try:
        return int(onnx.defs.get_schema(operator, domain=domain).since_version)
    except onnx.defs.SchemaError:
        return 1


# ----------------------------------------------------------------- declarations


def _name(graph: onnx.GraphProto) -> Iterator[str]:
    if not graph.name:
        graph.name = "graph"
        yield "The graph has no name, which ONNX asks for: it was read as `graph`."


def _drop_nameless(graph: onnx.GraphProto) -> Iterator[str]:
    """Drop inputs without a name: nobody can feed or read them."""
    nameless = [at for at, info in enumerate(graph.input) if not info.name]
    for at in reversed(nameless):
        del graph.input[at]
    if nameless:
        yield f"{len(nameless)} inputs have no name, so nobody can feed them: they were ignored."


def _drop_nameless_initializers(graphs: Iterable[onnx.GraphProto]) -> Iterator[str]:
    count = 0
    for graph in graphs:
        dense = [at for at, tensor in enumerate(graph.initializer) if not tensor.name]
        sparse = [at for at, item in enumerate(graph.sparse_initializer) if not item.values.name]
        for at in reversed(dense):
            del graph.initializer[at]
        for at in reversed(sparse):
            del graph.sparse_initializer[at]
        count += len(dense) + len(sparse)
    if count:
        yield f"{count} initializers have no name, so no node can read them: they were ignored."


def _drop_unknown_types(graphs: Iterable[onnx.GraphProto]) -> Iterator[str]:
    """Drop declarations that ONNX does not know, where the type follows from the inputs anyway."""
    dropped: list[str] = []
    for graph in graphs:
        for word, infos in (("Input", graph.input), ("Output", graph.output)):
            for info in infos:
                element = _unknown_type(info.type)
                if element is not None:
                    raise ModelError(
                        f"{word} `{info.name}` has the element type {element}, which ONNX does not "
                        "know."
                    )
        unknown = {info.name for info in graph.value_info if _unknown_type(info.type) is not None}
        if unknown:
            dropped += sorted(unknown)
            known = [info for info in graph.value_info if info.name not in unknown]
            del graph.value_info[:]
            graph.value_info.extend(known)
    if dropped:
        yield (
            f"{len(dropped)} tensors inside the graph are declared with an element type that ONNX "
            f"does not know (`{dropped[0]}`): these declarations were ignored."
        )


def _unknown_type(kind: onnx.TypeProto) -> int | None:
    """The element type in `kind` that ONNX does not know; None where there is none."""
    case = kind.WhichOneof("value")
    if case in ("tensor_type", "sparse_tensor_type"):
        element = int(getattr(kind, case).elem_type)
        return None if element in ELEMENT_TYPES else element
    if case in ("sequence_type", "optional_type"):
        return _unknown_type(getattr(kind, case).elem_type)
    return _unknown_type(kind.map_type.value_type) if case == "map_type" else None


def _shape_inputs(graph: onnx.GraphProto) -> Iterator[str]:
    """Give an input that has no shape that of the initializer with its name."""
    open_inputs = {
        info.name: info.type.tensor_type
        for info in graph.input
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape")
    }
    if not open_inputs:
        return
    shaped = [tensor for tensor in graph.initializer if tensor.name in open_inputs]
    for tensor in shaped:
        shape = open_inputs[tensor.name].shape
        shape.SetInParent()
        for size in tensor.dims:
            shape.dim.add(dim_value=size)
    if shaped:
        yield (
            f"{len(shaped)} inputs have no shape (`{shaped[0].name}`): they were read with that of "
            "their initializers."
        )


# ----------------------------------------------------------------- order


def _sort(graphs: Sequence[onnx.GraphProto]) -> Iterator[str]:
    """Order the nodes of each graph producers first, where they are not."""
    # inner before outer: nodes that move are copied, with the bodies in them
    moved = [graph.name for graph in reversed(graphs) if _sort_nodes(graph)]
    if moved:
        yield (
            "Nodes stand before others that they need, which ONNX forbids: they were read in order "
            f"(graph `{moved[0]}`)."
        )


def _sort_nodes(graph: onnx.GraphProto) -> bool:
    """Whether the order of the nodes changed."""
    nodes = list(graph.node)
    producer = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    late = any(
        producer.get(name, -1) >= at for at, node in enumerate(nodes) for name in _needs(node)
    )
    if not late:
        return False
    needed = {
        at: [producer[name] for name in _needs(node) if name in producer]
        for at, node in enumerate(nodes)
    }
    try:
        order = list(TopologicalSorter(needed).static_order())
    except CycleError as error:
        node = nodes[error.args[1][0]]
        label = next(iter(node.output), node.name)
        raise ModelError(f"Nodes need each other in a circle, through `{label}`.") from None
    ordered = onnx.GraphProto(node=[nodes[at] for at in order])  # copies
    del graph.node[:]
    graph.node.extend(ordered.node)
    return True


def _needs(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that `node` and its bodies read."""
    yield from node.input
    for body in _bodies(node):
        own = {name for inner in body.node for name in inner.output}
        own |= {info.name for info in body.input}
        for inner in body.node:
            yield from (name for name in _needs(inner) if name not in own)
        yield from (info.name for info in body.output if info.name not in own)
