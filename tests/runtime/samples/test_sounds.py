"""Files of sound become windows of one channel at one rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import Dim, TensorInfo

RATE = 800


def info(*shape: Dim) -> TensorInfo:
    return TensorInfo("x", "tensor(float)", np.dtype(np.float32), shape)


def opened(folder: Path, one: TensorInfo, **words: object) -> Samples:
    return open_samples(GivenData(folder, DataSettings.of(words)), [one])


def shapes(samples: Samples) -> list[tuple[int, ...]]:
    return [run.feeds["x"].shape for run in samples]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    times = np.arange(2000) / RATE
    both = np.stack([np.sin(2 * np.pi * 20 * times), np.zeros(2000)], axis=1)
    for word, part in (("no", both), ("yes", both[:300])):
        (tmp_path / word).mkdir()
        soundfile.write(tmp_path / word / "a.wav", part, RATE, subtype="FLOAT")
    return tmp_path


def test_sounds_are_cut_into_windows_and_short_ones_filled_up(folder: Path) -> None:
    samples = opened(folder, info("N", 600))
    assert shapes(samples) == [(1, 600)] * 4
    runs = list(samples)
    assert [int(run.labels[0]) for run in runs if run.labels is not None] == [0, 0, 0, 1]
    assert not runs[-1].feeds["x"][0, 300:].any()
    # channels are averaged
    wanted = np.sin(2 * np.pi * 20 * np.arange(600) / RATE) / 2
    np.testing.assert_allclose(runs[0].feeds["x"][0], wanted, atol=1e-6)


def test_window_is_asked_of_the_user_where_the_model_leaves_it_open(folder: Path) -> None:
    assert shapes(opened(folder, info("N", 1, "T"), window=1)) == [(1, 1, 800)] * 3
    assert shapes(opened(folder, info("N", "T"))) == [(1, 2000), (1, 300)]
    with pytest.raises(UsageError, match="takes 600 values, and `window` is 800 at 800 Hz"):
        opened(folder, info("N", 600), window=1)


def test_sounds_are_resampled(folder: Path) -> None:
    samples = opened(folder, info("N", "T"), sample_rate=400)
    first = next(iter(samples)).feeds["x"][0]
    wanted = np.sin(2 * np.pi * 20 * np.arange(1000) / 400) / 2
    assert len(first) == 1000
    np.testing.assert_allclose(first[50:-50], wanted[50:-50], atol=0.01)


def test_what_does_not_fit_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"takes no sounds: it is \[N, 80, T\].*spectrograms"):
        opened(folder, info("N", 80, "T"))
    (folder / "yes" / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(UsageError, match=r"b\.wav` cannot be read as a sound"):
        list(opened(folder, info("N", "T")))
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxslim-compiler\[audio\]'"):
        opened(folder, info("N", "T"))
