"""Let equal initializers share one.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2] x) => (float[2] y)
    <float[2] a = {1.0, 2.0}, float[2] bb = {1.0, 2.0}>
    {
        s = Add (x, a)
        y = Mul (s, bb)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2] x) => (float[2] y)
    <float[2] a = {1.0, 2.0}>
    {
        s = Add (x, a)
        y = Mul (s, a)
    }
    ```

Why it is correct:
    Element type, shape and bytes are equal, so +0.0 and -0.0, or two kinds of NaN, never meet.
    Constants of different graphs (bodies of If, Loop and Scan) are merged into one that all of
    them can see, under a name that no other tensor has.

    A weight of a product that is the transpose of a table, as exporters write the head of a
    language model, becomes a Transpose of the table: the same values, which the session transposes
    once when it loads the model.

Declines when:
    1. Both constants are graph outputs, each under a name of its own.
    2. The shared constant needs a longer name, which takes more bytes than sharing saves.
    3. The constant is the default of a graph input: the caller may override it.
    4. The constant is what a body returns: it cannot move out of the body.
    5. Of two constants that are each other's transpose, none is the table of a Gather and the other
       the right factor of MatMuls, or they take less than 64 KiB.

Fidelity:
    EXACT.

Reference:
    Hash consing. Types, shapes and a few sampled bytes are compared first. Only constants that
    agree in these are read in full (SHA-1), so a model without duplicates is hardly read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, StoredSparse, to_onnx_dtype
from onnxslim.graph.operands import content
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_SAMPLED = 64
_TIED_BYTES = 1 << 16  # of a weight that becomes a transposed table


@dataclass(frozen=True)
class DedupConstants(RewritePass):
    """Let equal initializers share one."""

    name: ClassVar[str] = "dedup-constants"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Group constants by cheap features first, then by content."""
        rw = self.rewriter(graph)
        constants = list(dict.fromkeys(_constants(rw)))
        if len(constants) > 1:
            names = _names(rw)
            constants = [constant for constant in constants if rw.allows(constant.name)]
            for kind in _groups(constants, _kind):
                for alike in _groups(kind, _sample):
                    for equal in _groups(alike, _digest):
                        _merge(rw, equal, names)
            _tie(rw)
        return rw.result()


def _constants(rw: Rewriter) -> Iterator[Constant]:
    for graph in rw.graphs():
        for node in graph.nodes:
            yield from (tensor for tensor in node.inputs if isinstance(tensor, Constant))
        yield from (tensor for tensor in graph.outputs if isinstance(tensor, Constant))


def _names(rw: Rewriter) -> dict[str, set[gs.Tensor]]:
    """All tensors of each name, over all graphs: bodies beside each other may repeat a name."""
    found: dict[str, set[gs.Tensor]] = {}
    for graph in rw.graphs():
        for tensor in (*graph.inputs, *graph.outputs, *graph.unused):
            found.setdefault(tensor.name, set()).add(tensor)
        for node in graph.nodes:
            for tensor in (*node.inputs, *node.outputs):
                found.setdefault(tensor.name, set()).add(tensor)
    return found


def _groups(
    constants: Iterable[Constant], key: Callable[[Constant], Hashable]
) -> list[list[Constant]]:
    """Groups of two or more constants with an equal `key`."""
    found: dict[Hashable, list[Constant]] = {}
    for constant in constants:
        found.setdefault(key(constant), []).append(constant)
    return [group for group in found.values() if len(group) > 1]


def _kind(constant: Constant) -> Hashable:
    stored = constant.stored
    if isinstance(stored, np.ndarray):
        return (False, to_onnx_dtype(stored.dtype), stored.shape)
    return (isinstance(stored, StoredSparse), stored.data_type, stored.shape)


def _sample(constant: Constant) -> bytes:
    """Bytes from the start, middle and end: unequal weights nearly always differ there."""
    _, data = content(constant)
    middle = len(data) // 2
    pieces = (data[:_SAMPLED], data[middle : middle + _SAMPLED], data[-_SAMPLED:])
    return b"".join(bytes(piece) for piece in pieces)


def _digest(constant: Constant) -> bytes:
    return hashlib.sha1(content(constant)[1]).digest()


def _merge(rw: Rewriter, equal: Sequence[Constant], names: Mapping[str, set[gs.Tensor]]) -> None:
    """Let all users read one of `equal`."""
    # a body must return a value of its own: what it returns cannot move out (declines 4)
    returned = {
        id(tensor) for body in rw.graphs() if body is not rw.main for tensor in body.outputs
    }
    equal = [constant for constant in equal if id(constant) not in returned]
    if len(equal) < 2:
        return
    alike = set(equal)

    def preference(constant: Constant) -> tuple[bool, bool, int]:
        # an output keeps its name; a name that another graph repeats cannot move there; and with
        # the shortest name, the nodes that use it cannot get larger
        repeated = not names[constant.name] <= alike
        return (not rw.is_output(constant), repeated, len(constant.name))

    kept, *others = sorted(equal, key=preference)
    others = [constant for constant in others if not rw.is_output(constant)]
    if not others:
        rw.skip(kept.name, "all constants equal to it are graph outputs, too")  # declines 1
        return
    if not names[kept.name] <= alike:
        name = rw.fresh_name(kept.name)
        if (len(name) - len(kept.name)) * (rw.uses(kept) + 1) > kept.nbytes:
            rw.skip(kept.name, "sharing it between bodies takes longer names than it saves")
            return
        kept.name = name
    for constant in others:
        rw.redirect(constant, kept)
        rw.note(constant.name, f"shares the {kept.nbytes:,} bytes of `{kept.name}`")


def _tie(rw: Rewriter) -> None:
    """Let weights of products that are tables transposed be computed from the tables."""
    tables: dict[Hashable, list[Constant]] = {}
    weights = []
    for constant in dict.fromkeys(_constants(rw)):
        if not _is_matrix(constant) or rw.is_output(constant) or not rw.allows(constant.name):
            continue
        readers = list(constant.outputs)
        if all(node.op == "Gather" and node.inputs[0] is constant for node in readers):
            tables.setdefault((constant.dtype, tuple(constant.shape)), []).append(constant)
        elif all(_is_right_factor(rw, node, constant) for node in readers):
            weights.append(constant)
    for weight in weights:
        alike = tables.get((weight.dtype, tuple(weight.shape)[::-1]), ())
        table = next((one for one in alike if _is_transpose(one.values, weight.values)), None)
        if table is None:
            continue
        (tied,) = rw.insert(
            weight.outputs[0],
            "Transpose",
            [table],
            {"perm": [1, 0]},
            name=weight.name,
            dtype=weight.dtype,
            shape=weight.shape,
        )
        rw.redirect(weight, tied)
        rw.note(weight.name, f"is the transpose of `{table.name}`: {weight.nbytes:,} bytes less")


def _is_matrix(constant: Constant) -> bool:
    stored = constant.stored
    return (
        not isinstance(stored, StoredSparse)
        and len(constant.shape) == 2
        and constant.nbytes >= _TIED_BYTES
    )


def _is_right_factor(rw: Rewriter, node: gs.Node, constant: Constant) -> bool:
    # a body that is run often would transpose the table each time where no session folds it
    return (
        node.op == "MatMul"
        and node.inputs[1] is constant
        and node.inputs[0] is not constant
        and rw.graph_of(node) is rw.main
    )


def _is_transpose(table: np.ndarray, weight: np.ndarray) -> bool:
    """Whether all bits agree; a row is compared first, so that unequal weights are hardly read."""

    def bits(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values).view(np.uint8)

    return np.array_equal(bits(table[0]), bits(weight[:, 0])) and np.array_equal(
        bits(table), bits(weight.T)
    )
