"""Exit heads fitted in closed form to the network's own answers: no labels, no training.

A head is a linear layer y = W·x + b on pooled features x. Its targets y are the probabilities of
the network, softened by a temperature (knowledge distillation, Hinton et al. 2015). Ridge
regression on standardised features needs second moments only:

    W = C_yx (C_xx + λ·I)⁻¹,    b = E[y] − W·E[x],    C the centered moments, scaled

The service for moments of layers measures them: one copy of the network has the heads, with zero
weights, as layers; in a second copy, layers of the same names return the targets. So features are
never in memory all at once. λ is the one of least error on held-out samples, computed from their
moments. Labels change only C_yx: E[y xᵀ] is then the mean feature vector of each class, times its
frequency. A last temperature calibrates the probabilities of each head (Guo et al. 2017).

Owns: the targets of the regression, its strength, and the calibration. Not here: which pooling is
best at a point (see `candidates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs
from scipy import optimize

from onnxslim.errors import NotApplicable, RuntimeFailure
from onnxslim.exits.operators import (
    Confidence,
    Head,
    HiddenUnits,
    NodeBuilder,
    Pooling,
    ScoreForm,
    confidences,
)
from onnxslim.exits.points import ExitPoint, classes_of
from onnxslim.exits.thresholds import HeadTrial
from onnxslim.graph.ir import Node, Variable
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.linear_algebra import linalg
from onnxslim.services.calibration import Calibration
from onnxslim.services.moments import LayerMoments
from onnxslim.solvers.threads import threads_for

SOFTENING: Final = 4.0  # temperature of the targets
SAMPLES_A_FEATURE: Final = 20  # with fewer, a fit gets a warning
HIDDEN_UNITS: Final = 512
MAX_FEATURES: Final = 1024  # of one head; above, moments would be summed in float32
_GRIDS: Final = (1, 2, 4, 7)  # cells along each axis of a feature map
_RIDGES: Final = tuple(10.0**power for power in np.arange(-5.0, 2.01, 1.0))
_DEAD: Final = 1e-10  # share of the largest variance, below which a feature counts as constant
_STEADY: Final = 1e-5  # share of E[x²], below which a variance may be rounding
_MIN: Final = 1e-12  # least probability, so that logarithms are finite
_TEMPERATURES: Final = (1e-3, 1e3)  # bounds of the search


@dataclass(frozen=True)
class FittedHead:
    """A head, with its quality on samples that it was not fitted to.

    Attributes:
        error: relative error of the regression on held-out samples: E‖y − ŷ‖² / E‖y − E[y]‖².
        samples: number of samples that it was fitted to.
    """

    head: Head
    error: float
    trial: HeadTrial
    samples: int

    @property
    def agreement(self) -> float:
        """Share of the held-out samples for which head and network agree."""
        return float(self.trial.agrees.mean())

    @property
    def warning(self) -> str | None:
        """A sentence where there were few samples for so many features; else None."""
        features = self.head.weight.shape[1]
        if self.samples >= SAMPLES_A_FEATURE * features:
            return None
        return (
            f"its head has {features:,} features and was fitted to {self.samples:,} samples, fewer "
            f"than {SAMPLES_A_FEATURE} for each; on samples held back it agrees with the network "
            f"for {100 * self.agreement:.1f} % and leaves {100 * self.error:.0f} % of the variance "
            "unexplained: more samples may give a better one"
        )


@dataclass(frozen=True)
class Distillation:
    """The network that heads imitate, and the measure of confidence by which samples will leave.

    Attributes:
        output: name of the class scores.
        seed: of the random hidden units.
        network: the network whose answers count, where `model` was trained since; None: `model`.
    """

    model: Model
    output: str
    score_form: ScoreForm
    confidence: Confidence
    seed: int = 0
    network: Model | None = None


@dataclass(frozen=True)
class HeadAnswers:
    """What heads and networks say of N samples.

    Attributes:
        logits: of all heads, (heads, N, classes).
        own: log-probabilities of the model that has the heads, (N, classes).
        expected: those of the network whose answers count.
        labels: (N,); None without any.
    """

    logits: np.ndarray
    own: np.ndarray
    expected: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class HeadTrials:
    """How heads answer samples, and how the model answers those that stay.

    Attributes:
        rest: None where the model is the network whose answers count.
    """

    heads: list[HeadTrial]
    rest: HeadTrial | None


def poolings(point: ExitPoint) -> list[Pooling]:
    """The poolings to try for a point, those of fewest features first."""
    if point.is_sequence:
        average = Pooling(point, is_masked=point.mask is not None)
        return [Pooling(point, is_first=True), average]
    if not point.is_map:
        return [Pooling(point)]
    sizes = point.shape[2:]
    if not all(isinstance(size, int) for size in sizes):
        return [Pooling(point, (1,) * len(sizes))]
    cells = dict.fromkeys(tuple(min(grid, int(size or 1)) for size in sizes) for grid in _GRIDS)
    found = [Pooling(point, item) for item in cells]
    fitting = [item for item in found if item.features <= MAX_FEATURES]
    return fitting or found[:1]


def with_mask_where_it_fits(
    distillation: Distillation, chosen: Sequence[Pooling], calibration: Calibration
) -> list[Pooling]:
    """The poolings; without the mask where it has not a column for each position of the points."""
    masked = [pooling for pooling in chosen if pooling.is_masked]
    try:
        model, _ = _with_heads(distillation, [_empty_head(distillation, item) for item in masked])
        if masked:
            next(iter(calibration.some(1).outputs(model)), None)
    except RuntimeFailure:
        return [replace(pooling, is_masked=False) for pooling in chosen]
    return list(chosen)


def fit_heads(
    distillation: Distillation, chosen: Sequence[Pooling], calibration: Calibration, *, hidden: bool
) -> list[FittedHead]:
    """Fit a head for each pooling, with a layer of random units before the last layer if `hidden`.

    Most of the samples are fitted to; the rest choose λ and the temperature.

    Raises:
        NotApplicable: no sample reaches the points, or the values there are not finite.
    """
    fit, held = calibration.halves()
    heads = [_empty_head(distillation, pooling) for pooling in chosen]
    if hidden:
        plain = _moments(distillation, heads, fit)
        units = [_random_units(moments, distillation.seed) for moments in plain]
        del plain  # moments are large
        heads = [_empty_head(distillation, *pair) for pair in zip(chosen, units, strict=True)]
    seen, unseen = (_moments(distillation, heads, part) for part in (fit, held))
    counts = [moments.count for moments in seen]
    solved = [ridge(*pair) for pair in zip(seen, unseen, strict=True)]
    del seen, unseen  # these too
    fitted = [
        replace(head, weight=weight, bias=bias)
        for head, (weight, bias, _) in zip(heads, solved, strict=True)
    ]
    made, trials = calibrated(distillation, fitted, held)
    return [
        FittedHead(head, error, trial, count)
        for head, trial, (_, _, error), count in zip(
            made, trials.heads, solved, counts, strict=True
        )
    ]


def ridge(fit: LayerMoments, held: LayerMoments) -> tuple[np.ndarray, np.ndarray, float]:
    """Ridge regression from moments, with the λ of least error on held-out samples.

    Args:
        fit: moments of the samples to fit to, with cross moments; of a layer of one group.
        held: the same moments of the held-out samples.

    Returns:
        Weight (rows, columns), bias (rows,), and the relative error on the held-out samples.

    Raises:
        NotApplicable: the features are not finite, or hardly vary.
    """
    centered = fit.centered()
    second, cross = np.asarray(centered.seconds[0]), _of(centered.cross)
    scale = _scales(np.diagonal(second), fit.mean[0])
    second = second * scale[:, None] * scale  # C_xx of standardised features
    right = (cross * scale).T
    best: tuple[np.ndarray, np.ndarray, float] | None = None
    with threads_for(len(second)):
        for strength in _RIDGES:
            damped = second + strength * np.eye(len(second))
            try:
                factor = linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
            except linalg.LinAlgError:  # rounding left C_xx indefinite by more than λ
                continue
            weight = linalg.cho_solve(factor, right, check_finite=False).T * scale
            bias = _of(fit.goal) - weight @ fit.mean[0]
            error = _error(weight, bias, held)
            if best is None or error < best[2]:
                best = (weight, bias, error)
    if best is None:
        raise NotApplicable(f"the features of `{fit.layer}` are not finite, or hardly vary")
    spread = float(_of(held.energy).sum() - np.square(_of(held.goal)).sum())
    return best[0], best[1], best[2] / max(spread, np.finfo(float).tiny)


def network_logs(scores: np.ndarray, score_form: ScoreForm) -> np.ndarray:
    """Log-probabilities of the network, (N, classes), from its scores of a given form."""
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    if score_form is ScoreForm.PROBABILITIES:
        return np.asarray(np.log(np.maximum(flat, _MIN)))
    if score_form is ScoreForm.LOG_PROBABILITIES:
        return flat
    return _log_softmax(flat)


def head_answers(
    distillation: Distillation, heads: Sequence[Head], calibration: Calibration
) -> Iterator[HeadAnswers]:
    """For each run over samples, what heads and networks say."""
    model, names = _with_heads(distillation, heads)
    return twin_answers(distillation, model, names, calibration)


def twin_answers(
    distillation: Distillation,
    model: Model,
    names: Sequence[str],
    calibration: Calibration,
    heads_form: ScoreForm = ScoreForm.LOGITS,
) -> Iterator[HeadAnswers]:
    """For each run over samples, what heads and networks say.

    Args:
        distillation: the networks.
        model: returns the scores of the first of them, and those of heads.
        names: of the outputs with the scores of heads.
        calibration: the samples.
        heads_form: of the scores of heads.
    """
    classes = _classes(distillation)
    form, output = distillation.score_form, distillation.output
    network = distillation.network
    runs = calibration.outputs(model)
    others = repeat(None) if network is None else calibration.outputs(network)
    for answer, other in zip(runs, others, strict=False):
        own = network_logs(answer.values[output], form)
        yield HeadAnswers(
            np.stack([_logits(answer.values[name], heads_form) for name in names]),
            own,
            own if other is None else network_logs(other.values[output], form),
            None if answer.labels is None else class_numbers(answer.labels, classes),
        )


def _logits(scores: np.ndarray, form: ScoreForm) -> np.ndarray:
    """Scores of a head, (N, classes), of which a softmax makes probabilities."""
    if form is ScoreForm.PROBABILITIES:
        return network_logs(scores, form)
    return scores.reshape(len(scores), -1)


def head_trials(
    distillation: Distillation, heads: Sequence[Head], calibration: Calibration
) -> HeadTrials:
    """The confidence of each head on each sample, and how it answers beside the network."""
    return trials_of(distillation, head_answers(distillation, heads, calibration))


def trials_of(distillation: Distillation, answers: Iterable[HeadAnswers]) -> HeadTrials:
    """How heads, and a network that was trained, answer beside the network that counts."""
    found: list[list[HeadTrial]] = []
    for answer in answers:
        scores = [*answer.logits, *([] if distillation.network is None else [answer.own])]
        expected = answer.expected.argmax(axis=1)
        found.append(
            [
                _trial(
                    confidences(own, distillation.confidence),
                    own.argmax(axis=1),
                    expected,
                    answer.labels,
                )
                for own in scores
            ]
        )
    joined = [_joined(trials) for trials in zip(*found, strict=True)]
    return (
        HeadTrials(joined, None)
        if distillation.network is None
        else HeadTrials(joined[:-1], joined[-1])
    )


def _trial(
    sure: np.ndarray, answers: np.ndarray, expected: np.ndarray, labels: np.ndarray | None
) -> HeadTrial:
    """How a head answers (N,) samples whose answers by the network are `expected`."""
    gain = None
    if labels is not None:
        gain = (answers == labels).astype(np.int8) - (expected == labels).astype(np.int8)
    return HeadTrial(sure, answers == expected, gain)


def _joined(trials: Sequence[HeadTrial]) -> HeadTrial:
    """The trials on several runs as one; with gains where all have them."""
    gains = [trial.gain for trial in trials if trial.gain is not None]
    return HeadTrial(
        np.concatenate([trial.confidence for trial in trials]),
        np.concatenate([trial.agrees for trial in trials]),
        np.concatenate(gains) if len(gains) == len(trials) else None,
    )


# ---------------------------------------------------------------------------- calibrating


def calibrated(
    distillation: Distillation, heads: Sequence[Head], held: Calibration
) -> tuple[list[Head], HeadTrials]:
    """The heads with logits divided by the temperature that calibrates their probabilities."""
    seen = list(head_answers(distillation, heads, held))
    targets = np.exp(np.concatenate([item.expected for item in seen]))
    labels = [item.labels for item in seen if item.labels is not None]
    if len(labels) == len(seen):
        targets = np.eye(targets.shape[1])[np.concatenate(labels)]
    logits = np.concatenate([item.logits for item in seen], axis=1).astype(np.float64)
    by = np.array([best_temperature(own, targets) for own in logits])
    cooled = [replace(x, logits=x.logits / by[:, None, None]) for x in seen]
    made = [
        replace(head, weight=head.weight / temperature, bias=head.bias / temperature)
        for head, temperature in zip(heads, by, strict=True)
    ]
    return made, trials_of(distillation, cooled)


def best_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature of least cross entropy of `logits` to the probabilities `targets`.

    Both are (N, classes). See Guo et al. 2017.
    """

    def loss(power: float) -> float:
        return -float((targets * _log_softmax(logits / np.exp(power))).sum(axis=1).mean())

    low, high = np.log(_TEMPERATURES)
    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def class_numbers(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as class numbers (N,), from class numbers or one-hot rows.

    Raises:
        NotApplicable: they are neither, or there is no such class.
    """
    if labels.ndim == 2 and labels.shape[1] == classes > 1:
        labels = labels.argmax(axis=1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or labels.min() < 0
        or labels.max() >= classes
    ):
        raise NotApplicable(
            f"the labels of the calibration samples are no class numbers from 0 to {classes - 1}: "
            "leave the array `label` out, and heads are fitted to the network's own answers"
        )
    return labels


# ---------------------------------------------------------------------------- measuring


def _empty_head(
    distillation: Distillation, pooling: Pooling, hidden: HiddenUnits | None = None
) -> Head:
    """A head with weights of zero, to be fitted."""
    classes = _classes(distillation)
    features = pooling.features + (0 if hidden is None else len(hidden[1]))
    return Head(pooling, np.zeros((classes, features)), np.zeros(classes), hidden)


def _moments(
    distillation: Distillation, heads: Sequence[Head], calibration: Calibration
) -> list[LayerMoments]:
    """Moments of the inputs of each head, with cross moments of its targets."""
    by_label = _sums_by_label(distillation, heads, calibration)
    model, names = _with_heads(distillation, heads)
    reference = _softened(distillation, names) if by_label is None else None
    found: dict[str, LayerMoments] = {}
    for item in calibration.moments(model, names, reference):
        if not isinstance(item, LayerMoments):
            raise NotApplicable(f"no head can be fitted at `{item.node}`: {item.why}")
        found[item.layer] = item
    moments = [found[name] for name in names]
    if by_label is None:
        return moments
    counts, sums = by_label
    rows = counts.sum()
    goal = (counts / rows)[None]  # targets are one-hot, so E[y²] is E[y]
    return [
        replace(item, cross=(total / rows)[None], goal=goal, energy=goal)
        for item, total in zip(moments, sums, strict=True)
    ]


def _with_heads(distillation: Distillation, heads: Sequence[Head]) -> tuple[Model, list[str]]:
    """A copy of the network that returns its scores and the logits of all heads."""
    model, tensors, builder = _copied(distillation)
    made = [
        builder.logits(tensors[head.pooling.point.tensor], head, f"exit_head{number}")
        for number, head in enumerate(heads)
    ]
    model.graph.nodes.extend(builder.nodes)
    model.graph.outputs = [tensors[distillation.output], *made]
    return model, [str(tensor.name) for tensor in made]


def _copied(distillation: Distillation) -> tuple[Model, Mapping[str, gs.Tensor], NodeBuilder]:
    """A copy of the network, the tensors that its nodes compute, and a builder of more nodes."""
    model = distillation.model.clone()
    model.has_shapes = False
    rw = Rewriter(model.graph)
    tensors = {tensor.name: tensor for node in model.graph.nodes for tensor in node.outputs}
    return model, tensors, NodeBuilder(rw)


def _softened(distillation: Distillation, names: Sequence[str]) -> Model:
    """A copy of the network in which layers of the given names return its softened answers."""
    model, tensors, builder = _copied(distillation)
    classes = _classes(distillation)
    flat = builder.cast(tensors[distillation.output], np.dtype(np.float32), "exit_targets")
    flat = builder.add("Reshape", [flat, builder.ints(-1, classes)], "exit_rows")
    if distillation.score_form is ScoreForm.PROBABILITIES:
        least = builder.constant(np.array(_MIN, np.float32), "exit_least_probability")
        flat = builder.add("Log", [builder.add("Max", [flat, least], "exit_above")], "exit_logs")
    by = builder.constant(np.array(1 / SOFTENING, np.float32), "exit_softening")
    soft = builder.softmax(builder.add("Mul", [flat, by], "exit_softened"), "exit_soft")
    identity = builder.constant(np.eye(classes, dtype=np.float32), "exit_identity")
    for name in names:
        result = Variable(name, np.dtype(np.float32), [None, classes])
        builder.nodes.append(Node("Gemm", None, {}, [soft, identity], [result]))
    model.graph.nodes.extend(builder.nodes)
    return model


def _sums_by_label(
    distillation: Distillation, heads: Sequence[Head], calibration: Calibration
) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """How many samples each class has, and the sums of their features; None without labels.

    Shapes are (classes,) and, for each head, (classes, features).
    """
    model, names = _with_features(distillation, heads)
    classes = _classes(distillation)
    sums = [np.zeros(head.weight.shape) for head in heads]
    counts = np.zeros(classes)
    for answer in calibration.outputs(model):
        if answer.labels is None:
            return None
        own = np.eye(classes)[class_numbers(answer.labels, classes)]  # (N, classes)
        counts += own.sum(axis=0)
        for total, name in zip(sums, names, strict=True):
            total += own.T @ answer.values[name]
    return counts, sums


def _with_features(distillation: Distillation, heads: Sequence[Head]) -> tuple[Model, list[str]]:
    """A copy of the network that returns the inputs of the heads."""
    model, tensors, builder = _copied(distillation)
    made = []
    for head in heads:
        x = builder.head_input(tensors[head.pooling.point.tensor], head.pooling, head.hidden)
        made.append(builder.add("Identity", [x], "exit_read", shape=(None, head.weight.shape[1])))
    model.graph.nodes.extend(builder.nodes)
    model.graph.outputs = list(made)
    return model, [str(tensor.name) for tensor in made]


def _random_units(seen: LayerMoments, seed: int) -> HiddenUnits:
    """Weight and bias of units in random directions of the standardised features.

    Random features with a linear layer on top: an extreme learning machine (Huang et al. 2006).
    """
    mean = seen.mean[0]
    scale = _scales(np.diagonal(np.asarray(seen.centered().seconds[0])), mean)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((HIDDEN_UNITS, len(mean))) * scale
    weight /= np.sqrt(max(int(np.count_nonzero(scale)), 1))
    bias = rng.standard_normal(HIDDEN_UNITS) - weight @ mean
    return weight.astype(np.float32), bias.astype(np.float32)


def _scales(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """1 / standard deviation of each feature; 0 for features that do not vary."""
    least = np.maximum(_DEAD * variance.max(initial=0.0), _STEADY * (variance + mean**2))
    alive = variance > np.maximum(least, np.finfo(float).tiny)
    return np.asarray(np.where(alive, 1 / np.sqrt(np.where(alive, variance, 1.0)), 0.0))


def _classes(distillation: Distillation) -> int:
    output = next(t for t in distillation.model.graph.outputs if t.name == distillation.output)
    classes = classes_of(output)
    assert classes is not None
    return classes


def _error(weight: np.ndarray, bias: np.ndarray, held: LayerMoments) -> float:
    """E‖y − W·x − b‖², from moments about zero."""
    second, mean = np.asarray(held.seconds[0]), held.mean[0]
    with_x = float(np.sum(weight * (weight @ second))) - 2 * float(np.sum(weight * _of(held.cross)))
    with_b = float(bias @ bias) + 2 * float(bias @ (weight @ mean - _of(held.goal)))
    return max(0.0, float(_of(held.energy).sum()) + with_x + with_b)


def _of(part: np.ndarray | None) -> np.ndarray:
    """The part of moments that belongs to their one group."""
    assert part is not None
    return np.asarray(part[0])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
