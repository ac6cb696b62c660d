"""Random valid models over all operators that passes name, each with inputs to run it on.

A number decides alone what is in a model. `drawn_model` gives what onnxruntime is asked to run; the
caller counts what it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from random_bodies import call
from random_graphs import DTYPES, Array, Scope, Unfit, Value, as_model
from random_operators import OPERATORS
from random_patterns import PATTERNS

OLDEST_OPSET: Final = 7
NEWEST_OPSET: Final = onnx.defs.onnx_opset_version()
_LIKELY: Final = (11, 13, 17, 18, 21)  # what exporters write
_CONTROL_FLOW: Final = ("If", "If", "Loop", "Scan")

Feeds = Mapping[str, Array]
Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Drawn:
    """A model, and what to run it on.

    Attributes:
        plain: inputs of the declared sizes, those that the model was drawn with first.
        resized: inputs of other sizes, where sizes are open; the model need not take them.
        special: inputs with values that are not finite, or zeros with a sign.
    """

    model: onnx.ModelProto
    plain: tuple[Feeds, ...]
    resized: tuple[Feeds, ...]
    special: tuple[Feeds, ...]


def drawn_model(seed: str, most_steps: int = 12) -> Drawn:
    """The model of a seed."""
    rng = Random(seed)
    opset = rng.choice((rng.randint(OLDEST_OPSET, NEWEST_OPSET), rng.choice(_LIKELY)))
    s = Scope(rng, opset, takes_inputs=True)
    for _ in range(rng.choice((1, 1, 2))):
        _first_input(s)
    for _ in range(rng.randint(1, most_steps)):
        _step(s)
    return _assembled(s)


def _first_input(s: Scope) -> None:
    """An input of any type and rank; now and then a scalar, or without elements."""
    rank = s.one(0, 1, 2, 2, 3, 3, 4, 4, 4)
    shape = [s.size() for _ in range(rank)]
    if rank and s.often(0.04):
        shape[s.rng.randrange(rank)] = 0
    array = np.asarray(s.some(shape, s.one(*DTYPES)))
    value = Value(s.name(), array)
    s.inputs.append(value)
    s.values.append(value)


def _step(s: Scope) -> None:
    """One operator, pattern, body or call."""
    kind = s.rng.random()
    if s.often():
        s.focus = s.values[-1]  # so that operators follow each other
    try:
        if kind < 0.5:
            s.one(*PATTERNS)(s)
        elif kind < 0.9:
            op = s.one(*OPERATORS)
            OPERATORS[op](s, op)
        elif kind < 0.96:
            op = s.one(*_CONTROL_FLOW)
            OPERATORS[op](s, op)
        else:
            call(s)
    except Unfit:  # what was drawn before stays
        pass
    s.focus = None


# ----------------------------------------------------------------- the model


def _assembled(s: Scope) -> Drawn:
    inputs: dict[str, Dims] = {
        value.name: dims for value, dims in zip(s.inputs, _dims(s), strict=True)
    }
    outputs = _outputs(s)
    ir_version = s.one(3, 4, 8, 8, 8, 10) if s.opset < 15 and not s.functions else s.one(8, 8, 10)
    overridable = [
        value for value in s.initializers if ir_version < 4 or (s.often(0.04) and ir_version >= 4)
    ]
    inputs |= {value.name: value.shape for value in overridable}
    declared = [value.declared(inputs[value.name]) for value in s.inputs]
    declared += [value.declared(value.shape) for value in overridable]
    graph = helper.make_graph(
        s.nodes,
        "drawn",
        declared,
        [value.declared(inputs.get(value.name)) for value in outputs],
        [numpy_helper.from_array(value.array, value.name) for value in s.initializers],
    )
    if _has_open(inputs):
        _open_bodies(graph)
    model = as_model(graph, s.opset, s.functions, ir_version)
    _declare_shapes(s, model)
    return Drawn(model, *_feeds(s, inputs, overridable if ir_version >= 4 else []))


def _has_open(inputs: Mapping[str, Dims]) -> bool:
    """Whether the model may be run on other sizes."""
    return any(not isinstance(size, int) for dims in inputs.values() for size in dims)


def _open_bodies(graph: onnx.GraphProto) -> None:
    """Leave sizes of what bodies take open: those of this one run would be untrue of others."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for info in attribute.g.input:
                    for dim in info.type.tensor_type.shape.dim:
                        dim.Clear()
                _open_bodies(attribute.g)


def _outputs(s: Scope) -> list[Value]:
    """The last value, and others; now and then an input or a constant."""
    inputs = {value.name for value in s.inputs}
    made = [v for v in s.values if not v.is_constant and v.name not in inputs]
    if not made:
        made = [s.add("Identity", s.inputs[0])]
    chosen = [made[-1]]
    read = {name for node in s.nodes for name in node.input}
    chosen += [v for v in made if v.name not in read and s.often(0.7)]
    chosen += [s.one(*made) for _ in range(s.one(0, 0, 1, 2))]
    if s.often(0.05):
        chosen.append(s.one(*s.values))
    return list({value.name: value for value in chosen}.values())


def _dims(s: Scope) -> list[Dims]:
    """How the sizes of each input are declared: numbers, symbols that inputs share, or open."""
    is_open = s.often()
    found: list[Dims] = []
    for index, value in enumerate(s.inputs):
        dims: list[int | str | None] = []
        for axis, size in enumerate(value.shape):
            opened: int | str | None = size
            if is_open and size and s.often(0.4):
                opened = s.one(f"s{size}", f"s{size}", f"n{index}_{axis}", None)
            dims.append(opened)
        found.append(tuple(dims))
    return found


def _declare_shapes(s: Scope, model: onnx.ModelProto) -> None:
    """Outputs get the shapes that inference knows, their ranks, or nothing; some values, too."""
    choice = s.rng.random()
    if choice < 0.6:
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception:  # some models of old opsets are beyond it
            return
        _clear_untrue(s, inferred.graph)
        types = {info.name: info.type for info in inferred.graph.output}
        given = {info.name for info in model.graph.input}
        for info in model.graph.output:
            if info.name not in given and types[info.name].tensor_type.HasField("shape"):
                info.type.CopyFrom(types[info.name])
        if choice < 0.2:
            model.graph.value_info.extend(inferred.graph.value_info)
    elif choice > 0.9:
        given = {info.name for info in model.graph.input}
        for info in model.graph.output:
            if info.name not in given and info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")


def _clear_untrue(s: Scope, graph: onnx.GraphProto) -> None:
    """Leave sizes open that inference takes from a branch that is not run."""
    sizes = {value.name: value.shape for value in s.values}
    for info in (*graph.output, *graph.value_info):
        dims = info.type.tensor_type.shape.dim
        for dim, size in zip(dims, sizes.get(info.name, ()), strict=False):
            if dim.HasField("dim_value") and dim.dim_value != size:
                dim.Clear()


# ----------------------------------------------------------------- what it is run on


def _feeds(
    s: Scope, inputs: Mapping[str, Dims], overridable: Sequence[Value]
) -> tuple[tuple[Feeds, ...], ...]:
    noise = np.random.default_rng(s.rng.getrandbits(32))
    first = {value.name: value.array for value in s.inputs}
    plain: list[Feeds] = [first]
    plain += [{name: _varied(array, noise) for name, array in first.items()} for _ in range(2)]
    if overridable:
        given = {value.name: _varied(value.array, noise) for value in overridable}
        plain.append({**first, **given})
    resized: list[Feeds] = []
    if _has_open(inputs):
        for _ in range(3):
            sizes: dict[str, int] = {}
            resized.append(
                {
                    name: _resized(array, _new_shape(array.shape, inputs[name], sizes, noise))
                    for name, array in first.items()
                }
            )
    special = []
    if any(array.dtype.kind == "f" and array.size for array in first.values()):
        special = [{name: _with_special(a, noise) for name, a in first.items()} for _ in (0, 1)]
    return tuple(plain), tuple(resized), tuple(special)


def _varied(array: Array, noise: np.random.Generator) -> Array:
    """Other values of the same shape; integers stay among those that there are."""
    if array.dtype.kind == "f":
        return noise.normal(0, 1.5, array.shape).astype(array.dtype)
    return noise.permutation(array.reshape(-1)).reshape(array.shape)


def _new_shape(
    shape: tuple[int, ...], dims: Dims, sizes: dict[str, int], noise: np.random.Generator
) -> tuple[int, ...]:
    """Open sizes by other numbers; one symbol has one size."""
    found = []
    for size, dim in zip(shape, dims, strict=True):
        if isinstance(dim, int):
            found.append(size)
            continue
        drawn = int(noise.choice((1, 2, 3, 6, size)))
        found.append(drawn if dim is None else sizes.setdefault(dim, drawn))
    return tuple(found)


def _resized(array: Array, shape: tuple[int, ...]) -> Array:
    return np.resize(array, shape)


def _with_special(array: Array, noise: np.random.Generator) -> Array:
    if array.dtype.kind != "f" or not array.size:
        return array
    found: Array = np.array(array)
    flat = found.reshape(-1)
    values: list[Any] = [np.nan, np.inf, -np.inf, -0.0, 0.0, np.finfo(array.dtype).tiny]
    for at in noise.choice(flat.size, min(3, flat.size), replace=False):
        flat[at] = noise.choice(values)
    return found
