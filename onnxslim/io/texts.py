"""Texts of a model file that are not UTF-8, which protobuf reads but Python cannot write.

ONNX asks for UTF-8. Its own schema does not (proto2), so onnxruntime runs such a file, while
protobuf in Python gives the text as `bytes` and refuses to write it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from onnxslim.errors import ModelError

# what others address by its text: another text would mean something else
_ADDRESSES = frozenset(
    {
        ("NodeProto", "op_type"),
        ("NodeProto", "domain"),
        ("AttributeProto", "name"),
        ("AttributeProto", "ref_attr_name"),
        ("OperatorSetIdProto", "domain"),
        ("FunctionProto", "name"),
        ("FunctionProto", "domain"),
        ("FunctionProto", "attribute"),
    }
)


@dataclass(frozen=True)
class _Place:
    """Where a text stands: a field of a message, at `index` where the field is repeated."""

    message: Any
    field: Any
    index: int | None
    text: str | bytes

    def write(self, text: str) -> None:
        if self.index is None:
            setattr(self.message, self.field.name, text)
        else:
            getattr(self.message, self.field.name)[self.index] = text

    @property
    def is_address(self) -> bool:
        return (self.message.DESCRIPTOR.name, self.field.name) in _ADDRESSES


def escape_texts(model: onnx.ModelProto, content: bytes) -> Iterator[str]:
    r"""Write the bytes that are not UTF-8 as `\xee`, the same text everywhere in the same way.

    Args:
        model: `content`, parsed; edited.
        content: the serialized model, in which one quick look finds whether there is such a text.

    Yields:
        A note for the report, where there is such a text.

    Raises:
        ModelError: it is the name of an input, an output, an operator or an attribute.
    """
    if _is_utf8(content):
        return
    signature = [*model.graph.input, *model.graph.output]
    places = list(_texts(model))
    taken = {place.text for place in places}
    escaped: dict[bytes, str] = {}
    for place in places:
        if not isinstance(place.text, bytes):
            continue
        if place.is_address or any(place.message is info for info in signature):
            raise ModelError(
                f"The name {_escaped(place.text)!r} ({place.message.DESCRIPTOR.name}."
                f"{place.field.name}) is not UTF-8, and callers of the model need it as it is. "
                "Rename it."
            )
        if place.text not in escaped:
            text = _escaped(place.text)
            while text in taken:
                text += "_"
            taken.add(text)
            escaped[place.text] = text
        place.write(escaped[place.text])
    if escaped:
        example = next(iter(escaped.values()))
        yield (
            f"{len(escaped)} names or texts are not UTF-8, which ONNX asks for: they were read in "
            f"an escaped form (`{example}`)."
        )


def _escaped(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _is_utf8(content: bytes) -> bool:
    try:
        _strict_model().FromString(content)
    except DecodeError:
        return False
    return True


@cache
def _strict_model() -> Any:
    """ModelProto of the same fields, declared in proto3, whose texts must be UTF-8."""
    source = onnx.ModelProto.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto()
    source.file.CopyToProto(file)
    file.syntax = "proto3"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(source.full_name))


def _texts(message: Any) -> Iterator[_Place]:
    """Every text in a message and in the messages within it."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if field.is_repeated:
                for index, text in enumerate(value):
                    yield _Place(message, field, index, text)
            else:
                yield _Place(message, field, None, value)
        elif field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                yield from _texts(inner)
