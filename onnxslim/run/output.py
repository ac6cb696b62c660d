"""Write the result of a pipeline: staged, checked, marked with its pipeline, renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from onnxslim.io.copying import copy_file
from onnxslim.io.marks import MARK
from onnxslim.io.model import Model
from onnxslim.report import Report
from onnxslim.run.prepared import Attempt, PreparedRun
from onnxslim.run.record import metadata


def write_output(run: PreparedRun, attempt: Attempt, report: Report, output: Path) -> None:
    """Write the model of `attempt` to `output`, and its path, bytes and sha256 into `report`.

    The file is loaded and compared once more before it takes its name. A model that no step changed
    is copied, byte for byte.

    Raises:
        UsageError: the file cannot be written.
        RuntimeFailure: the written file is not the model that was verified.
    """
    changed = any(step.committed and step.changes for step in attempt.steps)
    origin = run.source.origin
    if not changed and origin.path is not None:
        copy_file(origin, output)
        report.after.sha256 = origin.sha256
    else:
        marked = _marked(attempt.model, report)
        with marked.stage(output) as staged:
            if run.prover is not None and changed:
                run.prover.check_file(staged.file, marked)
            report.after.stats = replace(report.after.stats, file_bytes=staged.file_bytes)
            report.after.sha256 = staged.sha256
            for name, text in _companions(attempt.model).items():
                staged.add(f"{output.stem}.{name}", text)
            staged.commit()
    report.after.path = str(output)


def _companions(model: Model) -> Mapping[str, str]:
    """Text of the files that tell the new ids of a model whose ids were renumbered, by name."""
    found = {}
    for tensor in model.graph.inputs:
        renumbered = getattr(tensor, "renumbered", None)
        if renumbered is not None:
            content = {"input": tensor.name, "new_ids": renumbered.new_ids.tolist()}
            found["vocabulary.json"] = json.dumps(content)
            if renumbered.tokenizer is not None:
                found["tokenizer.json"] = renumbered.tokenizer
    return found


def _marked(result: Model, report: Report) -> Model:
    """The result with the record of the run in `metadata_props`.

    The record is left out where it would make the file larger than the input: never bigger. Then a
    few bytes say that onnxslim wrote the file, where there is room for them.
    """
    before, after = report.before.stats.file_bytes, report.after.stats.file_bytes
    for entries in (metadata(report), {MARK: ""}):
        marked = result.with_metadata(entries)
        mark_bytes = marked.shell.ByteSize() - result.shell.ByteSize()
        if not after <= before < after + mark_bytes:
            return marked
        note = "The file does not name its pipeline: that would have made it larger."
        if note not in report.notes:
            report.notes.append(note)
    return result
