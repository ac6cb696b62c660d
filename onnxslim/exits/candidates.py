"""Candidate exits of a model: points, their latency, and the best head at each, measured.

`ExitAnalysis` finds which output holds the class scores, at which points the network can be left,
which share of the latency comes before each of them, and how good a head there is. `planning`
chooses among the candidates.

The calibration samples are dealt out to two halves. Everything that is chosen (heads, temperatures,
points, the path of thresholds) is chosen on the first half; the second half only confirms. Where
labels are in other samples, heads are fitted to the calibration samples, thresholds are chosen on
one half of the labelled samples, and the other half confirms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.exits.heads import (
    Distillation,
    FittedHead,
    fit_heads,
    head_trials,
    poolings,
    with_mask_where_it_fits,
)
from onnxslim.exits.nested_ifs import BatchMode, Exit, ExitOptions, with_exits
from onnxslim.exits.operators import Confidence, Head, NodeBuilder, ScoreForm
from onnxslim.exits.points import (
    Dim,
    ExitPoint,
    candidate_points,
    control_flow,
    describe_control,
    point_named,
    score_outputs,
)
from onnxslim.exits.thresholds import (
    NEVER,
    HeadTrial,
    fitted_risk,
    loosest,
    outcome,
    threshold_path,
)
from onnxslim.graph.ir import ancestors
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.records import OutputKind
from onnxslim.services.calibration import Calibration

MAX_POINTS = 8  # points that are measured, at most
_LATEST = 0.95  # share of the work before a point, above which an exit saves too little
_ROWS_LOOKED_AT = 512  # samples from which the form of the scores is told
_SUM_TOLERANCE = 1e-2  # of the sum of probabilities
NOT_TIMED = 0.01  # `ExitCandidate.stay` where nothing is timed
JUDGED_AT = 0.995  # agreement at which the heads of one point are compared


@dataclass(frozen=True)
class ExitCandidate:
    """A point with its latency and its head.

    Attributes:
        cost: share of the network's latency up to the answer of the head.
        fitted: the head; None without calibration samples.
        stay: share of the network's latency that the exit adds for samples that do not leave.
    """

    point: ExitPoint
    cost: float
    fitted: FittedHead | None = None
    stay: float = NOT_TIMED

    @property
    def known(self) -> FittedHead:
        """The head; there must have been samples to fit it to."""
        assert self.fitted is not None
        return self.fitted


NO_ANSWER: Final[Mapping[OutputKind, str]] = {
    OutputKind.EMBEDDING: (
        "holds an embedding: all of its numbers are the result, and there is no answer that a head "
        "could be sure of"
    ),
    OutputKind.HIDDEN_STATES: (
        "holds hidden states, of which the last layers change every number: there is no answer "
        "that a head could be sure of"
    ),
    OutputKind.TOKEN_LOGITS: (
        "holds token logits: what follows reads what every layer made of each token, so no layer "
        "may be skipped"
    ),
}
"""Why a model whose outputs are all of such kinds cannot be left early, to follow a name."""


def scores_named(
    graph: gs.Graph, name: str | None, kinds: Mapping[str, OutputKind] = MappingProxyType({})
) -> list[gs.Tensor]:
    """The outputs that may be the class scores, most likely first.

    Args:
        graph: its shapes inferred.
        name: of the output that a user names; None: find it.
        kinds: what outputs hold, by name; the output that a user names is believed.

    Raises:
        NotApplicable: there is none, or the output `name` is none; saying why.
    """
    fitting = score_outputs(graph)
    if name is None:
        why = {
            t.name: NO_ANSWER[kinds[t.name]]
            for t in graph.outputs
            if kinds.get(t.name) in NO_ANSWER
        }
        fitting = [tensor for tensor in fitting if tensor.name not in why]
        if not fitting and why:
            output, words = next(iter(why.items()))
            has_shape = any(tensor.name == output for tensor in score_outputs(graph))
            advice = f"; if it holds class scores, name it: output={output}" if has_shape else ""
            raise NotApplicable(f"`{output}` {words}{advice}")
    known = ", ".join(f"`{tensor.name}`" for tensor in graph.outputs)
    if name is not None:
        fitting = [tensor for tensor in fitting if tensor.name == name]
    if not fitting:
        which = "no output is" if name is None else f"`{name}` is no output that is"
        raise NotApplicable(
            f"{which} class scores, a float tensor with one row of two or more entries for each "
            f"sample; the outputs are {known}"
        )
    for tensor in fitting:
        node = control_flow(tensor)
        if node is not None:
            raise NotApplicable(describe_control(node))
    return fitting


@dataclass
class ExitAnalysis:
    """The class scores, the points and the candidate exits of a model, each found when asked for.

    Attributes:
        model: with inferred shapes; it is not changed.
        output: name of the class scores; None: find it.
        at: names of the only tensors to consider; (): all candidate points.
        hidden: whether heads have a layer of random units.
        batch: what happens to a batch in which only some samples are confident.
        labelled: samples with labels that thresholds are chosen and confirmed on; None: the
            calibration samples are.
        network: what the model was before it was trained; None: it was not.
        why_not: why tensors of `at` are no candidates, by name; filled by `points`.
    """

    model: Model
    context: Context
    output: str | None = None
    at: tuple[str, ...] = ()
    confidence: Confidence = Confidence.MAX_PROBABILITY
    hidden: bool = False
    batch: BatchMode = BatchMode.ALL
    labelled: Calibration | None = None
    network: Model | None = None
    why_not: dict[str, str] = field(default_factory=dict)

    @cached_property
    def scores(self) -> tuple[gs.Tensor, ScoreForm]:
        """The class scores and their form; logits where there are no samples to tell.

        Raises:
            NotApplicable: no output is class scores.
        """
        fitting = scores_named(self.model.graph, self.output, self.context.output_kinds)
        calibration = self.context.calibration
        if calibration is None:
            return fitting[0], ScoreForm.LOGITS
        found = _score_forms(self.model, fitting, calibration)
        named = [(tensor, found[tensor.name]) for tensor in fitting]
        good = [(tensor, form) for tensor, form in named if isinstance(form, ScoreForm)]
        if not good:
            raise NotApplicable(f"`{fitting[0].name}` is not class scores: {named[0][1]}")
        return min(good, key=lambda item: item[1] is ScoreForm.LOGITS)

    @property
    def options(self) -> ExitOptions:
        """How exits are written; a batch of one sample is never split."""
        output, score_form = self.scores
        batch = BatchMode.ALL if output.shape[0] == 1 else self.batch
        return ExitOptions(score_form, self.confidence, batch)

    @cached_property
    def points(self) -> tuple[ExitPoint, ...]:
        """The points to consider, in order of the graph; fills `why_not`."""
        output, _ = self.scores
        graph = self.model.graph
        if not self.at:
            found = candidate_points(graph, output)
            early = [p for p in found if p.share is None or p.share <= _LATEST]
            return tuple(_thinned(early, MAX_POINTS))
        chosen = []
        for name in dict.fromkeys(self.at):
            point = point_named(graph, output, name)
            if isinstance(point, ExitPoint):
                chosen.append(point)
            else:
                self.why_not[name] = point
        tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
        return tuple(sorted(chosen, key=lambda point: len(ancestors([tensors[point.tensor]]))))

    @cached_property
    def distillation(self) -> Distillation:
        """The network that heads imitate."""
        output, score_form = self.scores
        return Distillation(
            self.model, output.name, score_form, self.confidence, self.context.seed, self.network
        )

    @property
    def fit_to(self) -> Calibration:
        """The samples that heads are fitted to."""
        assert self.context.calibration is not None
        return self.halves[0] if self.labelled is None else self.context.calibration

    @cached_property
    def halves(self) -> tuple[Calibration, Calibration]:
        """The samples by which everything is chosen, and those that confirm."""
        samples = self.labelled or self.context.calibration
        assert samples is not None
        first, second = samples.parts(2)
        return first, second

    def candidates(self, *, staying: bool = False) -> tuple[ExitCandidate, ...]:
        """Every point with its latency and the best head there.

        Args:
            staying: also time what an exit adds for samples that do not leave.

        Raises:
            NotApplicable: no head can be fitted.
        """
        if not self.points:
            return ()
        best: Mapping[str, FittedHead] = {}
        if self.context.calibration is not None:
            chosen = [pooling for point in self.points for pooling in poolings(point)]
            chosen = with_mask_where_it_fits(self.distillation, chosen, self.fit_to)
            with self.context.progress.step(f"fitting {len(chosen):,} heads"):
                fitted = fit_heads(self.distillation, chosen, self.fit_to, hidden=self.hidden)
            best = self._best(fitted)
            if self.labelled is not None:
                best = self._tried_on_labels(best)
        return tuple(
            self._candidate(point, best.get(point.tensor), staying=staying)
            for point in self.context.progress.over("timing", self.points, "exits")
        )

    def _best(self, fitted: Sequence[FittedHead]) -> dict[str, FittedHead]:
        """For each point, the head by which most samples may leave; of equals the smallest."""
        found: dict[str, tuple[tuple[float, float], FittedHead]] = {}
        for item in fitted:
            merit = (_leaving(item, item.trial), item.agreement)
            name = item.head.pooling.point.tensor
            if name not in found or merit > found[name][0]:
                found[name] = (merit, item)
        return {name: item for name, (_, item) in found.items()}

    def _tried_on_labels(self, fitted: Mapping[str, FittedHead]) -> dict[str, FittedHead]:
        """The heads with their answers for the first half of the labelled samples."""
        heads = [item.head for item in fitted.values()]
        trials = head_trials(self.distillation, heads, self.halves[0]).heads
        return {
            name: replace(item, trial=trial)
            for (name, item), trial in zip(fitted.items(), trials, strict=True)
        }

    def _candidate(
        self, point: ExitPoint, fitted: FittedHead | None, *, staying: bool
    ) -> ExitCandidate:
        """The candidate at a point; without a stopwatch, work stands for latency."""
        stopwatch = self.context.stopwatch
        if stopwatch is None:
            return ExitCandidate(point, 0.5 if point.share is None else point.share, fitted)
        head = None if fitted is None else fitted.head
        cost = 1 / stopwatch.pair(self.model, _prefix(self.model, point, head)).ratio
        if head is None or not staying:
            return ExitCandidate(point, cost, fitted)
        stay = 1 / stopwatch.pair(self.model, self._never_left(head)).ratio - 1
        return ExitCandidate(point, cost, fitted, max(stay, 0.0))

    def _never_left(self, head: Head) -> Model:
        """The model with an exit that no sample takes."""
        output, _ = self.scores
        return with_exits(self.model, output.name, [Exit(head, NEVER)], self.options)


@dataclass(frozen=True)
class ExitRow:
    """A row of the table of `onnxslim exits`.

    Attributes:
        latency: share of the latency up to the answer of a head there; None where it is not timed.
        work: share of the multiply-accumulates before it; None where they are not known.
        head: the features of the head; None without samples.
        agreement: share of the held-out samples for which head and network agree.
        leaving: share of them that may leave while `JUDGED_AT` of all answers are the network's.
    """

    tensor: str
    shape: tuple[Dim, ...]
    latency: float | None
    work: float | None
    head: str | None = None
    agreement: float | None = None
    leaving: float | None = None


def exit_rows(analysis: ExitAnalysis) -> tuple[list[ExitRow], list[str]]:
    """The candidate exits of a model as rows, and notes about them.

    Raises:
        NotApplicable: no output is class scores, or control flow decides what runs.
    """
    output, score_form = analysis.scores
    candidates = analysis.candidates()
    notes = [f"the class scores are `{output.name}`"]
    if analysis.context.calibration is None:
        notes.append("without samples (--calib) no head was fitted")
    else:
        notes[0] += f", {score_form}"
    timed = analysis.context.stopwatch is not None
    rows = [_row(candidate, timed=timed) for candidate in candidates]
    heads = [candidate.known.head for candidate in candidates if candidate.fitted is not None]
    if not heads:
        return rows, notes
    trials = head_trials(analysis.distillation, heads, analysis.halves[1]).heads
    few = [candidate for candidate in candidates if candidate.known.warning is not None]
    if few:
        notes.append(f"`{few[0].point.tensor}`: {few[0].known.warning}")
    judged = [
        replace(row, agreement=float(trial.agrees.mean()), leaving=_leaving(candidate.known, trial))
        for row, candidate, trial in zip(rows, candidates, trials, strict=True)
    ]
    return judged, notes


# ---------------------------------------------------------------------------- inside


def _row(candidate: ExitCandidate, *, timed: bool) -> ExitRow:
    point = candidate.point
    head = None if candidate.fitted is None else str(candidate.fitted.head.pooling)
    return ExitRow(point.tensor, point.shape, candidate.cost if timed else None, point.share, head)


def _leaving(fitted: FittedHead, trial: HeadTrial) -> float:
    """Share of the samples of `trial` that may leave at this head, if it were the only exit."""
    risk = fitted_risk(fitted.trial.confidence, ~fitted.trial.agrees)
    path = list(threshold_path([risk], [1.0]))
    thresholds = loosest(path, [trial], lambda found: found.agreement >= JUDGED_AT) or (NEVER,)
    return outcome(thresholds, [trial]).shares[0]


def _thinned(points: Sequence[ExitPoint], most: int) -> list[ExitPoint]:
    """At most `most` points, spread evenly over the work before them."""
    if len(points) <= most:
        return list(points)
    shares = [i / len(points) if p.share is None else p.share for i, p in enumerate(points)]
    wanted = np.linspace(shares[0], shares[-1], most)
    nearest = [int(np.argmin(np.abs(np.array(shares) - share))) for share in wanted]
    return [points[index] for index in sorted(set(nearest))]


def _score_forms(
    model: Model, fitting: Sequence[gs.Tensor], calibration: Calibration
) -> dict[str, ScoreForm | str]:
    """The form of each output on the first samples, or why it holds no class scores."""
    seen: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in fitting}
    misfits: dict[str, ScoreForm | str] = {}
    rows = 0
    for answer in calibration.outputs(model):
        for name, arrays in seen.items():
            values = answer.values[name]
            if len(values) != answer.rows:
                misfits[name] = "it has not one row for each sample"
                continue
            arrays.append(values.reshape(answer.rows, -1).astype(np.float64))
        rows += answer.rows
        if rows >= _ROWS_LOOKED_AT:
            break
    forms = {n: _score_form(np.concatenate(a)) for n, a in seen.items() if n not in misfits}
    return forms | misfits


def _score_form(scores: np.ndarray) -> ScoreForm | str:
    if not scores.size:
        return "it has no entries on the calibration samples"
    if not np.isfinite(scores).all():
        return "it is not finite on the calibration samples"
    if np.abs(np.exp(np.minimum(scores, 1.0)).sum(axis=1) - 1).max() < _SUM_TOLERANCE:
        return ScoreForm.LOG_PROBABILITIES
    if scores.min() < 0 or scores.max() > 1 + _SUM_TOLERANCE:
        return ScoreForm.LOGITS
    if np.abs(scores.sum(axis=1) - 1).max() < _SUM_TOLERANCE:
        return ScoreForm.PROBABILITIES
    return "its entries lie between 0 and 1 but do not add up to 1, as independent answers do"


def _prefix(model: Model, point: ExitPoint, head: Head | None) -> Model:
    """A copy of the model that ends at a point, with the head there, if any."""
    copy = model.clone()
    graph = copy.graph
    rw = Rewriter(graph)
    end: gs.Tensor = next(t for n in graph.nodes for t in n.outputs if t.name == point.tensor)
    if head is not None:
        builder = NodeBuilder(rw)
        end = builder.logits(end, head, "exit_logits")
        graph.nodes.extend(builder.nodes)
    graph.outputs = [end]
    used = ancestors([end])
    graph.nodes = [node for node in graph.nodes if node in used]
    for tensor in graph.outputs:
        tensor.info = None
    copy.has_shapes = False
    return copy
