"""The problems that a lossy weight pass solves, one weight after another.

    for problem in Problems(graph, context, selection, schedule):
        problems.apply(problem, solve(problem.target, problem.metrics))

A problem is one weight, the target that a new weight should come near, and the metric that says
what a difference costs in the layer's output: H = E[x xᵀ], or the identity without calibration
data. Each problem is made after the answer to the last one is in the graph, so that its inputs are
those that the changed model produces.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import starmap
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, bias_of, weight_layers
from onnxslim.analysis.linear_operators import RecurrentSteps, TableRows
from onnxslim.graph.ir import Node, node_label, subgraphs_of
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.table_reads import row_shares
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, Skip
from onnxslim.services.moments import BlockDiagonal, LayerMoments, Second
from onnxslim.solvers.least_squares import shifted_target, unexplained
from onnxslim.solvers.metric import Metric, objective
from onnxslim.solvers.threads import threads_for

MAX_INPUTS: Final = 8192  # of a weight; its second moments then take 1.6 GB to work with

_AT_ONCE: Final = 1 << 22  # elements of a weight


class Target(enum.StrEnum):
    """What a layer's new weight should reproduce.

    ORIGINAL: the output of the layer in `Context.target` on the same samples, fitted from the
    inputs that the changed model gives the layer. CURRENT: the output of the present weight on
    these inputs; options spell it `own`.
    """

    ORIGINAL = "original"
    CURRENT = "own"


@dataclass(frozen=True)
class Schedule:
    """When the moments of a layer's input are taken, and what its new weight should reproduce.

    Attributes:
        sequential: whether a layer's inputs come from the model with all earlier layers changed;
            else from the model as it was.
        aim: what a layer's new weight should reproduce.
    """

    sequential: bool = True
    aim: Target = Target.ORIGINAL

    def at_once(self) -> Schedule:
        """The same aim, with the moments of all layers taken from the model as it is now."""
        return Schedule(sequential=False, aim=self.aim)


@dataclass
class Problem:
    """One weight, its target, and the cost of a difference from the target.

    Attributes:
        layers: those that use the weight; the first gives names, shapes and the canonical form.
        metrics: the cost of a distance from the target, one metric for each group.
        shifted: the least-squares target, (groups, rows, columns), float64; None: the target is
            the weight itself.
        bias_targets: for each layer E[y] and E[x], (groups, rows) and (groups, columns), from
            which its new bias is E[y] − Ŵ·E[x]; None where the bias cannot be changed.
        energy: E‖y‖², the variance of y where the bias may be changed; None without data.
        irreducible_error: the error that even the target T leaves, E‖y − T·x‖².
        residual_gradients: E[(y − T·x)·xᵀ] of each group, (rows, columns); zero where T is
            the least-squares solution, not zero where shrinkage or damping changed T. (): all are
            zero.
        row_shares: of a table, how often each row is read, (rows,), as shares that add up to one;
            None: all rows count alike.
        notes: simplifications, in words for the report.
        layer_names: all names of the layers, by which options may mean them.
    """

    layers: tuple[WeightLayer, ...]
    metrics: tuple[Metric, ...]
    shifted: np.ndarray | None = None
    bias_targets: tuple[tuple[np.ndarray, np.ndarray] | None, ...] = ()
    energy: float | None = None
    irreducible_error: float = 0.0
    residual_gradients: tuple[np.ndarray, ...] = ()
    row_shares: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    layer_names: tuple[str, ...] = ()

    @property
    def layer(self) -> WeightLayer:
        """The first layer."""
        return self.layers[0]

    @property
    def name(self) -> str:
        """The first layer's name."""
        return self.layer.name

    @property
    def has_data(self) -> bool:
        """Whether the metrics come from calibration data."""
        return not self.metrics[0].is_identity

    @cached_property
    def weight(self) -> np.ndarray:
        """The weight as it is, (groups, rows, columns), in its own type."""
        return self.layer.canonical()

    @cached_property
    def target(self) -> np.ndarray:
        """The weight to come near, float64."""
        return np.asarray(self.weight, np.float64) if self.shifted is None else self.shifted

    def error(self, weight: np.ndarray) -> float:
        """E‖y − Ŵ·x‖² with data, ‖W − Ŵ‖² without; of a table with row shares Σ pᵣ·‖wᵣ − ŵᵣ‖²."""
        if self.row_shares is not None:
            return _read_error(self.target[0], weight[0], self.row_shares)
        pairs = ((g, rows, weight[g][rows]) for g, rows in row_parts(weight.shape))
        return max(0.0, self.irreducible_error + sum(starmap(self.error_of, pairs)))

    def error_of(self, group: int, rows: slice, weight: np.ndarray) -> float:
        """What some rows of a new weight of one group add to `irreducible_error`."""
        target, wide = self.target[group][rows], np.asarray(weight, np.float64)
        error = objective(target, wide, self.metrics[group])
        if self.residual_gradients:
            gradient = self.residual_gradients[group][rows]
            error += float(np.einsum("ij,ij->", target - 2 * wide, gradient))
        return error

    def relative_error(self, weight: np.ndarray) -> float:
        """`error` as a share of E‖y‖² (of ‖W‖² without data)."""
        whole = self.energy
        if self.row_shares is not None:
            whole = _read_error(self.target[0], np.zeros((1, 1)), self.row_shares)
        if whole is None:
            whole = float(np.square(self.target).sum())
        return self.error(weight) / whole if whole > 0 else 0.0


def row_parts(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Groups of a weight, (groups, rows, columns), and as many rows as are worked on at once.

    The head of a language model has tens of thousands, and what is computed of them takes many
    times its memory.
    """
    groups, rows, columns = shape
    height = max(1, _AT_ONCE // columns)
    for group in range(groups):
        for first in range(0, rows, height):
            yield group, slice(first, first + height)


def _read_error(target: np.ndarray, weight: np.ndarray, shares: np.ndarray) -> float:
    """Σ pᵣ·‖wᵣ − ŵᵣ‖² over the rows of a table."""
    change = target - weight
    return float(np.einsum("ij,ij,i->", change, change, shares))


@dataclass(frozen=True)
class SharedWeight:
    """One stored weight: the layers that use it, and how deep in the graph the first one lies.

    Attributes:
        layers: at least one; tables, whose inputs have no moments, come last.
        depth: weight layers on the longest path from an input to the shallowest of `layers`.
    """

    layers: tuple[WeightLayer, ...]
    depth: int


@dataclass
class Problems:
    """The weights of a graph, as problems, in the order in which data reach them.

    Attributes:
        rewriter: of the graph; answers and skips are written through it.
        max_inputs: weights with more inputs get no measured metric (H = I) and come before all
            others; None: there is no limit.
        weights: one for each problem, by depth.
    """

    rewriter: Rewriter
    context: Context
    selection: LayerFilter = field(default_factory=LayerFilter)
    schedule: Schedule = field(default_factory=Schedule)
    max_inputs: int | None = None

    def __post_init__(self) -> None:
        graph = self.rewriter.main
        layers, skips = weight_layers(graph)
        for skip in skips:
            self.rewriter.skip(skip.node, skip.why)
        self.weights = [
            shared for shared in _shared_weights(graph, layers) if self._is_wanted(shared)
        ]
        target = self.context.target
        found = () if target is None else weight_layers(target.graph)[0]
        self._originals = {layer.name: layer for layer in found}

    def __iter__(self) -> Iterator[Problem]:
        """The problems; each is made when it is asked for."""
        made = self.context.progress.over(
            "working on", self._made(), "layers", total=len(self.weights)
        )
        for problem in made:
            labels = [layer.name for layer in problem.layers]
            problem.layer_names = tuple(self.context.names.all(labels))
            yield problem
            del problem  # moments are large: nothing may hold on to them

    def _made(self) -> Iterator[Problem]:
        if self.context.calibration is None or self.context.model is None:
            yield from map(_without_data, self.weights)
            return
        tables = [shared for shared in self.weights if all(map(_is_table, shared.layers))]
        yield from map(self._table, tables)
        others = [shared for shared in self.weights if shared not in tables]
        wide = [shared for shared in others if self._is_wide(shared)]
        yield from (
            _without_data(u, f"H = I: it has more than {self.max_inputs:,} inputs") for u in wide
        )
        rest = [shared for shared in others if not self._is_wide(shared)]
        if self.schedule.sequential:
            for depth in sorted({shared.depth for shared in rest}):
                yield from self._measured([shared for shared in rest if shared.depth == depth])
        elif rest:
            yield from self._measured(rest)

    def without_data(self) -> Iterator[Problem]:
        """The problems with H = I; no sample is looked at."""
        return map(_without_data, self.weights)

    def restricted(self, predicate: Callable[[SharedWeight], bool]) -> Problems:
        """The same problems without the weights that do not satisfy `predicate`."""
        found = copy(self)
        found.weights = [shared for shared in self.weights if predicate(shared)]
        return found

    def scheduled(self, schedule: Schedule) -> Problems:
        """The same problems, with moments taken as `schedule` says."""
        found = copy(self)
        found.schedule = schedule
        return found

    def original(self, layer: WeightLayer) -> WeightLayer | None:
        """The layer of the same name in `Context.target`, where its outputs are comparable."""
        twin = self._originals.get(layer.name)
        same = twin is not None and (twin.groups, twin.rows) == (layer.groups, layer.rows)
        if not same or twin is None or isinstance(bias_of(twin), str):
            return None
        return twin

    def apply(self, problem: Problem, weight: np.ndarray, what: str) -> None:
        """Let the graph use `weight`, (groups, rows, columns), and report `what` was done."""
        assign(self.rewriter, problem, weight)
        self.rewriter.note(node_label(problem.layer.node), what, Fidelity.LOSSY)

    # ------------------------------------------------------------------ inside

    def _is_wanted(self, shared: SharedWeight) -> bool:
        accepted = [self.selection.accepts(layer.name) for layer in shared.layers]
        if any(accepted) and not all(accepted):
            other = shared.layers[accepted.index(False)].name
            self.rewriter.skip(
                node_label(shared.layers[accepted.index(True)].node),
                f"it shares its weight with `{other}`, which is not selected",
            )
        return all(accepted)

    def _table(self, shared: SharedWeight) -> Problem:
        """The problem of a table, whose rows count as often as samples read them."""
        found = [row_shares(layer.name, self.context) for layer in shared.layers]
        known = [shares for shares in found if shares is not None]
        if len(known) < len(found):
            return _without_data(shared)
        problem = _without_data(shared, "rows count as often as samples read them")
        problem.row_shares = np.mean(known, axis=0)
        return problem

    def _is_wide(self, shared: SharedWeight) -> bool:
        return self.max_inputs is not None and shared.layers[0].columns > self.max_inputs

    def _measured(self, weights: Sequence[SharedWeight]) -> Iterator[Problem]:
        """The problems of `weights`, with moments taken from the graph as it is now."""
        assert self.context.model is not None
        snapshot = self.context.model.clone()
        waiting = {shared.layers[0].name: shared for shared in weights}
        found: dict[str, LayerMoments | Skip] = {}
        for item in self._moments(snapshot, weights):
            found[item.layer if isinstance(item, LayerMoments) else item.node] = item
            del item  # moments are large: nothing may hold on to them
            for first, shared in list(waiting.items()):
                names = [layer.name for layer in shared.layers if not _is_table(layer)]
                if all(name in found for name in names):
                    del waiting[first]
                    with threads_for(shared.layers[0].columns):
                        problem = self._problem(shared, [found.pop(name) for name in names])
                    yield problem
                    del problem

    def _moments(
        self, model: object, weights: Sequence[SharedWeight]
    ) -> Iterator[LayerMoments | Skip]:
        calibration = self.context.calibration
        assert calibration is not None
        layers = [la for shared in weights for la in shared.layers if not _is_table(la)]
        aiming = self.schedule.aim is Target.ORIGINAL
        known = [la.name for la in layers if aiming and self.original(la) is not None]
        others = [la.name for la in layers if la.name not in set(known)]
        if known:
            yield from calibration.moments(model, known, self.context.target)  # type: ignore[arg-type]
        if others:
            yield from calibration.moments(model, others)  # type: ignore[arg-type]

    def _problem(self, shared: SharedWeight, found: list[LayerMoments | Skip]) -> Problem:
        """The problem of one weight; empties `found`, so that moments leave before metrics come."""
        unseen = next((item for item in found if isinstance(item, Skip)), None)
        if unseen is not None:
            return _without_data(shared, f"H = I: {unseen.why}")
        layers = shared.layers
        if any(not _have_one_layout(layer, layers[0]) for layer in layers):
            return _without_data(shared, "H = I: the layers that share it read it differently")
        measured = [item for item in found if isinstance(item, LayerMoments)]
        found.clear()
        if len({item.cross is None for item in measured}) > 1:  # only some return what they did
            measured = [
                item.returning(la.canonical()) if item.cross is None else item
                for la, item in zip(layers, measured, strict=False)
            ]
        bias_targets = tuple(
            self._bias_target(la, m) for la, m in zip(layers, measured, strict=False)
        )
        free = [target is not None for target in bias_targets]
        for layer in layers[len(measured) :]:
            seen_first = measured[0].centered() if free[0] else measured[0]
            measured.append(_table_moments(self.original(layer) or layer, seen_first))
            free.append(False)
            del seen_first
        metrics = _metrics(measured, free)
        rest = [replace(moments, seconds=()) for moments in measured]  # the metrics have them
        del measured
        seen = [m.centered() if is_free else m for m, is_free in zip(rest, free, strict=True)]
        notes = tuple(dict.fromkeys(note for moments in seen for note in moments.notes))
        problem = Problem(
            layers, metrics, None, bias_targets, notes=(*notes, *_readers_note(shared))
        )
        self._set_target(problem, seen)
        return problem

    def _set_target(self, problem: Problem, seen: Sequence[LayerMoments]) -> None:
        """Set target, energy, irreducible error and residual gradients from centered moments."""
        weight = problem.weight
        if any(moments.cross is None or moments.energy is None for moments in seen):
            pairs = zip(weight, problem.metrics, strict=True)
            wide = ((np.asarray(w, np.float64), metric) for w, metric in pairs)
            problem.energy = sum(float(metric.cost_by_row(w).sum()) for w, metric in wide)
            return
        twin = self.original(problem.layer)
        if twin is not None and _have_one_layout(twin, problem.layer):
            weight = twin.canonical()
        cross = sum(moments.cross for moments in seen if moments.cross is not None)
        energy = sum(moments.energy for moments in seen if moments.energy is not None)
        assert isinstance(cross, np.ndarray)
        assert isinstance(energy, np.ndarray)
        problem.energy = float(energy.sum())
        problem.shifted = np.empty(cross.shape)
        left = np.zeros(len(cross))
        for group, rows in row_parts(cross.shape):
            metric, part = problem.metrics[group], cross[group, rows]
            target = shifted_target(weight[group, rows], part, metric)
            left[group] += unexplained(target, part, energy[group, rows])
            part -= metric.undamped_times(target)  # `cross` becomes the gradient
            problem.shifted[group, rows] = target
        problem.irreducible_error = float(np.maximum(left, 0.0).sum())
        problem.residual_gradients = tuple(cross)

    def _bias_target(
        self, layer: WeightLayer, moments: LayerMoments
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The mean output to restore and the mean input, where the layer's bias can be chosen."""
        if moments.goal is None or _free_bias(layer) is None:
            return current_bias_target(layer, moments.mean)
        twin = self.original(layer)
        before = None if twin is None else bias_of(twin)
        if not isinstance(before, np.ndarray):
            return None
        return before + moments.goal, moments.mean


def current_bias_target(
    layer: WeightLayer, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The entry of `Problem.bias_targets` that keeps the mean output which a layer has now.

    Args:
        layer: with its present weight and bias.
        mean: E[x], (groups, columns).
    """
    bias = _free_bias(layer)
    if bias is None:
        return None
    own = np.asarray(layer.canonical(), np.float64)
    return bias + np.matmul(own, mean[:, :, None])[:, :, 0], mean


def _free_bias(layer: WeightLayer) -> np.ndarray | None:
    """The bias of a layer, (groups, rows), where another can be chosen."""
    bias = bias_of(layer)
    if layer.bias is None or isinstance(bias, str) or not layer.operator.bias_scale:
        return None
    return bias


def assign(rewriter: Rewriter, problem: Problem, weight: np.ndarray) -> None:
    """Give the layers of `problem` a weight, (groups, rows, columns), and biases that fit it.

    Where a bias can be chosen it keeps the mean output: b + E[y] − Ŵ·E[x].
    """
    rewriter.set_values(problem.layer.holder, problem.layer.restored(weight))
    for layer, bias_target in zip(problem.layers, problem.bias_targets, strict=False):
        if bias_target is None:
            continue
        mean_output, mean = bias_target
        # (g, rows, columns)·(g, columns, 1) -> (g, rows)
        _set_bias(rewriter, layer, mean_output - np.matmul(weight, mean[:, :, None])[:, :, 0])


def _without_data(shared: SharedWeight, *notes: str) -> Problem:
    first = shared.layers[0]
    metrics = tuple(Metric(None, first.columns) for _ in range(first.groups))
    return Problem(shared.layers, metrics, notes=(*notes, *_readers_note(shared)))


def _readers_note(shared: SharedWeight) -> Iterator[str]:
    """That other operators than these layers use the weight (a Gather of tied embeddings)."""
    known = {layer.name for layer in shared.layers}
    others = sorted({other for layer in shared.layers for other in layer.shared} - known)
    if others:
        names = ", ".join(f"`{name}`" for name in others)
        yield f"what changes in {names}, which read it too, is not counted"


def _is_table(layer: WeightLayer) -> bool:
    """Whether the layer returns rows of its weight, so that no moments of inputs matter."""
    return isinstance(layer.unfolding, TableRows)


def _table_moments(table: WeightLayer, other: LayerMoments) -> LayerMoments:
    """Moments by which errors of a table's rows count beside those of a layer that shares it.

    The rows are to have as much weight, relative to their energy, as the outputs of the layer:
    E‖y‖²·‖T − T̂‖² / ‖T‖², with y = T·x of the layer. So H = I·E‖y‖² / ‖T‖².
    """
    weight = np.asarray(table.canonical(), np.float64)
    (second,) = other.seconds
    whole = slice(0, table.columns)
    blocks = tuple(second.slices()) if isinstance(second, BlockDiagonal) else ((whole, second),)
    energy = sum(float(np.vdot(weight[0][:, at] @ h, weight[0][:, at])) for at, h in blocks)
    size = float(np.square(weight).sum())
    share = energy / size if size > 0 else 1.0
    parts = tuple(np.eye(len(h)) * share for _, h in blocks)
    known = other.cross is not None
    return LayerMoments(
        table.name,
        (parts[0] if len(parts) == 1 else BlockDiagonal(parts),),
        np.zeros((1, table.columns)),
        other.count,
        cross=weight * share if known else None,
        goal=np.zeros(weight.shape[:2]) if known else None,
        energy=np.square(weight).sum(axis=2) * share if known else None,
        scatter=None if other.scatter is None else np.zeros_like(other.scatter),
        centered_scatter=None if other.scatter is None else np.zeros_like(other.scatter),
    )


def _have_one_layout(layer: WeightLayer, other: WeightLayer) -> bool:
    """Whether the moments of two layers of one weight add up; those of a table do with any."""
    sizes = [(la.groups, la.rows, la.columns, la.inputs_first) for la in (layer, other)]
    kinds = {type(la.unfolding) for la in (layer, other) if not _is_table(la)}
    return sizes[0] == sizes[1] and len(kinds) <= 1


def _metrics(measured: Sequence[LayerMoments], free: Sequence[bool]) -> tuple[Metric, ...]:
    """The sums of metrics over all layers that share a weight; centered where a bias is free."""
    pairs = list(zip(measured, free, strict=True))
    noises = [(replace(m, scatter=m.centered_scatter) if f else m).noise() for m, f in pairs]
    noise = None if any(item is None for item in noises) else np.asarray(sum(noises))  # type: ignore[arg-type]
    mean: np.ndarray | None = None
    if len(pairs) == 1:
        seconds, mean = measured[0].seconds, measured[0].mean if free[0] else None
    else:
        seen = [m.centered() if f else m for m, f in pairs]
        groups = range(len(measured[0].seconds))
        seconds = tuple(reduce(_sum, (moments.seconds[g] for moments in seen)) for g in groups)
    return tuple(
        Metric(
            second,
            len(measured[0].mean[group]),
            scatter=None if noise is None else noise[:, group],
            mean=None if mean is None else mean[group],
        )
        for group, second in enumerate(seconds)
    )


def _sum(a: Second, b: Second) -> Second:
    if isinstance(a, BlockDiagonal) and isinstance(b, BlockDiagonal):
        return BlockDiagonal(tuple(x + y for x, y in zip(a.blocks, b.blocks, strict=True)))
    return np.asarray(np.asarray(a) + np.asarray(b))


def _set_bias(rewriter: Rewriter, layer: WeightLayer, bias: np.ndarray) -> None:
    """Write (groups, rows), divided by Gemm's beta, in the shape that the operator broadcasts."""
    assert layer.bias is not None
    node = layer.node
    if isinstance(layer.unfolding, RecurrentSteps):
        flat = _recurrent_biases(layer, bias)
    else:
        flat = bias.reshape(-1) / layer.operator.bias_scale
    if layer.operator.out_axis == -2:
        flat = flat[:, None]  # (rows, 1): one entry for each row of the output
    values = np.ascontiguousarray(flat.astype(layer.dtype))
    present = is_present(node, layer.bias)
    wish = node.inputs[layer.bias].name if present else f"{node.outputs[0].name}_bias"
    rewriter.set_input(node, layer.bias, rewriter.constant(values, wish))


def _recurrent_biases(layer: WeightLayer, bias: np.ndarray) -> np.ndarray:
    """The biases of W and of R, (directions, 2 * rows), where those of `layer` are `bias`."""
    assert layer.bias is not None
    both = np.zeros((layer.groups, 2, layer.rows))
    if is_present(layer.node, layer.bias):
        old = const_array(layer.node.inputs[layer.bias])
        assert old is not None  # `bias_of` read it
        both[:] = np.asarray(old, np.float64).reshape(both.shape)
    both[:, int(layer.operator.has_second_bias)] = bias
    return both.reshape(layer.groups, -1)


# ---------------------------------------------------------------------------- order


def _shared_weights(graph: gs.Graph, layers: Sequence[WeightLayer]) -> list[SharedWeight]:
    """Layers by the weight they use, in the order of their depth."""
    depths = layer_depths(graph, {layer.node for layer in layers})
    sharing: dict[int, list[WeightLayer]] = {}
    for layer in layers:
        sharing.setdefault(id(layer.holder), []).append(layer)
    weights = [
        SharedWeight(
            tuple(sorted(group, key=_is_table)), min(depths[layer.node] for layer in group)
        )
        for group in sharing.values()
    ]
    return sorted(weights, key=lambda shared: shared.depth)


def layer_depths(graph: gs.Graph, counted: set[Node]) -> dict[Node, int]:
    """How many of the `counted` nodes lie, at most, on the ways that lead to each of them."""
    reached: dict[int, int] = {}
    depths: dict[Node, int] = {}

    def visit(current: gs.Graph, base: int) -> int:
        for node in current.nodes:
            depth = max([base, *(reached.get(id(tensor), 0) for tensor in node.inputs)])
            inside = [visit(body, depth) for body in subgraphs_of(node)]
            depth = max([depth, *inside])
            if node in counted:
                depths[node] = depth
                depth += 1
            for tensor in node.outputs:
                reached[id(tensor)] = depth
        return max([base, *(reached.get(id(tensor), 0) for tensor in current.outputs)])

    visit(graph, 0)
    return depths
