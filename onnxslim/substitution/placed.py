"""A block put into the graph, in the place of what it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, Node, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lowrank.pieces import Piece
from onnxslim.records import Fidelity


@dataclass(frozen=True)
class PlacedBlock:
    """A block that is to be put somewhere.

    Attributes:
        source: name of the tensor that it reads.
        output: name of the tensor that it returns.
        pieces: its operators.
        what: was decided, in words.
    """

    source: str
    output: str
    pieces: tuple[Piece, ...]
    what: str

    def with_values(self, arrays: Sequence[np.ndarray]) -> PlacedBlock:
        """The same with other arrays, in the order in which pieces name them."""
        left = iter(arrays)
        pieces = tuple(
            Piece(
                piece.op,
                tuple(item if isinstance(item, str) else next(left) for item in piece.inputs),
                piece.output,
                piece.attrs,
            )
            for piece in self.pieces
        )
        return PlacedBlock(self.source, self.output, pieces, self.what)


@dataclass(frozen=True)
class WrittenBlock:
    """A block in a graph.

    Attributes:
        nodes: labels of its nodes.
        constants: of its arrays, in the order in which pieces name them.
    """

    nodes: tuple[str, ...]
    constants: tuple[Constant, ...]


def put(rw: Rewriter, block: PlacedBlock) -> WrittenBlock:
    """Put a block in the place of the node that computes its output, and of what only fed that."""
    node = _producer(rw, block.output)
    label = node_label(node)
    tensors: dict[str, gs.Tensor] = {"x": _tensor(rw, block.source)}
    labels, constants = [], []
    for number, piece in enumerate(block.pieces):
        inputs: list[gs.Tensor] = []
        for item in piece.inputs:
            if isinstance(item, str):
                inputs.append(tensors[item])
            else:
                constants.append(rw.constant(item, f"{label}_weight{number}"))
                inputs.append(constants[-1])
        attrs = dict(piece.attrs)
        if piece is block.pieces[-1]:
            rw.update(
                node, block.what, op=piece.op, inputs=inputs, attrs=attrs, fidelity=Fidelity.LOSSY
            )
            labels.append(label)
            continue
        name, dtype = f"{label}_part{number}", node.outputs[0].dtype
        (made,) = rw.insert(node, piece.op, inputs, attrs, name=name, dtype=dtype)
        tensors[piece.output] = made
        labels.append(made.name)
    return WrittenBlock(tuple(labels), tuple(constants))


def _producer(rw: Rewriter, name: str) -> Node:
    found: Node = next(n for n in rw.main.nodes if any(t.name == name for t in n.outputs))
    return found


def _tensor(rw: Rewriter, name: str) -> gs.Tensor:
    for tensor in rw.main.inputs:
        if tensor.name == name:
            return tensor
    return next(t for n in rw.main.nodes for t in n.outputs if t.name == name)
