"""A file with one text a line as samples, through the tokenizer of the model.

    onnxslim encoder.onnx --calib texts.txt --tokenizer tokenizer.json

Lines of a `.tsv` file are a class number, a tab and the text. The tokenizer gives `input_ids`,
`attention_mask`, `token_type_ids` and `position_ids`; inputs of the model with these names get
them. A model with one input gets the ids, `map` names others (`--map tokens=input_ids`). Texts are
cut and padded to the length that the model declares; where it is open, a text has its own length,
cut to `max_length` or to what the tokenizer says. A model whose input is text gets the lines.

Owns: what texts become. Not here: which files there are (see `given`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples.extras import import_extra
from onnxslim.runtime.samples.fitting import choose_arrays, only_input
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.items import RunItem, item_input, samples_of_items
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import TensorInfo

_IDS: Final = "input_ids"
_FEATURES: Final = (_IDS, "attention_mask", "token_type_ids", "position_ids")
_PADDING: Final = ("[PAD]", "<pad>", "<|endoftext|>")  # names of the token that fills up


@dataclass(frozen=True)
class TextForm:
    """How texts are tokenized for a model.

    Attributes:
        arrays: the feature of the tokenizer by input name.
        length: tokens that every text is cut and padded to; None: each has its own length.
    """

    arrays: Mapping[str, str]
    length: int | None


def open_texts(given: GivenData, inputs: Sequence[TensorInfo]) -> Samples:
    """The texts of a file, with labels where its lines have them.

    Raises:
        UsageError: the tokenizer is missing or cannot be read, or its features do not fit.
    """
    (path,) = given.files
    lines = _lines(path)
    if all(info.dtype is not None and info.dtype.kind == "O" for info in inputs):
        return _as_they_are(given, lines, inputs)
    if given.settings.tokenizer is None:
        raise UsageError(
            f"{given.name} holds texts, and the model takes numbers. Give the tokenizer of the "
            "model: --tokenizer tokenizer.json."
        )
    form = _form(given, inputs)
    tokenizer = _tokenizer(given.settings, form)

    def read() -> Iterator[RunItem]:
        for number, (text, label) in enumerate(lines, 1):
            where = f"line {number} of {given.name}"
            features = _features(tokenizer.encode(text))
            feeds = {i.name: item_input(features[form.arrays[i.name]], i, where) for i in inputs}
            yield feeds, label

    tokens = "each of its own length" if form.length is None else f"{form.length} tokens each"
    return samples_of_items(
        given.name, read, inputs, word="line", count=len(lines), remark=f"tokenized, {tokens}"
    )


def _as_they_are(given: GivenData, lines: Sequence[_Line], inputs: Sequence[TensorInfo]) -> Samples:
    info = only_input(inputs, f"A line of {given.name}")
    axes = (1,) * max(0, len(info.shape or (1,)) - 1)  # beside that of the batch

    def read() -> Iterator[RunItem]:
        for text, label in lines:
            yield {info.name: np.full(axes, text, object)}, label

    return samples_of_items(given.name, read, inputs, word="line", count=len(lines))


_Line = tuple[str, np.ndarray | None]  # a text and its label


def _lines(path: Path) -> list[_Line]:
    try:
        texts = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read as text in UTF-8: {error}.") from error
    kept = [(number, text) for number, text in enumerate(texts, 1) if text.strip()]
    if path.suffix.lower() != ".tsv":
        return [(text, None) for _, text in kept]
    lines: list[_Line] = []
    for number, line in kept:
        label, tab, text = line.partition("\t")
        if not tab or not label.strip().isdigit():
            raise UsageError(
                f"Line {number} of `{path}` must be a class number, a tab and the text; got "
                f"{line[:40]!r}."
            )
        lines.append((text, np.array(int(label))))
    return lines


def _form(given: GivenData, inputs: Sequence[TensorInfo]) -> TextForm:
    settings = given.settings
    if len(inputs) == 1 and not settings.map:
        arrays = {inputs[0].name: inputs[0].name if inputs[0].name in _FEATURES else _IDS}
    else:
        where = "The tokenizer's output"
        chosen = choose_arrays(where, _FEATURES, inputs, settings)
        arrays = dict(chosen.inputs)
    declared = {info.shape[-1] for info in inputs if info.shape}
    fixed = [size for size in declared if isinstance(size, int) and size > 1]
    if fixed and settings.max_length is not None and settings.max_length > fixed[0]:
        raise UsageError(
            f"The model takes {fixed[0]} tokens, and `max-length` says {settings.max_length}. "
            "Leave `max-length` out."
        )
    return TextForm(arrays, fixed[0] if fixed else None)


def _tokenizer(settings: DataSettings, form: TextForm) -> Any:
    """The tokenizer of the file, set to cut and pad as the model needs."""
    library = import_extra("tokenizers", "text", "Texts")
    assert settings.tokenizer is not None
    try:
        tokenizer = library.Tokenizer.from_file(settings.tokenizer)
    except Exception as error:  # the library raises Exception itself
        raise UsageError(
            f"`{settings.tokenizer}` is no tokenizer file: {error}. It is `tokenizer.json`, as "
            "`tokenizer.save` of Hugging Face writes it."
        ) from error
    most = settings.max_length or form.length
    if most is not None:
        tokenizer.enable_truncation(most)
    padding = tokenizer.padding or {}
    tokenizer.no_padding()
    if form.length is not None:
        ids = (tokenizer.token_to_id(name) for name in _PADDING)
        found = next((number for number in ids if number is not None), 0)
        kept = {key: padding[key] for key in ("direction", "pad_type_id", "pad_token") if padding}
        number = padding.get("pad_id", found)
        tokenizer.enable_padding(length=form.length, pad_id=number, **kept)
    return tokenizer


def _features(encoding: Any) -> dict[str, np.ndarray]:
    mask = np.array(encoding.attention_mask, np.int64)
    return {
        _IDS: np.array(encoding.ids, np.int64),
        "attention_mask": mask,
        "token_type_ids": np.array(encoding.type_ids, np.int64),
        "position_ids": np.maximum(np.cumsum(mask) - 1, 0),
    }
