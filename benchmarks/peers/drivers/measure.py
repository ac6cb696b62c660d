"""Time one simplification inside a tool's own environment and print it as one line of JSON.

Used by every driver, so it needs the standard library only.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

Simplify = Callable[[str, str], object]  # (input path, output path)


def main(load_tool: Callable[[], Simplify]) -> None:
    """Run `driver.py INPUT OUTPUT`: import the tool, then load, simplify and save.

    Prints `seconds_import`, `seconds` (imports excluded), `seconds_cpu` (the same in processor
    time, all threads), `peak_rss_bytes`, `late_imports` (the number of modules that were loaded
    while timed all the same) and `error`. What the tool itself prints goes to stderr.
    """
    source, target = sys.argv[1:]
    stdout = os.dup(1)
    os.dup2(2, 1)
    error = None
    loaded = set(sys.modules)
    started = imported = time.perf_counter()
    cpu = time.process_time()
    try:
        simplify = load_tool()
        loaded = set(sys.modules)
        imported = time.perf_counter()
        cpu = time.process_time()
        simplify(source, target)
    except (Exception, SystemExit) as failure:
        error = f"{type(failure).__name__}: {failure}"
    finished = time.perf_counter()
    line = {
        "seconds_import": imported - started,
        "seconds": finished - imported,
        "seconds_cpu": time.process_time() - cpu,
        "peak_rss_bytes": peak_rss_bytes(),
        "late_imports": len(set(sys.modules) - loaded),
        "error": error,
    }
    os.write(stdout, json.dumps(line).encode() + b"\n")


def peak_rss_bytes() -> int:
    """Return the most memory this process has held, in bytes.

    On Linux, `ru_maxrss` survives exec: a child starts with the peak of the process that started
    it. `VmHWM` does not, so it is preferred where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
