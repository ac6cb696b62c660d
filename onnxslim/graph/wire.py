"""Protobuf at the level of bytes: keep large weights out of Python's way.

A parsed `ModelProto` copies every weight, and serializing copies it again; on a 548 MB model
that is most of the time and all of the memory. So a file is split before it is parsed:

    split(file)            -> skeleton (small, parsed by onnx) with a placeholder for each payload
    join(skeleton, ...)    -> the chunks of a complete file, payloads spliced in, nothing copied
    locate(file)           -> where in the file the data of all tensors lie

A placeholder is an ordinary external-data tensor whose `location` is `PLACEHOLDER`, a random
word of this process that no file can contain by accident. Everything that takes an onnx model
with external data (shape inference, an onnxruntime session with initializers given in memory)
therefore takes a skeleton as it is.

Models of the domain `ai.onnx.ml` keep their numbers in lists: each node of a tree is an entry in
ten attributes. A long list is cut out as well: the placeholder is an attribute of the same name and
type with one entry, whose `doc_string` begins with `PLACEHOLDER`; the payload is the attribute as
it was. Lists whose length says how large an output is stay.

Only length-delimited fields that can hold a payload are entered, and only when they are at least
`threshold` bytes long: the cost is one step per node and initializer, not per byte.
Reference: protobuf encoding, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from onnxslim.errors import ModelError

PLACEHOLDER: Final = f"onnxslim-{secrets.token_hex(8)}"
DEFAULT_THRESHOLD: Final = 1024
LIST_THRESHOLD: Final = 1 << 14  # bytes of an attribute that is a list
MAX_DEPTH: Final = 100  # protobuf's own limit on nested messages

Buffer = bytes | memoryview

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_RUN: Final = 64  # fields with the same tag, from which they are looked at together
_WINDOW: Final = 1 << 20  # bytes looked at together
_VARINT_BYTES: Final = 10
_TENSOR = "TensorProto"
# message -> {field number: message}: the paths on which `split` looks for tensors (onnx.proto).
# Functions, sparse tensors and lists of tensors stay in the skeleton, so they are not entered.
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: _TENSOR, 6: "GraphProto", 11: "GraphProto"},
}
# all paths on which a model may have tensors: those that `locate` follows
_ALL_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR, 6: "GraphProto", 10: _TENSOR, 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}  # fmt: skip
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
# packed field -> data types whose packed bytes are equal to their raw_data (little endian)
_PACKED_AS_RAW: Final[dict[int, frozenset[int]]] = {
    4: frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.COMPLEX64}),
    10: frozenset({onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX128}),
}
_DATA_FIELDS: Final = frozenset({_RAW_DATA, *_PACKED_AS_RAW})
_INT64_DATA: Final = 7
_ATTRIBUTE: Final = "AttributeProto"
_NODE_DOMAIN, _ATTRIBUTE_NAME, _ATTRIBUTE_DOC = 7, 1, 13
_LIST_DOMAIN: Final = b"ai.onnx.ml"
# lists on which the size of an output depends
_SIZES: Final = ("cats_", "classlabels_", "int64_vocabulary", "string_vocabulary")
_LIST_FIELDS: Final = {  # type -> field of the entries
    int(onnx.AttributeProto.FLOATS): 7,
    int(onnx.AttributeProto.INTS): 8,
    int(onnx.AttributeProto.STRINGS): 9,
}
_TYPE_TAG: Final = b"\xa0\x01"  # field 20 of AttributeProto, a varint
_LIST_KINDS: Final = {field: kind for kind, field in _LIST_FIELDS.items()}
_LOCATED_FIELDS: Final = _DATA_FIELDS | {_INT64_DATA}


@dataclass(frozen=True)
class Payload:
    """The bytes of one tensor or list: `nbytes` of them, which `read` gives when they are written.

    Attributes:
        is_list: whether they are an attribute of its own, and not the values of a tensor.
    """

    nbytes: int
    read: Callable[[], Buffer]
    is_list: bool = False


@dataclass
class SplitFile:
    """A model without its large weights; a placeholder's `offset` points into the file.

    Attributes:
        tensors: number of payloads, lists included.
    """

    skeleton: bytes
    tensors: int


def split(file: memoryview, threshold: int = DEFAULT_THRESHOLD) -> SplitFile:
    """Cut tensors of `threshold` bytes or more out of a serialized `ModelProto`.

    Raises:
        ModelError: the bytes end early or are not a protobuf message.
    """
    counter = [0]
    chunks, _ = _cut(file, 0, len(file), "ModelProto", threshold, counter, 0)
    return SplitFile(b"".join(chunks), counter[0])


def join(
    skeleton: bytes, payloads: Sequence[Payload], *, tensors: bool = True
) -> tuple[Iterator[Buffer], int]:
    """The chunks of the whole file and their total length in bytes.

    Args:
        skeleton: a placeholder's `offset` is an index into `payloads`.
        payloads: of all placeholders.
        tensors: whether placeholders of tensors are replaced, or only those of lists.
    """
    if not tensors and not any(payload.is_list for payload in payloads):
        return iter((skeleton,)), len(skeleton)
    marker = PLACEHOLDER.encode()
    marks = []
    at = skeleton.find(marker)
    while at >= 0:
        marks.append(at)
        at = skeleton.find(marker, at + len(marker))
    known: Sequence[Payload | None] = payloads
    if not tensors:
        known = [payload if payload.is_list else None for payload in payloads]
    parts, total = _splice(memoryview(skeleton), 0, len(skeleton), "ModelProto", marks, known)
    return (part.read() if isinstance(part, Payload) else part for part in parts), total


@dataclass(frozen=True)
class Located:
    """The data of one tensor in a serialized model.

    Attributes:
        start, stop: the bytes of the file that are its raw_data (or packed floats, which are the
            same bytes; or, of an int64 tensor, packed numbers of varying length).
        name, data_type, dims: of the tensor, as declared; nothing of it has been checked.
        path: the field numbers on the way to the tensor, and in a repeated field which one it is.
        is_varints: whether the data are numbers of varying length.
    """

    start: int
    stop: int
    name: str
    data_type: int
    dims: tuple[int, ...]
    path: tuple[tuple[int, int], ...]
    is_varints: bool = False


def locate(file: memoryview, threshold: int) -> Iterator[Located]:
    """The data of all tensors of `threshold` bytes or more, in the order of the file.

    Raises:
        ModelError: the bytes end early or are not a protobuf message.
    """
    yield from _locate(file, 0, len(file), "ModelProto", threshold, ())


def placeholder(tensor: onnx.TensorProto, offset: int, nbytes: int) -> None:
    """Make `tensor` a placeholder for a payload; its own data fields must be empty."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    entries = (("location", PLACEHOLDER), ("offset", str(offset)), ("length", str(nbytes)))
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


def list_placeholder(name: str, kind: int, offset: int, nbytes: int) -> onnx.AttributeProto:
    """A placeholder for a list of `nbytes` bytes: one entry, so that its type is what it was."""
    stub = onnx.AttributeProto(name=name, doc_string=f"{PLACEHOLDER} {offset} {nbytes}")
    stub.type = kind  # type: ignore[assignment]
    if kind == onnx.AttributeProto.FLOATS:
        stub.floats.append(0.0)
    elif kind == onnx.AttributeProto.INTS:
        stub.ints.append(0)
    else:
        stub.strings.append(b"")
    return stub


def list_entries(attribute: onnx.AttributeProto) -> tuple[int, int] | None:
    """Offset and length of the list that `attribute` is a placeholder for; None for others."""
    word, _, numbers = attribute.doc_string.partition(" ")
    if word != PLACEHOLDER:
        return None
    offset, nbytes = numbers.split(" ")
    return int(offset), int(nbytes)


def external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """The key-value pairs of `tensor.external_data`."""
    return {entry.key: entry.value for entry in tensor.external_data}


# ---------------------------------------------------------------------------- sizes


def varint_bytes(number: int) -> int:
    """Bytes of an integer as a varint: 7 bits each, and ten for a negative one (64 bits)."""
    return max(1, (number.bit_length() + 6) // 7) if number >= 0 else 10


def field_bytes(length: int) -> int:
    """Bytes of a length-delimited field of `length` bytes, whose number is below 16."""
    return 1 + varint_bytes(length) + length


def initializer_bytes(name: str, shape: Sequence[int], payload: int, *, is_input: bool) -> int:
    """Bytes that a tensor takes as an initializer of a graph.

    Args:
        name: of the tensor.
        shape: of the tensor.
        payload: bytes of its values.
        is_input: whether the graph lists it as an input too, as below IR version 4.
    """
    own_name = field_bytes(len(name.encode()))
    dims = [1 + varint_bytes(size) for size in shape]
    data_type = 2
    total = field_bytes(own_name + sum(dims) + data_type + field_bytes(payload))
    if is_input:
        # ValueInfoProto {name, TypeProto {Tensor {data_type, TensorShapeProto {Dimension ...}}}}
        sizes = sum(field_bytes(size) for size in dims)
        tensor_type = field_bytes(data_type + field_bytes(sizes))
        total += field_bytes(own_name + field_bytes(tensor_type))
    return total


# ---------------------------------------------------------------------------- reading


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError(
        f"The file is not an ONNX model or is cut off: a number is broken at byte {at}. "
        "Check that the file was copied completely."
    )


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields_of(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, field start, content start, field end) of one message.

    Raises:
        ModelError: the bytes end early or are not a protobuf message.
    """
    while at < end:
        start = at
        # nearly all tags and lengths take one byte: spare them the call of `_varint`
        tag = data[at]
        if tag < 0x80:
            at += 1
        else:
            tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7  # a tag is (field number << 3) | wire type
        content = at
        if kind == _LEN:
            length = data[at] if at < end else 0x80
            if length < 0x80:
                at += 1
            else:
                length, at = _varint(data, at, end)
            content = at
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _I32:
            at += 4
        elif kind == _I64:
            at += 8
        else:
            number = 0
        if number == 0:
            raise ModelError(
                f"The file is not an ONNX model: byte {start} is no protobuf field "
                f"(its tag is {tag}). Give the path of an .onnx file."
            )
        if at > end:
            raise ModelError(
                f"The file is not an ONNX model or is cut off: the field at byte {start} "
                f"ends at byte {at}, but only {end} are there. "
                "Check that the file was copied completely."
            )
        yield number, kind, start, content, at


def _contents(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """As `fields_of`, without the fields that are numbers.

    A list that is not packed, as onnx writes `AttributeProto.ints`, may have millions of them: they
    are passed over together.
    """
    fields = fields_of(data, at, end)
    same, before = 0, 0
    while (field := next(fields, None)) is not None:
        number, kind, start, _, stop = field
        if kind == _LEN:
            yield field
            continue
        same, before = (same + 1 if number == before else 0), number
        if same == _RUN and kind == _VARINT and data[start] < 0x80:
            same = 0
            fields = fields_of(data, _after_varints(data, data[start], stop, end), end)


def _after_varints(data: memoryview, tag: int, at: int, end: int) -> int:
    """Where the fields end that begin at `at`, have this tag of one byte, and are whole varints."""
    while at < end:
        window = np.frombuffer(data[at : min(end, at + _WINDOW)], np.uint8)
        # a byte below 128 is a tag or the last one of a varint, in turn
        ends = np.flatnonzero(window < 0x80)
        tags, ends = ends[: ends.size // 2 * 2 : 2], ends[1::2]
        starts = np.concatenate(([0], ends[:-1] + 1))
        good = (tags == starts) & (window[tags] == tag) & (ends - tags <= _VARINT_BYTES)
        count = int(good.size if good.all() else good.argmin())
        if count:
            at += int(ends[count - 1]) + 1
        if count < max(good.size, 1):
            break
    return at


def _cut(
    data: memoryview,
    start: int,
    end: int,
    message: str,
    threshold: int,
    counter: list[int],
    depth: int,
) -> tuple[list[Buffer], int]:
    """The chunks of one message with placeholders for large tensors, and their length."""
    if depth > MAX_DEPTH:
        raise ModelError(f"The model nests graphs more than {MAX_DEPTH} messages deep.")
    if message == _TENSOR:
        return _cut_tensor(data, start, end, threshold, counter)
    children = _CHILDREN[message]
    chunks: list[Buffer] = []
    inner: list[Buffer]
    total, kept = 0, start  # bytes in `chunks`; everything before `kept` is in them
    may_have_lists = message == "NodeProto" and _domain(data, start, end) == _LIST_DOMAIN
    for number, kind, field, content, stop in _contents(data, start, end):
        if stop - content < threshold or kind != _LEN or number not in children:
            continue
        before = counter[0]
        found = _list(data, content, stop) if may_have_lists else None
        if found is not None:
            counter[0] += 1
            stub = list_placeholder(*found, content, stop - content).SerializeToString()
            inner, size = [stub], len(stub)
        else:
            inner, size = _cut(data, content, stop, children[number], threshold, counter, depth + 1)
        if counter[0] == before:
            continue  # no large tensor inside: the field is copied with what follows
        # the message got shorter, so its length, and every length around it, is written anew
        head = _encode_varint(number << 3 | _LEN) + _encode_varint(size)
        chunks += [data[kept:field], head, *inner]
        total += field - kept + len(head) + size
        kept = stop
    chunks.append(data[kept:end])
    return chunks, total + end - kept


def _domain(data: memoryview, start: int, end: int) -> bytes:
    """The domain of a NodeProto."""
    found = b""
    for number, kind, _, content, stop in _contents(data, start, end):
        if number == _NODE_DOMAIN and kind == _LEN:
            found = bytes(data[content:stop])
    return found


def _list(data: memoryview, start: int, end: int) -> tuple[str, int] | None:
    """Name and type of the AttributeProto in these bytes, if it is a long list.

    Entries are many and small, so they are not read: the name comes first, the type last, as all
    that write protobuf order fields by number.
    """
    if end - start < LIST_THRESHOLD:
        return None
    fields = fields_of(data, start, end)
    number, kind, _, content, stop = next(fields)
    if number != _ATTRIBUTE_NAME or kind != _LEN:
        return None
    name = bytes(data[content:stop]).decode(errors="replace")
    first, *_ = next(fields, (0, 0))
    declared = _LIST_KINDS.get(first)
    tail = bytes(data[end - len(_TYPE_TAG) - 1 : end])
    if declared is None or tail != _TYPE_TAG + bytes([declared]) or name.startswith(_SIZES):
        return None
    return name, declared


def _cut_tensor(
    data: memoryview, start: int, end: int, threshold: int, counter: list[int]
) -> tuple[list[Buffer], int]:
    data_type, payload = 0, None
    for number, kind, field, content, stop in fields_of(data, start, end):
        if number == _DATA_TYPE and kind == _VARINT:
            data_type, _ = _varint(data, content, stop)
        elif number in _DATA_FIELDS and kind == _LEN and stop - content >= threshold:
            payload = payload or (number, field, content, stop)
    if payload is None:
        return [data[start:end]], end - start
    number, field, content, stop = payload
    if number != _RAW_DATA and data_type not in _PACKED_AS_RAW[number]:
        return [data[start:end]], end - start
    # all other fields stay; the data become a placeholder that remembers where they lie
    counter[0] += 1
    stub = onnx.TensorProto()
    placeholder(stub, content, stop - content)
    chunks: list[Buffer] = [data[start:field], data[stop:end], stub.SerializeToString()]
    return chunks, sum(len(chunk) for chunk in chunks)


def _locate(
    data: memoryview,
    start: int,
    end: int,
    message: str,
    threshold: int,
    path: tuple[tuple[int, int], ...],
) -> Iterator[Located]:
    if len(path) > MAX_DEPTH:
        raise ModelError(f"The model nests graphs more than {MAX_DEPTH} messages deep.")
    if message == _TENSOR:
        yield from _locate_tensor(data, start, end, threshold, path)
        return
    children = _ALL_CHILDREN[message]
    counts = dict.fromkeys(children, 0)
    for number, kind, _, content, stop in _contents(data, start, end):
        if number not in children or kind != _LEN:
            continue
        place = (number, counts[number])
        counts[number] += 1
        if stop - content >= threshold and not (
            children[number] == _ATTRIBUTE and _list(data, content, stop)
        ):
            yield from _locate(data, content, stop, children[number], threshold, (*path, place))


def _locate_tensor(
    data: memoryview, start: int, end: int, threshold: int, path: tuple[tuple[int, int], ...]
) -> Iterator[Located]:
    data_type, name, found = 0, "", []
    dims: list[int] = []
    for number, kind, _, content, stop in fields_of(data, start, end):
        if number == _DATA_TYPE and kind == _VARINT:
            data_type, _ = _varint(data, content, stop)
        elif number == _NAME and kind == _LEN:
            name = bytes(data[content:stop]).decode(errors="replace")
        elif number == _DIMS:
            dims += _numbers(data, kind, content, stop)
        elif number in _LOCATED_FIELDS and kind == _LEN and stop - content >= threshold:
            found.append((number, content, stop))
    if len(found) != 1:
        return
    number, content, stop = found[0]
    is_varints = number == _INT64_DATA and data_type == onnx.TensorProto.INT64
    if number == _RAW_DATA or is_varints or data_type in _PACKED_AS_RAW.get(number, ()):
        yield Located(content, stop, name, data_type, tuple(dims), path, is_varints)


def _numbers(data: memoryview, kind: int, at: int, stop: int) -> Iterator[int]:
    """The numbers of a repeated field, packed or one of many."""
    if kind not in (_LEN, _VARINT):
        return
    while at < stop:
        value, at = _varint(data, at, stop)
        yield value


def _splice(
    data: memoryview,
    start: int,
    end: int,
    message: str,
    marks: Sequence[int],
    payloads: Sequence[Payload | None],
) -> tuple[list[Buffer | Payload], int]:
    """The inverse of `_cut`; `marks` are the positions of placeholders inside this message."""
    if message == _TENSOR:
        return _splice_tensor(data[start:end], payloads)
    children = _CHILDREN[message]
    parts: list[Buffer | Payload] = []
    total, kept, mark = 0, start, 0
    for number, _, field, content, stop in fields_of(data, start, end):
        if mark == len(marks):
            break
        if marks[mark] >= stop:
            continue
        first = mark  # the marks from here up to `stop` lie in this field
        while mark < len(marks) and marks[mark] < stop:
            mark += 1
        if message == _ATTRIBUTE and number == _ATTRIBUTE_DOC:
            return _splice_list(data[start:end], payloads)
        child = children[number]
        inner, size = _splice(data, content, stop, child, marks[first:mark], payloads)
        head = _encode_varint(number << 3 | _LEN) + _encode_varint(size)
        parts += [data[kept:field], head, *inner]
        total += field - kept + len(head) + size
        kept = stop
    parts.append(data[kept:end])
    return parts, total + end - kept


def _splice_list(
    message: memoryview, payloads: Sequence[Payload | None]
) -> tuple[list[Buffer | Payload], int]:
    entries = list_entries(onnx.AttributeProto.FromString(message))
    payload = None if entries is None else payloads[entries[0]]
    if payload is None:  # the word stands somewhere in a text
        return [message], len(message)
    return [payload], payload.nbytes


def _splice_tensor(
    message: memoryview, payloads: Sequence[Payload | None]
) -> tuple[list[Buffer | Payload], int]:
    tensor = onnx.TensorProto.FromString(message)
    payload = payloads[int(external_entries(tensor)["offset"])]
    if payload is None:
        return [message], len(message)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    header = tensor.SerializeToString()
    head = _encode_varint(_RAW_DATA << 3 | _LEN) + _encode_varint(payload.nbytes)
    return [header, head, payload], len(header) + len(head) + payload.nbytes
