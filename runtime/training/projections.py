"""Projections: what floats that learn become where a stored weight may not be any float.

Support   which elements may be other than zero: the same, others, or fewer and fewer
Growth    which elements are on their values already, and stay
Latent    floats with both
Choice    which values of tables elements take

Each is decided anew by `settle`, after floats have moved; in between it is a function that torch
differentiates. Gradients pass as if nothing had been projected (Bengio et al. 2013,
arXiv:1308.3432).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from onnxslim.codebook.weight import Stage
from onnxslim.runtime.training.parametrisation import Moment, Parametrisation
from onnxslim.services.training import CodeMovement, ZeroMovement

_GROWTH: Final = (0.5, 0.75, 0.875, 1.0)  # Zhou et al. 2017, section 3.1
_SHRUNK: Final = 0.6  # share of the training after which all zeros are there
_DECISIONS: Final = 100  # until then
_NEW: Final = 0.01  # share of a step in the mean of squared gradients
_MOST_SUMS: Final = 256  # sums of values of all stages that are compared with each element
_CHUNK: Final = 1 << 22  # distances that are in memory at once


def grown_share(done: float) -> float:
    """The share of elements that is on its values when the share `done` of training is over."""
    return _GROWTH[_growth_step(done)]


def zeros_are_grown(done: float) -> bool:
    """Whether all zeros are there when the share `done` of training is over."""
    return done >= _SHRUNK


def straight_through(projected: Tensor, floats: Tensor) -> Tensor:
    """`projected`, with a gradient to `floats` as if they were it."""
    return projected + (floats - floats.detach())


# ---------------------------------------------------------------------------- which elements


class Support:
    """Which elements may be other than zero: always the same.

    Args:
        kept: whether an element is other than zero at first.
    """

    is_free: ClassVar[bool] = False
    """Whether elements that are zero in the file may be other than zero."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept
        self._count = int(kept.sum())

    def __call__(self, values: Tensor) -> Tensor:
        """`values`, with zeros outside."""
        return values * self.kept

    def settle(self, floats: Tensor, moment: Moment) -> None:
        """Decide anew."""


class MovingSupport(Support):
    """As many as at first, those of the largest magnitude; gradients reach all floats.

    Dynamic network surgery (Guo et al. 2016, arXiv:1608.04493). We differ: one threshold, by the
    number of elements, instead of two by the spread of the weight.
    """

    is_free: ClassVar[bool] = True

    def __call__(self, values: Tensor) -> Tensor:
        """See `Support`."""
        return straight_through(super().__call__(values).detach(), values)

    def settle(self, floats: Tensor, moment: Moment) -> None:
        """See `Support`."""
        self.kept.copy_(largest(floats.detach().abs(), self._count))


class ShrinkingSupport(Support):
    """All elements at first, and fewer and fewer, until there are as many as given.

    Zhu and Gupta 2017, arXiv:1710.01878, equation 1, on the counts of each weight. We differ: those
    become zero that cost least, w²·h of a loss whose second derivative is h (LeCun et al. 1990).
    For h stands what Adam divides steps by, the root of a mean of squared gradients (Kingma, Ba
    2015, arXiv:1412.6980). So a weight of an input that never changes costs nothing, however large
    it is.

    Args:
        kept: whether an element is other than zero in the file.
        step: the number of the last decision, -1.
        slopes: mean squares of gradients, zeros.
    """

    is_free: ClassVar[bool] = True

    def __init__(self, kept: Tensor, step: Tensor, slopes: Tensor) -> None:
        super().__init__(kept)
        self._step, self._slopes = step, slopes

    def settle(self, floats: Tensor, moment: Moment) -> None:
        """See `Support`."""
        if floats.grad is not None:
            self._slopes.lerp_(floats.grad.square(), _NEW)
        step = min(int(moment.share / _SHRUNK * _DECISIONS), _DECISIONS)
        if step == int(self._step):
            return
        is_first = int(self._step) < 0
        left = (1 - step / _DECISIONS) ** 3 * (floats.numel() - self._count)
        ranks = floats.detach().abs()
        if self._slopes.any():
            ranks = ranks * self._slopes.pow(0.25)  # the root of the cost
        if not is_first:  # what became zero stays so, whatever momentum still adds to it
            ranks = torch.where(self.kept, ranks, -1.0)
        self.kept.copy_(largest(ranks, self._count + round(left)))
        self._step.fill_(step)


class Growth:
    """Which elements are on their values: a growing share, the largest first.

    Incremental network quantization (Zhou et al. 2017, arXiv:1702.03044). As the weight comes in,
    all elements are.

    Args:
        held: truth values, all of them true.
        step: the number of the last decision, -1.
    """

    def __init__(self, held: Tensor, step: Tensor) -> None:
        self.held, self._step = held, step

    def settle(self, magnitudes: Tensor, moment: Moment) -> None:
        """Let a larger share stay."""
        step = _growth_step(moment.share)
        if step == int(self._step):
            return
        first = int(self._step) < 0
        ranks = magnitudes if first else torch.where(self.held, torch.inf, magnitudes)
        self.held.copy_(largest(ranks, round(_GROWTH[step] * ranks.numel())))
        self._step.fill_(step)


def largest(values: Tensor, count: int) -> Tensor:
    """Whether each of `values` is one of the `count` largest."""
    found = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    found[values.reshape(-1).topk(count).indices] = True
    return found.reshape(values.shape)


def _growth_step(done: float) -> int:
    return min(int(done * len(_GROWTH)), len(_GROWTH) - 1)


class Latent:
    """Floats that learn in place of what the file may hold.

    Args:
        owner: the weight that they are part of.
        values: as the file has them.
        zeros_stay: whether its zeros are there by choice.
        vector: numbers, side by side, that one code stands for; 0: there are no codes.
    """

    def __init__(
        self, owner: Parametrisation[Any], values: np.ndarray, *, zeros_stay: bool, vector: int
    ) -> None:
        request = owner.settings.request
        self.floats = owner.learn(values)
        self._vector, self._support, self._growth = vector, None, None
        self._stayed: Tensor | None = None
        if zeros_stay and request.zeros is not ZeroMovement.RELEASE:
            self._support = _support(owner, values != 0, request.zeros, is_coded=bool(vector))
        if vector and request.codes is CodeMovement.GROW:
            held = owner.decide(owner.constant(np.ones(values.size // vector, bool)))
            self._growth = Growth(held, owner.decide(owner.constant(np.array(-1))))

    def weight(self, exact: Tensor | None = None, passing: Tensor | None = None) -> Tensor:
        """The weight.

        Args:
            exact: the values that the elements take, without a gradient to the floats; None: the
                floats are the weight.
            passing: the same with a gradient to the floats; None: as if they were the floats.
        """
        if exact is None:
            made = self.floats
        elif self._growth is not None:
            held = self._by_element(self._growth.held)
            made = torch.where(held, exact, self.floats)
        else:
            made = straight_through(exact, self.floats) if passing is None else passing
        return made if self._support is None else self._support(made)

    def settle(self, moment: Moment) -> None:
        """Decide anew which elements are zero, and which are on their values."""
        if self._support is not None:
            self._support.settle(self.floats, moment)
        if self._growth is not None:
            before = self._growth.held.clone()
            floats = self.floats.detach()
            kept = floats if self._support is None else floats * self._support.kept
            magnitudes = torch.linalg.vector_norm(kept.reshape(-1, self._vector), dim=1)
            self._growth.settle(magnitudes, moment)
            self._stayed = before & self._growth.held

    def chance(self, moment: Moment) -> torch.Generator | None:
        """What rounding draws from; what is to stay on its value takes the nearest."""
        return None if self._growth is not None else moment.chance

    def begin(self, values: np.ndarray) -> None:
        """Let the floats start from other values."""
        with torch.no_grad():
            wide = torch.from_numpy(np.ascontiguousarray(values, np.float64).copy())
            self.floats.copy_(wide.reshape(self.floats.shape))
            if self._support is not None and not self._support.is_free:
                self.floats.mul_(self._support.kept).add_(0.0)  # -0.0 is a value to a sparse form

    @property
    def stays(self) -> Tensor | None:
        """Whether each code stays as it is; None: all may move."""
        fixed = None if self._stayed is None else self._by_element(self._stayed)
        if self._support is None or self._support.is_free:
            return fixed
        return ~self._support.kept if fixed is None else fixed | ~self._support.kept

    @property
    def zeros(self) -> Tensor | None:
        """Whether each element is zero; None: not known from the floats."""
        is_moved = self._support is not None and self._support.is_free
        return ~self._support.kept if self._support is not None and is_moved else None

    def _by_element(self, by_code: Tensor) -> Tensor:
        return by_code.repeat_interleave(self._vector).reshape(self.floats.shape)


def _support(
    owner: Parametrisation[Any], kept: np.ndarray, movement: ZeroMovement, *, is_coded: bool
) -> Support:
    """Which elements of a weight with zeros may be other than zero."""
    first = owner.decide(owner.constant(kept))
    if movement is ZeroMovement.MOVE:
        return MovingSupport(first)
    if movement is ZeroMovement.GROW and not is_coded:  # codes have no values in between
        step = owner.decide(owner.constant(np.array(-1)))
        slopes = owner.decide(owner.constant(np.zeros(kept.shape, np.float32)))
        return ShrinkingSupport(first, step, slopes)
    return Support(first)


# ---------------------------------------------------------------------------- which values


class Choice:
    """Which values of tables each element takes: the sum of one of each stage.

    Where all stages together have few sums, the nearest sum is taken. Else each stage in turn takes
    the value that is nearest to what the others leave, so that no choice is worse than the one
    before.

    Args:
        owner: the weight that they are part of.
        stages: codes and tables of the file.
    """

    def __init__(self, owner: Parametrisation[Any], stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._types = [stage.codes.dtype for stage in stages]
        self.codes = [
            owner.decide(owner.constant(stage.codes.astype(np.int64))) for stage in stages
        ]
        shapes = {(stage.blocks, stage.vector) for stage in stages}
        is_joint = shapes == {(stages[0].blocks, 1)}
        is_joint &= prod(stage.levels for stage in stages) <= _MOST_SUMS
        numbers = tuple(range(len(stages)))
        self._turns = [numbers] if is_joint else [(number,) for number in numbers]

    def value(self, tables: Sequence[Tensor]) -> Tensor:
        """The sums, one number after the other; gradients reach `tables`."""
        parts = [self._part(number, table) for number, table in enumerate(tables)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def stored(self) -> list[np.ndarray]:
        """The codes, one stage after the other, in the types of the file."""
        pairs = zip(self.codes, self._types, strict=True)
        return [codes.cpu().numpy().astype(dtype) for codes, dtype in pairs]

    def settle(self, latent: Latent, tables: Sequence[Tensor], moment: Moment) -> None:
        """Decide anew, and keep floats in the reach of their tables."""
        tables = [table.detach() for table in tables]
        for turn in self._turns:
            own = sum(self._part(number, tables[number]) for number in turn)
            rest = latent.floats.detach().reshape(-1) - (self.value(tables) - own)
            if self._stages[turn[0]].vector > 1:
                self._choose_vectors(turn[0], rest, tables[turn[0]], latent)
            else:
                self._choose_numbers(turn, rest, tables, latent, moment)

    def _part(self, number: int, table: Tensor) -> Tensor:
        stage, codes = self._stages[number], self.codes[number]
        rows = table.reshape(-1, stage.vector)
        return rows.index_select(0, self._places(number, codes).reshape(-1)).reshape(-1)

    def _places(self, number: int, codes: Tensor) -> Tensor:
        """Rows of the tables that lie one behind the other, (B, n)."""
        if len(codes) == 1:
            return codes
        first = torch.arange(len(codes), device=codes.device) * self._stages[number].levels
        return codes + first[:, None]

    def _choose_numbers(
        self,
        turn: tuple[int, ...],
        rest: Tensor,
        tables: Sequence[Tensor],
        latent: Latent,
        moment: Moment,
    ) -> None:
        """The sums of the stages in `turn` nearest to `rest`, or a neighbour by chance."""
        blocks = self._stages[turn[0]].blocks
        sums, old = rest.new_zeros(blocks, 1), torch.zeros_like(self.codes[turn[0]])
        for number in turn:
            levels = self._stages[number].levels
            own = tables[number].reshape(blocks, 1, levels)
            sums = (sums[:, :, None] + own).reshape(blocks, -1)
            old = old * levels + self.codes[number]
        values = rest.reshape(blocks, -1)  # (B, n)
        ordered, order = torch.sort(sums, dim=1, stable=True)
        if ordered.shape[1] > 1:
            new = order.gather(1, _neighbours(ordered, values, latent.chance(moment)))
        else:
            new = torch.zeros_like(old)
        if latent.zeros is not None:  # those outside of the support take the value of zero
            nothing = (sums == 0).to(torch.int64).argmax(1, keepdim=True)
            new = torch.where(latent.zeros.reshape(old.shape), nothing, new)
        stays = sums.gather(1, new) == sums.gather(1, old)
        if latent.stays is not None:
            stays |= latent.stays.reshape(old.shape)
        new = torch.where(stays, old, new)
        for number in reversed(turn):
            levels = self._stages[number].levels
            self.codes[number].copy_(new % levels)
            new = new // levels
        if len(self._turns) == 1:
            _keep_in_reach(latent.floats.detach().view(blocks, -1), ordered)

    def _choose_vectors(self, number: int, rest: Tensor, table: Tensor, latent: Latent) -> None:
        """The vectors of a stage nearest to those of `rest`."""
        stage, codes = self._stages[number], self.codes[number]
        vectors = rest.reshape(stage.blocks, -1, stage.vector)  # (B, n, v)
        tables = table.reshape(stage.blocks, stage.levels, stage.vector)
        stays = latent.stays
        stays = None if stays is None else stays.reshape(vectors.shape)[..., 0]
        for block, start, end in self._pieces(codes, stage.levels):
            given, values = vectors[block, start:end], tables[block]
            # the squares of distances but for those of `given`, the same for all
            distances = values.square().sum(1) - 2 * given @ values.T
            least, new = distances.min(1)
            old = codes[block, start:end]
            keeps = distances.gather(1, old[:, None])[:, 0] <= least
            if stays is not None:
                keeps |= stays[block, start:end]
            old.copy_(torch.where(keeps, old, new))

    @staticmethod
    def _pieces(codes: Tensor, levels: int) -> Iterator[tuple[int, int, int]]:
        step = max(_CHUNK // levels, 1)
        for block, row in enumerate(codes):
            for start in range(0, len(row), step):
                yield block, start, start + step


def _neighbours(ordered: Tensor, values: Tensor, chance: torch.Generator | None) -> Tensor:
    """Places in `ordered`, (B, P), ascending, of what `values`, (B, n), are rounded to.

    With `chance` the lower or the upper neighbour, in proportion to the distance from the other
    (Gupta et al. 2015, arXiv:1502.02551; of two values the rule of Courbariaux et al. 2015,
    arXiv:1511.00363); else the nearest.
    """
    values = values.contiguous()
    if chance is None:
        borders = (ordered[:, 1:] + ordered[:, :-1]) / 2
        return torch.searchsorted(borders, values)
    low = (torch.searchsorted(ordered, values, right=True) - 1).clamp(0, ordered.shape[1] - 2)
    bottom, top = ordered.gather(1, low), ordered.gather(1, low + 1)
    share = torch.nan_to_num((values - bottom) / (top - bottom), 0.0, 1.0, 0.0)
    drawn = torch.rand(share.shape, generator=chance, dtype=share.dtype, device=share.device)
    return low + (drawn < share).to(low.dtype)


def _keep_in_reach(floats: Tensor, ordered: Tensor) -> None:
    """Keep floats, (B, n), as near to the outermost values as those have their neighbours.

    Beyond, a float would move without effect, and would be long in coming back (Courbariaux et al.
    2015, section 2.4).
    """
    if ordered.shape[1] > 1:
        low = ordered[:, :1] - (ordered[:, 1:2] - ordered[:, :1]) / 2
        high = ordered[:, -1:] + (ordered[:, -1:] - ordered[:, -2:-1]) / 2
        floats.copy_(torch.minimum(torch.maximum(floats, low), high))
