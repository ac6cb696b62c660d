"""Residual streams: channels that linear layers write and normalizations read, and nothing else.

All that carries the channels of a stream must commute with a rotation of them: sums, movement that
keeps the vectors whole, factors that are the same for all channels. Each tensor is in a *space*:
that of the sums, or that of what a normalization returns, whose γ does not commute with rotations.

Owns: which streams can be rotated, and why others cannot. Not here: the rotation (see `rotation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.analysis.linear_operators import cast_type
from onnxslim.analysis.normalizations import Normalization, normalizations
from onnxslim.channels.edits_operands import SliceOperand
from onnxslim.channels.groups import ChannelGroup, Channels, channel_groups
from onnxslim.channels.labels import labelled_axes
from onnxslim.channels.units import indexable
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import is_filled_with, is_present, is_training_dropout
from onnxslim.graph.rewrite import Rewriter
from onnxslim.residual.rules import StreamRules

Space = Normalization | Node | None
"""What a normalization returns, or a node that is not linear; None: the space of the sums."""

JOINS: Final = ("Add", "Concat", "Sub", "Sum")
_FACTORS: Final = ("Div", "Mul")
_MOVES: Final = (
    "Cast", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Neg", "Reshape", "Slice",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_AVERAGES: Final = ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum")
_SIZES: Final = ("Shape", "Size")
_LINEAR: Final = frozenset({*JOINS, *_FACTORS, *_MOVES, *_AVERAGES, *_SIZES, "Pad"})
_REPEATS: Final = ("Expand", "Tile")  # of a constant, before it joins a stream


class NoStream(Exception):
    """Channels that a normalization reads cannot be rotated; the text says why."""


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        group: its writers and readers.
        norms: the normalizations that read it.
        spaces: of each tensor that carries its channels.
        copies: by tensor, how often the channels follow each other along the axis.
    """

    group: ChannelGroup
    norms: tuple[Normalization, ...]
    spaces: Mapping[gs.Tensor, Space]
    copies: Mapping[gs.Tensor, int]

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.group.size

    @property
    def label(self) -> str:
        """How messages name it: the first layer that writes it."""
        return self.group.name

    @property
    def is_centred(self) -> bool:
        """Whether a normalization subtracts the mean."""
        return any(norm.is_centred for norm in self.norms)


class StreamGraph:
    """A graph, its channels, and the space of each tensor."""

    def __init__(self, rw: Rewriter) -> None:
        self.rw = rw
        self.norms = normalizations(rw)
        self._rules = StreamRules(rw.main, self.norms)
        self.channels: Channels = channel_groups(rw.main, rules=self._rules.rules)
        self._ends = {norm.nodes[0]: norm for norm in self.norms}
        self._inner = {node for norm in self.norms for node in norm.nodes}
        self.spaces = self._spaces()
        self._joined = tuple(self._joined_operands())

    def units(self, tensor: gs.Tensor) -> Iterator[np.ndarray]:
        """The units of each label array of a tensor."""
        for array in self.channels.trace.labels.get(tensor, ()):
            yield self.channels.units.of_ids(array)

    def streams(self) -> Iterator[Stream | tuple[list[Normalization], str]]:
        """The streams; for others the normalizations that read them, and why they are none."""
        for group in self.channels.groups:
            mask = self._mask(group)
            norms = [norm for norm in self.norms if self._carries(norm.source, mask)]
            if norms:
                try:
                    yield self._stream(group, mask, norms)
                except NoStream as why:
                    yield norms, str(why)

    def joined_spaces(self) -> Iterator[tuple[Node, int]]:
        """Operands in another space that are to be in the space of the sums.

        Not those of streams with about as many of such spaces as normalizations.
        """
        for group in self.channels.groups:
            mask = self._mask(group)
            norms = [norm for norm in self.norms if self._carries(norm.source, mask)]
            joined = [(n, i) for n, i in self._joined if self._carries(n.inputs[i], mask)]
            spaces = {self.spaces[node.inputs[operand]] for node, operand in joined}
            if 2 * len(spaces) < len(norms):
                yield from joined

    def tied_readers(self) -> Iterator[tuple[Node, int]]:
        """Operands of layers that share their weight with a table that writes a stream."""
        tables = {
            id(member.node.inputs[0])
            for member in self.channels.trace.writers
            if member.node.op == "Gather"
        }
        for layer in self._rules.viewed.values():
            if id(layer.weight_tensor) in tables and layer.data_tensor in self.spaces:
                yield layer.node, layer.data

    def outputs(self) -> Iterator[gs.Tensor]:
        """Outputs of the graph that carry channels of a stream."""
        yield from (tensor for tensor in self.rw.main.outputs if tensor in self.spaces)

    def columns(self, tensor: gs.Tensor) -> int | None:
        """How many channels follow each other along the last axis of a tensor; None: elsewhere."""
        for array in self.channels.trace.labels.get(tensor, ()):
            if labelled_axes(array) == {array.ndim - 1}:
                return int(array.size)
        return None

    # ------------------------------------------------------------------ spaces

    def _joined_operands(self) -> Iterator[tuple[Node, int]]:
        """Operands in another space that a normalization reads, or that a sum joins with others."""
        for norm in self.norms:
            if self.spaces.get(norm.source) is not None:
                users = ((n, i) for n in norm.nodes for i, t in enumerate(n.inputs))
                yield from ((n, i) for n, i in users if n.inputs[i] is norm.source)
        for node in self.rw.main.nodes:
            if node.op in JOINS and node not in self._inner:
                found = {i: self.spaces[t] for i, t in enumerate(node.inputs) if t in self.spaces}
                if len(set(found.values())) > 1:
                    yield from ((node, i) for i, space in found.items() if space is not None)

    def _spaces(self) -> dict[gs.Tensor, Space]:
        found: dict[gs.Tensor, Space] = {}
        labels, units = self.channels.trace.labels, self.channels.units
        wanted = np.zeros(units.count, bool)
        for norm in self.norms:
            for own in self.units(norm.source):
                wanted[own[own >= 0]] = True
        wanted = indexable(wanted)
        writers = {member.node for member in self.channels.trace.writers}
        for node in self.rw.main.nodes:
            inside = {found[tensor] for tensor in node.inputs if tensor in found}
            read = [index for index, tensor in enumerate(node.inputs) if tensor in found]
            space = next(iter(inside)) if len(inside) == 1 and node not in writers else None
            if read and node not in writers and not _is_linear(node, read, self.rw.opset):
                space = node
            for tensor in node.outputs:
                if tensor in labels and any(wanted[own].any() for own in self.units(tensor)):
                    found[tensor] = self._ends.get(node, space)
        return found

    # ------------------------------------------------------------------ a stream

    def _mask(self, group: ChannelGroup) -> np.ndarray:
        mask = np.zeros(self.channels.units.count, bool)
        mask[group.units] = True
        return indexable(mask)

    def _carries(self, tensor: gs.Tensor, mask: np.ndarray) -> bool:
        return any(mask[own].any() for own in self.units(tensor))

    def _stream(
        self, group: ChannelGroup, mask: np.ndarray, norms: Sequence[Normalization]
    ) -> Stream:
        for why, count in group.pins.items():
            raise NoStream(f"{count} of its {group.size} channels must stay: {why}")
        for member in (*group.writers, *group.readers):
            if member.layer is not None and member.layer.groups > 1:
                raise NoStream(f"`{member.label}` ({member.node.op}) has groups of channels")
        for node in group.weightless_readers:
            raise NoStream(f"`{node_label(node)}` ({node.op}) reads it without weights")
        copies: dict[gs.Tensor, int] = {}
        for tensor in self.channels.trace.labels:
            if self._carries(tensor, mask):
                copies[tensor] = self._copies(tensor, group, mask)
        for node in self.rw.main.nodes:
            self._check(node, copies)
        summed = {self.spaces[n.inputs[i]] for n, i in self._joined if n.inputs[i] in copies}
        if summed:
            raise NoStream(
                f"what {len(summed)} of {len(norms)} normalizations return is part of the stream "
                "itself, and each would need a product that costs more than the cut saves"
            )
        self._check_operands(group, mask)
        spaces = {tensor: self.spaces[tensor] for tensor in copies if tensor in self.spaces}
        return Stream(group, tuple(norms), spaces, copies)

    def _copies(self, tensor: gs.Tensor, group: ChannelGroup, mask: np.ndarray) -> int:
        """How often all channels follow each other, in their order, along one axis."""
        own = [array for array in self.units(tensor) if mask[array].any()]
        flat = own[0].reshape(-1)
        times, rest = divmod(len(flat), group.size)
        axes = labelled_axes(own[0])
        if len(own) > 1 or len(axes) != 1 or rest or (flat != np.tile(group.units, times)).any():
            raise NoStream(
                f"`{tensor.name}` holds a part of its channels, or another order of them"
            )
        return times

    def _check(self, node: Node, carrying: Mapping[gs.Tensor, int]) -> None:
        """Check that a node commutes with rotations of the channels that it reads."""
        read = [i for i, tensor in enumerate(node.inputs) if tensor in carrying]
        written = [tensor for tensor in node.outputs if tensor in carrying]
        if not read or node in self._inner:
            return
        name = f"`{node_label(node)}` ({node.op})"
        if not written and node.op not in _SIZES:
            return  # a layer that reads them: what may read them without weights is told by pins
        if not _is_linear(node, read, self.rw.opset):
            raise NoStream(f"{name} is not linear in it")
        if node.op in ("Add", "Sub", "Sum"):
            self._check_terms(node, carrying, name)

    def _check_terms(self, node: Node, carrying: Mapping[gs.Tensor, int], name: str) -> None:
        """Every term of a sum carries the channels, or is a constant with a value for each."""
        cut = {
            edit.operand
            for edit in self.channels.trace.edits
            if isinstance(edit, SliceOperand) and edit.node is node
        }
        for index, tensor in enumerate(node.inputs):
            if tensor not in carrying and index not in cut:
                raise NoStream(f"{name} adds `{tensor.name}`, the same number for all channels")

    def _check_operands(self, group: ChannelGroup, mask: np.ndarray) -> None:
        """Constants with a value for each channel are added, or belong to a layer or a norm."""
        layers = {(m.node, m.operand) for m in (*group.writers, *group.readers)}
        own = {norm.scale for norm in self.norms} | {norm.bias for norm in self.norms}
        for edit in self.channels.trace.edits:
            if not isinstance(edit, SliceOperand):
                continue
            if not mask[self.channels.units.of_ids(edit.array)].any():
                continue
            place = (edit.node, edit.operand)
            is_bias = edit.node.op in ("Conv", "ConvTranspose", "Gemm") and edit.operand == 2
            if place in layers or place in own or is_bias:
                continue
            if edit.node.op in (*JOINS, *_REPEATS):
                if self.spaces.get(edit.node.outputs[0]) is None:
                    continue
                raise NoStream(
                    f"`{node_label(edit.node)}` ({edit.node.op}) joins a constant with what a "
                    "normalization returns"
                )
            raise NoStream(
                f"`{node_label(edit.node)}` ({edit.node.op}) treats its channels one by one; "
                "simplify may fold that into the layer before it"
            )


def _is_linear(node: Node, read: Sequence[int], opset: int) -> bool:
    """Whether a node without weights is linear in its inputs `read`."""
    if node.op == "Dropout":
        return not is_training_dropout(node, opset)
    if node.op == "Cast":
        return is_float(cast_type(node))
    if node.op == "Pad":
        mode = node.attrs.get("mode", "constant")
        is_zero = not is_present(node, 2) or is_filled_with(node.inputs[2], 0.0)
        return mode in ("constant", b"constant") and is_zero and not node.attrs.get("value", 0.0)
    if node.op in _FACTORS:
        return len(read) == 1 and (node.op == "Mul" or read[0] == 0)
    return node.op in _LINEAR
