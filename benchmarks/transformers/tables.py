"""The tables of `docs/transformers.md`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from benchmarks.models.transformers import TRANSFORMERS
from benchmarks.reporting import Found, Row, markdown, megabytes, read
from benchmarks.transformers.trials import TASKS, TRIALS

NAME: Final = "transformers"
OURS: Final = "ours"
EQUAL_DB: Final = 200.0  # what the judge says of outputs without any noise
_NORMS: Final = ("LayerNormalization", "RMSNormalization")
_KINDS: Final[Mapping[str, Callable[[str], bool]]] = {
    "activations": lambda op: "Gelu" in op or op == "Swish",
    "normalizations": lambda op: op.endswith(_NORMS),
    "attention": lambda op: op.endswith("Attention"),
    "products": lambda op: op.startswith(("Fused", "MatMul", "QGemm", "DynamicQuantize")),
}


def table_of(name: str) -> str | None:
    """The table of that name, where there is a result."""
    whole = read(NAME)
    if whole is None:
        return None
    rows = _in_order(whole["rows"])
    if name == "nodes":
        return markdown(_nodes(rows))
    if name == "kernels":
        return markdown(_kernels(rows))
    if name == "cost":
        return markdown(_cost(rows))
    task = next((task for task in TASKS if name == re.sub(r"\W+", "_", task)), None)
    return None if task is None else markdown(_results(rows, task))


def _in_order(rows: Sequence[Found]) -> list[Found]:
    """By model, task and tool, as the lists have them."""
    names = [model.name for model in TRANSFORMERS]
    places = {(trial.task, trial.tool): place for place, trial in enumerate(TRIALS)}
    return sorted(
        rows,
        key=lambda row: (names.index(row["model"]), places.get((row["task"], row["tool"]), -1)),
    )


def _of(rows: Sequence[Found], task: str) -> Iterator[tuple[Found, list[Found]]]:
    """Each model that has rows of a task: its own row, and those."""
    for own in rows:
        if own["tool"] == "":
            found = [r for r in rows if r["model"] == own["model"] and r["task"] == task]
            if found:
                yield own, found


# ---------------------------------------------------------------------------- simplify


def _nodes(rows: Sequence[Found]) -> Iterator[Row]:
    tools = list(dict.fromkeys(row["tool"] for row in rows if row["task"] == "simplify"))
    for own, found in _of(rows, "simplify"):
        by_tool = {row["tool"]: row for row in found}
        cells = {tool: _count(by_tool.get(tool)) for tool in tools}
        yield {"model": own["model"], "as it came": str(own["nodes"]), **cells}


def _count(row: Found | None) -> str:
    if row is None:
        return ""
    return "fails" if row["error"] else str(row["nodes"])


def _kernels(rows: Sequence[Found]) -> Iterator[Row]:
    """Nodes and fused kernels that the session runs, before and after ours."""
    for own, found in _of(rows, "simplify"):
        ours = next((row for row in found if row["tool"] == OURS and not row["error"]), None)
        if ours is None:
            continue
        line = {"model": own["model"], "nodes": _moved(own["session_nodes"], ours["session_nodes"])}
        for kind, holds in _KINDS.items():
            counts = (sum(n for op, n in r["fused"].items() if holds(op)) for r in (own, ours))
            line[kind] = _moved(*counts)
        yield line


def _moved(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} → {after}"


def _cost(rows: Sequence[Found]) -> Iterator[Row]:
    tools = list(dict.fromkeys(row["tool"] for row in rows if row["task"] == "simplify"))
    for own, found in _of(rows, "simplify"):
        by_tool = {row["tool"]: row for row in found}
        cells = {tool: _seconds(by_tool.get(tool)) for tool in tools}
        yield {"model": f"{own['model']}, {megabytes(own['bytes'])}", **cells}


def _seconds(row: Found | None) -> str:
    if row is None:
        return ""
    if "cpu_seconds" not in row:
        return "fails"
    text = f"{row['cpu_seconds']:.0f} s, {megabytes(row['peak_rss_bytes'])}"
    return f"fails after {text}" if row["error"] else text


# ---------------------------------------------------------------------------- all tasks


def _results(rows: Sequence[Found], task: str) -> Iterator[Row]:
    of_task = [row for row in rows if row["task"] == task]
    timed = list(dict.fromkeys(size for row in of_task for size in row.get("faster") or ()))
    for own, found in _of(rows, task):
        for row in found:
            if task == "simplify" and not row.get("faster"):
                continue  # the other tables have what there is to say
            is_ours = row["tool"].startswith(OURS)
            line = {"model": own["model"], "tool": f"**{row['tool']}**" if is_ours else row["tool"]}
            line["MB"] = _size(row, own)
            line["agreement"] = row["error"] or _agreement(row)
            if task != "simplify":
                line["takes"] = _seconds({**row, "error": None})
            for size in timed:
                ratio = (row.get("faster") or {}).get(size)
                line[size] = "" if ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratio)
            yield line


def _size(row: Found, own: Found) -> str:
    return "" if row["error"] else f"{row['bytes'] / 1e6:.1f} of {own['bytes'] / 1e6:.1f}"


def _agreement(row: Found) -> str:
    """What counts for the kind of output; that a step was left out comes first."""
    if row.get("kept") is False:
        return f"left out: {row['why']}"
    if row["task"] == "simplify":
        return "equal bits" if row["sqnr_db"] == EQUAL_DB else f"{row['sqnr_db']:.0f} dB"
    if "divergence" in row:
        return f"{row['divergence']:.2g} nats, top-1 {100 * row['top_1']:.1f} %"
    return f"cosine {row['cosine_mean']:.4f}, least {row['cosine_least']:.4f}"


__all__ = ["NAME", "table_of"]
