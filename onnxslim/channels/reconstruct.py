"""What the layers that read a group say of it, and their refit once some of its units are gone.

Until the very end nothing is cut out: the columns of units that are gone are zero in the layers
that read them, which gives the outputs of the smaller graph and leaves every layer comparable with
that of the original model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.channels.groups import ChannelGroup, Channels, channel_groups
from onnxslim.channels.importance import Evidence
from onnxslim.channels.removal import Removal, SliceOperand
from onnxslim.channels.tracing import Member, indexable
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem, Problems, Schedule, assign
from onnxslim.pipeline.passes import Context
from onnxslim.solvers.metric import refit

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass
class ReadingLayer:
    """A layer that reads channels: its problem, with the unit of each column.

    Attributes:
        problem: with its metrics left out where they were only needed once.
        units: (groups, columns), −1 where there is no name.
    """

    problem: Problem
    units: Ids


@dataclass
class Readers:
    """All layers that read the channels of some groups, by name.

    Attributes:
        channels: of the graph.
        units: of the columns of each layer, (groups, columns).
    """

    channels: Channels
    units: dict[str, Ids] = field(default_factory=dict)

    @classmethod
    def of(cls, channels: Channels, groups: Sequence[ChannelGroup]) -> Readers:
        """The readers of `groups`."""
        found = cls(channels)
        for group in groups:
            for member in group.readers:
                if member.layer is not None:
                    found.units[member.layer.name] = column_units(channels, member, member.layer)
        return found

    def problems(self, rewriter: Rewriter, context: Context, schedule: Schedule) -> Problems:
        """The problems of these layers; those of others are left out."""
        problems = Problems(rewriter, context, schedule=schedule)
        return problems.restricted(
            lambda shared: any(layer.name in self.units for layer in shared.layers)
        )


def column_units(channels: Channels, member: Member, layer: WeightLayer) -> Ids:
    """The unit of each column of the canonical weight, (groups, columns)."""
    by_group = channels.units.of_ids(member.ids).reshape(layer.groups, -1)
    return np.repeat(by_group, layer.columns // by_group.shape[1], axis=1)


# ---------------------------------------------------------------------------- evidence


def gather(
    readers: Readers,
    problems: Problems,
    groups: Sequence[ChannelGroup],
    kept: dict[str, ReadingLayer],
    *,
    with_views: bool,
) -> Iterator[tuple[int, Evidence]]:
    """What every reader says of every group, from one look at the moments.

    A group is told of as soon as all its readers were seen: what it holds can be let go then.

    Args:
        readers: of the groups.
        problems: theirs, at once: on the inputs that they have now.
        groups: what is asked about.
        kept: gets the readers by name, without their metrics.
        with_views: keep what refitting needs.

    Yields:
        The place of a group, and its evidence.
    """
    waiting = {
        index: {m.layer.name for m in group.readers if m.layer is not None}
        for index, group in enumerate(groups)
    }
    started: dict[int, Evidence] = {}

    def finished() -> Iterator[tuple[int, Evidence]]:
        for index in [index for index, names in waiting.items() if not names]:
            del waiting[index]
            found = started.pop(index, None)
            yield index, found or Evidence.empty(readers.channels, groups[index])

    yield from finished()
    for problem in problems:
        for layer in problem.layers:
            units = readers.units.get(layer.name)
            if units is None:
                continue
            weight = np.asarray(problem.weight, np.float64)
            energy = problem.energy
            if energy is None:
                energy = float(np.square(weight).sum())
            for index in [index for index, names in waiting.items() if layer.name in names]:
                if index not in started:
                    started[index] = Evidence.empty(readers.channels, groups[index])
                started[index].add(weight, problem.metrics, energy, units, with_views=with_views)
                waiting[index].remove(layer.name)
            kept[layer.name] = ReadingLayer(replace(problem, metrics=()), units)
        del problem  # its metrics are large
        yield from finished()


@dataclass(frozen=True)
class RemovalTrial:
    """Some units of a group, as the only ones to leave.

    Attributes:
        group: theirs.
        units: their numbers.
        error: what that is said to cost.
    """

    group: ChannelGroup
    units: Ids
    error: float


def sensitivities(
    context: Context,
    channels: Channels,
    readers: Mapping[str, ReadingLayer],
    trials: Sequence[RemovalTrial],
) -> list[float]:
    """Divergence of the model's outputs for what each trial is said to cost.

    Measured on samples held back; 0 where a trial costs nothing.

    Args:
        context: with calibration samples.
        channels: of the model that is rewritten.
        readers: by name.
        trials: one for each group whose sensitivity is asked for.
    """
    assert context.calibration is not None
    assert context.model is not None
    model, held = context.model, context.calibration.halves()[1]
    models = (_without(model, channels, readers, trial) for trial in trials)
    return [
        distance.divergence / trial.error if trial.error > 0 else 0.0
        for distance, trial in zip(held.distances(model, models), trials, strict=True)
    ]


def _without(
    model: Model, channels: Channels, readers: Mapping[str, ReadingLayer], trial: RemovalTrial
) -> Model:
    """A copy of the model whose readers of a group do without some of its units."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    if trial.group.weightless_readers:
        gone = np.zeros(channels.units.count, bool)
        gone[trial.units] = True
        zero_removed(rewriter, channel_groups(copy.graph), gone)
        rewriter.result()
        return copy
    layers = {layer.name: layer for layer in weight_layers(copy.graph)[0]}
    for member in trial.group.readers:
        reader = readers.get(member.layer.name) if member.layer is not None else None
        if reader is None:
            continue
        problem = replace(
            reader.problem, layers=tuple(layers[la.name] for la in reader.problem.layers)
        )
        leaves = np.isin(reader.units, trial.units)
        weight = np.where(leaves[:, None, :], 0.0, np.asarray(problem.weight, np.float64))
        assign(rewriter, problem, weight)
    rewriter.result()
    return copy


# ---------------------------------------------------------------------------- refit


def refit_readers(readers: Readers, problems: Problems, gone: Mask) -> Iterator[tuple[str, float]]:
    """Give every reader the best weight that does without the units that are gone.

    Yields:
        The name of each layer and its relative output error.
    """
    leaves = indexable(gone)
    for problem in problems:
        names = [layer.name for layer in problem.layers if layer.name in readers.units]
        support = np.logical_and.reduce([~leaves[readers.units[name]] for name in names])
        if support.all() and not problem.has_data:
            continue
        parts = zip(problem.target, problem.metrics, support, strict=True)
        weight = np.stack([refit(target, metric, keeps) for target, metric, keeps in parts])
        assign(problems.rewriter, problem, weight)
        yield problem.name, problem.relative_error(weight)


def zero_removed(rewriter: Rewriter, channels: Channels, gone: Mask) -> None:
    """Let nothing pass on the units that are gone, until they are cut out.

    Needed where a product of two activations uses them up, which has no weights to be zero. What
    makes the units gets weights and biases of zero, and so does what is added on their way.

    Args:
        rewriter: of the graph.
        channels: its groups.
        gone: for each unit whether it leaves.
    """
    removal = Removal(gone[channels.units.of])
    for member in channels.trace.writers:
        leaves = ~removal.keeps(member.ids)
        if member.layer is None or not leaves.any():
            continue
        weight = np.array(member.layer.canonical())
        weight.reshape(-1, weight.shape[2])[leaves] = 0  # (outputs, weights)
        rewriter.set_values(member.layer.holder, member.layer.restored(weight))
    for edit in channels.trace.edits:
        if isinstance(edit, SliceOperand) and _adds(edit):
            _zero(rewriter, edit, removal.along(edit.array, edit.at))


def _adds(edit: SliceOperand) -> bool:
    """Whether a constant is something that a node adds to what it gets."""
    if edit.node.op in ("Add", "Sub", "Sum"):
        return True
    return edit.operand in _ADDED.get(edit.node.op, ())


_ADDED: Final = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    # a scale of zero takes the mean away, too
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (2,),
}


def _zero(rewriter: Rewriter, edit: SliceOperand, keeps: Mask) -> None:
    """Give a node a constant of its own that is zero where nothing is kept."""
    values = const_array(edit.node.inputs[edit.operand])
    if keeps.all() or values is None:
        return
    changed = values.copy()
    np.moveaxis(changed, edit.axis, 0)[~keeps] = 0
    name = edit.node.inputs[edit.operand].name or f"{edit.node.outputs[0].name}_silent"
    rewriter.set_input(edit.node, edit.operand, rewriter.constant(changed, name))


__all__ = [
    "Readers",
    "ReadingLayer",
    "RemovalTrial",
    "column_units",
    "gather",
    "refit_readers",
    "sensitivities",
    "zero_removed",
]
