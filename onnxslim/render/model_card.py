"""The part of a model card that tells how a file was made and how close it is.

The head is the YAML metadata of model cards on the Hugging Face Hub; JSON texts are YAML, so no
value needs quoting of its own. Reference: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from onnxslim.render.printable import printable
from onnxslim.render.text import drift_text, verdict
from onnxslim.report import Report


def model_card(report: Report) -> str:
    """The fragment, as Markdown."""
    return "\n".join((*_head(report), "", *_body(report))) + "\n"


def _head(report: Report) -> Iterator[str]:
    yield from ("---", "library_name: onnx", "tags:")
    yield from (f"- {tag}" for tag in ("onnx", "onnxruntime", "onnxslim", "compressed"))
    if report.after.accuracy is not None:
        name = Path(report.after.path or "model").stem
        yield "model-index:"
        yield f"- name: {json.dumps(name)}"
        yield "  results:"
        yield "  - task: {type: other}"
        yield f"    dataset: {{name: {json.dumps(_evaluated(report))}, type: other}}"
        value = f"{100 * report.after.accuracy:.2f}"
        yield f"    metrics: [{{type: accuracy, value: {value}, name: accuracy in percent}}]"
    yield "---"


def _evaluated(report: Report) -> str:
    return next((line for line in report.data if line.startswith("evaluation")), "evaluation data")


def _body(report: Report) -> Iterator[str]:
    yield from ("## How this file was made", "")
    source = Path(report.before.path or "a model").name
    yield f"From `{source}` (sha256 `{report.before.sha256}`): {printable(verdict(report))}."
    yield ""
    yield from ("| step | kept | drift from the original |", "|---|---|---|")
    for step in report.steps:
        drifts = step.comparison.original if step.comparison else {}
        kept = "yes" if step.committed else f"no: {printable(step.why_not_committed or '')}"
        cells = (f"`{printable(step.spec)}`", kept, drift_text(drifts, step.fidelity))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    if report.record is not None:
        resolved = printable(report.record.resolved)
        yield from ("", "The same file again:", "", "```", f"onnxslim {source} OUTPUT \\")
        yield from (f'    --passes "{resolved}"', "```")
    if report.unjudged:
        yield from ("", "Its loss was not judged on real data.")
