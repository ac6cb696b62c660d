"""Files that commands write: checked before the work starts, and written all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from onnxslim.errors import UsageError
from onnxslim.io.staging import check_target, stage_file

if TYPE_CHECKING:
    from onnxslim.render.formats import Formats

T = TypeVar("T")
_HEAD_BYTES = 4096  # of a report, in which the sign of its format stands


def check_trace(trace: Path, source: Path, output: Path, *, overwrite: bool = False) -> None:
    """Refuse a trace as `check_report` refuses a report.

    Raises:
        UsageError: why.
    """
    from onnxslim.render.formats import JSON

    check_report(trace, source, output, JSON, overwrite=overwrite, option="--trace")


def check_report(
    report: Path,
    source: Path,
    output: Path,
    formats: Formats[T],
    *,
    overwrite: bool = False,
    option: str = "--report",
) -> None:
    """Refuse a report that is a model or a folder, or whose folder does not exist.

    An existing file is replaced only if it is a report of onnxslim.

    Raises:
        UsageError: why.
    """
    check_target(report, None)
    if _same_file(report, source) or report.absolute() == output.absolute():
        what = option.strip("-")
        raise UsageError(f"{option} `{report}` is the model; give the {what} a name of its own.")
    if overwrite or not report.exists():
        return
    from onnxslim.io.marks import not_ours

    with report.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head and not formats.wrote(report, head):
        raise not_ours(report)


def check_beside(
    files: Mapping[str, Path], source: Path, output: Path, *, overwrite: bool = False
) -> None:
    """As `check_report`, for other files of a run, by option."""
    from onnxslim.render.beside import BESIDE

    for option, path in files.items():
        check_report(path, source, output, BESIDE[option], overwrite=overwrite, option=option)


def write_report(report: Path, subject: T, formats: Formats[T]) -> None:
    """Write `subject` to `report`, all or nothing, in the format that the suffix names.

    Raises:
        UsageError: the file cannot be written, or the suffix has no format.
    """
    write_atomically(report, formats.to_bytes(subject, report))


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, all or nothing.

    Raises:
        UsageError: the file cannot be written.
    """
    with stage_file(path) as staged:
        staged.write([content])
        staged.commit()


def _same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
