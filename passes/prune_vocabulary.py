"""Remove the rows of a table of token embeddings that a user's texts never need.

Rewrite:
    A table of 30,522 rows, of which texts use 2,000:
    `words = Gather (table, ids)` becomes `rows = Gather (map, ids)` and
    `words = Gather (smaller_table, rows)`, where `map` has the row of each id as int32. With
    `change-signature=true` there is no map: ids are renumbered, and the layer that scores tokens
    (the head, tied to the table or not) loses the same tokens. Beside an output `small.onnx` then
    lie `small.vocabulary.json`, with the new id of each old one, and, where a tokenizer of type
    WordPiece or WordLevel is given, `small.tokenizer.json`.

Why it is correct:
    A row that no id of a text looks up does not bear on its outputs. On texts whose ids are all
    kept the outputs have equal bits. That is promised, and verified, where the calibration samples
    have no other ids; scores of a smaller head may be rounded differently. Ids that are not kept
    get the row of `unknown`, by default that of the tokenizer's unknown token ([UNK]); without
    either, the mean of the rows that left, which is the closest single row to all of them. Special
    tokens of the tokenizer always stay. WordPiece takes the longest piece that it has, so the
    smaller tokenizer cuts a text in the same way where its tokens are all kept, none of them [UNK].

Declines when:
    1. No input holds ids of a constant table, or the table is stored as codes.
    2. Another node reads the table, as a tied head does, without `change-signature=true`.
    3. The map takes as much as the rows that would leave.
    4. Ids are to be renumbered, and a node reads them as more than places in the table (a
       comparison with the id of padding), or no id stands for those that leave.
    5. Scores of tokens are read before they leave the model, or are joined with others: the head
       stays whole.

Fidelity:
    LOSSY. Of a run whose calibration samples hold kept ids alone EXACT, and CLOSE with a smaller
    head.

Reference:
    Abdaoui et al. 2020, arXiv:2010.05609 (rows of a multilingual vocabulary that one language
    needs). We differ: ids keep their meaning, and others have a stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.errors import UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.options import at_least, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult
from onnxslim.vocabulary.kept_ids import CALIBRATION
from onnxslim.vocabulary.run import VocabularyPruning, VocabularyRequest


@dataclass(frozen=True)
class PruneVocabulary(Pass):
    """Remove the rows of a table of token embeddings that a user's texts never need."""

    name: ClassVar[str] = "prune-vocabulary"
    examples: ClassVar[Mapping[str, str]] = {
        "prune-vocabulary": "the ids of the calibration samples stay",
        "prune-vocabulary:keep=calibration+words.txt": "and those of a file, one a line",
        "prune-vocabulary:change-signature=true:unknown=100": "new ids, and a smaller head",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    settles: ClassVar[bool] = False

    keep: tuple[str, ...] = option(
        (CALIBRATION,),
        help="files with one id or token a line; calibration: the ids that the samples hold",
    )
    unknown: int | None = option(
        None,
        at_least(0),
        "id whose row stands for ids that leave; default: the tokenizer's unknown token, else the "
        "mean of their rows",
    )
    tokenizer: str | None = option(
        None, help="tokenizer.json, for tokens and special tokens; default: that of --tokenizer"
    )
    input_: str | None = option(
        None, help="input with the ids; default: the one with the largest table"
    )
    change_signature: bool = option(
        default=False,
        help="renumber ids, and let the scores of tokens that leave go",
    )

    def __post_init__(self) -> None:
        """Check that something is to stay.

        Raises:
            UsageError: `keep` is empty.
        """
        super().__post_init__()
        if not self.keep:
            raise UsageError(f"`{self.name}` needs `keep`: files of ids or tokens, or calibration.")

    def needs_calibration(self) -> str | None:
        """Which ids texts hold is seen in samples."""
        if CALIBRATION not in self.keep:
            return None
        return "to see which ids texts hold; keep=FILE lists them"

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Cut the table of the token ids."""
        request = VocabularyRequest(
            self.keep,
            self.unknown,
            self.tokenizer or context.tokenizer,
            self.input_,
            self.change_signature,
        )
        return VocabularyPruning(Rewriter(graph), context, request).run()
