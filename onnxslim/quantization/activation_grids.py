"""The grids of all activations of a model, from histograms observed on calibration samples.

Owns: which tensors are observed, and whether 8 bits suffice for a tensor. Not here: how a range
follows from a histogram (see `calibration_ranges`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.softmax_reach import softmax_reach
from onnxslim.graph.operands import const_array
from onnxslim.io.model import Model
from onnxslim.quantization.calibration_ranges import (
    CalibrationRange,
    Ends,
    RangeMethod,
    activation_range,
    all_ranges,
    fixed_range,
)
from onnxslim.quantization.clusters import Cluster
from onnxslim.quantization.grid import Grid, GridForm
from onnxslim.records import Skip
from onnxslim.services.calibration import Calibration
from onnxslim.services.observations import Observation

_MAX_LOST: Final = 0.02  # largest share of the energy of a tensor that its grid may lose


@dataclass(frozen=True)
class ActivationGrids:
    """The grids of a model's activations.

    Attributes:
        found: the ranges of each tensor, by its name, best first; several where no one method was
            asked for.
        unseen: why a tensor has no range, by its name.
        constants: the form of the grids of constant operands.
    """

    found: Mapping[str, Sequence[CalibrationRange]]
    unseen: Mapping[str, str]
    constants: GridForm

    @property
    def by_tensor(self) -> Mapping[str, Grid]:
        """The grid of the best range of each tensor."""
        return {name: ranges[0].grid for name, ranges in self.found.items()}

    def objection(self, cluster: Cluster) -> str | None:
        """Why a cluster cannot or should not be on integers; None where it can."""
        for tensor in cluster.tensors:
            if tensor.name not in self.found:
                why = self.unseen.get(tensor.name, "it was not observed")
                return f"the range of `{tensor.name}` is not known: {why}"
            found = self.found[tensor.name][0]
            if found.relative_error > _MAX_LOST:
                return (
                    f"8 bits say too little of `{tensor.name}`, in [{found.least:.3g}, "
                    f"{found.most:.3g}]: {100 * found.relative_error:.2g} % of its energy is lost"
                )
        if cluster.node.op == "Concat":
            return self._drowned(cluster)
        return self._uneven(cluster)

    def _uneven(self, cluster: Cluster) -> str | None:
        """The objection that a constant operand has entries too small for its grid."""
        for index in cluster.operands:
            tensor = cluster.node.inputs[index]
            values = constant_operand(tensor)
            if values is None or not values.size:
                continue
            if not np.isfinite(values).all():
                return f"the constant `{tensor.name}` is not finite"
            grid = constant_grid(values, self.constants)
            exact = values[values != 0].astype(np.float64)
            lost = np.square(exact - grid.rounded(exact))
            # a factor's error counts relative to itself, an addend's relative to all addends
            size = np.square(exact) if cluster.node.op == "Mul" else np.square(exact).mean()
            if exact.size and (lost / size).mean() > _MAX_LOST:
                return f"8 bits say too little of the constant `{tensor.name}`"
        return None

    def _drowned(self, cluster: Cluster) -> str | None:
        """The objection that an operand of a Concat is too small for the steps of the result."""
        result = self.found[cluster.makes[0].name][0]
        step = float(result.grid.scale)
        for tensor in cluster.reads:
            found = self.found[tensor.name][0]
            if found.energy and step**2 / 12 > _MAX_LOST * found.energy:
                return (
                    f"`{tensor.name}`, in [{found.least:.3g}, {found.most:.3g}], would be lost in "
                    f"the result, whose steps are {step:.2g}"
                )
        return None


def constant_operand(tensor: gs.Tensor) -> np.ndarray | None:
    """The values of a constant operand, as far as they matter; None where it is no constant."""
    values, reach = const_array(tensor), softmax_reach(tensor)
    return values if values is None or reach is None else reach.clipped(values)


def constant_grid(values: np.ndarray, form: GridForm) -> Grid:
    """The grid of a constant operand."""
    return form.over(float(values.min()), float(values.max()))


def observe_grids(
    model: Model,
    clusters: Sequence[Cluster],
    calibration: Calibration,
    method: RangeMethod | None,
    form: GridForm,
) -> ActivationGrids:
    """The grids of all tensors that clusters read and make, from the calibration samples.

    Ranges are chosen by `method`; where it is None by all methods, from all samples (extremes are
    rare), ordered by their error on the half that is held back.
    """
    names = list(dict.fromkeys(str(t.name) for item in clusters for t in item.tensors))
    forms, fixed = _forms(clusters, form), _fixed(clusters, form)
    unseen: dict[str, str] = {}
    found: dict[str, Sequence[CalibrationRange]] = {}
    judges: Mapping[str, Observation] = {}
    if method is None:
        held = calibration.halves()[1]
        judges = {item.tensor: item for item in _seen(held, model, names, unseen)}
    for item in _seen(calibration, model, names, unseen):
        own = forms.get(item.tensor, form)
        if item.tensor in fixed:
            found[item.tensor] = (fixed_range(item, fixed[item.tensor], own),)
        elif method is None:
            found[item.tensor] = all_ranges(item, judges.get(item.tensor), own)
        else:
            found[item.tensor] = (activation_range(item, method, own),)
    return ActivationGrids(found, unseen, form)


def _forms(clusters: Sequence[Cluster], form: GridForm) -> Mapping[str, GridForm]:
    """Asymmetric forms for the tensors whose grids end at zero: for a Relu, a Clip or a kernel."""
    return {
        tensor.name: replace(form, symmetric=False)
        for cluster in clusters
        if cluster.activation is not None or cluster.rule.fixed is not None
        for tensor in cluster.makes
    }


def _fixed(clusters: Sequence[Cluster], form: GridForm) -> Mapping[str, Ends]:
    """The ranges that kernels need for their outputs, by tensor."""
    return {
        tensor.name: cluster.rule.fixed(form)
        for cluster in clusters
        if cluster.rule.fixed is not None
        for tensor in cluster.makes
    }


def _seen(
    calibration: Calibration, model: Model, names: Sequence[str], unseen: dict[str, str]
) -> Iterable[Observation]:
    for item in calibration.observe(model, names):
        if isinstance(item, Skip):
            unseen[item.node] = item.why
        else:
            yield item
