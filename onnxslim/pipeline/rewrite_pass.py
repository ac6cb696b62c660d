"""`RewritePass`: base of the passes that are many small rewrites, each of which can be left out.

A rewrite happens at a *site*: the first output of the node that was visited. Rewrites keep the
names of the values that they compute, so a site means the same in every round. The sites in `skip`
are not visited (see `Rewriter.walk`), so the same rewrites are left out wherever they come from:
the user, or the manager, which found them to be slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.analysis.layer_names import layer_names
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.layer_filter import LayerFilter, skip_option
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.patterns import literal


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass whose rewrites can be left out one by one."""

    names_layers: ClassVar[bool] = True

    skip: tuple[str, ...] = skip_option("nodes")

    def rewriter(self, graph: gs.Graph) -> Rewriter:
        """A rewriter that leaves the sites in `skip` alone."""
        if not self.skip:
            return Rewriter(graph)
        return Rewriter(graph, LayerFilter(skip=self.skip, names=layer_names(graph)).accepts)

    def leaving_out(self, sites: Mapping[str, Sequence[str]]) -> Pass:
        """See `Pass.leaving_out`."""
        return replace(self, skip=(*self.skip, *map(literal, sites.get(self.name, ()))))
