"""The channel groups of a model with the layers that lose no channel, for `onnxslim groups`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxslim.analysis.layer_names import layer_names
from onnxslim.channels.groups import Channels, channel_groups
from onnxslim.channels.unpruned import unpruned_layers
from onnxslim.graph.functions import is_codebook
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_value
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import Skip
from onnxslim.services.layer_names import LayerNames


@dataclass(frozen=True)
class GroupSurvey:
    """The groups of a model, and why other layers are left alone.

    Attributes:
        unpruned: layers that lose no channel at all.
        sha256: of the file.
        names: of the nodes.
        computed_constants: the number of nodes that compute a constant, which are not followed.
    """

    channels: Channels
    unpruned: Sequence[Skip]
    sha256: str
    names: LayerNames
    computed_constants: int

    @property
    def totals(self) -> Mapping[str, int]:
        """Numbers of groups, units, layers and channels, and how many of them may leave."""
        channels = self.channels
        writers = channels.trace.writers
        free = ~channels.units.pinned
        return {
            "groups": len(channels.groups),
            "units": sum(group.size for group in channels.groups),
            "free_units": sum(len(channels.free(group)) for group in channels.groups),
            "layers": len(writers),
            "channels": sum(len(member.ids) for member in writers),
            "free_channels": sum(int(free[channels.units.of[m.ids]].sum()) for m in writers),
        }


def survey_groups(model: Model, sha256: str) -> GroupSurvey:
    """The groups of `model`, whose shapes are inferred in place; `sha256` is that of its file."""
    infer_shapes(model)
    channels = channel_groups(model.graph)
    computed = sum(map(_computes_a_constant, model.graph.nodes))
    return GroupSurvey(
        channels, unpruned_layers(model.graph, channels), sha256, layer_names(model.graph), computed
    )


def _computes_a_constant(node: Node) -> bool:
    """Whether folding would replace a node by a constant."""
    if node.op == "DequantizeLinear" or is_codebook(node.outputs[0]):
        return False  # weights that are stored as codes on purpose
    return bool(node.inputs) and all(
        const_value(tensor) is not None for tensor in node.inputs if tensor.name
    )
