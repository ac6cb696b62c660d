"""All kinds of block, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from onnxslim.substitution.kinds.base import BlockKind
from onnxslim.substitution.kinds.effnet import EffNet
from onnxslim.substitution.kinds.fire import Fire
from onnxslim.substitution.kinds.grouped import Grouped
from onnxslim.substitution.kinds.mobilenet_v2 import MobileNetV2
from onnxslim.substitution.kinds.separable import Separable
from onnxslim.substitution.kinds.shuffle import Shuffle
from onnxslim.substitution.kinds.shuffle_v2 import ShuffleV2
from onnxslim.substitution.kinds.xception import Xception

_KINDS = (Separable, MobileNetV2, Fire, Shuffle, ShuffleV2, Xception, EffNet, Grouped)
KINDS: Final[Mapping[str, BlockKind]] = {kind.name: kind() for kind in _KINDS}
