"""One training run: steps, figures on the samples held back, and the best values so far.

What comes in is the first candidate: values are handed out only where they are better on the
samples held back, by the figure that the rest of the package measures models with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from math import inf, isfinite
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.analysis.output_kinds import OutputKinds
from onnxslim.analysis.output_parts import output_parts
from onnxslim.analysis.token_inputs import padding_mask
from onnxslim.constraints.dense import DenseTwin, dense_twin
from onnxslim.constraints.groups import weight_groups
from onnxslim.constraints.read import Constraints, read_constraints
from onnxslim.constraints.starting import random_weights, weights_of_other
from onnxslim.constraints.storing import store_values
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.output_divergence import OutputDivergence, combined_distance
from onnxslim.runtime.measure.padding import positions_that_count
from onnxslim.runtime.session import open_session
from onnxslim.runtime.training.augmentation import augmented
from onnxslim.runtime.training.checkpoint import (
    TrainingState,
    digest_of,
    load,
    remove,
    save,
)
from onnxslim.runtime.training.objectives import OutputObjective, objectives_of
from onnxslim.runtime.training.parametrisation import Moment, Settings, Stored
from onnxslim.runtime.training.projections import grown_share, zeros_are_grown
from onnxslim.runtime.training.regularizer import Regularizer
from onnxslim.runtime.training.schedule import (
    USUAL_RATES,
    best_rate,
    one_cycle,
    tested_rates,
)
from onnxslim.runtime.training.torch_graph import TorchGraph
from onnxslim.runtime.training.trained_weights import TrainedWeights
from onnxslim.runtime.training.training_set import Arrays, Batch, TrainingItem, TrainingSet
from onnxslim.services.progress import Progress
from onnxslim.services.progress import Step as ProgressStep
from onnxslim.services.training import (
    CodeMovement,
    CodeRounding,
    Loss,
    Optimizer,
    Penalty,
    TrainingOutcome,
    TrainingRequest,
    TrainingStart,
    ZeroMovement,
)

_TINY: Final = 1e-12
_SMALL: Final = 1e-3  # of the loss of knowing nothing: below that, more of it does no harm
_ATTEMPTS: Final = 1  # at a lower rate, where the one that was found brought nothing
_CALMER: Final = 0.1
_MOMENTUM: Final = 0.9
_HELD_MOST: Final = 2000  # samples that are looked at after an epoch
_LOGITS: Final = "the loss on labels"
_DISTANCE: Final = "the divergence from the teacher"
Step = list[list[TrainingItem]]


class TrainingRun:
    """Trains `student` towards the outputs in `data`.

    Args:
        student: the model that learns; it is not edited.
        teacher: the model that tells what outputs are.
        data: samples with the teachers' outputs.
        request: how.
        accepts: whether a weight learns, by the labels of the nodes that read it.
        features: inner tensors that are matched, too.
        seed: of the order of samples.
        threads: of torch; None: its own choice.
        kinds: of the outputs, by name.
        progress: what is being done.

    Raises:
        ModelError: torch has no function for an operator.
        NotApplicable: no weight learns.
        UsageError: labels are missing.
    """

    def __init__(
        self,
        student: Model,
        teacher: Model,
        data: TrainingSet,
        request: TrainingRequest,
        accepts: Callable[[Sequence[str]], bool],
        features: Sequence[str] = (),
        *,
        seed: int,
        threads: int | None,
        kinds: OutputKinds,
        progress: Progress,
    ) -> None:
        self._data, self._request, self._seed = data, request, seed
        self._threads, self._progress = threads, progress
        infer_shapes(student)
        self._student = student
        constraints = read_constraints(student.graph)
        twin = dense_twin(student, constraints)
        settings = Settings(request=request)
        self._new_weights = partial(TrainedWeights, constraints, twin.names, accepts, settings)
        self._weights = self._new_weights()
        if not self._weights.parameters:
            raise NotApplicable("no weight of the model learns")
        self._graph = TorchGraph(twin.model.graph, device=torch.device("cpu"))
        infer_shapes(teacher)
        heads = {item.name: item for item in request.imitations}
        self._kinds = {**kinds, **{name: item.kind for name, item in heads.items()}}
        self._parts = output_parts(teacher)
        self._padding = padding_mask(teacher.graph)
        own = [name for name in self._graph.outputs if name not in heads]
        self._objectives = objectives_of(own, self._kinds, self._parts)
        self._heads = [
            OutputObjective(item.name, item.kind, of=item.of, weight=item.weight)
            for item in heads.values()
        ]
        self._features = objectives_of(features, {}, {})
        # the mean of each group counts once
        self._groups = [self._objectives, self._features, *([item] for item in self._heads)]
        if request.loss is not Loss.DISTILL and "mixup" in request.augment:
            raise UsageError("`augment=mixup` mixes pictures of several labels: take loss=distill.")
        if request.loss is not Loss.DISTILL and not data.is_labelled:
            raise UsageError("Training with labels needs samples with labels (an array `label`).")
        self._labelled = self._labelled_outputs() if request.loss is not Loss.DISTILL else []
        self._keep_what_stays()
        self._observe()
        self._check_gradients()
        self._held = _at_most(data.held_groups(request.batch), _HELD_MOST)
        self._path = None if request.checkpoint is None else Path(request.checkpoint)
        self._per_epoch = max(len(data.epoch(request.batch, seed, 0)), 1)
        self._total = max(round(self._per_epoch * request.epochs), 1)
        self._optimizer = self._new_optimizer(1.0)
        self._shrinking = self._groups_of(twin)
        self._start = self._other_values(constraints, twin, teacher)
        words = (str(request), str(seed), str(data.samples), *self._start)
        given = (torch.from_numpy(array.astype(np.float32)) for array in self._start.values())
        self._digest = digest_of(words, (*self._weights.parameters, *given))
        self._state = TrainingState(inf, inf, 0.0)

    def outcome(self) -> TrainingOutcome:
        """Train, and give the best values."""
        started = time.process_time()
        with _threads(self._threads), torch.random.fork_rng():
            torch.manual_seed(self._seed)
            return self._trained(started)

    # ------------------------------------------------------------------ the run

    def _trained(self, started: float) -> TrainingOutcome:
        request = self._request
        notes: list[str] = []
        try:
            self._begin(notes)
            self._epochs(notes)
            while not self._state.kept and self._may_try_again():
                notes[:] = [*notes, f"a rate of up to {self._state.rate:.2g} brought nothing"]
                self._begin_again()
                self._epochs(notes)
            if self._path is not None:
                remove(self._path)
        except KeyboardInterrupt:
            if not self._state.kept:
                raise
            notes.append("training was interrupted; the best values until then are kept")
        state = self._state
        values: Stored = {}
        before = after = state.before
        if state.kept:
            self._weights.restore(state.kept)
            values = self._weights.store()
            before, after = self._figures_of_stored(values)
            if self._shrinking:
                zeros, count = self._regularizer.zero_share()
                notes.append(f"{zeros:,} of {count:,} groups are zero")
            elif not after < before:  # torch rounds otherwise than onnxruntime
                values, after = {}, before
        return TrainingOutcome(
            values,
            before,
            after,
            _LOGITS if request.loss is Loss.LABELS else _DISTANCE,
            self._data.samples,
            sum(item.rows for group in self._held for item in group),
            state.done,
            state.done / self._per_epoch,
            state.rate,
            time.process_time() - started,
            tuple(notes),
        )

    def _other_values(
        self, constraints: Constraints, twin: DenseTwin, teacher: Model
    ) -> dict[str, np.ndarray]:
        """Values to start from by name; {}: those of the file.

        Raises:
            ModelError: a file of other values cannot be read.
        """
        start = self._request.start
        if start == TrainingStart.GIVEN:
            return {}
        if start == TrainingStart.RANDOM:
            return random_weights(twin, self._seed)
        other = teacher if start == TrainingStart.ORIGINAL else Model.load(start)
        return weights_of_other(constraints, read_constraints(other.graph))

    def _groups_of(self, twin: DenseTwin) -> dict[str, np.ndarray]:
        """The groups of elements that shrink, by name; {}: nothing does."""
        request = self._request
        if request.regularizer is Penalty.NONE:
            return {}
        is_grouped = request.regularizer is Penalty.GROUP_LASSO
        return weight_groups(twin.model.graph, request.groups if is_grouped else None)

    def _begin_weights(self) -> str:
        """Let the weights start, from other values where that is asked for; says from which."""
        taken, count = self._weights.begin(self._start)
        leaves = self._weights.dense_leaves
        self._regularizer = Regularizer(leaves, self._shrinking, self._request.decay)
        self._weights.settle(Moment(0.0))
        return f"start={self._request.start}: {taken} of {count} stored weights took its values"

    def _begin(self, notes: list[str]) -> None:
        """The state to start from: of the model as it is, or of the checkpoint."""
        if self._path is not None:
            found = load(self._path, self._digest, self._optimizer)
            if found is not None:
                self._begin_weights()
                self._state = found
                self._weights.restore(found.values)
                return
        before = self._figure()
        told = self._begin_weights()
        if self._start:
            notes.append(told)
        rate = self._request.learning_rate or self._usual_rate() or self._tested_rate()
        self._state = TrainingState(before, before, rate)

    def _usual_rate(self) -> float | None:
        """The rate where what is to be learned from comes later: zeros that grow, groups."""
        comes_later = bool(self._shrinking) or self._request.zeros is ZeroMovement.GROW
        return USUAL_RATES[self._request.method] if comes_later else None

    def _may_try_again(self) -> bool:
        """Whether a lower rate may be tried: where nobody gave one, nor a time."""
        request, state = self._request, self._state
        is_free = request.learning_rate is None and request.minutes is None
        return is_free and state.attempt < _ATTEMPTS and isfinite(state.before)

    def _begin_again(self) -> None:
        """The state to start from with a lower rate."""
        state = self._state
        self._weights = self._new_weights()
        self._begin_weights()
        self._optimizer = self._new_optimizer(1.0)
        self._state = TrainingState(
            state.before, state.before, state.rate * _CALMER, attempt=state.attempt + 1
        )

    def _epochs(self, notes: list[str]) -> None:
        """Train until the end, epoch by epoch; the state tells how far that went."""
        with self._progress.step("training", self._total, "steps") as told:
            told.advance(self._state.done)
            self._steps_until_end(told, notes)

    def _steps_until_end(self, told: ProgressStep, notes: list[str]) -> None:
        state, request = self._state, self._request
        clock = time.monotonic() - state.seconds
        while state.done < self._total and isfinite(state.best):
            for step in self._data.epoch(request.batch, self._seed, state.epoch):
                share = self._share_done(clock)
                if state.done >= self._total or share >= 1:
                    break
                for group in self._optimizer.param_groups:
                    group["lr"] = state.rate * one_cycle(share)
                loss = self._step(self._optimizer, step)
                told.name = f"training (loss {loss:.3g}, held back {state.best:.3g})"
                told.advance()
                state.done += 1
                after = self._share_done(clock)
                self._regularizer.shrink(share, after)
                self._weights.settle(Moment(after, self._chance()))
            state.epoch += 1
            if request.rounding is CodeRounding.STOCHASTIC:  # what is stored is nearest
                self._weights.settle(Moment(self._share_done(clock)))
            found = self._figure()
            counts = self._may_be_kept(self._share_done(clock))
            state.since_best += counts
            if counts and (found < state.best or self._shrinking):
                state.best, state.since_best, state.kept = found, 0, self._weights.copy()
            state.seconds = time.monotonic() - clock
            if self._path is not None:
                state.values = self._weights.copy()
                save(self._path, self._digest, state, self._optimizer)
            if not isfinite(found) or self._share_done(clock) >= 1:
                break
            if request.patience is not None and state.since_best >= request.patience:
                notes.append(
                    f"training ended after {state.epoch} epochs: {state.since_best} of them "
                    "brought nothing"
                )
                break

    def _chance(self) -> torch.Generator | None:
        """What the roundings of the next step draw from: a function of the step alone."""
        if self._request.rounding is CodeRounding.NEAREST:
            return None
        words = np.random.SeedSequence([self._seed, self._state.done]).generate_state(1)
        return torch.Generator().manual_seed(int(words[0]))

    def _may_be_kept(self, share: float) -> bool:
        """Whether the weights are what the file may hold, when a share of training is over."""
        codes_are = self._request.codes is not CodeMovement.GROW or grown_share(share) == 1
        zeros_are = self._request.zeros is not ZeroMovement.GROW or zeros_are_grown(share)
        return codes_are and zeros_are

    def _share_done(self, clock: float) -> float:
        """How much of the training is over, by steps or by minutes."""
        minutes, share = self._request.minutes, self._state.done / self._total
        if minutes is None:
            return share
        return max(share, (time.monotonic() - clock) / (60 * minutes))

    def _step(self, optimizer: torch.optim.Optimizer, step: Step) -> float:
        """One step of the optimizer; gives the loss before it."""
        optimizer.zero_grad(set_to_none=True)
        rows = sum(item.rows for group in step for item in group)
        total = 0.0
        for number, group in enumerate(step):
            batch = self._changed(self._data.batch(group), number)
            loss = self._loss(batch) * (batch.rows / rows)
            loss.backward()
            total += float(loss.detach())
        if isfinite(total):
            optimizer.step()
        return total

    def _changed(self, batch: Batch, number: int) -> Batch:
        """A batch with its pictures changed, and what the teachers say of those."""
        words = self._request.augment
        if not words:
            return batch
        rng = np.random.default_rng([self._seed, self._state.done, number])
        feeds = augmented(batch.feeds, words, rng, self._request.augment_strength)
        return replace(batch, feeds=feeds, outputs=self._data.taught(feeds))

    def _loss_of(self, step: Step) -> float:
        """The loss of the same pictures that `_step` would see, changed in the same way."""
        batches = [self._changed(self._data.batch(group), k) for k, group in enumerate(step)]
        rows = sum(batch.rows for batch in batches)
        return sum(float(self._loss(batch)) * batch.rows / rows for batch in batches)

    def _loss(self, batch: Batch) -> Tensor:
        inputs = _as_tensors(batch.feeds)
        inner = [item.name for item in self._features]
        outputs = self._graph(inputs, self._tensors() | _as_tensors(batch.inner), also=inner)
        request = self._request
        labelled = distilled = torch.zeros(())
        if request.loss is not Loss.LABELS:
            mask = positions_that_count(self._padding, batch.feeds)
            counts = None if mask is None else torch.from_numpy(mask)
            groups = [
                [
                    item.distance(
                        outputs[item.name],
                        torch.from_numpy(batch.outputs[item.taught_by]),
                        counts,
                        request.temperature,
                    )
                    * item.weight
                    for item in items
                ]
                for items in self._groups
            ]
            distilled = torch.stack([torch.stack(own).mean() for own in groups if own]).sum()
            if request.loss is Loss.DISTILL:
                return distilled
        assert batch.labels is not None
        labelled = self._label_loss(outputs, batch.labels)
        if request.loss is Loss.LABELS:
            return labelled
        return request.alpha * distilled + (1 - request.alpha) * labelled

    def _label_loss(self, outputs: Mapping[str, Tensor], labels: np.ndarray) -> Tensor:
        total = torch.zeros(())
        classes = torch.from_numpy(labels).reshape(-1).long()
        for item in self._labelled:
            scores = outputs[item.name]
            logs = scores.clamp_min(1e-30).log() if item.is_share else scores
            total = total + item.weight * functional.cross_entropy(logs, classes)
        return total

    def _tensors(self) -> dict[str, Tensor]:
        """The weights that the graph reads; tables and steps of coded ones are inside of them."""
        known = self._graph.weights
        return {name: value for name, value in self._weights.tensors().items() if name in known}

    def _tested_rate(self) -> float:
        """The learning rate that a range test finds; the weights are as before."""
        kept = self._weights.copy()
        optimizer = self._new_optimizer(1.0)
        steps = self._endless_steps()

        rates = tested_rates(self._request.method)
        with self._progress.step("looking for the learning rate"):
            tried = list(islice(steps, len(rates)))
            with torch.no_grad():
                before = [self._loss_of(step) for step in tried]
            least = _SMALL * self._loss_of_others()
            samples = iter(zip(tried, before, strict=True))

            def loss_at(rate: float) -> float:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                step, first = next(samples)
                loss = self._step(optimizer, step)
                self._weights.settle(Moment(0.0, self._chance()))
                return loss / max(first, least, _TINY)

            rate = best_rate(loss_at, rates)
        self._weights.restore(kept)
        return rate

    def _loss_of_others(self) -> float:
        """The loss of outputs that belong to other samples: that of a model which knows nothing."""
        batch = self._data.batch(self._held[0])
        found = [torch.zeros(())]
        for item in self._objectives:
            output = torch.from_numpy(batch.outputs[item.taught_by])
            if output.ndim and len(output) > 1:
                other = torch.roll(output, 1, 0)
                found.append(item.distance(other, output, None, self._request.temperature))
        return float(torch.stack(found).max())

    def _endless_steps(self) -> Iterator[Step]:
        number = 0
        while True:
            yield from self._data.epoch(self._request.batch, self._seed, number)
            number += 1

    def _new_optimizer(self, rate: float) -> torch.optim.Optimizer:
        parameters = self._weights.parameters
        if self._request.method is Optimizer.SGD:
            return torch.optim.SGD(parameters, lr=rate, momentum=_MOMENTUM, nesterov=True)
        return torch.optim.Adam(parameters, lr=rate)

    # ------------------------------------------------------------------ figures

    def _figure(self) -> float:
        """The figure on the samples held back, as torch computes; lower is better."""
        with torch.no_grad():
            weights = self._tensors()

            def outputs(batch: Batch) -> Arrays:
                given = weights | _as_tensors(batch.inner)
                found = self._graph(_as_tensors(batch.feeds), given)
                return {name: tensor.numpy() for name, tensor in found.items()}

            return self._figure_of(outputs)

    def _figures_of_stored(self, values: Stored) -> tuple[float, float]:
        """The figures of what came in, and of the same with `values`, in onnxruntime."""
        after = self._student.clone()
        rw = Rewriter(after.graph)
        store_values(rw, read_constraints(after.graph), values)
        rw.result()
        found = []
        for model in (self._student, after):
            with open_session(model, threads=self._threads) as session:
                found.append(self._figure_of(lambda batch, run=session.run: run(batch.feeds)))  # type: ignore[misc]
        return found[0], found[1]

    def _figure_of(self, outputs: Callable[[Batch], Arrays]) -> float:
        """The figure on the samples held back; lower is better."""
        meters = {
            name: OutputDivergence(
                name, self._parts.get(name, ()), self._kinds.get(name, OutputKind.VALUES)
            )
            for name in self._graph.outputs
        }
        taught_by = {item.name: item.taught_by for item in self._heads}
        is_labelled = self._request.loss is Loss.LABELS
        labelled, rows = 0.0, 0
        for group in self._progress.over("looking at samples held back", self._held, "batches"):
            batch = self._data.batch(group)
            found = outputs(batch)
            if is_labelled:
                assert batch.labels is not None
                labelled += float(self._label_loss(_as_tensors(found), batch.labels)) * batch.rows
                rows += batch.rows
                continue
            counts = positions_that_count(self._padding, batch.feeds)
            for name, meter in meters.items():
                meter.update(batch.outputs[taught_by.get(name, name)], found[name], counts)
        if is_labelled:
            return labelled / max(rows, 1)
        parts = [pair for item in meters.values() for pair in item.meters.items()]
        divergence = combined_distance(dict(parts)).divergence
        return divergence if isfinite(divergence) else inf

    def _keep_what_stays(self) -> None:
        """Run layers in front of the first one that learns once, where samples do not change."""
        if self._request.augment or self._weights.are_all:
            return
        frontier = self._graph.frontier(self._tensors())

        def computed(feeds: Arrays) -> Arrays:
            with torch.no_grad():
                found = self._graph(_as_tensors(feeds), self._tensors(), also=frontier)
            chosen = {name: found[name] for name in frontier}
            return {n: t.numpy() for n, t in chosen.items() if t.is_floating_point() and t.ndim}

        if frontier:
            self._data.keep_inner(computed, self._progress)

    def _observe(self) -> None:
        """Let the objectives see what the teacher's outputs are like."""
        for group in self._data.held_groups(self._request.batch):
            outputs = self._data.batch(group).outputs
            for item in chain(*self._groups):
                item.observe(outputs[item.taught_by])
        for item in chain(*self._groups):
            item.settle()

    def _check_gradients(self) -> None:
        """Refuse models whose outputs no weight moves, in a way that torch can follow.

        Raises:
            NotApplicable: no gradient reaches a weight.
        """
        if not any(self._groups) and self._request.loss is not Loss.LABELS:
            raise NotApplicable("no output holds floats, which alone can come nearer to others")
        (step, *_) = self._data.epoch(self._request.batch, self._seed, 0)
        if step and not self._loss(self._data.batch(step[0])).requires_grad:
            raise NotApplicable("no gradient of what the outputs hold reaches a weight")

    def _labelled_outputs(self) -> list[OutputObjective]:
        """The first output with scores of classes, and those of heads that are to be like it."""
        own = (*self._objectives, *self._heads)
        found = [item for item in own if item.kind is OutputKind.CLASSES]
        if not found:
            raise UsageError("Training with labels needs an output with scores of classes.")
        return [item for item in found if item.taught_by == found[0].taught_by]


def _as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _at_most(groups: Sequence[list[TrainingItem]], most: int) -> list[list[TrainingItem]]:
    """Groups, evenly spread, of about so many samples."""
    rows = sum(item.rows for group in groups for item in group)
    every = max(-(-rows // most), 1)
    return [group for number, group in enumerate(groups) if number % every == 0]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads, and operators that give the same bits each time."""
    before = torch.get_num_threads()
    was_strict = torch.are_deterministic_algorithms_enabled()
    if count is not None:
        torch.set_num_threads(count)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(was_strict)
