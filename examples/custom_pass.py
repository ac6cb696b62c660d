"""Write a pass, run it on a model, and have it verified like the built-in passes.

python examples/custom_pass.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import click
import onnx
import onnx_graphsurgeon as gs

import onnxslim
from onnxslim.runtime.measure.verify import RuntimeProver

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 4] x) => (float[batch, 4] y) {
    a = Neg (x)
    b = Neg (a)
    y = Relu (b)
}
"""


@dataclass(frozen=True)
class EliminateNegNeg(onnxslim.Pass):
    """Replace ``Neg(Neg(x))`` with ``x``."""

    name: ClassVar[str] = "eliminate-neg-neg"
    fidelity: ClassVar[onnxslim.Fidelity] = onnxslim.Fidelity.EXACT

    def run(self, graph: gs.Graph, context: onnxslim.Context) -> onnxslim.PassResult:
        """Visit every Neg whose input comes from another Neg."""
        rw = onnxslim.Rewriter(graph)
        for node in rw.walk("Neg"):
            inner = rw.producer(node.inputs[0], "Neg")
            if inner is not None and not rw.substitute(node, inner.inputs[0], "removed Neg(Neg)"):
                rw.skip(node, "stands between a graph input and a graph output")
        return rw.result()


@click.command()
def main() -> None:
    """Run the pass on a tiny model; a broken promise would raise `PromiseBroken`."""
    model = onnxslim.Model.load(onnx.parser.parse_model(MODEL))
    prover = RuntimeProver(latency=False)
    prover.begin(model)
    result, steps = onnxslim.PassManager([EliminateNegNeg()]).run(model, prover=prover)
    for change in steps[0].changes:
        click.echo(f"{change.node}: {change.what}")
    click.echo(" ".join(node.op for node in result.graph.nodes))


if __name__ == "__main__":
    main()
