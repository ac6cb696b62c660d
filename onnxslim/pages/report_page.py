"""The page of any report: its kind is read from its JSON; several stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from onnxslim.errors import UsageError
from onnxslim.pages.blocks import Block, Cell, Chart, Column, FigureGrid, Fold, Line, Page, Section
from onnxslim.pages.charts import change_bar, ratio_chart
from onnxslim.pages.cursor import At
from onnxslim.pages.other_pages import PAGES
from onnxslim.pages.run_page import farthest, last_kept, least_agreement, run_page
from onnxslim.pages.words import decibel, interval, percent, plain, times
from onnxslim.render.units import bytes_text, change_text


def page_of(data: Any) -> Page:
    """The page of the JSON of a report, or of the reports of several models.

    Raises:
        UsageError: the data are no report, or one in another form.
    """
    at = At(data)
    make = _several_page if at["models"] else _maker(at)
    if make is None:
        raise UsageError(
            "This is no report of onnxslim; `--report FILE.json` of a command writes one."
        )
    try:
        return make(at)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise UsageError(
            "This report is not in the form that onnxslim writes; write it again with --report."
        ) from error


def _maker(at: At) -> Callable[[At], Page] | None:
    """What makes the page of a report; None for other data."""
    if at["kind"].text in PAGES:
        return PAGES[at["kind"].text]
    is_run = at["passes"].value is not None and at["before"] and at["after"]
    return run_page if is_run else None


def side_by_side(reports: Sequence[Any]) -> Any:
    """The data of several reports as those of one page."""
    flat = [item for data in reports for item in _runs_in(data)]
    return flat[0] if len(flat) == 1 else {"onnxslim": _version(flat), "models": flat}


def _runs_in(data: Any) -> list[Any]:
    models = data.get("models") if isinstance(data, dict) else None
    return list(models) if isinstance(models, list) else [data]


def _version(reports: Sequence[Any]) -> Any:
    return next((r["onnxslim"] for r in reports if isinstance(r, dict) and "onnxslim" in r), "")


def _several_page(at: At) -> Page:
    reports = list(at["models"])
    runs = [run for run in reports if run["input"]]
    most = max((run["before"]["stats"]["file_bytes"].number or 0.0 for run in runs), default=0.0)
    columns = [
        Column("model", is_figure=False),
        Column("file"),
        Column("as fast as before"),
        Column("accuracy"),
        Column("agree"),
        Column("SQNR"),
        Column("result", is_figure=False),
    ]
    rows = [_run_row(run, most) for run in runs]
    shown = [i for i in range(len(columns)) if any(row[i].lines for row in rows)]
    kept = [[row[i] for i in shown] for row in rows]
    blocks: list[Block] = [FigureGrid([columns[i] for i in shown], kept, is_sortable=True)]
    ratios = list(_ratios(runs))
    if ratios:
        note = "How many times as fast as before, with the 95 % interval."
        blocks.append(Chart(ratio_chart(ratios), note=note))
    sections = [Section("Side by side", blocks)] if runs else []
    for number, report in enumerate(reports, 1):
        make = _maker(report)
        if make is not None:
            page = make(report)
            inner: list[Block] = [*page.lead]
            inner += [Fold(section.title, section.blocks) for section in page.sections]
            title = page.verdict or "All of it"
            sections.append(Section(f"{number}. {page.heading}", [Fold(title, inner)]))
    if not sections:
        raise UsageError("None of these reports was written by onnxslim.")
    done = sum(bool(run["output"]["path"]) for run in runs)
    verdict = f"{len(reports)} reports side by side; {done} wrote a model."
    return Page("onnxslim: several reports", "Side by side", verdict, sections, at.value)


def _run_row(run: At, most: float) -> list[Cell]:
    before, after = (run[key]["stats"]["file_bytes"] for key in ("before", "after"))
    name: list[Line] = [_file_name(run["input"]), run["record"]["pipeline"].fact]
    size = Cell(())
    if after:
        change = change_text(before.number or 0, after.number or 0)
        bar = change_bar(before.number or 0.0, after.number or 0.0, most)
        size = Cell((after.figure(bytes_text), (change, " from ", before.figure(bytes_text))), bar)
    pair = run["latency"]
    drifts = last_kept(run)["drift_original"]
    first, last = run["before"]["accuracy"], run["after"]["accuracy"]
    is_known = last.number is not None
    accuracy = Cell((last.figure(percent), first.figure(percent))) if is_known else Cell(())
    agreement, sqnr = least_agreement(drifts), farthest(drifts)["sqnr_db"]
    error = run["error"]
    result: Line = (
        ("exit code ", error["exit_code"].fact, ": ", error["type"].fact)
        if error
        else _file_name(run["output"]) or "nothing written"
    )
    return [
        Cell(name, is_code=True),
        size,
        Cell((pair["ratio"].figure(times), interval(pair))) if pair else Cell(()),
        accuracy,
        plain(agreement.figure(percent)) if agreement else Cell(()),
        plain(sqnr.figure(decibel)) if sqnr else Cell(()),
        plain(result, tone="bad" if error else "plain"),
    ]


def _ratios(runs: Sequence[At]) -> Iterator[tuple[str, float, float, float]]:
    for number, run in enumerate(runs, 1):
        pair = run["latency"]
        low, ratio, high = (pair[key].number for key in ("ratio_low", "ratio", "ratio_high"))
        if low and ratio and high:
            yield f"{number}. {_file_name(run['input'])}", low, ratio, high


def _file_name(file: At) -> str:
    path = file["path"].text
    return PurePath(path.replace("\\", "/")).name if path else ""
