"""Second moments of the inputs of weight layers, streamed from calibration samples.

The input tensors of the layers become outputs of a copy of the model; their rows x (see `unfold`)
are accumulated into Σ x and Σ x ⊗ x, in float64. Layers that read the same tensor in the same way
share one matrix. Memory holds one run, one chunk of rows, and the sums of as many layers as fit
into `budget_bytes`; the other layers wait for another sweep over the samples.

Products are computed in float64 up to 1024 features, in float32 above (see `products`).

Owns: how many rows of a map are used, and in which order layers are swept. Not here: running the
model (see `activation_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

import numpy as np

from onnxslim.analysis.layers import WeightLayer, bias_of
from onnxslim.analysis.linear_operators import Unfolding
from onnxslim.errors import UsageError
from onnxslim.graph.ir import node_label
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.probes.activation_cache import ActivationCaches
from onnxslim.runtime.probes.exposed import ExposedTensors, read, why_hidden
from onnxslim.runtime.probes.products import CrossSum, FourthSum, SecondSum
from onnxslim.runtime.probes.unfold import UnfoldedRows, unfold_input, unfold_output
from onnxslim.runtime.samples.sources import Sample
from onnxslim.runtime.session import Outputs
from onnxslim.services.moments import BlockDiagonal, LayerMoments, Second

_EXACT_FEATURES: Final = 1024  # up to here products are computed in float64
_CHUNK_ITEMS: Final = 1 << 22  # elements of a chunk of rows
_CHEAP_PRODUCTS: Final = 1 << 24  # multiplications for one sample and layer that cost little
_ROWS_EACH: Final = 200  # rows in all, for each feature
_MIN_ROWS: Final = 20000  # rows in all


@dataclass(frozen=True)
class MomentLimits:
    """Limits on the memory and the work that moments take.

    Attributes:
        budget_bytes: size of all sums held at once; the sums of a single layer may exceed it.
        max_features: above this, H is kept as a block-diagonal matrix of blocks up to this size.
        patches: rows of one sample to use, drawn with the seed; more where rows are short (as long
            as features² · rows stays below 2^24).
        samples: number of samples, where known: each then contributes only its share of
            `_ROWS_EACH` rows a feature.
    """

    budget_bytes: int = 2 << 30
    max_features: int = 16384
    patches: int = 256
    samples: int | None = None


def stream_moments(
    model: Model,
    samples: Callable[[], Iterable[Sample]],
    layers: Sequence[str] | None = None,
    *,
    reference: Model | None = None,
    limits: MomentLimits | None = None,
    seed: int = 0,
    threads: int | None = None,
    activations: ActivationCaches | None = None,
) -> Iterator[LayerMoments | Skip]:
    """Stream the moments of the weight layers of `model`.

    Args:
        model: the model as it is now.
        samples: starts a new pass over the calibration data, the same samples every time.
        layers: names, as `weight_layers` gives them; None: all.
        reference: the original model: `cross`, `goal` and `energy` tell what its layers of the
            same names return for the same samples.
        limits: limits on memory and work.
        seed: seed of the choice of rows.
        threads: threads of onnxruntime; None for its own choice.
        activations: activation caches shared with other calls on the same samples.

    Yields:
        The moments of each layer, or why there are none, sweep by sweep.

    Raises:
        UsageError: `layers` names a layer that does not exist.
        RuntimeFailure: onnxruntime refuses the model or fails on a sample.
    """
    limits = limits or MomentLimits()
    listing = ExposedTensors(model)
    skips = [skip for skip in listing.skips if layers is None or skip.node in layers]
    yield from skips
    wanted = _wanted(listing, layers, {skip.node for skip in skips})
    activations = activations or ActivationCaches(None)
    original = None if reference is None else activations.exposed_reference(reference)
    groups: dict[tuple[object, ...], list[WeightLayer]] = {}
    for layer in wanted:
        why = _why_not(layer, original)
        if why is not None:
            yield Skip(layer.name, why)
            continue
        # layers in different branches of an If never run together, so they cannot share sums
        place = tuple((node_label(node), body) for node, body in layer.bodies)
        groups.setdefault((id(layer.data_tensor), layer.unfolding, place), []).append(layer)
    with_cross = reference is not None
    for sweep in _sweeps(list(groups.values()), limits, with_cross=with_cross):
        streams = _MomentSweep(listing, original, sweep, limits)
        streams.run(samples(), activations, seed, threads)
        yield from streams.results()


def _wanted(
    listing: ExposedTensors, names: Sequence[str] | None, known: set[str]
) -> list[WeightLayer]:
    if names is None:
        return list(listing.layers.values())
    for name in names:
        if name not in listing.layers and name not in known:
            raise UsageError(f"The model has no weight layer `{name}`.")
    chosen = set(names)
    return [layer for name, layer in listing.layers.items() if name in chosen]


def _why_not(layer: WeightLayer, original: ExposedTensors | None) -> str | None:
    if not all(node.op == "If" and node.is_onnx for node, _ in layer.bodies):
        return why_hidden(layer)
    if original is None:
        return None
    twin = original.layers.get(layer.name)
    if twin is None:
        return "the original model has no layer of this name"
    if (twin.groups, twin.rows) != (layer.groups, layer.rows):
        return "it returns another number of channels than in the original model"
    bias = bias_of(twin)
    return bias if isinstance(bias, str) else None


def _sweeps(
    groups: list[list[WeightLayer]], limits: MomentLimits, *, with_cross: bool
) -> Iterator[list[list[WeightLayer]]]:
    """Groups of layers in graph order, as many in a sweep as the budget allows."""
    sweep: list[list[WeightLayer]] = []
    taken = 0
    for group in groups:
        needed = _sum_bytes(group, limits, with_cross=with_cross)
        if sweep and taken + needed > limits.budget_bytes:
            yield sweep
            sweep, taken = [], 0
        sweep.append(group)
        taken += needed
    if sweep:
        yield sweep


def _sum_bytes(group: list[WeightLayer], limits: MomentLimits, *, with_cross: bool) -> int:
    first = group[0]
    slices = _blocks(first.columns, limits.max_features)
    widths: list[int] = [at.stop - at.start for at in slices]
    items = first.groups * sum(width**2 for width in widths)
    if with_cross:
        items += sum(layer.size for layer in group)
    return items * 8


def _blocks(features: int, largest: int) -> list[slice]:
    """Near-equal ranges that cover all features, none longer than `largest`."""
    count = -(-features // largest)
    edges = [round(i * features / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


# ---------------------------------------------------------------------------- sums


@dataclass
class _OutputSums:
    """Sums over the outputs y of one layer of the reference model."""

    layer: WeightLayer
    key: str
    unfolding: Unfolding
    bias: np.ndarray
    cross: CrossSum
    total: np.ndarray
    squares: np.ndarray


@dataclass
class _InputSums:
    """Sums over the inputs x of the layers that read one tensor in the same way."""

    layers: list[WeightLayer]
    key: str
    limits: MomentLimits
    outputs: list[_OutputSums] = field(default_factory=list)
    count: int = 0
    seen: int = 0
    thinned: bool = False

    def __post_init__(self) -> None:
        first = self.layers[0]
        self.unfolding = first.unfolding
        self.slices = _blocks(first.columns, self.limits.max_features)
        self.total = np.zeros((first.groups, first.columns))
        widths = [s.stop - s.start for s in self.slices]
        self.exact = max(widths) <= _EXACT_FEATURES
        self.seconds = [SecondSum(first.groups, width, exact=self.exact) for width in widths]
        self.fourths = [FourthSum(first.groups, width) for width in widths]

    def cap(self) -> int:
        """The most rows of one sample to use."""
        columns = self.layers[0].columns
        cap = max(self.limits.patches, _CHEAP_PRODUCTS // (self.layers[0].groups * columns**2))
        if self.limits.samples is None:
            return cap
        return min(cap, -(-max(_ROWS_EACH * columns, _MIN_ROWS) // self.limits.samples))

    def add(self, rows: UnfoldedRows, outputs: Sequence[UnfoldedRows], index: np.ndarray) -> None:
        """Accumulate the rows at `index`, a chunk at a time."""
        size = max(1, _CHUNK_ITEMS // (rows.features * rows.groups))
        dtype = self.seconds[0].dtype
        for start in range(0, len(index), size):
            part = index[start : start + size]
            x = rows.take(part).astype(dtype, copy=False)  # (g, rows, features)
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # `results` reports values that are not finite
                self._add_inputs(x)
                for output, source in zip(self.outputs, outputs, strict=True):
                    y = source.take(part)
                    output.cross.add(y.astype(dtype, copy=False), x)
                    output.total += y.sum(axis=1, dtype=np.float64)
                    output.squares += np.square(y, dtype=np.float64).sum(axis=1)
        self.count += len(index)

    def _add_inputs(self, x: np.ndarray) -> None:
        self.total += x.sum(axis=1, dtype=np.float64)
        for at, second, fourth in zip(self.slices, self.seconds, self.fourths, strict=True):
            second.add(x[:, :, at])
            fourth.add(x[:, :, at])

    def results(self) -> Iterator[LayerMoments | Skip]:
        """The moments of every layer."""
        outputs: Sequence[_OutputSums | None] = self.outputs or [None] * len(self.layers)
        finite, seconds, scatters = self._finished()
        made: list[LayerMoments | Skip] = []
        for layer, output in zip(self.layers, outputs, strict=True):
            if not self.count:
                made.append(Skip(layer.name, "no calibration sample reaches it"))
            elif not finite or (output is not None and not np.isfinite(output.squares).all()):
                why = "its input or output is not finite on calibration data"
                made.append(Skip(layer.name, why))
            else:
                made.append(self._moments(layer, output, seconds, scatters))
        del seconds  # so that the receiver alone decides how long the matrices live
        while made:
            yield made.pop(0)

    def _finished(self) -> tuple[bool, tuple[Second, ...], tuple[np.ndarray, np.ndarray]]:
        """Whether all sums are finite; H of each group; its scatter about zero and the mean."""
        totals = [second.total() for second in self.seconds]
        finite = np.isfinite(self.total).all() and all(np.isfinite(s).all() for s in totals)
        if not self.count or not finite:
            return bool(finite), (), (np.zeros(0), np.zeros(0))
        for total in totals:
            total /= self.count
            total.flags.writeable = False
        mean = self.total / self.count
        scatters = self._scatter(totals, np.zeros_like(mean)), self._scatter(totals, mean)
        return True, self._seconds(totals), scatters

    def _seconds(self, totals: Sequence[np.ndarray]) -> tuple[Second, ...]:
        if len(totals) == 1:
            return tuple(totals[0])
        groups = range(self.layers[0].groups)
        return tuple(BlockDiagonal(tuple(t[group] for t in totals)) for group in groups)

    def _scatter(self, seconds: Sequence[np.ndarray], mean: np.ndarray) -> np.ndarray:
        """See `LayerMoments.scatter`, of x − `mean`."""
        parts = zip(self.slices, self.fourths, seconds, strict=True)
        return np.array([f.scatter(self.count, s, mean[:, at]) for at, f, s in parts])

    def _moments(
        self,
        layer: WeightLayer,
        output: _OutputSums | None,
        seconds: tuple[Second, ...],
        scatters: tuple[np.ndarray, np.ndarray],
    ) -> LayerMoments:
        mean = self.total / self.count
        known = LayerMoments(
            layer.name,
            seconds,
            mean,
            self.count,
            notes=self._notes(),
            scatter=scatters[0],
            centered_scatter=scatters[1],
        )
        if output is None:
            return known
        bias = output.bias
        raw = output.total / self.count
        # targets are W·x without the bias b: E[(y − b)xᵀ] = E[yxᵀ] − b·E[x]ᵀ and
        # E[(y − b)²] = E[y²] − 2b·E[y] + b²
        cross = output.cross.total() / self.count - bias[:, :, None] * mean[:, None, :]
        energy = output.squares / self.count - 2 * bias * raw + bias**2
        return replace(known, cross=cross, goal=raw - bias, energy=energy)

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if len(self.slices) > 1:
            notes.append(
                f"moments of {self.layers[0].columns} features are kept in {len(self.slices)} "
                "blocks; what links the blocks is left out"
            )
        if self.thinned:
            notes.append(f"{self.count} of {self.seen} positions were looked at")
        return tuple(notes)


# ---------------------------------------------------------------------------- sweeps


class _MomentSweep:
    """One sweep over the samples: runs the models, and fills the sums of some layers."""

    def __init__(
        self,
        exposed: ExposedTensors,
        reference: ExposedTensors | None,
        sweep: list[list[WeightLayer]],
        limits: MomentLimits,
    ) -> None:
        self.exposed, self.reference = exposed, reference
        self.inputs: list[_InputSums] = []
        for group in sweep:
            first = group[0]
            item = _InputSums(group, _exposed_key(exposed, first.data_tensor, first), limits)
            if reference is not None:
                item.outputs = [_output(reference, la, exact=item.exact) for la in group]
            self.inputs.append(item)

    def run(
        self,
        samples: Iterable[Sample],
        activations: ActivationCaches,
        seed: int,
        threads: int | None,
    ) -> None:
        """Run all samples and fill the sums."""
        keys = [item.key for item in self.inputs]
        wished_keys = [output.key for item in self.inputs for output in item.outputs]
        with ExitStack() as stack:
            own = stack.enter_context(activations.model.play(self.exposed, keys, threads))
            other = None
            if self.reference is not None:
                playing = activations.reference.play(self.reference, wished_keys, threads)
                other = stack.enter_context(playing)
            first = 0
            for sample in samples:
                seen = own.run(sample.feeds, sample.rows)
                wished = {} if other is None else other.run(sample.feeds, sample.rows)
                self._add(sample, first, seed, seen, wished)
                first += sample.rows

    def _add(self, sample: Sample, first: int, seed: int, seen: Outputs, wished: Outputs) -> None:
        for item in self.inputs:
            array = read(item.key, sample.feeds, seen)
            results = [(o, read(o.key, sample.feeds, wished)) for o in item.outputs]
            if not array.size or any(not result.size for _, result in results):
                continue  # the If took the other branch
            rows = unfold_input(array, item.unfolding)
            outputs = [unfold_output(result, output.unfolding) for output, result in results]
            if any(output.count != rows.count for output in outputs):
                continue  # the reference has other positions: its rows have no counterpart
            index = chosen_rows(rows.count, sample.rows, first, item.cap(), seed)
            item.seen += rows.count
            item.thinned = item.thinned or len(index) < rows.count
            item.add(rows, outputs, index)

    def results(self) -> Iterator[LayerMoments | Skip]:
        """The moments of every layer; frees the sums one by one."""
        while self.inputs:
            yield from self.inputs.pop(0).results()


def _exposed_key(exposed: ExposedTensors, tensor: object, layer: WeightLayer) -> str:
    key = exposed.expose(tensor, layer)
    assert key is not None, layer.name  # checked by `_why_not`
    return key


def _output(reference: ExposedTensors, layer: WeightLayer, *, exact: bool) -> _OutputSums:
    twin = reference.layers[layer.name]
    bias = bias_of(twin)
    assert isinstance(bias, np.ndarray), layer.name  # checked by `_why_not`
    shape = (layer.groups, layer.rows)
    return _OutputSums(
        layer,
        _exposed_key(reference, twin.node.outputs[0], twin),
        twin.unfolding,
        bias,
        CrossSum(*shape, layer.columns, exact=exact),
        np.zeros(shape),
        np.zeros(shape),
    )


def chosen_rows(count: int, samples: int, first: int, cap: int, seed: int) -> np.ndarray:
    """The rows of a run to use: up to `cap` of each sample, sorted.

    The choice for a sample depends on its number and the seed, not on the batch that holds it.

    Args:
        count: number of rows in this run.
        samples: number of samples in this run; the rows of one sample are contiguous.
        first: number of the first sample of the run.
        cap: the most rows of one sample.
        seed: seed of the choice.
    """
    if count <= cap * samples:
        return np.arange(count)
    parts = samples if count % samples == 0 else 1
    each, limit = count // parts, cap * samples // parts
    chosen = [
        part * each + _draw(each, limit, np.random.default_rng((seed, first + part)))
        for part in range(parts)
    ]
    return np.concatenate(chosen)


def _draw(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(count, size, replace=False, shuffle=False))
