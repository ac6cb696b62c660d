"""onnxruntime sessions: the one place that builds them.

What may change here: how onnxruntime is set up, how a model reaches it, what it gives back. No
other module creates a session or catches an exception of onnxruntime.

The weights of a `Model` are not serialized: onnxruntime gets the skeleton (see `wire`) and, beside
it, the arrays as they lie in the mapped file. Opening a 548 MB model copies nothing but what
onnxruntime packs for its own kernels.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort

from onnxslim.errors import RuntimeFailure
from onnxslim.graph import wire
from onnxslim.graph.ir import SUB_BYTE_BITS, to_numpy_dtype, to_onnx_dtype
from onnxslim.io.model import PROTOBUF_LIMIT, Model
from onnxslim.runtime.explain import explain

Dim = int | str | None
Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]

CPU: Final = ("CPUExecutionProvider",)
_SILENT: Final = 4
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
        dtype: None for what is no dense tensor.
        shape: sizes, symbols, None for an unnamed size; None for an unknown rank.
    """

    name: str
    kind: str
    dtype: np.dtype | None
    shape: tuple[Dim, ...] | None


class Session:
    """A model, loaded. Close it, or use it as a context manager, to free its memory early."""

    def __init__(
        self,
        session: ort.InferenceSession,
        shapes: Mapping[str, tuple[Dim, ...] | None] | None = None,
        keep: Sequence[object] = (),
    ) -> None:
        self.inputs = tuple(_info(item, shapes) for item in session.get_inputs())
        self.outputs = tuple(_info(item, shapes) for item in session.get_outputs())
        self._session: ort.InferenceSession | None = session
        self._keep: Sequence[object] = keep  # onnxruntime reads weights out of these arrays
        self._foreign = any(_is_foreign(item.dtype) for item in (*self.inputs, *self.outputs))

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the model's order.

        Raises:
            RuntimeFailure: onnxruntime refuses the inputs, or fails.
        """
        run = self.runner(feeds)
        try:
            values = run()
        except Exception as error:  # onnxruntime raises many kinds, with no common base
            raise RuntimeFailure(f"onnxruntime failed on the model: {explain(error)}") from error
        return {info.name: value for info, value in zip(self.outputs, values, strict=True)}

    def runner(self, feeds: Feeds) -> Callable[[], Sequence[np.ndarray]]:
        """One run as a function without arguments: what `latency` times. Its errors are raw."""
        session = self._session
        if session is None:
            raise RuntimeError("This session is closed.")
        if self._foreign:
            return lambda: _run_foreign(session, feeds, self.outputs)
        plain = dict(feeds)
        return lambda: session.run(None, plain)

    def detached(self) -> tuple[ort.InferenceSession, Sequence[object]]:
        """Onnxruntime's session, and what must live as long as it does; closes this one."""
        session, keep = self._session, self._keep
        if session is None:
            raise RuntimeError("This session is closed.")
        self.close()
        return session, keep

    def close(self) -> None:
        """Free the session and let go of the weights."""
        self._session = None
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


def open_session(
    source: Model | Path | bytes,
    *,
    optimise: bool = True,
    threads: int | None = None,
    spin: bool = True,
    providers: Sequence[str] = CPU,
) -> Session:
    """Load a model into onnxruntime.

    Args:
        source: a model, the path of a file, or the bytes of one.
        optimise: run onnxruntime's own graph optimisations; without them, operators are computed
            as they stand.
        threads: within an operator; None: onnxruntime's choice.
        spin: let threads wait for the next operator or run by spinning: fastest, but while other
            work is done between runs they take its cores.
        providers: execution providers, by preference.

    Raises:
        RuntimeFailure: onnxruntime refuses the model.
    """
    options = session_options(optimise, threads)
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if isinstance(source, Model):
            return _open_model(source, options, providers)
        content = os.fspath(source) if isinstance(source, Path) else source
        return Session(ort.InferenceSession(content, options, providers=list(providers)))
    except RuntimeFailure:
        raise
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise RuntimeFailure(f"onnxruntime cannot load the model: {explain(error)}") from error


def plain_session(
    model: Model, options: ort.SessionOptions, providers: Sequence[str] = CPU
) -> ort.InferenceSession:
    """A session as onnxruntime itself gives it, which holds on to the weights of `model`.

    Raises:
        RuntimeFailure: onnxruntime refuses the model.
    """
    try:
        opened = _open_model(model, options, providers)
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise RuntimeFailure(f"onnxruntime cannot load the model: {explain(error)}") from error
    session, keep = opened.detached()
    session._weights = keep
    return session


def session_options(optimise: bool, threads: int | None) -> ort.SessionOptions:
    """How onnxruntime is set up here; see `open_session`."""
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    options.use_deterministic_compute = True
    options.intra_op_num_threads = _default_threads() if threads is None else threads
    # a weight should not make the arena double its size
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if not optimise:
        # a MatMul whose weight is constant is packed for another kernel, which rounds differently:
        # without packing, equal operators give equal bits whether a weight is computed or constant
        options.add_session_config_entry("session.disable_prepacking", "1")
    # threads that spin after a run would steal time from the model that is timed in turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _default_threads() -> int:
    """0, onnxruntime's own choice, unless this process may not use all processors."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed


# ------------------------------------------------------------------------- models


def _open_model(model: Model, options: ort.SessionOptions, providers: Sequence[str]) -> Session:
    proto, payloads = model.skeleton()
    _drop_unused(proto, {constant.name for constant in model.graph.unused})
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
    if proto.ByteSize() + sum(payload.nbytes for _, payload in embedded) > PROTOBUF_LIMIT:
        return _open_staged(model, options, providers, shapes)
    for tensor, payload in embedded:
        _embed(tensor, payload)
    if names:
        options.add_external_initializers(names, values)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=list(providers))
    return Session(session, shapes, values)


def _drop_unused(proto: onnx.ModelProto, unused: set[str]) -> None:
    """Leave out initializers that nothing uses: onnxruntime drops them before it is given them."""
    if unused:
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in unused]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _open_staged(
    model: Model,
    options: ort.SessionOptions,
    providers: Sequence[str],
    shapes: Mapping[str, tuple[Dim, ...] | None],
) -> Session:
    """Through a temporary file, for a model that one protobuf message cannot hold."""
    with (
        tempfile.TemporaryDirectory(prefix="onnxslim-") as folder,
        model.stage(Path(folder) / "model.onnx", external=True) as staged,
    ):
        session = ort.InferenceSession(str(staged.file), options, providers=list(providers))
    return Session(session, shapes)


def _shared_value(tensor: onnx.TensorProto, payload: wire.Payload) -> ort.OrtValue:
    dtype = to_numpy_dtype(tensor.data_type)
    array = np.frombuffer(payload.read(), dtype).reshape(tuple(tensor.dims))
    if _is_foreign(dtype):
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _embed(tensor: onnx.TensorProto, payload: wire.Payload) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(payload.read())


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors but the initializers of the main graph."""
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
    """Whether numpy has no such type of its own (bfloat16, float8, ...)."""
    return dtype is not None and dtype.isbuiltin == 2


def _run_foreign(
    session: ort.InferenceSession, feeds: Feeds, outputs: Sequence[TensorInfo]
) -> list[np.ndarray]:
    """A run whose inputs or outputs have types that onnxruntime cannot turn into numpy's."""
    values = {name: _to_value(np.ascontiguousarray(array)) for name, array in feeds.items()}
    results = session.run_with_ort_values([info.name for info in outputs], values)
    return [_from_value(value, info) for value, info in zip(results, outputs, strict=True)]


def _to_value(array: np.ndarray) -> ort.OrtValue:
    if _is_foreign(array.dtype):
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, to_onnx_dtype(array.dtype))
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: ort.OrtValue, info: TensorInfo) -> np.ndarray:
    if info.dtype is None or not _is_foreign(info.dtype):
        return value.numpy()  # type: ignore[no-any-return]
    if to_onnx_dtype(info.dtype) in SUB_BYTE_BITS:
        raise RuntimeFailure(f"Output `{info.name}` is {info.kind}, which cannot be read.")
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, info.dtype).reshape(value.shape())
