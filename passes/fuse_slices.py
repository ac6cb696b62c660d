"""Merge operators that take parts of a tensor: Slice, Split, Gather of neighbours.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 4, 6] x) => (float[N, 2, 6] y, float[N, 2, 6] z) {
        zero = Constant <value = int64[1] {0}> ()
        two = Constant <value = int64[1] {2}> ()
        four = Constant <value = int64[1] {4}> ()
        axis = Constant <value = int64[1] {1}> ()
        y = Slice (x, zero, two, axis)
        z = Slice (x, two, four, axis)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 4, 6] x) => (float[N, 2, 6] y, float[N, 2, 6] z) {
        y, z = Split <axis = 1> (x)
    }
    ```
    In the same way:
    - Slice of a Slice is one Slice;
    - Slice of one element and Squeeze of its axis is a Gather with a scalar index;
    - Gather of a range of neighbours is a Slice where that takes fewer bytes;
    - Concat of all parts of a Split is what was split;
    - SplitToSequence of which single elements are taken is a Split, or a Gather for each.

Why it is correct:
    Each of them copies elements. Element i of x[a:b:s][c:d:t] is element a + s(c + t i) of x, for
    as long as that lies below b and below a + s d.

Declines when:
    1. A start or end is not known, or counts from the end of an axis whose size is not known.
    2. The inner Slice has users that cannot take it in, or that are one Split of it.
    3. The Slices overlap or leave something out.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification: Slice, Split, Gather, Squeeze.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import as_slice, slice_ranges
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, const_array, is_present, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_INT64_MAX: Final = int(np.iinfo(np.int64).max)
Bounds = dict[int, tuple[int, int, int]]


@dataclass(frozen=True)
class FuseSlices(RewritePass):
    """Merge operators that take parts of a tensor: Slice, Split, Gather of neighbours."""

    name: ClassVar[str] = "fuse-slices"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Merge pairs first, then all Slices of one tensor together."""
        rw = self.rewriter(graph)
        fuser = _SliceFuser(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk("Slice", "Squeeze", "Gather", "Concat", "SequenceAt"):
            if node.op == "Slice" and not fuser.merge_slices(node):
                fuser.slices_to_split(node)
            elif node.op == "Squeeze":
                fuser.squeeze_to_gather(node)
            elif node.op == "Gather":
                fuser.gather_to_slice(node)
            elif node.op == "Concat":
                fuser.drop_concat(node)
            elif node.op == "SequenceAt":
                fuser.take_from_sequence(node)
        return rw.result()


class _SliceFuser:
    def __init__(self, rw: Rewriter, flow: SizeFlow) -> None:
        self.rw = rw
        self.flow = flow
        self.place = {node: i for graph in rw.graphs() for i, node in enumerate(graph.nodes)}
        self.tried: set[gs.Tensor] = set()

    def bounds(self, node: Node) -> Bounds | None:
        """(start, end, step) by axis; None when anything is not known."""
        found: Bounds = {}
        for axis, (start, end, step) in (slice_ranges(node, self.flow) or {}).items():
            if not isinstance(start, int) or not isinstance(end, int):
                return None
            found[axis] = (start, end, step)
        return found or None

    def merge_slices(self, node: Node) -> bool:
        """Replace ``Slice(Slice(x))`` with one Slice."""
        inner = self.rw.producer(node.inputs[0], "Slice")
        if inner is None:
            return False
        if self.bounds(inner) is None or self.bounds(node) is None:
            self.rw.skip(node, "its bounds are not known")  # declines 1
            return False
        both = self._both(inner, node)
        if both is None:
            self.rw.skip(node, "a bound counts from an end that is not known")  # declines 1
            return False
        users = dict.fromkeys(node.inputs[0].outputs)
        is_needed = self.rw.is_output(node.inputs[0])
        if is_needed or not all(self._takes_in(user, inner) for user in users):
            self.rw.skip(node, "the Slice it reads has other users")  # declines 2
            return False
        self.slices_to_split(node)
        if not self.rw.is_alive(node):
            return True
        inputs, attrs = self._slice_operands(inner.inputs[0], both)
        self.rw.update(node, "two Slices became one", inputs=inputs, attrs=attrs)
        return True

    def _takes_in(self, user: Node, inner: Node) -> bool:
        """Whether a user of `inner` can do what both do."""
        is_here = self.rw.graph_of(user) is self.rw.graph_of(inner)
        if user.op != "Slice" or not user.is_onnx or not is_here:
            return False
        return user.inputs[0] is inner.outputs[0] and self._both(inner, user) is not None

    def _both(self, inner: Node, node: Node) -> Bounds | None:
        """The bounds of a Slice of a Slice."""
        first, second = self.bounds(inner), self.bounds(node)
        if first is None or second is None:
            return None
        shape = self.flow.shape(inner.inputs[0])
        both: Bounds = dict(first)
        for axis, bound in second.items():
            if axis not in first:
                both[axis] = bound
                continue
            size = None if shape is None else shape[axis]
            merged = _composed(first[axis], bound, size if isinstance(size, int) else None)
            if merged is None or (merged[2] != 1 and self.rw.opset < 10):
                return None
            both[axis] = merged
        return both

    def slices_to_split(self, node: Node) -> None:
        """Replace Slices that together cover one axis with one Split."""
        data = node.inputs[0]
        if data in self.tried or len(data.outputs) < 2:
            return  # all Slices of one tensor are handled together, once
        bounds = self.bounds(node)
        if bounds is None or len(bounds) != 1:
            return
        (axis,) = bounds
        shape = self.flow.shape(data)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return
        self.tried.add(data)
        parts: dict[int, tuple[int, Node]] = {}
        # by start: (stop, Slice); of two equal Slices the first counts
        for user in data.outputs:
            part = self._part(user, data, axis, size)
            if part is not None and self.rw.graph_of(user) is self.rw.graph_of(node):
                parts.setdefault(part.start, (part.stop, user))
        chain = _covering(parts, size)
        if len(chain) < 2:
            if len(parts) > 1:
                self.rw.skip(node, "the Slices overlap or leave something out")  # declines 3
            return
        self._split(node, axis, chain)

    def _part(self, user: Node, data: gs.Tensor, axis: int, size: int) -> range | None:
        if user.op != "Slice" or not user.is_onnx or user.inputs[0] is not data:
            return None
        bounds = self.bounds(user)
        if bounds is None or list(bounds) != [axis] or bounds[axis][2] != 1:
            return None
        part = range(size)[slice(*bounds[axis])]
        return part if len(part) else None

    def _split(self, node: Node, axis: int, chain: list[tuple[int, Node]]) -> None:
        sizes = [size for size, _ in chain]
        inputs, attrs = [node.inputs[0]], {"axis": axis} if axis else {}
        if self.rw.opset >= 18 and len(set(sizes)) == 1:
            attrs["num_outputs"] = len(sizes)
        elif len(set(sizes)) > 1 and self.rw.opset >= 13:
            inputs.append(self.rw.constant(np.array(sizes, np.int64), "split"))
        elif len(set(sizes)) > 1:
            attrs["split"] = sizes  # type: ignore[assignment]
        # the Split stands before the first of the Slices, so that all of their users come later
        first = min((user for _, user in chain), key=self.place.__getitem__)
        given = self.flow.shape(node.inputs[0])
        results = self.rw.insert(
            first,
            "Split",
            inputs,
            attrs,
            name=f"{first.label}_part",
            dtype=node.inputs[0].dtype,
            shape=None if given is None else [None] * len(given),
            outputs=len(chain),
        )
        for result, (_, user) in zip(results, chain, strict=True):
            result.shape = user.outputs[0].shape
            self.rw.substitute(user, result, f"one of {len(chain)} Slices became part of a Split")

    def squeeze_to_gather(self, node: Node) -> None:
        """Replace ``Squeeze(Slice(x, [i:i+1]))`` with a Gather of a scalar index."""
        if self._from_split(node):
            return
        part = self.rw.private_producer(node.inputs[0], "Slice")
        bounds = None if part is None else self.bounds(part)
        shape = None if part is None else self.flow.shape(part.inputs[0])
        if part is None or bounds is None or shape is None or len(bounds) != 1:
            return
        ((axis, (start, end, _)),) = bounds.items()
        if normalized(axes_of(node, self.rw.opset), len(shape)) != (axis,):
            return
        size = shape[axis]
        if isinstance(size, int):
            picked = range(size)[as_slice(*bounds[axis])]
            if len(picked) != 1:
                return
            start = picked.start
        elif not _is_one(start, end) or (start < 0 and self.rw.opset < 11):
            return
        self._pick(node, part.inputs[0], start, axis, "Slice")

    def _pick(self, node: Node, data: gs.Tensor, start: int, axis: int, was: str) -> None:
        index = self.rw.constant(np.array(start, np.int64), "index")
        attrs = {"axis": axis} if axis else {}
        what = f"{was} of one element and Squeeze became a Gather"
        self.rw.update(node, what, op="Gather", inputs=[data, index], attrs=attrs)

    def _from_split(self, node: Node) -> bool:
        """Replace ``Squeeze(Split(x)[i])`` with a Gather, where all parts are squeezed."""
        split = self.rw.producer(node.inputs[0], "Split")
        shape = None if split is None else self.flow.shape(split.inputs[0])
        if split is None or shape is None:
            return False
        axis = int(split.attrs.get("axis", 0)) % len(shape)
        if shape[axis] != len(split.outputs) or not all(
            self._is_squeezed(part, axis, len(shape), node) for part in split.outputs
        ):
            return False
        index = next(i for i, part in enumerate(split.outputs) if part is node.inputs[0])
        self._pick(node, split.inputs[0], index, axis, "Split")
        return True

    def _is_squeezed(self, part: gs.Tensor, axis: int, ndim: int, node: Node) -> bool:
        if self.rw.is_output(part):
            return False
        return all(
            user.op == "Squeeze"
            and normalized(axes_of(user, self.rw.opset), ndim) == (axis,)
            and self.rw.graph_of(user) is self.rw.graph_of(node)
            for user in part.outputs
        )

    def gather_to_slice(self, node: Node) -> None:
        """Replace Gather of a long range of neighbours with a Slice, or with nothing."""
        indices, shape = const_array(node.inputs[1]), self.flow.shape(node.inputs[0])
        if indices is None or indices.ndim != 1 or indices.size < 2 or shape is None:
            return
        start = int(indices[0])
        if start < 0 or not np.array_equal(indices, np.arange(start, start + indices.size)):
            return
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        if start == 0 and shape[axis] == indices.size:
            self.rw.substitute(node, node.inputs[0], "Gather takes everything in order")
        elif indices.nbytes > 64:
            bounds = {axis: (start, start + indices.size, 1)}
            inputs, attrs = self._slice_operands(node.inputs[0], bounds)
            self.rw.update(node, "range of Gather", op="Slice", inputs=inputs, attrs=attrs)

    def take_from_sequence(self, node: Node) -> None:
        """Replace what takes an element of a sequence by what made the element."""
        index = const_array(node.inputs[1])
        made = self.rw.producer(node.inputs[0], "SequenceConstruct", "SplitToSequence")
        if made is None or index is None:
            return
        place = int(index.reshape(-1)[0])
        if made.op == "SequenceConstruct":
            if -len(made.inputs) <= place < len(made.inputs):
                self.rw.substitute(node, made.inputs[place], "an element of a known sequence")
        elif is_present(made, 1):
            self._split_sequence(made)
        elif not made.attrs.get("keepdims", 1):
            axis = int(made.attrs.get("axis", 0))
            self._pick(node, made.inputs[0], place, axis, "SplitToSequence")

    def _split_sequence(self, made: Node) -> None:
        """Replace a SplitToSequence, of which single elements are taken, with a Split."""
        takers = list(made.outputs[0].outputs)
        indices = [const_array(user.inputs[1]) for user in takers if user.op == "SequenceAt"]
        sizes = self._part_sizes(made)
        known = [int(item.reshape(-1)[0]) for item in indices if item is not None]
        if sizes is None or len(known) != len(takers) or self.rw.is_output(made.outputs[0]):
            return
        if any(self.rw.graph_of(user) is not self.rw.graph_of(made) for user in takers):
            return
        if not all(-len(sizes) <= place < len(sizes) for place in known):
            return
        inputs, attrs = [made.inputs[0]], {"axis": int(made.attrs.get("axis", 0))}
        if self.rw.opset >= 13:
            inputs.append(self.rw.constant(np.array(sizes, np.int64), "split"))
        else:
            attrs["split"] = sizes  # type: ignore[assignment]
        parts = self.rw.insert(
            made,
            "Split",
            inputs,
            attrs,
            name=made.label,
            dtype=made.inputs[0].dtype,
            outputs=len(sizes),
        )
        for user, place in zip(takers, known, strict=True):
            self.rw.substitute(user, parts[place], "SplitToSequence became a Split")

    def _part_sizes(self, made: Node) -> list[int] | None:
        """The sizes of the elements of a SplitToSequence."""
        split, shape = const_array(made.inputs[1]), self.flow.shape(made.inputs[0])
        if split is None or (split.ndim == 1 and split.size):
            return None if split is None else [int(size) for size in split]
        whole = None if shape is None else shape[int(made.attrs.get("axis", 0))]
        if not isinstance(whole, int) or split.ndim or int(split) <= 0:
            return None
        return [min(int(split), whole - start) for start in range(0, whole, int(split))]

    def drop_concat(self, node: Node) -> None:
        """Remove a Concat of all parts of a Split."""
        split = self.rw.producer(node.inputs[0], "Split")
        shape = None if split is None else self.flow.shape(split.inputs[0])
        if split is None or shape is None or list(node.inputs) != list(split.outputs):
            return
        if int(node.attrs.get("axis", 0)) % len(shape) != split.attrs.get("axis", 0) % len(shape):
            return
        self.rw.substitute(node, split.inputs[0], "Concat restores what Split took apart")

    def _slice_operands(
        self, data: gs.Tensor, bounds: Mapping[int, tuple[int, int, int]]
    ) -> tuple[list[gs.Tensor], dict[str, Any]]:
        """Inputs and attributes of a Slice, without what the operator's defaults say."""
        axes = sorted(bounds)
        starts, ends, steps = ([bounds[axis][i] for axis in axes] for i in range(3))
        default_axes = axes == list(range(len(axes)))
        if self.rw.opset < 10:
            return [data], {"starts": starts, "ends": ends, "axes": axes}
        columns = {"starts": starts, "ends": ends}
        if not default_axes or set(steps) != {1}:
            columns["axes"] = axes
        if set(steps) != {1}:
            columns["steps"] = steps
        constants = [
            self.rw.constant(np.array(values, np.int64), name) for name, values in columns.items()
        ]
        return [data, *constants], {}


def _is_one(start: int, end: int) -> bool:
    """Whether start to end is one element of every axis that has it."""
    return (end == start + 1 and end != 0) or (start == -1 and end >= 2**31 - 1)


def _composed(
    first: tuple[int, int, int], second: tuple[int, int, int], size: int | None
) -> tuple[int, int, int] | None:
    """Bounds of x[first][second] along one axis."""
    if size is not None:  # Python's ranges resolve negative bounds and steps
        picked = range(size)[as_slice(*first)][as_slice(*second)]
        # going back, an end before the first element cannot be written as an index
        end = picked.stop if picked.stop >= 0 else -_INT64_MAX
        return (picked.start, end, picked.step) if len(picked) else (0, 0, 1)
    (a, b, s), (c, d, t) = first, second
    if min(a, b, s, c, d, t) < 0:  # counts from an end that is not known
        return None
    # element i of x[a:b:s][c:d:t] is a + s·(c + t·i), below b and below a + s·d
    return a + s * c, min(b, a + s * d, _INT64_MAX), s * t


def _covering(parts: Mapping[int, tuple[int, Node]], size: int) -> list[tuple[int, Node]]:
    """The parts in order, as (length, node), if they are all of 0 to `size`; else nothing."""
    chain: list[tuple[int, Node]] = []
    position = 0
    while position < size:
        if position not in parts:
            return []
        stop, user = parts[position]
        chain.append((stop - position, user))
        position = stop
    return chain if len(chain) == len(parts) else []
