"""Follow channels through a graph: one sweep over its nodes, in which labels move as values do.

Every output channel of a layer with a constant weight gets a label. The rules of the operators
(`rules_*`) move labels as the operators move values, merge labels that meet in an elementwise
operator or in a sum, and pin those that they cannot follow, with the reason. Channels whose labels
were merged leave together: they are one *unit* (see `units`).

Owns: the sweep, and what it remembers. Not here: what single operators do (see `rules_*`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.layers import WeightLayer, linear_layers
from onnxslim.channels.caches import CACHE_RANK, cache_axes
from onnxslim.channels.cutting import Edit
from onnxslim.channels.edits_operands import FirstPosition, SliceOperand
from onnxslim.channels.edits_sizes import MeasuredSize, ShapeOperand
from onnxslim.channels.labels import (
    NONE,
    ChannelLabels,
    LabelArray,
    by_shared_axes,
    in_step,
    labelled_axes,
)
from onnxslim.channels.repeats import Repeats
from onnxslim.graph.ir import Node, node_label, subgraphs_of, walk_graphs
from onnxslim.graph.operands import const_value
from onnxslim.graph.sizes import Shape

Ids = npt.NDArray[np.int64]

_OPSET_UNKNOWN: Final = 17


class Untraceable(Exception):
    """Labels cannot be followed through an operator; the text of the exception says why."""


@dataclass(frozen=True)
class Member:
    """One side of a layer, its outputs or its inputs, with the labels of its channels.

    Attributes:
        node: Conv, ConvTranspose, Gemm, MatMul; Gather for the columns of an embedding.
        layer: as a weight layer; None for an embedding.
        operand: index of the weight among the inputs.
        axis: of the stored weight, along which the channels lie.
        ids: the label of each output channel, or of each input channel.
    """

    node: Node
    layer: WeightLayer | None
    operand: int
    axis: int
    ids: Ids

    @property
    def label(self) -> str:
        """The node's label."""
        return node_label(self.node)


@dataclass(frozen=True)
class GroupedConv:
    """A grouped Conv.

    Attributes:
        inputs: labels, (groups, channels of a group); None if the input has none.
        outputs: labels, (groups, channels of a group).
    """

    label: str
    inputs: Ids | None
    outputs: Ids


@dataclass
class ChannelTrace:
    """What a sweep has found.

    Attributes:
        count: number of labels.
        merges: pairs of arrays of labels that leave together, element by element.
        pins: labels that must stay, each time with the reason.
        grouped_convs: whose groups must lose as many channels each.
        writers: layers with the labels of their outputs.
        readers: layers with the labels of their inputs.
        channelwise: nodes with parameters for each channel (depthwise Conv, normalization).
        weightless_readers: products of two activations that sum over channels.
        neighbour_mixers: LRN, for which removing channels is not the same as setting them to zero.
        untraceable: nodes through which labels could not be followed, with the reason.
    """

    count: int = 0
    merges: list[tuple[Ids, Ids]] = field(default_factory=list)
    pins: list[tuple[Ids, str]] = field(default_factory=list)
    labels: dict[gs.Tensor, ChannelLabels] = field(default_factory=dict)
    grouped_convs: list[GroupedConv] = field(default_factory=list)
    writers: list[Member] = field(default_factory=list)
    readers: list[Member] = field(default_factory=list)
    channelwise: list[tuple[Node, Ids]] = field(default_factory=list)
    weightless_readers: list[tuple[Node, Ids]] = field(default_factory=list)
    neighbour_mixers: list[tuple[Node, Ids]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    untraceable: dict[Node, str] = field(default_factory=dict)


class ChannelTracer:
    """The state of a sweep, as the rules see it.

    Attributes:
        layers: of the main graph, by node.
        declined: reasons why nodes are no weight layers, by label.
        arrived: labels of the output of a node that an earlier node has settled already.
        caches: inputs of the graph that look like the keys or values of earlier positions, with
            the axes of heads and columns.
        changes_signature: whether caches lose heads as well.
        measured: elements of a list of sizes that are `MeasuredSize`s, by place, for each node and
            operand that gets the list; a rule takes out the elements that follow by themselves.
    """

    def __init__(self, graph: gs.Graph, *, changes_signature: bool = False) -> None:
        self.graph = graph
        self.caches = {tensor: axes for tensor in graph.inputs if (axes := cache_axes(tensor))}
        self.changes_signature = changes_signature
        self.opset = int(graph.opset or _OPSET_UNKNOWN)
        self.flow = SizeFlow(graph, self.opset)
        self._repeats = Repeats(self.flow)
        self.trace = ChannelTrace()
        layers, skips = linear_layers(graph)
        self.layers = {layer.node: layer for layer in layers if not layer.bodies}
        self.declined = {skip.node: skip.why for skip in skips}
        self.arrived: dict[Node, ChannelLabels] = {}
        self.measured: dict[tuple[Node, int], dict[int, MeasuredSize]] = {}

    # ------------------------------------------------------------------ looking

    def labels(self, tensor: gs.Tensor) -> ChannelLabels:
        """All label arrays of a tensor; () when it has none."""
        return self.trace.labels.get(tensor, ())

    def shape(self, tensor: gs.Tensor) -> Shape:
        """The shape of a tensor that has labels, or gets some.

        Raises:
            Untraceable: not even its rank is known.
        """
        shape = self.flow.shape(tensor)
        if shape is None:
            raise Untraceable(f"the shape of `{tensor.name}` is not known")
        return shape

    def rank(self, tensor: gs.Tensor) -> int:
        """Number of axes; errors as `shape`."""
        return len(self.shape(tensor))

    def check_length(self, tensor: gs.Tensor, array: LabelArray, axis: int) -> None:
        """Check that the labels of an array are those of all positions along an axis.

        Raises:
            Untraceable: they are a period, or the length is not known.
        """
        if self.shape(tensor)[axis] != array.shape[axis]:
            raise Untraceable(f"it is not known how long `{tensor.name}` is")

    def joins(self, node: Node, tensor: gs.Tensor) -> str:
        """The reason why channels stay that a node joins with a tensor without labels."""
        why = f"`{node_label(node)}` ({node.op}) joins them with `{tensor.name}`"
        if tensor in self.caches and not self.changes_signature:
            why += ", an input of the model that loses heads only with `change-signature=true`"
        return why

    # ------------------------------------------------------------------ labels

    def fresh(self, count: int) -> Ids:
        """New labels, (count,)."""
        start = self.trace.count
        self.trace.count += count
        return np.arange(start, start + count)

    def pin(self, ids: npt.NDArray[np.int64], why: str) -> None:
        """Channels with these labels must stay, for the reason `why`; `NONE` is ignored."""
        kept = np.unique(ids[ids != NONE])
        if kept.size:
            self.trace.pins.append((kept, why))

    def pin_all(self, tensors: Sequence[gs.Tensor], why: str) -> None:
        """Pin all labels of these tensors."""
        for tensor in tensors:
            for array in self.labels(tensor):
                self.pin(array, why)

    def merge(self, a: LabelArray, b: LabelArray, why: str) -> LabelArray:
        """Merge labels at the same place, and pin those that meet `NONE`, for the reason `why`.

        Returns:
            One of the two labels at each place.

        Raises:
            Untraceable: they repeat in periods of which neither is a multiple of the other.
        """
        both_in_step = in_step(a, b)
        if both_in_step is None:
            raise Untraceable(f"it joins {a.shape} channels with {b.shape}")
        a, b = np.broadcast_arrays(*both_in_step)
        both = (a != NONE) & (b != NONE)
        self.pin(a[~both], why)
        self.pin(b[~both], why)
        differ = both & (a != b)
        if differ.any():
            self.trace.merges.append((a[differ], b[differ]))
        return np.where(a != NONE, a, b)

    def joined(self, labels: Sequence[LabelArray], why: str) -> ChannelLabels:
        """The labels of the elementwise result of tensors whose label arrays are `labels`."""
        found = []
        for members in by_shared_axes(labels):
            whole = members[0]
            for other in members[1:]:
                whole = self.merge(whole, other, why)
            found.append(whole)
        return tuple(found)

    def collapsed(self, labels: ChannelLabels, axes: frozenset[int], why: str) -> ChannelLabels:
        """The labels after an operator that mixes all positions along `axes`.

        Where labels differ along other axes too, channels leave with all that they are mixed with;
        the others are pinned.
        """
        found = []
        for array in labels:
            mixed = labelled_axes(array) & axes
            if mixed:
                self.keep_whole(array, mixed, why)
            if mixed != labelled_axes(array):
                found.append(_first_along(array, mixed))
        return tuple(found)

    def keep_whole(self, array: LabelArray, axes: frozenset[int], why: str) -> None:
        """No position along labelled `axes` leaves alone, for the reason `why`.

        Where labels differ along other axes too, all positions along `axes` leave together;
        otherwise they are pinned.
        """
        if axes == labelled_axes(array):
            self.pin(array, why)
        elif axes:
            self.merge(_first_along(array, axes), array, why)

    def without_repeats(
        self, node: Node, operand: int, array: LabelArray, axes: frozenset[int], rank: int
    ) -> frozenset[int]:
        """The axes along which an operand that is broadcast to `rank` axes holds different values.

        Along the others, its first position takes the place of all once channels of `array` leave.
        """
        tensor = node.inputs[operand]
        offset = rank - self.rank(tensor)
        kept = []
        for axis in axes:
            if self._repeats.along(tensor, axis - offset):
                self.trace.edits.append(FirstPosition(node, operand, axis - offset, array, axis))
            else:
                kept.append(axis)
        return frozenset(kept)

    # ------------------------------------------------------------------ edits

    def slice_operand(
        self, node: Node, operand: int, axis: int, array: LabelArray, at: int
    ) -> None:
        """Cut `axis` of a constant operand as channels leave along axis `at` of `array`.

        Raises:
            Untraceable: the operand is not as long as there are labels.
        """
        stored = const_value(node.inputs[operand])
        if stored is not None and stored.shape[axis] != array.shape[at]:
            length = f"({stored.shape[axis]} long, for {array.shape[at]} channels)"
            raise Untraceable(f"`{node.inputs[operand].name}` {length} repeats")
        self.trace.edits.append(SliceOperand(node, operand, axis, array, at))

    def slice_broadcast(self, node: Node, operand: int, labels: ChannelLabels, rank: int) -> None:
        """Cut a constant that is broadcast to `rank` axes along every labelled axis."""
        stored = const_value(node.inputs[operand])
        assert stored is not None
        offset = rank - len(stored.shape)
        for array in labels:
            for axis in labelled_axes(array):
                if axis >= offset and stored.shape[axis - offset] > 1:
                    self.slice_operand(node, operand, axis - offset, array, axis)


def _first_along(array: LabelArray, axes: frozenset[int]) -> LabelArray:
    """The labels at the first position along `axes`."""
    for axis in axes:
        array = array.take([0], axis)
    return array


ChannelRule = Callable[[Node, ChannelTracer], Sequence[ChannelLabels]]
"""Edits the trace as an operator needs it, and returns the labels of each output."""

_DataRule = Callable[[Node, ChannelTracer, ChannelLabels], Sequence[ChannelLabels]]


def on_data(rule: _DataRule) -> ChannelRule:
    """The rule of an operator that moves its first input, given the labels of that input.

    It is asked only where there are labels. Labels that reach another operand are pinned.
    """

    def on_node(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
        labels = tracer.labels(node.inputs[0])
        result = rule(node, tracer, labels) if labels else ()
        tracer.pin_all(node.inputs[1:], f"`{node_label(node)}` ({node.op}) does not move them")
        return result

    return on_node


def trace_channels(
    graph: gs.Graph, rules: Mapping[str, ChannelRule], *, changes_signature: bool = False
) -> ChannelTrace:
    """The trace of a main graph with nodes in topological order, by the rule of each operator.

    With `changes_signature`, heads of caches get labels too, which inputs and outputs may lose.
    An operator without a rule pins the labels that reach it; bodies of If, Loop and Scan pin the
    channels that they use.
    """
    tracer = ChannelTracer(graph, changes_signature=changes_signature)
    trace = tracer.trace
    if changes_signature:
        for tensor, axes in tracer.caches.items():
            trace.labels[tensor] = (_labels_of_cache(tensor, axes, tracer),)
    for node in graph.nodes:
        for tensor, labels in zip(node.outputs, _outputs(node, tracer, rules), strict=False):
            if labels and tensor.name:
                trace.labels[tensor] = tuple(labels)
    for tensor in graph.outputs:
        for array in trace.labels.get(tensor, ()):
            _settle_output(tensor, array, tracer)
    for (used_by, operand), places in tracer.measured.items():
        _settle_sizes(used_by, operand, places, tracer)
    return trace


def _labels_of_cache(tensor: gs.Tensor, axes: tuple[int, int], tracer: ChannelTracer) -> LabelArray:
    lengths = [int(size) if axis in axes else 1 for axis, size in enumerate(tensor.shape)]
    return tracer.fresh(math.prod(lengths)).reshape(lengths)


def _settle_output(tensor: gs.Tensor, array: LabelArray, tracer: ChannelTracer) -> None:
    """Pin what reaches an output, unless these are heads of a cache that may lose some."""
    why = f"`{tensor.name}` is an output of the model"
    if array.ndim == CACHE_RANK and len(labelled_axes(array)) == 2:
        if tracer.changes_signature:
            return
        why += " that loses heads only with `change-signature=true`"
    tracer.pin(array, why)


def _settle_sizes(
    node: Node, operand: int, places: Mapping[int, MeasuredSize], tracer: ChannelTracer
) -> None:
    """Let a list of sizes for axes without channels keep the sizes that it has with all channels.

    Channels that give a size which is not known must stay.
    """
    shape, length = tracer.flow.shape(node.outputs[0]), tracer.flow.shape(node.inputs[operand])
    if shape is not None and length and isinstance(length[0], int):
        offset = len(shape) - length[0]
        known = {p: size for p, size in places.items() if isinstance(shape[p + offset], int)}
        if known:
            edit = ShapeOperand(node, operand, (), shape, offset, read=known)
            tracer.trace.edits.append(edit)
            places = {place: size for place, size in places.items() if place not in known}
    for size in places.values():
        tracer.pin(size.array, size.why)


def _outputs(
    node: Node, tracer: ChannelTracer, rules: Mapping[str, ChannelRule]
) -> Sequence[ChannelLabels]:
    label = node_label(node)
    bodies = subgraphs_of(node)
    if bodies:
        used = [t for body in bodies for g in walk_graphs(body) for n in g.nodes for t in n.inputs]
        tracer.pin_all([*node.inputs, *used], f"it is used in a body of `{label}` ({node.op})")
        return ()
    if node in tracer.arrived:
        return (tracer.arrived[node],)
    rule = rules.get(node.op) if node.is_onnx else None
    is_labelled = any(tracer.labels(tensor) for tensor in node.inputs)
    if rule is None:
        if is_labelled:
            tracer.pin_all(node.inputs, f"`{label}` is a {node.op}, which is not followed")
        return ()
    try:
        return rule(node, tracer)
    except Untraceable as reason:
        tracer.trace.untraceable[node] = str(reason)
        tracer.pin_all(node.inputs, f"`{label}` ({node.op}): {reason}")
        return ()
