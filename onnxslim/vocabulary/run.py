"""One run of `prune-vocabulary`: which ids stay, a smaller table, and what tells new rows from ids.

Owns: the order of these steps, and the report. Not here: the options (see
`passes.prune_vocabulary`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.ir import Constant, Variable, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, PassResult
from onnxslim.vocabulary.kept_ids import CALIBRATION, Ids, ids_in_file, ids_of_samples
from onnxslim.vocabulary.tables import (
    TokenTable,
    VocabularyHead,
    cut_constant,
    head_of,
    reader_of_ids,
    token_table,
)
from onnxslim.vocabulary.tokenizer_file import TokenizerFile

_NODE_BYTES: Final = 100  # of a node and the names of its tensors, about
_UNJUDGED: Final = (
    "Without samples the outputs are compared on made-up ids, most of which are not kept: give "
    "--calib with texts, which are then held to equal bits, or --no-floor."
)


@dataclass(frozen=True)
class VocabularyRequest:
    """The options of `prune-vocabulary`.

    Attributes:
        keep: files of ids or tokens, and `calibration`.
        unknown: the id whose row stands for ids that leave; None: that of the tokenizer.
        tokenizer: path of a `tokenizer.json`; None: no tokenizer is known.
        tokens: the input with the ids; None: the one with the largest table.
        changes_signature: whether ids may be renumbered, and scores leave.
    """

    keep: tuple[str, ...]
    unknown: int | None
    tokenizer: str | None
    tokens: str | None
    changes_signature: bool


@dataclass(frozen=True)
class _Kept:
    """The ids that stay, in order; `unknown` is the one for all others, None: a row of their own.

    `is_exact` says whether all ids of the calibration samples are among them.
    """

    ids: Ids
    unknown: int | None
    is_exact: bool


class VocabularyPruning:
    """A graph whose table of token embeddings loses rows."""

    def __init__(self, rewriter: Rewriter, context: Context, request: VocabularyRequest) -> None:
        self.rw, self.context, self.request = rewriter, context, request
        self._notes: list[str] = []

    def run(self) -> PassResult:
        """Cut the table, and the head where the signature may change.

        Raises:
            UsageError: a file of ids or the tokenizer cannot be read, or does not fit.
        """
        try:
            return self._run()
        except NotApplicable as reason:  # raised before anything is changed
            self.rw.decline(str(reason))
            return PassResult(skips=self.rw.result().skips)

    def _run(self) -> PassResult:
        table = token_table(self.rw, self.request.tokens)
        path = self.request.tokenizer
        tokenizer = None if path is None else TokenizerFile.read(path)
        kept = self._kept(table, tokenizer)
        if self.request.changes_signature:
            fidelity = self._renumber(table, kept, tokenizer)
        else:
            fidelity = self._map(table, kept)
        result = self.rw.result()
        if not result.changes:
            return PassResult(skips=result.skips)
        if not kept.is_exact:
            fidelity = Fidelity.LOSSY
        if self.context.calibration is None:
            self._notes.append(_UNJUDGED)
        return replace(result, fidelity=fidelity, notes=tuple(self._notes))

    def _kept(self, table: TokenTable, tokenizer: TokenizerFile | None) -> _Kept:
        size = len(table.row_of)
        samples = ids_of_samples(str(table.tokens.name), size, self.context)
        found: list[Iterable[int]] = []
        for source in self.request.keep:
            if source != CALIBRATION:
                found.append(ids_in_file(source, tokenizer, size))
            elif samples is not None:
                found.append(samples)
        unknown = self.request.unknown
        if tokenizer is not None:
            found.append(sorted(tokenizer.special_ids))
            unknown = tokenizer.unknown if unknown is None else unknown
        if unknown is not None:
            found.append([unknown])
        ids = np.unique(np.concatenate([np.array(list(item), np.int64) for item in found]))
        if not len(ids):
            raise NotApplicable(f"the samples hold no id in `{table.tokens.name}`")
        if ids[-1] >= size:
            raise NotApplicable(
                f"the table of `{table.tokens.name}` has {size:,} rows, and id {ids[-1]} is to stay"
            )
        is_exact = samples is not None and bool(np.isin(samples, ids).all())
        return _Kept(ids, unknown, is_exact)

    # ------------------------------------------------------------------ ids keep their meaning

    def _map(self, table: TokenTable, kept: _Kept) -> Fidelity:
        """Cut the table, and let a constant map make its rows of ids."""
        self._refuse_shared(table, table.others)
        rows, place = np.unique(table.row_of[kept.ids], return_inverse=True)
        gone = np.setdiff1d(np.arange(len(table.values)), rows)
        new = table.values[rows]
        if kept.unknown is None:
            other = len(rows)
            new = np.concatenate([new, _mean_row(table, gone)])
        else:
            other = int(place[np.searchsorted(kept.ids, kept.unknown)])
        new_map = np.full(len(table.row_of), other, np.int32)
        new_map[kept.ids] = place
        is_mapped = table.ids_of(table.gathers[0]) is not table.gathers[0].inputs[1]
        more = 0 if is_mapped else new_map.nbytes + _NODE_BYTES * len(table.gathers)
        saved = table.values.nbytes - new.nbytes - more
        if saved <= 0:
            self.rw.skip(
                node_label(table.gathers[0]),
                f"{len(gone):,} of {len(table.values):,} rows would leave, which saves no more "
                "than the map from ids to rows takes",
            )
            return Fidelity.EXACT
        cut = self.rw.constant(new, str(table.tensor.name))
        ids_to_rows = self.rw.constant(new_map, f"{table.tokens.name}_rows")
        self._look_up(table, cut, ids_to_rows)
        stand_in = "the mean of their rows" if kept.unknown is None else f"id {kept.unknown}"
        others = len(table.row_of) - len(kept.ids)
        self._notes.append(
            f"Ids of `{table.tokens.name}` keep their meaning; the {others:,} that are not kept "
            f"are read as {stand_in}."
        )
        for head in head_of(self.rw, len(table.row_of)):
            if isinstance(head, VocabularyHead):
                self.rw.skip(head.label, "the head stays whole without change-signature=true")
        return Fidelity.EXACT

    def _look_up(self, table: TokenTable, cut: Constant, ids_to_rows: Constant) -> None:
        """Let the Gathers of a table read a smaller one, at the rows that a map gives."""
        made: dict[tuple[gs.Tensor, gs.Graph], Variable] = {}
        for node in table.gathers:
            ids = table.ids_of(node)
            place = (ids, self.rw.graph_of(node))
            if place not in made:
                (made[place],) = self.rw.insert(
                    node,
                    "Gather",
                    [ids_to_rows, ids],
                    {"axis": 0},
                    name=f"{node_label(node)}_rows",
                    dtype=np.dtype(np.int32),
                    shape=ids.shape,
                )
            self.rw.update(node, _what(table, cut), inputs=[cut, made[place]])

    # ------------------------------------------------------------------ ids are renumbered

    def _renumber(
        self, table: TokenTable, kept: _Kept, tokenizer: TokenizerFile | None
    ) -> Fidelity:
        """Cut the table and the head, and let callers give new ids."""
        if kept.unknown is None:
            raise NotApplicable(
                "renumbered ids need one for all tokens that leave: give unknown=ID, or a "
                "tokenizer that has an unknown token"
            )
        reader = reader_of_ids(table)
        if reader is not None:
            raise NotApplicable(
                f"`{node_label(reader)}` reads the ids of `{table.tokens.name}` as they are, so "
                "they cannot be renumbered; leave out change-signature"
            )
        size = len(table.row_of)
        if len(kept.ids) == size:
            self.rw.skip(node_label(table.gathers[0]), f"all {size:,} ids are to stay")
            return Fidelity.EXACT
        heads = self._heads(size)
        self._refuse_shared(
            table, [n for n in table.others if all(head.path_from(n) is None for head in heads)]
        )
        cut = self.rw.constant(table.values[table.row_of[kept.ids]], str(table.tensor.name))
        for node in table.gathers:
            self.rw.update(node, _what(table, cut), inputs=[cut, table.ids_of(node)])
        for head in heads:
            self._cut_head(head, table, cut, kept.ids, size)
        new_ids = np.full(size, np.searchsorted(kept.ids, kept.unknown), np.int64)
        new_ids[kept.ids] = np.arange(len(kept.ids))
        table.tokens.renumber(new_ids, self._smaller(tokenizer, kept.ids))
        self._notes.append(
            f"The signature has changed, as `change-signature=true` allows: `{table.tokens.name}` "
            f"takes new ids, from 0 to {len(kept.ids) - 1}; a file whose name ends in "
            "`.vocabulary.json`, beside the output, has the new id of each old one."
        )
        return Fidelity.CLOSE if heads else Fidelity.EXACT

    def _heads(self, size: int) -> list[VocabularyHead]:
        found = list(head_of(self.rw, size))
        for why in found:
            if isinstance(why, str):
                self.rw.skip(self.rw.main.name, f"a head stays whole: {why}")
        return [head for head in found if isinstance(head, VocabularyHead)]

    def _cut_head(
        self, head: VocabularyHead, table: TokenTable, cut: Constant, ids: Ids, size: int
    ) -> None:
        is_tied = head.weight is table.tensor and head.axis == 0
        new = cut if is_tied else cut_constant(self.rw, head.weight, ids, head.axis)
        for reader in list(head.weight.outputs):
            path = head.path_from(reader)
            if path is None:
                continue
            place = next(i for i, tensor in enumerate(reader.inputs) if tensor is head.weight)
            self.rw.set_input(reader, place, new)
            _forget_shapes(tensor for node in path for tensor in node.outputs)
        for node, places in head.chain:
            for place in places:
                self.rw.set_input(node, place, cut_constant(self.rw, node.inputs[place], ids, -1))
        _forget_shapes(head.inner)
        mask = np.zeros(size, bool)
        mask[ids] = True
        head.output.shorten(len(head.output.shape) - 1, mask)
        self.rw.note(
            head.label, f"the head gives the scores of the {len(ids):,} tokens that are kept"
        )

    def _smaller(self, tokenizer: TokenizerFile | None, ids: Ids) -> str | None:
        if tokenizer is None:
            return None
        text = tokenizer.reduced({int(old): new for new, old in enumerate(ids)})
        if text is None:
            kind = tokenizer.content["model"].get("type")
            self._notes.append(
                f"No smaller `tokenizer.json` is written: a tokenizer of type {kind} makes tokens "
                "of others, and would cut texts in another way without them. Tokenize with the "
                "whole one, and map its ids by the file with the new ids."
            )
        return text

    def _refuse_shared(self, table: TokenTable, others: Iterable[gs.Node]) -> None:
        readers = [node_label(node) for node in others]
        if not readers:
            return
        if self.request.changes_signature:
            advice = "so it stays whole"
        else:
            advice = "so its rows stay; where that is the tied head, change-signature=true cuts it"
        raise NotApplicable(
            f"the table `{table.tensor.name}` is read by `{readers[0]}` as well, {advice}"
        )


def _mean_row(table: TokenTable, gone: np.ndarray) -> np.ndarray:
    """The row with the least squared distance from all rows that leave, (1, width)."""
    if table.values.dtype.kind != "f":
        raise NotApplicable(
            f"rows of {table.values.dtype} have no mean to stand for those that leave: give "
            "unknown=ID"
        )
    rows = table.values[gone] if len(gone) else table.values[:1]
    mean: np.ndarray = rows.mean(0, dtype=np.float64, keepdims=True)
    return mean.astype(table.values.dtype)


def _what(table: TokenTable, cut: Constant) -> str:
    before, after = len(table.values), len(cut.values)
    return f"the table `{table.tensor.name}` has {after:,} rows, not {before:,}"


def _forget_shapes(tensors: Iterable[gs.Tensor]) -> None:
    """Take back what was stated of shapes along the vocabulary."""
    for tensor in tensors:
        if isinstance(tensor, Variable):
            tensor.shape = tensor.info = None
