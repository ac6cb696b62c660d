"""Lines of a file become tokens as the model takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import Dim, TensorInfo

IDS, MASK = "input_ids", "attention_mask"


def info(name: str, shape: tuple[Dim, ...], dtype: object = np.int64) -> TensorInfo:
    return TensorInfo(name, "tensor(int64)", np.dtype(dtype), shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = {"[PAD]": 7, "[UNK]": 1, "a": 2, "b": 3, "c": 4}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "texts.txt").write_text("a b\n\nc\nb a c c\n", "utf-8")
    (tmp_path / "texts.tsv").write_text("1\ta b\n0\tc\n", "utf-8")
    return tmp_path


def opened(folder: Path, *inputs: TensorInfo, name: str = "texts.txt", **words: object) -> Samples:
    words.setdefault("tokenizer", str(folder / "tokenizer.json"))
    return open_samples(GivenData(folder / name, DataSettings.of(words)), inputs)


def tokens(samples: Samples, name: str = IDS) -> list[list[int]]:
    return [run.feeds[name][0].tolist() for run in samples]


def test_texts_keep_their_length_where_the_model_leaves_it_open(folder: Path) -> None:
    samples = opened(folder, info(IDS, ("N", "L")), info(MASK, ("N", "L")))
    assert tokens(samples) == [[2, 3], [4], [3, 2, 4, 4]]
    assert tokens(samples, MASK) == [[1, 1], [1], [1, 1, 1, 1]]
    assert samples.count == 3
    cut = opened(folder, info(IDS, ("N", "L")), max_length=2)
    assert tokens(cut) == [[2, 3], [4], [3, 2]]


def test_texts_are_cut_and_padded_to_the_length_of_the_model(folder: Path) -> None:
    inputs = [info(name, (1, 3), np.int32) for name in (IDS, MASK, "token_type_ids")]
    samples = opened(folder, *inputs)
    assert tokens(samples) == [[2, 3, 7], [4, 7, 7], [3, 2, 4]]
    assert tokens(samples, MASK) == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert next(iter(samples)).feeds["token_type_ids"].dtype == np.int32
    assert tokens(opened(folder, *inputs, max_length=2))[2] == [3, 2, 7]
    with pytest.raises(UsageError, match="takes 3 tokens, and `max-length` says 4"):
        opened(folder, *inputs, max_length=4)


def test_inputs_of_other_names_are_mapped(folder: Path) -> None:
    assert tokens(opened(folder, info("tokens", ("N", "L"))), "tokens")[0] == [2, 3]
    inputs = [info("t", ("N", "L")), info("m", ("N", "L"))]
    assert tokens(opened(folder, *inputs, map=f"t={IDS},m={MASK}"), "m")[0] == [1, 1]
    with pytest.raises(UsageError, match=r"no array for input `t`.*--map t=ARRAY"):
        opened(folder, *inputs)


def test_lines_of_tsv_have_labels(folder: Path) -> None:
    samples = opened(folder, info(IDS, ("N", "L")), name="texts.tsv")
    assert [int(run.labels[0]) for run in samples if run.labels is not None] == [1, 0]
    (folder / "texts.tsv").write_text("a b\n", "utf-8")
    with pytest.raises(UsageError, match=r"Line 1 of .*class number, a tab and the text"):
        opened(folder, info(IDS, ("N", "L")), name="texts.tsv")


def test_model_that_takes_text_gets_the_lines(folder: Path) -> None:
    samples = opened(folder, info("x", ("N", 1), object), tokenizer=None)
    assert [run.feeds["x"].tolist() for run in samples][1] == [["c"]]


def test_what_is_missing_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"Give the tokenizer .*--tokenizer tokenizer\.json"):
        opened(folder, info(IDS, ("N", "L")), tokenizer=None)
    (folder / "other.json").write_text("{}")
    with pytest.raises(UsageError, match=r"other\.json` is no tokenizer file"):
        opened(folder, info(IDS, ("N", "L")), tokenizer=str(folder / "other.json"))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxslim-compiler\[text\]'"):
        opened(folder, info(IDS, ("N", "L")))
