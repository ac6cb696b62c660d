"""A Chrome trace of onnxruntime's kernels: one run of each of several models, a process each.

The format is that of the Trace Event Format (Google); Perfetto and `chrome://tracing` show it. Of
the profiled runs the one of median length is shown, and begins at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from onnxslim.io.model import Model
from onnxslim.io.staging import scratch_folder
from onnxslim.runtime.measure.profile import BUDGET_S, KERNEL, WARM_UPS, profiled_events
from onnxslim.runtime.providers import provider_list
from onnxslim.runtime.session import Feeds, session_options
from onnxslim.version import VERSION

Event = dict[str, Any]
_RUN: Final = "model_run"
_TOLD: Final = ("input_type_shape", "output_type_shape", "provider", "parameter_size")


def chrome_trace(
    models: Sequence[tuple[str, Model]],
    feeds: Feeds,
    *,
    threads: int | None = None,
    provider: str | None = None,
) -> dict[str, Any]:
    """The trace of one run of each model, with its name, as the object of a JSON file.

    Raises:
        RuntimeFailure: onnxruntime refuses a model or fails on it.
    """
    events: list[Event] = []
    for number, (name, model) in enumerate(models, 1):
        with scratch_folder() as folder:
            options = session_options(optimise=True, threads=threads)
            providers = provider_list(provider, threads)
            rows = profiled_events(model, feeds, options, providers, BUDGET_S, folder)
        events += [
            _named("process_name", number, {"name": name}),
            _named("process_sort_index", number, {"sort_index": number}),
            *_process(rows, number),
        ]
    return {"onnxslim": VERSION, "displayTimeUnit": "ms", "traceEvents": events}


def _named(what: str, process: int, about: Event) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": 0, "args": about}


def _process(rows: Iterable[Event], process: int) -> Iterator[Event]:
    """The kernels of the run of median length, and the run itself; threads from 0."""
    events = sorted((row for row in rows if "dur" in row), key=lambda row: int(row["ts"]))
    runs = [row for row in events if row.get("name") == _RUN][WARM_UPS:]
    run = sorted(runs, key=lambda row: int(row["dur"]))[len(runs) // 2]
    start, end = int(run["ts"]), int(run["ts"]) + int(run["dur"])
    threads: dict[int, int] = {run["tid"]: 0}
    for row in events:
        name, about = str(row.get("name", "")), row.get("args") or {}
        is_kernel = row.get("cat") == "Node" and name.endswith(KERNEL)
        if (row is not run and not is_kernel) or not start <= int(row["ts"]) <= end:
            continue
        told = {key: about[key] for key in _TOLD if key in about}
        yield {
            "ph": "X",
            "name": str(about["op_name"]) if is_kernel else "run",
            "cat": "kernel" if is_kernel else "session",
            "pid": process,
            "tid": threads.setdefault(row["tid"], len(threads)),
            "ts": int(row["ts"]) - start,
            "dur": int(row["dur"]),
            "args": {"node": name.removesuffix(KERNEL), **told} if is_kernel else {},
        }
