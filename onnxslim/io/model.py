"""Model files in and out: `Model.load`, `Model.save`, `Model.stage`.

A file is memory-mapped and its weights stay there (see `wire`); saving streams them from the map to
the new file. Loading a 548 MB model takes milliseconds and hardly any memory. A packed file (see
`packing`) is unpacked into memory first.

A file may be hostile: sizes are checked against the file, external paths against the model's
folder, before either is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from onnxslim.errors import ModelError, UsageError
from onnxslim.graph import wire
from onnxslim.graph.clone import clone_graph
from onnxslim.graph.collector import paused
from onnxslim.graph.ir import Graph
from onnxslim.graph.owners import settle_owners
from onnxslim.graph.proto import graph_from_proto, graph_to_proto
from onnxslim.io import files
from onnxslim.io.external_data import ExternalData, NamedData, with_places
from onnxslim.io.files import Buffer
from onnxslim.io.foreign import foreign_folder, foreign_format
from onnxslim.io.normal_form import normalise
from onnxslim.io.proto_bounds import check_lists
from onnxslim.io.staging import Staged, map_file, stage_file, writing
from onnxslim.io.texts import escape_texts
from onnxslim.packing import is_packed
from onnxslim.render.printable import printable

PROTOBUF_LIMIT = 2**31 - 1
_ALIGNMENT: Final = 64  # bytes
ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True)
class Origin:
    """The file that a model came from.

    Attributes:
        path: the file, None for a model given in memory.
        sha256: hex digest of the .onnx file (of the serialized model, when in memory).
        file_bytes: size of the file and of its external data files together; of a packed file,
            that of the .onnx file in it.
        external: the external data files that the model refers to.
        packed_bytes: size of the packed file, None when the input was not packed.
        notes: what was repaired on reading, a sentence for each kind.
    """

    path: Path | None
    sha256: str
    file_bytes: int
    external: tuple[Path, ...] = ()
    packed_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(repr=False)
class Model:
    """An ONNX model: its graph, and the fields of its ModelProto outside the graph (`shell`).

    Attributes:
        has_shapes: whether shapes were inferred since the last edit; code that edits the graph
            resets it.
    """

    graph: Graph
    shell: onnx.ModelProto
    origin: Origin
    has_shapes: bool = False
    _keep: list[object] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        """Where it comes from, and its signature."""
        name = str(self.origin.path) if self.origin.path else "made in memory"
        inputs, outputs = (
            printable(", ".join(f"{t.name}: {_signature(t)}" for t in tensors))
            for tensors in (self.graph.inputs, self.graph.outputs)
        )
        return (
            f"<onnxslim.Model {name}, {len(self.graph.nodes):,} nodes, "
            f"opset {self.graph.opset_of('')}\n  ({inputs})\n  -> ({outputs})>"
        )

    # ----------------------------------------------------------------- reading

    @classmethod
    def load(cls, source: ModelSource) -> Model:
        """Read a model from a path, from the bytes of a file, or from a ModelProto.

        A packed file is recognized by its first bytes, whatever its name.

        Raises:
            UsageError: the path names no readable file.
            ModelError: the content is not a model, is cut off, or refers to data that is
                missing or outside the model's folder.
        """
        if isinstance(source, onnx.ModelProto):
            source = source.SerializeToString(deterministic=True)
        if isinstance(source, bytes):
            return cls._parse(memoryview(source), None)
        path = Path(source)
        if path.is_dir():
            raise UsageError(f"`{path}` {foreign_folder(path)}")
        return cls._parse(map_file(path), path)

    @classmethod
    def of(cls, graph: Graph) -> Model:
        """A model of `graph`, which came from no file."""
        return cls(graph, onnx.ModelProto(), Origin(None, "", 0))

    @classmethod
    def of_parts(
        cls, content: bytes, weights: Callable[[str], memoryview], origin: Origin
    ) -> Model:
        """The model that `parts` took apart, as one that came from `origin`.

        Args:
            content: the file without its large weights.
            weights: gives each of them by its digest.
            origin: the file that the model was made of.

        Raises:
            ModelError: it is no such file.
        """
        model = cls._parse(memoryview(content), None, weights)
        return replace(model, origin=origin)

    @classmethod
    @paused()
    def _parse(
        cls,
        file: memoryview,
        path: Path | None,
        weights: Callable[[str], memoryview] | None = None,
    ) -> Model:
        name = f"`{path}`" if path else "The model"
        if not len(file):
            raise ModelError(f"{name} is empty: there is no model in it.")
        packed_bytes = None
        if is_packed(file):
            packed_bytes = len(file)
            from onnxslim.packing.container import restore

            file, _ = restore(file, name)
        try:
            skeleton = wire.split(file).skeleton
            proto = onnx.ModelProto.FromString(skeleton)
        except ModelError as error:
            _refuse_foreign(file, name, path)
            raise ModelError(f"{name}: {error}") from None
        except DecodeError as error:
            _refuse_foreign(file, name, path)
            raise ModelError(
                f"{name} is not an ONNX model: protobuf cannot decode it ({error})."
            ) from error
        if not proto.HasField("graph") or not proto.opset_import or not proto.ir_version:
            _refuse_foreign(file, name, path)
            raise ModelError(
                f"{name} is no ONNX model: it has no graph, no opset or no IR version. "
                "Give the path of an .onnx file."
            )
        data = ExternalData(file, path) if weights is None else NamedData(file, weights)
        try:
            check_lists(proto.graph.node)
            notes = [*escape_texts(proto, skeleton), *normalise(proto)]
            graph = graph_from_proto(proto, data.read)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from None
        proto.ClearField("graph")
        external = tuple(data.files)
        size = len(file) + sum(len(view) for view in data.files.values())
        digest = hashlib.sha256(file).hexdigest()
        origin = Origin(path, digest, size, external, packed_bytes, tuple(notes))
        return cls(graph, proto, origin, _keep=[file, data])

    def clone(self) -> Model:
        """A copy that shares weight arrays; edits of its graph do not reach this one."""
        copy = clone_graph(self.graph)
        settle_owners(copy)
        return Model(copy, self.shell, self.origin, self.has_shapes, self._keep)

    def with_metadata(self, entries: Mapping[str, str | None]) -> Model:
        """The same graph with other `metadata_props`: None removes a key."""
        shell = onnx.ModelProto()
        shell.CopyFrom(self.shell)
        kept = [prop for prop in shell.metadata_props if prop.key not in entries]
        del shell.metadata_props[:]
        shell.metadata_props.extend(kept)
        for key, value in entries.items():
            if value is not None:
                shell.metadata_props.add(key=key, value=value)
        return Model(self.graph, shell, self.origin, self.has_shapes, self._keep)

    # ----------------------------------------------------------------- writing

    @paused()
    def skeleton(
        self, threshold: int = wire.DEFAULT_THRESHOLD, *, interior: bool = True
    ) -> tuple[onnx.ModelProto, list[wire.Payload]]:
        """A ModelProto with placeholders for large weights, and their payloads by index.

        Args:
            threshold: bytes from which a weight is large.
            interior: write `value_info`, the declared types of tensors inside the graph.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.shell)
        graph, payloads = graph_to_proto(self.graph, threshold, interior=interior)
        proto.graph.CopyFrom(graph)
        del proto.opset_import[:]
        proto.opset_import.extend(self.graph.import_domains)
        del proto.functions[:]
        proto.functions.extend(self.graph.local_functions)
        if self.graph.ir_version is not None:
            proto.ir_version = self.graph.ir_version
        return proto, payloads

    def parts(self, threshold: int) -> tuple[bytes, dict[str, wire.Payload]]:
        """The content of a file without its large weights, and these by their sha256 in hex.

        The same model always has the same content, in which large weights are named by digest: its
        digest stands for the model.

        Args:
            threshold: bytes from which a weight is large.
        """
        skeleton, payloads = self._serialized()
        places, weights = {}, {}
        for index, payload in enumerate(payloads):
            if not payload.is_list and payload.nbytes >= threshold:
                digest = hashlib.sha256(payload.read()).hexdigest()
                places[index], weights[digest] = (digest, 0), payload
        named = with_places(skeleton, payloads, places)
        return b"".join(wire.join(named, payloads)[0]), weights

    def to_bytes(self) -> bytes:
        """The model as the content of one .onnx file.

        Raises:
            ModelError: it would be larger than protobuf allows (2 GB).
        """
        chunks, total = wire.join(*self._serialized())
        if total > PROTOBUF_LIMIT:
            raise ModelError(
                f"The model takes {total:,} bytes, more than one protobuf message can hold "
                "(2 GB). Save it to a path: its weights then go to a file beside it."
            )
        return b"".join(chunks)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a complete ModelProto, every weight copied."""
        proto: onnx.ModelProto = onnx.ModelProto.FromString(self.to_bytes())
        return proto

    def _serialized(self) -> tuple[bytes, list[wire.Payload]]:
        proto, payloads = self.skeleton()
        return proto.SerializeToString(deterministic=True), payloads

    def file_bytes(self) -> int:
        """Size in bytes of the file (with its external data) that `save` would write."""
        skeleton, payloads = self._serialized()
        return wire.join(skeleton, payloads)[1]

    @contextmanager
    def stage(self, path: Path, *, external: bool | None = None) -> Iterator[Staged]:
        """Write the model into a temporary folder beside `path`, to be checked, then committed.

        Leaving the context without `commit` removes every trace.

        Args:
            path: where `commit` will put the file.
            external: weights to a second file `<name>.data`; by default when the model is above
                2 GB or was read from external data.

        Raises:
            UsageError: the folder does not exist or cannot be written, or the disk is full.
        """
        with stage_file(path, self.origin.path, self.origin.external) as staged:
            self._write(staged, external)
            yield staged

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
        """Write the model to `path`, all or nothing. Arguments and errors as in `stage`."""
        with self.stage(Path(path), external=external) as staged:
            staged.commit()

    def _write(self, staged: Staged, external: bool | None) -> None:
        skeleton, payloads = self._serialized()
        chunks, total = wire.join(skeleton, payloads)
        if external is None:
            external = bool(self.origin.external) or total > PROTOBUF_LIMIT
        if external and not all(payload.is_list for payload in payloads):
            _write_external(staged, skeleton, payloads)
        else:
            staged.write(chunks)


def _signature(tensor: gs.Tensor) -> str:
    """Type and shape of an input or output, as they are declared."""
    dtype = "no tensor" if tensor.dtype is None else np.dtype(tensor.dtype).name
    sizes = None if tensor.shape is None else ", ".join(f"{size}" for size in tensor.shape)
    return dtype if sizes is None else f"{dtype}[{sizes}]"


def _refuse_foreign(file: memoryview, name: str, path: Path | None) -> None:
    """Name the format of a file that is no model, where it is known.

    Raises:
        ModelError: with what the file is, and what to do.
    """
    found = foreign_format(file)
    if found is not None:
        raise ModelError(f"{name} {found.describe(path)}")


def _write_external(staged: Staged, skeleton: bytes, payloads: list[wire.Payload]) -> None:
    """Write weights to `<name>.data` (64-byte aligned, for memory mapping), then the model."""
    data = staged.file.with_name(f"{staged.file.name}.data")
    offsets: list[int] = []
    with writing(staged.target):
        files.write_file(data, _aligned(payloads, offsets))
        named = data.with_name(staged.data_name(data))
        if named != data:
            files.rename(data, named)
    places = {
        index: (named.name, offset)
        for index, offset in enumerate(offsets)
        if not payloads[index].is_list
    }
    staged.write(wire.join(with_places(skeleton, payloads, places), payloads, tensors=False)[0])


def _aligned(payloads: Iterable[wire.Payload], offsets: list[int]) -> Iterator[Buffer]:
    """The payloads with zeros between them; where each begins is appended to `offsets`."""
    at = 0
    for payload in payloads:
        if payload.is_list:  # part of the model itself
            offsets.append(at)
            continue
        gap = -at % _ALIGNMENT
        yield b"\0" * gap
        offsets.append(at + gap)
        yield payload.read()
        at += gap + payload.nbytes
