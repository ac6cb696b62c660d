"""Sequences of tensors, and values that may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onnxslim.runtime.training.operators.table import Computation, NodeForm, ints, operator, plain

Tensors = Sequence[Tensor]


@operator("SequenceEmpty", 11)
def _empty(form: NodeForm) -> Computation:
    return list


@plain("SequenceConstruct", 11)
def _construct(*tensors: Tensor) -> list[Tensor]:
    return list(tensors)


@plain("SequenceAt", 11)
def _at(sequence: Tensors, position: Tensor) -> Tensor:
    return sequence[int(position)]


@plain("SequenceInsert", 11)
def _insert(sequence: Tensors, tensor: Tensor, position: Tensor | None = None) -> list[Tensor]:
    found = list(sequence)
    found.insert(len(found) if position is None else int(position), tensor)
    return found


@plain("SequenceErase", 11)
def _erase(sequence: Tensors, position: Tensor | None = None) -> list[Tensor]:
    found = list(sequence)
    del found[-1 if position is None else int(position)]
    return found


@operator("SequenceLength", 11, gives_sizes=True)
def _length(form: NodeForm) -> Computation:
    return lambda sequence: torch.tensor(len(sequence))


@operator("SplitToSequence", 11, 24, sizes=(1,))
def _split_to_sequence(form: NodeForm) -> Computation:
    axis, keeps = form.integer("axis"), form.integer("keepdims", 1)

    def run(x: Tensor, split: Tensor | None = None) -> list[Tensor]:
        if split is None:
            parts = torch.split(x, 1, axis)
            return [part if keeps else part.squeeze(axis) for part in parts]
        return list(torch.split(x, ints(split) if split.dim() else ints(split)[0], axis))

    return run


@operator("ConcatFromSequence", 11)
def _concat_from_sequence(form: NodeForm) -> Computation:
    axis, is_new = form.integer("axis"), form.integer("new_axis")
    return lambda sequence: (torch.stack if is_new else torch.cat)(list(sequence), axis)


@plain("Optional", 15, 28)
def _optional(value: Any = None) -> Any:
    return value


@plain("OptionalGetElement", 15, 18, 28)
def _get_element(value: Any) -> Any:
    return value


@operator("OptionalHasElement", 15, 18, 28, gives_sizes=True)
def _has_element(form: NodeForm) -> Computation:
    return lambda value=None: torch.tensor(value is not None)
