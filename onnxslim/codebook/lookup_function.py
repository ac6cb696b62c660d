"""The model-local function of a codebook weight: onnxslim.Lookup…(codes…, table…, shape) -> weight.

onnxruntime inlines the function and folds it when a session starts, so inference uses the dense
weight. One function serves all weights of one `LookupVariant`, which its name spells:

    Lookup16                     one table, 16 values, two codes a byte
    Lookup2x4                    8 values, in two planes (see `radix`)
    Lookup3Padded                the last byte is not full, so values are cut off at the end
    Lookup16Blocks               a table for each block
    Lookup256Vectors4            a code stands for four numbers
    Lookup2And2                  the sum of two stages
    Lookup16BlocksTransposed021  values are permuted
    Lookup16ToFloat              the table is of another type than the weight

The body does no arithmetic on all codes of a large weight. It reads the planes in groups of g
codes, where g is the least number of digits that a plane has in a byte. A group has only K possible
combinations of digits, so the body looks up the g values of each combination first, (K, g), and
then gathers rows of that table:

    Lookup2x16: one byte of base 16 and two bits of base 2: K = 256 · 4, g = 2

Where groups do not align (3x4: five digits a byte and four), codes are assembled one by one. The
body uses operators of opset 10 only (11 for blocks), in a form that is valid in all later ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxslim.codebook.replacement import is_written
from onnxslim.codebook.weight import CodebookWeight, Stage
from onnxslim.graph.functions import DOMAIN, LOOKUP
from onnxslim.packing.radix import Plane, plane_of, planes_for

ONE_TABLE: Final = 10  # the first opset that has the operators to look up codes in one table
MANY_TABLES: Final = 11  # and in a table for each block
_MAX_GROUPING: Final = 1 << 14
_TYPE_NAMES: Final[dict[np.dtype[np.floating], str]] = {
    np.dtype(np.float32): "Float",
    np.dtype(np.float16): "Float16",
    np.dtype(np.float64): "Double",
}
_TYPES: Final = {name: dtype for dtype, name in _TYPE_NAMES.items()}
_STAGE: Final = re.compile(r"(\d+(?:x\d+)*)(Blocks)?(?:Vectors(\d+))?(Padded)?")
_NAME: Final = re.compile(
    rf"{LOOKUP}(?P<stages>(?:(?:And)?{_STAGE.pattern})+?)"
    r"(?:Transposed(?P<perm>\d+))?(?:To(?P<to>Float16|Float|Double))?"
)


@dataclass(frozen=True)
class StageVariant:
    """How one stage is stored.

    Attributes:
        bases: bases of the planes, lowest digit first.
        blocked: whether each block has its own table.
        vector: numbers that a code stands for.
        padded: whether the last byte of some plane is not full.
    """

    bases: tuple[int, ...]
    blocked: bool = False
    vector: int = 1
    padded: bool = False

    @classmethod
    def of(cls, stage: Stage) -> StageVariant:
        """The variant that stores `stage`."""
        planes = planes_for(stage.levels)
        count = stage.codes.size
        padded = any(count % plane.per_byte for plane in planes)
        return cls(tuple(p.base for p in planes), stage.is_blocked, stage.vector, padded)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes, lowest digit first."""
        return tuple(plane for base in self.bases if (plane := plane_of(base)) is not None)

    @property
    def group(self) -> int:
        """g, the codes that are looked up at once; 0 where codes are assembled one by one."""
        planes = self.planes
        least = min(plane.per_byte for plane in planes)
        if any(plane.per_byte % least for plane in planes):
            return 0
        return least if prod(b**least for b in self.bases) <= _MAX_GROUPING else 0

    @property
    def table_length(self) -> int | None:
        """The least length of the table: unused combinations are looked up too; None: any."""
        return prod(self.bases) if self.group > 1 and not self.blocked else None

    def __str__(self) -> str:
        """The part of the function's name that spells the stage."""
        words = ("x".join(map(str, self.bases)), "Blocks" * self.blocked)
        vector = f"Vectors{self.vector}" if self.vector > 1 else ""
        return "".join((*words, vector, "Padded" * self.padded))


@dataclass(frozen=True)
class LookupVariant:
    """A kind of codebook weight that one function computes.

    Attributes:
        stages: how each stage is stored.
        perm: permutation of axes; () for none.
        to: type of the weight, where some table has another type; else None.
    """

    stages: tuple[StageVariant, ...]
    perm: tuple[int, ...] = ()
    to: np.dtype[np.floating] | None = None

    @classmethod
    def of(cls, weight: CodebookWeight) -> LookupVariant:
        """The variant that stores `weight`."""
        stages = tuple(StageVariant.of(stage) for stage in weight.stages)
        same = all(stage.table.dtype == weight.dtype for stage in weight.stages)
        to = None if same and weight.sum_dtype == weight.dtype else weight.dtype
        return cls(stages, weight.perm, to)

    @classmethod
    def parse(cls, name: str) -> LookupVariant | None:
        """The variant whose function has this name; None for another name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        stages = []
        for part in match["stages"].split("And"):
            found = _STAGE.fullmatch(part)
            if found is None:
                return None
            bases = tuple(int(base) for base in found[1].split("x"))
            if any(plane_of(base) is None for base in bases):
                return None
            stages.append(StageVariant(bases, bool(found[2]), int(found[3] or 1), bool(found[4])))
        perm = tuple(int(axis) for axis in match["perm"] or "")
        variant = cls(tuple(stages), perm, _TYPES[match["to"]] if match["to"] else None)
        return variant if variant.name == name else None

    @property
    def name(self) -> str:
        """Name of the function."""
        perm = f"Transposed{''.join(map(str, self.perm))}" if self.perm else ""
        to = f"To{_TYPE_NAMES[self.to]}" if self.to is not None else ""
        return f"{LOOKUP}{'And'.join(map(str, self.stages))}{perm}{to}"

    @property
    def least_opset(self) -> int:
        """The first opset that has all operators of the body."""
        return MANY_TABLES if any(stage.blocked for stage in self.stages) else ONE_TABLE

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the function's inputs: planes and table of each stage, then shapes."""
        names: list[str] = []
        for number, stage in enumerate(self.stages):
            suffix = f"_{number}" if len(self.stages) > 1 else ""
            planes = range(len(stage.bases))
            names += [f"codes{suffix}" + (f"_{p}" if len(planes) > 1 else "") for p in planes]
            names.append(f"table{suffix}")
        return (*names, "shape", *(["inner_shape"] if self.perm else []))

    def function(self, opset: int) -> onnx.FunctionProto:
        """The function, at an opset of the standard domain."""
        body = _FunctionBody(opset)
        _write(self, body)
        return helper.make_function(
            DOMAIN,
            self.name,
            list(self.inputs),
            ["weight"],
            body.nodes,
            [helper.make_opsetid("", opset)],
        )


def variant_of(function: onnx.FunctionProto) -> LookupVariant | None:
    """The variant that `function` computes; None unless it is exactly the function written here."""
    variant = LookupVariant.parse(function.name) if function.domain == DOMAIN else None
    return variant if variant is not None and is_written(variant, function) else None


# ---------------------------------------------------------------------------- the body


class _FunctionBody:
    """The nodes of a function at an opset; their outputs are t0, t1, ..."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[bytes, str] = {}

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"t{len(self.nodes)}"  # short: names are a large part of a small file
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def constant(self, array: np.ndarray) -> str:
        """A constant; equal constants share a node."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = helper.make_tensor("", kind, array.shape, array.reshape(-1).tolist())
        key = tensor.SerializeToString(deterministic=True)
        if key not in self._constants:
            self._constants[key] = self.add("Constant", value=tensor)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant int32 vector."""
        return self.constant(np.array(values, np.int32))

    def longs(self, *values: int) -> str:
        """A constant int64 vector, as for shapes and slices."""
        return self.constant(np.array(values, np.int64))


def _write(variant: LookupVariant, body: _FunctionBody) -> None:
    names = iter(variant.inputs)
    between = variant.to
    if between == np.float16 and len(variant.stages) > 1:
        between = np.dtype(np.float32)  # see CodebookWeight.sum_dtype
    target = "inner_shape" if variant.perm else "shape"
    total = ""
    for stage in variant.stages:
        planes, table = [next(names) for _ in stage.bases], next(names)
        if between is not None:
            table = body.add("Cast", table, to=helper.np_dtype_to_tensor_dtype(between))
        values = _stage_values(stage, planes, table, body)
        values = body.add("Reshape", values, target)
        total = body.add("Add", total, values) if total else values
    if variant.perm:
        total = body.add("Transpose", total, perm=list(variant.perm))
        total = body.add("Reshape", total, "shape")
    if variant.to is not None and between != variant.to:
        total = body.add("Cast", total, to=helper.np_dtype_to_tensor_dtype(variant.to))
    body.nodes[-1].output[0] = "weight"


def _stage_values(
    stage: StageVariant, planes: Sequence[str], table: str, body: _FunctionBody
) -> str:
    """The values of the codes of a stage, in the order of the codes."""
    if stage.blocked:
        return _from_tables(stage, _codes(stage, planes, body), table, body)
    if not stage.group:
        return body.add("Gather", table, _as_index(_codes(stage, planes, body), body))
    groups = _groups(stage, planes, body)
    if stage.group == 1:  # a byte, or a byte of each plane, is a code
        if len(stage.bases) > 1:
            groups = body.add("Gather", _combinations(stage, body), groups)
        return body.add("Gather", table, groups)
    rows = body.add("Gather", table, _combinations(stage, body))  # (K, g[, v])
    values = body.add("Gather", rows, groups)
    if not stage.padded:
        return values
    flat = body.add("Reshape", values, body.longs(-1))
    return _cut(flat, body.add("ReduceProd", "shape", keepdims=1), body)


def _groups(stage: StageVariant, planes: Sequence[str], body: _FunctionBody) -> str:
    """The combination number of each group, int32: its digits as one number, last plane lowest."""
    group, scale, total = stage.group, 1, ""
    for plane, codes in reversed(list(zip(stage.planes, planes, strict=True))):
        part = _as_index(codes, body)
        size = plane.base**group
        if plane.per_byte > group:  # a byte holds several groups: split it by a table
            powers = [size**k for k in range(plane.per_byte // group)]
            digits = _digits(256, powers, size, scale, body)
            part = body.add("Reshape", body.add("Gather", digits, part), body.longs(-1))
        elif scale > 1:
            part = body.add("Mul", part, body.constant(np.array(scale, np.int32)))
        if stage.padded and len(planes) > 1:
            part = _cut(part, _count(stage, group, body), body)
        total = body.add("Add", total, part) if total else part
        scale *= size
    return total


def _combinations(stage: StageVariant, body: _FunctionBody) -> str:
    """The g codes of each combination number, int32 (K, g); the inverse of `_groups`."""
    group, total = stage.group, ""
    # a code is the sum of its digits, each times the product of the bases below it
    weights = [prod(stage.bases[:index]) for index in range(len(stage.bases))]
    scale, count = 1, prod(base**group for base in stage.bases)
    for base, weight in reversed(list(zip(stage.bases, weights, strict=True))):
        divisors = [scale * base**k for k in range(group)]
        digits = _digits(count, divisors, base, weight, body)
        total = body.add("Add", total, digits) if total else digits
        scale *= base**group
    return total


def _codes(stage: StageVariant, planes: Sequence[str], body: _FunctionBody) -> str:
    """The codes, one-dimensional, without padding, of any integer type."""
    if stage.bases == (256,):
        return planes[0]
    if stage.group:
        small = body.add("Cast", _combinations(stage, body), to=_code_type(stage))
        codes = body.add("Gather", small, _groups(stage, planes, body))
        codes = body.add("Reshape", codes, body.longs(-1))
        return _cut(codes, _count(stage, 1, body), body) if stage.padded else codes
    total, weight = "", 1
    for plane, data in zip(stage.planes, planes, strict=True):
        powers = [plane.base**k for k in range(plane.per_byte)]
        digits = _digits(256, powers, plane.base, weight, body)
        small = body.add("Cast", digits, to=_code_type(stage))
        part = body.add("Gather", small, _as_index(data, body))
        part = body.add("Reshape", part, body.longs(-1))
        if stage.padded:
            part = _cut(part, _count(stage, 1, body), body)
        part = _as_index(part, body)
        total = body.add("Add", total, part) if total else part
        weight *= plane.base
    return total


def _code_type(stage: StageVariant) -> int:
    """The smallest type that holds all codes: there are as many codes as weights."""
    few = prod(stage.bases) <= 256
    return int(TensorProto.UINT8 if few else TensorProto.INT32)


def _from_tables(stage: StageVariant, codes: str, table: str, body: _FunctionBody) -> str:
    """The values of codes where each block has its own table."""
    sizes = body.add("Shape", table)
    blocks = body.add("Slice", sizes, body.longs(0), body.longs(1))
    by_block = body.add("Concat", blocks, body.longs(-1), axis=0)
    index = _as_index(body.add("Reshape", codes, by_block), body)  # (B, n)
    if stage.vector == 1:
        return body.add("GatherElements", table, index, axis=1)
    # stack the tables, (B · L, v): those of block k begin at k · L, which is added to its codes
    levels = body.add("Slice", sizes, body.longs(1), body.longs(2))
    ends = [body.add("Mul", blocks, levels), levels]
    empty = body.longs()  # the shape of a scalar
    limit, step = (_as_index(body.add("Reshape", item, empty), body) for item in ends)
    starts = body.add("Range", body.constant(np.array(0, np.int32)), limit, step)
    index = body.add("Add", index, body.add("Reshape", starts, body.longs(-1, 1)))
    below = body.add("Reshape", table, body.longs(-1, stage.vector))
    return body.add("Gather", below, index)


def _digits(
    count: int, divisors: Sequence[int], modulus: int, weight: int, body: _FunctionBody
) -> str:
    """Weight · ((number // divisor) % modulus) for numbers 0..count-1: int32 (count, divisors)."""
    numbers = body.add("Reshape", _numbers(count, body), body.longs(-1, 1))
    digits = body.add("Div", numbers, body.ints(*divisors)) if max(divisors) > 1 else numbers
    if count > max(divisors) * modulus or len(divisors) > 1:
        digits = body.add("Mod", digits, body.ints(modulus))
    return body.add("Mul", digits, body.ints(weight)) if weight > 1 else digits


def _numbers(count: int, body: _FunctionBody) -> str:
    """0, 1, ..., count-1 as int32."""
    if body.opset < 11:
        return body.constant(np.arange(count, dtype=np.int32))
    zero, one = body.constant(np.array(0, np.int32)), body.constant(np.array(1, np.int32))
    return body.add("Range", zero, body.constant(np.array(count, np.int32)), one)


def _count(stage: StageVariant, group: int, body: _FunctionBody) -> str:
    """The number of groups of codes, rounded up; int64 (1,)."""
    count = body.add("ReduceProd", "shape", keepdims=1)
    per_group = stage.vector * group
    if group > 1:
        count = body.add("Add", count, body.longs(per_group - 1))
    return body.add("Div", count, body.longs(per_group)) if per_group > 1 else count


def _as_index(codes: str, body: _FunctionBody) -> str:
    return body.add("Cast", codes, to=TensorProto.INT32)


def _cut(flat: str, count: str, body: _FunctionBody) -> str:
    return body.add("Slice", flat, body.longs(0), count)
