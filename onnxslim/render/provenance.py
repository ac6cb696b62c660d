"""Where a file comes from, as an in-toto statement with a SLSA provenance predicate.

References: in-toto attestation framework, Statement v1, https://in-toto.io/Statement/v1; SLSA
provenance v1, https://slsa.dev/provenance/v1. Nothing of the time is in it: the same run gives the
same statement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from onnxslim.errors import UsageError
from onnxslim.render.json import Json
from onnxslim.report import Report
from onnxslim.version import VERSION

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = f"pkg:pypi/onnxslim-compiler@{VERSION}#pipeline"


def provenance(report: Report) -> Json:
    """The statement of a run that wrote a file.

    Raises:
        UsageError: it wrote none.
    """
    after, record = report.after, report.record
    if after.path is None or after.sha256 is None or record is None:
        raise UsageError("--provenance is of a file, and none was written.")
    inputs: list[Json] = [_file("input", report.before.path, report.before.sha256)]
    inputs += [_file(name, None, digest) for name, digest in sorted(record.data_sha256.items())]
    libraries: list[Json] = [
        {"uri": f"pkg:pypi/{name}@{version}"} for name, version in sorted(report.versions.items())
    ]
    return {
        "_type": STATEMENT,
        "subject": [{"name": Path(after.path).name, "digest": {"sha256": after.sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "pipeline": record.pipeline,
                    "settings": dict(record.settings),
                },
                "internalParameters": {
                    "resolved": record.resolved,
                    "processor": record.processor,
                    "command": report.command,
                },
                "resolvedDependencies": [*inputs, *libraries],
            },
            "runDetails": {
                "builder": {
                    "id": f"pkg:pypi/onnxslim-compiler@{VERSION}",
                    "version": dict(report.versions),
                }
            },
        },
    }


def _file(name: str, path: str | None, digest: str | None) -> Json:
    found: dict[str, Json] = {"name": name if path is None else f"{name}: {Path(path).name}"}
    if digest is not None:
        found["digest"] = {"sha256": digest}
    return found
