"""Decompositions of a kernel W[n, c, k...] into factors that are cheap to apply one after another.

    channel    W = Σ_r A[n, r]·B[r, c, k...]                        Zhang et al. 2015
    spatial    W = Σ_r A[n, r, k₂...]·B[r, c, k₁]                   Jaderberg et al. 2014, scheme 2
    tucker2    W = Σ_pq A[n, p]·G[p, q, k...]·B[q, c]               Kim et al. 2015
    cp         W = Σ_r A[n, r]·V₁[r, k₁]·V₂[r, k₂]···B[r, c]        Lebedev et al. 2015
    flattened  cp with `terms` terms for each output by itself      Jin et al. 2014
    depthwise  W = Σ_t A[n, c, t]·D[c, t, k...]                     Guo et al. 2018

All but the last factor come from a decomposition of W weighed by that part of H = E[x xᵀ] that the
method lets through (over channels, over kernel positions, ...); the last one, A, is then the best
there is for these and the whole of H (`Projection`). With A refitted no method needs more than its
first factors to be good.
"""

from __future__ import annotations

from typing import Final

from onnxslim.solvers.decompositions.base import Decomposition
from onnxslim.solvers.decompositions.closed_form import Channel, Depthwise, Spatial, Tucker2
from onnxslim.solvers.decompositions.iterative import Cp, Flattened

METHODS: Final[dict[str, type[Decomposition]]] = {
    "svd": Channel,  # of a kernel of one position
    "channel": Channel,
    "spatial": Spatial,
    "tucker2": Tucker2,
    "cp": Cp,
    "flattened": Flattened,
    "depthwise": Depthwise,
}
"""The decompositions by the names that users give."""
