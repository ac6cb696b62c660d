"""The claims of a report, held against its files once more: bytes, outputs, accuracy, latency.

Owns: which claims a report makes, and when each holds. A claim that cannot be judged with what is
given is neither held nor broken, and says what to give. Not here: measuring (see `run.settings`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from onnxslim.errors import UsageError
from onnxslim.io.model import Model, Origin
from onnxslim.pipeline.floors import (
    Floors,
    JudgedBy,
    default_floors,
    missed,
    missed_drop,
)
from onnxslim.records import Fidelity
from onnxslim.render.timing import latency_text
from onnxslim.report import Comparison, Drift, LatencyPair

SQNR_DB: Final = 1.0
"""Decibels by which an output may be worse than reported: kernels of other machines round
otherwise."""

ACCURACY_POINTS: Final = 0.1
"""Points of accuracy by which a model may be worse than reported, for the same reason."""

LATENCY_SHARE: Final = 0.05
"""Share by which the interval of a speed-up may lie below that of the report."""

_ROUNDING_DB: Final = 80.0  # an error of 1e-4 of the largest value, as CLOSE allows

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One claim of a report.

    Attributes:
        name: in a word or two.
        is_held: whether it holds; None: it could not be judged.
        said: what the report says.
        found: what was found, or why nothing was.
    """

    name: str
    is_held: bool | None
    said: str
    found: str


class Measurements(Protocol):
    """What the two models do; `runtime.measure.verify.RuntimeProver` answers."""

    @property
    def judged_by(self) -> JudgedBy:
        """What outputs are judged by, once the original is known."""

    @property
    def verified_on(self) -> str:
        """The inputs that outputs are compared on, or why they are not."""

    def begin(self, original: Model) -> bool:
        """See `Prover`."""

    def compare(self, candidate: Model, fidelity: Fidelity) -> Comparison:
        """See `Prover`."""

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        """See `Prover`."""

    def accuracy(self, model: Model) -> float | None:
        """See `Prover`."""


@dataclass(frozen=True)
class ClaimSettings:
    """How claims are judged.

    Attributes:
        data_sha256: of the data that are given now, by option of the command.
        processor: name of this processor.
        floors: of the user, to hold beside those of the report; None: none.
        needs_floors: whether a lossy run without any floor is a fault.
        provider: short name of the execution provider of onnxruntime; None: the processor.
    """

    data_sha256: Mapping[str, str]
    processor: str
    floors: Floors | None = None
    needs_floors: bool = True
    provider: str | None = None


def judged_claims(
    report: Data,
    source: Model,
    output: Model,
    measured: Measurements,
    settings: ClaimSettings,
) -> Iterator[Claim]:
    """Every claim of `report`, in the order of what they cost to judge.

    Args:
        report: the content of its file.
        source: the model that the run began with, as it lies there now.
        output: the model that it wrote, as it lies there now.
        measured: runs both models.
        settings: how claims are judged.

    Raises:
        RuntimeFailure: onnxruntime refuses a model.
    """
    yield from _files(report, source, output)
    yield _error(report)
    comparable = measured.begin(source)
    floors = _floors(report, settings, measured.judged_by)
    drifts = measured.compare(output, Fidelity.LOSSY).original if comparable else {}
    accuracies = measured.accuracy(source), measured.accuracy(output)
    yield from _outputs(report, drifts, measured.verified_on, settings)
    yield from _accuracy(report, accuracies, settings)
    yield _floors_claim(report, floors, drifts, accuracies, settings)
    yield from _latency(report, measured.time(source, output), settings)


def report_of_output(reports: Sequence[Data], origin: Origin) -> Data:
    """The report of the run that wrote a file, among those of several models.

    Raises:
        UsageError: none is of that file, or the run wrote none.
    """
    named = [item for item in reports if item["output"]["sha256"] is not None]
    if len(reports) > 1:
        name = "" if origin.path is None else origin.path.name
        named = [item for item in named if Path(item["output"]["path"] or "").name == name]
    if len(named) != 1:
        raise UsageError(f"The report is of no run that wrote a file `{origin.path}`.")
    return named[0]


def _files(report: Data, source: Model, output: Model) -> Iterator[Claim]:
    for name, model, key, figures in (
        ("input file", source, "input", "before"),
        ("output file", output, "output", "after"),
    ):
        said, found = report[key]["sha256"], model.origin.sha256
        yield Claim(f"{name}: sha256", said == found, _short(said), _short(found))
        said_bytes, found_bytes = report[figures]["stats"]["file_bytes"], model.origin.file_bytes
        holds = said_bytes == found_bytes
        yield Claim(f"{name}: bytes", holds, f"{said_bytes:,}", f"{found_bytes:,}")


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]


def _error(report: Data) -> Claim:
    error = report.get("error")
    if error is None:
        return Claim("the run ended well", True, "no error", "no error")
    return Claim("the run ended well", False, "an error", f"{error['message']}")


def _same_data(report: Data, settings: ClaimSettings, option: str) -> str | None:
    """Why figures on the data of `option` cannot be repeated; None: the data are the same."""
    said = (report.get("record") or {}).get("data_sha256", {}).get(option)
    given = settings.data_sha256.get(option)
    if said == given:
        return None
    if given is None:
        return f"give the data of the run with --{option}"
    return f"--{option} gives other data than the run had"


def _last_step(report: Data) -> Data | None:
    kept = [step for step in report["passes"] if step["committed"] and step["changes"]]
    return kept[-1] if kept else None


def _outputs(
    report: Data, drifts: Mapping[str, Drift], where: str, settings: ClaimSettings
) -> Iterator[Claim]:
    last = _last_step(report)
    said = (last or {}).get("drift_original") or {}
    why = _same_data(report, settings, "calib")
    if not drifts:
        why = where
    for name, figures in said.items():
        least = float(figures["sqnr_db"])
        found = drifts.get(name)
        words = f"output `{name}`"
        if why is not None or found is None:
            yield Claim(words, None, f"{least:.1f} dB", why or "there is no such output")
            continue
        lossless = last is not None and last["fidelity"] != "LOSSY"
        # beyond rounding no figure of decibels means anything
        is_held = found.sqnr_db >= least - SQNR_DB or (lossless and found.sqnr_db >= _ROUNDING_DB)
        yield Claim(words, is_held, f"{least:.1f} dB", f"{found.sqnr_db:.1f} dB")


def _accuracy(
    report: Data, found: tuple[float | None, float | None], settings: ClaimSettings
) -> Iterator[Claim]:
    said = report["after"]["accuracy"]
    if said is None:
        return
    why = _same_data(report, settings, "eval")
    if found[1] is None or why is not None:
        yield Claim("accuracy", None, _percent(said), why or "accuracy was not measured")
        return
    is_held = 100 * (said - found[1]) <= ACCURACY_POINTS
    yield Claim("accuracy", is_held, _percent(said), _percent(found[1]))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _floors(report: Data, settings: ClaimSettings, by: JudgedBy) -> list[Floors]:
    """The floors that must hold: those of the report, those of the user."""
    said = (report.get("record") or {}).get("settings", {})
    names = {
        "max-drop": "max_drop",
        "min-agreement": "min_agreement",
        "min-sqnr": "min_sqnr_db",
        "min-cosine": "min_cosine",
        "min-row-cosine": "min_row_cosine",
        "max-kl": "max_kl",
        "max-row-kl": "max_row_kl",
    }
    own = {field: float(said[name]) for name, field in names.items() if name in said}
    floors = replace(Floors(), **own)  # type: ignore[arg-type]
    if said.get("floor") == "default":
        floors = default_floors(by)
    given = [floors] if floors.limits_anything else []
    return [*given, settings.floors] if settings.floors is not None else given


def _floors_claim(
    report: Data,
    floors: Sequence[Floors],
    drifts: Mapping[str, Drift],
    accuracies: tuple[float | None, float | None],
    settings: ClaimSettings,
) -> Claim:
    """Whether the floors hold, on whatever data are given now."""
    is_lossy = any(
        step["committed"] and step["changes"] and step["fidelity"] == "LOSSY"
        for step in report["passes"]
    )
    if not floors:
        if not is_lossy:
            return Claim("floors", True, "no lossy step", "no lossy step")
        advice = "none was held; give some, such as --min-sqnr 20, or --no-floor"
        return Claim("floors", not settings.needs_floors, "none", advice)
    said = "; ".join(_spelled(item) for item in floors)
    before, after = accuracies
    drop = None if before is None or after is None else 100 * (before - after)
    for item in floors:
        broken = missed_drop(item, drop) or missed(item, drifts)
        if broken is not None:
            return Claim("floors", False, said, broken)
        if item.limits_outputs and not drifts:
            return Claim("floors", None, said, "outputs were not compared")
        if item.max_drop is not None and drop is None:
            return Claim("floors", None, said, "give labelled samples with --eval")
    return Claim("floors", True, said, "held")


def _spelled(floors: Floors) -> str:
    if floors.is_default:
        return "the default ones"
    limits = {
        "max-drop": floors.max_drop,
        "min-agreement": floors.min_agreement,
        "min-sqnr": floors.min_sqnr_db,
        "min-cosine": floors.min_cosine,
        "min-row-cosine": floors.min_row_cosine,
        "max-kl": floors.max_kl,
        "max-row-kl": floors.max_row_kl,
    }
    return ", ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)


def _latency(report: Data, found: LatencyPair | None, settings: ClaimSettings) -> Iterator[Claim]:
    said = report.get("latency")
    if said is None:
        return
    low, high = float(said["ratio_low"]), float(said["ratio_high"])
    words = f"{float(said['ratio']):.2f}x ({low:.2f} to {high:.2f})"
    if found is None:
        yield Claim("latency", None, words, "it was not measured")
        return
    record = report.get("record") or {}
    processor, provider = record.get("processor", ""), record.get("settings", {}).get("provider")
    if (processor, provider) != (settings.processor, settings.provider):
        processor = processor if provider is None else f"{processor}, {provider}"
        # how many times faster is true of one processor; that it is not slower is for all
        words, low = f"not slower ({words} on {processor})", min(low, 1.0)
    is_held = found.high >= low * (1 - LATENCY_SHARE) and not (found.is_slower and high >= 1)
    yield Claim("latency", is_held, words, latency_text(found))
