"""Replace calls of model-local functions by the nodes of the functions.

Rewrite:
    ```
    <opset_import: ["" : 17, "custom" : 1]>
    before (float[N, 2] x) => (float[N, 2] y) {
        y = custom.Block <slope = 0.5> (x)
    }
    <domain: "custom", opset_import: ["" : 17]>
    Block <slope> (a) => (c) {
        b = Neg (a)
        c = LeakyRelu <alpha: float = @slope> (b)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "custom" : 1]>
    after (float[N, 2] x) => (float[N, 2] y) {
        b = Neg (x)
        y = LeakyRelu <alpha = 0.5> (b)
    }
    ```
    Functions that functions call are replaced as well, and calls in bodies of If, Loop and Scan.
    Passes see no layer inside a function. `simplify:skip=inline-functions` keeps all functions,
    the option `keep` those whose names match.

Why it is correct:
    The ONNX standard defines the call of a function by its body. Names are made unique, attributes
    that the body takes from its caller get the caller's values, large constants are shared between
    calls.

Declines when:
    1. The function is one of onnxslim's own, which hold weights in fewer bytes, or is kept by name.
    2. Its domain is one of the standard or of onnxruntime, which may have a faster operator.
    3. It is written for another opset than the model, and one of its operators differs there.
    4. It calls itself, its calls would become more than 100,000 nodes, or a call gives it a graph.

Fidelity:
    EXACT.

Reference:
    The ONNX IR specification, section "Model local functions".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.graph.inlining import inline_functions
from onnxslim.pipeline.options import option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Replace calls of model-local functions by the nodes of the functions."""

    name: ClassVar[str] = "inline-functions"
    examples: ClassVar[Mapping[str, str]] = {
        "inline-functions,simplify": "functions opened, then their operators simplified",
        "inline-functions:keep=Gelu": "all functions but one",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    prepares: ClassVar[bool] = True

    keep: tuple[str, ...] = option((), help="functions that stay, such as my.domain.*")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Replace calls, outer before inner."""
        return inline_functions(graph, self.is_kept)

    def is_kept(self, name: str) -> bool:
        """Whether the function `name` stays."""
        return any(fnmatchcase(name, pattern) for pattern in self.keep)
