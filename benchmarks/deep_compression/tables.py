"""The tables of `docs/deep_compression.md`, made from `results/deep_compression_*.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.reporting import DOCS, megabytes, read, table

PAGE: Final = DOCS / "deep_compression.md"
_BUSY: Final = 2.5  # load average from which a figure of time is marked: there are two cores
_STEP_HEADS: Final = ("after", "bytes", "times smaller", "error")
_LATENCY_HEADS: Final = ("model", "load average", "simplified / 4 bits", "simplified / float32")

Row = Mapping[str, Any]  # an object of the JSON
Results = dict[str, Any]
Tables = dict[str, str]


def table_of(name: str) -> str | None:
    """The table of that name, where there are results for it."""
    for result in _MAKERS:
        found = page_tables(result).get(name)
        if found is not None:
            return found
    return None


def page_tables(result: str) -> Tables:
    """The tables of one result, by the name they have in the page; none without the result."""
    found = read(f"deep_compression_{result}")
    return {} if found is None else dict(_MAKERS[result](found))


# --------------------------------------------------------------------------- LeNets


def _mnist(results: Results) -> Iterator[tuple[str, str]]:
    models = results["models"]
    heads = (
        "model", "float32 .onnx", "packed", "times smaller", "error before", "after", "seconds",
    )  # fmt: skip
    yield "mnist", table(heads, [_mnist_row(model) for model in models])
    for model in models:
        name = model["model"]
        steps = [_step_row(step) for step in model["steps"]]
        yield f"mnist-steps-{name}", table(_STEP_HEADS, steps)
        yield f"mnist-layers-{name}", _layers(model)


def _mnist_row(model: Row) -> list[str]:
    return [
        model["model"],
        f"{model['steps'][0]['bytes']:,}",
        f"{model['packed_bytes']:,}",
        f"**{model['ratio']:.2f}**",
        f"{model['error_before_percent']:.2f} %",
        f"{model['error_after_percent']:.2f} %",
        _seconds(model["run"]),
    ]


def _step_row(step: Row) -> list[str]:
    error = f"{step['error_percent']:.2f} %"
    return [step["step"], f"{step['bytes']:,}", f"{step['ratio']:.2f}", error]


def _layers(model: Row) -> str:
    heads = (
        "layer", "weights", "kept", "values", "bits", "bits coded", "index bits", "bytes", "share",
    )  # fmt: skip
    rows = [
        [
            f"`{row['layer']}`",
            f"{row['weights']:,}",
            f"{100 * row['kept'] / row['weights']:.3g} %",
            f"{row['values']}",
            f"{row['bits']:.2f}",
            f"{row['code_bits']:.2f}",
            f"{row['index_bits']:.2f}",
            f"{row['packed_bytes']:,}",
            f"{100 * row['share']:.1f} %",
        ]
        for row in model["layers"]
    ]
    others = model["others_bytes"]
    share = f"{100 * others / model['packed_bytes']:.1f} %"
    rows.append(["biases, tables, graph", *[""] * 6, f"{others:,}", share])
    weights = sum(row["weights"] for row in model["layers"])
    kept = sum(row["kept"] for row in model["layers"])
    total = f"{model['packed_bytes']:,}"
    rows.append(["all", f"{weights:,}", f"{100 * kept / weights:.3g} %", *[""] * 4, total, ""])
    return table(heads, rows)


# --------------------------------------------------------------------------- curves


def _curves(results: Results) -> Iterator[tuple[str, str]]:
    points = results["points"]
    models = list(results["errors_percent"])
    yield "targets", _targets(points, models)
    for family, word in (("prune", "removed"), ("cluster", "bits")):
        for model in models:
            own = [p for p in points if (p["model"], p["family"]) == (model, family)]
            if not own:
                continue
            settings = sorted({p["setting"] for p in own}, key=float)
            rows = [
                [curve, *(_point(own, curve, setting) for setting in settings)]
                for curve in dict.fromkeys(p["curve"] for p in own)
            ]
            heads = [_setting(family, word, setting) for setting in settings]
            yield f"{family}-{model}", table(["", *heads], rows)


def _setting(family: str, word: str, setting: str) -> str:
    return f"{100 * float(setting):g} % {word}" if family == "prune" else f"{word} {setting}"


def _point(points: Sequence[Row], curve: str, setting: str) -> str:
    for point in points:
        if (point["curve"], point["setting"]) == (curve, setting):
            return f"{point['error_percent']:.2f} % at {point['ratio']:.1f}"
    return ""


def _targets(points: Sequence[Row], models: Sequence[str]) -> str:
    own = [p for p in points if p["family"] == "target"]
    settings = list(dict.fromkeys(p["setting"] for p in own))
    heads = ["model, pass", *(f"`{setting}`" for setting in settings)]
    rows = []
    for model in models:
        for curve in dict.fromkeys(p["curve"] for p in own if p["model"] == model):
            errors = {
                p["setting"]: p["error_percent"]
                for p in own
                if (p["model"], p["curve"]) == (model, curve)
            }
            cells = [f"{errors[s]:.2f} %" if s in errors else "" for s in settings]
            rows.append([f"{model}, `{curve}`", *cells])
    return table(heads, rows)


# --------------------------------------------------------------------------- trained, large


def _real(results: Results) -> Iterator[tuple[str, str]]:
    models = results["models"]
    heads = (
        "model", "float32 .onnx", "4 bits .onnx", "times smaller", "packed", "times smaller",
        "SQNR", "same answers",
    )  # fmt: skip
    rows = [
        [
            model["model"],
            f"{model['bytes']['float32']:,}",
            f"{model['bytes']['clustered']:,}",
            f"{model['ratio_onnx']:.2f}",
            f"{model['bytes']['packed']:,}",
            f"{model['ratio_packed']:.2f}",
            f"{model['sqnr_db']:.1f} dB",
            f"{100 * model['agreement']:.1f} %",
        ]
        for model in models
    ]
    yield "real", table(heads, rows)
    timed = [model for model in models if "times" in model]
    if timed:
        yield "real-latency", table(_LATENCY_HEADS, [_latency_row(model) for model in timed])
        yield "real-loads", _loads({model["model"]: model["times"]["loads"] for model in timed})


def _latency_row(model: Row) -> list[str]:
    times = model["times"]
    pairs = (times["simplified_to_clustered"], times["simplified_to_float32"])
    cells = [f"{ratio:.3f} ({low:.3f} to {high:.3f})" for ratio, low, high in pairs]
    return [model["model"], f"{times['load']:.1f}", *cells]


def _loads(models: Mapping[str, Row]) -> str:
    heads = ("model", "file", "seconds", "range", "memory after", "peak", "peak / float32's")
    rows = []
    for model, files in models.items():
        dense = _grown(files["float32"], "peak_bytes")
        for name, figures in files.items():
            rows.append(
                [
                    model,
                    name,
                    f"{figures['seconds']:.3f}",
                    f"{figures['seconds_low']:.3f} to {figures['seconds_high']:.3f}",
                    megabytes(_grown(figures, "after_bytes")),
                    megabytes(_grown(figures, "peak_bytes")),
                    f"{_grown(figures, 'peak_bytes') / dense:.2f}",
                ]
            )
    return table(heads, rows)


def _grown(figures: Row, name: str) -> int:
    """What loading added to the process."""
    return int(figures[name]) - int(figures["start_bytes"])


def _large(results: Results) -> Iterator[tuple[str, str]]:
    heads = ("step", "seconds", "peak memory", "of the float32 file", "load average")
    rows = [
        [
            run["step"],
            _seconds(run),
            megabytes(run["peak_rss_bytes"]),
            f"{run['peak_of_float32_file']:.2f}",
            f"{run['load']:.1f}",
        ]
        for run in results["runs"]
    ]
    yield "large", table(heads, rows)
    sizes = [
        [name, f"{nbytes:,}", f"{results['bytes']['float32'] / nbytes:.2f}"]
        for name, nbytes in results["bytes"].items()
    ]
    yield "large-bytes", table(("file", "bytes", "times smaller"), sizes)
    yield "large-loads", _loads({results["model"]: results["loads"]})


def _seconds(run: Row) -> str:
    """Seconds, marked where others used the machine; none where the run was stopped meanwhile."""
    if run.get("is_paused"):
        return "not known"
    return f"{run['seconds']:.0f}{' (busy)' if run['load'] >= _BUSY else ''}"


_MAKERS: Final[Mapping[str, Callable[[Results], Iterator[tuple[str, str]]]]] = {
    "mnist": _mnist,
    "curves": _curves,
    "real": _real,
    "large": _large,
}
