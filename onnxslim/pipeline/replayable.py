"""The note by which a pass that measured says how to repeat its decision without measuring.

Times differ from run to run and from machine to machine. A pass that decides by them therefore
spells what it decided as an explicit pipeline step, which gives the same bytes everywhere.
"""

from __future__ import annotations

from onnxslim.pipeline.passes import Pass


def replay_note(explicit: Pass | str, *, decided_by: str = "timing") -> str:
    """The note, for `Rewriter.note` or a `Change`.

    Args:
        explicit: the pass, or its spelling in a pipeline, that makes the same decision by itself.
        decided_by: what cannot be repeated exactly.

    >>> replay_note("prune-channels:plan=conv1=8")
    'chosen by timing; the same without it: prune-channels:plan=conv1=8'
    """
    return f"chosen by {decided_by}; the same without it: {explicit}"
