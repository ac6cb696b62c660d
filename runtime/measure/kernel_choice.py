"""Whether outputs moved because onnxruntime chose other kernels, and for no other reason.

Around DequantizeLinear and QuantizeLinear onnxruntime computes in kernels of its own, where nodes
stand as it looks for them. Some round more than the nodes say: a MatMul with integer weights
becomes a MatMulNBits, which also puts its other operand on 8 bits. So an edit that computes the
same can move outputs by what that costs, because a session now finds what stood apart before. With
these kernels off, the outputs of such an edit agree to rounding, and those of a wrong edit do not.

Owns: what shows it. Not here: how far outputs may move for it (see `verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxslim.errors import RuntimeFailure
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.model import Model
from onnxslim.records import Fidelity
from onnxslim.runtime.measure.comparing import first_breach, measure_drift
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Outputs, Session


def is_choice_of_kernels(
    before: Model,
    after: Model,
    runs: Sequence[Sample],
    opened: Callable[[Model], Session],
    compared: Callable[[Outputs], Outputs],
) -> bool:
    """Whether both models agree to rounding where onnxruntime has no kernels for quantized nodes.

    Args:
        before: the model without the edit.
        after: the model with it.
        runs: what to run them on.
        opened: opens a session without these kernels.
        compared: the outputs of a run that are compared.
    """
    nodes = (node for graph in walk_graphs(after.graph) for node in graph.nodes)
    if not any(node.op == "DequantizeLinear" for node in nodes):
        return False
    try:
        with opened(before) as session:
            reference = [compared(session.run(sample.feeds)) for sample in runs]
        with opened(after) as session:
            meters, broken = measure_drift(session, runs, (reference,))
            return not (broken or first_breach(meters[0], session.outputs, Fidelity.CLOSE))
    except RuntimeFailure:
        return False
