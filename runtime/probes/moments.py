"""Second moments of the inputs of weight layers, streamed from calibration samples.

The input tensors of the layers become outputs of a copy of the model; their rows x (see `unfold`)
are summed (see `moment_sums`). Memory holds one run, one chunk of rows, and the sums of as many
layers as fit into `budget_bytes`; the other layers wait for another sweep over the samples.

Owns: which rows of a map are used, and in which order layers are swept. Not here: keeping
activations from one sweep to the next (see `activation_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from onnxslim.analysis.layers import WeightLayer, bias_of
from onnxslim.analysis.linear_operators import RecurrentSteps, TableRows, Vectors
from onnxslim.errors import UsageError
from onnxslim.graph.ir import node_label
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.measure.padding import positions_that_count
from onnxslim.runtime.probes.activation_cache import ActivationCaches
from onnxslim.runtime.probes.exposed import ExposedTensors, read, why_hidden
from onnxslim.runtime.probes.moment_sums import (
    InputSums,
    MomentLimits,
    OutputSums,
    SourceKeys,
    sum_bytes,
)
from onnxslim.runtime.probes.products import CrossSum
from onnxslim.runtime.probes.unfold import (
    UnfoldedRows,
    products_of,
    unfold_input,
    unfold_output,
)
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Outputs
from onnxslim.services.moments import LayerMoments


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
        model: as it is now.
        samples: starts a new pass over the calibration data, the same samples every time.
        layers: names, as `weight_layers` gives them; None: all.
        reference: the original model: `cross`, `goal` and `energy` tell what its layers of the
            same names return for the same samples. Where they certainly return the same, these are
            None, and the reference does not run.
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
    is_same = activations.same_outputs(listing, original)
    groups: dict[tuple[object, ...], _Group] = {}
    for layer in wanted:
        why = _why_not(layer, original)
        if why is not None:
            yield Skip(layer.name, why)
            continue
        # layers in different branches of an If never run together, so they cannot share sums
        place = tuple((node_label(node), body) for node, body in layer.bodies)
        sources = tuple(map(id, layer.sources))
        has_cross = original is not None and not is_same(layer)
        key = (has_cross, sources, layer.unfolding, place)
        groups.setdefault(key, _Group([], has_cross)).layers.append(layer)
    for sweep in _sweeps(list(groups.values()), limits):
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
    if isinstance(layer.unfolding, TableRows):
        return "indices pick rows of it"
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


class _Group(NamedTuple):
    """Layers that read one tensor in the same way, and whether they return what they did not."""

    layers: list[WeightLayer]
    has_cross: bool


def _sweeps(groups: Sequence[_Group], limits: MomentLimits) -> Iterator[list[_Group]]:
    """Groups of layers in graph order, as many in a sweep as the budget allows."""
    sweep: list[_Group] = []
    taken = 0
    for group in groups:
        needed = sum_bytes(group.layers, limits, with_cross=group.has_cross)
        if sweep and taken + needed > limits.budget_bytes:
            yield sweep
            sweep, taken = [], 0
        sweep.append(group)
        taken += needed
    if sweep:
        yield sweep


class _MomentSweep:
    """One sweep over the samples: runs the models, and fills the sums of some layers."""

    def __init__(
        self,
        exposed: ExposedTensors,
        reference: ExposedTensors | None,
        sweep: Sequence[_Group],
        limits: MomentLimits,
    ) -> None:
        self.exposed, self.reference = exposed, reference
        self.inputs: list[InputSums] = []
        for layers, has_cross in sweep:
            item = InputSums(layers, _source_keys(exposed, layers[0]), limits)
            if reference is not None and has_cross:
                item.outputs = [_output(reference, la, exact=item.exact) for la in layers]
            self.inputs.append(item)

    def run(
        self,
        samples: Iterable[Sample],
        activations: ActivationCaches,
        seed: int,
        threads: int | None,
    ) -> None:
        """Run all samples and fill the sums."""
        keys = [key for item in self.inputs for key in item.keys if key is not None]
        wished_keys = [
            key
            for item in self.inputs
            for output in item.outputs
            for key in output.keys
            if key is not None
        ]
        with ExitStack() as stack:
            own = stack.enter_context(activations.model.play(self.exposed, keys, threads))
            other = None
            if self.reference is not None and wished_keys:
                playing = activations.reference.play(self.reference, wished_keys, threads)
                other = stack.enter_context(playing)
            first = 0
            for sample in samples:
                seen = own.run(sample.feeds, sample.rows)
                wished = {} if other is None else other.run(sample.feeds, sample.rows)
                self._add(sample, first, seed, seen, wished)
                first += sample.rows

    def _add(self, sample: Sample, first: int, seed: int, seen: Outputs, wished: Outputs) -> None:
        counts = positions_that_count((self.reference or self.exposed).padding, sample.feeds)
        for item in self.inputs:
            arrays = _arrays(item.keys, sample, seen)
            results = [(output, _arrays(output.keys, sample, wished)) for output in item.outputs]
            if not all(_is_filled(found) for found in (arrays, *(each for _, each in results))):
                continue  # the If took the other branch
            rows = unfold_input(arrays, item.unfolding)
            outputs = [_outputs(output, found) for output, found in results]
            if any(output.count != rows.count for output in outputs):
                continue  # the reference has other positions: its rows have no counterpart
            index = chosen_rows(rows.count, sample.rows, first, item.cap(), seed)
            if counts is not None and _has_positions(arrays, item, counts):
                index = index[counts.reshape(-1)[index]]
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


def _source_keys(exposed: ExposedTensors, layer: WeightLayer) -> SourceKeys:
    return tuple(None if t is None else _exposed_key(exposed, t, layer) for t in layer.sources)


def _arrays(keys: SourceKeys, sample: Sample, outputs: Outputs) -> list[np.ndarray | None]:
    return [None if key is None else read(key, sample.feeds, outputs) for key in keys]


def _is_filled(arrays: Sequence[np.ndarray | None]) -> bool:
    return all(array is None or array.size for array in arrays)


def _has_positions(
    arrays: Sequence[np.ndarray | None], item: InputSums, counts: np.ndarray
) -> bool:
    """Whether the rows of a layer's input are those of the positions (N, L) of texts."""
    unfolding, array = item.unfolding, arrays[0]
    if not isinstance(unfolding, Vectors) or unfolding.batch or unfolding.axis != -1:
        return False
    return array is not None and array.ndim == 3 and array.shape[:2] == counts.shape


def _outputs(output: OutputSums, arrays: Sequence[np.ndarray | None]) -> UnfoldedRows:
    """Every y of a layer of the reference model in one run."""
    if output.weight is not None:
        return products_of(unfold_input(arrays, output.unfolding), output.weight)
    (array,) = arrays
    assert array is not None
    return unfold_output(array, output.unfolding)


def _output(reference: ExposedTensors, layer: WeightLayer, *, exact: bool) -> OutputSums:
    twin = reference.layers[layer.name]
    bias = bias_of(twin)
    assert isinstance(bias, np.ndarray), layer.name  # checked by `_why_not`
    shape = (layer.groups, layer.rows)
    weight: np.ndarray | None = None
    if isinstance(twin.unfolding, RecurrentSteps):
        keys, weight, bias = _source_keys(reference, twin), twin.canonical(), np.zeros(shape)
    else:
        keys = (_exposed_key(reference, twin.node.outputs[0], twin),)
    return OutputSums(
        layer,
        keys,
        twin.unfolding,
        weight,
        bias,
        CrossSum(*shape, layer.columns, exact=exact),
        np.zeros(shape),
        np.zeros(shape),
    )


def chosen_rows(count: int, samples: int, first: int, cap: int, seed: int) -> np.ndarray:
    """The rows of a run to use: up to `cap` of each sample, sorted.

    The choice for a sample depends on its number and the seed, not on the batch that holds it. The
    run has `count` rows of `samples` samples, of which `first` is the number of the first; the rows
    of one sample are contiguous.
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
