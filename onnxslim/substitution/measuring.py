"""What a place reads and what it is to return, at positions drawn from the samples.

The inputs come from the model as changed so far, the outputs from the original model.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final

import numpy as np

from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.graph.ir import Node, Variable
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.services.calibration import Calibration
from onnxslim.substitution.patches.evidence import PatchEvidence
from onnxslim.substitution.places import BlockPlace

_ELEMENTS: Final = 1 << 25  # of all patches together
_MOST_ROWS: Final = 8192
_LEAST_ROWS: Final = 512
_SAMPLES: Final = 256  # that positions are drawn from


def rows_for(place: BlockPlace) -> int:
    """How many positions are looked at."""
    cell = place.cell
    size = cell.taps * cell.channels * place.groups
    return int(np.clip(_ELEMENTS // size, _LEAST_ROWS, _MOST_ROWS))


def exposing(model: Model, name: str) -> Model:
    """A copy of `model` that returns the tensor of this name, and nothing else."""
    copy = model.clone()
    graph = copy.graph
    tensors = [*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs)]
    (tensor,) = (tensor for tensor in tensors if tensor.name == name)
    if any(tensor is given for given in graph.inputs):
        infer_shapes(copy)
        returned = Variable(f"{name}_returned", tensor.dtype, tensor.shape)
        graph.nodes.append(Node("Identity", inputs=[tensor], outputs=[returned]))
        tensor = returned
    graph.outputs = [tensor]
    return copy


def measured(
    place: BlockPlace, student: Model, original: Model, calibration: Calibration, seed: int
) -> PatchEvidence:
    """Evidence from samples.

    Args:
        place: of the student.
        student: the model as changed so far.
        original: the model that returned what is to be returned.
        calibration: the samples.
        seed: by which positions are drawn.
    """
    rng = np.random.default_rng(seed)
    count = min(calibration.extent(original).samples, _SAMPLES)
    some = calibration.some(count)
    quota = -(-rows_for(place) // max(count, 1))
    inputs = some.outputs(exposing(student, place.source.name))
    outputs = some.outputs(exposing(original, place.output.name))
    patches, targets = [], []
    for given, wanted in zip(inputs, outputs, strict=True):
        (x,), (y,) = given.values.values(), wanted.values.values()
        positions = prod((len(y), *y.shape[2:]))
        chosen = rng.permutation(positions)[: quota * given.rows]
        index = np.unravel_index(chosen, (len(y), *y.shape[2:]))
        patches.append(patches_at(x.astype(np.float32), y.shape[2:], place.patches, index))
        targets.append(np.moveaxis(y, 1, -1)[tuple(index)].astype(np.float32))
    order = rng.permutation(sum(map(len, patches)))  # so that the first ones are of all samples
    return PatchEvidence(np.concatenate(patches)[order], np.concatenate(targets)[order])


def patches_at(
    x: np.ndarray,
    sizes: tuple[int, ...],
    how: ConvPatches,
    index: tuple[np.ndarray, ...],
) -> np.ndarray:
    """The patches that some positions of the output read, (rows, kernel..., channels).

    Args:
        x: the input, (samples, channels, sizes...).
        sizes: of the output.
        how: the geometry.
        index: samples and positions, (rows,) each.
    """
    ndim = len(sizes)
    starts, widths = zip(*_pads(x.shape[2:], sizes, how), strict=True)
    padded = np.pad(x, ((0, 0), (0, 0), *zip(starts, widths, strict=True)))
    where = []
    for axis in range(ndim):
        taps = np.arange(how.kernel[axis]) * how.dilations[axis]
        at = index[axis + 1][:, None] * how.strides[axis] + taps  # (rows, taps)
        where.append(at.reshape(len(at), *(-1 if other == axis else 1 for other in range(ndim))))
    samples = index[0].reshape(-1, *[1] * ndim)
    return np.ascontiguousarray(np.moveaxis(padded, 1, -1)[(samples, *where)])


def _pads(
    given: tuple[int, ...], sizes: tuple[int, ...], how: ConvPatches
) -> Iterator[tuple[int, int]]:
    """Zeros before and after each axis, as many as the outputs read."""
    for axis, (before, after) in enumerate(zip(given, sizes, strict=True)):
        reach = (after - 1) * how.strides[axis] + (how.kernel[axis] - 1) * how.dilations[axis] + 1
        start = how.pads[axis] if how.pads else 0
        if how.auto_pad.startswith("SAME"):
            missing = max(reach - before, 0)
            start = missing // 2 if how.auto_pad == "SAME_UPPER" else missing - missing // 2
        if how.auto_pad == "VALID":
            start = 0
        yield start, max(reach - before - start, 0)
