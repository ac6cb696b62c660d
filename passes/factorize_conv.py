"""Split Conv and ConvTranspose into cheaper ones, where that is measured to be faster.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 1, 3, 3] x) => (float[1, 4, 2, 2] y)
        <float[4, 1, 2, 2] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> {
        y = Conv (x, w)
    }
    ```
    becomes, as these four filters are one,
    ```
    <opset_import: ["" : 17]>
    after (float[1, 1, 3, 3] x) => (float[1, 4, 2, 2] y)
        <float[1, 1, 2, 2] a = {1, 1, 1, 1}, float[4, 1, 1, 1] b = {1, 1, 1, 1}> {
        h = Conv (x, a)
        y = Conv (h, b)
    }
    ```
    `method` says into what:
    `channel`: d filters, then a pointwise Conv that mixes them;
    `spatial`: along the first kernel axis into K maps, then along the others, each with its own
    stride, dilation and pads;
    `tucker2`: pointwise to fewer channels, the kernel on them, pointwise back;
    `cp`: pointwise, one filter for each map along each axis, pointwise;
    `flattened`: `cp` with `rank` terms for each output by itself;
    `depthwise`: `rank` filters for each channel, then a pointwise Conv;
    `auto`: for each layer the best of `channel`, `spatial`, `tucker2` and `depthwise`.
    A kernel of one position is split by `channel` whatever the method. Convs of one to three axes,
    grouped ones (every group alike), and ConvTranspose. How far: as in `factorize-dense`.

Why it is correct:
    All these kernels are sums of products of smaller ones, and convolutions in sequence multiply
    their kernels. Only the last convolution has a bias, so padding with zeros means the same as
    before. With the first factors given, the last one is the least-squares solution for
    E‖y − ŷ‖², where y is the output of the original network. For `channel` the first factor is
    optimal too: it holds the principal components of the layer's outputs.

Declines when:
    1. The weight is computed at run time, quantized, or stored as a codebook.
    2. The weight is also used by an operator that needs it whole, or by a layer that `only` and
       `skip` leave out.
    3. A group has a single output or a single input (a depthwise Conv), or the weight is zero.
    4. `spatial`: only one kernel axis is longer than 1. `spatial`, `cp`, `flattened`: a
       ConvTranspose with output_shape.
    5. No rank that keeps enough of the output has fewer weights.
    6. The terms of `cp` or `flattened` grow without bound and cancel each other.
    7. The split layer is not faster as measured on this machine at the layer's real shapes (with
       `goal=bytes`: not smaller; without measuring: has no fewer multiply-accumulates).
    8. The size of the layer's input is not known, so nothing can be measured.

Fidelity:
    LOSSY; CLOSE where only layers are split whose weights have that rank.

Reference:
    Zhang et al., arXiv:1505.06798 (channel); Jaderberg et al., arXiv:1405.3866 (spatial, scheme 2);
    Kim et al., arXiv:1511.06530 (tucker2); Lebedev et al., arXiv:1412.6553 (cp); Jin et al.,
    arXiv:1412.5474 (flattened); Guo et al., arXiv:1808.05517 (depthwise); Nakajima et al., JMLR 14
    (2013) (vbmf). We differ: first factors are fitted under the inputs' second moments, the last
    one to the original outputs on the inputs that the layers before now produce, there is no
    fine-tuning, and a split must be measured to pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.lowrank.base_pass import SplitPass
from onnxslim.lowrank.pieces import why_not_conv
from onnxslim.pipeline.options import one_of, option

_AUTO = ("channel", "spatial", "tucker2", "depthwise")


@dataclass(frozen=True)
class FactorizeConv(SplitPass):
    """Split Conv and ConvTranspose into cheaper ones, where that is measured to be faster."""

    name: ClassVar[str] = "factorize-conv"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,factorize-conv:macs=0.5": "half the multiply-accumulates",
        "factorize-conv:energy=0.95:method=channel": "95 % of the energy, by one method",
    }
    ops: ClassVar[frozenset[str]] = frozenset({"Conv", "ConvTranspose"})

    method: str = option(
        "auto",
        one_of("auto", "channel", "spatial", "tucker2", "cp", "flattened", "depthwise"),
        "what a layer is split into; auto: for each layer what gains most",
    )

    def methods(self, layer: WeightLayer) -> tuple[str, ...] | str:
        """The methods that the layer's kernel allows; the first of them first."""
        patches = layer.unfolding
        assert isinstance(patches, ConvPatches)
        if all(size == 1 for size in patches.kernel):
            return ("channel",)
        wished = _AUTO if self.method == "auto" else (self.method,)
        reasons = {method: _why_not(patches, method) for method in wished}
        found = tuple(method for method, why in reasons.items() if why is None)
        return found or "; ".join(why for why in reasons.values() if why is not None)


def _why_not(patches: ConvPatches, method: str) -> str | None:
    if method == "spatial" and sum(size > 1 for size in patches.kernel) < 2:
        return "spatial: only one kernel axis is longer than 1"
    return why_not_conv(patches, method)
