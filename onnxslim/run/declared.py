"""What the metadata of a model say of the pictures that it takes.

ONNX defines two entries of `metadata_props`: `Image.BitmapPixelFormat` and
`Image.NominalPixelRange` (docs/MetadataProps.md). Others are not read: their meaning is nobody's
promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from onnxslim.io.model import Model
from onnxslim.pipeline.data_settings import Colors, DataSettings, Preset

_COLORS: Final[Mapping[str, Colors]] = {
    "rgb8": "rgb",
    "rgba8": "rgb",
    "bgr8": "bgr",
    "bgra8": "bgr",
}
_RANGES: Final[Mapping[str, Preset]] = {
    "nominalrange_0_255": "none",
    "normalized_0_1": "zero-one",
    "normalized_1_1": "minus-one-one",
}


def declared_settings(model: Model) -> DataSettings:
    """The settings of pictures that the model declares; a user's own go before them."""
    entries = {item.key: item.value.lower() for item in model.shell.metadata_props}
    return DataSettings(
        colors=_COLORS.get(entries.get("Image.BitmapPixelFormat", "")),
        preset=_RANGES.get(entries.get("Image.NominalPixelRange", "")),
    )
