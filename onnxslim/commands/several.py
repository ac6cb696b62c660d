"""One pipeline on several models: where each goes, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import UsageError
from onnxslim.report import Failure, Report


@dataclass
class ModelOutcome:
    """What became of one model.

    Attributes:
        report: None where the model could not be opened.
        failure: None where all went well.
    """

    source: Path
    target: Path
    report: Report | None = None
    failure: Failure | None = None


def targets_in(folder: Path, sources: Sequence[Path]) -> list[Path]:
    """Where the result of each model goes, under its own name.

    Models of several folders keep their folders, from the deepest one that holds all models.

    Raises:
        UsageError: two models would get one file, or a model would replace itself.
    """
    parents = [os.path.abspath(source.parent) for source in sources]
    common = Path(os.path.commonpath(parents))
    targets = [
        folder / Path(parent).relative_to(common) / f"{source.stem}.onnx"
        for parent, source in zip(parents, sources, strict=True)
    ]
    first: dict[Path, Path] = {}
    for source, target in zip(sources, targets, strict=True):
        other = first.setdefault(target, source)
        if other is not source:
            raise UsageError(
                f"`{other}` and `{source}` would both be written to `{target}`; run them apart."
            )
        if target.exists() and source.exists() and target.samefile(source):
            raise UsageError(f"--out-dir is the folder of `{source}` itself; give another one.")
    return targets


def summary(outcomes: Sequence[ModelOutcome]) -> str:
    """A line for each model, as a table."""
    from onnxslim.commands.console import paper
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.timing import latency_text
    from onnxslim.render.units import bytes_text, change_text

    heads = ("model", "file", "after", "change", "latency", "exit code", "result")
    grid = FigureTable(heads, text_columns=frozenset({4, 6}))
    for outcome in outcomes:
        report, failure = outcome.report, outcome.failure
        cells = [""] * 4
        if report is not None:
            before, after = report.before.stats.file_bytes, report.after.stats.file_bytes
            cells[0] = bytes_text(before)
            if report.after.path is not None:
                latency = "" if report.latency is None else latency_text(report.latency)
                cells[1:] = bytes_text(after), change_text(before, after), latency
        code = 0 if failure is None else failure.exit_code
        is_written = report is not None and report.after.path is not None
        words = [f"wrote {outcome.target}"] if is_written else []
        result = ", ".join([*words, *([failure.type] if failure else [])])
        grid.add(str(outcome.source), *cells, str(code), result)
    return grid.render(paper())
