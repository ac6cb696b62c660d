"""Fields in sequence, numbers and byte strings: written, and read with all bounds checked."""

from __future__ import annotations

from typing import Final

from onnxslim.errors import ModelError

_MAX_BITS: Final = 63


def varint(*values: int) -> bytes:
    """Whole numbers of at least 0, seven bits a byte, lowest first, as protobuf writes them."""
    out = bytearray()
    for value in values:
        rest = value
        while rest >= 0x80:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


class FieldReader:
    """Reads fields in sequence, and never past the end.

    Args:
        data: the bytes that hold the fields.
        what: the name of `data` in messages.
    """

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._what = what
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bytes that have not been read."""
        return len(self._data) - self.at

    def take(self, nbytes: int) -> memoryview:
        """The next `nbytes` bytes.

        Raises:
            ModelError: there are fewer.
        """
        if nbytes > self.left:
            raise ModelError(f"{self._what} ends {nbytes - self.left:,} bytes too early")
        self.at += nbytes
        return self._data[self.at - nbytes : self.at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def number(self, most: int | None = None) -> int:
        """The next number.

        Args:
            most: the largest number allowed; None: 2^63.

        Raises:
            ModelError: the number is larger, or `data` ends inside it.
        """
        value = shift = 0
        while shift <= _MAX_BITS:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        limit = 2**_MAX_BITS if most is None else most
        if value > limit or shift > _MAX_BITS:
            raise ModelError(f"{self._what} holds the number {value:,} where {limit:,} is the most")
        return value
