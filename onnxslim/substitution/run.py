"""One run of `substitute-blocks`: choose a block for each place, fit it, put it into the graph.

    places -> what pays (`lossy.gate`) -> choice -> evidence -> values (`fitting`)
           -> trained alone (`distilling`) -> put

Places are worked on in the order in which data reach them. Each block is put into a copy of the
model at once, so that the next one is fitted to what the copy computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxslim.analysis.layer_models import StaticShape
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.budgets import Budget
from onnxslim.lossy.gate import Gate, Paying
from onnxslim.lossy.spend import least_error, of_least_cost, total_cost
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.render.units import count_text
from onnxslim.services.calibration import Calibration
from onnxslim.substitution.choices import BlockChoice
from onnxslim.substitution.costs import BlockCosts
from onnxslim.substitution.distilling import BlockTraining
from onnxslim.substitution.fitting import closed_form, fitted
from onnxslim.substitution.kinds.base import Sizes
from onnxslim.substitution.kinds.table import KINDS
from onnxslim.substitution.measuring import measured
from onnxslim.substitution.patches.evidence import PatchEvidence
from onnxslim.substitution.patches.sketch import Sketch, Values
from onnxslim.substitution.patches.terms import PatchMap
from onnxslim.substitution.placed import PlacedBlock, put
from onnxslim.substitution.places import BlockPlace, places_of
from onnxslim.substitution.written import written

Choice = Paying[BlockChoice]


@dataclass(frozen=True)
class SubstitutionOptions:
    """The options of the pass, with what `auto` means filled in.

    Attributes:
        kinds: names of the kinds to choose from.
        sizes: those that are given.
        every_size: whether sizes that are not given are chosen, too.
        energy: share of a place's output energy that a block keeps at least, where no budget and no
            plan is given.
        budget: over all places; None: another option says.
        for_bytes: whether a block must save bytes, else time.
        most: convolutions that one block replaces at most.
        places: those that may be replaced, by name.
        plan: exactly these blocks, by the name of the place; {}: another option says.
        training: of each block alone; None: none.
    """

    kinds: tuple[str, ...]
    sizes: Sizes
    every_size: bool
    energy: float
    budget: Budget | None
    for_bytes: bool
    most: int
    places: LayerFilter
    plan: Mapping[str, BlockChoice]
    training: BlockTraining | None


@dataclass(frozen=True)
class _BlockOffer:
    """A block (None: the place as it is), with its cost and its error in the model's output."""

    cost: float
    error: float
    choice: Choice | None


@dataclass(frozen=True)
class _BlockFit:
    """A block with its values for each group of channels, and the share of the energy it loses."""

    sketch: Sketch
    values: tuple[Values, ...]
    lost: float


class Substitution:
    """A graph in which blocks take the place of convolutions.

    Attributes:
        plan: the entries of `plan` that repeat what was done.
        notes: for the report.
    """

    def __init__(self, rewriter: Rewriter, context: Context, options: SubstitutionOptions) -> None:
        self.rw, self.context, self.options = rewriter, context, options
        self.gate = Gate(context.stopwatch, options.for_bytes, "block")
        self.plan: list[str] = []
        self.notes: list[str] = []
        assert context.model is not None
        assert context.calibration is not None
        self._student = context.model.clone()
        self._halves: tuple[Calibration, Calibration] = context.calibration.halves()

    @property
    def is_timed(self) -> bool:
        """Whether anything was decided by timing."""
        return self.gate.measured

    def run(self) -> None:
        """Choose, fit, and put the blocks."""
        places = self._places()
        chosen = self._spread(places) if self.options.budget is not None else None
        found = []
        for place in self.context.progress.over("replacing", places, "places"):
            made = self._block(place, chosen)
            if isinstance(made, str):
                self.rw.skip(place.node, made)
            else:
                found.append(made)
        for block in found:
            put(self.rw, block)

    def _places(self) -> list[BlockPlace]:
        places, skips = places_of(self.rw, self.options.most)
        wanted = [p for p in places if all(self.options.places.accepts(la.name) for la in p.layers)]
        for skip in skips:
            if self.options.places.accepts(skip.node):
                self.rw.skip(skip.node, skip.why)
        for place in places:
            if place not in wanted:
                self.rw.skip(place.node, "`only` and `skip` leave it out")
        return wanted

    # ----------------------------------------------------------------- one place

    def _block(self, place: BlockPlace, chosen: Mapping[str, Choice] | None) -> PlacedBlock | str:
        """The block of a place, put into the copy of the model; or why it stays as it is."""
        if not self.options.plan and chosen is None:
            best = self._best(place)
            return best if isinstance(best, str) else self._placed(place, *best)
        choice = self._planned(place) if chosen is None else self._spent(place, chosen)
        if isinstance(choice, str):
            return choice
        evidence = self._evidence(place)
        if isinstance(evidence, str):
            return evidence
        return self._placed(place, choice, self._fitted(place, choice.candidate, *evidence))

    def _planned(self, place: BlockPlace) -> Choice | str:
        """What `plan` says of a place."""
        own = self.context.names.all(layer.name for layer in place.layers)
        planned = next((self.options.plan[n] for n in own if n in self.options.plan), None)
        if planned is None:
            return "it is not in `plan`"
        why = planned.block.why_not(place.cell)
        return Paying(1.0, planned, "as planned") if why is None else f"{planned.kind}: {why}"

    def _spent(self, place: BlockPlace, chosen: Mapping[str, Choice]) -> Choice | str:
        """What the budget has for a place."""
        if place.name in chosen:
            return chosen[place.name]
        return self._said(place) or "within the budget it is best left as it is"

    def _said(self, place: BlockPlace) -> str | None:
        """Why a place was not offered anything, where that was said."""
        label = node_label(place.node)
        return next((str(s.why) for (name, _), s in self.rw.skips.items() if name == label), None)

    def _best(self, place: BlockPlace) -> tuple[Choice, _BlockFit] | str:
        """The block that gains most among those that keep enough of the output."""
        paying = self._paying(place)
        if isinstance(paying, str):
            return paying
        evidence = self._evidence(place)
        if isinstance(evidence, str):
            return evidence
        lost: list[tuple[float, str]] = []
        for choice in sorted(paying, key=lambda item: -item.gain):
            found = self._fitted(place, choice.candidate, *evidence)
            if found.lost <= 1 - self.options.energy:
                return choice, found
            lost.append((found.lost, str(choice.candidate)))
        least, name = min(lost)
        return (
            f"no block that pays keeps {self.options.energy:g} of its output: the nearest, {name}, "
            f"loses {least:.2g}"
        )

    def _candidates(self, place: BlockPlace) -> list[BlockChoice] | str:
        found: list[BlockChoice] = []
        reasons = []
        for name in self.options.kinds:
            kind = KINDS[name]
            why = kind.why_not(place.cell)
            if why is not None:
                reasons.append(f"{name}: {why}")
                continue
            own = {key: value for key, value in self.options.sizes.items() if key in kind.sizes}
            every = kind.choices(own) if self.options.every_size else [kind.usual(own)]
            found += [BlockChoice.of(kind, sizes) for sizes in every]
        smaller = [c for c in found if self._weights(place, c) < place.weights]
        if found and not smaller:
            return "no block has fewer weights than it"
        return smaller or "; ".join(reasons)

    def _weights(self, place: BlockPlace, choice: BlockChoice) -> int:
        return choice.block.weights(place.cell, choice.sizes) * place.groups

    def _paying(self, place: BlockPlace) -> list[Choice] | str:
        candidates = self._candidates(place)
        return (
            candidates
            if isinstance(candidates, str)
            else self.gate.paying(candidates, self._costs(place))
        )

    def _costs(self, place: BlockPlace) -> BlockCosts:
        return BlockCosts(place, self._shapes, self.context.stopwatch)

    @cached_property
    def _shapes(self) -> Mapping[str, StaticShape]:
        stopwatch, model = self.context.stopwatch, self.context.model
        if stopwatch is None or model is None:
            return {}
        try:
            return stopwatch.shapes(model)
        except RuntimeFailure:  # sizes that are known without a run still are
            return {}

    # ----------------------------------------------------------------- fitting

    def _evidence(self, place: BlockPlace) -> tuple[PatchEvidence, PatchEvidence] | str:
        """What a block is fitted to and what it is judged by, or why there is nothing."""
        original = self.context.target or self.context.model
        assert original is not None
        names = {t.name for node in original.graph.nodes for t in node.outputs}
        if place.output.name not in names:
            return "the original model has no tensor of that name to compare with"
        first, second = (
            measured(place, self._student, original, part, self.context.seed)
            for part in self._halves
        )
        return first, second

    def _fitted(
        self,
        place: BlockPlace,
        choice: BlockChoice,
        fit: PatchEvidence,
        held: PatchEvidence,
        *,
        is_offer: bool = False,
    ) -> _BlockFit:
        """A block fitted to the first evidence, and judged by the second.

        Offers of a budget do not descend: there are many of them.
        """
        sketch = choice.block.sketch(place.cell, choice.sizes)
        values, lost, whole = [], 0.0, 0.0
        for group in range(place.groups):
            own, other = (item.group(group, place.groups) for item in (fit, held))
            weight = self._weight(place, group)
            start = choice.block.start(sketch, PatchMap(own, weight))
            if is_offer:
                values.append(closed_form(sketch, own, start))
            else:
                values.append(fitted(sketch, own, other, start))
            lost += other.error(sketch.outputs(other.patches, values[-1]))
            whole += other.energy
        return _BlockFit(sketch, tuple(values), lost / max(whole, 1e-30))

    def _weight(self, place: BlockPlace, group: int) -> np.ndarray | None:
        """The weight of a single convolution, (outputs, channels, taps); None of a run."""
        if place.is_run:
            return None
        matrix: np.ndarray = place.layers[0].canonical()[group]
        return matrix.reshape(len(matrix), place.cell.channels, -1)

    def _placed(self, place: BlockPlace, choice: Choice, found: _BlockFit) -> PlacedBlock:
        pieces = written(found.sketch, found.values, place.patches, place.dtype)
        before, after = place.weights, self._weights(place, choice.candidate)
        members = f"{len(place.layers)} convolutions " if place.is_run else ""
        what = (
            f"{members}replaced by {choice.candidate}; {choice.words}; {count_text(before)} to "
            f"{count_text(after)} weights; loses {found.lost:.2g} of its output on samples held "
            "back"
        )
        block = PlacedBlock(place.source.name, place.output.name, tuple(pieces), what)
        self.plan.append(f"{place.name}={choice.candidate}")
        rw = Rewriter(self._student.graph)
        made = put(rw, block)
        rw.result()
        self._student.has_shapes = False
        if self.options.training is None:
            return block
        return self.options.training.trained(block, made, self._student, self.context)

    # ----------------------------------------------------------------- budgets

    def _spread(self, places: Sequence[BlockPlace]) -> Mapping[str, Choice]:
        """The blocks that keep all places together within the budget, at the least error."""
        budget = self.options.budget
        assert budget is not None
        menus: dict[str, list[_BlockOffer]] = {}
        fixed = 0.0
        for place in self.context.progress.over("looking at blocks for", places, "places"):
            offers = self._offers(place, budget)
            if isinstance(offers, str):
                self.rw.skip(place.node, offers)
                fixed += self._fixed(place, budget)
            else:
                menus[place.name] = offers
        if not menus:
            return {}
        whole = fixed + sum(offers[0].cost for offers in menus.values())
        limit = budget.amount * whole - fixed
        chosen = least_error(menus, limit)
        if total_cost(chosen) > limit:
            least = (fixed + total_cost(of_least_cost(menus))) / whole
            self.rw.skip(
                str(self.rw.main.name),
                f"the budget of {budget.amount:g} of {budget.kind} cannot be met: the places can "
                f"go down to {least:.2g} of what they take",
            )
        found = {name: offer.choice for name, offer in chosen.items()}
        return {name: choice for name, choice in found.items() if choice is not None}

    def _offers(self, place: BlockPlace, budget: Budget) -> list[_BlockOffer] | str:
        """The place as it is, and the blocks that pay, with costs and errors."""
        costs = self._costs(place)
        if budget.kind != "bytes" and not costs.has_shapes:
            return "the size of its input is not known, so a block cannot be measured"
        paying = self._paying(place)
        if isinstance(paying, str):
            return paying
        evidence = self._evidence(place)
        if isinstance(evidence, str):
            return evidence
        fits = [self._fitted(place, p.candidate, *evidence, is_offer=True) for p in paying]
        errors = self._errors(place, fits)
        offers = [
            _BlockOffer(self._cost(costs, budget, choice), error, choice)
            for choice, error in zip(paying, errors, strict=True)
        ]
        return [_BlockOffer(self._cost(costs, budget, None), 0.0, None), *offers]

    def _fixed(self, place: BlockPlace, budget: Budget) -> float:
        costs = self._costs(place)
        known = budget.kind == "bytes" or costs.has_shapes
        return self._cost(costs, budget, None) if known else 0.0

    def _cost(self, costs: BlockCosts, budget: Budget, choice: Choice | None) -> float:
        candidate = None if choice is None else choice.candidate
        if budget.kind == "bytes":
            return float(costs.nbytes(candidate))
        if budget.kind == "macs" or self.context.stopwatch is None:
            return float(costs.macs(candidate) or 0)
        self.gate.measured = True
        base = costs.milliseconds()
        if choice is None:
            return base
        if not self.gate.for_bytes:
            return base / choice.gain
        ((pair,),) = costs.timed([choice.candidate])
        return base / pair.ratio

    def _errors(self, place: BlockPlace, fits: Sequence[_BlockFit]) -> Iterator[float]:
        """How far each block alone moves the outputs."""
        model = self._student

        def variants() -> Iterator[Model]:
            for found in fits:
                copy = model.clone()
                rw = Rewriter(copy.graph)
                pieces = tuple(written(found.sketch, found.values, place.patches, place.dtype))
                put(rw, PlacedBlock(place.source.name, place.output.name, pieces, "tried"))
                rw.result()
                yield copy

        held = self._halves[1]
        yield from (distance.divergence for distance in held.distances(model, variants()))
