"""The JSON of what commands measure besides runs of pipelines: the same frame around each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxslim.render.json import Json


def measured_json(kind: str, members: Mapping[str, Json]) -> Json:
    """The JSON of a report of another kind than a run.

    Args:
        kind: the command that measured, such as `bench`: it tells which page is made of it.
        members: what was measured, by name.
    """
    from onnxslim.run.prepared import versions
    from onnxslim.run.record import processor_name
    from onnxslim.version import VERSION

    return {
        "onnxslim": VERSION,
        "kind": kind,
        "command": shlex.join(["onnxslim", *sys.argv[1:]]),
        "versions": dict(versions()),
        "processor": processor_name(),
        **members,
    }
