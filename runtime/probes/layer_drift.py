"""How far the outputs of layers moved, from one model to another that computes them, too.

Owns: both models run on the same samples, with their inner tensors returned.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxslim.io.model import Model
from onnxslim.runtime.measure.drift import DriftMeter, is_floating
from onnxslim.runtime.probes.exposed import ExposedTensors
from onnxslim.runtime.session import Feeds


def layer_drifts(
    models: tuple[Model, Model],
    names: Iterable[str],
    samples: Iterable[Feeds],
    threads: int | None,
) -> dict[str, float]:
    """SQNR in dB of tensors of the main graphs that both models compute, by name.

    Args:
        models: the one to compare with, and the other.
        names: of tensors; those that one of the models lacks are left out.
        samples: inputs of both.
        threads: see `open_session`.

    Raises:
        RuntimeFailure: onnxruntime refuses a model whose inner tensors are returned.
    """
    exposed = [ExposedTensors(model) for model in models]
    made = [
        {str(t.name): t for node in item.graph.nodes for t in node.outputs if t.dtype is not None}
        for item in exposed
    ]
    known = [name for name in names if name in made[0] and name in made[1]]
    sessions = [
        item.open(item.segment([tensors[name] for name in known], ()), threads=threads)
        for item, tensors in zip(exposed, made, strict=True)
    ]
    first, second = sessions
    if first is None or second is None:
        return {}
    meters = {name: DriftMeter() for name in known}
    with first, second:
        for feeds in samples:
            before, after = first.run(feeds), second.run(feeds)
            for name, meter in meters.items():
                if is_floating(before[name].dtype) and before[name].shape == after[name].shape:
                    meter.update(before[name], after[name])
    return {name: meter.result().sqnr_db for name, meter in meters.items() if meter.count}
