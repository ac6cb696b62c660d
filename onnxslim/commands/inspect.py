"""`onnxslim inspect MODEL...`: show the contents of model files, several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import json_option
from onnxslim.commands.console import paper, say
from onnxslim.commands.streams import STREAM, source_of

if TYPE_CHECKING:
    from onnxslim.details import Energy
    from onnxslim.render.json import Json
    from onnxslim.tools.inspection import Inspection, Port, TargetFit


@click.command("inspect", short_help=COMMANDS["inspect"])
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@json_option
def command(models: tuple[str, ...], as_json: bool) -> None:
    """Show inputs, outputs, operators, weights, MACs and bytes of models, side by side.

    For each target it says which engine takes the file, as far as is known, and what stands in the
    way of the others; --json names every node and tensor.

    A MODEL of `-` is standard input.
    """
    from onnxslim import surveys
    from onnxslim.render.json import json_text

    found = [surveys.inspect(source_of(model)) for model in models]
    say(json_text([_json(item) for item in found]).rstrip() if as_json else _text(found))


# --------------------------------------------------------------------------- text


def _text(found: Sequence[Inspection]) -> str:
    blocks = [_table(found)]
    for item in found:
        title = [f"{_path(item)}:"] if len(found) > 1 else []
        blocks.append("\n".join([*title, *_details(item)]))
    return "\n\n".join(blocks)


def _path(item: Inspection) -> str:
    return STREAM if item.path is None else str(item.path)


def _table(found: Sequence[Inspection]) -> str:
    from onnxslim.render.tables import FigureTable

    grid = FigureTable(("", *(Path(_path(item)).name for item in found)))
    for title, figure in _figures():
        grid.add(title, *map(figure, found))
    dtypes = {weights.dtype: None for item in found for weights in item.weights}
    for dtype in dtypes:
        grid.add(f"  of type {dtype}", *(_weights_text(item, dtype) for item in found))
    totals = {op: sum(item.operators.get(op, 0) for item in found) for op in _operators(found)}
    for op in sorted(totals, key=lambda op: (-totals[op], op)):
        counts = (item.operators.get(op, 0) for item in found)
        grid.add(f"{op} nodes", *(f"{count:,}" if count else "-" for count in counts))
    return grid.render(paper())


def _figures() -> list[tuple[str, Callable[[Inspection], str]]]:
    from onnxslim.render.units import bytes_text, count_text

    return [
        ("file", lambda item: bytes_text(item.stats.file_bytes)),
        ("initializers", lambda item: bytes_text(item.stats.initializer_bytes)),
        ("MACs", lambda item: count_text(item.stats.macs)),
        ("energy, by arithmetic", lambda item: _energy_text(item.energy)),
        ("opset", lambda item: ", ".join(_opset(item.opsets))),
        ("IR version", lambda item: str(item.ir_version)),
        ("producer", lambda item: item.producer or "-"),
        ("nodes", lambda item: f"{item.stats.nodes:,}"),
        ("parameters", lambda item: count_text(item.stats.parameters)),
    ]


def _energy_text(energy: Energy | None) -> str:
    """The energy of a run; of a model whose sizes are partly unknown, at least."""
    from onnxslim.render.units import joules_text

    if energy is None:
        return "?"
    text = joules_text(energy.total_pj)
    return f"at least {text}" if energy.unsized else text


def _opset(opsets: Mapping[str, int]) -> list[str]:
    return [
        str(version) if domain == "ai.onnx" else f"{domain} {version}"
        for domain, version in opsets.items()
    ]


def _weights_text(item: Inspection, dtype: str) -> str:
    from onnxslim.render.units import bytes_text, count_text

    for weights in item.weights:
        if weights.dtype == dtype:
            return f"{count_text(weights.elements)}, {bytes_text(weights.bytes)}"
    return "-"


def _operators(found: Iterable[Inspection]) -> dict[str, None]:
    return {op: None for item in found for op in item.operators}


def _details(item: Inspection) -> list[str]:
    from onnxslim.render.printable import printable
    from onnxslim.render.tables import wrapped
    from onnxslim.render.units import bytes_text

    packed = item.packed_bytes
    lines = [] if packed is None else [f"packed into {bytes_text(packed)}"]
    lines += [f"input   {port_text(port)}" for port in item.inputs]
    lines += [f"output  {port_text(port)}" for port in item.outputs]
    lines += [f"weight  {port_text(port)}, {bytes_text(size)}" for port, size in item.largest]
    lines += [f"function  {name}, {count:,} nodes" for name, count in item.functions.items()]
    lines += [f"external data  {name}" for name in item.external]
    lines += [f"target {name}: {_fit_text(fit)}" for name, fit in item.targets.items()]
    lines += [f"metadata  {key} = {value}" for key, value in item.metadata.items()]
    return [wrapped(printable(line), paper()) for line in lines]


def _fit_text(fit: TargetFit) -> str:
    """Whether an engine takes a file, else the first thing in its way."""
    found = (*fit.staying, *fit.replaced)
    if not found:
        return "nothing known stands in the way"
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    how = "not all of it is replaced by" if fit.staying else "replaced by"
    return f"{found[0]}{more}; {how} `onnxslim retarget`"


def port_text(port: Port) -> str:
    """`name: float[1, 3, height, width]`."""
    if port.shape is None:
        unknown = "" if port.dtype.endswith(")") else ", shape unknown"
        return f"{port.name}: {port.dtype}{unknown}"
    sizes = ", ".join("?" if size is None else str(size) for size in port.shape)
    return f"{port.name}: {port.dtype}[{sizes}]"


# --------------------------------------------------------------------------- JSON


def _json(item: Inspection) -> Json:
    from onnxslim.render.json import figures_json, plain_json

    return {
        "path": _path(item),
        "sha256": item.sha256,
        "packed_bytes": item.packed_bytes,
        "inputs": [_port_json(port) for port in item.inputs],
        "outputs": [_port_json(port) for port in item.outputs],
        "opsets": dict(item.opsets),
        "ir_version": item.ir_version,
        "producer": item.producer,
        "stats": figures_json(item.stats),
        "energy": plain_json(item.energy),
        "operators": dict(item.operators),
        "functions": dict(item.functions),
        "weights": [
            {
                "dtype": weights.dtype,
                "tensors": weights.tensors,
                "elements": weights.elements,
                "bytes": weights.bytes,
            }
            for weights in item.weights
        ],
        "largest": [{**_port_json(port), "bytes": size} for port, size in item.largest],
        "external": list(item.external),
        "targets": {
            name: {"replaced": list(fit.replaced), "staying": list(fit.staying)}
            for name, fit in item.targets.items()
        },
        "metadata": dict(item.metadata),
    }


def _port_json(port: Port) -> dict[str, Json]:
    shape: Json = None if port.shape is None else list(port.shape)
    return {"name": port.name, "dtype": port.dtype, "shape": shape}
