"""What `torch.utils.data` has, as others see it: tensors, a dataset, a shuffling loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class FakeTensor:
    """A tensor that becomes an array only after `detach` and `cpu`, as one with gradients does."""

    def __init__(self, values: Any, *, is_free: bool = False) -> None:
        self.values, self.is_free = np.asarray(values), is_free

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> object:
        return self.values.dtype

    def detach(self) -> FakeTensor:
        return FakeTensor(self.values)

    def cpu(self) -> FakeTensor:
        return FakeTensor(self.values, is_free=True)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if not self.is_free:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.values if dtype is None else self.values.astype(dtype)


class FakeDataset:
    """Pairs of a sample and its label by number; behind the end it gives nonsense, not an error."""

    def __init__(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, number: int) -> tuple[FakeTensor, int]:
        number = number % len(self)
        return FakeTensor(self.values[number]), int(self.labels[number])


class FakeLoader:
    """Batches of a dataset in another order each time."""

    def __init__(self, data: FakeDataset, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size
        self.begun = 0

    def __iter__(self) -> Iterator[list[FakeTensor]]:
        self.begun += 1
        order = np.random.default_rng(self.begun).permutation(len(self.data))
        for start in range(0, len(order), self.batch_size):
            pairs = [self.data[number] for number in order[start : start + self.batch_size]]
            yield [
                FakeTensor(np.stack([tensor.values for tensor, _ in pairs])),
                FakeTensor(np.array([label for _, label in pairs])),
            ]
