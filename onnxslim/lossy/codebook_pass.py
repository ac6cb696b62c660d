"""`CodebookPass`: base of the passes whose new weights are stored as codes.

A pass says how its codes are laid out, which weights it declines, and which codebook solves a
problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.codebook import fixed_point, lookup
from onnxslim.codebook.fixed_point import FixedPointWeight
from onnxslim.codebook.lookup_function import MANY_TABLES, ONE_TABLE
from onnxslim.codebook.sparse import sparse_or_dense
from onnxslim.codebook.weight import (
    TABLE_TYPES,
    WEIGHT_TYPES,
    CodebookWeight,
    TableGranularity,
    codebook_for_layer,
)
from onnxslim.graph.ir import Constant, StoredSparse, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.codebooks import Codebook
from onnxslim.lossy.layer_pass import LayerPass, error_words, share_of
from onnxslim.lossy.problems import Problem, assign
from onnxslim.packing.radix import packed_bytes
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.raising import run_raised
from onnxslim.pipeline.targets import Trait
from onnxslim.records import Fidelity, PassResult
from onnxslim.render.units import bytes_text
from onnxslim.solvers.threads import threads_for

_OVERHEAD_BYTES: Final = 200  # of a node, its names, and the headers of its tensors
_FLOAT32: Final[np.dtype[np.floating]] = np.dtype(np.float32)


@dataclass(frozen=True)
class Layout:
    """How a weight is laid out as codes and tables.

    Attributes:
        levels: values of a table.
        per: the parts of a weight that have a table of their own.
        width: columns in a run, where each run has a table.
        vector: weights that one code stands for.
        stages: codes for each weight, whose values are added.
        table: float32 or float16.
    """

    levels: int
    per: TableGranularity = TableGranularity.TENSOR
    width: int | None = None
    vector: int = 1
    stages: int = 1
    table: np.dtype[np.floating] = _FLOAT32

    def tables(self, layer: WeightLayer) -> int:
        """Number of tables of `layer`, of a stage."""
        return {TableGranularity.TENSOR: 1, TableGranularity.ROW: layer.groups * layer.rows}.get(
            self.per, layer.groups * layer.columns // (self.width or layer.columns)
        )

    def nbytes(self, layer: WeightLayer) -> int:
        """Bytes of the codes and tables of `layer`."""
        tables = self.tables(layer)
        codes = packed_bytes(self.levels, layer.size // self.vector)
        return self.stages * (codes + tables * self.levels * self.vector * self.table.itemsize)


@dataclass(frozen=True)
class Answer:
    """A weight as codes, with its error.

    Attributes:
        stored: the weight as the file has it.
        error: relative, of the output with data, else of the weight.
        words: what its values are, to be read after "1,000 weights ".
        weight: (groups, rows, columns); None where nothing that follows depends on it.
    """

    stored: CodebookWeight | FixedPointWeight
    error: float
    words: str
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class CodebookPass(LayerPass):
    """A pass that stores the weights of the layers it selects as codes."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    def layout(self, problem: Problem) -> Layout:
        """How the weight would be laid out."""
        raise NotImplementedError

    def solve(self, problem: Problem, seed: int) -> Answer:
        """The codes for the weight."""
        raise NotImplementedError

    def objection(self, problem: Problem) -> str | None:
        """Why the options do not suit the weight; None: they do."""
        return None

    def nbytes(self, problem: Problem) -> int:
        """A lower bound, known before the problem is solved, on the bytes of codes and tables."""
        return self.layout(problem).nbytes(problem.layer)

    def least_opset(self, problem: Problem) -> int:
        """The first opset that can compute the weight from its codes."""
        return MANY_TABLES if self.layout(problem).tables(problem.layer) > 1 else ONE_TABLE

    def prepared(self, graph: gs.Graph, context: Context) -> PassResult:
        """What the pass does to the graph, in place, before layers are solved; here nothing."""
        return PassResult()

    def candidates(self, graph: gs.Graph, context: Context) -> Iterator[Problem]:
        """The problems, without data, of the selected weights for which codes may pay."""
        for problem in self.problems(Rewriter(graph), context).without_data():
            if self._why_not(problem) is None:
                yield problem

    def writes(self) -> tuple[Trait, ...]:
        """Codes that operators decode when a session starts."""
        return (Trait.DECODERS,)

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Raise the opset where codes need that; find codes for every selected layer; store them.

        What cannot be raised is declined before any layer is solved.
        """
        opset = graph.opset_of("")
        if opset is None or opset >= MANY_TABLES:
            return self._replaced(graph, context)
        least = self._needed_opset(graph, context)
        return run_raised(graph, context, least, "codebooks", self._replaced)

    def _needed_opset(self, graph: gs.Graph, context: Context) -> int:
        """The opset that codes of the selected layers take, as far as they can pay."""
        return max(map(self.least_opset, self.candidates(graph, context)), default=0)

    def _replaced(self, graph: gs.Graph, context: Context) -> PassResult:
        """Prepare the graph, find codes for every selected layer, then store them all."""
        prepared = self.prepared(graph, context)
        rw = Rewriter(graph)
        waiting: list[tuple[str, Constant, CodebookWeight | FixedPointWeight, str]] = []
        for problem in self.problems(rw, context):
            label, holder = node_label(problem.layer.node), problem.layer.holder
            answer = self._answer(graph, problem, context.seed)
            if isinstance(answer, str):
                rw.skip(label, answer)
                continue
            what = _change(problem, answer)
            if answer.weight is not None:
                assign(rw, problem, answer.weight)  # later layers are measured on the dense weight
            waiting.append((label, holder, answer.stored, what))
        for entry in waiting:
            replace_constant(rw, *entry, takes_sparse=context.engine.takes(Trait.SPARSE))
        found = rw.result()
        return PassResult.together([prepared, found]) if prepared.changed else found

    def answer(self, problem: Problem, codebook: Codebook, words: str | None = None) -> Answer:
        """The codebook as an answer; in words, by default, how many values it has."""
        layout = self.layout(problem)
        stored = codebook_for_layer(problem.layer, codebook.stages, layout.per, layout.width)
        counts = "x".join(str(stage.levels) for stage in stored.stages)
        return Answer(stored, codebook.error, words or f"in {counts} values", codebook.weight)

    def _answer(self, graph: gs.Graph, problem: Problem, seed: int) -> Answer | str:
        """The answer, or why there is none."""
        reason = self._why_not(problem)
        if reason is not None:
            return reason
        with threads_for(problem.layer.columns):
            answer = self.solve(problem, seed)
        reason = why_not_smaller(problem.layer, answer.stored.nbytes)
        return reason or _why_not_stored(graph, problem.layer.holder, answer.stored) or answer

    def _why_not(self, problem: Problem) -> str | None:
        """Why there will be no codes for a weight, as far as that is known before it is solved."""
        dtype = problem.layer.holder.dtype
        if dtype not in WEIGHT_TYPES:
            return f"a codebook holds no weight of type {dtype}"
        if not _is_finite(problem):
            return "it has values that are not finite"
        return self.objection(problem) or why_not_smaller(problem.layer, self.nbytes(problem))


def _is_finite(problem: Problem) -> bool:
    return bool(np.isfinite([problem.weight.min(), problem.weight.max()]).all())


def why_not_smaller(layer: WeightLayer, nbytes: int, *, is_sparse: bool = False) -> str | None:
    """Why codes of `nbytes` do not pay: they take as many bytes as the weight; None: they pay.

    Args:
        layer: whose weight it is.
        nbytes: of codes and tables.
        is_sparse: whether the weight will be a sparse initializer by then, if it is none now.
    """
    holder = layer.holder
    if is_sparse or isinstance(holder.stored, StoredSparse):
        return None  # and can stay so
    taken = nbytes + _OVERHEAD_BYTES
    if taken < holder.nbytes:
        return None
    return f"codes and tables would take {taken:,} bytes, the weight takes {holder.nbytes:,}"


def table_type(problem: Problem) -> np.dtype[np.floating]:
    """The type of tables that hold values of the weight's own type, as far as tables can."""
    dtype = problem.layer.holder.dtype
    return dtype if dtype in TABLE_TYPES else _FLOAT32


def replace_constant(
    rw: Rewriter,
    label: str,
    holder: Constant,
    weight: CodebookWeight | FixedPointWeight,
    what: str,
    *,
    takes_sparse: bool = True,
) -> None:
    """Store codes in place of `holder`, and report all that this took.

    Where nearly all is zero, the few values there are take less as a sparse initializer, if the
    engine takes one.
    """
    if takes_sparse and _density(weight) * weight.size * weight.dtype.itemsize < weight.nbytes:
        sparse = sparse_or_dense(weight.dense())
        if isinstance(sparse, StoredSparse) and sparse.nbytes < weight.nbytes:
            rw.set_values(holder, sparse)
            what = f"{what}, as a sparse initializer of {bytes_text(sparse.nbytes)}"
            rw.note(label, what, Fidelity.LOSSY)
            return
    for note in _store(rw, holder, weight, what):
        rw.note(rw.main.name, note)


def _why_not_stored(
    graph: gs.Graph, holder: Constant, weight: CodebookWeight | FixedPointWeight
) -> str | None:
    if isinstance(weight, FixedPointWeight):
        return fixed_point.why_not(graph, weight, holder)
    return lookup.why_not(graph, weight, holder)


def _store(
    rw: Rewriter, holder: Constant, weight: CodebookWeight | FixedPointWeight, what: str
) -> tuple[str, ...]:
    if isinstance(weight, FixedPointWeight):
        return fixed_point.replace_constant(rw, holder, weight, what, Fidelity.LOSSY)
    return lookup.replace_constant(rw, holder, weight, what, Fidelity.LOSSY)


def _density(weight: CodebookWeight | FixedPointWeight) -> float:
    """Share of weights that are not zero; 1 where that takes decoding to know."""
    if isinstance(weight, FixedPointWeight):
        return weight.density
    stage = weight.stages[0]
    if len(weight.stages) > 1 or stage.table.ndim > 1:
        return 1.0
    return float(np.count_nonzero((stage.table != 0)[stage.codes])) / weight.size


def _change(problem: Problem, answer: Answer) -> str:
    """What was done to a weight, in words."""
    stored = answer.stored
    density = _density(stored)
    kept = round(density * stored.size)
    zeros = f", {share_of(kept, stored.size)} of them not zero" if density < 1 else ""
    return (
        f"{stored.size:,} weights {answer.words}{zeros}: "
        f"{bytes_text(problem.layer.holder.nbytes)} to {bytes_text(stored.nbytes)}; "
        f"{error_words(problem, answer.error)}"
    )
