"""Each block trained alone: what it returns comes nearer to what the original returned there.

The student ends at the block and the teacher at the same tensor of the original model. Layers in
front of the block stay as they are, so that they run once, and the memory is that of one block
(Li et al., arXiv:1812.01839, few samples; Blakeney et al., arXiv:2012.03096, blocks by themselves).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.storing import store_values
from onnxslim.errors import NotApplicable
from onnxslim.graph.counts import constants_of
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.services.training import TrainingRequest
from onnxslim.substitution.measuring import exposing
from onnxslim.substitution.placed import PlacedBlock, WrittenBlock


@dataclass(frozen=True)
class BlockTraining:
    """How blocks are trained alone.

    Attributes:
        request: of the training.
    """

    request: TrainingRequest

    def trained(
        self, block: PlacedBlock, made: WrittenBlock, student: Model, context: Context
    ) -> PlacedBlock:
        """The block with the values that it learned; `student`, which has it, gets them, too."""
        original = context.target or context.model
        if context.trainer is None or original is None:
            return block
        labels = set(made.nodes)

        def accepts(readers: Sequence[str]) -> bool:
            return labels.issuperset(readers)

        cut, teacher = (exposing(model, block.output) for model in (student, original))
        try:
            found = context.trainer.train(cut, [teacher], self.request, accepts)
        except NotApplicable as reason:
            return replace(block, what=f"{block.what}; trained alone: {reason}")
        rw = Rewriter(student.graph)
        store_values(rw, read_constraints(student.graph), found.values)
        rw.result()
        after = found.after if found.values else found.before
        words = f"trained alone, {found.figure} {found.before:.3g} to {after:.3g}"
        known = {c.name: c for c in constants_of(student.graph)}
        arrays = [known[constant.name].values for constant in made.constants]
        return replace(block.with_values(arrays), what=f"{block.what}; {words}")
