"""What a user asks of `quantize-int8`, and what a run settles."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.quantization.calibration_ranges import RangeMethod
from onnxslim.quantization.rules import ActivationRanges
from onnxslim.quantization.weight_rounding import Rounding


class CodeType(enum.StrEnum):
    """The type of 8-bit codes."""

    U8 = "u8"
    S8 = "s8"

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """The same as a numpy type."""
        return np.dtype(np.uint8) if self is CodeType.U8 else np.dtype(np.int8)


class Placement(enum.StrEnum):
    """Which operators become integers: the fastest set here, all that can, or layers alone."""

    MEASURED = "measured"
    ALL = "all"
    LAYERS = "conv-matmul"


@dataclass(frozen=True)
class Int8Options:
    """The options of `quantize-int8`, as its page explains them; None stands for `auto`.

    Attributes:
        alpha_of: alpha of the smoothing of a product, by its name; None: it is searched.
    """

    method: RangeMethod | None
    activations: CodeType | None
    weights: CodeType
    per_channel: bool
    symmetric: bool
    reduce_range: bool | None
    rounding: Rounding | None
    equalize: bool
    bias_correct: bool
    smooth: bool | None
    placement: Placement
    layers: LayerFilter
    max_error: float | None
    ranges: ActivationRanges | None
    alpha_of: Callable[[str], float] | None


@dataclass(frozen=True)
class Decision:
    """What a run settled, in words that options can repeat without measuring.

    Attributes:
        chosen: names of the clusters on integers, in the order of the graph.
        left: names of the clusters that could be on integers and stay float.
        activations, reduce_range: what these options came to.
        ranges: where ranges of the inputs of products come from; None: the model has none that
            could find them at run time.
        alphas: of the smoothing of products, by the name of the first that reads a tensor; 0: not
            smoothed.
    """

    chosen: tuple[str, ...]
    left: tuple[str, ...]
    activations: CodeType
    reduce_range: bool
    ranges: ActivationRanges | None
    alphas: Mapping[str, float]
