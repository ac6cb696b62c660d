"""`SessionStopwatch` answers what passes ask about run time, by running models.

A comparison of small models takes a few tenths of a second. Answers are remembered by the bytes of
the models, so equal layers are timed once.

Owns: how long a comparison may take, and how many sessions are open at once. Not here: measuring
(see `latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.errors import RuntimeFailure
from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Constant, Node, Variable
from onnxslim.io.model import Model
from onnxslim.io.shapes import with_input_shapes
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.measure.latency import BUDGET_S as WHOLE_S
from onnxslim.runtime.measure.latency import (
    Run,
    RunTimes,
    compare_times,
    summarise,
    time_many,
    time_sessions,
)
from onnxslim.runtime.measure.profile import profile_model
from onnxslim.runtime.samples.input_sizes import StaticShape
from onnxslim.runtime.samples.seeded import InputKind, draw_feeds
from onnxslim.runtime.session import Feeds, Session, open_session
from onnxslim.services.stopwatch import Kernel

BUDGET_S: Final = 0.2  # seconds for each pair of small models
CHOICE_S: Final = 10.0  # seconds for each pair of whole models to choose from: they differ little
BRIEF_S: Final = 1.0  # seconds for each pair of whole models, to see which are worth more
_BRIEF_AT_ONCE: Final = 2  # models timed in turn with the first one, each with its activations
_PLAIN: Final = 0.05  # a ratio whose interval is farther than this from 1 is clear
_AT_ONCE: Final = 6  # open sessions
_REPEATS: Final = 3  # repeats of a comparison whose interval leaves its ratio undecided
_CLEAR: Final = 1.03  # ratios above this are worth a repeat

_Item = TypeVar("_Item")


class SessionStopwatch:
    """Implements `onnxslim.services.stopwatch.Stopwatch` with onnxruntime.

    Args:
        feeds: one sample, the inputs of the whole model.
        threads: see `open_session`.
        provider: see `open_session`.
        seed: of generated inputs, and of the order in which models run.
        budget_s: seconds for each pair of small models.

    Raises:
        RuntimeFailure: by every method, where onnxruntime refuses a model or fails on it.
    """

    def __init__(
        self,
        feeds: Feeds,
        *,
        threads: int | None = None,
        provider: str | None = None,
        seed: int = 0,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._feeds, self._seed = feeds, seed
        self._threads, self._provider = threads, provider
        self._budget_s = budget_s
        self._latencies: dict[bytes, Latency] = {}
        self._pairs: dict[tuple[bytes, bytes], LatencyPair] = {}

    def shapes(self, model: Model) -> Mapping[str, StaticShape]:
        """See `Stopwatch`."""
        copy = with_input_shapes(model, {name: a.shape for name, a in self._feeds.items()})
        known: dict[str, StaticShape] = {}
        open_: list[Variable] = []
        for tensor in _tensors(copy.graph):
            if isinstance(tensor, Constant):
                known[tensor.name] = tuple(int(size) for size in tensor.shape)
                continue
            shape = static_shape(tensor)
            if shape is not None:
                known[tensor.name] = shape
            elif tensor.type == "tensor_type" and tensor.inputs:
                open_.append(tensor)
        if open_:
            # run the model itself: with fixed sizes, a branch that is never taken can be invalid
            known.update(self._observed(model, open_))
        return known

    def milliseconds(self, models: Sequence[onnx.ModelProto]) -> tuple[Latency, ...]:
        """See `Stopwatch`."""
        keys = [_key(model) for model in models]
        missing = [key for key in dict.fromkeys(keys) if key not in self._latencies]
        for part in _chunks(missing, _AT_ONCE):
            for key, row in zip(part, self._times(part).ms, strict=True):
                self._latencies[key] = summarise(row)
        return tuple(self._latencies[key] for key in keys)

    def compare(
        self, before: onnx.ModelProto, after: Sequence[onnx.ModelProto]
    ) -> tuple[LatencyPair, ...]:
        """See `Stopwatch`."""
        first = _key(before)
        keys = [_key(model) for model in after]
        missing = [key for key in dict.fromkeys(keys) if (first, key) not in self._pairs]
        for part in _chunks(missing, _AT_ONCE - 1):
            self._compare(first, part)
        return tuple(self._pairs[first, key] for key in keys)

    def pair(self, before: Model, after: Model) -> LatencyPair:
        """See `Stopwatch`."""
        return self._in_turn(before, [after], WHOLE_S)[0]

    def pairs(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """See `Stopwatch`."""
        return self._in_turn(before, after, CHOICE_S, _are_plain)

    def brief_pairs(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """See `Stopwatch`."""
        parts = _chunks(after, _BRIEF_AT_ONCE)
        return tuple(pair for part in parts for pair in self._in_turn(before, part, BRIEF_S))

    def looped(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        """See `Stopwatch`."""
        return self._in_turn(before, after, CHOICE_S, cold=False)

    def profile(self, model: Model) -> Sequence[Kernel]:
        """See `Stopwatch`: of the processor, as other providers make one kernel of many nodes."""
        return profile_model(model, self._feeds, threads=self._threads)

    # ------------------------------------------------------------------ inside

    def _in_turn(
        self,
        before: Model,
        after: Sequence[Model],
        budget_s: float,
        is_settled: Callable[[RunTimes], bool] | None = None,
        *,
        cold: bool = True,
    ) -> tuple[LatencyPair, ...]:
        @contextmanager
        def opened() -> Iterator[Sequence[Run]]:
            with ExitStack() as stack:
                sessions = [stack.enter_context(self._open(model)) for model in (before, *after)]
                yield [session.runner(self._feeds) for session in sessions]

        times = time_sessions(
            opened, seed=self._seed, budget_s=budget_s, cold=cold, is_settled=is_settled
        )
        return tuple(compare_times(times.rows(0, 1 + n)) for n in range(len(after)))

    def _compare(self, first: bytes, others: Sequence[bytes]) -> None:
        """Time `first` against `others`; repeat where noise hides a likely difference."""
        parts: dict[bytes, list[RunTimes]] = {key: [] for key in others}
        for _ in range(1 + _REPEATS):
            times = self._times([first, *others])
            for number, key in enumerate(others, 1):
                parts[key].append(times.rows(0, number))
                self._pairs[first, key] = compare_times(RunTimes.joined(parts[key]))
            others = [key for key in others if _is_open(self._pairs[first, key])]
            if not others:
                return

    def _times(self, keys: Sequence[bytes]) -> RunTimes:
        """Times of small models."""
        with ExitStack() as stack:
            runs = [self._runner(stack.enter_context(self._open(key))) for key in keys]
            return time_many(runs, seed=self._seed, budget_s=self._budget_s, cold=False)

    def _open(self, model: Model | bytes) -> Session:
        return open_session(model, threads=self._threads, provider=self._provider)

    def _runner(self, session: Session) -> Callable[[], object]:
        shapes = {info.name: _static(info.shape, info.name) for info in session.inputs}
        feeds = draw_feeds(session.inputs, shapes, InputKind.NORMAL, self._seed)
        session.run(feeds)  # an error here names the fault; one in a timed run would not
        return session.runner(feeds)

    def _observed(self, model: Model, tensors: list[Variable]) -> Mapping[str, StaticShape]:
        """Shapes from a run; without tensors of unknown type where onnxruntime refuses those."""
        typed = [tensor for tensor in tensors if tensor.dtype is not None]
        for chosen in (tensors, typed):
            try:
                return self._run_shapes(model, chosen) if chosen else {}
            except RuntimeFailure:
                if chosen is typed or len(typed) == len(tensors):
                    raise
        return {}

    def _run_shapes(self, model: Model, tensors: list[Variable]) -> Mapping[str, StaticShape]:
        copy = model.clone()
        graph = copy.graph
        names = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
        taken = {tensor.name for tensor in _tensors(graph)}
        wanted: dict[str, str] = {}
        for number, tensor in enumerate(tensors):
            output = f"shape_{number}"
            while output in taken:
                output += "_"
            wanted[output] = tensor.name
            made = Variable(output, np.dtype(np.int64))
            graph.nodes.append(Node("Shape", inputs=[names[tensor.name]], outputs=[made]))
            graph.outputs.append(made)
        # declared and inferred shapes may be wrong
        for tensor in names.values():
            tensor.info = None
        with open_session(copy, threads=self._threads, spin=False) as session:
            found = session.run(self._feeds)
        return {name: tuple(int(size) for size in found[output]) for output, name in wanted.items()}


def _tensors(graph: gs.Graph) -> Iterable[gs.Tensor]:
    """The named tensors of the main graph."""
    inner = (tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs))
    found = {id(tensor): tensor for tensor in (*graph.inputs, *graph.outputs, *inner)}
    return [tensor for tensor in found.values() if tensor.name]


def _static(shape: Sequence[object] | None, name: str) -> StaticShape:
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    if shape is None or len(sizes) != len(shape):
        raise ValueError(f"Input `{name}` of a small model has the shape {shape}, not fixed sizes.")
    return sizes


def _is_open(pair: LatencyPair) -> bool:
    return pair.ratio > _CLEAR and not pair.is_faster


def _are_plain(times: RunTimes) -> bool:
    """Whether all models differ from the first beyond doubt."""
    pairs = [compare_times(times.rows(0, other)) for other in range(1, len(times.wall))]
    return all(pair.low > 1 + _PLAIN or pair.high < 1 - _PLAIN for pair in pairs)


def _key(model: onnx.ModelProto) -> bytes:
    key: bytes = model.SerializeToString(deterministic=True)
    return key


def _chunks(items: Sequence[_Item], size: int) -> Iterable[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
