"""Which values fit float16: constants by their values, activations by calibration samples.

Owns: the limits, and which operators have intermediate results beyond their inputs and outputs. Not
here: which operands may be float16 at all (see `operand_types`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Final, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Node, to_numpy_dtype
from onnxslim.graph.operands import const_array, const_value
from onnxslim.io.model import Model
from onnxslim.precision.operand_types import FLOAT32, HalfOperands
from onnxslim.records import Skip
from onnxslim.services.calibration import Calibration

MAX: Final = 65504.0
_OVERFLOW: Final = 65520.0  # from here on, rounding to the nearest leaves float16
HEADROOM: Final = 4.0  # factor kept free, as unseen samples reach further than seen ones
_NORMAL: Final = 2.0**-14  # smaller values are subnormal and have fewer digits
# largest share of a constant's energy; rounding loses at most 2^-22 = 2.4e-7
_MAX_LOST: Final = 1e-6
_MAX_VANISHED: Final = 0.01  # share of a weight's entries that become zero
_BLOCK: Final = 2**20  # values that are rounded at a time

# a weight's small entries may vanish; those of a factor or divisor may not
MATRICES: Final = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "GRU",
        "Gather",
        "Gemm",
        "LSTM",
        "MatMul",
        "RNN",
    }
)


class ConstantObjection(Protocol):
    """Why a constant does not fit float16; None where it does."""

    def __call__(self, tensor: gs.Tensor, *, is_matrix: bool) -> str | None:
        """A clause to follow the name of the constant."""


class Intermediate(enum.Enum):
    """Intermediate results of an operator that may leave float16 where its operands do not."""

    SUM = "adds up many values"
    SQUARES = "adds up squares"
    STEEP = "can leave the range of float16 on inputs that are in it"


_INSIDE: Final[Mapping[str, Intermediate]] = {
    **dict.fromkeys(
        ("CumSum", "GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"), Intermediate.SUM
    ),
    **dict.fromkeys(
        (
            "GlobalLpPool",
            "GroupNormalization",
            "InstanceNormalization",
            "LRN",
            "LayerNormalization",
            "LpNormalization",
            "LpPool",
            "MeanVarianceNormalization",
            "RMSNormalization",
            "ReduceL2",
            "ReduceSumSquare",
        ),
        Intermediate.SQUARES,
    ),
    **dict.fromkeys(
        (
            "Div",
            "Exp",
            "Log",
            "LogSoftmax",
            "Pow",
            "Reciprocal",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceProd",
            "Softmax",
            "Softplus",
            "Tan",
        ),
        Intermediate.STEEP,
    ),
}
_SMALL_INTEGERS: Final = frozenset(map(np.dtype, (np.bool_, np.int8, np.uint8)))


def intermediate_of(node: Node) -> Intermediate | None:
    """The intermediate results of `node` that may leave float16; None where there are none."""
    if node.op == "Div" and const_array(node.inputs[1]) is not None:
        return None
    if node.op == "Cast" and _reads_large_integers(node):
        return Intermediate.STEEP
    return _INSIDE.get(node.op)


def _reads_large_integers(node: Node) -> bool:
    """Whether a Cast makes floats of integers that float16 may not hold."""
    dtype = np.dtype(node.inputs[0].dtype)
    to_float32 = to_numpy_dtype(int(node.attrs["to"])) == FLOAT32
    return to_float32 and dtype.kind != "V" and dtype.itemsize != 2 and dtype not in _SMALL_INTEGERS


@dataclass
class Magnitudes:
    """The largest |x| of each tensor, by its name, on calibration samples."""

    magnitudes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def observed(cls, model: Model, calibration: Calibration, names: Iterable[str]) -> Magnitudes:
        """The magnitudes of the named tensors of the main graph on the samples."""
        return cls(
            {
                item.tensor: max(abs(item.least), abs(item.most))
                for item in calibration.observe(model, list(dict.fromkeys(names)))
                if not isinstance(item, Skip)
            }
        )

    def objection(
        self, node: Node, half: HalfOperands, constant_objection: ConstantObjection
    ) -> str | None:
        """Why the values of `node` do not fit float16, or are not known to; None where they do.

        Args:
            node: the operator.
            half: its operands that become float16.
            constant_objection: why a constant that a matrix product reads, or another operator,
                does not fit, as a clause to follow its name.
        """
        for tensor in half.tensors(node):
            if const_value(tensor) is None:
                why = self._range_objection(tensor.name)
            else:
                why = constant_objection(tensor, is_matrix=node.op in MATRICES)
                why = why and f"its constant `{tensor.name}` {why}"
            if why is not None:
                return why
        inside = intermediate_of(node)
        return None if inside is None else self._inside_objection(node, half, inside)

    def _range_objection(self, name: str) -> str | None:
        most = self.magnitudes.get(name)
        if most is None or most == 0:
            return None
        if not most <= MAX / HEADROOM:  # NaN too
            return (
                f"`{name}` reaches {most:.3g}: float16 ends at 65504, and {HEADROOM:g} times as "
                "much is kept free for samples not seen"
            )
        if most < _NORMAL:
            return f"`{name}` stays below {most:.3g}, where float16 has few digits"
        return None

    def _inside_objection(self, node: Node, half: HalfOperands, inside: Intermediate) -> str | None:
        reads = [node.inputs[index] for index in sorted(half.inputs)]
        names = [tensor.name for tensor in half.tensors(node) if const_array(tensor) is None]
        unseen = [name for name in names if name not in self.magnitudes]
        if unseen:
            return f"{node.op} {inside.value}, and no samples show the range of `{unseen[0]}`"
        if inside is Intermediate.STEEP or not reads:
            return None
        most = self.magnitudes.get(reads[0].name, 0.0)
        reached = most**2 if inside is Intermediate.SQUARES else most * _terms(node)
        if reached * HEADROOM <= MAX:
            return None
        return f"{node.op} {inside.value}, up to {reached:.3g} on the way"


def _terms(node: Node) -> float:
    """How many values are added up to one of the result; infinite where that is not known."""
    read, made = (static_shape(tensor) for tensor in (node.inputs[0], node.outputs[0]))
    if node.op == "CumSum":
        return float("inf") if read is None else float(max(read, default=1))
    if read is None or made is None or not prod(made):
        open_read, open_made = (node.inputs[0].shape, node.outputs[0].shape)
        return _open_terms(open_read, open_made)
    return prod(read) / prod(made)


def _open_terms(read: list[int | str | None] | None, made: list[int | str | None] | None) -> float:
    """`_terms` where dimensions are open: those that input and result share cancel out."""
    if read is None or made is None or len(read) != len(made):
        return float("inf")
    terms = 1.0
    for before, after in zip(read, made, strict=True):
        if before == after and before is not None:
            continue
        if not isinstance(before, int) or not isinstance(after, int) or not after:
            return float("inf")
        terms *= before / after
    return terms


@dataclass(frozen=True)
class HalfRounding:
    """What float16 does to the values of a constant.

    Attributes:
        most: the largest finite |x|.
        lost: share of the energy that the values lose; 0 where float16 holds them exactly.
        saturated: finite values beyond 65504, which become 65504.
        vanished: values that become zero.
        full: values that are not zero.
    """

    most: float
    lost: float
    saturated: int
    vanished: int
    full: int

    @classmethod
    def of(cls, values: np.ndarray) -> HalfRounding:
        """The rounding of a float32 constant."""
        most = lost = energy = 0.0
        saturated = vanished = full = 0
        for block, rounded in _blocks(values):
            finite = np.isfinite(block)
            exact, near = block[finite].astype(np.float64), rounded[finite]
            sizes = np.abs(exact)
            most = max(most, float(sizes.max(initial=0)))
            lost += float(np.square(exact - near).sum())
            energy += float(np.square(exact).sum())
            saturated += int(np.count_nonzero(sizes >= _OVERFLOW))
            vanished += int(np.count_nonzero((exact != 0) & (near == 0)))
            full += int(np.count_nonzero(exact))
        return cls(most, lost / energy if energy else 0.0, saturated, vanished, full)

    @property
    def is_exact(self) -> bool:
        """Whether float16 holds all values as they are."""
        return self.lost == 0

    def objection(self, *, is_matrix: bool) -> str | None:
        """Why the constant does not fit float16, as a clause to follow its name; None: it does.

        Args:
            is_matrix: whether products with it are added up, so that small entries may vanish.
        """
        if self.saturated:
            return f"reaches {self.most:.3g}: float16 ends at 65504"
        if self.lost > _MAX_LOST:
            return "is so small that float16 has few digits"
        if self.vanished > (_MAX_VANISHED * self.full if is_matrix else 0):
            return f"has {self.vanished:,} entries of {self.full:,} that float16 rounds to zero"
        return None

    @property
    def words(self) -> str:
        """What it does to values that do not fit, as a clause."""
        ends = f"{self.saturated:,} beyond 65504 became 65504" if self.saturated else ""
        zeros = f"{self.vanished:,} became 0" if self.vanished else ""
        return " and ".join(filter(None, (ends, zeros))) or "small ones have fewer digits"


def rounded_to_half(values: np.ndarray) -> np.ndarray:
    """`values` as float16; finite values that are too large become the largest of float16."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(values, order="C").astype(np.float16)
    over = np.isinf(rounded) & np.isfinite(values)
    if over.any():
        rounded[over] = np.copysign(np.float16(MAX), rounded[over])
    return rounded


def _blocks(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        yield block, rounded_to_half(block).astype(np.float32)
