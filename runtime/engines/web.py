"""Models in onnxruntime-web, which a process of node runs, in WebAssembly on one thread."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.runtime.engines.opened import EngineFailure, Feeds

_SCRIPT: Final = Path(__file__).with_name("web.mjs")
_PACKAGE: Final = Path("node_modules", "onnxruntime-web")


def web_home() -> Path:
    """The folder from which node finds onnxruntime-web: the current one, or one above it.

    The variable `ONNXSLIM_WEB` names another.

    Raises:
        UsageError: the package is not installed.
    """
    given = os.environ.get("ONNXSLIM_WEB")
    here = Path.cwd()
    places = [Path(given)] if given else [here, *here.parents]
    found = next((place for place in places if (place / _PACKAGE).is_dir()), None)
    if found is None:
        raise UsageError(
            "Runs in onnxruntime-web need its package, which is not installed: run `npm install "
            "onnxruntime-web` here, or name the folder that has it in ONNXSLIM_WEB."
        )
    return found.resolve()


class WebModel:
    """A model in onnxruntime-web; see `OpenedModel`."""

    def __init__(self, path: Path, feeds: Feeds, threads: int | None) -> None:
        """Load the file at `path` in a new process; it runs on one thread.

        Raises:
            UsageError: node or the package is not installed.
            EngineFailure: onnxruntime-web refuses the model.
        """
        self.engine = "onnxruntime-web"
        command = ["node", str(_SCRIPT), str(web_home()), str(path)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        except FileNotFoundError as error:
            raise UsageError(
                "Runs in onnxruntime-web need `node`, which is not installed: get it from your "
                "system, then run `npm install onnxruntime-web`."
            ) from error
        try:
            self.engine = f"onnxruntime-web {self._answer('refuses the model')['version']}"
        except EngineFailure:
            self.close()
            raise

    def timed(self, feeds: Feeds) -> tuple[Sequence[np.ndarray], float]:
        """See `OpenedModel`; the time is that of the run within node."""
        assert self._process.stdin is not None
        request = json.dumps({name: _encoded(array) for name, array in feeds.items()})
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineFailure(f"{self.engine} ended: {error}") from error
        found = self._answer("fails on the model")
        return [_decoded(item) for item in found["outputs"]], float(found["ms"])

    def close(self) -> None:
        """See `OpenedModel`: the process ends."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()

    def _answer(self, what: str) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line.startswith("{") else {"error": "the process ended"}
        if "error" in found:
            raise EngineFailure(f"{self.engine} {what}: {str(found['error'])[:200]}")
        return dict(found)


def _encoded(array: np.ndarray) -> dict[str, object]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": array.dtype.name, "dims": list(array.shape), "data": data}


def _decoded(item: Mapping[str, Any]) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(item["data"]), np.dtype(item["type"]))
    return data.reshape(item["dims"])
