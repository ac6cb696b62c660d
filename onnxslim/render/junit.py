"""What held and what did not as JUnit XML, which CI servers show as tests.

The form is that of Ant and of pytest: suites of cases, of which each passes, fails or is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from onnxslim.render.printable import printable
from onnxslim.report import Report, StepReport

_FLOORS = (
    "max-drop",
    "min-agreement",
    "min-sqnr",
    "min-cosine",
    "min-row-cosine",
    "max-kl",
    "max-row-kl",
)


@dataclass(frozen=True)
class JunitCase:
    """One case: it passed unless `failed` or `skipped` has the reason."""

    name: str
    seconds: float = 0.0
    failed: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class JunitSuite:
    """Cases of one run."""

    name: str
    cases: Sequence[JunitCase]


def junit_bytes(suites: Sequence[JunitSuite]) -> bytes:
    """The content of the file."""
    root = ElementTree.Element("testsuites")
    for suite in suites:
        failed = [case for case in suite.cases if case.failed is not None]
        skipped = [case for case in suite.cases if case.skipped is not None]
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=printable(suite.name),
            tests=str(len(suite.cases)),
            failures=str(len(failed)),
            errors="0",
            skipped=str(len(skipped)),
            time=f"{sum(case.seconds for case in suite.cases):.3f}",
        )
        for case in suite.cases:
            _add(element, case, printable(suite.name))
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return content + b"\n"


def _add(suite: ElementTree.Element, case: JunitCase, group: str) -> None:
    name, seconds = printable(case.name), f"{case.seconds:.3f}"
    element = ElementTree.SubElement(suite, "testcase", name=name, classname=group, time=seconds)
    for tag, why in (("failure", case.failed), ("skipped", case.skipped)):
        if why is not None:
            ElementTree.SubElement(element, tag, message=printable(why))


def suite_of(report: Report) -> JunitSuite:
    """A case for each step, each floor and the end of a run.

    A step fails where it went below a floor, and is skipped where it did not pay.
    """
    cases = [_step_case(step) for step in report.steps]
    cases += _floor_cases(report)
    failed = None if report.error is None else report.error.message
    cases.append(JunitCase("run", failed=failed))
    return JunitSuite(f"onnxslim {report.before.path or 'model'}", cases)


def _step_case(step: StepReport) -> JunitCase:
    name, why = f"step {step.spec}", step.why_not_committed or step.why_partly
    if step.floor_missed:
        return JunitCase(name, step.seconds, failed=why)
    return JunitCase(name, step.seconds, skipped=None if step.committed else why)


def _floor_cases(report: Report) -> Iterator[JunitCase]:
    settings = {} if report.record is None else report.record.settings
    missed = [step for step in report.steps if step.floor_missed]
    whys = [step.why_not_committed or step.why_partly or step.spec for step in missed]
    if settings.get("floor") == "default":
        yield JunitCase("floors, the default ones", failed="; ".join(whys) or None)
    for name in _FLOORS:
        if name in settings:
            own = [why for why in whys if f"--{name} " in why]
            yield JunitCase(f"floor {name} {settings[name]}", failed="; ".join(own) or None)
