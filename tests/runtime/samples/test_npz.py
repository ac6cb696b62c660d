from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxslim.errors import UsageError
from onnxslim.runtime.samples import npz
from onnxslim.runtime.samples.npz import read_headers, read_npy, read_rows


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a file was unpickled",))


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 30),
    dtype=st.sampled_from([np.float32, np.uint8, np.int64, ">f4", "<U3", np.bool_]),
    compressed=st.booleans(),
    fortran=st.booleans(),
    block=st.sampled_from([1, 50, 8 << 20]),
)
def test_rows_read_in_blocks_are_the_rows_of_the_file(
    tmp_path: Path, rows: int, dtype: object, compressed: bool, fortran: bool, block: int
) -> None:
    x = np.arange(rows * 6).reshape(rows, 2, 3).astype(dtype)  # type: ignore[call-overload]
    if fortran:
        x = np.asfortranarray(x)
    y = np.arange(rows)
    path = tmp_path / "s.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=x, y=y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "_BLOCK_BYTES", block)
        blocks = list(read_rows(path, ["x", "y"]))
    assert all(len(part["x"]) == len(part["y"]) for part in blocks)
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in blocks]), x)
    np.testing.assert_array_equal(np.concatenate([part["y"] for part in blocks]), y)
    header = read_headers(path)["x"]
    assert header.shape == x.shape
    assert header.dtype == x.dtype


def test_only_the_rows_asked_for_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.npz"
    np.savez_compressed(path, x=np.zeros((1000, 100), np.float32))
    monkeypatch.setattr(npz, "_BLOCK_BYTES", 4000)
    first = next(read_rows(path, ["x"]))
    assert first["x"].shape == (10, 100)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, x=np.array([Trap()], object))
    with pytest.raises(UsageError, match=r"`x` of .*s\.npz` holds Python objects"):
        read_headers(path)


def test_zip_member_that_is_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", pickle.dumps(Trap()))
    with pytest.raises(UsageError, match=r"no \.npz file of arrays"):
        read_headers(path)


@pytest.mark.parametrize("content", [b"", b"not a zip at all", b"PK\x03\x04 cut off"])
def test_what_is_no_zip_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"no \.npz file of arrays"):
        read_headers(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        read_headers(tmp_path / "s.npz")


def test_array_that_ends_early_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.save(tmp_path / "x.npy", np.zeros((10, 4)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-40])
    with pytest.raises(UsageError, match="40 bytes early"):
        list(read_rows(path, ["x"]))


def test_damaged_values_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, x=np.zeros((10, 100)))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="cannot be read to its end"):
        list(read_rows(path, ["x"]))


def test_npy_files_are_mapped_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6))
    values = read_npy(path)
    assert values.tolist() == list(range(6))
    assert not values.flags.owndata
    np.save(path, np.array([Trap()], object))
    with pytest.raises(UsageError, match="never unpickled"):
        read_npy(path)


def test_arrays_that_claim_too_much_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((3, 1000), np.float32))
    assert len(list(read_rows(path, ["x"]))) == 1
    monkeypatch.setattr("onnxslim.runtime.samples.npz.MOST_ROW_BYTES", 3999)
    for read in (lambda: list(read_rows(path, ["x"])), lambda: npz.read_arrays(path, ["x"])):
        with pytest.raises(UsageError, match=r"claims [\d,]+ bytes"):
            read()


def test_a_header_that_lies_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
        )
        stream.write(bytes(16))
    with pytest.raises(UsageError, match=r"no \.npy file of numbers"):
        read_npy(path)
