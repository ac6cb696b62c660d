"""What a weight pass left as it was: how many bytes of weights, read by which operators, and why.

A pass gives a reason for each weight that it declines, but a list of reasons does not say whether
they matter. A remark is due where the pass changed something and left `NOTABLE` of the bytes of all
float constants or more; weights that the options `only` and `skip` leave out are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.analysis.linear_operators import WEIGHT_OPS
from onnxslim.graph.ir import Constant, Node, node_label, walk_graphs
from onnxslim.records import Skip
from onnxslim.render.units import bytes_text

NOTABLE: Final = 0.1
_GROUPS_SHOWN: Final = 3
_VIEWS: Final = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"})


@dataclass(frozen=True)
class WeightSnapshot:
    """The float constants of a graph at some time.

    Attributes:
        stored: their values as they are held, by identity; edits put other objects there.
        nbytes: bytes of all of them.
    """

    stored: dict[int, Any]
    nbytes: int

    @classmethod
    def of(cls, graph: gs.Graph) -> WeightSnapshot:
        """The constants of `graph` and its bodies as they are now."""
        constants = [constant for constant, _ in _float_constants(graph)]
        sizes = {id(constant.stored): constant.nbytes for constant in constants}
        return cls({id(c.stored): c.stored for c in constants}, sum(sizes.values()))

    def untouched(self, graph: gs.Graph, skips: Sequence[Skip], *, is_filtered: bool) -> str | None:
        """What of it is still the same, in words; None where that is not notable.

        Args:
            graph: after the pass.
            skips: what the pass declined.
            is_filtered: whether the user chose among the weights.
        """
        reasons = {skip.node: skip.why for skip in skips}
        groups: dict[tuple[str, str], int] = defaultdict(int)
        seen: set[int] = set()
        for constant, tensor in _float_constants(graph):
            if id(constant.stored) not in self.stored or id(constant.stored) in seen:
                continue
            seen.add(id(constant.stored))
            ops, why = _reason(tensor, reasons)
            if why is None and is_filtered:
                continue
            groups[ops, why or "the pass changes no such operands"] += constant.nbytes
        left = sum(groups.values())
        if left < NOTABLE * self.nbytes or not left:
            return None
        return f"{_of(left, self.nbytes)} of weights were left as they are: {_listed(groups)}"


def _of(part: int, whole: int) -> str:
    """`30.6 of 31.9 MB`, or with both units where they differ."""
    number, _, unit = bytes_text(part).partition(" ")
    total = bytes_text(whole)
    return f"{number if total.endswith(f' {unit}') else bytes_text(part)} of {total}"


def _listed(groups: dict[tuple[str, str], int]) -> str:
    ranked = sorted(groups.items(), key=lambda item: -item[1])
    words = [f"{ops} ({bytes_text(size)}): {why}" for (ops, why), size in ranked[:_GROUPS_SHOWN]]
    rest = ranked[_GROUPS_SHOWN:]
    if rest:
        words.append(f"others ({bytes_text(sum(size for _, size in rest))})")
    return "; ".join(words)


def _reason(tensor: gs.Tensor, reasons: dict[str, str]) -> tuple[str, str | None]:
    """Which operators read a constant, and why the pass declined it; None: it did not say."""
    readers = list(dict.fromkeys(_readers(tensor)))
    ops = " and ".join(sorted({node.op for node in readers})) or "nothing"
    labels = [tensor.name, *map(node_label, readers)]
    why = next((reasons[label] for label in labels if label in reasons), None)
    if why is None and not any(node.op in WEIGHT_OPS for node in readers):
        why = "no weights of a layer"
    return ops, why


def _readers(tensor: gs.Tensor) -> Iterator[Node]:
    for node in tensor.outputs:
        if node.op in _VIEWS and node.is_onnx:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _float_constants(graph: gs.Graph) -> Iterator[tuple[Constant, gs.Tensor]]:
    """The float constants of `graph` and its bodies, each with the tensor that nodes read."""
    for current in walk_graphs(graph):
        for node in current.nodes:
            if node.op == "Constant" and node.is_onnx:
                value = node.attrs.get("value")
                if isinstance(value, Constant) and is_float(value.dtype):
                    yield value, node.outputs[0]
            for tensor in node.inputs:
                if isinstance(tensor, Constant) and is_float(tensor.dtype):
                    yield tensor, tensor
