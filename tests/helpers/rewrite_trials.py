"""Run pipelines on a model, and hold what they give against the model as onnxruntime runs it.

The comparison is of its own: nothing here asks the tool's verifier, which might hide by leaving a
step out what a trial is to find.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from attempts import kind_of
from onnx import helper, numpy_helper
from random_graphs import quiet_options

from onnxslim.api import compress
from onnxslim.errors import FloorMissed, OnnxslimError, PromiseBroken
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.policy import Policy
from onnxslim.records import Fidelity
from onnxslim.run.prepared import PreparedRun
from onnxslim.run.settings import RunSettings

Feeds = Mapping[str, Any]
Outputs = list[Any]

_NOISE: Final = {"e": 2.0**-9, "f": 2.0**-21, "d": 2.0**-49}
"""Some units in the last place, by the code of the type."""
_FLOAT_CODES: Final = {1: np.float32, 10: np.float16, 11: np.float64}
_RANDOM: Final = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
_UNDEFINED_ON_NAN: Final = {
    "ArgMax", "ArgMin", "Cast", "CastLike", "DynamicQuantizeLinear", "GlobalMaxPool", "Hardmax",
    "MaxPool", "NonMaxSuppression", "QuantizeLinear", "ReduceMax", "ReduceMin", "Sign", "TopK",
    "Unique",
}  # fmt: skip
"""Operators of which the standard does not say what they make of NaN, or of infinity."""
_EXACT_OPERANDS: Final = {"Resize", "Upsample"}
"""Operators that refuse other scales, or give other sizes."""
_AMPLIFIED: Final = 8  # so many times its own noise an output may move
_AMPLIFIED_HALF: Final = 64  # a few perturbations of float16 do not show the worst
_FLOOR_DB: Final = 20.0


class Mode(Enum):
    """What a pipeline is held to."""

    LOSSLESS = "lossless"  # without the tool's verifier: outputs as the fidelity says
    VERIFIED = "verified"  # with it: it has nothing to object to
    LOSSY = "lossy"  # no crash, the signature, floors


class Refused(Exception):
    """onnxruntime does not run the model as it is."""


@dataclass(frozen=True)
class Failure:
    """What went wrong.

    Attributes:
        kind: without what differs from model to model.
        detail: all that is known.
    """

    kind: str
    detail: str


@dataclass(frozen=True)
class Trial:
    """A model, what it is run on, and a pipeline.

    Attributes:
        feeds: inputs that are compared.
        special: inputs with values that are not finite, compared where all edits were exact.
    """

    model: bytes
    feeds: tuple[Feeds, ...]
    special: tuple[Feeds, ...]
    pipeline: str
    mode: Mode

    def failure(self) -> Failure | None:
        """What is wrong with the result of the pipeline.

        Raises:
            Refused: onnxruntime does not run the model as it is.
        """
        subject = Subject(self.model, self.feeds, self.special)
        return subject.failure(self.pipeline, self.mode)

    def operators(self) -> list[str]:
        """The operators of the main graph, each once."""
        graph = onnx.ModelProto.FromString(self.model).graph
        return sorted({node.op_type for node in graph.node})

    # ------------------------------------------------------------- as files

    def save(self, path: Path, failure: Failure) -> None:
        """Write the model, its inputs, and what to do to see the failure again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.model)
        arrays = {
            f"{group}/{index}/{name}": np.asarray(value)
            for group, feeds in (("plain", self.feeds), ("special", self.special))
            for index, feed in enumerate(feeds)
            for name, value in feed.items()
        }
        settings = {"pipeline": np.array(self.pipeline), "mode": np.array(self.mode.value)}
        np.savez(path.with_suffix(".npz"), **settings, **arrays)
        text = f"{failure.kind}\n{failure.detail}\npython tests/fuzz.py --replay {path}\n"
        path.with_suffix(".txt").write_text(text, "utf-8")

    @classmethod
    def load(cls, path: Path) -> Trial:
        """A trial that was saved."""
        groups: dict[str, dict[str, dict[str, Any]]] = {"plain": {}, "special": {}}
        with np.load(path.with_suffix(".npz"), allow_pickle=True) as stored:
            for key in stored.files:
                if "/" in key:
                    group, index, name = key.split("/", 2)
                    groups[group].setdefault(index, {})[name] = stored[key]
            pipeline, mode = str(stored["pipeline"]), Mode(str(stored["mode"]))
        feeds = tuple(groups["plain"].values()) or ({},)
        return cls(path.read_bytes(), feeds, tuple(groups["special"].values()), pipeline, mode)


class Subject:
    """A model that onnxruntime runs, with its outputs, on which pipelines are tried.

    Args:
        model: the file.
        feeds: inputs; those that the model does not take are left out, but the first is a must.
        special: more inputs.

    Raises:
        Refused: onnxruntime does not load or run it.
    """

    def __init__(self, model: bytes, feeds: Sequence[Feeds], special: Sequence[Feeds] = ()) -> None:
        self.model = model
        try:
            session = _session(model)
            session.run(None, dict(feeds[0]))
            _session(model, optimised=True).run(None, dict(feeds[0]))
        except Exception as error:  # onnxruntime raises many kinds, with no common base
            raise Refused(str(error)) from error
        self.names = [item.name for item in session.get_outputs()]
        operators = set(_operators(self.proto))
        if operators & _RANDOM:
            feeds, special = feeds[:1], ()  # what a session draws depends on how often it ran
        if operators & _UNDEFINED_ON_NAN:
            special = ()
            feeds = [item for item in feeds if not _makes_nan(self.proto, item)]
        if not feeds:
            raise Refused("it makes NaN of all inputs, of which the standard does not say more")
        self.runs = [*_runs(session, feeds)]
        self.special_runs = list(_runs(session, special))

    @cached_property
    def proto(self) -> onnx.ModelProto:
        return onnx.ModelProto.FromString(self.model)

    @cached_property
    def _rounds_between(self) -> bool:
        """Whether float16 is computed: onnxruntime rounds to it after some operators only."""
        return _in_half(self.proto)

    @cached_property
    def _prepared(self) -> PreparedRun:
        settings = RunSettings(verify=False, measure=False, threads=1)
        return PreparedRun(Model.load(self.model), settings)

    # ------------------------------------------------------------- verdicts

    def failure(self, pipeline: str, mode: Mode) -> Failure | None:
        """What is wrong with the result of a pipeline."""
        check = {
            Mode.LOSSLESS: self._lossless,
            Mode.VERIFIED: self._verified,
            Mode.LOSSY: self._lossy,
        }[mode]
        with tempfile.TemporaryDirectory(prefix="trial-") as folder:
            try:
                found = check(pipeline, Path(folder))
            except PromiseBroken as error:
                found = f"exit 5: {error}"
            except OnnxslimError as error:
                found = f"exit {error.exit_code}: {error}"
            except Exception as error:  # whatever it is, it is a bug
                found = f"raised {type(error).__name__}: {error}"
        if found is None:
            return None
        kind = kind_of(found.partition(", with ")[0].partition(" is off by ")[0])
        return Failure(f"{mode.value}, {pipeline}: {kind}", found)

    def _lossless(self, pipeline: str, folder: Path) -> str | None:
        parsed = parse_pipeline(pipeline)
        attempt = self._prepared.try_pipeline(parsed, Policy(force=True), reproducers=folder)
        changed = [step for step in attempt.steps if step.changes]
        for step in changed:
            if not step.committed:
                return f"left out: {step.why_not_committed}"
        if not changed:
            return None
        result = attempt.model.to_bytes()
        objection = self._signature_objection(result) or self._load_objection(result)
        if objection is not None and self._loads_bare(result):
            # the optimisations of onnxruntime fail: the tool is to find that out and leave it out
            result, _ = compress(
                self.model, passes=pipeline, measure=False, threads=1, reproducers=folder
            )
            result = result.to_bytes()
            objection = self._signature_objection(result) or self._load_objection(result)
        if objection is not None:
            # a later opset need not have the kernels: that is found out by verifying
            raised = ("raise-opset", "fuse-attention", "fuse-rotary")
            is_raised = any(step.spec.startswith(raised) for step in changed)
            return None if is_raised and "refuses the result" in objection else objection
        fidelity = max(step.fidelity for step in changed)
        if self._rounds_between:
            fidelity = max(fidelity, Fidelity.CLOSE)
        return self._difference(result, fidelity)

    def _verified(self, pipeline: str, folder: Path) -> str | None:
        result, _ = compress(
            self.model, passes=pipeline, measure=False, threads=1, reproducers=folder
        )
        return self._signature_objection(result.to_bytes())

    @cached_property
    def _samples(self) -> list[dict[str, Any]] | None:
        """Inputs with the names of the first ones; None for a model without inputs."""
        names = set(self.runs[0][0])
        return [dict(feed) for feed, _ in self.runs if set(feed) == names] if names else None

    @cached_property
    def _calibrated(self) -> PreparedRun:
        settings = RunSettings(calibration=self._samples, measure=False, threads=1)
        return PreparedRun(Model.load(self.model), settings)

    def _declines(self, pipeline: str, folder: Path) -> bool:
        """Whether no step of a pipeline changes anything, found out on what is prepared once."""
        policy = Policy(floors=Floors(min_sqnr_db=_FLOOR_DB))
        parsed = parse_pipeline(pipeline)
        attempt = self._calibrated.try_pipeline(parsed, policy, reproducers=folder)
        return not any(step.changes for step in attempt.steps)

    def _lossy(self, pipeline: str, folder: Path) -> str | None:
        target = folder / "out.onnx"
        try:
            if self._declines(pipeline, folder):
                return None
            compress(
                self.model,
                target,
                passes=pipeline,
                calibration=self._samples,
                measure=False,
                threads=1,
                floors=Floors(min_sqnr_db=_FLOOR_DB),
                reproducers=folder,
            )
        except FloorMissed:
            pass  # written without the step
        except OnnxslimError as error:
            if error.exit_code == PromiseBroken.exit_code:
                raise
            return None  # refused in a sentence
        if not target.exists():
            return "exit 0 without an output"
        result = target.read_bytes()
        if "inject-exits" in pipeline:
            return self._load_objection(result)  # new outputs, and labels that may differ
        return (
            self._signature_objection(result)
            or self._load_objection(result)
            or self._floor_objection(result)
        )

    def _floor_objection(self, result: bytes) -> str | None:
        """The floor, held loosely: the tool judges by samples that it held back."""
        if len(self.runs) == 1:
            return None  # a single sample may be far from those that the tool held back
        session = _session(result)
        found = [session.run(None, dict(feeds)) for feeds, _ in self.runs]
        for index, name in enumerate(self.names):
            pairs = [(run[1][index], new[index]) for run, new in zip(self.runs, found, strict=True)]
            pairs = [(a, b) for a, b in pairs if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
            if not pairs or any(not np.isfinite(a).all() or a.shape != b.shape for a, b in pairs):
                continue
            shares = [
                _energy(b - a) / max(_energy(a), _left_of_sums(feeds, a))
                for (a, b), (feeds, _) in zip(pairs, self.runs, strict=False)
            ]
            # few samples are held back, and one of these may be far from them
            if not np.median(shares) * 10 ** (_FLOOR_DB / 20) <= 1:
                return f"output `{name}` has noise of {np.median(shares):g} of its signal"
        return None

    # ------------------------------------------------------------- comparisons

    def _signature_objection(self, result: bytes) -> str | None:
        """Inputs and outputs by name, type and shape, as they are declared."""
        was, now = _signature(self.proto), _signature(onnx.ModelProto.FromString(result))
        if was == now:
            return None
        return f"the signature changed from {was} to {now}"

    def _load_objection(self, result: bytes) -> str | None:
        """Whether onnxruntime runs the result as applications do, and operator by operator."""
        try:
            _session(result)
            session = _session(result, optimised=True)
        except Exception as error:
            return f"onnxruntime refuses the result: {error}"
        try:
            session.run(None, dict(self.runs[0][0]))
        except Exception as error:
            return f"onnxruntime fails on the result: {error}"
        return None

    def _loads_bare(self, result: bytes) -> bool:
        """Whether onnxruntime loads the result where it does not optimise."""
        try:
            _session(result)
        except Exception:  # of any kind, as above
            return False
        return True

    def _difference(self, result: bytes, fidelity: Fidelity) -> str | None:
        session = _session(result)
        runs = self.runs + (self.special_runs if fidelity is Fidelity.EXACT else [])
        for feeds, wanted in runs:
            try:
                found = session.run(None, dict(feeds))
            except Exception as error:
                return f"onnxruntime fails on the result with {_sizes(feeds)}: {error}"
            objection = self._objection(feeds, wanted, found, fidelity)
            if objection and self._is_steady(feeds, wanted):
                return f"{objection}, with {_sizes(feeds)}"
        return None

    def _is_steady(self, feeds: Feeds, wanted: Outputs) -> bool:
        """Whether the model as it is gives the same again: some kernels read beyond their data."""
        for fill in (0.0, 1.0, np.nan):
            litter = [
                np.full(size, fill, np.float32) for size in (8, 64, 512, 4096) for _ in "abcd"
            ]
            session = _session(self.model)
            del litter
            if self._beyond([0.0] * len(wanted), wanted, session.run(None, dict(feeds))):
                return False
        return True

    def _objection(
        self, feeds: Feeds, wanted: Outputs, found: Outputs, fidelity: Fidelity
    ) -> str | None:
        limits = [0.0] * len(wanted)
        if fidelity is not Fidelity.EXACT:
            limits = [1e-6 + 1e-4 * _span(value) + 8 * _rounding(value) for value in wanted]
        objection = self._beyond(limits, wanted, found)
        if objection is None or fidelity is Fidelity.EXACT:
            return objection
        noise = self._noise(feeds, wanted)
        times = _AMPLIFIED_HALF if self._rounds_between else _AMPLIFIED
        limits = [max(limit, times * own) for limit, own in zip(limits, noise, strict=True)]
        return self._beyond(limits, wanted, found)

    def _beyond(self, limits: list[float], wanted: Outputs, found: Outputs) -> str | None:
        for name, limit, a, b in zip(self.names, limits, wanted, found, strict=True):
            distance = distance_between(a, b)
            if distance > limit:
                return f"output `{name}` is off by {distance:g}, allowed are {limit:g}"
        return None

    def _noise(self, feeds: Feeds, wanted: Outputs) -> list[float]:
        """How far the outputs of the model itself move under rounding, each at its worst."""
        worst = [0.0] * len(wanted)
        for seed in range(5):
            model = _with_rounding(self.proto, seed) if seed else self.model
            try:
                found = _session(model, optimised=not seed).run(None, dict(feeds))
            except Exception:  # an operator that takes no computed operand there
                continue
            moved = map(distance_between, wanted, found)
            worst = [max(a, b) for a, b in zip(worst, moved, strict=True)]
        return worst


def _left_of_sums(feeds: Feeds, output: np.ndarray) -> float:
    """The energy of what rounding leaves where numbers as large as the inputs cancel."""
    sizes = [np.abs(x).max() for x in feeds.values() if x.dtype.kind == "f" and x.size]
    largest = float(np.nan_to_num(max(sizes, default=0.0)))
    return max(output.size * (100 * float(np.finfo(output.dtype).eps) * largest) ** 2, 1e-300)


def _energy(array: np.ndarray) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def _session(model: bytes, *, optimised: bool = False) -> ort.InferenceSession:
    options = quiet_options(optimised=optimised)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _makes_nan(proto: onnx.ModelProto, feeds: Feeds) -> bool:
    """Whether a tensor of the main graph holds NaN; not so where it cannot be asked."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {item.name for item in copy.graph.output}
    made = [name for node in copy.graph.node for name in node.output if name and name not in known]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    try:
        found = _session(copy.SerializeToString()).run(None, dict(feeds))
    except Exception:  # an inner tensor that is none, or of a type that cannot leave
        return False
    floats = [x for x in found if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
    return any(np.isnan(x).any() for x in floats)


def _runs(session: ort.InferenceSession, feeds: Sequence[Feeds]) -> Iterator[tuple[Feeds, Outputs]]:
    """Those of the inputs that the model takes, with its outputs."""
    for feed in feeds:
        try:
            yield feed, session.run(None, dict(feed))
        except Exception:  # other sizes that do not go together
            continue


def _sizes(feeds: Feeds) -> str:
    return ", ".join(f"{name} {np.shape(value)}" for name, value in feeds.items())


def _signature(model: onnx.ModelProto) -> list[str]:
    """Inputs and outputs; below IR version 4 initializers are inputs by rule, and none of them."""
    constants = {item.name for item in model.graph.initializer}
    constants |= {item.values.name for item in model.graph.sparse_initializer}
    is_old = model.ir_version < 4
    inputs = [info for info in model.graph.input if not (is_old and info.name in constants)]
    found = []
    for info in (*inputs, *model.graph.output):
        kind = onnx.TypeProto()
        kind.CopyFrom(info.type)
        found.append(f"{info.name}: {kind.SerializeToString(deterministic=True)!r}")
    return found


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    """Every operator, those in bodies and functions included."""

    def inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
        for node in nodes:
            yield node.op_type
            for attribute in node.attribute:
                yield from inside(attribute.g.node)

    yield from inside(model.graph.node)
    for function in model.functions:
        yield from inside(function.node)


def _in_half(model: onnx.ModelProto) -> bool:
    """Whether a float16 tensor is among inputs or constants, or something is cast to it."""
    half = onnx.TensorProto.FLOAT16

    def inside(nodes: Iterable[onnx.NodeProto]) -> bool:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.t.data_type == half or (
                    attribute.name == "to" and attribute.i == half
                ):
                    return True
                body = attribute.g
                if any(item.data_type == half for item in body.initializer) or inside(body.node):
                    return True
        return False

    graph = model.graph
    return (
        any(info.type.tensor_type.elem_type == half for info in graph.input)
        or any(tensor.data_type == half for tensor in graph.initializer)
        or inside(graph.node)
        or any(inside(function.node) for function in model.functions)
    )


def _span(value: Any) -> float:
    """Max - min of what is finite."""
    if isinstance(value, list):
        return max(map(_span, value), default=0.0)
    if value is None or value.dtype.kind != "f":
        return 0.0
    finite = value[np.isfinite(value)].astype(np.float64)
    return float(np.ptp(finite)) if finite.size else 0.0


def _rounding(value: Any) -> float:
    """One unit of rounding of the largest finite value."""
    if isinstance(value, list):
        return max(map(_rounding, value), default=0.0)
    if value is None or value.dtype.kind != "f" or not np.isfinite(value).any():
        return 0.0
    largest = np.abs(value[np.isfinite(value)].astype(np.float64)).max()
    return float(np.finfo(value.dtype).eps * largest)


def distance_between(a: Any, b: Any) -> float:
    """The largest difference; 0 for equal bits (any NaN equals any), infinite for other shapes.

    Where signs of zeros differ and nothing else, it is the smallest number there is.
    """
    if isinstance(a, list) or isinstance(b, list):
        if type(a) is not type(b) or len(a) != len(b):
            return np.inf
        return max(map(distance_between, a, b), default=0.0)
    if a is None or b is None:
        return 0.0 if a is b else np.inf
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else np.inf
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not differs.any():
        zeros = (a == 0) & (np.signbit(a) != np.signbit(b))
        return float(np.finfo(np.float64).tiny) if zeros.any() else 0.0
    with np.errstate(all="ignore"):
        distance = np.abs(a[differs].astype(np.float64) - b[differs].astype(np.float64))
    return float(np.nan_to_num(distance, nan=np.inf, posinf=np.inf).max())


def _with_rounding(model: onnx.ModelProto, seed: int) -> bytes:
    """The model with each float operand off by some units in the last place.

    Two Concats round those of float16, which onnxruntime may keep in float32 between operators and
    past one node. With seed 1 that is all that happens.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # what is not inferred is left as it is
        inferred = model
    infos = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    with_axes = {info.name for info in infos if info.type.tensor_type.shape.dim}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    rng, nodes = np.random.default_rng(seed), []
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        for index, name in enumerate(node.input):
            dtype = _FLOAT_CODES.get(types.get(name, 0))
            if dtype is None or (index and node.op_type in _EXACT_OPERANDS):
                continue
            label = f"_noise{len(nodes)}"
            if dtype is np.float16 and name in with_axes:
                for rounded in (f"{label}_once", f"{label}_twice"):
                    nodes.append(helper.make_node("Concat", [name], [rounded], axis=0))
                    name = rounded
            factor = 1 + (seed > 1) * rng.choice((-1, 1)) * _NOISE[np.dtype(dtype).char]
            scale = numpy_helper.from_array(np.array(factor, dtype), f"{label}_scale")
            result.graph.initializer.append(scale)
            nodes.append(helper.make_node("Mul", [name, scale.name], [label]))
            node.input[index] = label
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    if result.ir_version < 4:
        result.ir_version = 4
    return bytes(result.SerializeToString())
