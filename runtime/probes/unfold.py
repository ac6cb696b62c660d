"""Unfold a layer's sources into the vectors x that its weight W multiplies, its output into W·x.

For convolutions this is im2col (Chellapilla, Puri and Simard 2006). What a recurrent operator makes
of its weights is no output of it: `products_of` computes y from x.

Both come as arrays (groups, rows, features), one row for each x. Rows are ordered by sample, the
first axis of the tensor, then by position; row i of x and row i of y belong together. Patches are
gathered only for the rows asked for, since all patches of a map can take many times its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxslim.analysis.linear_operators import (
    ConvPatches,
    RecurrentSteps,
    TableRows,
    Unfolding,
    Vectors,
)


@dataclass(frozen=True)
class UnfoldedRows:
    """All rows of a tensor, gathered on demand."""

    count: int
    features: int  # length of each x
    groups: int  # each row holds a vector for every group
    _source: _Windows | _Products | np.ndarray

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows by index, as (groups, len(index), features)."""
        if isinstance(self._source, np.ndarray):
            return self._source[:, index]
        if isinstance(self._source, _Products):
            return self._source.take(index)
        return self._source.take(index).transpose(1, 0, 2)


@dataclass(frozen=True)
class _Windows:
    """Patches of a padded map as a view (N, C, out..., kernel...)."""

    view: np.ndarray
    groups: int

    def take(self, index: np.ndarray) -> np.ndarray:
        ndim = (self.view.ndim - 2) // 2
        # row number -> sample and output position
        sizes = (self.view.shape[0], *self.view.shape[2 : 2 + ndim])
        sample, *place = np.unravel_index(index, sizes)
        at: tuple[np.ndarray | slice, ...] = (sample, slice(None), *place)
        patches = self.view[at]  # (rows, C, kernel...)
        return patches.reshape(len(index), self.groups, -1)  # (rows, g, C/g·k)


@dataclass(frozen=True)
class _Products:
    """W·x for rows x; the weight is (groups, outputs, inputs)."""

    inputs: UnfoldedRows
    weight: np.ndarray

    def take(self, index: np.ndarray) -> np.ndarray:
        # (g, rows, inputs)·(g, inputs, outputs)
        return np.asarray(np.matmul(self.inputs.take(index), self.weight.swapaxes(1, 2)))


def products_of(rows: UnfoldedRows, weight: np.ndarray) -> UnfoldedRows:
    """Every y = W·x for a canonical weight, (groups, outputs, inputs)."""
    return UnfoldedRows(rows.count, weight.shape[1], rows.groups, _Products(rows, weight))


def unfold_input(sources: Sequence[np.ndarray | None], unfolding: Unfolding) -> UnfoldedRows:
    """Every x that a layer with this unfolding reads from its sources.

    Args:
        sources: as `WeightLayer.sources` lists them.
        unfolding: of the layer.
    """
    array = sources[0]
    assert array is not None
    if isinstance(unfolding, RecurrentSteps):
        rows = _step_rows(array, unfolding, *sources[1:])
        return UnfoldedRows(rows.shape[1], rows.shape[2], rows.shape[0], rows)
    assert not isinstance(unfolding, TableRows), "indices are no vectors"
    if isinstance(unfolding, ConvPatches):
        return _conv_rows(array, unfolding)
    rows = _vector_rows(array, unfolding, unfolding.axis)
    if unfolding.scale != 1:
        rows = rows * rows.dtype.type(unfolding.scale)
    return UnfoldedRows(rows.shape[1], rows.shape[2], rows.shape[0], rows)


def unfold_output(array: np.ndarray, unfolding: Unfolding) -> UnfoldedRows:
    """Every y in the output `array` of such a layer, in the order of `unfold_input`."""
    if isinstance(unfolding, ConvPatches):
        count, channels = array.shape[:2]
        groups = unfolding.groups
        # (N, g·o, positions) -> (g, N·positions, o)
        split = array.reshape(count, groups, channels // groups, -1).transpose(1, 0, 3, 2)
        rows = split.reshape(groups, -1, channels // groups)
    else:
        assert isinstance(unfolding, Vectors), "the output is not W·x"
        if unfolding.out_axis is None:
            array = array[..., None]
        elif unfolding.groups > 1 and array.ndim == len(unfolding.batch) + 1:
            array = array[..., None, :]  # a stack times one vector: a single row for each matrix
        rows = _vector_rows(array, unfolding, unfolding.out_axis or -1)
    return UnfoldedRows(rows.shape[1], rows.shape[2], rows.shape[0], rows)


# ---------------------------------------------------------------------------- matrices


def _vector_rows(array: np.ndarray, unfolding: Vectors, axis: int) -> np.ndarray:
    if array.ndim < 2:  # of a scalar, where onnxruntime's Gelu drops the axis of a constant [1]
        array, axis = array.reshape(1, -1), -1
    if axis == -2:
        array = array.swapaxes(-1, -2)
    # (..., rows, features)
    features = array.shape[-1]
    if unfolding.groups == 1:
        return array.reshape(1, -1, features)
    return _stacked_rows(array, unfolding.batch)


def _stacked_rows(array: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """Rows (groups, rows, features) for a stack of weights, one group for each matrix."""
    *lead, rows, features = array.shape
    lead = [1] * (len(batch) - len(lead)) + lead
    first = len(lead) - len(batch)
    array = array.reshape(*lead, rows, features)
    # a stack axis of size 1 is broadcast over x: its matrices of x count as rows of one group
    wide = [size if size > 1 else lead[first + i] for i, size in enumerate(batch)]
    array = np.broadcast_to(array, (*lead[:first], *wide, rows, features))
    grouped = [first + i for i, size in enumerate(batch) if size > 1]
    others = [i for i in range(len(lead)) if i not in grouped]
    moved = array.transpose(*grouped, *others, len(lead), len(lead) + 1)
    return moved.reshape(prod(batch), -1, features)


# ---------------------------------------------------------------------------- recurrent steps


def _step_rows(
    array: np.ndarray,
    steps: RecurrentSteps,
    lengths: np.ndarray | None = None,
    first: np.ndarray | None = None,
) -> np.ndarray:
    """Rows (directions, rows, features), sequence by sequence, without steps behind their ends.

    Args:
        array: inputs (time, batch, features) or states (time, directions, batch, features); with
            the batch first (batch, time, features) or (batch, time, directions, features).
        steps: how the operator goes through them.
        lengths: steps of each sequence, (batch,); None: all.
        first: the states before the first step, (directions, batch, features) or (batch,
            directions, features); None: zeros. Of inputs it is not used.
    """
    if steps.of_states:
        # -> (directions, batch, time, features)
        states = array.transpose((2, 0, 1, 3) if steps.is_batch_first else (1, 2, 0, 3))
        begins = np.zeros_like(states[:, :, 0]) if first is None else first
        if first is not None and steps.is_batch_first:
            begins = first.swapaxes(0, 1)
    else:
        inputs = array if steps.is_batch_first else array.swapaxes(0, 1)
        states = np.broadcast_to(inputs, (steps.groups, *inputs.shape))
    batch, time = states.shape[1:3]
    ends = np.full(batch, time) if lengths is None else lengths
    used = np.arange(time) < ends[:, None]  # (batch, time)
    if not steps.of_states:
        return states[:, used]
    before = np.empty_like(states)
    for direction, is_backwards in enumerate(steps.backwards):
        own, start = states[direction], begins[direction]
        if is_backwards:
            before[direction, :, :-1] = own[:, 1:]
            filled = np.flatnonzero(ends > 0)
            before[direction, filled, ends[filled] - 1] = start[filled]
        else:
            before[direction, :, 1:] = own[:, :-1]
            before[direction, :, 0] = start
    return before[:, used]


# ---------------------------------------------------------------------------- patches


def _conv_rows(array: np.ndarray, patches: ConvPatches) -> UnfoldedRows:
    view = _transposed_windows(array, patches) if patches.transposed else _windows(array, patches)
    ndim = len(patches.kernel)
    count = view.shape[0] * prod(view.shape[2 : 2 + ndim])
    features = array.shape[1] // patches.groups * prod(patches.kernel)
    return UnfoldedRows(count, features, patches.groups, _Windows(view, patches.groups))


def _windows(array: np.ndarray, patches: ConvPatches) -> np.ndarray:
    sizes = array.shape[2:]
    begins, ends = _conv_pads(sizes, patches)
    padded = np.pad(array, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    return _dilated(padded, patches.kernel, patches.dilations, patches.strides)


def _conv_pads(sizes: tuple[int, ...], p: ConvPatches) -> tuple[list[int], list[int]]:
    """Zeros before and after each spatial axis (ONNX, Conv: `pads` and `auto_pad`)."""
    ndim = len(sizes)
    if p.auto_pad == "VALID":
        return [0] * ndim, [0] * ndim
    if p.auto_pad == "NOTSET":
        return list(p.pads[:ndim]), list(p.pads[ndim:])
    # SAME: the output has ceil(size / stride) positions
    totals = [
        max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        for size, stride, kernel, dilation in zip(
            sizes, p.strides, p.kernel, p.dilations, strict=True
        )
    ]
    return _split_same(totals, upper=p.auto_pad == "SAME_UPPER")


def _split_same(totals: list[int], *, upper: bool) -> tuple[list[int], list[int]]:
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if upper else (large, small)


def _transposed_windows(array: np.ndarray, p: ConvPatches) -> np.ndarray:
    """The input values that each output position of a ConvTranspose reads.

    y[t] = Σ_k W[k]·up[t + begin − k·dilation], where `up` is x with stride − 1 zeros between its
    elements: a Conv on `up`, its kernel read backwards.
    """
    sizes = array.shape[2:]
    begins, outs = _transposed_pads(sizes, p)
    # up: x with stride − 1 zeros between its elements
    spread = [(size - 1) * stride + 1 for size, stride in zip(sizes, p.strides, strict=True)]
    up = np.zeros((*array.shape[:2], *spread), array.dtype)
    up[(slice(None), slice(None), *(slice(None, None, stride) for stride in p.strides))] = array
    # pad or crop, so that the first window starts at up[begin − (kernel − 1)·dilation]
    for axis, (kernel, dilation) in enumerate(zip(p.kernel, p.dilations, strict=True)):
        reach = (kernel - 1) * dilation
        left = reach - begins[axis]
        up = _pad_or_crop(up, axis + 2, left, outs[axis] + reach - left - up.shape[axis + 2])
    view = _dilated(up, p.kernel, p.dilations, (1,) * len(p.kernel))
    return np.flip(view, tuple(range(-len(p.kernel), 0)))


def _transposed_pads(sizes: tuple[int, ...], p: ConvPatches) -> tuple[list[int], list[int]]:
    """How much of the output is cut off at the beginning of each axis, and the sizes of the output.

    See ONNX, ConvTranspose: size = stride·(input − 1) + output_padding + (kernel − 1)·dilation + 1
    − pads, or `output_shape`, which settles the pads.
    """
    ndim = len(sizes)
    extra = p.output_padding or (0,) * ndim
    full = [
        stride * (size - 1) + more + (kernel - 1) * dilation + 1
        for size, stride, more, kernel, dilation in zip(
            sizes, p.strides, extra, p.kernel, p.dilations, strict=True
        )
    ]
    if p.output_shape:
        outs = list(p.output_shape[-ndim:])
    elif p.auto_pad.startswith("SAME"):
        outs = [size * stride for size, stride in zip(sizes, p.strides, strict=True)]
    elif p.auto_pad == "VALID":
        return [0] * ndim, full
    else:
        begins, ends = p.pads[:ndim], p.pads[ndim:]
        return list(begins), [f - b - e for f, b, e in zip(full, begins, ends, strict=True)]
    totals = [max(f - out, 0) for f, out in zip(full, outs, strict=True)]
    if not p.output_shape:
        # a kernel shorter than the stride cannot fill the size that SAME asks for
        outs = [f - total for f, total in zip(full, totals, strict=True)]
    return _split_same(totals, upper=p.auto_pad == "SAME_UPPER")[0], outs


def _pad_or_crop(array: np.ndarray, axis: int, left: int, right: int) -> np.ndarray:
    """`array` with zeros at both ends of an axis; a negative number removes elements."""
    cut = [slice(None)] * array.ndim
    cut[axis] = slice(max(-left, 0), array.shape[axis] - max(-right, 0))
    widths = [(0, 0)] * array.ndim
    widths[axis] = (max(left, 0), max(right, 0))
    return np.pad(array[tuple(cut)], widths)


def _dilated(
    padded: np.ndarray,
    kernel: tuple[int, ...],
    dilations: tuple[int, ...],
    strides: tuple[int, ...],
) -> np.ndarray:
    """Patches as a view (N, C, out..., kernel...)."""
    ndim = len(kernel)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, 2 + ndim))
    # windows as long as the dilated kernel at every offset, then every stride-th window and every
    # dilation-th element of it
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    steps = tuple(slice(None, None, step) for step in (*strides, *dilations))
    return view[(slice(None), slice(None), *steps)]
