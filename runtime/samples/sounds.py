"""Folders of sounds as samples: one channel, at one sampling rate, cut into windows.

    onnxslim keywords.onnx --calib sounds/ --sample-rate 16000 --window 1

Channels are averaged. A sound is cut into windows one after the other; what is left at its end is
dropped, and a sound that is shorter than a window is filled up with zeros. The window is what the
model declares, else `window`, else the whole sound. Values lie in [-1, 1].

Owns: what sounds become. Not here: which files there are (see `given`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.limits import MOST_ROW_BYTES
from onnxslim.pipeline.data_settings import LABEL, DataSettings
from onnxslim.runtime.samples.extras import import_extra
from onnxslim.runtime.samples.fitting import only_input
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.input_sizes import spell_shape
from onnxslim.runtime.samples.items import RunItem, item_input, samples_of_items
from onnxslim.runtime.samples.labelled_files import labelled_files
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.samples.user_values import Parts
from onnxslim.runtime.session import TensorInfo


@dataclass(frozen=True)
class SoundForm:
    """The sounds that a model takes.

    Attributes:
        rate: sampling rate in Hz.
        window: values in a window; None: the whole sound.
        has_channel_axis: whether a window is (1, values) and not (values).
    """

    rate: int
    window: int | None
    has_channel_axis: bool


def open_sounds(given: GivenData, inputs: Sequence[TensorInfo]) -> Samples:
    """The sounds of a folder, with labels where they lie in folders of classes.

    Raises:
        UsageError: soundfile is missing, or the model takes no sounds; while reading, too: a file
            is no sound.
    """
    info = only_input(inputs, f"A sound of {given.name}")
    library = import_extra("soundfile", "audio", "Sounds")
    assert given.path is not None
    found = labelled_files(given.path, given.files)
    form = sound_form(info, given.settings, _rate(library, found.files[0]))

    def decode() -> Iterator[Parts]:
        for number, path in enumerate(found.files):
            for window in _windows(_sound(library, path, form), form):
                yield {"sound": window, **found.label(number)}

    kept = given.kept(form, decode)

    def read() -> Iterator[RunItem]:
        for number, item in enumerate(kept, 1):
            sound = item["sound"][np.newaxis] if form.has_channel_axis else item["sound"]
            where = f"window {number} of {given.name}"
            yield {info.name: item_input(sound, info, where)}, item.get(LABEL)

    length = "whole" if form.window is None else f"in windows of {form.window / form.rate:g} s"
    files = f"{found.count} file{'s' * (found.count != 1)} at {form.rate} Hz, {length}"
    remark = ", ".join(part for part in (files, found.remark) if part)
    return samples_of_items(given.name, read, inputs, word="window", remark=remark)


def sound_form(info: TensorInfo, settings: DataSettings, rate: int) -> SoundForm:
    """The form of sounds for an input; `rate` is that of the first file.

    Raises:
        UsageError: the input takes no sounds, or contradicts a setting.
    """
    shape = info.shape or ()
    if len(shape) not in (1, 2, 3) or (len(shape) == 3 and shape[1] != 1):
        raise UsageError(
            f"Input `{info.name}` takes no sounds: it is {spell_shape(shape)}, and sounds are "
            "[batch, values] or [batch, 1, values]. Features, such as spectrograms, are given as "
            "arrays."
        )
    rate = settings.sample_rate or rate
    fixed = shape[-1] if isinstance(shape[-1], int) and shape[-1] > 1 else None
    wanted = None if settings.window is None else round(settings.window * rate)
    if wanted == 0:
        raise UsageError(f"`window` of {settings.window:g} s holds no value at {rate} Hz.")
    if fixed is not None and wanted is not None and fixed != wanted:
        raise UsageError(
            f"Input `{info.name}` takes {fixed} values, and `window` is {wanted} at {rate} Hz. "
            "Leave `window` out, or say another `sample-rate`."
        )
    return SoundForm(rate, fixed or wanted, len(shape) == 3)


def _rate(library: Any, path: Path) -> int:
    try:
        return int(library.info(path).samplerate)
    except Exception as error:  # soundfile has errors of its own, and raises those of others
        raise UsageError(f"`{path}` cannot be read as a sound: {error}.") from error


def _sound(library: Any, path: Path, form: SoundForm) -> np.ndarray:
    """The values of a file, one channel at the rate of `form`."""
    try:
        _check_length(path, library.info(path))
        values, rate = library.read(path, dtype="float32", always_2d=True)
    except UsageError:
        raise
    except Exception as error:  # as above
        raise UsageError(f"`{path}` cannot be read as a sound: {error}.") from error
    mono = values.mean(axis=1)
    if rate == form.rate:
        return np.asarray(mono)
    from scipy.signal import resample_poly  # takes a second to load or two: not at start-up

    common = gcd(rate, form.rate)
    return np.asarray(resample_poly(mono, form.rate // common, rate // common), np.float32)


def _check_length(path: Path, header: Any) -> None:
    if header.frames * header.channels * 4 > MOST_ROW_BYTES:
        raise UsageError(
            f"`{path}` is too long a sound, {header.duration:.0f} s, to be read at once. Cut it "
            "into files."
        )


def _windows(sound: np.ndarray, form: SoundForm) -> Iterator[np.ndarray]:
    length = form.window
    if length is None:
        yield sound
        return
    if len(sound) < length:
        yield np.pad(sound, (0, length - len(sound)))
        return
    for start in range(0, len(sound) - length + 1, length):
        yield sound[start : start + length]
