"""Folders of pictures as samples: decoded, resized, cut, scaled, in the order of axes of the model.

A picture is turned upright, resized so that it covers the size of the model (for `imagenet`, a
border of an eighth beyond it), and the centre is cut out. A picture of the very size is taken as it
is. Then pixels are scaled: (pixel · scale - mean) / std.

What the model declares (sizes, number of channels, type) is not asked for; what it does not, and
how pixels are scaled, is.

Owns: what pictures become. Not here: which files there are (see `given`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import LABEL, Colors, DataSettings, Layout
from onnxslim.runtime.samples.extras import import_extra
from onnxslim.runtime.samples.fitting import only_input
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.input_sizes import spell_shape
from onnxslim.runtime.samples.items import RunItem, samples_of_items
from onnxslim.runtime.samples.labelled_files import labelled_files
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.samples.user_values import Parts
from onnxslim.runtime.session import Dim, TensorInfo

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of R, G, B
_IMAGENET_CROP: Final = 0.875  # 224 of 256, as its models are evaluated


@dataclass(frozen=True)
class PictureForm:
    """The pictures that a model takes.

    Attributes:
        size: height and width in pixels.
        crop: share of the resized picture, along each axis, that is cut out.
        scale, mean, std: (pixel · scale - mean) / std, in the order of the model's channels.
    """

    size: tuple[int, int]
    channels: int
    layout: Layout
    colors: Colors
    dtype: np.dtype
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """The input of a picture (height, width, channels) with values from 0 to 255, R first."""
        if self.colors == "bgr" and self.channels > 1:
            pixels = pixels[..., [2, 1, 0, *range(3, self.channels)]]
        if self.dtype != pixels.dtype:
            values = pixels.astype(np.float32) * np.float32(self.scale)
            mean, std = (np.array(part, np.float32) for part in (self.mean, self.std))
            values = (values - mean) / std
            pixels = values.astype(self.dtype)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout == "nchw" else pixels)

    @property
    def words(self) -> str:
        """The form in words."""
        height, width = self.size
        colors = "grey" if self.channels == 1 else _MODES[self.channels]
        if self.colors == "bgr" and self.channels > 1:
            colors = "BGR" if self.channels == 3 else "BGRA"
        border = "" if self.crop == 1 else f" ({self.crop:g} of the picture)"
        cut = f"resized, {height} by {width} in the centre cut out{border}, {colors}"
        return f"{cut}, {self._scaling_words}"

    @property
    def _scaling_words(self) -> str:
        scaled = "pixel / 255" if self.scale == 1 / 255 else f"pixel * {self.scale:g}"
        if self.scale == 1:
            scaled = "pixels as they are"
        if not any(self.mean) and set(self.std) == {1.0}:
            return scaled
        mean, std = (",".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        return f"({'pixel' if self.scale == 1 else scaled} - {mean}) / {std}"


def open_pictures(given: GivenData, inputs: Sequence[TensorInfo]) -> Samples:
    """The pictures of a folder, with labels where they lie in folders of classes.

    Raises:
        UsageError: Pillow is missing, the model takes no pictures, or a setting is missing; while
            reading, too: a file is no picture.
    """
    info = only_input(inputs, f"A picture of {given.name}")
    form = picture_form(info, _completed(given.settings, given.declared))
    pillow = import_extra("PIL.Image", "images", "Pictures")
    assert given.path is not None
    found = labelled_files(given.path, given.files)

    def decode() -> Iterator[Parts]:
        for number, path in enumerate(found.files):
            yield {"pixels": _pixels(pillow, path, form), **found.label(number)}

    kept = given.kept(form, decode)

    def read() -> Iterator[RunItem]:
        for item in kept:
            yield {info.name: form.scaled(item["pixels"])}, item.get(LABEL)

    remark = ", ".join(part for part in (form.words, found.remark) if part)
    return samples_of_items(
        given.name, read, inputs, word="picture", count=found.count, remark=remark
    )


def _completed(said: DataSettings, declared: DataSettings) -> DataSettings:
    """What a user says of the scale replaces all that is declared of it."""
    if any(value is not None for value in (said.preset, said.scale, said.mean, said.std)):
        declared = replace(declared, preset=None)
    return said.over(declared)


def picture_form(info: TensorInfo, settings: DataSettings) -> PictureForm:
    """The form of pictures for an input, read off its declaration and completed by settings.

    Raises:
        UsageError: the input takes no pictures, contradicts a setting, or leaves something open.
    """
    rank = None if info.shape is None else len(info.shape)
    if info.shape is None or rank not in (3, 4):
        shape = "no declared shape" if info.shape is None else spell_shape(info.shape)
        raise UsageError(
            f"Input `{info.name}` takes no pictures: it has {shape}, and pictures need "
            "[batch, channels, height, width] or [batch, height, width, channels]."
        )
    sizes = info.shape[-3:]
    layout = settings.layout or _layout(info, sizes)
    channels, *plane = sizes if layout == "nchw" else (sizes[2], *sizes[:2])
    if not isinstance(channels, int):
        channels = 3
    if channels not in _MODES:
        raise UsageError(
            f"Input `{info.name}` has {channels} channels as {layout}; pictures have 1, 3 or 4. "
            "Say the order of its axes: --layout nchw or --layout nhwc."
        )
    scale, mean, std = _scaling(info, settings, channels)
    return PictureForm(
        _size(info, plane, settings),
        channels,
        layout,
        settings.colors or "rgb",
        np.dtype(info.dtype),
        scale,
        mean,
        std,
        _IMAGENET_CROP if settings.preset == "imagenet" else 1.0,
    )


def _layout(info: TensorInfo, sizes: Sequence[Dim]) -> Layout:
    """The order of axes that the number of channels tells."""
    first, last = (size in _MODES for size in (sizes[0], sizes[2]))
    if first == last:
        raise UsageError(
            f"Input `{info.name}` is {spell_shape(info.shape or ())}, which does not tell where "
            "the channels are. Say it: --layout nchw or --layout nhwc."
        )
    return "nchw" if first else "nhwc"


def _size(info: TensorInfo, plane: Sequence[Dim], settings: DataSettings) -> tuple[int, int]:
    given = settings.image_size or (None, None)
    sizes = []
    for word, declared, wanted in zip(("height", "width"), plane, given, strict=True):
        fixed = declared if isinstance(declared, int) and declared > 0 else None
        if fixed is not None and wanted is not None and fixed != wanted:
            raise UsageError(
                f"Input `{info.name}` has the {word} {fixed}, and `image-size` says {wanted}. "
                "Leave `image-size` out."
            )
        sizes.append(fixed or wanted)
    height, width = sizes
    if height is None or width is None:
        raise UsageError(
            f"Input `{info.name}` leaves the size of pictures open "
            f"({spell_shape(info.shape or ())}). Say it: --image-size 224."
        )
    return height, width


def _scaling(
    info: TensorInfo, settings: DataSettings, channels: int
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Scale, mean and standard deviation; 1, 0 and 1 for an input of bytes."""
    given = (settings.preset, settings.scale, settings.mean, settings.std)
    is_scaled = any(value not in (None, "none") for value in given)
    if info.dtype == np.uint8:
        if is_scaled:
            raise UsageError(
                f"Input `{info.name}` takes pixels as they are (uint8). Leave out `preset`, "
                "`scale`, `mean` and `std`."
            )
        return 1.0, (0.0,), (1.0,)
    if info.dtype is None or info.dtype.kind not in "fV":
        raise UsageError(f"Input `{info.name}` is {info.kind}, which pictures cannot be.")
    if not any(value is not None for value in given):
        raise UsageError(
            f"Input `{info.name}` takes floats, and how pixels were scaled when the model was "
            "trained is not in the file. Say it: --preset imagenet, zero-one, minus-one-one or "
            "none; or --mean and --std."
        )
    scale, mean, std = _preset(settings, channels)
    scale = settings.scale or scale
    mean, std = settings.mean or mean, settings.std or std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"`{name}` has {len(values)} values, and input `{info.name}` {channels} channels."
            )
    if settings.scale is None and settings.mean is not None and max(map(abs, mean)) > 1:
        raise UsageError(
            f"The mean {max(mean, key=abs):g} is that of pixels up to 255, but pixels are scaled "
            "to [0, 1] first. Say --scale 1, or give a mean in [0, 1]."
        )
    return scale, mean, std


def _preset(
    settings: DataSettings, channels: int
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    if settings.preset == "none":
        return 1.0, (0.0,), (1.0,)
    if settings.preset == "minus-one-one":
        return 1 / 255, (0.5,), (0.5,)
    if settings.preset != "imagenet":
        return 1 / 255, (0.0,), (1.0,)
    if channels != 3:
        raise UsageError(
            f"The preset imagenet is for three channels; the model takes {channels}. Give --mean "
            "and --std."
        )
    mean, std = _IMAGENET
    return (1 / 255, mean[::-1], std[::-1]) if settings.colors == "bgr" else (1 / 255, mean, std)


# ----------------------------------------------------------------- one file


def _pixels(pillow: Any, path: Path, form: PictureForm) -> np.ndarray:
    """The pixels (height, width, channels) of a file, as bytes, resized and cut."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as image:
                picture = _upright(image, path, _MODES[form.channels])
    except UsageError:
        raise
    except Exception as error:  # Pillow raises many kinds, with no common base
        raise UsageError(f"`{path}` cannot be read as a picture: {error}.") from error
    pixels = np.asarray(_cut(pillow, picture, form), np.uint8)
    return pixels.reshape(*form.size, form.channels)


def _upright(image: Any, path: Path, mode: str) -> Any:
    if image.mode.startswith(("I", "F")):
        raise UsageError(
            f"`{path}` has more than 8 bits a channel (`{image.mode}`), which no preset is for. "
            "Convert it to 8 bits."
        )
    transposed = import_extra("PIL.ImageOps", "images", "Pictures").exif_transpose(image)
    return transposed.convert(mode)


def _cut(pillow: Any, picture: Any, form: PictureForm) -> Any:
    height, width = form.size
    if picture.size == (width, height):
        return picture
    factor = max(width / picture.width, height / picture.height) / form.crop
    size = (max(width, round(picture.width * factor)), max(height, round(picture.height * factor)))
    resized = picture.resize(size, pillow.Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))
