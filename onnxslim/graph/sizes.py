"""Sizes that are known up to symbols: integers, and sums of products of symbols.

A symbol stands for one run-time number that is never negative: a dimension of an input that the
model names, a dimension of a tensor, or an operator's result on such. It is a string; two symbols
are the same number exactly when the strings are equal.

    >>> batch = Sum.of("batch")
    >>> add(multiply(batch, 4), batch)
    Sum('5*batch')
    >>> divide(multiply(batch, 12), 4)
    Sum('3*batch')
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_MAX: Final = 80  # characters of a symbol
Monomial = tuple[str, ...]


class Sum:
    """An integer combination of products of symbols that is no plain integer; immutable."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms  # sorted, no zero coefficient, some term has factors
        self._hash = hash(terms)

    @classmethod
    def of(cls, symbol: str) -> Sum:
        """The symbol itself."""
        return cls((((symbol,), 1),))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return " + ".join(_term_text(factors, times) for factors, times in self.terms)

    def __repr__(self) -> str:
        return f"Sum({str(self)!r})"


Size = int | Sum
Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Value:
    """An integer or boolean tensor, element by element in row-major order; None is unknown."""

    shape: tuple[int, ...]
    items: tuple[Size | None, ...]

    @property
    def ints(self) -> tuple[int, ...] | None:
        """The elements if all of them are plain integers."""
        found = tuple(item for item in self.items if isinstance(item, int))
        return found if len(found) == len(self.items) else None


class Sizes(Protocol):
    """Questions of rules about the tensors that a node reads; `SizeFlow` answers them.

    Attributes:
        opset: version of the default domain, which decides how a node is read.
    """

    opset: int

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """One size per axis; None when not even the rank is known."""

    def value(self, tensor: gs.Tensor) -> Value | None:
        """The elements of a small integer or boolean tensor, None for all others."""

    def ints(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The elements of `tensor` if every one is a known integer."""


def _term_text(factors: Monomial, times: int) -> str:
    text = "*".join(factors)
    if not factors:
        return str(times)
    return text if times == 1 else f"{times}*{text}"


def _terms(size: Size) -> Mapping[Monomial, int]:
    return dict(size.terms) if isinstance(size, Sum) else {(): size}


def _build(terms: Mapping[Monomial, int]) -> Size:
    kept = tuple(sorted(item for item in terms.items() if item[1]))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Sum(kept)


def add(a: Size, b: Size) -> Size:
    """The sum of both."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    terms = dict(_terms(a))
    for factors, times in _terms(b).items():
        terms[factors] = terms.get(factors, 0) + times
    return _build(terms)


def negate(a: Size) -> Size:
    """-a."""
    return multiply(a, -1)


def subtract(a: Size, b: Size) -> Size:
    """A - b."""
    return add(a, negate(b))


def multiply(a: Size, b: Size) -> Size:
    """The product of both."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    terms: dict[Monomial, int] = {}
    for left, times in _terms(a).items():
        for right, more in _terms(b).items():
            factors = tuple(sorted(left + right))
            terms[factors] = terms.get(factors, 0) + times * more
    return _build(terms)


def product(sizes: Iterable[Size]) -> Size:
    """The product of all."""
    result: Size = 1
    for size in sizes:
        result = multiply(result, size)
    return result


def divide(a: Size, b: Size) -> Size | None:
    """The quotient where it comes out without remainder for every value of the symbols, else None.

    `b` must be an integer or one product; it is taken not to be zero.
    """
    if isinstance(b, int):
        divisor: tuple[Monomial, int] = ((), b)
    elif len(b.terms) == 1:
        divisor = b.terms[0]
    else:
        return 1 if a == b else None
    factors, times = divisor
    if times == 0:
        return None
    terms: dict[Monomial, int] = {}
    for left, count in _terms(a).items():
        rest = _without(left, factors)
        if rest is None or count % times:
            return None
        terms[rest] = terms.get(rest, 0) + count // times
    return _build(terms)


def _without(factors: Monomial, removed: Monomial) -> Monomial | None:
    rest = list(factors)
    for factor in removed:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def substitute(size: Size, known: Mapping[str, int]) -> Size:
    """`size` with the numbers in `known` in place of their symbols."""
    return _sum_of(
        product((times, *(known.get(factor, Sum.of(factor)) for factor in factors)))
        for factors, times in _terms(size).items()
    )


def symbols_in(size: Size) -> frozenset[str]:
    """The symbols that `size` depends on."""
    return frozenset(factor for factors in _terms(size) for factor in factors)


def _sum_of(sizes: Iterable[Size]) -> Size:
    total: Size = 0
    for size in sizes:
        total = add(total, size)
    return total


def is_natural(size: Size) -> bool:
    """Whether it is certainly not negative."""
    return all(times >= 0 for times in _terms(size).values())


def is_positive(size: Size) -> bool:
    """Whether it is certainly at least one."""
    return is_natural(size) and _terms(size).get((), 0) > 0


def applied(name: str, *arguments: Size) -> Sum:
    """The symbol for what a function that is never negative returns for `arguments`."""
    text = f"{name}({', '.join(map(str, arguments))})"
    if len(text) > _MAX:  # a deep network nests hundreds of them
        text = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Sum.of(text)


def smaller(a: Size, b: Size) -> Size:
    """The smaller of two sizes that are not negative.

    >>> smaller(512, Sum.of("length"))
    Sum('min(512, length)')
    """
    gap = subtract(a, b)
    if is_natural(gap):
        return b
    if is_natural(negate(gap)):
        return a
    return applied("min", *sorted((a, b), key=lambda size: (isinstance(size, Sum), str(size))))


def is_capped(size: Size, other: Size) -> bool:
    """Whether `size` is the smaller of `other` and a positive integer, as a Slice of a table is."""
    limit = str(size).removeprefix("min(").partition(",")[0]
    return limit.isdigit() and int(limit) > 0 and size == applied("min", int(limit), other)


def is_name(text: object) -> bool:
    """Whether a dimension's text names it; exporters also write `?`, `-1` or `None`."""
    return (
        isinstance(text, str)
        and any(letter.isalpha() for letter in text)
        and text.lower() not in _NO_NAMES
    )


_NO_NAMES = frozenset({"none", "unknown", "dynamic", "any", "nan"})
