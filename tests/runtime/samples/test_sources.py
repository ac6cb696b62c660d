from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxslim.errors import UsageError
from onnxslim.runtime.samples import npz
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import Dim, TensorInfo


def info(name: str, shape: tuple[Dim, ...] | None, dtype: object = np.float32) -> TensorInfo:
    return TensorInfo(name, "tensor(float)", np.dtype(dtype), shape)


X = info("x", ("N", 2))
VALUES = np.arange(10, dtype=np.float32).reshape(5, 2)
LABELS = np.arange(5)


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def values(samples: Samples, size: int = 1, limit: int | None = None) -> list[list[float]]:
    return [run.feeds["x"].reshape(-1).tolist() for run in samples.batches(size, limit)]


def test_npz_gives_one_row_at_a_time_or_batches(tmp_path: Path) -> None:
    samples = open_samples(write(tmp_path / "c.npz", x=VALUES), [X])
    assert (samples.name, samples.count) == ("c.npz", 5)
    assert values(samples) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert values(samples, 2) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert values(samples, 3, limit=4) == [[0, 1, 2, 3, 4, 5], [6, 7]]


def test_npz_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_BLOCK_BYTES", 16)
    samples = open_samples(write(tmp_path / "c.npz", x=VALUES, label=LABELS), [X])
    runs = list(samples.batches(4))
    assert [run.rows for run in runs] == [4, 1]
    np.testing.assert_array_equal(np.concatenate([run.feeds["x"] for run in runs]), VALUES)
    assert [run.labels.tolist() for run in runs if run.labels is not None] == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("name", ["label", "labels"])
def test_labels_go_with_their_rows(name: str) -> None:
    samples = open_samples({"x": VALUES, name: LABELS}, [X])
    assert [run.labels.tolist() for run in samples if run.labels is not None] == [
        [i] for i in range(5)
    ]


def test_input_that_is_called_label_is_an_input() -> None:
    samples = open_samples({"label": VALUES}, [info("label", ("N", 2))])
    assert next(iter(samples)).labels is None


def test_fixed_batch_of_one_runs_sample_by_sample() -> None:
    samples = open_samples({"x": VALUES}, [info("x", (1, 2))])
    assert not samples.batchable
    assert len(values(samples, 4)) == 5


def test_larger_fixed_batch_takes_groups_and_drops_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = open_samples({"x": VALUES, "label": LABELS}, [info("x", (2, 2))])
    assert values(samples, 16) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert samples.count == 4
    with pytest.raises(UsageError, match="holds 5 samples, but the model takes 8 at a time"):
        open_samples({"x": VALUES}, [info("x", (8, 2))])


def test_groups_span_the_blocks_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_BLOCK_BYTES", 8)
    samples = open_samples(write(tmp_path / "c.npz", x=VALUES), [info("x", (2, 2))])
    assert values(samples) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_one_axis_more_than_the_input_holds_whole_inputs() -> None:
    inputs = [info("x", (2,)), info("rate", ())]
    samples = open_samples({"x": VALUES, "rate": np.ones(5, np.float32)}, inputs)
    first = next(iter(samples)).feeds
    assert first["x"].shape == (2,)
    assert first["rate"].shape == ()
    assert not samples.batchable


def test_samples_can_be_gone_through_again(tmp_path: Path) -> None:
    for source in ({"x": VALUES}, write(tmp_path / "c.npz", x=VALUES), [{"x": VALUES[:1]}] * 5):
        samples = open_samples(source, [X])
        assert len(list(samples)) == len(list(samples)) == 5


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({"y": VALUES}, [X], r"no array for input `x`.*it has `y`\. Name each array"),
        ({"x": VALUES[:, :1]}, [X], r"shape \[5, 1\]; input `x` of the model needs \[samples, 2\]"),
        ({"x": VALUES[0]}, [X], r"shape \[2\]"),
        ({"x": VALUES[None, None]}, [X], r"shape \[1, 1, 5, 2\]"),
        ({"x": VALUES.astype(np.uint8)}, [X], r"type uint8; .*needs float32\. .* / 255"),
        ({"x": VALUES}, [info("x", ("N", 2), np.int64)], r"type float32; the model needs int64"),
        ({"x": VALUES > 1}, [X], "type bool"),
        ({"x": np.full((5, 2), 300)}, [info("x", ("N", 2), np.uint8)], "do not fit into uint8"),
        ({"x": VALUES[:0]}, [X], "holds no samples"),
        ({"x": VALUES, "label": LABELS[:3]}, [X], "differ in their number .*: `x` 5, `label` 3"),
        ({"x": VALUES, "z": VALUES}, [X, info("z", (4, 2))], r"`z` .* needs \[samples, 4, 2\]"),
        ({"x": np.array([[1, np.nan]], np.float32)}, [X], "has a NaN, the first at index 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_file", [True, False])
def test_rows_that_do_not_fit_are_refused_with_the_numbers(
    arrays: dict[str, np.ndarray],
    inputs: list[TensorInfo],
    message: str,
    in_file: bool,
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "c.npz", **arrays) if in_file else arrays
    with pytest.raises(UsageError, match=message) as caught:
        list(open_samples(source, inputs))
    assert ("c.npz" in str(caught.value)) == in_file


def test_wrong_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c.npz", x=VALUES[:, :1])
    with pytest.raises(UsageError):
        open_samples(path, [X])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("int32", "int64"),
        ("int64", "uint8"),
        (">f4", "float32"),
    ],
)
def test_harmless_casts_are_made(given: str, wanted: str) -> None:
    samples = open_samples({"x": VALUES.astype(given)}, [info("x", ("N", 2), wanted)])
    assert next(iter(samples)).feeds["x"].dtype == np.dtype(wanted)


def test_texts_become_strings() -> None:
    for array in (np.array(["a", "ü"]), np.array(["a", "ü"], object), np.array([b"a", b"b"])):
        samples = open_samples({"x": array}, [info("x", ("N",), object)])
        assert isinstance(next(iter(samples)).feeds["x"][0], str)


def test_list_of_samples_and_of_batches() -> None:
    samples = open_samples([{"x": VALUES[:1]}, {"x": VALUES[1:]}], [X])
    assert [run.rows for run in samples] == [1, 4]
    assert values(samples, 8) == [VALUES.reshape(-1).tolist()]
    assert values(open_samples([VALUES[:1], VALUES[1:2]], [X])) == [[0, 1], [2, 3]]


def test_sample_without_batch_axis_gets_one() -> None:
    samples = open_samples([{"x": VALUES[0], "label": 3}], [X])
    run = next(iter(samples))
    assert run.feeds["x"].shape == (1, 2)
    assert run.labels is not None
    assert run.labels.tolist() == [3]


def test_batch_for_a_model_that_takes_single_samples_is_cut() -> None:
    samples = open_samples([{"x": VALUES, "label": LABELS}], [info("x", (1, 2))])
    assert len(values(samples)) == 5


def test_samples_of_different_sizes_are_not_joined() -> None:
    inputs = [info("x", ("N", None))]
    samples = open_samples([{"x": np.ones((1, n), np.float32)} for n in (2, 2, 3)], inputs)
    assert [run.feeds["x"].shape for run in samples.batches(8)] == [(2, 2), (1, 3)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"y": VALUES}, "Sample 1 of samples in memory has no array for input `x`"),
        ({"x": VALUES[:, :1]}, r"Input `x` of sample 1 .*\[5, 1\]; the model needs \[N, 2\]"),
        ({"x": VALUES.astype(int)}, "/ 255"),
        ("text", "has the type string; the model needs float32"),
    ],
)
def test_items_that_do_not_fit_are_refused(item: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(open_samples([item], [X]))  # type: ignore[list-item]


def test_unnamed_arrays_need_a_model_with_one_input() -> None:
    with pytest.raises(UsageError, match=r"2 inputs \(`x`, `z`\)"):
        list(open_samples([VALUES], [X, info("z", ("N",))]))


def test_iterator_is_read_once_and_kept() -> None:
    samples = open_samples(iter([{"x": VALUES[:1]}, {"x": VALUES[1:]}]), [X])
    assert values(samples, 8) == values(samples, 8) == [VALUES.reshape(-1).tolist()]


def test_empty_list_holds_no_samples() -> None:
    with pytest.raises(UsageError, match="holds no samples"):
        list(open_samples([], [X]))


def test_folder_of_files_in_order_of_their_names(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        write(tmp_path / f"{index}.npz", x=VALUES[index : index + 1], label=LABELS[index])
    samples = open_samples(tmp_path, [X])
    assert values(samples) == [[0, 1], [2, 3], [4, 5]]
    assert [run.labels.tolist() for run in samples if run.labels is not None] == [[0], [1], [2]]
    np.save(tmp_path / "3.npy", VALUES[3])
    assert values(open_samples(tmp_path, [X]))[-1] == [6, 7]


def test_folder_without_files_and_pickles_in_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no \.npz or \.npy files"):
        open_samples(tmp_path, [X])
    write(tmp_path / "0.npz", x=np.array([object()], object))
    with pytest.raises(UsageError, match="holds Python objects"):
        list(open_samples(tmp_path, [X]))


def test_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "Some.npz", x=np.zeros((9000, 2), np.float32))
    data = bytearray(path.read_bytes())
    data[50_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"Some\.npz` cannot be read"):
        list(open_samples(tmp_path, [X]))


def test_npy_file_is_an_array_of_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    assert len(values(open_samples(str(tmp_path / "x.npy"), [X]))) == 5


def test_missing_source_is_named_with_what_can_be_given() -> None:
    with pytest.raises(UsageError, match=r"no file or folder `nothing/here`.*module:function"):
        open_samples("nothing/here", [X])
    with pytest.raises(UsageError, match=r"There is no file `gone\.npz`"):
        open_samples("gone.npz", [X])


MODULE = """
import numpy as np

def stream():
    for index in range(3):
        yield {"x": np.full((1, 2), index, np.float32)}

def listed():
    return list(stream())

def arrays():
    return {"x": np.ones((4, 2), np.float32)}

def array():
    return np.ones((4, 2), np.float32)

def number():
    return 3

def late():
    yield np.ones((1, 2), np.float32)
    raise KeyError("gone")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples_for_test.py").write_text(MODULE)
    return "samples_for_test"


@pytest.mark.parametrize(
    ("function", "count", "known"),
    [("stream", 3, None), ("listed", 3, None), ("arrays", 4, 4), ("array", 4, 4)],
)
def test_functions_give_samples_again_and_again(
    module: str, function: str, count: int, known: int | None
) -> None:
    samples = open_samples(f"{module}:{function}", [X])
    assert len(list(samples)) == len(list(samples)) == count
    assert (samples.name, samples.count) == (f"`{module}:{function}`", known)


def test_functions_that_give_no_samples_or_fail_are_named(module: str) -> None:
    with pytest.raises(UsageError, match="number` returned int; it must return arrays"):
        open_samples(f"{module}:number", [X])
    with pytest.raises(UsageError, match="late` failed with KeyError: 'gone'"):
        list(open_samples(f"{module}:late", [X]))


def test_limit_gives_at_least_one_run() -> None:
    samples = open_samples([{"x": VALUES}], [X])
    assert [run.rows for run in samples.batches(1, limit=2)] == [5]
