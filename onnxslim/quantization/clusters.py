"""A graph cut into clusters, each of which onnxruntime can run as one integer kernel.

A cluster is a node that has an integer kernel, with a Relu or Clip behind it that the saturation of
the output's grid replaces. Only the main graph is cut, because bodies read and return floats.
Recurrent layers read and return floats anyway, so they are clusters wherever they are. Products
whose ranges are found at run time read and make floats too: no tensor crosses to integers for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxslim.analysis.output_parts import PASS_THROUGH_OPS
from onnxslim.graph.ir import Constant, Node, node_label, subgraphs_of, walk_graphs
from onnxslim.quantization.rules import (
    ActivationRanges,
    IntegerRule,
    KernelKind,
    absorbed_interval,
    rule_of,
)
from onnxslim.records import Skip


@dataclass(frozen=True, eq=False)
class Cluster:
    """Nodes that become one integer kernel if the cluster is chosen.

    Attributes:
        name: the label of `node`, by which reports and options name the cluster.
        node, rule: the operator, and how it is computed on integers.
        activation: a Relu or Clip behind `node` that its output's grid replaces.
        interval: the interval to which `activation` confines values.
    """

    name: str
    node: Node
    rule: IntegerRule
    activation: Node | None = None
    interval: tuple[float, float] | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operator and its activation."""
        return (self.node,) if self.activation is None else (self.node, self.activation)

    @property
    def operands(self) -> tuple[int, ...]:
        """Indices of the inputs of `node` that are quantized, constants among them."""
        if self.rule.data is None:
            return tuple(range(len(self.node.inputs)))
        return self.rule.data

    @property
    def reads(self) -> tuple[gs.Tensor, ...]:
        """The activations that must be quantized."""
        found = (self.node.inputs[index] for index in self.operands)
        return tuple(dict.fromkeys(t for t in found if not _is_constant(t)))

    @property
    def makes(self) -> tuple[gs.Tensor, ...]:
        """The tensors that come out quantized."""
        if self.rule.kind.is_between_floats:
            return ()
        return tuple(tensor for tensor in self.nodes[-1].outputs if tensor.name)

    @property
    def tensors(self) -> tuple[gs.Tensor, ...]:
        """The activations on either side."""
        return (*self.reads, *self.makes)

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies matrices."""
        kinds = (KernelKind.LAYER, KernelKind.RECURRENT, KernelKind.DYNAMIC)
        return self.rule.kind in kinds or self.node.op == "MatMul"


@dataclass(frozen=True)
class Clusters:
    """The clusters of a graph.

    Attributes:
        all: the clusters, producers first.
        skips: nodes that stay float, with the reason.
        outside: tensors that the graph returns, or that bodies of its nodes use.
    """

    all: tuple[Cluster, ...]
    skips: tuple[Skip, ...] = ()
    outside: frozenset[gs.Tensor] = frozenset()
    _of: dict[Node, Cluster] = field(default_factory=dict, repr=False)

    def of(self, node: Node) -> Cluster | None:
        """The cluster of `node`; None for kernels that read and make floats."""
        return self._of.get(node)

    def maker(self, tensor: gs.Tensor) -> Cluster | None:
        """The cluster that makes `tensor`, on integers if the cluster is chosen."""
        return self._of.get(tensor.inputs[0]) if tensor.inputs else None


def clusters_of(graph: gs.Graph, ranges: ActivationRanges = ActivationRanges.STATIC) -> Clusters:
    """All clusters of `graph`, whose shapes and types were inferred."""
    outside = frozenset((*graph.outputs, *_captured(graph)))
    found: list[Cluster] = []
    skips: list[Skip] = []
    of: dict[Node, Cluster] = {}
    for node in graph.nodes:
        if node in of or not _is_float_work(node):
            continue
        rule = rule_of(node, ranges)
        if not isinstance(rule, str) and rule.no_answer and _is_answer(node, outside):
            rule = rule.no_answer
        if isinstance(rule, str):
            skips.append(Skip(node_label(node), rule))
            continue
        activation = _activation(node, rule, outside)
        interval = None if activation is None else absorbed_interval(activation)
        cluster = Cluster(node_label(node), node, rule, activation, interval)
        found.append(cluster)
        if not rule.kind.is_between_floats:
            of.update(dict.fromkeys(cluster.nodes, cluster))
    found += _in_bodies(graph, {cluster.name for cluster in found})
    return Clusters(tuple(found), tuple(skips), outside, of)


def _in_bodies(graph: gs.Graph, taken: Iterable[str]) -> Iterator[Cluster]:
    """The clusters in bodies of `graph`, which need no ranges of activations; each name once."""
    known = set(taken)
    for body in walk_graphs(graph):
        for node in body.nodes:
            name, rule = node_label(node), rule_of(node)
            if body is graph or isinstance(rule, str) or name in known:
                continue
            if rule.kind is KernelKind.RECURRENT:
                known.add(name)
                yield Cluster(name, node, rule)


def drop_isolated_movement(clusters: Clusters, chosen: frozenset[str]) -> frozenset[str]:
    """`chosen` without data movement that no computing integer cluster is connected with."""
    left = {cluster for cluster in clusters.all if cluster.name in chosen}
    kept = {cluster for cluster in left if cluster.rule.kind is not KernelKind.MOVEMENT}
    stack = list(kept)
    while stack:
        for other in _neighbours(clusters, stack.pop()):
            if other in left and other not in kept:
                kept.add(other)
                stack.append(other)
    return frozenset(cluster.name for cluster in kept)


def worth_observing(clusters: Clusters, ranges: ActivationRanges) -> frozenset[str]:
    """The clusters that may be worth being on integers.

    With ranges from samples, all. Where products find their ranges at run time, these are the
    kernels that read and make floats, layers that need ranges from samples (Conv), and what reads
    nothing but the results of these layers. The residual stream of a transformer is none of it: an
    Add on integers between floats gains nothing, and loses most.
    """
    if ranges is ActivationRanges.STATIC:
        return frozenset(cluster.name for cluster in clusters.all)
    kept: set[str] = set()
    for cluster in clusters.all:
        makers = [clusters.maker(tensor) for tensor in cluster.reads]
        follows = bool(makers) and all(maker and maker.name in kept for maker in makers)
        if cluster.rule.kind.is_between_floats or cluster.rule.kind is KernelKind.LAYER or follows:
            kept.add(cluster.name)
    return frozenset(kept)


def _neighbours(clusters: Clusters, cluster: Cluster) -> Iterator[Cluster]:
    for tensor in cluster.reads:
        maker = clusters.maker(tensor)
        if maker is not None:
            yield maker
    for tensor in cluster.makes:
        for node in tensor.outputs:
            reader = clusters.of(node)
            if reader is not None:
                yield reader


def _activation(node: Node, rule: IntegerRule, outside: frozenset[gs.Tensor]) -> Node | None:
    """A Relu or Clip that alone reads what `node` makes."""
    output = node.outputs[0]
    if rule.kind.is_between_floats or rule.kind is KernelKind.MOVEMENT or rule.fixed is not None:
        return None
    if output in outside:
        return None
    if len(output.outputs) != 1 or absorbed_interval(output.outputs[0]) is None:
        return None
    reader: Node = output.outputs[0]
    return reader


def _is_answer(node: Node, outside: Collection[gs.Tensor]) -> bool:
    """Whether a result of `node` leaves the graph, perhaps moved."""
    for tensor in node.outputs:
        if tensor in outside:
            return True
        for reader in tensor.outputs:
            rule = rule_of(reader)
            moves = not isinstance(rule, str) and rule.kind is KernelKind.MOVEMENT
            if (moves or reader.op in PASS_THROUGH_OPS) and _is_answer(reader, outside):
                return True
    return False


def _is_float_work(node: Node) -> bool:
    """Whether a node makes floats; other nodes are not worth a line in the report."""
    if node.op == "Constant" or not node.outputs:
        return False
    dtype = node.outputs[0].dtype
    return dtype is None or dtype.kind == "f"


def _is_constant(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, Constant) or (
        len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant"
    )


def _captured(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Tensors that bodies of nodes of `graph` use."""
    for node in graph.nodes:
        for body in subgraphs_of(node):
            for inner in walk_graphs(body):
                yield from inner.outputs
                for reader in inner.nodes:
                    yield from reader.inputs
