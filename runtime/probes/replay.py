"""Run variants of a model, starting at the first node that differs.

A pass that measures single changes makes many variants of a model, each changed in one place. Nodes
before that place compute the same values in all of them: they run once, and each variant starts
from the kept activations. `value_numbering` tells which tensors are equal. Results differ from a
run from the inputs by rounding at most, where onnxruntime would have fused operators across the
cut.

Variants in the order of the graph cost least: every node of the model then runs about once.

Where only the value of one tensor changes, no variant is built: `downstream` runs the nodes after
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import needs
from onnxslim.io.model import Model
from onnxslim.runtime.probes.activation_cache import ActivationCache, Playback
from onnxslim.runtime.probes.exposed import ExposedTensors, Segment
from onnxslim.runtime.probes.value_numbering import ValueNumber, ValueNumbering
from onnxslim.runtime.session import Feeds, Outputs, Session, open_session
from onnxslim.services.calibration import Replacement

_BUDGET_BYTES: Final = 256 << 20


class Replay:
    """Runs variants of `model` on samples that always come in the same order.

    Args:
        model: that variants differ from.
        rows: number of samples; None where it is unknown.
        threads: see `open_session`.
        budget_bytes: size of the activations kept from one variant for the next.
    """

    def __init__(
        self,
        model: Model,
        rows: int | None,
        *,
        threads: int | None = None,
        budget_bytes: int = _BUDGET_BYTES,
    ) -> None:
        self._model, self._threads = model, threads
        self._numbering = ValueNumbering()
        self._exposed = ExposedTensors(model)
        self._cache = ActivationCache(self._numbering, rows, budget_bytes)
        values = self._numbering.value_numbers(self._exposed.graph)
        self._tensor_of: dict[ValueNumber, gs.Tensor] = {
            values[tensor]: tensor
            for node in self._exposed.graph.nodes
            for tensor in node.outputs
            if tensor.name and tensor.dtype is not None and values[tensor].varies
        }

    @contextmanager
    def variant(self, model: Model) -> Iterator[ModelVariant]:
        """Open a variant, ready to run the samples in order.

        Raises:
            RuntimeFailure: onnxruntime refuses the variant.
        """
        exposed = ExposedTensors(model)
        values = self._numbering.value_numbers(exposed.graph)
        # tensors of the variant that hold the value of a tensor of the model
        same = {
            tensor: self._tensor_of[values[tensor]]
            for node in exposed.graph.nodes
            for tensor in node.outputs
            if values.get(tensor) in self._tensor_of
        }
        # run what the changed outputs need; the model computes its inputs and the other outputs
        changed = [tensor for tensor in exposed.graph.outputs if tensor not in same]
        segment = exposed.segment(changed, same)
        asked = (*segment.inputs, *(t for t in exposed.graph.outputs if t in same))
        names = {tensor.name: self._exposed.expose_main(same[tensor]) for tensor in asked}
        if not names:
            with open_session(model, threads=self._threads, spin=False) as session:
                yield _FullRun(session)
            return
        keys = list(dict.fromkeys(names.values()))
        with self._cache.play(self._exposed, keys, self._threads) as base:
            variant = _SuffixRun(base, names, exposed, segment, self._threads)
            try:
                yield variant
            finally:
                variant.close()

    @contextmanager
    def downstream(self, name: str) -> Iterator[DownstreamRun | None]:
        """Open the nodes that depend on the tensor `name` of the main graph, ready for the samples.

        None where the node that computes the tensor has to run anyway, for another of its outputs,
        and for constants.

        Raises:
            RuntimeFailure: onnxruntime refuses these nodes.
        """
        exposed, own = self._copy, self._tensor_by_name
        (tensor,) = (t for t in _tensors(exposed.graph) if t.name == name)
        affected = _depending(exposed.graph, tensor)
        # everything else keeps the value that it has in the model
        known = [t for t in _tensors(exposed.graph) if t.name in own and t not in affected]
        kept = [t for t in exposed.graph.outputs if t in known or t is tensor]
        ends = [t for t in exposed.graph.outputs if t not in kept]
        segment = exposed.segment(ends, [*known, tensor] if tensor.inputs else known)
        is_constant = bool(tensor.inputs) and name not in own
        if is_constant or any(node in segment.nodes for node in tensor.inputs):
            yield None
            return
        asked = dict.fromkeys((*segment.inputs, *kept, tensor))
        names = {t.name: self._exposed.expose_main(own[t.name]) for t in asked if t.name in own}
        keys = list(dict.fromkeys(names.values()))
        with self._cache.play(self._exposed, keys, self._threads) as base:
            run = DownstreamRun(base, names, exposed, segment, self._threads, name)
            try:
                yield run
            finally:
                run.close()

    @cached_property
    def _tensor_by_name(self) -> Mapping[str, gs.Tensor]:
        return {tensor.name: tensor for tensor in self._tensor_of.values()}

    @cached_property
    def _copy(self) -> ExposedTensors:
        """A second copy of the model, from which the nodes after a tensor are cut out."""
        return ExposedTensors(self._model)


class ModelVariant:
    """An open variant of the model: `run` it on each sample in order."""

    def run(self, feeds: Feeds, rows: int) -> Outputs:
        """The outputs of the variant for the next sample.

        Raises:
            RuntimeFailure: onnxruntime fails on the sample.
        """
        raise NotImplementedError


class _FullRun(ModelVariant):
    """A variant that shares nothing with the model but its inputs: it runs whole."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feeds: Feeds, rows: int) -> Outputs:
        return self._session.run(feeds)


class _SuffixRun(ModelVariant):
    """The nodes of a variant after the tensors that it shares with the model.

    Args:
        base: runs the model up to the shared tensors.
        names: for each shared tensor, its name in the variant and its key in the model.
        exposed: the variant.
        segment: the nodes of the variant to run.
        threads: threads of onnxruntime.
    """

    def __init__(
        self,
        base: Playback,
        names: dict[str, str],
        exposed: ExposedTensors,
        segment: Segment,
        threads: int | None,
    ) -> None:
        self._base, self._names, self._exposed, self._segment = base, names, exposed, segment
        self._threads = threads
        self._shapes: dict[str, list[int | None]] = {}
        self._session: Session | None = None

    def run(self, feeds: Feeds, rows: int) -> Outputs:
        return self._finished(feeds, self._begun(feeds, rows))

    def _begun(self, feeds: Feeds, rows: int) -> Outputs:
        """The shared tensors for the next sample, under their names in the variant."""
        found = self._base.run(feeds, rows)
        return {name: found[own] for name, own in self._names.items()}

    def _finished(self, feeds: Feeds, begun: Outputs) -> Outputs:
        """The outputs of the variant, given the shared tensors."""
        results = {**feeds, **begun}
        if self._segment.outputs:
            fed = {tensor.name: begun[tensor.name] for tensor in self._segment.inputs}
            results.update(self._opened(fed).run({**feeds, **fed}))
        return {tensor.name: results[tensor.name] for tensor in self._exposed.graph.outputs}

    def close(self) -> None:
        """Free the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _opened(self, fed: dict[str, np.ndarray]) -> Session:
        """A session for inputs of these shapes; sizes that turn out to vary are left open."""
        shapes = {name: _common(self._shapes.get(name), array) for name, array in fed.items()}
        if self._session is None or shapes != self._shapes:
            self.close()
            self._shapes = shapes
            self._session = self._exposed.open(self._segment, (), shapes, self._threads)
        assert self._session is not None
        return self._session


class DownstreamRun(_SuffixRun):
    """The nodes after one tensor, run with replaced values of that tensor."""

    def __init__(
        self,
        base: Playback,
        names: dict[str, str],
        exposed: ExposedTensors,
        segment: Segment,
        threads: int | None,
        tensor: str,
    ) -> None:
        super().__init__(base, names, exposed, segment, threads)
        self._tensor = tensor

    def runs(
        self, feeds: Feeds, rows: int, replacements: Sequence[Replacement]
    ) -> Iterator[Outputs]:
        """The outputs for the next sample, with each of the replacements in turn.

        Raises:
            RuntimeFailure: onnxruntime fails on the sample.
        """
        begun = self._begun(feeds, rows)
        inputs = {**self._exposed.defaults, **feeds}
        known: Mapping[str, np.ndarray] = {**inputs, **begun}
        for replacement in replacements:
            new = {self._tensor: replacement(known[self._tensor])}
            if self._tensor in inputs:
                yield self._finished({**feeds, **new}, begun)
            else:
                yield self._finished(feeds, {**begun, **new})


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from (tensor for tensor in node.outputs if tensor.name)


def _depending(graph: gs.Graph, tensor: gs.Tensor) -> set[gs.Tensor]:
    """The tensors that depend on `tensor`, itself included."""
    found = {tensor}
    for node in graph.nodes:
        if not found.isdisjoint(needs(node)):
            found.update(node.outputs)
    return found


def _common(known: Sequence[int | None] | None, array: np.ndarray) -> list[int | None]:
    """The sizes common to `known` and `array`; None where they differ."""
    if known is None or len(known) != array.ndim:
        return list(array.shape)
    return [a if a == b else None for a, b in zip(known, array.shape, strict=True)]
