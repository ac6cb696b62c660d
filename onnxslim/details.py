"""What a report tells beyond totals: layers, worst samples, energy, outlines of graphs, tuning.

Data only; a figure that was not measured is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["float", "integer"]
BoxState = Literal["same", "changed", "gone", "new"]


@dataclass(frozen=True)
class LayerFigures:
    """One layer with weights, as a file stores it.

    Attributes:
        operator: of the node.
        shape: of the weight as the operator computes with it.
        stored: how the weight is stored, in words: `float32`, `int8 codes`, `codes and table`.
        bytes: of all constants that the node alone or with others reads: weight, bias, codes,
            tables, scales.
        bits: bits in the file for each element of the weight, bias left out.
        macs: multiply-accumulates for one sample; None where a shape is unknown, and for operators
            that count none (see `graph.counts`).
        rank: the largest rank that the shape of the matrix of each group allows.
        sparsity: share of the elements of the weight that are zero, in [0, 1].
        ms: time of the kernels that compute the layer; None where they were not timed.
        side: what its kernels compute with.
    """

    operator: str
    shape: Sequence[int]
    stored: str
    bytes: int
    bits: float
    macs: int | None
    rank: int
    sparsity: float
    ms: float | None = None
    side: Side = "float"


@dataclass(frozen=True)
class LayerPair:
    """A layer of the model before and after; None on the side on which it does not exist.

    Attributes:
        name: first output of the node, as steps name it.
        also: the other names of the layer: of the node, of its weights.
        sqnr_db: SQNR of its output in the model after against that before, on samples; None where
            it was not measured.
    """

    name: str
    also: Sequence[str]
    before: LayerFigures | None
    after: LayerFigures | None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class SampleDrift:
    """How far the outputs on one sample moved.

    Attributes:
        number: of the sample, counted from 1 in the order of the data.
        output: name of the output with the least SQNR.
        sqnr_db: SQNR of that output.
        max_abs: its largest absolute difference.
    """

    number: int
    output: str
    sqnr_db: float
    max_abs: float


@dataclass(frozen=True)
class EnergyPart:
    """The estimated energy of all nodes of one operator, for one sample.

    Attributes:
        operator: of the nodes.
        arithmetic: the type that is computed in: `float32`, `float16`, `int8`.
        operations: multiply-accumulates, or elements computed.
        compute_pj: picojoules of arithmetic.
        weights_pj: picojoules of reading weights from DRAM.
        activations_pj: picojoules of reading and writing activations.
    """

    operator: str
    arithmetic: str
    operations: int
    compute_pj: float
    weights_pj: float
    activations_pj: float

    @property
    def total_pj(self) -> float:
        """All of it."""
        return self.compute_pj + self.weights_pj + self.activations_pj


@dataclass(frozen=True)
class Energy:
    """Energy for one sample by arithmetic from operation counts, not by measurement.

    Attributes:
        total_pj: picojoules of all parts.
        parts: by operator, the largest first.
        unsized: number of nodes that are not counted in full, as sizes of their tensors are not
            known.
    """

    total_pj: float
    parts: Sequence[EnergyPart]
    unsized: int = 0


@dataclass(frozen=True)
class GraphBox:
    """A node of a graph, or several folded into one.

    Attributes:
        operator: of the node; of several, the operators with their counts.
        name: label of the (first) node.
        nodes: number of nodes.
        changed: how many of them are not the same in the other model.
        state: of the box as a whole; `gone` and `new` where no node has a counterpart.
    """

    operator: str
    name: str
    nodes: int
    changed: int
    state: BoxState


@dataclass(frozen=True)
class GraphOutline:
    """A graph of at most some hundred boxes.

    Attributes:
        boxes: in topological order.
        edges: pairs of indices of boxes, from the producer to the reader.
        nodes: number of nodes of the graph, bodies not included.
        folded: what was folded, in words; empty where each node is a box.
    """

    boxes: Sequence[GraphBox]
    edges: Sequence[tuple[int, int]]
    nodes: int
    folded: str = ""


@dataclass(frozen=True)
class ModelDetails:
    """Energy and outline of one model."""

    energy: Energy | None = None
    graph: GraphOutline | None = None


@dataclass(frozen=True)
class Details:
    """The model before beside the model after, part by part.

    Attributes:
        layers: in the order of the graph.
        samples: the samples with the farthest outputs, the worst first; of how many:
            `samples_compared`.
        layers_on: the inputs on which outputs of layers were compared; None: they were not.
    """

    before: ModelDetails = field(default_factory=ModelDetails)
    after: ModelDetails = field(default_factory=ModelDetails)
    layers: Sequence[LayerPair] = ()
    samples: Sequence[SampleDrift] = ()
    samples_compared: int = 0
    layers_on: str | None = None


@dataclass(frozen=True)
class FrontPoint:
    """A model of a search that nothing beats in all figures at once.

    Attributes:
        tried: the pipeline as it was proposed.
        pipeline: what makes it, without a search.
        speedup: latency of the input over its latency.
        closeness: of its outputs, in `closeness_unit`; more is closer.
        path: of the file; None where it was not written.
    """

    tried: str
    pipeline: str
    file_bytes: int
    latency_ms: float | None
    speedup: float | None
    closeness: float | None
    closeness_unit: str
    accuracy: float | None
    chosen: bool
    path: str | None = None


@dataclass(frozen=True)
class TableEntry:
    """One layer or group in one variant, as it was measured alone.

    Attributes:
        error: at the outputs of the model, the others being as they were.
    """

    layer: str
    variant: str
    bytes: int
    ms: float | None
    error: float
    chosen: bool


@dataclass(frozen=True)
class TotalFigures:
    """Bytes, milliseconds and error of a whole model."""

    bytes: int
    ms: float | None
    error: float


@dataclass(frozen=True)
class TrialRow:
    """One whole pipeline that a search tried; `state` says what became of it, or why it failed."""

    number: int
    pipeline: str
    state: str
    file_bytes: int | None
    latency_ms: float | None
    loss: float | None
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """A search over pipelines under one budget.

    Attributes:
        goal, floors: what was asked for, in words.
        front: the models that nothing beats; the chosen one is marked.
        table: what each layer costs in each variant.
        predicted, measured: the chosen model by the table, and as it was measured.
    """

    goal: str
    floors: str
    trials: int
    seconds: float
    front: Sequence[FrontPoint] = ()
    table: Sequence[TableEntry] = ()
    predicted: TotalFigures | None = None
    measured: TotalFigures | None = None
    trial_log: Sequence[TrialRow] = ()
