from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from cases import case
from chains import cast, chains, check, elementwise, fork
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto

from onnxslim.passes.fuse_casts import FuseCasts, holds
from support import assert_declines, assert_rewrites

HEADER = '<opset_import: ["" : 17]>'


def test_widening_before_another_cast_goes() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (int32[N] x) => (float[N] y) {{
            a = Cast <to = 7> (x)
            y = Cast <to = 1> (a)
        }}""",
        FuseCasts(),
        f"""{HEADER}
        g (int32[N] x) => (float[N] y) {{
            y = Cast <to = 1> (x)
        }}""",
    )


def test_round_trip_goes_even_when_the_middle_is_used() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (int32[N] x) => (int64[N] a, int32[N] y) {{
            a = Cast <to = 7> (x)
            b = Cast <to = 6> (a)
            y = Abs (b)
        }}""",
        FuseCasts(),
        f"""{HEADER}
        g (int32[N] x) => (int64[N] a, int32[N] y) {{
            a = Cast <to = 7> (x)
            y = Abs (x)
        }}""",
    )


def test_integers_keep_their_low_bits_through_any_wider_type() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (int64[N] x) => (int8[N] y) {{
            a = Cast <to = 6> (x)
            y = Cast <to = 3> (a)
        }}""",
        FuseCasts(),
        f"""{HEADER}
        g (int64[N] x) => (int8[N] y) {{
            y = Cast <to = 3> (x)
        }}""",
    )


@pytest.mark.parametrize(
    ("types", "why"),
    [
        (("float", 7, "float", 1), "loses something"),  # float -> int64 -> float
        (("float", 10, "float", 1), "loses something"),  # float -> float16 -> float
        (("int64", 6, "int64", 7), "loses something"),  # int64 -> int32 -> int64
        (("int32", 9, "int32", 6), "loses something"),  # int32 -> bool -> int32
        (("float", 11, "int32", 6), "loses something"),  # out of range is not specified
    ],
)
def test_it_declines_what_loses_something(types: tuple[str, int, str, int], why: str) -> None:
    first, middle, last, to = types
    assert_declines(
        f"""{HEADER}
        g ({first}[N] x) => ({last}[N] y) {{
            a = Cast <to = {middle}> (x)
            y = Cast <to = {to}> (a)
        }}""",
        FuseCasts(),
        why,
    )


def test_it_declines_when_the_middle_has_other_users() -> None:
    assert_declines(
        f"""{HEADER}
        g (int32[N] x) => (int64[N] a, float[N] y) {{
            a = Cast <to = 7> (x)
            y = Cast <to = 1> (a)
        }}""",
        FuseCasts(),
        "other users",
    )


@pytest.mark.parametrize("narrow", ["bool", "int8", "uint8", "int16", "uint16", "float16"])
def test_holds_agrees_with_casting_every_value(narrow: str) -> None:
    for wide in ("int8", "uint8", "int16", "uint16", "int32", "float16", "bfloat16", "float32"):
        with case(wide):
            assert_holds_agrees_with_casting(narrow, wide)


def assert_holds_agrees_with_casting(narrow: str, wide: str) -> None:
    types = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    a, b = (types.get(name) or np.dtype(name) for name in (narrow, wide))
    bits = np.arange(2 ** (8 * a.itemsize), dtype=f"uint{8 * a.itemsize}")
    values = np.array([False, True]) if narrow == "bool" else bits.view(a)
    values = values[~np.isnan(values)] if a.kind == "f" else values
    with np.errstate(all="ignore"):
        back = values.astype(b).astype(a)
    if a.kind == "f" and b.kind != "f" and wide != "bfloat16":
        assert not holds(_code(wide), _code(narrow))
        return
    same = np.array_equal(values, back) and not _wraps(values, b)
    assert holds(_code(wide), _code(narrow)) == same


def _wraps(values: np.ndarray, wide: np.dtype) -> bool:
    """Whether some value becomes another one in `wide` (and only comes back by wrapping)."""
    if values.dtype.kind not in "iu":
        return False
    return not np.array_equal(values.astype(float), values.astype(wide).astype(float))


def _code(name: str) -> int:
    return int(getattr(TensorProto, {"float32": "FLOAT"}.get(name, name.upper())))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains((cast, cast, elementwise, fork)))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FuseCasts(), source)
