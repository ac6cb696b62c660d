"""What a unit is worth: the table of criteria, and the functions behind it.

`CRITERIA` is all there is to a criterion: `prune-channels` reads its words, its help, what needs
calibration samples and what `auto` means from the table, and `scoring` reads what to gather. To add
one, write a function, add a row, and add a test; nothing else changes.

A score is an array with a number for each unit of the graph; units of other groups are 0. Units
with the lowest numbers leave first, so a place in an order serves as well as a magnitude. Units
with several writers or readers sum over them, after each layer's values are divided by their mean.

Owns: the table, and criteria of a few lines. Not here: criteria that take an algorithm (see
`rankings`), the output error of removals (see `evidence`), what is gathered when (see `scoring`).
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import distance

from onnxslim.channels.evidence import Evidence
from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.rankings import elimination_order, greedy_order, lasso_penalties
from onnxslim.channels.tracing import Member
from onnxslim.graph.operands import const_array
from onnxslim.services.activity import ChannelActivity

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_TINY: Final = 1e-300  # in place of a divisor of zero


class Needs(enum.Enum):
    """What a criterion looks at besides the graph; all but `WEIGHTS` needs calibration samples."""

    WEIGHTS = enum.auto()
    ACTIVITY = enum.auto()  # statistics of the inputs of the layers that read the group
    PRODUCTS = enum.auto()  # Q of those layers, see `evidence`
    INVERSES = enum.auto()  # their inverse moments, too
    EFFECTS = enum.auto()  # gradients of the network at what they read


@dataclass(frozen=True)
class GroupFacts:
    """Whatever a criterion may look at to score the units of one group.

    Attributes:
        activity: of the layers that read the group, by their names; None: not observed.
        evidence: of the same layers; None: not gathered.
        effects: of the channels of what they read, by the name of the tensor (see
            `Trainer.effects`); None: not asked.
    """

    channels: Channels
    group: ChannelGroup
    seed: int = 0
    activity: Mapping[str, ChannelActivity] | None = None
    evidence: Evidence | None = None
    effects: Mapping[str, Array] | None = None

    def have(self, needs: Needs) -> bool:
        """Whether a criterion with these needs can be used."""
        if needs is Needs.ACTIVITY:
            return self.activity is not None
        if needs is Needs.EFFECTS:
            return self.effects is not None
        return needs is Needs.WEIGHTS or self.evidence is not None


Score = Callable[[GroupFacts], Array]


@dataclass(frozen=True)
class ChannelCriterion:
    """One way to say what units are worth.

    Attributes:
        name: the word of the option.
        score: (units of the graph,); raises LookupError, with the reason, if it cannot score a
            group.
        meaning: for the help of the option: what it computes, and by whom it was proposed.
    """

    name: str
    needs: Needs
    score: Score
    meaning: str

    @property
    def needs_data(self) -> bool:
        """Whether it needs calibration samples."""
        return self.needs is not Needs.WEIGHTS


# ---------------------------------------------------------------------------- weights alone


def member_rows(member: Member) -> Array:
    """The weights that make each output channel, (channels, weights)."""
    if member.layer is None:  # an embedding: (rows, channels)
        table = const_array(member.node.inputs[member.operand])
        assert table is not None
        return np.asarray(table.T, np.float64)
    weight = np.asarray(member.layer.canonical(), np.float64)
    return weight.reshape(-1, weight.shape[2])


def member_columns(member: Member) -> Array:
    """The weights that read each input channel, (channels, weights)."""
    assert member.layer is not None
    weight = np.asarray(member.layer.canonical(), np.float64)
    groups, rows, columns = weight.shape
    taps = groups * columns // len(member.ids)
    # (g, rows, channels of a group, taps) -> (g, channels, rows, taps)
    split = weight.reshape(groups, rows, columns // taps, taps).transpose(0, 2, 1, 3)
    return split.reshape(len(member.ids), -1)


def _by_rows(values_of: Callable[[Array], Array]) -> Score:
    """A score from the weights of each output channel of the writers, (channels, weights)."""

    def score(facts: GroupFacts) -> Array:
        worth = np.zeros(facts.channels.units.count)
        for member in facts.group.writers:
            values = values_of(member_rows(member))
            units = facts.channels.units.of_ids(member.ids)
            _add(worth, units, values / max(values.mean(), _TINY))
        return worth

    return score


def _absolute_sum(rows: Array) -> Array:
    return np.asarray(np.abs(rows).sum(axis=1))


def _norm(rows: Array) -> Array:
    return np.asarray(np.linalg.norm(rows, axis=1))


def _distances(rows: Array) -> Array:
    """The sum of the distances of each filter to all others: the median filter is worth least."""
    return np.asarray(distance.cdist(rows, rows).sum(axis=1))


def _product(facts: GroupFacts) -> Array:
    """The norm of what writes a unit times the norm of what reads it."""
    worth = _by_rows(_norm)(facts)
    if not facts.group.readers:
        return worth
    read = np.zeros_like(worth)
    for member in facts.group.readers:
        columns = _norm(member_columns(member))
        units = facts.channels.units.of_ids(member.ids)
        _add(read, units, columns / max(columns.mean(), _TINY))
    return worth * read


def _batch_norm_scale(facts: GroupFacts) -> Array:
    """The size of the scales of BatchNormalization."""
    worth = np.zeros(facts.channels.units.count)
    found = False
    for node, ids in facts.group.channelwise:
        scale = const_array(node.inputs[1]) if node.op == "BatchNormalization" else None
        if scale is not None:
            found = True
            size = np.abs(np.asarray(scale, np.float64))
            _add(worth, facts.channels.units.of_ids(ids), size)
    if not found:
        raise LookupError("no BatchNormalization is left in it")
    return worth


def _random(facts: GroupFacts) -> Array:
    """A random order that depends on the seed and on the name of the group."""
    rng = np.random.default_rng((facts.seed, zlib.crc32(facts.group.name.encode())))
    worth = np.zeros(facts.channels.units.count)
    worth[facts.group.units] = rng.permutation(facts.group.size)
    return worth


def _add(worth: Array, units: Ids, values: Array) -> None:
    """Add values to the units that they belong to; channels without a unit are left out."""
    named = units >= 0
    np.add.at(worth, units[named], values[named])


# ---------------------------------------------------------------------------- activity


def _by_activity(values_of: Callable[[ChannelActivity], Array]) -> Score:
    """The mean over the layers that read a unit; 0 where none can be observed."""

    def score(facts: GroupFacts) -> Array:
        assert facts.activity is not None
        ids = {member.layer.name: member.ids for member in facts.group.readers if member.layer}
        worth = np.zeros(facts.channels.units.count)
        seen = np.zeros(facts.channels.units.count)
        for name, found in facts.activity.items():
            if name in ids:
                values = values_of(found)
                units = facts.channels.units.of_ids(ids[name])
                _add(worth, units, values / max(float(values.mean()), _TINY))
                _add(seen, units, np.ones(len(units)))
        return worth / np.maximum(seen, 1.0)

    return score


# ---------------------------------------------------------------------------- readers


def _by_evidence(worth_of: Callable[[Evidence], Array]) -> Score:
    """A score from what the readers say, (units of the group,)."""

    def score(facts: GroupFacts) -> Array:
        assert facts.evidence is not None
        worth = np.zeros(facts.channels.units.count)
        worth[facts.group.units] = worth_of(facts.evidence)
        return worth

    return score


def _taylor(evidence: Evidence) -> Array:
    """|Σ_v Q_uv|: the first-order change of ½E‖y‖² as u fades."""
    return np.asarray(np.abs(evidence.products.sum(axis=1)))


def _obd(evidence: Evidence) -> Array:
    """Q_uu: what removing u alone does to the outputs, all else as it is."""
    return np.diagonal(evidence.products).copy()


# ---------------------------------------------------------------------------- gradients


def channels_read(member: Member) -> tuple[str, int] | None:
    """The tensor that a layer reads and the axis of its channels; None for an embedding."""
    if member.layer is None:
        return None
    node = member.node
    if node.op == "MatMul":
        return str(node.inputs[1 - member.operand].name), -1 if member.operand == 1 else -2
    if node.op == "Gemm":
        is_left = member.operand == 1
        is_transposed = bool(node.attrs.get("transA" if is_left else "transB", 0))
        return str(node.inputs[1 - member.operand].name), -1 if is_left != is_transposed else 0
    return str(node.inputs[0].name), 1


def _fisher(facts: GroupFacts) -> Array:
    """The sum over the tensors through which units are read."""
    assert facts.effects is not None
    worth, seen = np.zeros(facts.channels.units.count), set[str]()
    for member in facts.group.readers:
        read = channels_read(member)
        effects = None if read is None else facts.effects.get(read[0])
        if read is None or effects is None or len(effects) != len(member.ids) or read[0] in seen:
            continue
        seen.add(read[0])
        _add(worth, facts.channels.units.of_ids(member.ids), np.asarray(effects, np.float64))
    if not seen:
        raise LookupError("no gradient reaches what reads it")
    return worth


# ---------------------------------------------------------------------------- the table

_ROWS: Final = (
    ChannelCriterion(
        "l1",
        Needs.WEIGHTS,
        _by_rows(_absolute_sum),
        "sum of the absolute weights that write it (Li et al. 2017)",
    ),
    ChannelCriterion("l2", Needs.WEIGHTS, _by_rows(_norm), "norm of the weights that write it"),
    ChannelCriterion(
        "bn-scale",
        Needs.WEIGHTS,
        _batch_norm_scale,
        "size of its scale in BatchNormalization (Liu et al. 2017)",
    ),
    ChannelCriterion(
        "fpgm",
        Needs.WEIGHTS,
        _by_rows(_distances),
        "sum of the distances of its filter to all others (He et al. 2019)",
    ),
    ChannelCriterion("random", Needs.WEIGHTS, _random, "chance, by the seed"),
    ChannelCriterion(
        "product",
        Needs.WEIGHTS,
        _product,
        "norm of the weights that write it times norm of those that read it",
    ),
    ChannelCriterion(
        "mean-activation",
        Needs.ACTIVITY,
        _by_activity(lambda found: found.mean),
        "mean absolute value (Molchanov et al. 2017)",
    ),
    ChannelCriterion(
        "apoz",
        Needs.ACTIVITY,
        _by_activity(lambda found: 1.0 - found.zeros),
        "share of values that are not zero (Hu et al. 2016)",
    ),
    ChannelCriterion(
        "entropy",
        Needs.ACTIVITY,
        _by_activity(lambda found: found.entropy),
        "entropy of its mean over samples (Luo and Wu 2017)",
    ),
    ChannelCriterion(
        "taylor",
        Needs.PRODUCTS,
        _by_evidence(_taylor),
        "first-order change of the energy of what reads it as it fades (after Molchanov et al. "
        "2017, who take the loss of the network)",
    ),
    ChannelCriterion(
        "obd",
        Needs.PRODUCTS,
        _by_evidence(_obd),
        "output error of what reads it when it alone leaves (after LeCun et al. 1990)",
    ),
    ChannelCriterion(
        "obs",
        Needs.INVERSES,
        _by_evidence(elimination_order),
        "the same after a refit of what stays, in rounds (Hassibi and Stork 1993, by columns)",
    ),
    ChannelCriterion(
        "lasso",
        Needs.PRODUCTS,
        _by_evidence(lasso_penalties),
        "the penalty at which its coefficient becomes zero (He, Zhang, Sun 2017, eq. 1)",
    ),
    ChannelCriterion(
        "thinet",
        Needs.PRODUCTS,
        _by_evidence(greedy_order),
        "place in a greedy order of least output error (Luo, Wu, Lin 2017, eq. 6)",
    ),
    ChannelCriterion(
        "fisher",
        Needs.EFFECTS,
        _fisher,
        "second-order change of the network's own likelihood as it leaves, by gradients; needs the "
        "extra train, no labels (Theis et al. 2018, eq. 8; Molchanov et al. 2019, eq. 8)",
    ),
)

CRITERIA: Final[Mapping[str, ChannelCriterion]] = {row.name: row for row in _ROWS}
"""Every criterion by the word of its option, in the order in which the option lists them."""

_WITH_DATA: Final = CRITERIA["obs"]
_WITHOUT_DATA: Final = CRITERIA["product"]

OPTION_HELP: Final = (
    f"how the worth of a channel is computed; auto: {_WITH_DATA.name} with calibration samples, "
    f"{_WITHOUT_DATA.name} without; " + "; ".join(f"{row.name}: {row.meaning}" for row in _ROWS)
)


def criterion_of(word: str, *, has_data: bool) -> ChannelCriterion:
    """The criterion that a word of the option means; `auto` depends on `has_data`."""
    if word == "auto":
        return _WITH_DATA if has_data else _WITHOUT_DATA
    return CRITERIA[word]


def unit_scores(criterion: ChannelCriterion, facts: GroupFacts) -> Array:
    """The score by `criterion`, or by the weights alone where the facts that it needs are missing.

    Raises:
        LookupError: it cannot score the group; the text says why.
    """
    usable = criterion if facts.have(criterion.needs) else _WITHOUT_DATA
    return usable.score(facts)
