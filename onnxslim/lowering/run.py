"""One run of `retarget`: what a target does not take, replaced by the best that it does.

Owns: the order of the replacements, and what the report says of what is left. Not here: the
replacements themselves (see the modules that it imports).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from onnxslim.graph.functions import DOMAIN
from onnxslim.graph.ir import Graph
from onnxslim.graph.local_functions import calls
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.lowering import branches, code_forms, dense_weights, floats, zero_points
from onnxslim.lowering.obstacles import is_matmul_nbits, obstacles, of_trait
from onnxslim.lowering.opsets import lowered_opset, raised_opset
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.targets import TargetEngine, Trait
from onnxslim.records import Fidelity, PassResult, Skip
from onnxslim.render.units import bytes_text

_SHORT_CODES = 21  # the first opset with codes of 4 bits
_SHOWN = 3
_LINEAR_TRAITS = (
    Trait.FOUR_BITS,
    Trait.UNEVEN_BLOCKS,
    Trait.ODD_BLOCKS,
    Trait.BLOCKS,
    Trait.INT8,
)


def lower(model: Model, target: TargetEngine, context: Context) -> PassResult:
    """Replace what the target does not take, in `model` itself.

    Skips name what is left and has no replacement.

    Args:
        model: whose shapes are inferred.
        target: the engine.
        context: of the pass.
    """
    before = model.file_bytes()
    results = [result for result in _Lowering(model, target, context).results() if _says(result)]
    if any(result.changed for result in results):
        dense_weights.drop_unused(model.graph)
    left = [Skip(item.where, f"{item.what}; {target.name} takes none, and nothing replaces it")
            for item in obstacles(model.graph, target)]  # fmt: skip
    found = PassResult.together([*results, PassResult(skips=tuple(left))])
    if not found.changed:
        return replace(found, notes=(*found.notes, *_left_note(target, left)))
    promised = [result.fidelity or Fidelity.EXACT for result in results if result.changed]
    found = replace(found, fidelity=max(promised))
    after = model.file_bytes()
    notes = (*found.notes, _cost(target, before, after), *_left_note(target, left))
    return replace(found, notes=notes)


def _says(result: PassResult) -> bool:
    return bool(result.changes or result.skips)


def _cost(target: TargetEngine, before: int, after: int) -> str:
    share = 100 * (after - before) / before if before else 0.0
    word = "costs" if after >= before else "saves"
    return (
        f"The target {target.name} {word} {bytes_text(abs(after - before))} ({share:+.1f} %): "
        f"{before:,} to {after:,} bytes."
    )


def _left_note(target: TargetEngine, left: list[Skip]) -> Iterator[str]:
    if left:
        shown = "; ".join(f"`{skip.node}`: {skip.why.partition(';')[0]}" for skip in left[:_SHOWN])
        more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        yield f"{target.title} is not known to take all of the file: {shown}{more}."


@dataclass(frozen=True)
class _Lowering:
    model: Model
    target: TargetEngine
    context: Context

    @property
    def graph(self) -> Graph:
        return self.model.graph

    def results(self) -> Iterator[PassResult]:
        """The results of all replacements, in order."""
        yield raised_opset(self.model, self._needed_opset(), self.context)
        if self._has(Trait.BRANCHES):
            yield self._edited(branches.join_branches)
        if self._has(Trait.CONTRIB):
            yield self._edited(floats.float_recurrent)
        yield from self._integers()
        if self._has(Trait.SPARSE):
            yield self._edited(dense_weights.densified)
        is_decoded = not self.target.takes(Trait.DECODERS) and any(
            function.domain == DOMAIN for function in self.graph.local_functions
        )
        if self._has(Trait.FUNCTIONS) or is_decoded:
            yield dense_weights.inlined(self.graph)
            self._infer()
        if self._has(Trait.FOUR_BITS) or self._has(Trait.DECODERS):
            yield self._edited(code_forms.widen_codes)
        if self._has(Trait.DECODERS):
            yield dense_weights.folded(self.graph, self.context)
            self._infer()
        if self._has(Trait.FLOAT16):
            yield self._edited(floats.widen)
        yield lowered_opset(self.graph, self.target)

    def _integers(self) -> Iterator[PassResult]:
        """Operators on codes, and codes of weights."""
        if self._has(Trait.RUN_TIME_RANGES):
            yield self._edited(lambda rw: floats.static_products(rw, self.target))
        if self._has(Trait.INT8):
            yield self._edited(floats.drop_pairs)
            yield self._edited(zero_points.float_biases)
        if self._has(Trait.INTEGER_BIASES):
            yield self._edited(zero_points.float_biases)
        if self._has(Trait.MATMUL_NBITS) or self._has(Trait.MATMUL_8BITS):
            yield self._edited(self._packed)
        if any(map(self._has, (Trait.FUNCTIONS, Trait.DECODERS, Trait.FOUR_BITS))):
            yield self._edited(self._functions)
        if any(map(self._has, _LINEAR_TRAITS)):
            yield self._edited(self._linear)
        if self._has(Trait.ZERO_POINTS) or self._has(Trait.UNSIGNED):
            yield self._edited(lambda rw: zero_points.centre(rw, self.target))

    def _needed_opset(self) -> int:
        """The least opset of the target, or that of 4-bit codes, where it takes them alone."""
        least = self.target.opsets.least
        if self.target.takes(Trait.MATMUL_NBITS) or not self.target.takes(Trait.FOUR_BITS):
            return least
        found = any(
            is_matmul_nbits(node) and int(node.attrs.get("bits", 4)) == 4
            for node in self.graph.nodes
        )
        return max(least, _SHORT_CODES) if found else least

    def _has(self, trait: Trait) -> bool:
        """Whether the graph has a trait that the target does not take."""
        return not self.target.takes(trait) and any(True for _ in of_trait(self.graph, trait))

    def _packed(self, rw: Rewriter) -> None:
        for graph in rw.graphs():
            for node in list(graph.nodes):
                is_taken = self.target.takes(Trait.MATMUL_NBITS)
                if is_matmul_nbits(node) and not (is_taken and node.attrs.get("bits") != 8):
                    code_forms.rewrite_packed(rw, self.target, node)

    def _functions(self, rw: Rewriter) -> None:
        """Write weights that local functions compute from integers in other forms."""
        for (domain, _, _), nodes in calls(self.graph, with_own=True).items():
            for node in nodes if domain == DOMAIN else ():
                code_forms.rewrite_linear(rw, self.target, node)

    def _linear(self, rw: Rewriter) -> None:
        """Rewrite the weights of DequantizeLinear nodes that have a trait which is not taken."""
        named = {
            item.where
            for trait in _LINEAR_TRAITS
            if not self.target.takes(trait)
            for item in of_trait(self.graph, trait)
        }
        for node in list(rw.walk("DequantizeLinear")):
            if node.outputs[0].name in named or node.inputs[0].name in named:
                code_forms.rewrite_linear(rw, self.target, node)

    def _edited(self, edit: Callable[[Rewriter], None]) -> PassResult:
        rw = Rewriter(self.graph)
        edit(rw)
        result = rw.result()
        if result.changed:
            self.model.has_shapes = False
            self._infer()
        return result

    def _infer(self) -> None:
        self.model.has_shapes = False
        infer_shapes(self.model)
