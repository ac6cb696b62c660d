"""Raise the opset of a model: the same operators in their newer forms.

Rewrite:
    ```
    <opset_import: ["" : 11]>
    before (float[1, 8, 1] x) => (float[1, 8] y) {
        a = Softmax <axis = 1> (x)
        y = Squeeze <axes = [2]> (a)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 13]>
    after (float[1, 8, 1] x) => (float[1, 8] y)
    <int64[3] shape = {1, 8, 1}, int64[1] axes = {2}>
    {
        rows = Flatten <axis = 1> (x)
        flat = Softmax <axis = -1> (rows)
        a = Reshape (flat, shape)
        y = Squeeze (a, axes)
    }
    ```
    with `to=13`. Bodies and local functions are raised too. Inputs, outputs, names, metadata, doc
    strings and weights stay as they are. `quantize-int8`, `quantize-weights` and the passes that
    store codebooks do this by themselves where they need a later opset.

Why it is correct:
    Operators change in four ways. Most take more types, or get attributes whose default is the
    old meaning: they stay as they are. Operands move from attributes to inputs (Clip, Pad, Slice,
    Split, Squeeze, Unsqueeze, TopK, ReduceSum and its like): they become constants. A default or a
    name changes (RoiAlign, GridSample, Split): it is written out. The meaning changes: Softmax,
    LogSoftmax and Hardmax took all axes from `axis` on as one, so that the input is flattened;
    Upsample and Resize took element i at i / scale, which is `asymmetric`, and rounded down on axes
    that grow and up on axes that shrink. The raised model is compared with the model before; where
    outputs differ by more than rounding, or onnxruntime does not load it, nothing is done.

Declines when:
    1. The opset is below 7, or `to` is not above it.
    2. The later form cannot say what a node does: Resize to the nearest element with scales
       computed at run time, BatchNormalization that trains or has `spatial=0`, Dropout whose mask
       is used, Scan over batches, the coordinates `tf_half_pixel_for_nn`, GroupNormalization whose
       operands are computed at run time.
    3. A type is needed and not known, or the caller of a local function gives an attribute that
       becomes an input.
    4. The operator is none of the standard at that opset.
    5. Raised, the model does not run in onnxruntime, or returns something else.

Fidelity:
    CLOSE. It prepares: what was an attribute is stored as a constant, a few bytes more; newer
    operators pay, such as the Gelu (20) and RMSNormalization (23) that `simplify` then writes. So
    it is kept or left out together with the pass behind it.

Reference:
    The ONNX operator changelog; onnx/onnx issue 8480, on what onnx's own converter makes of Resize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.opset import COMPLETE, LATEST, OLDEST
from onnxslim.io.model import Model
from onnxslim.pipeline.options import Interval, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.raising import raise_proven
from onnxslim.records import Change, Fidelity, PassResult, Skip


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Raise the opset of a model: the same operators in their newer forms."""

    name: ClassVar[str] = "raise-opset"
    examples: ClassVar[Mapping[str, str]] = {
        "raise-opset": "to the latest opset of which onnxruntime runs every operator",
        "raise-opset:to=17": "to opset 17",
        "raise-opset:to=23,simplify": "the operators of opset 23 for what is spelled out",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE
    prepares: ClassVar[bool] = True

    to: int = option(COMPLETE, Interval(OLDEST, LATEST), "the opset to reach")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Raise the opset, with proof."""
        before = graph.opset_of("")
        try:
            changes = raise_proven(context.model or Model.of(graph), self.to, context)
        except NotApplicable as reason:
            return PassResult(skips=(Skip(graph.name, str(reason)),))
        if graph.opset_of("") == before:
            why = f"its opset is {before} already"
            return PassResult(skips=(Skip(graph.name, why),))
        what = f"opset raised from {before} to {self.to}"
        return PassResult((Change(graph.name, what), *changes))
