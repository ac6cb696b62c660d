"""Run time of each kernel, from onnxruntime's profile, under the names of the model's nodes.

Onnxruntime fuses nodes, renames them and inserts others. So nodes first get names that can be
recognised inside longer ones; kernels without such a name are traced through the optimised graph
that onnxruntime writes. Kernels with equal operator, shapes and attributes share one figure, the
lower quartile over all their runs, because interruptions by other work only add time.

Owns: how long to profile, and how kernels are traced back to nodes. Not here: timing whole models
(see `latency`).
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from onnxslim.graph.ir import node_label
from onnxslim.io.model import Model
from onnxslim.io.staging import scratch_folder
from onnxslim.runtime.explain import failure
from onnxslim.runtime.providers import CPU
from onnxslim.runtime.session import Feeds, plain_session, session_options
from onnxslim.services.stopwatch import Kernel

BUDGET_S: Final = 0.6
_FEWEST, _MAX = 5, 60  # runs to evaluate
WARM_UPS: Final = 3
_QUARTILE: Final = 25
_MARK: Final = re.compile(r"#(\d+)#")
_BLOCKED: Final = re.compile(r"(.+)_nchwc(_token_\d+)?")  # such a kernel is named after its output
KERNEL: Final = "_kernel_time"
_Neighbours = Callable[[onnx.NodeProto], Iterable[onnx.NodeProto]]


def profile_model(
    model: Model, feeds: Feeds, *, threads: int | None = None, budget_s: float = BUDGET_S
) -> tuple[Kernel, ...]:
    """The kernels of a run, in the order in which they run.

    Raises:
        RuntimeFailure: onnxruntime refuses the model or fails on it.
    """
    marked = model.clone()
    nodes = list(marked.graph.nodes)
    labels = [node_label(node) for node in nodes]
    makers: dict[str, int] = {}
    for number, node in enumerate(nodes):
        node.name = f"#{number}#"
        makers.update((tensor.name, number) for tensor in node.outputs)
    options = session_options(optimise=True, threads=threads)
    with scratch_folder() as folder:
        options.optimized_model_filepath = str(folder / "model.onnx")
        # the weights of the optimised model go to a separate file, which is not read
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "model.data"
        )
        events = _events(profiled_events(marked, feeds, options, CPU, budget_s, folder))
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return tuple(_kernels(events, _OptimisedGraph(graph, makers), labels))


@dataclass
class _KernelEvents:
    """One kernel: what its events in the profile say."""

    operator: str
    shapes: str
    elements: int
    microseconds: list[float] = field(default_factory=list)


def profiled_events(
    model: Model,
    feeds: Feeds,
    options: ort.SessionOptions,
    providers: Sequence[Any],
    budget_s: float,
    folder: Path,
) -> list[dict[str, Any]]:
    """The events of onnxruntime's profile of some runs, the first `WARM_UPS` of them included.

    Args:
        model: what runs.
        feeds: its inputs.
        options: of the session; they are changed.
        providers: of the session, by preference.
        budget_s: seconds after which no further run begins.
        folder: for the file of the profile.

    Raises:
        RuntimeFailure: onnxruntime refuses the model or fails on it.
    """
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = plain_session(model, options, providers)
    try:
        started, done = time.perf_counter(), 0
        while done < WARM_UPS + _FEWEST or (
            done < WARM_UPS + _MAX and time.perf_counter() - started < budget_s
        ):
            session.run(None, dict(feeds))
            done += 1
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise failure("failed while the model was profiled", error) from error
    with open(session.end_profiling(), encoding="utf-8") as file:
        rows: list[dict[str, Any]] = json.load(file)
    return rows


def _events(rows: Iterable[dict[str, Any]]) -> Mapping[str, _KernelEvents]:
    """Kernels by the name of onnxruntime's node, in the order of the first run."""
    found: dict[str, _KernelEvents] = {}
    for row in rows:
        name, about = str(row.get("name", "")), row.get("args")
        if row.get("cat") != "Node" or not name.endswith(KERNEL) or not isinstance(about, dict):
            continue
        shapes = json.dumps([about.get("input_type_shape"), about.get("output_type_shape")])
        key = f"{name.removesuffix(KERNEL)}@{about.get('node_index')}"
        if key not in found:
            elements = _elements(about.get("output_type_shape"))
            found[key] = _KernelEvents(str(about.get("op_name")), shapes, elements)
        found[key].microseconds.append(float(str(row["dur"])))
    return found


def _elements(outputs: object) -> int:
    """Number of elements of tensors given as a list of {type: sizes}."""
    if not isinstance(outputs, list):
        return 0
    shapes = [sizes for output in outputs for sizes in output.values()]
    return sum(int(np.prod(sizes, dtype=np.int64)) for sizes in shapes)


def _kernels(
    events: Mapping[str, _KernelEvents], made: _OptimisedGraph, labels: Sequence[str]
) -> Iterable[Kernel]:
    # runs of kernels that are alike, pooled
    alike: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    kinds = {}
    for key, event in events.items():
        name = key.rpartition("@")[0]
        kinds[key] = (event.operator, event.shapes, made.attributes(name))
        alike[kinds[key]] += event.microseconds[WARM_UPS:]
    # a kernel that was inserted counts for the nearest marked node after it, else before it
    for key, event in events.items():
        name = key.rpartition("@")[0]
        number = made.origin(name)
        if number is None:
            continue
        ms = float(np.percentile(alike[kinds[key]], _QUARTILE)) / 1e3
        inserted = made.marked(name) is None
        yield Kernel(labels[number], event.operator, inserted, event.elements, ms)


class _OptimisedGraph:
    """The graph into which onnxruntime optimised a model whose nodes carry marks.

    Args:
        graph: the graph as onnxruntime writes it.
        makers: for each tensor of the model, the number of the node that computes it.
    """

    def __init__(self, graph: onnx.GraphProto, makers: Mapping[str, int]) -> None:
        self._numbers = makers
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def attributes(self, name: str) -> str:
        """The attributes of a node as a key; empty for an unknown node."""
        node = self._nodes.get(name)
        return "" if node is None else str(sorted(map(str, node.attribute)))

    def marked(self, name: str) -> int | None:
        """The number of the node whose mark is part of a kernel's name; None without a mark."""
        found = _MARK.search(name)
        if found is not None:
            return int(found[1])
        blocked = _BLOCKED.fullmatch(name)
        return None if blocked is None else self._numbers.get(blocked[1])

    def origin(self, name: str) -> int | None:
        """The number of the node that a kernel computes, or that it was inserted for."""
        number = self.marked(name)
        if number is not None or name not in self._nodes:
            return number
        for around in (self._after, self._before):
            number = self._nearest(self._nodes[name], around)
            if number is not None:
                return number
        return None

    def _nearest(self, node: onnx.NodeProto, around: _Neighbours) -> int | None:
        """The nearest marked node, by breadth-first search."""
        queue, seen = [node], {id(node)}
        while queue:
            current = queue.pop(0)
            number = self.marked(current.name)
            if number is not None:
                return number
            for other in around(current):
                if id(other) not in seen:
                    seen.add(id(other))
                    queue.append(other)
        return None

    def _after(self, node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        return [reader for name in node.output for reader in self._readers[name]]

    def _before(self, node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        return [self._makers[name] for name in node.input if name in self._makers]
