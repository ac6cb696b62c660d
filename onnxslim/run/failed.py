"""The report of a run that an error ends: what was known until then, carried by the error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onnxslim.io.model import Model
from onnxslim.pipeline.stats import plain_stats
from onnxslim.report import FileReport, Report, report_of
from onnxslim.run.prepared import PreparedRun, versions


@dataclass
class Watched:
    """A run that may fail; `run` is set once it is prepared."""

    source: Model
    command: str
    run: PreparedRun | None = None

    def report(self) -> Report:
        """What is known of the run so far."""
        if self.run is not None:
            return self.run.report_so_far(self.command)
        origin, stats = self.source.origin, plain_stats(self.source)
        path = str(origin.path) if origin.path else None
        before = FileReport(path, origin.sha256, stats)
        return Report(self.command, versions(), before, FileReport(None, None, stats))


@contextmanager
def reporting(source: Model, command: str) -> Iterator[Watched]:
    """Give every error, an interruption too, a report of the run so far; see `report.report_of`."""
    watched = Watched(source, command)
    try:
        yield watched
    except BaseException as error:
        if report_of(error) is None:
            error.__dict__["report"] = watched.report()
        raise
