"""Remove the columns of a residual stream in which it varies least, after a rotation.

Rewrite:
    A transformer whose layers add to a stream of 768 columns and read it through normalizations:
    the stream has 576 columns, with `ratio=0.25`. Tables of embeddings and the layers that write
    the stream lose a quarter of their outputs, constants that are added to it and γ and β of the
    normalizations a quarter of their entries, layers that read it a quarter of their inputs. The
    nodes stay the same.

Why it is correct:
    A normalization sees the direction of a vector, so a stream x may be kept as z = Qᵀx for
    orthonormal columns Q: what writes it is multiplied by Qᵀ, what reads it by Q, with γ and β of
    the normalization between. With as many columns as before (`ratio=0`) that is exact up to
    rounding. Q keeps the mean of the channels apart for LayerNormalization, which therefore stays
    the operator that it is, and no node is added. Columns that leave are those in which normalized
    streams of the calibration samples have least of their second moment; a factor keeps the mean
    square, so that ε means the same. The layers that read the stream are then refitted, one after
    the other, to what they returned in the original model (least squares, as in prune-channels).

    A product is added only where channels leave the basis or enter it: in front of an output of the
    model, whose width is promised, and of a head that is tied to the table; where what a
    normalization returns becomes part of a stream itself, as behind the embeddings of CLIP and
    Swin, and where an operator that is not linear writes it, as the Gelu of Whisper's encoder.

Declines when:
    1. Something that carries the stream does not commute with a rotation: an operator that is not
       linear, a vector of factors (simplify folds LayerScale into the layer before it), a sum with
       a number or with what no layer writes, a part of the channels.
    2. Something reads it without weights, as attention of normalized values with themselves does.
    3. What half of the normalizations or more return is part of the stream itself (BERT): γ does
       not commute with a rotation, so each would need a product of its own. MiniLM was 0.84 times
       as fast with these and all columns, and 0.96 times, at a cosine of 0.946, with nine tenths.
    4. There are no calibration samples.

Fidelity:
    LOSSY. CLOSE with `ratio=0`.

Reference:
    Ashkboos et al., ICLR 2024, arXiv:2401.15024 (SliceGPT). We differ: one basis for the whole
    stream, so that residual sums need no product; LayerNormalization is not rewritten, as Q keeps
    its mean apart; γ, β and a scale for what leaves go to the readers, which are refitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.options import OptionValue, at_least, interval, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.trained_pass import TrainedPass
from onnxslim.records import Fidelity, PassResult
from onnxslim.residual.run import StreamOptions, StreamPruning


@dataclass(frozen=True)
class PruneResidualStream(TrainedPass):
    """Remove the columns of a residual stream in which it varies least."""

    name: ClassVar[str] = "prune-residual-stream"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,prune-residual-stream": "a quarter of the columns",
        "prune-residual-stream:ratio=0": "no column leaves; the stream is rotated",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"ratio": (0.1, 0.2, 0.3)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"ratio": (0.0, 0.9)}

    ratio: float = option(
        0.25,
        interval(0, 1, open_right=True),
        "share of the columns to remove; 0: rotate the stream only",
    )
    align: int = option(16, at_least(1), "the columns that are left are a multiple of it")
    reconstruct: bool = option(default=True, help="refit the layers that read the stream")

    def needs_calibration(self) -> str | None:
        """The basis comes from what the stream holds."""
        return "to see in which directions the stream varies"

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Rotate streams, cut them and refit what reads them."""
        options = StreamOptions(self.ratio, self.align, self.reconstruct)
        return StreamPruning(Rewriter(graph), context, options).run()
