"""`deep_compression_load.py MODEL`: load a model as a server does; seconds and memory as JSON.

A process of its own for each model, because memory once taken is not always given back. Reads
Linux's /proc.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import onnxruntime
from rich.console import Console

from onnxslim.runtime import load


def memory_bytes(entry: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (the most so far) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {entry}")


def main() -> None:
    """Load, and say what it took; `start_bytes` is the process with all imports done."""
    file = Path(sys.argv[1])
    start = memory_bytes("VmRSS")
    started = time.perf_counter()
    if file.suffix == ".onnxz":
        session = load(file)
    else:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - started
    figures = {
        "seconds": round(seconds, 3),
        "start_bytes": start,
        "peak_bytes": memory_bytes("VmHWM"),
        "after_bytes": memory_bytes("VmRSS"),
        "inputs": len(session.get_inputs()),
    }
    Console(width=1000).print(json.dumps(figures), highlight=False, markup=False)


if __name__ == "__main__":
    main()
