"""Packed files: every byte comes back, and no claim in them is trusted."""

from __future__ import annotations

import errno
import os
import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_models import TINY

from onnxslim.codebook.lookup import replace_constant
from onnxslim.codebook.weight import CodebookWeight, Stage
from onnxslim.errors import ModelError, UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.copying import copy_file, unpack
from onnxslim.io.model import Model
from onnxslim.packing import MAGIC, coders, container, radix
from onnxslim.packing.container import FileHeader, read_header
from onnxslim.packing.fields import varint
from onnxslim.packing.streams import CodingMethod
from onnxslim.packing.tensors import from_varints, to_varints
from onnxslim.tools.pack import PackReport, pack

pytestmark = pytest.mark.slow

CODERS = list(CodingMethod)


def matmul(
    weight: np.ndarray, sparse: onnx.SparseTensorProto | None = None, opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [] if sparse else [numpy_helper.from_array(weight, "w")],
    )
    if sparse:
        graph.sparse_initializer.append(sparse)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def pruned(rows: int = 60, columns: int = 90, levels: int = 7, seed: int = 0) -> np.ndarray:
    """Codes of a weight whose rows keep very different shares; the middle code is zero."""
    rng = np.random.default_rng(seed)
    kept = rng.random((rows, columns)) < np.clip(rng.exponential(0.15, (rows, 1)), 0, 1)
    codes = rng.binomial(levels - 1, 0.5, (rows, columns)).astype(np.uint8)
    return np.where(kept, codes, np.uint8(levels // 2))


def table(levels: int) -> np.ndarray:
    return ((np.arange(levels) - levels // 2) * 0.37).astype(np.float32)


def lookup(codes: np.ndarray, levels: int, shape: tuple[int, ...] | None = None) -> bytes:
    """A model whose weight is a codebook."""
    dense = table(levels)[codes]
    model = Model.load(matmul(dense))
    rewriter = Rewriter(model.graph)
    (holder,) = (t for n in model.graph.nodes for t in n.inputs if t.name == "w")
    stage = Stage(codes.reshape(1, -1), table(levels))
    replace_constant(
        rewriter, holder, CodebookWeight((stage,), dense.shape, np.dtype("f4")), "codes"
    )
    rewriter.result()
    return model.to_bytes()


def sparse_model(weight: np.ndarray, *, varints: bool = False) -> bytes:
    """A model whose weight is a sparse initializer."""
    places = np.flatnonzero(weight)
    values = numpy_helper.from_array(weight.reshape(-1)[places], "w")
    indices = numpy_helper.from_array(places.astype(np.int64), "")
    if varints:
        indices.ClearField("raw_data")
        indices.int64_data.extend(places.tolist())
    tensor = helper.make_sparse_tensor(values, indices, list(weight.shape))
    return matmul(weight, tensor).SerializeToString()


def random_floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def there_and_back(
    folder: Path, content: bytes, coder: CodingMethod = CodingMethod.ENTROPY
) -> tuple[bytes, PackReport]:
    """Pack and unpack `content`; it comes back to the byte. Gives the packed file."""
    source, packed, back = folder / "m.onnx", folder / "m.onnxz", folder / "back.onnx"
    source.write_bytes(content)
    report = pack(source, packed, coder=coder)
    unpack(packed, back)
    assert back.read_bytes() == content
    assert packed.stat().st_size == report.packed_bytes
    return packed.read_bytes(), report


def classes(report: PackReport) -> list[str]:
    return [item.name for item in report.classes]


# ---------------------------------------------------------------------------- every byte


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", TINY)
def test_any_model_comes_back_to_the_byte(tmp_path: Path, name: str, coder: CodingMethod) -> None:
    there_and_back(tmp_path, TINY[name]().SerializeToString(), coder)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("levels", [2, 3, 4, 7, 8, 9, 16, 32, 200, 256])
def test_codes_come_back_from_every_radix(tmp_path: Path, levels: int, coder: CodingMethod) -> None:
    codes = pruned(levels=levels)
    packed, report = there_and_back(tmp_path, lookup(codes, levels), coder)
    assert classes(report)[0] == "codebook codes"
    assert report.classes[0].float32_bytes == 4 * codes.size
    if coder is CodingMethod.ENTROPY:
        assert len(packed) < 0.7 * report.input_bytes


def test_codes_whose_padding_is_not_zero_come_back(tmp_path: Path) -> None:
    codes = pruned(7, 9, levels=3)
    model = onnx.ModelProto.FromString(lookup(np.tile(codes, (3, 1)), 3))
    (plane,) = (t for t in model.graph.initializer if t.dims[0] == 38)
    plane.raw_data = plane.raw_data[:-1] + bytes([plane.raw_data[-1] + 81])
    there_and_back(tmp_path, model.SerializeToString())


@pytest.mark.parametrize("coder", CODERS)
def test_a_pruned_float_weight_comes_back(tmp_path: Path, coder: CodingMethod) -> None:
    weight = np.where(pruned() == 3, np.float32(0), random_floats(60, 90))
    packed, report = there_and_back(tmp_path, matmul(weight).SerializeToString(), coder)
    assert len(packed) < 0.35 * weight.nbytes
    assert classes(report)[0] == "many zeros"


def test_a_weight_of_few_values_is_coded_by_its_table(tmp_path: Path) -> None:
    weight = table(7)[pruned()]
    packed, report = there_and_back(tmp_path, matmul(weight).SerializeToString())
    assert classes(report) == ["few distinct values", "graph"]
    assert len(packed) < weight.nbytes / 20


@pytest.mark.parametrize("coder", CODERS)
def test_a_sparse_initializer_comes_back(tmp_path: Path, coder: CodingMethod) -> None:
    weight = np.where(pruned() == 3, np.float32(0), random_floats(60, 90))
    sizes = []
    for varints in (False, True):
        content = sparse_model(weight, varints=varints)
        packed, report = there_and_back(tmp_path, content, coder)
        assert "sparse initializers" in classes(report)
        assert report.classes[0].float32_bytes == weight.nbytes
        sizes.append(len(packed))
    assert sizes[0] < 0.6 * len(sparse_model(weight))
    if coder is CodingMethod.ENTROPY:
        assert abs(sizes[0] - sizes[1]) < 10


def test_a_sparse_weight_of_few_values_takes_as_much_as_a_dense_one(tmp_path: Path) -> None:
    weight = table(7)[pruned()]
    sparse, _ = there_and_back(tmp_path, sparse_model(weight, varints=True))
    dense, _ = there_and_back(tmp_path, matmul(weight).SerializeToString())
    assert abs(len(sparse) - len(dense)) < 60


def test_sparse_values_that_are_zero_come_back(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(sparse_model(np.eye(30, dtype=np.float32)))
    values = np.ones(30, np.float32)
    values[7] = 0
    model.graph.sparse_initializer[0].values.raw_data = values.tobytes()
    there_and_back(tmp_path, model.SerializeToString())


def test_a_hardly_filled_sparse_weight_comes_back(tmp_path: Path) -> None:
    weight = np.zeros((2000, 1000), np.float32)
    weight.reshape(-1)[::120_001] = np.arange(1, 18)
    there_and_back(tmp_path, sparse_model(weight))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**62), max_size=50))
def test_numbers_of_varying_length_are_those_of_protobuf(values: list[int]) -> None:
    packed = to_varints(np.array(values, np.int64))
    assert packed.tobytes() == varint(*values)
    assert from_varints(packed).tolist() == values


@pytest.mark.parametrize("order", ["descending", "repeated", "negative"])
def test_indices_that_are_not_ascending_come_back(tmp_path: Path, order: str) -> None:
    model = onnx.ModelProto.FromString(sparse_model(np.eye(30, dtype=np.float32)))
    indices = np.frombuffer(model.graph.sparse_initializer[0].indices.raw_data, np.int64).copy()
    indices = indices[::-1].copy() if order == "descending" else indices
    indices[3] = {"repeated": indices[2], "negative": -5}.get(order, indices[3])
    model.graph.sparse_initializer[0].indices.raw_data = indices.tobytes()
    there_and_back(tmp_path, model.SerializeToString())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i4", "i8"])
@pytest.mark.parametrize("size", [1, 7, 8, 33, 5000])
def test_weights_of_any_type_and_size_come_back(tmp_path: Path, dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    weight = (100 * rng.standard_normal(size)).astype(dtype)
    model = matmul(np.ones((2, 2), np.float32))
    model.graph.initializer.append(numpy_helper.from_array(weight, "other"))
    there_and_back(tmp_path, model.SerializeToString())


def test_weights_in_typed_fields_come_back(tmp_path: Path) -> None:
    model = matmul(np.ones((2, 2), np.float32))
    values = random_floats(300).tolist()
    model.graph.initializer.append(helper.make_tensor("f", TensorProto.FLOAT, [300], values))
    model.graph.initializer.append(helper.make_tensor("d", TensorProto.DOUBLE, [300], values))
    model.graph.initializer.append(helper.make_tensor("i", TensorProto.INT64, [300], range(300)))
    there_and_back(tmp_path, model.SerializeToString())


def test_hundreds_of_tiny_tensors_do_not_pay_a_header_each(tmp_path: Path) -> None:
    model = matmul(np.ones((2, 2), np.float32))
    for number in range(300):
        model.graph.initializer.append(
            numpy_helper.from_array(random_floats(16, seed=number), f"b{number}")
        )
    packed, report = there_and_back(tmp_path, model.SerializeToString())
    assert len(packed) - 300 * 16 * 4 * 0.9 < 300 * 8
    assert sum(item.tensors for item in report.classes) == 300


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(CODERS))
def test_random_weights_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, coder: CodingMethod
) -> None:
    rng = np.random.default_rng(seed)
    weight = random_floats(*rng.integers(1, 60, 2), seed=seed)
    weight[rng.random(weight.shape) < rng.random()] = 0
    if rng.random() < 0.5:
        weight = np.round(weight * 3) / 3
    folder = tmp_path_factory.mktemp("random")
    there_and_back(folder, matmul(weight).SerializeToString(), coder)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    content = lookup(pruned(), 7)
    assert there_and_back(tmp_path, content)[0] == there_and_back(tmp_path, content)[0]


# ---------------------------------------------------------------------------- external data


def test_external_data_go_into_the_packed_file_and_come_out_again(tmp_path: Path) -> None:
    source, packed, back = tmp_path / "m.onnx", tmp_path / "m.onnxz", tmp_path / "back.onnx"
    Model.load(matmul(random_floats(40, 50))).save(source, external=True)
    report = pack(source, packed)
    assert report.input_bytes == source.stat().st_size + 8000
    (tmp_path / "m.onnx.data").unlink()
    unpack(packed, back)
    assert (tmp_path / "back.onnx.data").exists()
    weight = onnx.numpy_helper.to_array(onnx.load(back).graph.initializer[0])
    np.testing.assert_array_equal(weight, random_floats(40, 50))


# ---------------------------------------------------------------------------- as a model


def test_a_packed_file_is_loaded_whatever_its_name(tmp_path: Path) -> None:
    content = matmul(random_floats(40, 50)).SerializeToString()
    packed, _ = there_and_back(tmp_path, content)
    (tmp_path / "odd.name").write_bytes(packed)
    model = Model.load(tmp_path / "odd.name")
    plain = Model.load(tmp_path / "m.onnx")
    assert model.to_bytes() == plain.to_bytes()
    assert model.origin.sha256 == plain.origin.sha256
    assert model.origin.file_bytes == len(content)
    assert model.origin.packed_bytes == len(packed)
    assert Model.load(packed).to_bytes() == plain.to_bytes()


def test_copying_an_unchanged_packed_model_gives_the_model(tmp_path: Path) -> None:
    content = matmul(random_floats(40, 50)).SerializeToString()
    there_and_back(tmp_path, content)
    copy_file(Model.load(tmp_path / "m.onnxz").origin, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == content


# ---------------------------------------------------------------------------- damage

MODELS: dict[str, Callable[[], bytes]] = {
    "codebook": lambda: lookup(pruned(20, 30), 7),
    "sparse": lambda: sparse_model(np.where(pruned(20, 30) == 3, 0, random_floats(20, 30))),
    "zeros": lambda: matmul(
        np.where(pruned(20, 30) == 3, 0, random_floats(20, 30))
    ).SerializeToString(),
    "dense": lambda: matmul(random_floats(30, 40)).SerializeToString(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    packed, _ = there_and_back(tmp_path, MODELS[name]())
    for size in range(len(MAGIC), len(packed)):
        with pytest.raises(ModelError, match="packed file that cannot be used"):
            Model.load(packed[:size])
    for size in range(1, len(MAGIC)):
        with pytest.raises(ModelError):
            Model.load(packed[:size])


@pytest.mark.parametrize("name", MODELS)
def test_a_file_with_any_bit_turned_is_refused(tmp_path: Path, name: str) -> None:
    packed, _ = there_and_back(tmp_path, MODELS[name]())
    rng = random.Random(0)
    for _ in range(400):
        place = rng.randrange(len(packed))
        altered = bytearray(packed)
        altered[place] ^= 1 << rng.randrange(8)
        with pytest.raises(ModelError):
            Model.load(bytes(altered))


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    packed, _ = there_and_back(tmp_path, MODELS["dense"]())
    with pytest.raises(ModelError, match="cut off or altered"):
        Model.load(packed + b"\0")


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    packed, _ = there_and_back(tmp_path, MODELS["dense"]())
    newer = MAGIC + bytes([container.VERSION + 1]) + packed[len(MAGIC) + 1 :]
    (tmp_path / "new.onnxz").write_bytes(newer)
    with pytest.raises(ModelError, match=r"new\.onnxz` .* format version 2, .*update onnxslim\.$"):
        Model.load(tmp_path / "new.onnxz")


def opened(packed: bytes) -> tuple[FileHeader, bytearray, bytearray]:
    """Header, index and bodies of a packed file."""
    header, index_bytes, reader = read_header(memoryview(packed))
    frame = reader.take(reader.number())
    index = bytearray(coders.unzstd(frame, index_bytes, words=True))
    return header, index, bytearray(reader.take(reader.left))


def sealed(header: FileHeader, index: bytes, bodies: bytes) -> bytes:
    """A packed file with right lengths and checksums around whatever it holds."""
    return b"".join(container.write(header, bytes(index), [bytes(bodies)]))


@pytest.mark.parametrize("name", MODELS)
def test_a_forged_file_with_right_checksums_is_refused_or_right(tmp_path: Path, name: str) -> None:
    content = MODELS[name]()
    packed, _ = there_and_back(tmp_path, content)
    header, index, bodies = opened(packed)
    assert sealed(header, index, bodies) == packed
    rng = random.Random(1)
    tracemalloc.start()
    for _ in range(120):
        forged_index, forged_bodies = bytearray(index), bytearray(bodies)
        for _ in range(rng.choice([1, 1, 3])):
            if rng.random() < 0.7 or not bodies:
                value = rng.choice([0, 255, rng.randrange(256)])
                forged_index[rng.randrange(min(len(index), 120))] = value
            else:
                forged_bodies[rng.randrange(len(bodies))] = rng.randrange(256)
        try:
            found = container.restore(memoryview(sealed(header, forged_index, forged_bodies)), "it")
        except ModelError:
            continue
        assert found[0] == content
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_an_absurd_size_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    packed, _ = there_and_back(tmp_path, MODELS["dense"]())
    header, index, bodies = opened(packed)
    absurd = FileHeader(1 << 50, header.sha256, external=False)
    tracemalloc.start()
    with pytest.raises(ModelError, match="declares 1,125,899,906,842,624 bytes, but a packed file"):
        container.restore(memoryview(sealed(absurd, index, bodies)), "it")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_bomb_stops_at_its_declared_size(tmp_path: Path) -> None:
    """An index that declares 100 bytes, in a frame that unpacks to 500 MB."""
    bomb = coders.zstd(bytes(500_000_000), 1, words=True)
    fixed = bytes(32) + varint(1000, 100, len(bomb))
    body = fixed + bomb
    start = MAGIC + bytes([container.VERSION, 0]) + varint(len(body) + 4)
    whole = start + body
    whole += zlib.crc32(whole).to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(ModelError, match="does not hold the 100 bytes"):
        container.restore(memoryview(whole), "it")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_model_that_readers_would_refuse_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_FREE_BYTES", 1000)
    (tmp_path / "m.onnx").write_bytes(matmul(np.zeros((3000, 300), np.float32)).SerializeToString())
    with pytest.raises(ModelError, match="readers refuse"):
        pack(tmp_path / "m.onnx", tmp_path / "m.onnxz")
    assert [item.name for item in tmp_path.iterdir()] == ["m.onnx"]


# ---------------------------------------------------------------------------- paths


def test_wrong_paths_are_usage_errors(tmp_path: Path) -> None:
    there_and_back(tmp_path, MODELS["dense"]())
    source, packed = tmp_path / "m.onnx", tmp_path / "m.onnxz"
    with pytest.raises(UsageError, match="packed file already"):
        pack(packed, tmp_path / "again.onnxz")
    with pytest.raises(UsageError, match="is not a packed file"):
        unpack(source, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="is the input itself"):
        pack(source, source)
    with pytest.raises(UsageError, match="is the input itself"):
        unpack(packed, packed)
    with pytest.raises(UsageError, match="There is no file"):
        pack(tmp_path / "none.onnx", packed)
    with pytest.raises(UsageError, match="does not exist"):
        pack(source, tmp_path / "none" / "m.onnxz")


@pytest.mark.parametrize("forwards", [True, False])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: bool
) -> None:
    there_and_back(tmp_path, MODELS["dense"]())
    target = tmp_path / "target"
    target.write_bytes(b"old")
    before = sorted(item.name for item in tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    source = tmp_path / ("m.onnx" if forwards else "m.onnxz")
    with pytest.raises(UsageError, match="disk is full"):
        (pack if forwards else unpack)(source, target)
    assert target.read_bytes() == b"old"
    assert sorted(item.name for item in tmp_path.iterdir()) == before


# ---------------------------------------------------------------------------- figures


def test_the_figures_add_up(tmp_path: Path) -> None:
    packed, report = there_and_back(tmp_path, lookup(pruned(), 7))
    total = report.total
    assert total.packed == len(packed) == report.packed_bytes
    assert total.file_bytes == report.input_bytes
    codes = report.classes[0]
    assert None not in (codes.huffman, codes.entropy, codes.zstd, codes.bound)
    assert codes.packed <= min(codes.huffman or 0, codes.zstd or 0)
    assert report.whole_zstd is not None
    assert report.whole_zstd[1] == 19


def test_without_measuring_the_file_is_the_same(tmp_path: Path) -> None:
    packed, _ = there_and_back(tmp_path, lookup(pruned(), 7))
    report = pack(tmp_path / "m.onnx", tmp_path / "quick.onnxz", measure=False)
    assert (tmp_path / "quick.onnxz").read_bytes() == packed
    assert report.total.huffman is None
    assert report.whole_zstd is None


def test_the_planes_of_codes_are_part_of_the_format() -> None:
    """A packed file says how many levels codes have; how they are packed follows from that."""
    bases = {n: [plane.base for plane in radix.planes_for(n)] for n in LEVELS}
    assert bases == LEVELS


LEVELS = {
    2: [2], 3: [3], 4: [4], 5: [6], 6: [6], 7: [2, 4], 8: [2, 4], 9: [3, 3], 12: [3, 4],
    16: [16], 18: [3, 6], 32: [2, 16], 64: [4, 16], 128: [2, 4, 16], 200: [256], 256: [256],
}  # fmt: skip
