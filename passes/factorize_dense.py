"""Split Gemm and MatMul weights in two of lower rank, where that is measured to be faster.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 4] x) => (float[1, 4] y)
        <float[4, 4] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> {
        y = MatMul (x, w)
    }
    ```
    becomes, as this weight has rank 1,
    ```
    <opset_import: ["" : 17]>
    after (float[1, 4] x) => (float[1, 4] y)
        <float[4, 1] a = {1, 1, 1, 1}, float[1, 4] b = {1, 1, 1, 1}> {
        h = MatMul (x, a)
        y = MatMul (h, b)
    }
    ```
    Gemm with any transA, transB, alpha and beta, and MatMul with a constant on either side, stacks
    of matrices too (one rank for all). All layers that share a weight are split alike. By default
    a layer gets the least rank that keeps `energy` of its output; `rank`, `ratio`,
    `rank-selection=vbmf` or a budget over the whole model (`latency`, `macs`, `bytes`) choose
    otherwise. A decision by timing is spelled in the report as a `plan`.

Why it is correct:
    With H = E[x xᵀ] = R·Rᵀ, E‖W·x − A·B·x‖² = ‖(W − A·B)·R‖², which the truncated singular value
    decomposition of W·R minimises among all A·B of rank r: A = U_r, B = U_rᵀ·W. The error is the
    sum of the squared singular values left out. Where a bias can be chosen it keeps the mean
    output, and H is that of x − E[x]. Where the weight has rank r itself, nothing is lost. Without
    samples, and for layers of more than 8,192 inputs, H = I.

Declines when:
    1. The weight is computed at run time, quantized, or stored as a codebook.
    2. The weight is also used by an operator that needs it whole (a Gather), or by a layer that
       `only` and `skip` leave out.
    3. The weight is a vector, is zero, or has values that are not finite.
    4. No rank that keeps enough of the output has fewer weights.
    5. The split layer is not faster as measured on this machine at the layer's real shapes (with
       `goal=bytes`: not smaller; without measuring: has no fewer multiply-accumulates).
    6. The size of the layer's input is not known, so nothing can be measured.

Fidelity:
    LOSSY; CLOSE where only layers are split whose weights have that rank.

Reference:
    Denton et al., arXiv:1404.0736 (the bound ‖A(W − Ŵ)‖ ≤ σ_{t+1}‖A‖); Chen et al., DRONE, NeurIPS
    2021 (the data-aware optimum); Nakajima et al., JMLR 14 (2013), theorem 2 (vbmf). We differ: the
    target is what the original network returned, on the inputs that the factorized layers before
    now produce, and a split must be measured to pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.layers import WeightLayer
from onnxslim.lowrank.base_pass import SplitPass


@dataclass(frozen=True)
class FactorizeDense(SplitPass):
    """Split Gemm and MatMul weights in two of lower rank, where that is measured to be faster."""

    name: ClassVar[str] = "factorize-dense"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,factorize-dense:ratio=0.5": "half of the weights of the layers",
        "factorize-dense:energy=0.95": "ranks that keep 95 % of the energy",
    }
    ops: ClassVar[frozenset[str]] = frozenset({"Gemm", "MatMul"})

    def methods(self, layer: WeightLayer) -> tuple[str, ...] | str:
        """The one method there is for a matrix."""
        return ("svd",)
