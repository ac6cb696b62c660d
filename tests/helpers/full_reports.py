"""A report in which every figure is there."""

from __future__ import annotations

import math

from onnxslim.details import (
    Details,
    Energy,
    EnergyPart,
    FrontPoint,
    GraphBox,
    GraphOutline,
    LayerFigures,
    LayerPair,
    ModelDetails,
    SampleDrift,
    TableEntry,
    TotalFigures,
    TrialRow,
    Tuning,
)
from onnxslim.records import Change, Fidelity, OutputKind, Skip
from onnxslim.report import (
    Comparison,
    Drift,
    Failure,
    FileReport,
    Latency,
    LatencyPair,
    PartReport,
    Report,
    RunRecord,
    Stats,
    StepReport,
)


def full_report() -> Report:
    """A report in which nothing is None, with infinite figures."""
    stats = Stats(1, 2, 3, 4, 5)
    pair = LatencyPair(Latency(2, 1, 3, 9, 2), Latency(1, 1, 1, 9, 1), 2.0, 1.9, 2.1, 0.5)
    drift = Drift(0, 0, math.inf, math.nan, 1.0, 1, True, 0, OutputKind.EMBEDDING, 1, 1)
    changes, skips = (Change("y", "merged", "x"),), (Skip("z", "is an output"),)
    parts = [PartReport(name, Fidelity.CLOSE, 0.1, changes, skips, "2 kB") for name in "ab"]
    step = StepReport(
        "simplify", Fidelity.CLOSE, False, 0.1, parts, stats, pair,
        Comparison({"y": drift}, {"y": drift}), 0.9, "is larger", "one is left out", True, "a", "b",
    )  # fmt: skip
    file = FileReport("model.onnx", "ab", stats, pair.before, 0.9)
    record = RunRecord("simplify", "simplify", {"seed": "0"}, {"calib": "ab"}, "a processor")
    return Report(
        "onnxslim model.onnx",
        {"onnx": "1"},
        file,
        file,
        [step],
        verified_on="calibration",
        timed_on="image 1x1",
        data=["500 samples"],
        notes=["a note"],
        names={"y": ("conv1", "w")},
        floors_missed=["a floor"],
        has_default_floors=True,
        unjudged=["a step"],
        latency=pair,
        seconds=1.0,
        record=record,
        error=Failure("FloorMissed", 4, "left out"),
        details=full_details(),
        tuning=full_tuning(),
    )


def full_details() -> Details:
    layer = LayerFigures("Conv", (20, 1, 5, 5), "float32", 2080, 32.0, 288_000, 20, 0.25, 0.1)
    energy = Energy(2e6, (EnergyPart("Conv", "float32", 288_000, 1.3e6, 3e5, 4e5),), 1)
    boxes = (
        GraphBox("Conv", "y", 1, 1, "changed"),
        GraphBox("2 Relu", "z", 2, 0, "same"),
    )
    model = ModelDetails(energy, GraphOutline(boxes, ((0, 1),), 3, "2 nodes in 1 box"))
    return Details(
        model,
        model,
        (LayerPair("y", ("conv1", "w"), layer, layer, 31.0), LayerPair("x", (), layer, None)),
        (SampleDrift(7, "y", 12.5, 0.3),),
        samples_compared=256,
        layers_on="8 samples",
    )


def full_tuning() -> Tuning:
    figures = TotalFigures(9, 1.5, 0.01)
    front = FrontPoint(
        "simplify",
        "resolved:from='simplify',simplify",
        9,
        1.5,
        1.3,
        41.0,
        "dB",
        0.9,
        chosen=True,
        path="a.onnx",
    )
    entry = TableEntry("y", "int8", 9, 0.1, 0.01, chosen=True)
    trial = TrialRow(1, "simplify", "complete", 9, 1.5, 0.01, 3.0)
    return Tuning("latency", "30 dB", 1, 9.0, (front,), (entry,), figures, figures, (trial,))
