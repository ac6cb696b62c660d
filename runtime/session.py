"""Open onnxruntime sessions, and run them.

The weights of a `Model` are not serialised: onnxruntime gets the skeleton (see `graph.wire`) and,
separately, the arrays in the mapped file. Opening a model of 548 MB copies only the weights that
onnxruntime packs for its own kernels.

Owns: how onnxruntime is set up, how a model reaches it, and how its errors are reported. No other
module opens a session.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from onnxslim.errors import OnnxslimError, RunStopped, RuntimeFailure
from onnxslim.graph import wire
from onnxslim.graph.collector import release_copies
from onnxslim.graph.ir import SUB_BYTE_BITS, to_numpy_dtype, to_onnx_dtype
from onnxslim.graph.proto import name_nodes
from onnxslim.io.model import PROTOBUF_LIMIT, Model
from onnxslim.io.staging import scratch_folder
from onnxslim.limits import MANY_INPUTS
from onnxslim.runtime.explain import failure
from onnxslim.runtime.providers import CPU, full_name, installed_providers, provider_list
from onnxslim.runtime.watch import Watch

Dim = int | str | None
Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]

_Kept = Mapping[int, np.ndarray]  # by axis, whether each position is still there

DISABLE_QUANTIZED: Final = "session.disable_quant_qdq"
_RECORD_PROVIDERS: Final = "session.record_ep_graph_assignment_info"
_LARGE_BYTES: Final = 256 << 20  # of weights: copies of such a model do not wait to be freed
_SILENT: Final = 4
_ALIGNMENT: Final = 64
_ALIGNED_BYTES: Final = 1 << 20  # larger weights are read from the mapped file, wherever they lie
_TYPES: Final = {
    f"tensor({name.lower()})": value
    for name, value in onnx.TensorProto.DataType.items()
    if value != onnx.TensorProto.UNDEFINED
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a session.

    Attributes:
        kind: onnxruntime's word for the type, e.g. `tensor(float)`, `seq(tensor(float))`.
        dtype: None where the value is no dense tensor.
        shape: sizes, symbols, None for an unnamed size; None for an unknown rank.
    """

    name: str
    kind: str
    dtype: np.dtype | None
    shape: tuple[Dim, ...] | None


class Session:
    """A loaded model. Close it, or use it as a context manager, to free its memory early."""

    def __init__(
        self,
        session: ort.InferenceSession,
        shapes: Mapping[str, tuple[Dim, ...] | None] | None = None,
        keep: Sequence[object] = (),
    ) -> None:
        self.inputs = tuple(_info(item, shapes) for item in session.get_inputs())
        self.outputs = tuple(_info(item, shapes) for item in session.get_outputs())
        self._session: ort.InferenceSession | None = session
        self._kept: Mapping[str, _Kept] = {}
        self._new_ids: Mapping[str, np.ndarray] = {}
        self._keep: Sequence[object] = keep  # onnxruntime reads weights out of these arrays
        self._reopen: Callable[[], Session] | None = None
        self._provider: str | None = None  # other than the processor
        # onnxruntime looks up each name in a list, and has no numpy type for some
        self._by_value = len(self.inputs) > MANY_INPUTS or any(
            _is_foreign(item.dtype) for item in (*self.inputs, *self.outputs)
        )

    def run(self, feeds: Feeds, seconds: float | None = None) -> Outputs:
        """The outputs that are tensors by name, in the model's order.

        Args:
            feeds: arrays by input name.
            seconds: how long the run may take; it may then take `MOST_RUN_BYTES`, too. None: as
                long, and as much, as it does.

        Raises:
            RuntimeFailure: onnxruntime refuses the inputs or fails.
            RunStopped: it takes longer, or more.
        """
        found = self.run_all(feeds, seconds)
        return {info.name: found[info.name] for info in self.outputs if info.dtype is not None}

    def run_all(self, feeds: Feeds, seconds: float | None = None) -> dict[str, Any]:
        """All outputs by name: arrays, and what onnxruntime gives for sequences and maps.

        Arguments and errors are those of `run`.
        """
        options = ort.RunOptions()
        run = self.runner(feeds, options)
        watch = Watch(options, seconds)
        try:
            with watch:
                values = run()
        except Exception as error:  # onnxruntime raises many kinds, with no common base
            if watch.reason:
                raise RunStopped(f"a run {watch.reason}, and was stopped.") from error
            raise failure("failed on the model", error) from error
        return {info.name: value for info, value in zip(self.outputs, values, strict=True)}

    def narrow_as(self, model: Model) -> None:
        """Take inputs as they were before passes shortened or renumbered them in `model`."""
        tensors = (*model.graph.inputs, *model.graph.outputs)
        self._kept = {t.name: t.kept for t in tensors if getattr(t, "kept", None)}
        given = ((t.name, getattr(t, "renumbered", None)) for t in model.graph.inputs)
        self._new_ids = {name: found.new_ids for name, found in given if found is not None}

    def narrowed(self, arrays: Feeds) -> Outputs:
        """Arrays of inputs or outputs, by name, without the positions that the model has lost."""
        return {name: _narrowed(array, self._kept.get(name)) for name, array in arrays.items()}

    def reopen_with(self, plain: Callable[[], Session]) -> None:
        """Remember how to open the same model without onnxruntime's optimisations."""
        self._reopen = plain

    def ask_of(self, provider: str) -> None:
        """Remember the provider that the session was opened for.

        Raises:
            RuntimeFailure: it did not start, so that onnxruntime fell back to the processor.
        """
        assert self._session is not None
        if full_name(provider) not in self._session.get_providers():
            raise RuntimeFailure(
                f"The provider {provider} does not start: its libraries or its device are missing "
                "on this machine, and onnxruntime would compute everything on the processor."
            )
        self._provider = provider

    def provider_share(self) -> tuple[int, int] | None:
        """How many nodes the provider computes, and how many there are; None on the processor.

        Raises:
            RuntimeFailure: it computes none: the processor would, without a word.
        """
        if self._provider is None or not hasattr(
            self._session, "get_provider_graph_assignment_info"
        ):
            return None
        assert self._session is not None
        parts = self._session.get_provider_graph_assignment_info()
        counts = [(part.ep_name, len(part.get_nodes())) for part in parts]
        taken = sum(count for name, count in counts if name == full_name(self._provider))
        total = sum(count for _, count in counts)
        if total and not taken:
            raise RuntimeFailure(
                f"The provider {self._provider} computes none of the {total} nodes of the model; "
                "the processor would compute all of them. The installed onnxruntime has "
                f"{', '.join(installed_providers())}."
            )
        return taken, total

    def failure_as_written(self, feeds: Feeds) -> str | None:
        """Why the model fails on `feeds` without optimisations; None where it runs.

        Optimisations make nodes up, which no user could find in the file.
        """
        if self._reopen is None:
            return None
        try:
            with self._reopen() as plain:
                plain.run(feeds)
        except RuntimeFailure as error:
            return str(error)
        return None

    def runner(
        self, feeds: Feeds, options: ort.RunOptions | None = None
    ) -> Callable[[], Sequence[Any]]:
        """One run as a function, for timing; its errors are those of onnxruntime."""
        session = self._session
        if session is None:
            raise RuntimeError("This session is closed.")
        if self._kept:
            feeds = self.narrowed(feeds)
        if self._new_ids:
            feeds = {name: _renumbered(a, self._new_ids.get(name)) for name, a in feeds.items()}
        if self._by_value:
            return lambda: _run_by_value(session, feeds, self.outputs, options)
        plain = dict(feeds)
        return lambda: session.run(None, plain, options)

    def detached(self) -> tuple[ort.InferenceSession, Sequence[object]]:
        """The onnxruntime session, and the objects that must outlive it; closes this object."""
        session, keep = self._session, self._keep
        if session is None:
            raise RuntimeError("This session is closed.")
        self.close()
        return session, keep

    def close(self) -> None:
        """Free the session and release the weights."""
        self._session = self._reopen = None
        self._keep = ()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _narrowed(array: np.ndarray, kept: _Kept | None) -> np.ndarray:
    for axis, mask in (kept or {}).items():
        if array.shape[axis] == len(mask):  # not yet of the new length
            array = np.compress(mask, array, axis)
    return array


def _renumbered(ids: np.ndarray, new_ids: np.ndarray | None) -> np.ndarray:
    return ids if new_ids is None else new_ids[ids].astype(ids.dtype)


def open_session(
    source: Model | Path | bytes,
    *,
    optimise: bool = True,
    threads: int | None = None,
    spin: bool = True,
    keeps_memory: bool = True,
    quantized_kernels: bool = True,
    provider: str | None = None,
) -> Session:
    """Load a model into onnxruntime.

    Args:
        source: a model, the path of a file, or the bytes of one.
        optimise: whether onnxruntime optimises the graph; otherwise operators run as they stand,
            on the processor.
        threads: threads within an operator; None for onnxruntime's choice.
        spin: whether idle threads wait by spinning: fastest, but they take cores from other work
            between runs.
        keeps_memory: whether memory is kept from run to run, rather than asked of the system.
        quantized_kernels: whether operators around DequantizeLinear and QuantizeLinear may be
            computed together with these; otherwise as they stand, in float.
        provider: short name of the execution provider (see `providers`); None: the processor.

    Raises:
        RuntimeFailure: onnxruntime refuses the model, or the provider does not start.
    """
    options = session_options(optimise, threads)
    provider = provider if optimise else None
    providers = provider_list(provider, threads)
    if provider is not None:
        options.add_session_config_entry(_RECORD_PROVIDERS, "1")
    if not quantized_kernels:
        options.add_session_config_entry(DISABLE_QUANTIZED, "1")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = keeps_memory
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if isinstance(source, Model):
            opened = _open_model(source, options, providers)
            opened.narrow_as(source)
        else:
            content = os.fspath(source) if isinstance(source, Path) else source
            opened = Session(_plain(content, options, providers))
        if provider is not None:
            opened.ask_of(provider)
    except OnnxslimError:
        raise
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise failure("cannot load the model", error) from error
    if optimise:
        opened.reopen_with(partial(open_session, source, optimise=False, threads=threads))
    return opened


def plain_session(
    model: Model, options: ort.SessionOptions, providers: Sequence[Any] = CPU
) -> ort.InferenceSession:
    """A plain onnxruntime session, which keeps the weights of `model` alive.

    Raises:
        RuntimeFailure: onnxruntime refuses the model.
    """
    try:
        opened = _open_model(model, options, providers)
    except OnnxslimError:
        raise
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise failure("cannot load the model", error) from error
    session, keep = opened.detached()
    session._weights = keep
    return session


def session_options(optimise: bool, threads: int | None) -> ort.SessionOptions:
    """The session options used throughout; see `open_session`."""
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    options.use_deterministic_compute = True
    options.intra_op_num_threads = _default_threads() if threads is None else threads
    # keep weights out of the arena, which would double in size for them
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if not optimise:
        # a MatMul whose weight is constant is packed for another kernel, which rounds differently:
        # without packing, equal operators give equal bits whether a weight is computed or constant
        options.add_session_config_entry("session.disable_prepacking", "1")
    # threads that spin after a run would steal time from the model that is timed in turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _default_threads() -> int:
    """0, onnxruntime's own choice, unless this process is restricted to some processors."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed


# ------------------------------------------------------------------------- models


def _plain(
    content: bytes | str, options: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession:
    # onnxruntime would print that a provider fails, and take the processor
    return ort.InferenceSession(content, options, providers=list(providers), enable_fallback=0)


def _open_model(model: Model, options: ort.SessionOptions, providers: Sequence[Any]) -> Session:
    proto, payloads = model.skeleton()
    if sum(payload.nbytes for payload in payloads) > _LARGE_BYTES:
        release_copies()
    _drop_unused(proto, {constant.name for constant in model.graph.unused})
    name_nodes(proto.graph)
    names: list[str] = []
    values: list[ort.OrtValue] = []
    embedded: list[tuple[onnx.TensorProto, wire.Payload]] = []
    in_main = {id(tensor): tensor for tensor in proto.graph.initializer}
    for tensor in (*in_main.values(), *_inner_tensors(proto)):
        entries = wire.external_entries(tensor)
        if entries.get("location") != wire.PLACEHOLDER:
            continue
        payload = payloads[int(entries["offset"])]
        if id(tensor) in in_main and tensor.data_type not in SUB_BYTE_BITS:
            names.append(tensor.name)
            values.append(_shared_value(tensor, payload))
        else:
            embedded.append((tensor, payload))
    shapes = _declared_shapes(model)
    lists = sum(payload.nbytes for payload in payloads if payload.is_list)
    tensors = sum(payload.nbytes for _, payload in embedded)
    if proto.ByteSize() + lists + tensors > PROTOBUF_LIMIT:
        return _open_staged(model, options, providers, shapes)
    for tensor, payload in embedded:
        _embed(tensor, payload)
    if names:
        options.add_external_initializers(names, values)
    whole = b"".join(wire.join(proto.SerializeToString(), payloads, tensors=False)[0])
    session = _plain(whole, options, providers)
    return Session(session, shapes, values)


def _drop_unused(proto: onnx.ModelProto, unused: set[str]) -> None:
    """Remove initializers without users, and the inputs that declare them (IR version 3).

    onnxruntime drops such initializers before it receives their values.
    """
    if unused:
        graph = proto.graph
        for field in (graph.initializer, graph.input):
            for at in reversed(range(len(field))):
                if field[at].name in unused:
                    del field[at]


def _open_staged(
    model: Model,
    options: ort.SessionOptions,
    providers: Sequence[Any],
    shapes: Mapping[str, tuple[Dim, ...] | None],
) -> Session:
    """Open a model through a temporary file, where one protobuf message cannot hold it."""
    with (
        scratch_folder() as folder,
        model.stage(folder / "model.onnx", external=True) as staged,
    ):
        session = _plain(str(staged.file), options, providers)
    return Session(session, shapes)


def aligned(array: np.ndarray) -> np.ndarray:
    """`array` where onnxruntime would put it, at a multiple of 64 bytes; copied if it is not there.

    Kernels sum by vectors, from the first element on that lies at a multiple of their width: the
    same numbers elsewhere in memory round differently.
    """
    array = np.require(array, requirements=["C", "A"])
    if array.dtype.kind == "O" or array.ctypes.data % _ALIGNMENT == 0:
        return array
    buffer = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    moved = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def _shared_value(tensor: onnx.TensorProto, payload: wire.Payload) -> ort.OrtValue:
    dtype = to_numpy_dtype(tensor.data_type)
    array = np.frombuffer(payload.read(), dtype).reshape(tuple(tensor.dims))
    if array.nbytes <= _ALIGNED_BYTES:
        array = aligned(array)
    if _is_foreign(dtype):
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _embed(tensor: onnx.TensorProto, payload: wire.Payload) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(payload.read())


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors in attributes and bodies, without the initializers of the main graph."""
    for function in proto.functions:
        yield from _node_tensors(function.node)
    yield from _node_tensors(proto.graph.node)


def _node_tensors(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            bodies = [attribute.g] if attribute.HasField("g") else []
            for body in (*bodies, *attribute.graphs):
                yield from body.initializer
                yield from _node_tensors(body.node)


# ----------------------------------------------------------------- inputs and outputs


def _declared_shapes(model: Model) -> dict[str, tuple[Dim, ...] | None]:
    tensors = (*model.graph.inputs, *model.graph.outputs)
    return {t.name: None if t.shape is None else tuple(t.shape) for t in tensors}


def _info(node: ort.NodeArg, shapes: Mapping[str, tuple[Dim, ...] | None] | None) -> TensorInfo:
    data_type = _TYPES.get(node.type)
    # onnxruntime gives [] for a scalar and for an unknown rank; only the model can tell
    shape = tuple(node.shape) or None
    if not shape and shapes is not None and shapes.get(node.name) == ():
        shape = ()
    dtype = None if data_type is None else to_numpy_dtype(data_type)
    return TensorInfo(node.name, node.type, dtype, shape)


def _is_foreign(dtype: np.dtype | None) -> bool:
    """Whether numpy itself lacks the type (bfloat16, float8, ...)."""
    return dtype is not None and dtype.isbuiltin == 2


def _run_by_value(
    session: ort.InferenceSession,
    feeds: Feeds,
    outputs: Sequence[TensorInfo],
    options: ort.RunOptions | None,
) -> list[Any]:
    """Run a model on values of onnxruntime, as for types that it cannot convert to numpy."""
    values = {name: _to_value(np.ascontiguousarray(array)) for name, array in feeds.items()}
    if len(values) <= MANY_INPUTS:
        results = session.run_with_ort_values([info.name for info in outputs], values, options)
    else:
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for info in outputs:
            binding.bind_output(info.name)
        session.run_with_iobinding(binding, options)
        results = binding.get_outputs()
    return [_from_value(value, info) for value, info in zip(results, outputs, strict=True)]


def _to_value(array: np.ndarray) -> ort.OrtValue:
    if _is_foreign(array.dtype):
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, to_onnx_dtype(array.dtype))
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: ort.OrtValue, info: TensorInfo) -> Any:
    if info.dtype is None:
        return value
    if not _is_foreign(info.dtype):
        return value.numpy()
    if to_onnx_dtype(info.dtype) in SUB_BYTE_BITS:
        raise RuntimeFailure(f"Output `{info.name}` is {info.kind}, which cannot be read.")
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, info.dtype).reshape(value.shape())
