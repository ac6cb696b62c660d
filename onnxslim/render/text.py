"""A `Report` as text for a console: the table of steps, remarks, and a verdict."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnxslim.records import Fidelity, OutputKind
from onnxslim.render.printable import printable
from onnxslim.render.tables import FigureTable, Paper, wrapped
from onnxslim.render.timing import latency_text, ratio_text, times_text
from onnxslim.render.units import (
    bytes_text,
    change_text,
    count_text,
    ms_text,
    seconds_text,
    small_text,
)
from onnxslim.report import (
    Comparison,
    Drift,
    FileReport,
    PartReport,
    Report,
    Stats,
    StepReport,
)

_NAMES_SHOWN = 3
_COLUMNS = (
    "step", "changes", "nodes", "params", "file", "MACs", "latency", "faster", "drift", "time",
)  # fmt: skip
_DROPPABLE = ("params", "changes", "nodes", "time", "MACs", "drift")  # on narrow paper
_OTHER_NAMES_SHOWN = 2
_LONGEST_COMMAND = 400  # characters; a longer pipeline is read by programs
_FAR_DB = 10  # a remark is made below this SQNR, at which a third of the signal is noise


def report_to_text(report: Report, paper: Paper = Paper(), *, explain: bool = False) -> str:  # noqa: B008
    """The table of steps, the steps left out and why, notes, and the verdict in one line.

    Args:
        report: report of a run.
        paper: width and colours of the output.
        explain: list what each pass changed and what it declined, with reasons.
    """
    blocks = [_steps(report).without_empty_columns().render(paper)]
    if explain:
        blocks.append("\n".join(wrapped(line, paper) for line in _explanations(report)))
    idle = [] if explain else _did_nothing(report)
    own = [note for step in report.steps for note in step.notes]
    notes = (f"note: {printable(note)}" for note in (*own, *report.notes))
    remarks = [
        *(printable(line) for line in report.data),
        *_left_out(report),
        *idle,
        *_untouched(report),
        *_far(report),
        *notes,
        *_timing(report),
    ]
    commands = list(_same_again(report))  # in one line each, to be copied
    if remarks or commands:
        blocks.append("\n".join([*(wrapped(remark, paper) for remark in remarks), *commands]))
    blocks.append(wrapped(verdict(report), paper))
    return "\n\n".join(block for block in blocks if block)


def verdict(report: Report) -> str:
    """The result of the run in one line of plain words."""
    before, after = report.before.stats, report.after.stats
    parts = [
        f"{bytes_text(before.file_bytes)} -> {bytes_text(after.file_bytes)} "
        f"({change_text(before.file_bytes, after.file_bytes)})",
        f"{before.nodes:,} -> {after.nodes:,} nodes",
    ]
    if report.latency is not None:
        parts.append("latency " + latency_text(report.latency))
    accuracies = (report.before.accuracy, report.after.accuracy)
    if accuracies[0] is not None and accuracies[1] is not None:
        parts.append(f"accuracy {100 * accuracies[0]:.2f} -> {100 * accuracies[1]:.2f} %")
    parts.append(_outputs_text(report))
    return ", ".join(parts)


def drift_text(drifts: Mapping[str, Drift], fidelity: Fidelity) -> str:
    """The largest drift of all outputs, short enough for a column of a table."""
    if not drifts:
        return ""
    if all(drift.equal_bits for drift in drifts.values()):
        return "none"
    if fidelity is not Fidelity.LOSSY:
        return small_text(_worst(drift.max_abs for drift in drifts.values()))
    _, least = _farthest(drifts)
    agreement, cosine, nats = _least_agreement(drifts), _least_cosine(drifts), _most_kl(drifts)
    parts = [
        f"{least:.1f} dB",
        "" if agreement is None else f"{100 * agreement:.2f} %",
        "" if cosine is None else f"cos {cosine:.4f}",
        "" if nats is None else f"KL {nats:.3g}",
    ]
    return ", ".join(part for part in parts if part)


def _steps(report: Report) -> FigureTable:
    has_accuracy = report.before.accuracy is not None
    headers = [*_COLUMNS, *(["accuracy"] if has_accuracy else [])]
    grid = FigureTable(headers, droppable=_DROPPABLE, wrapping=frozenset({"drift"}))
    grid.add(*_file_row("before", report.before, has_accuracy))
    for step in report.steps:
        style = "" if step.committed else "yellow"
        grid.add(*_step_row(step, has_accuracy), style=style)
        if len(step.parts) > 1:
            for cells in _part_rows(step.parts):
                grid.add(*cells, style="dim")
    after = _file_row("after", report.after, has_accuracy)
    at = _COLUMNS.index("time")
    grid.add(*after[:at], seconds_text(report.seconds), *after[at + 1 :], style="bold")
    return grid


def _file_row(title: str, file: FileReport, has_accuracy: bool) -> list[str]:
    latency = ms_text(file.latency.ms) if file.latency else ""
    return [
        title,
        "",
        *_stats_cells(file.stats),
        latency,
        *_blank("latency", "time"),
        "",
        *_accuracy_cells(file.accuracy, has_accuracy),
    ]


def _step_row(step: StepReport, has_accuracy: bool) -> list[str]:
    drifts = step.comparison.original if step.comparison else {}
    return [
        _step_title(step),
        f"{len(step.changes):,}",
        *(_stats_cells(step.stats) if step.stats else [""] * 4),
        times_text(step.latency) if step.latency else "",
        ratio_text(step.latency) if step.latency else "",
        drift_text(drifts, step.fidelity),
        seconds_text(step.seconds),
        *_accuracy_cells(step.accuracy, has_accuracy),
    ]


def _step_title(step: StepReport) -> str:
    states = [] if step.committed else ["left out"]
    states += ["from cache"] if step.from_cache else []
    return f"{step.spec} ({', '.join(states)})" if states else step.spec


def _part_rows(parts: Iterable[PartReport]) -> Iterator[list[str]]:
    """A row for each member of a preset that changed something, and one for all others."""
    idle = [part for part in parts if not part.changes]
    for part in parts:
        if part.changes:
            changes = f"{len(part.changes):,}"
            yield [
                f"  {part.spec}",
                changes,
                *_blank("changes", "time"),
                seconds_text(part.seconds),
            ]
    if idle:
        seconds = sum(part.seconds for part in idle)
        plural = "es" if len(idle) > 1 else ""
        yield [
            f"  {len(idle)} other pass{plural}",
            "0",
            *_blank("changes", "time"),
            seconds_text(seconds),
        ]


def _blank(first: str, last: str) -> list[str]:
    """Empty cells for the columns between two others."""
    return [""] * (_COLUMNS.index(last) - _COLUMNS.index(first) - 1)


def _stats_cells(stats: Stats) -> list[str]:
    return [
        f"{stats.nodes:,}",
        count_text(stats.parameters),
        bytes_text(stats.file_bytes),
        count_text(stats.macs),
    ]


def _accuracy_cells(accuracy: float | None, shown: bool) -> list[str]:
    if not shown:
        return []
    return ["" if accuracy is None else f"{100 * accuracy:.2f} %"]


def _outputs_text(report: Report) -> str:
    where = f"; compared on {printable(report.verified_on)}"
    committed = _committed(report)
    if not committed:
        return "nothing changed"
    if report.verified_on.startswith("not verified"):
        return f"outputs {printable(report.verified_on)}"
    compared = _last_comparison(committed)
    if compared is None:
        return "outputs not compared"
    drifts = compared.original.values()
    if all(drift.equal_bits for drift in drifts):
        return f"outputs equal to the bit{where}"
    unmatched = sum(drift.unmatched for drift in drifts)
    if unmatched:
        where = f" where they have the same size, {unmatched:,} values have no counterpart{where}"
    if max(step.fidelity for step in committed) is not Fidelity.LOSSY:
        return f"outputs equal within {small_text(_worst(d.max_abs for d in drifts))}{where}"
    return f"outputs moved: {_lossy_text(compared.original)}{where}"


def _committed(report: Report) -> list[StepReport]:
    """The steps that were kept and changed the model."""
    return [step for step in report.steps if step.committed and step.changes]


def _last_comparison(committed: Sequence[StepReport]) -> Comparison | None:
    return next((s.comparison for s in reversed(committed) if s.comparison), None)


def _lossy_text(drifts: Mapping[str, Drift]) -> str:
    name, least = _farthest(drifts)
    text = f"SQNR {least:.1f} dB" + (f" of `{printable(name)}`" if len(drifts) > 1 else "")
    for kind, what in (
        (OutputKind.CLASSES, "top-1 answers agree for"),
        (OutputKind.TOKEN_LOGITS, "top-1 tokens agree for"),
        (OutputKind.DISCRETE, "integers are equal for"),
    ):
        share = _least_agreement({key: d for key, d in drifts.items() if d.kind is kind})
        if share is not None:
            text += f", {what} {100 * share:.2f} %"
    cosine = _least_cosine(drifts)
    if cosine is not None:
        rows = [drift.least_cosine for drift in drifts.values() if drift.least_cosine is not None]
        text += f", cosine of rows {cosine:.4f}, of the worst row {min(rows):.4f}"
    nats = _most_kl(drifts)
    if nats is not None:
        most = [drift.largest_kl for drift in drifts.values() if drift.largest_kl is not None]
        text += f", KL divergence {nats:.3g} nats, at the worst position {max(most):.3g}"
    return text


def _least_agreement(drifts: Mapping[str, Drift]) -> float | None:
    shares = (drift.agreement for drift in drifts.values())
    return min((share for share in shares if share is not None), default=None)


def _least_cosine(drifts: Mapping[str, Drift]) -> float | None:
    cosines = (drift.mean_cosine for drift in drifts.values())
    return min((cosine for cosine in cosines if cosine is not None), default=None)


def _most_kl(drifts: Mapping[str, Drift]) -> float | None:
    nats = (drift.mean_kl for drift in drifts.values())
    return max((value for value in nats if value is not None), default=None)


def _farthest(drifts: Mapping[str, Drift]) -> tuple[str, float]:
    numbers = [key for key, drift in drifts.items() if drift.kind is not OutputKind.DISCRETE]
    name = min(numbers or drifts, key=lambda key: drifts[key].sqnr_db)
    return name, drifts[name].sqnr_db


def _timing(report: Report) -> Iterator[str]:
    """What the times are of, and how sure they are."""
    pairs = [pair for pair in (*(s.latency for s in report.steps), report.latency) if pair]
    if pairs and report.timed_on is not None:
        yield f"timed on {printable(report.timed_on)}"
    waiting = max((pair.waiting for pair in pairs if pair.is_busy), default=None)
    if waiting is not None:
        yield (
            f"busy machine: models waited for up to {100 * waiting:.0f} % of the time, so their "
            "processor time was compared; on an idle machine the intervals are narrower"
        )


def _same_again(report: Report) -> Iterator[str]:
    """How to do the same without measuring time."""
    record = report.record
    is_decided = any(not s.committed and s.latency for s in report.steps) or any(
        s.committed and s.changes and s.resolved not in (None, s.spec) for s in report.steps
    )
    if record is not None and is_decided:
        command = f"--passes {_quoted(record.resolved)}"
        if len(command) > _LONGEST_COMMAND:
            command = "--passes as `onnxslim.resolved` in the metadata of the file spells it"
        yield f"the same without timing: {printable(command)}"


def _quoted(pipeline: str) -> str:
    """A pipeline quoted for a shell; in double quotes where it holds single ones."""
    if "'" in pipeline and not set(pipeline) & set('"$`\\!'):
        return f'"{pipeline}"'
    return shlex.quote(pipeline)


def unjudged_text(report: Report) -> str:
    """What to say last when lossy steps were kept whose loss was judged on nothing real."""
    steps = ", ".join(printable(spec) for spec in report.unjudged)
    seen = "were not compared"
    if not report.verified_on.startswith("not verified"):
        seen = "were compared on made-up inputs alone"
    return (
        f"NOT JUDGED ON REAL DATA: {steps}. The outputs {seen}, so what the model loses in "
        "practice is not known. Give samples with --calib, or labels with --eval."
    )


def _far(report: Report) -> Iterator[str]:
    """A remark when outputs are far from the originals and accuracy was not measured."""
    committed = _committed(report)
    compared = _last_comparison(committed)
    if compared is None or not compared.original or report.after.accuracy is not None:
        return
    if max(step.fidelity for step in committed) is not Fidelity.LOSSY:
        return
    name, least = _farthest(compared.original)
    if least < _FAR_DB:
        yield (
            f"far from the input model: `{printable(name)}` has an SQNR of {least:.1f} dB. Judge "
            "it on your own data (--eval, with --max-drop as a floor), or set --min-sqnr"
        )


def _left_out(report: Report) -> Iterator[str]:
    for step in report.steps:
        if step.why_partly:
            yield f"{printable(step.spec)} in part: {printable(step.why_partly)}"
        if step.committed:
            continue
        figures = []
        if step.stats:
            figures.append(bytes_text(step.stats.file_bytes))
        if step.latency:
            figures.append("latency " + latency_text(step.latency))
        if step.comparison and step.comparison.original and not _all_equal(step.comparison):
            figures.append(_lossy_text(step.comparison.original))
        measured = f" [measured: {'; '.join(figures)}]" if figures else ""
        why = printable(step.why_not_committed or "no reason was recorded")
        yield f"left out: {printable(step.spec)}: {why}{measured}"


def _did_nothing(report: Report) -> Iterator[str]:
    """Passes that were named in the pipeline and declined, each with its main reason.

    That is the one that decided, or else the most frequent one.
    """
    for step in report.steps:
        if step.changes or not step.skips or len(step.parts) > 1 or not step.committed:
            continue
        reasons = Counter(skip.why for skip in step.skips)
        deciding = {skip.why for skip in step.skips if skip.decides}
        by_weight = sorted(reasons.items(), key=lambda item: (item[0] not in deciding, -item[1]))
        (why, count), *others = by_weight
        places = f" ({count:,} places)" if count > 1 else ""
        plural = "s" if len(others) > 1 else ""
        rest = f"; {len(others)} other reason{plural}: see --explain" if others else ""
        yield f"nothing done: {printable(step.spec)}: {printable(why)}{places}{rest}"


def _untouched(report: Report) -> Iterator[str]:
    """Weights that a committed pass left as they were, where they are much of the file."""
    for step in _committed(report):
        if step.untouched:
            yield f"left as it was: {printable(step.spec)}: {printable(step.untouched)}"


def _all_equal(comparison: Comparison) -> bool:
    return all(drift.equal_bits for drift in comparison.original.values())


def _explanations(report: Report) -> Iterator[str]:
    for step in report.steps:
        idle = [part.spec for part in step.parts if not part.changes and not part.skips]
        for part in step.parts:
            if part.spec in idle:
                continue
            yield printable(part.spec)
            changed = [(c.what, _named(report, c.node)) for c in part.changes]
            yield from _grouped("changed", changed)
            yield from _grouped("skipped", [(s.why, _named(report, s.node)) for s in part.skips])
        if idle:
            yield f"nothing to do for {printable(', '.join(idle))}"


def _named(report: Report, label: str) -> str:
    """A layer as a report names it, with its other names: `y` (/fc/Gemm, fc.weight)."""
    others = report.names.get(label, ())[:_OTHER_NAMES_SHOWN]
    return f"`{printable(label)}`" + (f" ({printable(', '.join(others))})" if others else "")


def _grouped(verb: str, items: list[tuple[str, str]]) -> Iterator[str]:
    """One line for all items of one text, with the names of the first few."""
    nodes: dict[str, list[str]] = {}
    for text, node in items:
        nodes.setdefault(text, []).append(node)
    for text, where in nodes.items():
        shown = ", ".join(where[:_NAMES_SHOWN])
        more = len(where) - _NAMES_SHOWN
        rest = f" and {more:,} more" if more > 0 else ""
        yield f"    {verb} {shown}{rest}: {printable(text)}"


def _worst(values: Iterable[float]) -> float:
    """The largest value; NaN when any value is NaN."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)
