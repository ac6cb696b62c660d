"""Examples of a pass as command lines: from its `examples`, or plain ones that fit any pass."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Pass, Preset
from onnxslim.pipeline.registry import get
from onnxslim.records import Fidelity


@dataclass(frozen=True)
class PassExample:
    """A pipeline, the command line that runs it, and what it does."""

    pipeline: str
    purpose: str

    @property
    def command(self) -> str:
        """The command line; with samples where a pass needs them, or only they tell its loss."""
        pipeline = parse_pipeline(self.pipeline)
        members = [member for item in pipeline.passes for member in item.members()]
        wants = any(
            member.needs_calibration() is not None
            or (member.fidelity is Fidelity.LOSSY and member.loss_bound() is None)
            for member in members
        )
        samples = " --calib samples.npz" if wants else ""
        return f"onnxslim model.onnx{samples} --passes {shlex.quote(self.pipeline)}"


def examples_of(owner: type[Pass]) -> list[PassExample]:
    """Two or three examples of a pass."""
    examples = owner.examples or _plain(owner)
    return [PassExample(pipeline, purpose) for pipeline, purpose in examples.items()]


def _plain(owner: type[Pass]) -> dict[str, str]:
    name = owner.name
    alone = {name: "this pass alone"}
    simplify = get("simplify")
    if issubclass(simplify, Preset) and name in {member.name for member in simplify().members()}:
        return {
            **alone,
            "simplify": "with all others of its kind, in rounds until nothing changes",
            f"simplify:skip={name}": "all others of its kind",
        }
    return {**alone, f"simplify,{name}": "on the simplified model"}
