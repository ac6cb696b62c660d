"""Which token ids stay: those of files, those of calibration samples, and special tokens.

A file has one entry a line. Where all entries are whole numbers, they are ids, and otherwise all
are tokens, whose ids the tokenizer knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.errors import NotApplicable, UsageError
from onnxslim.graph.ir import Node, Variable
from onnxslim.pipeline.passes import Context
from onnxslim.vocabulary.tokenizer_file import TokenizerFile

Ids = npt.NDArray[np.int64]

CALIBRATION: Final = "calibration"
"""The word that stands for the samples where files are named."""


def ids_in_file(path: str, tokenizer: TokenizerFile | None, rows: int) -> Ids:
    """The ids that a file lists; `rows` are those of the table.

    Raises:
        UsageError: the file cannot be read, or a line names no row of the table.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read as text in UTF-8: {error}.") from error
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    is_ids = all(entry.isdecimal() for _, entry in entries)
    found = []
    for number, entry in entries:
        token = int(entry) if is_ids else _id_of(entry, tokenizer, f"Line {number} of `{path}`")
        if token >= rows:
            raise UsageError(
                f"Line {number} of `{path}` is id {token}, and the table has {rows} rows, from 0 "
                f"to {rows - 1}."
            )
        found.append(token)
    if not found:
        raise UsageError(f"`{path}` lists no token. Give one id or token a line.")
    return np.unique(np.array(found, np.int64))


def _id_of(entry: str, tokenizer: TokenizerFile | None, where: str) -> int:
    if tokenizer is None:
        raise UsageError(
            f"{where} is the token {entry!r}, and no tokenizer tells its id. Give "
            "`tokenizer=tokenizer.json` to the pass, or list ids."
        )
    if entry not in tokenizer.ids:
        raise UsageError(f"{where} is {entry!r}, which is no token of `{tokenizer.path}`.")
    return tokenizer.ids[entry]


def ids_of_samples(tokens: str, rows: int, context: Context) -> Ids | None:
    """The ids that calibration samples hold in the input `tokens`; None without samples.

    Negative ids count from the end of the table, as in Gather.

    Raises:
        NotApplicable: an id of a sample lies outside the table.
    """
    if context.calibration is None or context.model is None:
        return None
    model = context.model.clone()
    source = next(tensor for tensor in model.graph.inputs if tensor.name == tokens)
    # a model of one node: samples are read as they are fed, and nothing else runs
    seen = Variable(f"{tokens}_seen", source.dtype, None)
    model.graph.nodes = [Node("Identity", inputs=[source], outputs=[seen])]
    model.graph.outputs = [seen]
    model.graph.unused = []
    is_used = np.zeros(rows, bool)
    for sample in context.calibration.outputs(model):
        ids = np.unique(sample.values[seen.name]).astype(np.int64)
        if len(ids) and (ids[0] < -rows or ids[-1] >= rows):
            outside = ids[0] if ids[0] < -rows else ids[-1]
            raise NotApplicable(f"a sample has the id {outside}, and the table has {rows} rows")
        is_used[ids] = True
    return np.flatnonzero(is_used)
