"""The weights of a block: a start that its kind knows, least squares, and a few descending steps.

    start            what a kind makes of the original map (`BlockKind.start`)
    least squares    the last Convs, to the original outputs, in closed form
    descent          all weights together by L-BFGS on the patches (Liu, Nocedal 1989), for what no
                     linear fit reaches: activations between the factors, factors in a row
    least squares    the last Convs again

The descent ends, and what follows it goes, where samples that nothing is fitted to lose by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy.optimize import minimize

from onnxslim.substitution.patches.evidence import PatchEvidence
from onnxslim.substitution.patches.sketch import (
    AddInput,
    Join,
    Linear,
    Sketch,
    Take,
    Values,
    bias_name,
    rows_of,
)
from onnxslim.substitution.patches.terms import least_squares

_ROUNDS: Final = 4
_STEPS: Final = 12  # of a round
_WORTH_GOING_ON: Final = 0.98  # of the error before a round
_ROWS: Final = 3072  # positions that the descent looks at
_WORK: Final = 1e10  # multiply-accumulates of all descending steps of a round
_PER_ELEMENT: Final = 30  # multiply-accumulates in the time that an element takes to be moved about


def wanted_of_finals(
    sketch: Sketch, evidence: PatchEvidence, values: Values
) -> Mapping[str, np.ndarray]:
    """What the last Convs are to return, (rows, channels) by their names."""
    wanted = {sketch.steps[-1].output: evidence.outputs}
    for step in reversed(sketch.steps):
        if step.output not in wanted or isinstance(step, Linear):
            continue
        own = wanted.pop(step.output)
        if isinstance(step, AddInput):
            wanted[step.x] = own - sketch.centers(evidence.patches).reshape(own.shape)
        elif isinstance(step, Take):
            placed = np.empty_like(own)
            placed[:, values[step.output]] = own
            wanted[step.x] = placed
        elif isinstance(step, Join):
            widths = [sketch.widths()[part] for part in step.parts]
            parts = np.split(own, np.cumsum(widths)[:-1], axis=1)
            wanted.update(zip(step.parts, parts, strict=True))
    return wanted


def with_least_squares(sketch: Sketch, evidence: PatchEvidence, values: Values) -> Values:
    """The values with the last Convs in closed form; theirs need not be there yet."""
    known = dict(values)
    for step in sketch.linear:
        known.setdefault(step.output, np.zeros(step.shape(sketch.cell), np.float32))
    tensors = sketch.tensors(evidence.patches, known)
    wanted = wanted_of_finals(sketch, evidence, known)
    for step in sketch.finals:
        rows, _ = rows_of(step, sketch.cell, tensors[step.x])
        targets = np.split(wanted[step.output], step.groups, axis=1)
        weights, biases = [], []
        for features, target in zip(rows, targets, strict=True):
            if step.has_bias:
                weight, bias, _ = least_squares(features, target)
            else:
                weight, bias = _without_bias(features, target)
            weights.append(weight)
            biases.append(bias)
        # columns are (kernel, ins): the kernel goes behind
        kernel = step.kernel(sketch.cell)
        shaped = np.stack(weights).reshape(step.groups, -1, *kernel, step.ins // step.groups)
        known[step.output] = np.moveaxis(shaped, -1, 2).astype(np.float32)
        if step.has_bias:
            known[bias_name(step.output)] = np.concatenate(biases).astype(np.float32)
    return known


def _without_bias(features: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([features, -features]), np.concatenate([wanted, -wanted])
    weight, bias, _ = least_squares(*both)  # of a symmetric problem the bias is zero
    return weight, bias


def fitted(sketch: Sketch, evidence: PatchEvidence, held: PatchEvidence, start: Values) -> Values:
    """Values that bring the block near to the outputs.

    Args:
        sketch: of one group.
        evidence: of that group.
        held: of the same group, from samples held back.
        start: values of all but the last Convs.
    """
    values = closed_form(sketch, evidence, start)
    least = held.error(sketch.outputs(held.patches, values))
    for _ in range(_ROUNDS):
        changed = with_least_squares(sketch, evidence, _descended(sketch, evidence, values))
        found = held.error(sketch.outputs(held.patches, changed))
        if not found < _WORTH_GOING_ON * least:
            return changed if found < least else values
        values, least = changed, found
    return values


def closed_form(sketch: Sketch, evidence: PatchEvidence, start: Values) -> Values:
    """The values without any descent."""
    return _with_all(sketch, with_least_squares(sketch, evidence, start))


def _with_all(sketch: Sketch, values: Values) -> Values:
    """The values with zeros for biases that the start left out."""
    found = dict(values)
    for step in sketch.linear:
        if step.has_bias:
            found.setdefault(bias_name(step.output), np.zeros(step.outs, np.float32))
    return found


def random_values(sketch: Sketch, seed: int) -> Values:
    """Values as before training (He et al. 2015), which a fit is to be far better than."""
    rng = np.random.default_rng(seed)
    found: Values = {}
    for step in sketch.linear:
        shape = step.shape(sketch.cell)
        scale = (2 / np.prod(shape[2:])) ** 0.5
        found[step.output] = (scale * rng.standard_normal(shape)).astype(np.float32)
    widths = sketch.widths()
    takes = [step for step in sketch.steps if isinstance(step, Take)]
    found |= {step.output: np.arange(widths[step.output]) for step in takes}
    return _with_all(sketch, found)


def _descended(sketch: Sketch, evidence: PatchEvidence, values: Values) -> Values:
    """The values after a few steps of L-BFGS, all weights together."""
    evidence = evidence.first(_ROWS)
    names = [step.output for step in sketch.linear]
    names += [name for step in sketch.linear if (name := bias_name(step.output)) in values]
    # steps are taken in units of each weight's own size, which differ by orders of magnitude
    scales = {name: max(float(np.sqrt(np.square(values[name]).mean())), 1e-3) for name in names}
    energy = max(evidence.energy, 1e-30) * len(evidence.patches)

    def at(point: np.ndarray) -> Values:
        found, first = dict(values), 0
        for name in names:
            size = values[name].size
            part = point[first : first + size] * scales[name]
            found[name] = part.reshape(values[name].shape).astype(np.float32)
            first += size
        return found

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        tensors = sketch.tensors(evidence.patches, own := at(point))
        off = tensors[sketch.steps[-1].output].reshape(evidence.outputs.shape) - evidence.outputs
        by_name = sketch.gradients(tensors, own, 2 * off / np.float32(energy))
        gradient = [by_name[name].reshape(-1) * scales[name] for name in names]
        squares = float(np.square(off, dtype=np.float64).sum()) / energy
        return squares, np.concatenate(gradient).astype(np.float64)

    point = np.concatenate([values[name].reshape(-1) / scales[name] for name in names])
    with np.errstate(over="ignore", invalid="ignore"):
        found = minimize(
            loss,
            point.astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _steps(sketch, len(evidence.patches)), "maxcor": 10},
        )
    return at(found.x) if np.isfinite(found.fun) else values


def _steps(sketch: Sketch, rows: int) -> int:
    """As many as the work allows: each computes the block forth and back."""
    taps = sketch.cell.taps
    each = sum(step.outs * (step.ins // step.groups + _PER_ELEMENT) for step in sketch.linear)
    return int(np.clip(_WORK / (3.0 * rows * taps * each), 3, _STEPS))
