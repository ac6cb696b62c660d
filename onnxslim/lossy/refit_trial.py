"""A refit that stays only where samples that it has not seen confirm it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnxslim.graph.ir import Constant
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.services.calibration import Calibration

Refit = Callable[[], list[str]]
"""Gives constants of a graph other values; returns the labels of what was refitted."""


def confirmed_refits(
    rw: Rewriter, model: Model, reference: Model, held: Calibration, refits: Iterable[Refit]
) -> list[str]:
    """Try refits one after the other, and put back what does not bring the outputs nearer.

    Args:
        rw: of the graph of `model`.
        model: as it is now; refits change its constants.
        reference: the model whose outputs count.
        held: samples that no refit has seen.
        refits: tried in order, each from what the ones before left.

    Returns:
        The labels of what stays refitted.
    """
    kept: list[str] = []
    least: float | None = None
    for refit in refits:
        if least is None:
            least = _divergence(held, reference, model)
        before = _ConstantsBefore(rw)
        names = refit()
        found = _divergence(held, reference, model) if names else least
        if names and found < least:
            least, kept = found, [*kept, *names]
        else:
            before.put_back()
    return kept


def _divergence(held: Calibration, reference: Model, model: Model) -> float:
    (distance,) = held.distances(reference, [model])
    return distance.divergence


class _ConstantsBefore:
    """What the nodes of a graph read at one moment, and the values of the constants among it."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        nodes = [node for graph in rw.graphs() for node in graph.nodes]
        self._inputs = {node: tuple(node.inputs) for node in nodes}
        used = dict.fromkeys(tensor for tensors in self._inputs.values() for tensor in tensors)
        self._values = {t: t.stored for t in used if isinstance(t, Constant)}

    def put_back(self) -> None:
        """Let the nodes, which are still the same, read these again."""
        for constant, values in self._values.items():
            if constant.stored is not values:
                self._rw.set_values(constant, values)
        for node, tensors in self._inputs.items():
            for index, tensor in enumerate(tensors):
                if node.inputs[index] is not tensor:
                    self._rw.set_input(node, index, tensor)
            while len(node.inputs) > len(tensors):  # a bias that the node had not
                node.inputs.pop()
