"""Pack a model file, with figures for every coder.

Owns: which coders are tried, and what is measured. Not here: what the bytes of a packed file mean
(see `onnxslim.packing`), and unpacking (see `onnxslim.io.copying`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from onnxslim.errors import ModelError, UsageError
from onnxslim.graph.wire import Located, locate
from onnxslim.io.model import Model
from onnxslim.io.staging import map_file, scratch_folder, stage_file
from onnxslim.packing import coders, is_packed
from onnxslim.packing.container import (
    EncodedUnit,
    FileHeader,
    PayloadSpan,
    index_of,
    most_unpacked,
    write,
)
from onnxslim.packing.elements import ElementCoding, byte_planes, distinct, encode_bytes
from onnxslim.packing.streams import (
    CodedStream,
    CodingMethod,
    encode_symbols,
    expected_zstd,
    order0_bytes,
    order0_of,
)
from onnxslim.packing.tensors import CodedUnit, CodedUnitKind, IndexedUnit, TensorClass
from onnxslim.services.progress import Progress
from onnxslim.tools.tensor_classes import MIN_BYTES, ClassifiedUnit, units_of

_GRAPH: Final = "graph"
# bytes of a file up to which zstd's best level is quick; it does not get far on large floats
_QUICK_BYTES: Final = 4 << 20
_QUICK_LEVEL: Final = 9


@dataclass
class ClassFigures:
    """Sizes in bytes of the tensors of one class; None where a size was not measured.

    Attributes:
        name, tensors: the class, and the number of its tensors.
        float32_bytes: size as dense float32; of elements that are no floats, as they are.
        file_bytes: size in the .onnx file.
        huffman, entropy, zstd: size by each coder alone.
        bound: order-0 entropy of the symbols; adaptive models of lines can go below it.
        packed: size in the packed file.
    """

    name: str
    tensors: int = 0
    float32_bytes: int = 0
    file_bytes: int = 0
    huffman: int | None = None
    entropy: int | None = None
    zstd: int | None = None
    bound: int | None = None
    packed: int = 0

    def add(self, other: ClassFigures) -> None:
        """Add the figures of `other`."""
        self.tensors += other.tensors
        self.float32_bytes += other.float32_bytes
        self.file_bytes += other.file_bytes
        self.packed += other.packed
        self.huffman = _sum(self.huffman, other.huffman)
        self.entropy = _sum(self.entropy, other.entropy)
        self.zstd = _sum(self.zstd, other.zstd)
        self.bound = _sum(self.bound, other.bound)


@dataclass
class PackReport:
    """The figures of one run of `pack`.

    Attributes:
        coder: the method that was asked for.
        sha256: digest of the .onnx file that was packed.
        input_bytes: size of the model file, with its external data.
        packed_bytes: size of the packed file.
        whole_zstd: size of the whole file after zstd, and the level; None: not measured.
        classes: figures by class; the last one is the graph, with the overhead of the format.
    """

    coder: CodingMethod
    sha256: str
    input_bytes: int
    packed_bytes: int = 0
    whole_zstd: tuple[int, int] | None = None
    classes: list[ClassFigures] = field(default_factory=list)

    @property
    def total(self) -> ClassFigures:
        """All classes together."""
        total = ClassFigures("total")
        for item in self.classes:
            total.add(item)
        return total


# --------------------------------------------------------------------------- packing


def pack(
    source: Path,
    target: Path,
    *,
    coder: CodingMethod = CodingMethod.ENTROPY,
    measure: bool = True,
    progress: Progress | None = None,
) -> PackReport:
    """Pack the model file `source` into `target`, all or nothing.

    Args:
        source: an .onnx file; external data are packed with it.
        target: the packed file.
        coder: how streams of symbols are coded.
        measure: code everything by the other coders too, for the figures.
        progress: what is being done, for whoever shows it.

    Raises:
        UsageError: a path is wrong, or the target cannot be written.
        ModelError: the source is no valid model.
    """
    if is_packed(map_file(source)):
        raise UsageError(f"`{source}` is a packed file already.")
    model = Model.load(source)
    with (
        stage_file(target, source, model.origin.external) as staged,
        _as_one_file(model, source) as file,
    ):
        pieces, report = _packed(file, model, coder, measure, progress or Progress())
        report.input_bytes = model.origin.file_bytes
        staged.write(pieces)
        staged.commit()
    return report


@contextmanager
def _as_one_file(model: Model, source: Path) -> Iterator[memoryview]:
    """The bytes of the model file; a model with external data is written as one file first."""
    if not model.origin.external:
        yield map_file(source)
        return
    with scratch_folder() as folder:
        whole = folder / "model.onnx"
        model.save(whole, external=False)
        yield map_file(whole)


def _packed(
    file: memoryview, model: Model, coder: CodingMethod, measure: bool, progress: Progress
) -> tuple[list[bytes], PackReport]:
    payloads = list(locate(file, MIN_BYTES))
    digest = hashlib.sha256(file)
    report = PackReport(coder, digest.hexdigest(), len(file))
    by_class = {name: ClassFigures(name.value) for name in TensorClass}
    packed: list[EncodedUnit] = []
    found = units_of(file, payloads, model.graph)
    level = (coders.BEST if len(file) <= _QUICK_BYTES else _QUICK_LEVEL) if measure else None
    for item in progress.over("packing", found, "groups of tensors"):
        data = [file[payloads[i].start : payloads[i].stop] for i in item.unit.payloads]
        chosen, figures = _encode(item, data, coder, level)
        by_class[TensorClass(figures.name)].add(figures)
        packed += chosen
    spans, rest = _without(file, payloads)
    index = index_of(spans, packed, rest)
    header = FileHeader(len(file), digest.digest(), bool(model.origin.external))
    pieces = write(header, index, [item.coded.body for item in packed])
    report.packed_bytes = sum(map(len, pieces))
    report.classes = [item for item in by_class.values() if item.tensors]
    others = report.packed_bytes - sum(item.packed for item in report.classes)
    report.classes.append(_graph_figures(rest, others, measure))
    _check_size(len(file), report.packed_bytes)
    if level is not None:
        with progress.step("comparing with zstd"):
            report.whole_zstd = len(coders.zstd(file, level)), level
    return pieces, report


def _without(file: memoryview, payloads: Sequence[Located]) -> tuple[list[PayloadSpan], bytes]:
    """Where the payloads lie, and the bytes of the file outside them."""
    spans, parts, at = [], [], 0
    for payload in payloads:
        spans.append(PayloadSpan(payload.start - at, payload.stop - payload.start))
        parts.append(file[at : payload.start])
        at = payload.stop
    return spans, b"".join([*parts, file[at:]])


def _check_size(unpacked: int, packed: int) -> None:
    most = most_unpacked(packed)
    if unpacked > most:
        raise ModelError(
            f"The model would shrink from {unpacked:,} to {packed:,} bytes, and readers refuse "
            f"that: a packed file of that size may unpack to {most:,} bytes at most. Nearly all of "
            "its weights must be equal; fold or remove them first."
        )


# --------------------------------------------------------------------------- one unit


def _encode(
    found: ClassifiedUnit, data: Sequence[memoryview], method: CodingMethod, level: int | None
) -> tuple[list[EncodedUnit], ClassFigures]:
    """The unit coded by `method`, and its size by each coder.

    Args:
        found: the unit.
        data: the bytes of its payloads.
        method: the coder; zstd may replace the entropy coder where it is smaller.
        level: of zstd, for its figure; None: no figures.
    """
    packed = {
        each: _encode_by(found, data, each)
        for each in CodingMethod
        if each is method or (level is not None and each is not CodingMethod.ZSTD)
    }
    chosen, (first, *_) = packed[method], next(iter(packed.values()))
    if method is CodingMethod.ENTROPY and _zstd_may_win(found, data, first.coded):
        chosen = min(chosen, _encode_by(found, data, CodingMethod.ZSTD), key=_packed_bytes)
    # zstd does not tell classes
    is_told = method is not CodingMethod.ZSTD or level is not None
    name = found.unit.tensor_class(first.coded) if is_told else TensorClass.OTHER
    nbytes = sum(map(len, data))
    dense = nbytes if found.float32_bytes is None else found.float32_bytes
    figures = ClassFigures(name.value, found.tensors, dense, nbytes, packed=_packed_bytes(chosen))
    if level is not None:
        figures.huffman = _packed_bytes(packed[CodingMethod.HUFFMAN])
        figures.entropy = sum(item.coded.entropy_bytes for item in packed[CodingMethod.ENTROPY])
        figures.zstd = sum(
            min(len(plane), len(coders.zstd(plane, level))) for plane in _planes(found, data)
        )
        figures.bound = _bound(found, data, name)
    return chosen, figures


def _zstd_may_win(found: ClassifiedUnit, data: Sequence[memoryview], entropy: CodedStream) -> bool:
    """Whether zstd is expected to be smaller than the entropy coder."""
    if found.unit.kind is CodedUnitKind.PLAIN and entropy.head[0] == ElementCoding.BYTES:
        return False  # zstd was tried on each plane
    expected = sum(min(len(plane), expected_zstd(plane)) for plane in _planes(found, data))
    return expected < entropy.nbytes


def _planes(found: ClassifiedUnit, data: Sequence[memoryview]) -> Iterator[memoryview]:
    """The byte planes of the unit as plain elements: what zstd gets."""
    for unit, own in _plain(found, data):
        for plane in byte_planes(unit.array(own), unit.elements):
            yield plane.data


def _encode_by(
    found: ClassifiedUnit, data: Sequence[memoryview], method: CodingMethod
) -> list[EncodedUnit]:
    if method is not CodingMethod.ZSTD:
        return [EncodedUnit(found.unit, found.unit.coded(data, method), _checksum(data))]
    return [
        EncodedUnit(unit, encode_bytes(unit.array(own), unit.elements, method), _checksum(own))
        for unit, own in _plain(found, data)
    ]


def _plain(
    found: ClassifiedUnit, data: Sequence[memoryview]
) -> Iterator[tuple[CodedUnit, Sequence[memoryview]]]:
    """The unit as units of plain elements, each with the bytes of its payloads."""
    by_payload = dict(zip(found.unit.payloads, data, strict=True))
    for unit in found.unit.plain([len(item) for item in data]):
        yield unit, [by_payload[index] for index in unit.payloads]


def _checksum(data: Iterable[memoryview]) -> int:
    check = 0
    for item in data:
        check = zlib.crc32(item, check)
    return check


def _packed_bytes(packed: Iterable[EncodedUnit]) -> int:
    return sum(item.coded.nbytes for item in packed)


def _bound(found: ClassifiedUnit, data: Sequence[memoryview], kind: TensorClass) -> int:
    """Order-0 entropy in bytes: of codes; else of the mask of nonzeros and of their bytes."""
    unit = found.unit
    if isinstance(unit, IndexedUnit):
        return _bound_of_others(unit.values(data), unit.rows * unit.columns, unit)
    array = unit.array(data)
    if unit.elements.alphabet:
        return order0_bytes(array)
    if kind is TensorClass.TABLE:
        return order0_of(np.unique(array, return_counts=True)[1])
    return _bound_of_others(array[array != 0], array.size, unit)


def _bound_of_others(others: np.ndarray, count: int, unit: CodedUnit) -> int:
    mask_bytes = order0_of(np.array([others.size, count - others.size]))
    if distinct(others, rotated=False) is not None:
        return mask_bytes + order0_of(np.unique(others, return_counts=True)[1])
    return mask_bytes + sum(order0_bytes(plane) for plane in byte_planes(others, unit.elements))


def _graph_figures(rest: bytes, packed: int, measure: bool) -> ClassFigures:
    figures = ClassFigures(_GRAPH, 0, len(rest), len(rest), packed=packed)
    if measure:
        symbols = np.frombuffer(rest, np.uint8)
        figures.huffman = len(coders.huffman(rest))
        figures.zstd = len(coders.zstd(rest))
        figures.entropy = encode_symbols(symbols, 256, CodingMethod.ENTROPY).entropy_bytes
        figures.bound = order0_bytes(symbols)
    return figures


def _sum(a: int | None, b: int | None) -> int | None:
    return (a or 0) + b if b is not None else a
