"""Merge chains of Cast.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (int32[N] x) => (float[N] y) {
        a = Cast <to = 7> (x)
        y = Cast <to = 1> (a)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (int32[N] x) => (float[N] y) {
        y = Cast <to = 1> (x)
    }
    ```
    A chain that ends in the type it began with is removed.

Why it is correct:
    A cast to a type that holds every value of the first one changes nothing (int32 -> int64 here),
    so only the last cast counts. From integer to integer, casts keep the low bits, so a middle
    type at least as wide as the last one can be skipped too.

Declines when:
    1. The type in the middle does not hold every value (float to int, float32 to float16, ...).
    2. The value in the middle has other users, and the chain does not end where it began.
    3. A float32 goes to an integer over float64: what happens to values out of range is not
       specified, and differs.
    4. A type is none of bool, integers, float16, bfloat16, float32, float64.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification: Cast. IEEE 754 for what a float type holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxslim.graph.ir import Node, to_onnx_dtype
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_INTEGERS: Final[Mapping[int, tuple[int, bool]]] = {  # type -> (bits, signed)
    TensorProto.INT8: (8, True),
    TensorProto.INT16: (16, True),
    TensorProto.INT32: (32, True),
    TensorProto.INT64: (64, True),
    TensorProto.UINT8: (8, False),
    TensorProto.UINT16: (16, False),
    TensorProto.UINT32: (32, False),
    TensorProto.UINT64: (64, False),
}
_FLOATS: Final[
    Mapping[int, tuple[int, int]]
] = {  # type -> (bits of the significand, bits of the exponent)
    TensorProto.FLOAT16: (11, 5),
    TensorProto.BFLOAT16: (8, 8),
    TensorProto.FLOAT: (24, 8),
    TensorProto.DOUBLE: (53, 11),
}
_KNOWN: Final[frozenset[int]] = frozenset({TensorProto.BOOL, *_INTEGERS, *_FLOATS})


@dataclass(frozen=True)
class FuseCasts(RewritePass):
    """Merge chains of Cast."""

    name: ClassVar[str] = "fuse-casts"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Let every Cast read past the Cast before it."""
        rw = self.rewriter(graph)
        for node in rw.walk("Cast"):
            before = rw.producer(node.inputs[0], "Cast")
            if before is not None and before.inputs[0].dtype is not None:
                _fuse(rw, node, before)
        return rw.result()


def _fuse(rw: Rewriter, node: Node, before: Node) -> None:
    source = before.inputs[0]
    first = to_onnx_dtype(np.dtype(source.dtype))
    middle, last = int(before.attrs["to"]), int(node.attrs["to"])
    if not {first, middle, last} <= _KNOWN:
        return  # declines 4
    if not may_skip(first, middle, last):
        rw.skip(node, "the Cast before it loses something")  # declines 1, 3
        return
    if first == last and rw.substitute(node, source, "Cast and Cast back"):
        return
    if rw.private_producer(node.inputs[0], "Cast") is None:
        rw.skip(node, "the Cast before it has other users")  # declines 2
        return
    rw.update(node, "two Casts became one", inputs=[source])


def may_skip(first: int, middle: int, last: int) -> bool:
    """Whether first -> middle -> last always gives what first -> last gives."""
    integers = {first, middle, last} <= _INTEGERS.keys()
    if integers and _INTEGERS[middle][0] >= _INTEGERS[last][0]:
        return True
    out_of_range = (first, middle) == (TensorProto.FLOAT, TensorProto.DOUBLE) and last in _INTEGERS
    return holds(middle, first) and not out_of_range


def holds(wide: int, narrow: int) -> bool:
    """Whether every value of `narrow` is one of `wide`, and comes back unchanged."""
    if wide == narrow or narrow == TensorProto.BOOL:
        return True
    if wide == TensorProto.BOOL:
        return False
    if narrow in _INTEGERS:
        bits, signed = _INTEGERS[narrow]
        if wide in _FLOATS:
            digits, exponent = _FLOATS[wide]
            return bits - signed <= min(digits, (1 << (exponent - 1)) - 1)
        wide_bits, wide_signed = _INTEGERS[wide]
        # a sign takes one bit; without one, nothing below zero can be held
        return wide_bits - wide_signed >= bits - signed and (wide_signed or not signed)
    if wide not in _FLOATS:
        return False
    return all(w >= n for w, n in zip(_FLOATS[wide], _FLOATS[narrow], strict=True))
