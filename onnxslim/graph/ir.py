"""The classes behind a graph: onnx-graphsurgeon's, made lossless, identity-compared and fast.

`Graph`, `Node`, `Variable` and `Constant` are graphsurgeon's own classes (`isinstance` holds), so a
pass is written against graphsurgeon's documented attributes: `node.op`, `node.attrs`,
`node.inputs`, `tensor.inputs` (producers), `tensor.outputs` (consumers), `constant.values`. Added:

- equality is identity. Graphsurgeon compares nodes by content, which makes removing one consumer
  of a constant with ten thousand consumers quadratic, and makes nodes unhashable;
- what graphsurgeon does not model (doc strings, metadata, types other than dense tensors, unknown
  attribute kinds) rides along in `extra` / `info` and is written back as it came;
- the values of a `Constant` are a read-only view on the file until a pass replaces them. Arrays are
  shared between copies of a graph and never written in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxslim.errors import ModelError
from onnxslim.graph.wire import Buffer

ONNX_DOMAIN = ""
MICROSOFT_DOMAIN = "com.microsoft"  # of onnxruntime's own operators
ELEMENT_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
SUB_BYTE_BITS: Mapping[int, int] = {
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
    onnx.TensorProto.INT2: 2,
    onnx.TensorProto.UINT2: 2,
}


def to_numpy_dtype(data_type: int) -> np.dtype[Any]:
    """The numpy dtype of an ONNX element type; `ml_dtypes` supplies those that numpy lacks."""
    if data_type == onnx.TensorProto.STRING:
        return np.dtype(object)
    return helper.tensor_dtype_to_np_dtype(data_type)


def to_onnx_dtype(dtype: np.dtype[Any]) -> int:
    """The ONNX element type of a numpy dtype."""
    if dtype.kind in "OUS":
        return onnx.TensorProto.STRING
    return helper.np_dtype_to_tensor_dtype(dtype)


def storage_bytes(data_type: int, elements: int) -> int | None:
    """Bytes that `elements` values take in raw_data; None for strings, which have no fixed size."""
    if data_type == onnx.TensorProto.STRING:
        return None
    bits = SUB_BYTE_BITS.get(data_type)
    if bits is not None:
        return (elements * bits + 7) // 8
    return elements * to_numpy_dtype(data_type).itemsize


class Stored(LazyValues):
    """Values as they lie in the file: a small TensorProto, or one whose bytes are `buffer`.

    `shape` is a tuple of ints, `dtype` a numpy dtype, `nbytes` the size of the data in the file.
    """

    def __init__(self, tensor: onnx.TensorProto, buffer: Buffer | None = None) -> None:
        self.tensor = tensor
        self.buffer = buffer
        self.data_type: int = tensor.data_type
        self.shape = tuple(tensor.dims)
        self.dtype = to_numpy_dtype(tensor.data_type)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        expected = storage_bytes(tensor.data_type, self.size)
        self.nbytes = tensor.ByteSize() if expected is None else expected
        if buffer is not None and len(buffer) != expected:
            raise ModelError(
                f"Tensor `{tensor.name}` has {len(buffer)} bytes of data, but its type "
                f"{onnx.TensorProto.DataType.Name(tensor.data_type)} and shape {self.shape} "
                f"need {expected}."
            )
        self._array: np.ndarray | None = None

    def load(self) -> np.ndarray:
        """The values as a read-only array; a view on the file where the layout allows it."""
        if self._array is None:
            self._array = self._read()
            self._array.flags.writeable = False
        return self._array

    def _read(self) -> np.ndarray:
        if self.buffer is None:
            try:
                return np.array(numpy_helper.to_array(self.tensor))
            except (ValueError, TypeError) as error:
                raise ModelError(f"Tensor `{self.tensor.name}` cannot be read: {error}") from error
        if self.data_type in SUB_BYTE_BITS:
            full = onnx.TensorProto(data_type=self.data_type, dims=self.shape)
            full.raw_data = bytes(self.buffer)
            return np.array(numpy_helper.to_array(full))
        return np.frombuffer(self.buffer, self.dtype.newbyteorder("<")).reshape(self.shape)


@dataclass(frozen=True, eq=False, repr=False)
class StoredList:
    """A long list of an operator of `ai.onnx.ml` as it lies in the file: nobody reads its entries.

    Two of them are equal where their bytes are.

    Attributes:
        name: of the attribute.
        kind: of AttributeProto: FLOATS, INTS or STRINGS.
        buffer: the serialized attribute, name and kind included.
    """

    name: str
    kind: int
    buffer: Buffer

    @cached_property
    def digest(self) -> bytes:
        """A digest of all bytes."""
        return hashlib.blake2b(self.buffer, digest_size=16).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredList) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"StoredList({self.name}, {len(self.buffer)} bytes, {self.digest.hex()})"


class StoredSparse(LazyValues):
    """Values of a sparse initializer; they load as the dense array, and are kept sparse."""

    def __init__(self, tensor: onnx.SparseTensorProto) -> None:
        self.tensor = tensor
        self.data_type: int = tensor.values.data_type
        self.shape = tuple(tensor.dims)
        self.dtype = to_numpy_dtype(self.data_type)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = tensor.ByteSize()
        self._array: np.ndarray | None = None

    def load(self) -> np.ndarray:
        """The dense array, read-only.

        Raises:
            ModelError: an index lies outside the shape, or the values cannot be read.
        """
        if self._array is None:
            try:
                values = numpy_helper.to_array(self.tensor.values)
                indices = numpy_helper.to_array(self.tensor.indices)
                dense = np.zeros(self.size, values.dtype)
                if indices.ndim == 2:  # [NNZ, rank] -> linear
                    indices = np.ravel_multi_index(tuple(indices.T), self.shape)
                dense[indices] = values
            except (ValueError, IndexError, TypeError) as error:
                name = self.tensor.values.name
                raise ModelError(f"Sparse tensor `{name}` is broken: {error}") from error
            self._array = dense.reshape(self.shape)
            self._array.flags.writeable = False
        return self._array


class _ByIdentity:
    """Equality and hash by identity, for graphsurgeon classes that compare by content."""

    __slots__ = ()
    # the very methods of `object`: written in Python, they would dominate every list search
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class _Links(SynchronizedList):
    """Graphsurgeon's list, quick at removing the element that was added last or first.

    A pass removes nodes in order or in reverse; searching the ten thousand users of a shared
    constant for each of them would take quadratic time.
    """

    # without them each list has a dictionary, which takes more than the list; there are two of
    # these lists for each tensor and node
    __slots__ = ("field_name", "parent_obj")

    def _remove_from_elem(self, elem: gs.Tensor | gs.Node) -> None:
        links = getattr(elem, self.field_name)
        for place in range(len(links) - 1, max(len(links) - 5, -1), -1):
            if links[place] is self.parent_obj:
                list.__delitem__(links, place)
                return
        list.remove(links, self.parent_obj)


def _no_links(owner: object, other_side: str) -> SynchronizedList:
    """An empty list of graphsurgeon's that keeps both sides of an edge in step.

    Made without its constructor, and put into `__dict__` without graphsurgeon's `__setattr__`:
    the two are half of the time that reading or copying a graph takes.
    """
    links: _Links = _Links.__new__(_Links)
    links.parent_obj = owner
    links.field_name = other_side
    return links


@dataclass(frozen=True, eq=False)
class RenumberedIds:
    """Ids that an input takes in place of those that it took in the original.

    Attributes:
        new_ids: the new id of each original one; several may have the same.
        tokenizer: text of a `tokenizer.json` that gives new ids; None: there is none.
    """

    new_ids: npt.NDArray[np.int64]
    tokenizer: str | None = None


class Variable(_ByIdentity, gs.Variable):
    """A tensor computed at run time. `dtype` and `shape` may come from shape inference.

    Attributes:
        info: the ValueInfoProto the file had for it, if any; only such tensors are written to
            `value_info`, so inferring shapes never makes a file larger.
        default: for an input of the main graph that an initializer of the same name gives a
            default (IR version 4 and up), that initializer. It may be overridden by the
            caller, so it is no constant.
        renumbered: for an input of the main graph whose ids a pass renumbered because its options
            asked for it, what callers give now.
        kept: for an input or output of the main graph that a pass made shorter because its options
            asked for it, by axis, whether each position of the original is still there.
    """

    info: onnx.ValueInfoProto | None
    default: Stored | None
    kept: Mapping[int, npt.NDArray[np.bool_]] | None
    renumbered: RenumberedIds | None

    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any] | None = None,
        shape: list[int | str | None] | None = None,
        type: str = "tensor_type",
    ) -> None:
        self.__dict__.update(
            name=name,
            inputs=_no_links(self, "outputs"),
            outputs=_no_links(self, "inputs"),
            dtype=dtype,
            shape=shape,
            type=type,
            info=None,
            default=None,
            kept=None,
            renumbered=None,
        )

    def shorten(self, axis: int, kept: npt.NDArray[np.bool_]) -> None:
        """Declare an input or output shorter, and remember which positions of the original stay.

        `kept` has one entry for each position that the tensor has until now.
        """
        left = int(kept.sum())
        if self.info is not None:
            info = onnx.ValueInfoProto()
            info.CopyFrom(self.info)
            for dim in info.type.tensor_type.shape.dim[axis : axis + 1]:
                dim.dim_value = left
            self.info = info
        if self.shape is not None:
            self.shape[axis] = left
        known = dict(self.kept or {})
        whole = known.get(axis, np.ones(len(kept), bool)).copy()
        whole[whole] = kept
        self.kept = {**known, axis: whole}

    def renumber(self, new_ids: npt.NDArray[np.int64], tokenizer: str | None) -> None:
        """Remember that callers give `new_ids[i]` in place of the id i that they gave until now."""
        if self.renumbered is not None:
            new_ids = new_ids[self.renumbered.new_ids]
        self.renumbered = RenumberedIds(new_ids, tokenizer)


class Constant(_ByIdentity, gs.Constant):
    """A tensor whose value is known. `values` is read-only; assign a new array to replace it.

    Attributes:
        home: the graph whose initializer it was in the file, None for new ones: it is written
            there as long as that graph encloses every use.
        info: as in `Variable`.
    """

    home: Graph | None
    info: onnx.ValueInfoProto | None

    def __init__(self, name: str, values: np.ndarray | LazyValues) -> None:
        self.__dict__.update(
            name=name,
            inputs=_no_links(self, "outputs"),
            outputs=_no_links(self, "inputs"),
            _values=values,
            data_location=None,
            _export_dtype=None,
            home=None,
            info=None,
        )

    @property
    def values(self) -> np.ndarray:
        """The array, shared and read-only."""
        stored = self._values
        return stored.load() if isinstance(stored, LazyValues) else stored

    @values.setter
    def values(self, values: np.ndarray | LazyValues) -> None:
        self._values = values

    @property
    def stored(self) -> np.ndarray | Stored | StoredSparse:
        """The values as they are held: an array, or unread values that still lie in the file."""
        return self._values

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._values.size)

    @property
    def nbytes(self) -> int:
        """Bytes the values take in a file."""
        stored = self._values
        if isinstance(stored, np.ndarray):
            fixed = storage_bytes(to_onnx_dtype(stored.dtype), stored.size)
            return sum(len(text) for text in stored.flat) if fixed is None else fixed
        return int(stored.nbytes)


class Node(_ByIdentity, gs.Node):
    """One operation.

    Attributes:
        extra: a NodeProto with what graphsurgeon does not model (doc string, metadata, overload,
            ...), or None.
        attr_types: AttributeProto type by attribute name, for attributes that came from a file.
    """

    extra: onnx.NodeProto | None
    attr_types: dict[str, int]

    def __init__(
        self,
        op: str,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        inputs: list[Any] | None = None,
        outputs: list[Any] | None = None,
        domain: str | None = None,
    ) -> None:
        self.__dict__.update(
            op=op,
            name=name or "",
            attrs={} if attrs is None else attrs,
            inputs=_no_links(self, "outputs"),
            outputs=_no_links(self, "inputs"),
            domain=domain,
            extra=None,
            attr_types={},
        )
        self.inputs.extend(inputs or ())
        self.outputs.extend(outputs or ())

    @property
    def is_onnx(self) -> bool:
        """Whether the operator belongs to the ONNX standard (domain `` or `ai.onnx`)."""
        return self.domain in (None, ONNX_DOMAIN, "ai.onnx")

    @property
    def label(self) -> str:
        """How messages and reports name the node: its first output that has a name."""
        return node_label(self)


class Graph(gs.Graph):
    """A graph or subgraph.

    Attributes:
        unused: initializers of the file that nothing uses; kept until a pass removes them.
        extra: a GraphProto with what graphsurgeon does not model, or None.
        local_functions: the model's FunctionProtos, shared by all its graphs, never edited.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.unused: list[Constant] = []
        self.extra: onnx.GraphProto | None = None
        self.local_functions: list[onnx.FunctionProto] = []
        super().__init__(**kwargs)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def opset_of(self, domain: str) -> int | None:
        """The version of `domain` that the model imports, None where it imports none."""
        wanted = ONNX_DOMAIN if domain in (None, "ai.onnx") else domain
        for entry in self.import_domains or ():
            if (ONNX_DOMAIN if entry.domain == "ai.onnx" else entry.domain) == wanted:
                return int(entry.version)
        return None

    def import_domain(self, domain: str, version: int) -> None:
        """Import `domain` at `version`, unless it is imported already."""
        if self.opset_of(domain) is None:
            self.import_domains.append(helper.make_opsetid(domain, version))


# the operators of the standard that have graphs among their attributes
WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def subgraphs_of(node: gs.Node) -> Sequence[Graph]:
    """The graphs that are attributes of `node` (bodies of If, Loop, Scan), not recursive."""
    if node.op not in WITH_BODIES and not node.domain:  # nearly every node
        return ()
    found: list[Graph] = []
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            found.append(value)
        elif isinstance(value, list) and value and isinstance(value[0], gs.Graph):
            found += value
    return found


def walk_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """`graph` and every graph nested in it, outer before inner."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in reversed(current.nodes):
            if node.op in WITH_BODIES or node.domain:
                stack.extend(subgraphs_of(node))


def redirect_inputs(users: Iterable[gs.Node], old: gs.Tensor, new: gs.Tensor) -> None:
    """Let each of `users` read `new` where it reads `old`; passes use `Rewriter.redirect`."""
    for user in users:
        for index, tensor in enumerate(user.inputs):
            if tensor is old:
                user.inputs[index] = new


def needs(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors that must exist before `node` runs: its inputs and what its bodies read or return."""
    yield from node.inputs
    for body in subgraphs_of(node):
        for graph in walk_graphs(body):
            yield from graph.outputs
            for inner in graph.nodes:
                yield from inner.inputs


def ancestors(tensors: Iterable[gs.Tensor], stop: Container[gs.Tensor] = ()) -> set[Node]:
    """The nodes that `tensors` need, where those of `stop` are there already."""
    found: set[Node] = set()
    stack = [node for tensor in tensors if tensor not in stop for node in tensor.inputs]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [n for t in needs(node) if t not in stop for n in t.inputs]
    return found


def node_label(node: gs.Node) -> str:
    """How messages name a node: its first named output, else its own name, else its operator."""
    for tensor in node.outputs:
        if tensor.name:
            return str(tensor.name)
    return str(node.name or node.op)
