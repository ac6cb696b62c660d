"""Activations of all samples, cached where a run of a model ended, so that the next starts there.

Lossy passes change a model from its inputs to its outputs, and measure it again after each layer.
Tensors before the first changed layer stay the same. Of these, only the tensors that cross from
nodes that ran to nodes that did not are worth keeping. So each node runs about once in all, and not
once for every layer behind it.

The `ValueNumber` of a tensor, made of the operators and arrays that it is computed from, says
whether it is the same as in an earlier model (see `value_numbering`). Results may differ from those
of a run from the inputs by rounding, where onnxruntime would have fused operators across the cut.

Arrays lie in temporary files (see `spool`). If new arrays would exceed the budget, or the disk is
full, the cache keeps its old ones, and runs start there: slower, with the same results.

Owns: which tensors are cached. Not here: running a segment of a model (see `exposed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.io.model import Model
from onnxslim.runtime.probes.exposed import ExposedTensors
from onnxslim.runtime.probes.value_numbering import Signature, ValueNumber, ValueNumbering
from onnxslim.runtime.samples.spool import Spool
from onnxslim.runtime.session import Feeds, Outputs, Session

_BUDGET_BYTES: Final = 1 << 30


class ActivationCaches:
    """The caches of two models: the one that changes, and the one that it is compared with.

    Args:
        rows: number of samples; None: known only after a first run, which caches nothing.
        budget_bytes: most bytes of both caches.
    """

    def __init__(self, rows: int | None, budget_bytes: int = _BUDGET_BYTES) -> None:
        self._numbering = ValueNumbering()
        share = budget_bytes // 2
        self.model = ActivationCache(self._numbering, rows, share)
        self.reference = ActivationCache(self._numbering, rows, share)
        self._exposed: dict[str, tuple[Model, Signature, ExposedTensors]] = {}

    def exposed_reference(self, reference: Model) -> ExposedTensors:
        """The copy of `reference` whose tensors can be read, built once."""
        return self._copy("reference", reference)

    def exposed_model(self, model: Model) -> ExposedTensors:
        """The copy of the model that changes, built anew when it has changed."""
        return self._copy("model", model)

    def same_outputs(
        self, model: ExposedTensors, reference: ExposedTensors | None
    ) -> Callable[[WeightLayer], bool]:
        """Tells of a layer of `model` whether it certainly returns what it does in `reference`."""
        if reference is None:
            return lambda layer: False
        ours = self._numbering.value_numbers(model.graph)
        theirs = self._numbering.value_numbers(reference.graph)

        def is_same(layer: WeightLayer) -> bool:
            twin = reference.layers.get(layer.name)
            own = ours.get(layer.node.outputs[0])
            return twin is not None and own is not None and own is theirs.get(twin.node.outputs[0])

        return is_same

    def _copy(self, side: str, model: Model) -> ExposedTensors:
        signature = self._numbering.signature(model.graph)
        known = self._exposed.get(side)
        if known is None or known[0] is not model or known[1] != signature:
            known = self._exposed[side] = (model, signature, ExposedTensors(model))
        return known[2]


class ActivationCache:
    """Cached tensors of one model, for all samples, from which its remaining nodes can be computed.

    Args:
        numbering: tells equal values of different models.
        rows: number of samples; None: not known yet.
        budget_bytes: most bytes of the arrays.
    """

    def __init__(self, numbering: ValueNumbering, rows: int | None, budget_bytes: int) -> None:
        self.numbering, self.rows, self.budget_bytes = numbering, rows, budget_bytes
        self.held: dict[ValueNumber, Spool] = {}

    def play(self, exposed: ExposedTensors, keys: Sequence[str], threads: int | None) -> Playback:
        """Start a pass over all samples that reads the tensors of `keys`.

        Raises:
            RuntimeFailure: onnxruntime refuses the segment to run.
        """
        return Playback(self, exposed, keys, threads)

    def hold(self, kept: Mapping[ValueNumber, Spool]) -> None:
        """Replace the cached tensors by `kept`."""
        for value, spool in self.held.items():
            if kept.get(value) is not spool:
                spool.close()
        self.held = dict(kept)


class Playback:
    """One pass over the samples: a context manager, in which samples run in order."""

    def __init__(
        self,
        cache: ActivationCache,
        exposed: ExposedTensors,
        keys: Sequence[str],
        threads: int | None,
    ) -> None:
        self._cache = cache
        held = cache.held
        values = cache.numbering.value_numbers(exposed.graph)
        tensors = [t for node in exposed.graph.nodes for t in node.outputs if t.name]
        values = {t.name: values[t] for t in tensors if t in values}
        known = {t.name: t for t in tensors if values.get(t.name) in held}
        wanted = [exposed.outputs[key] for key in keys if key in exposed.outputs]
        segment = exposed.segment([t for t in wanted if t.name not in known], known.values())
        crossing = _crossing(exposed, [*wanted, *known.values()])
        crossing = [t for t in crossing if values[t.name].varies and t.dtype is not None]
        fresh = [t for t in crossing if t.name not in known and t.inputs[0] in segment.nodes]
        if cache.rows is None:
            fresh = []
        self._feeds = {t.name: held[values[t.name]] for t in segment.inputs}
        self._ready = {t.name: held[values[t.name]] for t in wanted if t.name in known}
        self._fresh = {t.name: values[t.name] for t in fresh}
        self._kept = {values[t.name]: held[values[t.name]] for t in crossing if t.name in known}
        self._new: dict[ValueNumber, Spool] = {}
        self._fits: bool | None = None
        self._number = self._rows = 0
        present = set(values.values())
        self._usable = {value: spool for value, spool in held.items() if value in present}
        shapes = {name: _common_shape(spool.shapes) for name, spool in self._feeds.items()}
        self._session: Session | None = exposed.open(segment, fresh, shapes, threads)

    def run(self, feeds: Feeds, rows: int) -> Outputs:
        """Run one sample; returns the tensors that were asked for, where they are not fed.

        Raises:
            RuntimeFailure: onnxruntime fails on the sample.
        """
        number = self._number
        found: Outputs = {}
        if self._session is not None:
            begun = {name: spool[number] for name, spool in self._feeds.items()}
            found = self._session.run({**feeds, **begun})
        found.update({name: spool[number] for name, spool in self._ready.items()})
        self._keep(found, rows)
        self._number += 1
        self._rows += rows
        return found

    def __enter__(self) -> Playback:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            self._session.close()
        if error is not None:
            self._give_up()
            self._cache.hold({})
            return
        self._cache.rows = self._rows
        self._cache.hold({**self._kept, **self._new} if self._fits else self._usable)

    def _keep(self, found: Outputs, rows: int) -> None:
        """Cache the tensors that cross the cut."""
        arrays = {value: found[name] for name, value in self._fresh.items()}
        if self._fits is None:
            self._fits = self._would_fit(arrays.values(), rows)
        if not self._fits:
            return
        try:
            for value, array in arrays.items():
                if value not in self._new:
                    self._new[value] = Spool()
                self._new[value].append(array)
        except OSError:  # the disk is full: later runs start earlier
            self._give_up()

    def _give_up(self) -> None:
        """Drop everything cached in this pass."""
        self._fits = False
        for spool in self._new.values():
            spool.close()
        self._new = {}

    def _would_fit(self, arrays: Iterable[np.ndarray], rows: int) -> bool:
        """Whether the tensors of all samples fit the budget, judged by the first."""
        total = self._cache.rows
        if total is None:
            return False
        taken = sum(spool.nbytes for spool in self._kept.values())
        for array in arrays:
            if not isinstance(array, np.ndarray) or array.dtype.hasobject:
                return False
            taken += array.nbytes * total // rows
        return taken <= self._cache.budget_bytes


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> list[int | None]:
    """The size of each axis; None where shapes differ."""
    columns = zip(*shapes, strict=True)
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in columns]


def _crossing(exposed: ExposedTensors, ends: Iterable[gs.Tensor]) -> list[gs.Tensor]:
    """Tensors that nodes before `ends` compute, and that nodes behind need to reach a layer."""
    ran = exposed.segment(tuple(ends), ()).nodes
    layers = [tensor for layer in exposed.layers.values() for tensor in layer.node.outputs]
    waiting = exposed.segment(layers, ()).nodes - ran
    return [
        tensor
        for node in exposed.graph.nodes
        if node in ran
        for tensor in node.outputs
        if tensor.name and any(user in waiting for user in tensor.outputs)
    ]
