"""Commands that write, run with one fault at a time: what may be left when it is over.

A request to the file system, or a session of onnxruntime, fails at a chosen number; see
`tests/faults.py`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exit_nets import classifier
from layer_nets import dense_net

from onnxslim import cli
from onnxslim.io import files
from onnxslim.io.model import PROTOBUF_LIMIT, Model
from onnxslim.tools.pack import pack

ERRORS: Final = (
    *(errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE, errno.EDQUOT),
    "short write",
)
OLD: Final = b"an older file of the user"
_DONE: Final = (0, 4)
_REFUSED: Final = (2, 3, 6)


# ------------------------------------------------------------------ the faults


class FailingCalls(files.SystemCalls):
    """Asks the system, but for one request, which fails.

    Args:
        at: number of the request that fails, from 1; 0: none, requests are counted.
        error: the error number, or "short write": half of a chunk, then a full disk.
    """

    def __init__(self, at: int = 0, error: int | str = errno.EIO) -> None:
        self.at, self.error = at, error
        self.requests: list[str] = []

    def _ask(self, name: str, place: object, go: Callable[[], Any]) -> Any:
        self.requests.append(name)
        if len(self.requests) != self.at:
            return go()
        number = errno.ENOSPC if isinstance(self.error, str) else self.error
        if name == "write" and isinstance(self.error, str):
            go()
        raise OSError(number, os.strerror(number), str(place))

    def create(self, path: Path) -> IO[bytes]:
        go = super().create
        stream: IO[bytes] = self._ask("create", path, lambda: go(path))
        return stream

    def scratch(self, in_memory: int) -> IO[bytes]:
        # no byte in memory, so that each write is one to the disk
        go = super().scratch
        stream: IO[bytes] = self._ask("scratch", "scratch", lambda: go(0))
        return stream

    def write(self, stream: IO[bytes], chunk: files.Buffer) -> None:
        is_cut = len(self.requests) + 1 == self.at
        part = chunk[: len(chunk) // 2] if is_cut else chunk
        go = super().write
        self._ask("write", "stream", lambda: go(stream, part))

    def sync(self, stream: IO[bytes]) -> None:
        go = super().sync
        self._ask("sync", "stream", lambda: go(stream))

    def map(self, path: Path) -> memoryview:
        go = super().map
        view: memoryview = self._ask("map", path, lambda: go(path))
        return view

    def rename(self, source: Path, target: Path) -> None:
        go = super().rename
        self._ask("rename", source, lambda: go(source, target))

    def touch(self, path: Path) -> None:
        go = super().touch
        self._ask("touch", path, lambda: go(path))

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        go = super().make_folder
        self._ask("make_folder", path, lambda: go(path, mode))

    def remove(self, path: Path) -> None:
        go = super().remove
        self._ask("remove", path, lambda: go(path))

    def remove_tree(self, folder: Path) -> None:
        go = super().remove_tree
        self._ask("remove_tree", folder, lambda: go(folder))


@contextlib.contextmanager
def failing_sessions(at: int, error: Exception) -> Iterator[list[str]]:
    """Onnxruntime raises `error` at its `at`-th session or run; 0: none, they are counted."""
    seen: list[str] = []

    def ask(name: str, go: Callable[[], Any]) -> Any:
        seen.append(name)
        if len(seen) == at:
            raise error
        return go()

    init, run = ort.InferenceSession.__init__, ort.InferenceSession.run
    with pytest.MonkeyPatch.context() as patch:
        for name, go in (("__init__", init), ("run", run)):
            patch.setattr(ort.InferenceSession, name, _asking(ask, name, go))
        yield seen


def _asking(ask: Callable[..., Any], name: str, go: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *words, **named: ask(name, lambda: go(*words, **named))


# --------------------------------------------------------------- the commands


@dataclass(frozen=True)
class Case:
    """A command line that writes, in a folder with its inputs.

    Attributes:
        arguments: words of the command; `{in}` and `{out}` stand for folders.
        outputs: names of the files that it writes in the folder of outputs, the model first.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]


def _case(line: str, *outputs: str) -> Case:
    return Case(tuple(line.split()), outputs)


CASES: Final[Mapping[str, Case]] = {
    "simplify": _case("compress {in}/m.onnx {out}/o.onnx", "o.onnx"),
    "nothing to do": _case("compress {in}/small.onnx {out}/o.onnx", "o.onnx"),
    "report": _case("compress {in}/m.onnx {out}/o.onnx --report {out}/r.json", "o.onnx", "r.json"),
    "lossy": _case(
        "compress {in}/m.onnx {out}/o.onnx --calib {in}/c.npz "
        "--passes simplify,prune-weights:ratio=0.5,cluster-weights --force --no-floor",
        "o.onnx",
    ),
    "cache": _case(
        "compress {in}/m.onnx {out}/o.onnx --passes simplify,quantize-weights --force --no-floor "
        "--cache {out}/../cache",
        "o.onnx",
    ),
    "recipe": _case("compress {in}/m.onnx {out}/o.onnx --recipe {in}/r.toml", "o.onnx"),
    "external data": _case(
        "compress {in}/e.onnx {out}/o.onnx --passes simplify", "o.onnx", "o.onnx.data"
    ),
    "external data, copied": _case(
        "compress {in}/small_e.onnx {out}/o.onnx", "o.onnx", "small_e.onnx.data"
    ),
    "pack": _case("pack {in}/m.onnx {out}/o.onnxz", "o.onnxz"),
    "pack, external data": _case("pack {in}/e.onnx {out}/o.onnxz", "o.onnxz"),
    "unpack": _case("unpack {in}/p.onnxz {out}/o.onnx", "o.onnx"),
    "unpack, external data": _case("unpack {in}/pe.onnxz {out}/o.onnx", "o.onnx", "o.onnx.data"),
    "above 2 GB": _case("compress {in}/m.onnx {out}/o.onnx", "o.onnx", "o.onnx.data"),
    "groups": _case("groups {in}/m.onnx --report {out}/r.json", "r.json"),
    "sensitivity": _case(
        "sensitivity {in}/small.onnx --calib {in}/s.npz --passes prune-weights:ratio=0.5 "
        "--report {out}/r.csv",
        "r.csv",
    ),
}


def make_inputs(folder: Path) -> None:
    """The models and data that the commands of `CASES` read."""
    folder.mkdir()
    model = _with_identity(classifier())
    small = dense_net(8, 64, 4)
    data = np.random.default_rng(0)
    np.savez(folder / "c.npz", x=_samples(model, data))
    np.savez(folder / "s.npz", x=_samples(small, data))
    for name, proto in (("m", model), ("small", small)):
        onnx.save(proto, folder / f"{name}.onnx")
    for name, proto in (("e", model), ("small_e", small)):
        Model.load(proto).save(folder / f"{name}.onnx", external=True)
    (folder / "r.toml").write_text('passes = "simplify"\n')
    pack(folder / "m.onnx", folder / "p.onnxz")
    pack(folder / "e.onnx", folder / "pe.onnxz")


def _with_identity(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with a node that simplify removes."""
    first = model.graph.node[0]
    node = onnx.helper.make_node("Identity", [first.input[0]], ["in0"])
    first.input[0] = "in0"
    model.graph.node.insert(0, node)
    return model


def _samples(model: onnx.ModelProto, rng: np.random.Generator) -> np.ndarray:
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    return rng.standard_normal((40, *shape[1:])).astype(np.float32)


# ------------------------------------------------------------------ one attempt


@dataclass
class Attempt:
    """How a command ended, and what it left."""

    code: int
    errors: str
    wrong: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """A folder with inputs, in which commands are run."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = self.folder / "in"
        make_inputs(self.inputs)
        self.digests = digests(self.inputs)

    def run(
        self, case: Case, faults: FailingCalls | AbstractContextManager[Any], *, old: bool
    ) -> Attempt:
        """Run a command under `faults`, and hold what is left against the promise.

        Args:
            case: the command.
            faults: requests that fail, or what is entered while the command runs.
            old: whether older files lie where it will write.
        """
        requests = faults if isinstance(faults, FailingCalls) else FailingCalls()
        context = files.replaced(faults) if isinstance(faults, FailingCalls) else faults
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            out, scratch = Path(work) / "out", Path(work) / "tmp"
            out.mkdir()
            scratch.mkdir()
            if old:
                for name in case.outputs:
                    (out / name).write_bytes(OLD)
            code, errors = self._call(case, context, out, scratch)
            attempt = Attempt(code, errors)
            failed = requests.requests[requests.at - 1 : requests.at]
            lax = any(name.startswith("remove") for name in failed)  # that is what fails
            attempt.wrong += list(self._wrong(case, attempt, out, scratch, old, lax))
            return attempt

    def arguments(self, case: Case, out: Path) -> list[str]:
        """The words of the command line."""
        return [
            w.replace("{in}", str(self.inputs)).replace("{out}", str(out))
            for w in (*case.arguments, "--overwrite")  # the older files there are none of ours
        ]

    def _call(
        self, case: Case, faults: AbstractContextManager[Any], out: Path, scratch: Path
    ) -> tuple[int, str]:
        errors = io.StringIO()
        quick = ["--no-latency"] if case.arguments[0] == "compress" else []
        # as if one protobuf message could hold no more, where a model goes to two files for that
        limit = 1000 if case is CASES["above 2 GB"] else PROTOBUF_LIMIT
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(scratch.parent),
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.StringIO()),
            faults,
        ):
            patch.setattr("onnxslim.io.model.PROTOBUF_LIMIT", limit)
            patch.setattr("onnxslim.runtime.session.PROTOBUF_LIMIT", limit)
            patch.setattr(tempfile, "tempdir", str(scratch))
            code = cli.run([*self.arguments(case, out), *quick])
        return code, errors.getvalue()

    def _wrong(
        self, case: Case, attempt: Attempt, out: Path, scratch: Path, old: bool, lax: bool
    ) -> Iterator[str]:
        lines = attempt.errors.splitlines()
        if attempt.code not in (*_DONE, *_REFUSED, 5):
            yield f"exit {attempt.code}"
        if "internal error" in attempt.errors or "Traceback" in attempt.errors:
            yield f"crash: {attempt.errors}"
        if len(lines) != (attempt.code != 0):
            yield f"{len(lines)} lines on standard error with exit {attempt.code}"
        if digests(self.inputs) != self.digests:
            yield "an input changed"
        yield from wrong_outputs(case, out, attempt.code, old)
        left = [*scratch.iterdir(), *out.glob(".onnxslim-*")]
        if left and not lax:
            yield f"left behind: {[item.name for item in left]}"


def wrong_outputs(case: Case, out: Path, code: int, old: bool) -> Iterator[str]:
    """What is neither old nor new and whole among the outputs."""
    state = {name: _state(out / name) for name in case.outputs}
    model = case.outputs[0]
    if code in _DONE and state[model] != "new":
        yield f"exit {code}, and `{model}` is {state[model]}"
    if any(word == "broken" for word in state.values()):
        yield f"broken output: {state}"
    reports = [name for name in case.outputs[1:] if not name.endswith(".data")]
    is_new = state[model] == "new"
    others = [item.name for item in out.iterdir() if item.name not in case.outputs]
    others = [name for name in others if not name.startswith(".onnxslim-")]
    if not is_new and others:
        yield f"the output is {state[model]}, and there is {others}"
    # a report comes after the model: it may be missing beside a new model, and comes alone only to
    # tell of the failure
    alone = [name for name in reports if state[name] == "new" and not _tells_error(out / name)]
    if code not in _DONE and not is_new and alone:
        yield f"a report without its model: {state}"
    if not is_new and state[model] != ("old" if old else "none"):
        yield f"`{model}` is {state[model]}"


def _tells_error(path: Path) -> bool:
    """Whether a report is that of a run that failed."""
    return path.suffix == ".json" and "error" in json.loads(path.read_text("utf-8"))


def _state(path: Path) -> str:
    """`none`, `old`, `new` (and whole) or `broken`."""
    if not path.exists():
        return "none"
    if path.read_bytes() == OLD:
        return "old"
    if path.suffix in (".json", ".csv", ".data"):
        return "new" if path.stat().st_size else "broken"
    try:
        Model.load(path)
    except Exception:
        return "broken"
    return "new"


def digests(folder: Path) -> dict[str, str]:
    """The digest of each file in a folder."""
    return {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in folder.iterdir()}


# ------------------------------------------------------------------ many attempts


def count_requests(bench: Bench, case: Case) -> list[str]:
    """The requests of a clean run."""
    clean = FailingCalls()
    attempt = bench.run(case, clean, old=False)
    assert (attempt.code, attempt.wrong) == (0, []), (case.arguments, attempt)
    return clean.requests


def file_faults(
    bench: Bench,
    case: Case,
    errors: Sequence[int | str] = ERRORS,
    points: Sequence[int] | None = None,
) -> Iterator[Attempt]:
    """Every request of a command fails once with every error.

    Args:
        bench: where.
        case: the command.
        errors: see `FailingCalls`.
        points: numbers of requests, from 1; None: all.
    """
    for at in points or range(1, len(count_requests(bench, case)) + 1):
        for number, error in enumerate(errors):
            attempt = bench.run(case, FailingCalls(at, error), old=(at + number) % 2 == 0)
            attempt.wrong = [f"request {at} ({error}): {text}" for text in attempt.wrong]
            yield attempt


def session_faults(bench: Bench, case: Case) -> Iterator[Attempt]:
    """Onnxruntime throws at each session and each run of a command, in two ways."""
    with failing_sessions(0, RuntimeError()) as clean:
        bench.run(case, contextlib.nullcontext(), old=False)
    for at in range(1, len(clean) + 1):
        for error in (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no"), MemoryError("bad alloc")):
            attempt = bench.run(case, failing_sessions(at, error), old=at % 2 == 0)
            attempt.wrong = [f"{clean[at - 1]} {at} ({error}): {t}" for t in attempt.wrong]
            yield attempt
