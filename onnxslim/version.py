"""The version of onnxslim."""

from typing import Final

VERSION: Final = "0.1.0"
