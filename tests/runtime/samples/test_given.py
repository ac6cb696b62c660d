"""Datasets, loaders, tensors and functions give samples, the same in each reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_loader import FakeDataset, FakeLoader, FakeTensor

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples import kept_items
from onnxslim.runtime.samples.describe import describe_samples
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import Dim, TensorInfo

VALUES = np.arange(20, dtype=np.float32).reshape(10, 2)
LABELS = np.arange(10)


def info(name: str, shape: tuple[Dim, ...], dtype: object = np.float32) -> TensorInfo:
    return TensorInfo(name, "tensor(float)", np.dtype(dtype), shape)


X = info("x", ("N", 2))


def pairs(samples: Samples) -> list[tuple[list[float], int]]:
    """Each sample with its label."""
    found = []
    for run in samples:
        assert run.labels is not None
        found += list(zip(run.feeds["x"].tolist(), run.labels.tolist(), strict=True))
    return found


def test_shuffling_loader_is_read_once_and_gives_the_same_again() -> None:
    loader = FakeLoader(FakeDataset(VALUES, LABELS), 4)
    given = GivenData(loader)
    first, other = open_samples(given, [X]), open_samples(given, [X])
    known = pairs(first)
    assert known == pairs(first) == pairs(other)
    assert sorted(known) == [(VALUES[n].tolist(), n) for n in range(10)]
    assert loader.begun == 1


def test_dataset_is_read_by_number_and_ends_at_its_length() -> None:
    samples = open_samples(FakeDataset(VALUES, LABELS), [X])
    assert pairs(samples) == [(VALUES[n].tolist(), n) for n in range(10)]
    assert len(list(open_samples(FakeDataset(VALUES, LABELS), [info("x", (4, 2))]))) == 2


def test_reading_can_stop_and_go_on() -> None:
    read: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for number in range(10):
            read.append(number)
            yield VALUES[number]

    samples = open_samples(stream, [X])
    next(iter(samples))
    assert read == [0]
    assert len(list(samples)) == 10
    assert read == list(range(10))


def test_failure_inside_an_iterator_is_no_end() -> None:
    def stream() -> Iterator[np.ndarray]:
        yield VALUES[0]
        raise KeyError("gone")

    samples = open_samples(stream, [X])
    for _ in range(2):
        with pytest.raises(UsageError, match="`stream` failed with KeyError: 'gone'"):
            list(samples)


def test_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_items, "MOST_KEPT_BYTES", 100)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield VALUES[0]

    with pytest.raises(UsageError, match=r"`endless` gives more than 100 bytes .*12 of them"):
        list(open_samples(endless, [X]))


@pytest.mark.parametrize(
    "item",
    [
        (VALUES[:2], LABELS[:2]),
        [FakeTensor(VALUES[:2]), FakeTensor(LABELS[:2])],
        {"x": VALUES[:2], "targets": LABELS[:2], "unused": "text"},
        ({"x": FakeTensor(VALUES[:2])}, LABELS[:2]),
        {"x": VALUES[:2].tolist(), "label": LABELS[:2].tolist()},
    ],
)
def test_items_of_all_forms_give_the_same(item: object) -> None:
    if isinstance(item, dict) and isinstance(item["x"], list):
        item["x"] = np.array(item["x"], np.float32)
    assert pairs(open_samples([item], [X])) == [([0.0, 1.0], 0), ([2.0, 3.0], 1)]


@pytest.mark.parametrize("key", ["label", "labels", "y", "target", "targets"])
def test_labels_are_found_by_their_usual_names(key: str) -> None:
    assert pairs(open_samples({"x": VALUES, key: LABELS}, [X]))[3] == ([6.0, 7.0], 3)


def test_tensors_as_arrays() -> None:
    assert len(list(open_samples(FakeTensor(VALUES), [X]))) == 10
    assert len(list(open_samples({"x": FakeTensor(VALUES)}, [X]))) == 10


def test_loader_of_torch_itself() -> None:
    torch: Any = pytest.importorskip("torch")
    values = torch.tensor(VALUES, requires_grad=True)
    data = torch.utils.data.TensorDataset(values.detach(), torch.tensor(LABELS))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    samples = open_samples(loader, [X])
    known = pairs(samples)
    assert known == pairs(samples)
    assert sorted(known) == sorted(pairs(open_samples(data, [X])))
    assert len(list(open_samples(values, [X]))) == 10
    half = torch.tensor(VALUES).bfloat16()
    assert next(iter(open_samples(half, [X]))).feeds["x"].dtype == np.float32


# ------------------------------------------------------------------- names and scale


def test_map_says_which_array_is_which() -> None:
    arrays = {"a": VALUES, "b": -VALUES, "klass": LABELS}
    inputs = [X, info("z", ("N", 2))]
    settings = DataSettings.of({"map": "x=b,z=a,label=klass"})
    first = next(iter(open_samples(GivenData(arrays, settings), inputs)))
    assert (first.feeds["x"].tolist(), first.feeds["z"].tolist()) == ([[0, -1]], [[0, 1]])
    turned = DataSettings.of({"map": {"x": "b", "z": "a", "klass": "label"}})
    assert next(iter(open_samples(GivenData(arrays, turned), inputs))).labels == [0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x=imges", r"no array `imges`, which --map names\. Did you mean `images`\?"),
        ("xx=images", r"The model has no input `xx`.* Did you mean `x`\?"),
        ("label=clas", r"no array `clas`"),
    ],
)
def test_names_that_do_not_exist_are_told(words: str, message: str) -> None:
    given = GivenData({"images": VALUES, "n": LABELS}, DataSettings.of({"map": words}))
    with pytest.raises(UsageError, match=message):
        open_samples(given, [X])


def test_only_array_is_for_the_only_input_whatever_its_name() -> None:
    samples = open_samples({"images": VALUES, "label": LABELS}, [X])
    assert pairs(samples)[1] == ([2.0, 3.0], 1)
    assert samples.remark == "`x` is array `images`"
    with pytest.raises(UsageError, match=r"no array for input `x`.*--map x=ARRAY"):
        open_samples({"images": VALUES, "others": LABELS}, [X])


@pytest.mark.parametrize("form", ["rows", "items"])
def test_integers_are_scaled_where_the_model_wants_floats(form: str) -> None:
    bytes_, settings = (VALUES * 10).astype(np.uint8), DataSettings.of({"scale": "1/255"})
    source: Any = {"x": bytes_} if form == "rows" else [{"x": row} for row in bytes_]
    found = [run.feeds["x"][0] for run in open_samples(GivenData(source, settings), [X])]
    np.testing.assert_allclose(np.array(found), bytes_ / 255, rtol=1e-6)
    already: Any = {"x": VALUES} if form == "rows" else [{"x": row} for row in VALUES]
    with pytest.raises(UsageError, match=r"`scale` is for integers .*`x` is float32"):
        list(open_samples(GivenData(already, settings), [X]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"scale": "1/0"}, "`scale` must be a number above 0; got '1/0'"),
        ({"scale": -1}, "`scale` must be a number above 0"),
        ({"mean": "a,b"}, "`mean` must be a number; got 'a'"),
        ({"std": "0,1"}, "`std` must be a number above 0; got '0'"),
        ({"image_size": "3x"}, "one size, 224, or height and width"),
        ({"image-size": [1, 2, 3]}, "one size, 224, or height and width"),
        ({"map": "a"}, "must be INPUT=ARRAY"),
        ({"map": "a=b,a=c"}, "must be INPUT=ARRAY"),
        ({"layout": "NCWH"}, r"must be one of nchw, nhwc; got 'NCWH'\. Did you mean `nchw`"),
        ({"max_length": 1.5}, "must be an integer at least 1"),
        ({"tokenizer": 3}, "must be the path of a file"),
        ({"imagesize": 3}, r"`imagesize` is no setting of data\. Did you mean `image-size`"),
    ],
)
def test_wrong_settings_are_sentences(words: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataSettings.of(words)


def test_settings_are_spelled_as_they_are_read() -> None:
    words = {"map": "x=a,label=b", "scale": "1/4", "mean": "0.5,0.25", "image_size": "2x3"}
    settings = DataSettings.of(words)
    assert settings.scale == 0.25
    assert settings.mean == (0.5, 0.25)
    assert settings.image_size == (2, 3)
    assert DataSettings.of(settings.spelled()) == settings


def test_line_says_what_was_understood() -> None:
    line = describe_samples(open_samples({"x": VALUES, "y": LABELS}, [X]), "calibration")
    assert line == (
        "calibration: 10 samples of arrays in memory; `x` float32 [1, 2], 0 to 19; labels 0 to 9"
    )
    many = open_samples({"x": np.ones((99, 2), np.float32)}, [X])
    assert describe_samples(many, "evaluation").endswith("all 1; as the first 32 are")
