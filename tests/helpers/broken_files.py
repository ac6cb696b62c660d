"""Broken model files and packed files, made from valid ones by bytes and by protobuf structure."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
from exit_nets import classifier
from layer_nets import dense_net, residual_net
from recurrent_nets import recurrent_net
from tiny_models import TINY

from onnxslim.errors import OnnxslimError
from onnxslim.tools.pack import pack

Maker = Callable[[bytes, random.Random], bytes]
"""Breaks a file at random."""

_TEXTS: Final = (
    "",
    "x",
    "y",
    "nope",
    "ai.onnx",
    "com.microsoft",
    "N",
    "\x00",
    "é",
    "a" * 300,
    "../w",
)
_NUMBERS: Final = (0, 1, -1, 2, 3, 7, 13, 21, 99, 255, 1 << 31, (1 << 62), -(1 << 62))
_INT32_MAX: Final = (1 << 31) - 1


def valid_models() -> dict[str, bytes]:
    """The valid models that inputs are made from, serialized, by name."""
    found = {name: make().SerializeToString(deterministic=True) for name, make in TINY.items()}
    nets = {"dense": dense_net(6, 8, 4), "classifier": classifier(), "lstm": recurrent_net()}
    found |= {name: net.SerializeToString(deterministic=True) for name, net in nets.items()}
    found["residual"] = residual_net().to_bytes()
    return found


def packed_files(models: dict[str, bytes]) -> dict[str, bytes]:
    """Packed files of the models that can be packed, by name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.onnx", Path(folder) / "m.onnxz"
        for name, data in models.items():
            source.write_bytes(data)
            with contextlib.suppress(OnnxslimError):
                pack(source, target)
                found[name] = target.read_bytes()
    return found


def broken_files(
    base: dict[str, bytes], makers: Sequence[Maker], seed: int
) -> Iterator[tuple[str, bytes]]:
    """Broken files without end, each with its number, which decides alone what is in it."""
    names = sorted(base)
    number = 0
    while True:
        rng = random.Random(f"{seed}/{number}")
        data = base[rng.choice(names)]
        yield f"{seed}-{number}", rng.choice(makers)(data, rng)
        number += 1


# ----------------------------------------------------------------- by bytes


def broken_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with some bytes changed, cut out, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if out:
            _break_at(out, rng.randrange(len(out)), rng.choice((1, 1, 2, 4, 8, 64)), rng)
    return bytes(out)


def _break_at(out: bytearray, at: int, size: int, rng: random.Random) -> None:
    match rng.randrange(6):
        case 0:
            out[at] = rng.randrange(256)
        case 1:
            del out[at : at + size]
        case 2:
            out[at:at] = out[at : at + size]
        case 3:
            out[at : at + size] = rng.randbytes(size)
        case 4:
            del out[at:]
        case 5:
            out[at] ^= 1 << rng.randrange(8)


# ----------------------------------------------------------------- by structure


def broken_structure(data: bytes, rng: random.Random) -> bytes:
    """A model that protobuf reads, with fields of its messages changed at random."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_field(rng.choice(list(_messages(model))), rng)
    return bytes(model.SerializeToString())


def _messages(message: Any) -> Iterator[Any]:
    """A message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from _messages(item)


def _change_field(message: Any, rng: random.Random) -> None:
    """Drop, double, move or overwrite one field of `message`."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.25:
        message.ClearField(field.name)
    elif field.is_repeated:
        items = getattr(message, field.name)
        if items and rng.random() < 0.6:
            _change_list(items, field, rng)
        elif field.type == field.TYPE_MESSAGE:
            items.add()
        else:
            items.append(_value(field, rng))
    elif field.type != field.TYPE_MESSAGE:
        with contextlib.suppress(ValueError):  # a closed enum takes no other number
            setattr(message, field.name, _value(field, rng))
    elif rng.random() < 0.3:
        getattr(message, field.name).SetInParent()


def _change_list(items: Any, field: Any, rng: random.Random) -> None:
    at = rng.randrange(len(items))
    choice = rng.randrange(3)
    if choice == 0:
        del items[at]
    elif field.type == field.TYPE_MESSAGE and choice == 1:
        items.add().CopyFrom(items[at])
    elif field.type == field.TYPE_MESSAGE:
        items.insert(0, items.pop(at))
    elif choice == 1:
        items.append(items[at])
    else:
        items[at] = _value(field, rng)


def _value(field: Any, rng: random.Random) -> Any:
    """A value of the type of `field`: likely to be legal, likely to be wrong."""
    if field.type == field.TYPE_STRING:
        return rng.choice(_TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 4, 7, 64)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))
    if field.type == field.TYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    number = rng.choice(_NUMBERS)
    if field.type in (field.TYPE_INT32, field.TYPE_UINT32):
        number = max(min(number, _INT32_MAX), -_INT32_MAX - 1)
    is_unsigned = field.type in (field.TYPE_UINT32, field.TYPE_UINT64)
    return abs(number) if is_unsigned else number
