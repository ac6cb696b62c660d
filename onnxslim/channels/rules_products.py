"""How labels go through a MatMul of two activations, as in attention."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.channels.labels import ChannelLabels, LabelArray, labelled_axes, with_rank
from onnxslim.channels.tracing import ChannelTracer, Untraceable
from onnxslim.graph.ir import Node, node_label


def product_of_activations(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """A·B of two activations: labels along the sum are merged, those of rows and columns go on.

    Labels along the sum that also depend on the matrix of a stack (the head of attention) leave as
    a whole, together with the matrix.
    """
    a, b = node.inputs
    shapes = tracer.shape(a), tracer.shape(b)
    if min(map(len, shapes)) < 2:
        raise Untraceable("one of its operands is a vector")
    rank = max(map(len, shapes))
    # (…, M, K) and (…, N, K): the sum is the last axis of both
    left = [with_rank(array, rank) for array in tracer.labels(a)]
    right = [with_rank(array, rank).swapaxes(-1, -2) for array in tracer.labels(b)]
    why = f"`{node_label(node)}` (MatMul) sums over them with others that must stay"
    # labels along the sum: what is left of them is about the matrices of the stack
    summed = [
        [array for array in side if rank - 1 in labelled_axes(array)] for side in (left, right)
    ]
    stacks = _summed(node, tracer, summed, rank, why)
    # labels along other axes are those of rows of A, of columns of B, and of the stack
    rows = [array for array in left if rank - 1 not in labelled_axes(array)]
    columns = [array.swapaxes(-1, -2) for array in right if rank - 1 not in labelled_axes(array)]
    kept = [array for array in stacks if array.size > 1]
    _keep_unmatched_stacks(node, tracer, rank, [*rows, *columns, *kept])
    return (tracer.joined([*kept, *rows, *columns], why),)


def _summed(
    node: Node, tracer: ChannelTracer, summed: list[list[LabelArray]], rank: int, why: str
) -> ChannelLabels:
    """Merge labels that meet in the sum; the labels that are left along axes of the stack."""
    parts: list[LabelArray] = []
    for side in summed:
        # the other operand does not have these rows: their labels merge
        parts += tracer.collapsed(tuple(side), frozenset({rank - 2}), why)
    if len(parts) == 2 and labelled_axes(parts[0]) == labelled_axes(parts[1]):
        whole = tracer.merge(parts[0], parts[1], why)
        if labelled_axes(whole) == {rank - 1}:
            tracer.trace.weightless_readers.append((node, whole.reshape(-1)))
            return ()
        parts = [whole]
    # all columns of a matrix are summed over, or those of an operand that keeps them
    return tracer.collapsed(tuple(parts), frozenset({rank - 1}), why)


def _keep_unmatched_stacks(
    node: Node, tracer: ChannelTracer, rank: int, labels: Sequence[LabelArray]
) -> None:
    """Keep the matrices of a stack together where an operand has as many without labels."""
    for index, tensor in enumerate(node.inputs):
        shape = tracer.shape(tensor)
        shape = (*(1,) * (rank - len(shape)), *shape)
        own = {
            ax for array in tracer.labels(tensor) for ax in labelled_axes(with_rank(array, rank))
        }
        why = f"`{tensor.name}` has as many matrices, which must stay"
        for array in labels:
            met = frozenset(
                axis for axis in labelled_axes(array) - own if axis < rank - 2 and shape[axis] != 1
            )
            tracer.keep_whole(array, tracer.without_repeats(node, index, array, met, rank), why)
