"""Activations of all samples, kept where a run of a model ended: the next goes on from there.

Lossy passes change a model from its inputs on, and measure it anew after each layer. What lies
before the first layer that changed is the same as before; of it, only what later layers read is
worth keeping: the tensors that cross from nodes that ran to nodes that did not. So each node runs
about once in all, and not once for every layer behind it.

Whether a tensor is the same as in an earlier model is told by its `Value`: the operators and the
very arrays that it is made with (see `values`). Results differ from those of a run from the inputs
by rounding at most, where onnxruntime would have fused operators across the cut.

What may change here: what is kept. When that would take more than the budget, what was kept before
stays, and runs begin there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.model import Model
from onnxslim.runtime.session import Feeds, Outputs, Session
from onnxslim.runtime.taps import Taps
from onnxslim.runtime.values import Numbering, Signature, Value

_BUDGET_BYTES: Final = 1 << 30


class Activations:
    """What is kept of two models: the one that changes, and the one that it is compared with.

    Args:
        rows: samples in all; None where only a first run tells: it keeps nothing then.
        budget_bytes: of all that is kept.
    """

    def __init__(self, rows: int | None, budget_bytes: int = _BUDGET_BYTES) -> None:
        self._numbering = Numbering()
        share = budget_bytes // 2
        self.model = Frontier(self._numbering, rows, share)
        self.reference = Frontier(self._numbering, rows, share)
        self._taps: tuple[Model, Signature, Taps] | None = None

    def reference_taps(self, reference: Model) -> Taps:
        """The taps of a reference, made once."""
        signature = self._numbering.signature(reference.graph)
        known = self._taps
        if known is None or known[0] is not reference or known[1] != signature:
            known = self._taps = (reference, signature, Taps(reference))
        return known[2]


class Frontier:
    """The tensors of one model, kept for all runs, from which what is left of it can be computed.

    Args:
        numbering: of values.
        rows: samples in all; None: not known yet.
        budget_bytes: of the arrays.
    """

    def __init__(self, numbering: Numbering, rows: int | None, budget_bytes: int) -> None:
        self.numbering, self.rows, self.budget_bytes = numbering, rows, budget_bytes
        self.held: dict[Value, list[np.ndarray | None]] = {}

    def play(self, taps: Taps, keys: Sequence[str], threads: int | None) -> Playback:
        """A pass over all samples in which the tensors of `keys` are read.

        Raises:
            RuntimeFailure: onnxruntime refuses the part of the model that is to run.
        """
        return Playback(self, taps, keys, threads)


class Playback:
    """One pass over the samples: use it as a context manager, and run the samples in order."""

    def __init__(
        self, frontier: Frontier, taps: Taps, keys: Sequence[str], threads: int | None
    ) -> None:
        self._frontier = frontier
        held = frontier.held
        values = frontier.numbering.values(taps.graph)
        tensors = [t for node in taps.graph.nodes for t in node.outputs if t.name]
        values = {t.name: values[t] for t in tensors if t in values}
        known = {t.name: t for t in tensors if values.get(t.name) in held}
        wanted = [taps.outputs[key] for key in keys if key in taps.outputs]
        part = taps.part([t for t in wanted if t.name not in known], known.values())
        crossing = _crossing(taps, [*wanted, *known.values()])
        crossing = [t for t in crossing if values[t.name].varies and t.dtype is not None]
        fresh = [t for t in crossing if t.name not in known and t.inputs[0] in part.nodes]
        if frontier.rows is None:
            fresh = []
        self._feeds = {t.name: held[values[t.name]] for t in part.begins}
        self._ready = {t.name: held[values[t.name]] for t in wanted if t.name in known}
        self._fresh = {t.name: values[t.name] for t in fresh}
        self._kept: dict[Value, list[np.ndarray | None]] = {
            values[t.name]: held[values[t.name]] for t in crossing if t.name in known
        }
        self._stale = [arrays for value, arrays in held.items() if value not in self._kept]
        self._fits: bool | None = None
        self._number = self._rows = 0
        present = set(values.values())
        self._usable = {value: arrays for value, arrays in held.items() if value in present}
        shapes = {name: _common_shape(arrays) for name, arrays in self._feeds.items()}
        self._session: Session | None = taps.open(part, fresh, shapes, threads)

    def run(self, feeds: Feeds, rows: int) -> Outputs:
        """The tensors that were asked for, as far as they are not fed.

        Raises:
            RuntimeFailure: onnxruntime fails on the sample.
        """
        number = self._number
        found: Outputs = {}
        if self._session is not None:
            begun = {name: arrays[number] for name, arrays in self._feeds.items()}
            found = self._session.run({**feeds, **begun})  # type: ignore[dict-item]
        for name, arrays in self._ready.items():
            array = arrays[number]
            assert array is not None
            found[name] = array
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
            self._frontier.held = {}
            return
        self._frontier.rows = self._rows
        self._frontier.held = self._kept if self._fits else self._usable

    def _keep(self, found: Outputs, rows: int) -> None:
        """Keep what crosses, and let go of what this run has used up."""
        arrays = {value: found[name] for name, value in self._fresh.items()}
        if self._fits is None:
            self._fits = self._would_fit(arrays.values(), rows)
            if self._fits:
                self._kept.update((value, []) for value in arrays)
        if self._fits:
            for value, array in arrays.items():
                self._kept[value].append(array)
            for stale in self._stale:
                stale[self._number] = None

    def _would_fit(self, arrays: Iterable[np.ndarray], rows: int) -> bool:
        """Whether all runs can be kept, judged by the first."""
        total = self._frontier.rows
        if total is None:
            return False
        taken = sum(a.nbytes for kept in self._kept.values() for a in kept if a is not None)
        for array in arrays:
            if not isinstance(array, np.ndarray) or array.dtype.hasobject:
                return False
            taken += array.nbytes * total // rows
        return taken <= self._frontier.budget_bytes


def _common_shape(arrays: Iterable[np.ndarray | None]) -> list[int | None]:
    """The sizes that all have, None where they differ."""
    shapes = zip(*(array.shape for array in arrays if array is not None), strict=True)
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in shapes]


def _crossing(taps: Taps, ends: Iterable[gs.Tensor]) -> list[gs.Tensor]:
    """Tensors made by what `ends` need, and needed by other nodes on the way to a layer."""
    ran = taps.part(tuple(ends), ()).nodes
    layers = [tensor for layer in taps.layers.values() for tensor in layer.node.outputs]
    waiting = taps.part(layers, ()).nodes - ran
    return [
        tensor
        for node in taps.graph.nodes
        if node in ran
        for tensor in node.outputs
        if tensor.name and any(user in waiting for user in tensor.outputs)
    ]


__all__ = ["Activations", "Frontier", "Playback"]
