"""Where the bytes of a packed file go: a row for each weight layer, as in the paper's tables.

Bytes are those that the packed file's own coder makes of the layer. Index bits are what it makes
of the mask alone (which weights are not zero), code bits the rest, both for each weight kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path

import numpy as np

from benchmarks.deep_compression.runs import Json
from onnxslim.codebook.lookup import read
from onnxslim.codebook.nodes import codebook_nodes
from onnxslim.graph.ir import node_label
from onnxslim.graph.wire import locate
from onnxslim.io.model import Model
from onnxslim.io.staging import map_file
from onnxslim.packing.elements import Elements
from onnxslim.packing.streams import CodingMethod, encode_mask
from onnxslim.packing.tensors import PlanesUnit
from onnxslim.tools.tensor_classes import MIN_BYTES, ClassifiedUnit, units_of


@dataclass(frozen=True)
class Row:
    """A weight layer of a packed file.

    Attributes:
        values: of its table, zero among them.
        bits: log2 of that.
        code_bits, index_bits: coded, for each weight kept.
        share: of the packed file.
    """

    layer: str
    weights: int
    kept: int
    values: int
    bits: float
    code_bits: float
    index_bits: float
    packed_bytes: int
    share: float

    def as_json(self) -> dict[str, Json]:
        """Its fields."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def layer_rows(model: Path, packed_bytes: int) -> list[Row]:
    """The clustered layers of `model`, whose packed file has `packed_bytes` bytes."""
    file, loaded = map_file(model), Model.load(model)
    payloads = list(locate(file, MIN_BYTES))
    names = {payload.name: index for index, payload in enumerate(payloads)}
    units = {index: f for f in units_of(file, payloads, loaded.graph) for index in f.unit.payloads}
    rows = []
    for node in codebook_nodes(loaded.graph):
        weight = read(loaded.graph, node)
        index = names.get(node.inputs[0].name)
        if weight is None or index is None or not isinstance(units[index].unit, PlanesUnit):
            continue
        user = node_label(node.outputs[0].outputs[0])
        found = units[index]
        data = [file[payloads[i].start : payloads[i].stop] for i in found.unit.payloads]
        zero = np.flatnonzero(weight.stages[0].table == 0)
        rows.append(_row(user, found, data, zero, packed_bytes))
    return rows


def _row(
    name: str, found: ClassifiedUnit, data: list[memoryview], zero: np.ndarray, packed_bytes: int
) -> Row:
    codes = found.unit.array(data)
    coded = found.unit.coded(data, CodingMethod.ENTROPY).nbytes
    values = len(np.unique(codes))
    is_kept = ~np.isin(codes, zero)
    kept, index = int(is_kept.sum()), 0
    if kept < codes.size:
        index = min(coded, _mask_bytes(is_kept, found.unit.elements))
    return Row(
        name,
        codes.size,
        kept,
        values,
        log2(values),
        8 * (coded - index) / kept,
        8 * index / kept,
        coded,
        coded / packed_bytes,
    )


def _mask_bytes(mask: np.ndarray, kind: Elements) -> int:
    matrix = mask.reshape(kind.rows, kind.columns)
    both = (matrix, np.ascontiguousarray(matrix.T))
    sizes: list[int] = [encode_mask(lines, CodingMethod.ENTROPY).nbytes for lines in both]
    return min(sizes)


def _rounded(value: Json) -> Json:
    return round(value, 4) if isinstance(value, float) else value
