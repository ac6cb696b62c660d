"""Run another driver, and print what it cost as one line of JSON.

`measured.py SECONDS MEGABYTES DRIVER ARGUMENTS...`: processor seconds and megabytes of memory at
most. Prints `cpu_seconds` (all threads, imports too), `peak_rss_bytes`, and `error`: why the driver
ended early, if so. What the driver prints goes to stderr. Needs the standard library only.
"""

import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

from measure import peak_rss_bytes

GRACE_SECONDS = 30  # a library's own code hears no signal until it returns


def main() -> None:
    """Run the driver to its end."""
    seconds, megabytes, script, *arguments = sys.argv[1:]
    limit = int(megabytes) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    stop_after(int(seconds))
    stdout = os.dup(1)
    os.dup2(2, 1)
    sys.argv = [script, *arguments]
    error = None
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        error = f"exit code {end.code}" if end.code else None
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    line = {
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),
        "peak_rss_bytes": peak_rss_bytes(),
        "error": error,
    }
    os.write(stdout, json.dumps(line).encode() + b"\n")
    os._exit(0)  # what a library still does at its end is no part of the job


def stop_after(seconds: int) -> None:
    """Raise TimeoutError once that much processor time is used; end where that is not heard."""

    def stop(*_: object) -> None:
        message = f"no result in {seconds} processor seconds"
        raise TimeoutError(message)

    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + GRACE_SECONDS))


if __name__ == "__main__":
    if not Path(sys.argv[3]).exists():
        sys.exit(f"There is no driver {sys.argv[3]}")
    main()
