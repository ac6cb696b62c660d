"""Operators that move elements, or give another shape, without computing on them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.element_types import stored_tensor, torch_dtype
from onnxslim.runtime.training.operators.table import (
    Computation,
    NodeForm,
    ints,
    operator,
    plain,
)


@operator("Reshape", 5, 13, 14, 19, 21, 23, 24, 25, sizes=(1,))
def _reshape(form: NodeForm) -> Computation:
    keeps_zeros = form.integer("allowzero")

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = ints(shape)
        if not keeps_zeros:
            sizes = [size or x.shape[i] for i, size in enumerate(sizes)]
        if -1 in sizes and not x.numel():
            known = prod(size for size in sizes if size != -1)
            sizes = [(x.numel() // known if known else 0) if s == -1 else s for s in sizes]
        return x.reshape(tuple(sizes))

    return run


@operator("Transpose", 1, 13, 21, 23, 24, 25)
def _transpose(form: NodeForm) -> Computation:
    perm = form.integers("perm")
    return lambda x: x.permute(perm if perm is not None else tuple(reversed(range(x.dim()))))


@operator("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def _flatten(form: NodeForm) -> Computation:
    axis = form.integer("axis", 1)

    def run(x: Tensor) -> Tensor:
        start = axis + x.dim() if axis < 0 else axis
        return x.reshape(prod(x.shape[:start]), prod(x.shape[start:]))

    return run


@operator("Squeeze", 1, 11, 13, 21, 23, 24, 25, sizes=(1,))
def _squeeze(form: NodeForm) -> Computation:
    attribute = form.integers("axes")

    def run(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = attribute if given is None else ints(given)
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return run


@operator("Unsqueeze", 1, 11, 13, 21, 23, 24, 25, sizes=(1,))
def _unsqueeze(form: NodeForm) -> Computation:
    attribute = form.integers("axes") or []

    def run(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = attribute if given is None else ints(given)
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Shape", 1, 13, 15, 19, 21, 23, 24, 25, gives_sizes=True)
def _shape(form: NodeForm) -> Computation:
    start, end = form.integer("start"), form.node.attrs.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size", 1, 13, 19, 21, 23, 24, 25, gives_sizes=True)
def _size(form: NodeForm) -> Computation:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@operator("Concat", 4, 11, 13)
def _concat(form: NodeForm) -> Computation:
    axis = form.integer("axis")
    return lambda *tensors: torch.cat(tensors, axis)


@operator("Split", 2, 11, 13, 18, sizes=(1,))
def _split(form: NodeForm) -> Computation:
    axis, attribute, parts = form.integer("axis"), form.integers("split"), len(form.node.outputs)

    def run(x: Tensor, given: Tensor | None = None) -> tuple[Tensor, ...]:
        sizes = attribute if given is None else ints(given)
        if sizes is None:
            each = -(-x.shape[axis] // parts)
            sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
        return tuple(torch.split(x, sizes, axis))

    return run


@operator("Slice", 1)
def _slice_by_attributes(form: NodeForm) -> Computation:
    starts, ends, axes = (form.integers(name) for name in ("starts", "ends", "axes"))
    assert starts is not None
    assert ends is not None
    return lambda x: sliced(x, starts, ends, axes, None)


@operator("Slice", 10, 11, 13, sizes=(1, 2, 3, 4))
def _slice(form: NodeForm) -> Computation:
    def run(
        x: Tensor,
        starts: Tensor,
        ends: Tensor,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        return sliced(
            x,
            ints(starts),
            ints(ends),
            None if axes is None else ints(axes),
            None if steps is None else ints(steps),
        )

    return run


def sliced(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    """Slices along axes (None: the first ones), with steps of either sign (None: 1)."""
    for place, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[place] if steps is not None else 1
        wanted = range(x.shape[axis])[
            slice(*_as_python(starts[place], ends[place], step, x.shape[axis]))
        ]
        if step == 1:
            x = x.narrow(axis, wanted.start, len(wanted))
        elif step > 0:
            index = [slice(None)] * x.dim()
            index[axis] = slice(wanted.start, wanted.start + len(wanted) * step, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(wanted, dtype=torch.int64, device=x.device))
    return x


def _as_python(start: int, end: int, step: int, size: int) -> tuple[int | None, int | None, int]:
    """Start, end and step as `slice` takes them: an end below the first element is None."""
    if start < 0:
        start = max(start + size, 0 if step > 0 else -1)
        if start < 0:
            return size, size, 1  # nothing
    if end < 0:
        end += size
    return start, (end if end >= 0 else None if step < 0 else 0), step


@operator("Gather", 1, 11, 13)
def _gather(form: NodeForm) -> Computation:
    axis = form.integer("axis")

    def run(x: Tensor, indices: Tensor) -> Tensor:
        at, flat = axis % x.dim(), _places(indices.reshape(-1), x.shape[axis])
        rows = x.index_select(at, flat)
        if indices.dim() == 1:
            return rows
        return rows.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))

    return run


def _places(indices: Tensor, size: int) -> Tensor:
    """Indices from the start, int64."""
    if indices.dtype == torch.uint8 or indices.dtype == torch.bool:
        return indices.long()
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("GatherElements", 11, 13)
def _gather_elements(form: NodeForm) -> Computation:
    axis = form.integer("axis")
    return lambda x, indices: torch.gather(x, axis, _places(indices, x.shape[axis]))


@operator("GatherND", 11, 12, 13)
def _gather_nd(form: NodeForm) -> Computation:
    batch = form.integer("batch_dims")

    def run(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1]
        index = [_places(i, x.shape[batch + k]) for k, i in enumerate(indices.unbind(-1))]
        for axis in range(batch):
            shape = [1] * index[0].dim() if index else [1] * (indices.dim() - 1)
            shape[axis] = x.shape[axis]
            index.insert(axis, torch.arange(x.shape[axis], device=x.device).reshape(shape))
        return x[tuple(index)] if depth or batch else x

    return run


def _combine(target: Tensor, source: Tensor, reduction: str) -> Tensor:
    if reduction in ("add", "mul"):
        return target + source if reduction == "add" else target * source
    return torch.maximum(target, source) if reduction == "max" else torch.minimum(target, source)


_REDUCE: Final = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterND", 11, 13, 16, 18)
def _scatter_nd(form: NodeForm) -> Computation:
    reduction = form.text("reduction", "none")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        sizes = x.shape[:depth]
        places = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
        for axis in range(depth):  # linear index of each row
            places = places * sizes[axis] + _places(indices[..., axis], sizes[axis])
        rows = x.reshape(prod(sizes), -1)
        new = updates.reshape(places.numel(), -1).to(x.dtype)
        index = places.reshape(-1, 1).expand_as(new)
        return _scattered(rows, 0, index, new, reduction).reshape(x.shape)

    return run


@operator("TensorScatter", 24)
def _tensor_scatter(form: NodeForm) -> Computation:
    axis, is_circular = form.integer("axis", -2), form.text("mode", "linear") == "circular"

    def run(cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
        at, samples = axis % cache.dim(), len(cache)
        places = torch.arange(update.shape[at], device=cache.device)[None]
        if starts is not None:
            places = places + starts.to(cache.device).reshape(-1, 1)
        if is_circular:
            places = places % cache.shape[at]
        shape = [1] * cache.dim()
        shape[0], shape[at] = len(places), update.shape[at]
        index = places.reshape(shape).expand(samples, *update.shape[1:])
        return cache.scatter(at, index, update.to(cache.dtype))

    return run


@operator("Scatter", 9)
@operator("ScatterElements", 11, 13, 16, 18)
def _scatter_elements(form: NodeForm) -> Computation:
    axis, reduction = form.integer("axis"), form.text("reduction", "none")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        index = _places(indices, x.shape[axis])
        return _scattered(x, axis, index, updates.to(x.dtype), reduction)

    return run


def _scattered(x: Tensor, axis: int, index: Tensor, new: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, index, new)
    return x.scatter_reduce(axis, index, new, _REDUCE[reduction], include_self=True)


@operator("Expand", 8, 13, sizes=(1,))
def _expand(form: NodeForm) -> Computation:
    def run(x: Tensor, shape: Tensor) -> Tensor:
        return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))

    return run


@operator("Tile", 6, 13, sizes=(1,))
def _tile(form: NodeForm) -> Computation:
    return lambda x, repeats: x.repeat(ints(repeats)) if x.dim() else x


@operator("ConstantOfShape", 9, 20, 21, 23, 24, 25, sizes=(0,))
def _constant_of_shape(form: NodeForm) -> Computation:
    value = form.array("value")
    stored = torch.zeros(1) if value is None else stored_tensor(value)
    if stored is None:
        raise form.unsupported("its values are no numbers")
    filled = stored.to(form.dtype) if stored.is_floating_point() else stored
    value_here = filled.to(form.device).reshape(())
    return lambda shape: value_here.expand(tuple(ints(shape)))


@operator("Range", 11, 27, sizes=(0, 1, 2), gives_sizes=True)
def _range(form: NodeForm) -> Computation:
    def run(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        first, last, step = start.item(), limit.item(), delta.item()
        count = max(int(np.ceil((last - first) / step)), 0)
        return start + torch.arange(count, dtype=start.dtype) * delta

    return run


@operator("Trilu", 14, sizes=(1,))
def _trilu(form: NodeForm) -> Computation:
    of = torch.triu if form.integer("upper", 1) else torch.tril
    return lambda x, k=None: of(x, 0 if k is None else ints(k)[0])


@operator("OneHot", 9, 11, 28, sizes=(1,))
def _one_hot(form: NodeForm) -> Computation:
    axis = form.integer("axis", -1)

    def run(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        count = ints(depth)[0]
        at = axis % (indices.dim() + 1)
        wanted = torch.where(indices < 0, indices + count, indices).unsqueeze(at)
        shape = [1] * wanted.dim()
        shape[at] = count
        numbers = torch.arange(count, device=indices.device).reshape(shape)
        return torch.where(wanted == numbers, values[1], values[0])

    return run


@operator("EyeLike", 9, 22)
def _eye_like(form: NodeForm) -> Computation:
    offset = form.integer("k")
    wanted = torch_dtype(form.integer("dtype"), form.dtype) if form.has("dtype") else None

    def run(x: Tensor) -> Tensor:
        return torch.diag_embed(torch.ones(max(x.shape)), offset)[: x.shape[0], : x.shape[1]].to(
            wanted or x.dtype
        )

    return run


@operator("Compress", 9, 11, 28)
def _compress(form: NodeForm) -> Computation:
    axis = form.node.attrs.get("axis")

    def run(x: Tensor, condition: Tensor) -> Tensor:
        x, at = (x.reshape(-1), 0) if axis is None else (x, int(axis))
        return x.index_select(at, torch.nonzero(condition.reshape(-1)).reshape(-1))

    return run


@plain("NonZero", 9, 13)
def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).T if x.dim() else torch.nonzero(x.reshape(1)).T


@operator("TopK", 1)
@operator("TopK", 10, 11, 24, sizes=(1,))
def _top_k(form: NodeForm) -> Computation:
    axis, largest = form.integer("axis", -1), bool(form.integer("largest", 1))
    fixed = form.integer("k")

    def run(x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
        count = fixed if k is None else ints(k)[0]
        # equal values come in the order of their indices, which torch.topk does not promise
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return run


@operator("DepthToSpace", 1, 11, 13, 28)
def _depth_to_space(form: NodeForm) -> Computation:
    b, columns_first = form.integer("blocksize"), form.text("mode", "DCR") == "DCR"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if columns_first:
            x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, c // b**2, h * b, w * b)

    return run


@operator("SpaceToDepth", 1, 13, 28)
def _space_to_depth(form: NodeForm) -> Computation:
    b = form.integer("blocksize")
    order = (0, 3, 5, 1, 2, 4) if form.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // b, b, w // b, b).permute(order)
        return x.reshape(n, c * b * b, h // b, w // b)

    return run


@operator("ReverseSequence", 10, 28)
def _reverse_sequence(form: NodeForm) -> Computation:
    batch, time = form.integer("batch_axis", 1), form.integer("time_axis")

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        x = x.movedim((time, batch), (0, 1))
        steps = torch.arange(x.shape[0], device=x.device)[:, None]
        lengths = lengths.to(x.device)[None]
        order = torch.where(steps < lengths, lengths - 1 - steps, steps)
        order = order.reshape(*order.shape, *[1] * (x.dim() - 2)).expand_as(x)
        return torch.gather(x, 0, order).movedim((0, 1), (time, batch))

    return run


@operator("Pad", 2)
def _pad_by_attributes(form: NodeForm) -> Computation:
    pads, mode = form.integers("pads") or [], form.text("mode", "constant")
    value = form.number("value")
    return lambda x: padded(x, pads, mode, value)


@operator("Pad", 11, 13, 18, 19, 21, 23, 24, 25, sizes=(1, 3))
def _pad(form: NodeForm) -> Computation:
    mode = form.text("mode", "constant")

    def run(
        x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        sizes = ints(pads)
        if axes is not None:
            rank, half, whole = x.dim(), len(sizes) // 2, [0] * (2 * x.dim())
            for place, axis in enumerate(ints(axes)):
                whole[axis % rank] = sizes[place]
                whole[axis % rank + rank] = sizes[half + place]
            sizes = whole
        if value is None or not value.requires_grad:
            return padded(x, sizes, mode, 0 if value is None else value.item())
        inside = padded(torch.ones_like(x, dtype=torch.bool), sizes, mode, False)
        return torch.where(inside, padded(x, sizes, mode), value)

    return run


def padded(x: Tensor, pads: Sequence[int], mode: str, value: float = 0) -> Tensor:
    """`x` with `pads` = (starts of all axes, ends of all axes); negative ones cut off."""
    rank = x.dim()
    begins, ends = list(pads[:rank]), list(pads[rank:])
    if mode == "constant":
        both = [size for axis in reversed(range(rank)) for size in (begins[axis], ends[axis])]
        return functional.pad(x, both, value=value) if any(both) else x
    for axis in range(rank):
        if begins[axis] or ends[axis]:
            places = _padded_places(x.shape[axis], begins[axis], ends[axis], mode)
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _padded_places(size: int, begin: int, end: int, mode: str) -> np.ndarray:
    cut = np.arange(size)[max(-begin, 0) : size - max(-end, 0)]
    kind = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    return np.pad(cut, (max(begin, 0), max(end, 0)), mode=kind)  # type: ignore[call-overload]
