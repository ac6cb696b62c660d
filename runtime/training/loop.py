"""One training run: steps, figures on the samples held back, and the best values so far.

What comes in is the first candidate: values are handed out only where they are better on the
samples held back, by the figure that the rest of the package measures models with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import inf, isfinite
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.analysis.output_kinds import OutputKinds, output_kinds
from onnxslim.analysis.output_parts import output_parts
from onnxslim.analysis.token_inputs import padding_mask
from onnxslim.constraints.dense import dense_twin
from onnxslim.constraints.read import read_constraints
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.output_divergence import OutputDivergence, combined_distance
from onnxslim.runtime.measure.padding import positions_that_count
from onnxslim.runtime.training.objectives import objectives_of
from onnxslim.runtime.training.parametrisations import Stored, TrainedWeights
from onnxslim.runtime.training.schedule import best_rate, one_cycle, tested_rates
from onnxslim.runtime.training.torch_graph import TorchGraph
from onnxslim.runtime.training.training_set import Batch, TrainingItem, TrainingSet
from onnxslim.services.progress import Progress
from onnxslim.services.training import Loss, Optimizer, TrainingOutcome, TrainingRequest

_TINY: Final = 1e-12
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
        seed: of the order of samples.
        threads: of torch; None: its own choice.
        kinds: of the outputs, by name; None: what the teacher's graph says.
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
        *,
        seed: int,
        threads: int | None,
        kinds: OutputKinds | None,
        progress: Progress,
    ) -> None:
        self._data, self._request, self._seed = data, request, seed
        self._threads, self._progress = threads, progress
        infer_shapes(student)
        constraints = read_constraints(student.graph)
        twin = dense_twin(student, constraints)
        self._weights = TrainedWeights(constraints, twin.names, accepts)
        if not self._weights.parameters:
            raise NotApplicable("no weight of the model learns")
        self._graph = TorchGraph(twin.model.graph, device=torch.device("cpu"))
        infer_shapes(teacher)
        self._kinds = kinds or output_kinds(teacher)
        self._parts = output_parts(teacher)
        self._padding = padding_mask(teacher.graph)
        self._objectives = objectives_of(self._graph.outputs, self._kinds, self._parts)
        if request.loss is not Loss.DISTILL and not data.is_labelled:
            raise UsageError("Training with labels needs samples with labels (an array `label`).")
        self._scores = self._output_of_labels() if request.loss is not Loss.DISTILL else ""
        self._observe()
        self._held = _at_most(data.held_groups(request.batch), _HELD_MOST)

    def outcome(self) -> TrainingOutcome:
        """Train, and give the best values."""
        started = time.process_time()
        with _threads(self._threads), torch.random.fork_rng():
            torch.manual_seed(self._seed)
            return self._trained(started)

    # ------------------------------------------------------------------ the run

    def _trained(self, started: float) -> TrainingOutcome:
        request, data = self._request, self._data
        notes: list[str] = []
        before = best = self._figure()
        values: Stored = {}
        rate = request.learning_rate or self._tested_rate()
        per_epoch = max(len(data.epoch(request.batch, self._seed, 0)), 1)
        total = max(round(per_epoch * request.epochs), 1)
        optimizer = self._optimizer(rate)
        done, epoch, since_best = 0, 0, 0
        clock = time.monotonic()
        try:
            with self._progress.step("training", total, "steps") as told:
                while done < total:
                    for step in data.epoch(request.batch, self._seed, epoch):
                        share = self._share_done(done / total, clock)
                        if done >= total or share >= 1:
                            break
                        for group in optimizer.param_groups:
                            group["lr"] = rate * one_cycle(share)
                        loss = self._step(optimizer, step)
                        told.name = f"training (loss {loss:.3g}, held back {best:.3g})"
                        told.advance()
                        done += 1
                    epoch += 1
                    found = self._figure()
                    since_best += 1
                    if found < best:
                        best, since_best, values = found, 0, self._weights.store()
                    if not isfinite(found) or self._share_done(done / total, clock) >= 1:
                        break
                    if request.patience is not None and since_best >= request.patience:
                        notes.append(f"training ended after {epoch} epochs: {since_best} of them")
                        break
        except KeyboardInterrupt:
            if not values:
                raise
            notes.append("training was interrupted; the best values until then are kept")
        return TrainingOutcome(
            values,
            before,
            best,
            _LOGITS if request.loss is Loss.LABELS else _DISTANCE,
            data.samples,
            sum(item.rows for group in self._held for item in group),
            done,
            done / per_epoch,
            rate,
            time.process_time() - started,
            tuple(notes),
        )

    def _share_done(self, share: float, clock: float) -> float:
        """How much of the training is over, by steps or by minutes."""
        minutes = self._request.minutes
        if minutes is None:
            return share
        return max(share, (time.monotonic() - clock) / (60 * minutes))

    def _step(self, optimizer: torch.optim.Optimizer, step: Step) -> float:
        """One step of the optimizer; gives the loss before it."""
        optimizer.zero_grad(set_to_none=True)
        rows = sum(item.rows for group in step for item in group)
        total = 0.0
        for group in step:
            batch = self._data.batch(group)
            loss = self._loss(batch) * (batch.rows / rows)
            loss.backward()
            total += float(loss.detach())
        if isfinite(total):
            optimizer.step()
        return total

    def _loss_of(self, step: Step) -> float:
        batches = [self._data.batch(group) for group in step]
        rows = sum(batch.rows for batch in batches)
        return sum(float(self._loss(batch)) * batch.rows / rows for batch in batches)

    def _loss(self, batch: Batch) -> Tensor:
        inputs = {name: torch.from_numpy(array) for name, array in batch.feeds.items()}
        outputs = self._graph(inputs, self._tensors())
        request = self._request
        labelled = distilled = torch.zeros(())
        if request.loss is not Loss.LABELS:
            mask = positions_that_count(self._padding, batch.feeds)
            counts = None if mask is None else torch.from_numpy(mask)
            distilled = torch.stack(
                [
                    item.distance(
                        outputs[item.name],
                        torch.from_numpy(batch.outputs[item.name]),
                        counts,
                        request.temperature,
                    )
                    for item in self._objectives
                ]
            ).mean()
            if request.loss is Loss.DISTILL:
                return distilled
        assert batch.labels is not None
        labelled = self._label_loss(outputs[self._scores], torch.from_numpy(batch.labels))
        if request.loss is Loss.LABELS:
            return labelled
        return request.alpha * distilled + (1 - request.alpha) * labelled

    def _label_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        objective = next(item for item in self._objectives if item.name == self._scores)
        logs = scores.clamp_min(1e-30).log() if objective.is_share else scores
        return functional.cross_entropy(logs, labels.reshape(-1).long())

    def _tensors(self) -> dict[str, Tensor]:
        """The weights that the graph reads; tables and steps of coded ones are inside of them."""
        known = self._graph.weights
        return {name: value for name, value in self._weights.tensors().items() if name in known}

    def _tested_rate(self) -> float:
        """The learning rate that a range test finds; the weights are as before."""
        kept = self._weights.copy()
        optimizer = self._optimizer(1.0)
        steps = self._endless_steps()

        rates = tested_rates()
        with self._progress.step("looking for the learning rate"):
            tried = list(islice(steps, len(rates)))
            with torch.no_grad():
                before = [self._loss_of(step) for step in tried]
            samples = iter(zip(tried, before, strict=True))

            def loss_at(rate: float) -> float:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                step, first = next(samples)
                return self._step(optimizer, step) / max(first, _TINY)

            rate = best_rate(loss_at, rates)
        self._weights.restore(kept)
        return rate

    def _endless_steps(self) -> Iterator[Step]:
        number = 0
        while True:
            yield from self._data.epoch(self._request.batch, self._seed, number)
            number += 1

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        parameters = self._weights.parameters
        if self._request.optimizer is Optimizer.SGD:
            return torch.optim.SGD(parameters, lr=rate, momentum=_MOMENTUM, nesterov=True)
        return torch.optim.Adam(parameters, lr=rate)

    # ------------------------------------------------------------------ figures

    def _figure(self) -> float:
        """The figure on the samples held back; lower is better."""
        meters = {
            name: OutputDivergence(
                name, self._parts.get(name, ()), self._kinds.get(name, OutputKind.VALUES)
            )
            for name in self._graph.outputs
        }
        labelled, rows = 0.0, 0
        with torch.no_grad():
            weights = self._tensors()
            for group in self._progress.over("looking at samples held back", self._held, "batches"):
                batch = self._data.batch(group)
                inputs = {name: torch.from_numpy(array) for name, array in batch.feeds.items()}
                outputs = self._graph(inputs, weights)
                if self._request.loss is Loss.LABELS:
                    assert batch.labels is not None
                    loss = self._label_loss(outputs[self._scores], torch.from_numpy(batch.labels))
                    labelled += float(loss) * batch.rows
                    rows += batch.rows
                    continue
                counts = positions_that_count(self._padding, batch.feeds)
                for name, meter in meters.items():
                    meter.update(batch.outputs[name], outputs[name].numpy(), counts)
        if self._request.loss is Loss.LABELS:
            return labelled / max(rows, 1)
        found = combined_distance(
            {n: m for item in meters.values() for n, m in item.meters.items()}
        )
        return found.divergence if np.isfinite(found.divergence) else inf

    def _observe(self) -> None:
        """Let the objectives see what the teacher's outputs are like."""
        for group in self._data.held_groups(self._request.batch):
            outputs = self._data.batch(group).outputs
            for item in self._objectives:
                item.observe(outputs[item.name])
        for item in self._objectives:
            item.settle()

    def _output_of_labels(self) -> str:
        found = [item.name for item in self._objectives if item.kind is OutputKind.CLASSES]
        if not found:
            raise UsageError("Training with labels needs an output with scores of classes.")
        return found[0]


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
