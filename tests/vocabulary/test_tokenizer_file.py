"""A `tokenizer.json` with fewer tokens tokenizes as before what is made of those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxslim.errors import UsageError
from onnxslim.vocabulary.tokenizer_file import TokenizerFile

TOKENS = ["[PAD]", "far", "[UNK]", "cat", "[CLS]", "##s", "[SEP]", "##ther", "the", "fa"]
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "[CLS]": {"id": "[CLS]", "ids": [4], "tokens": ["[CLS]"]},
        "[SEP]": {"id": "[SEP]", "ids": [6], "tokens": ["[SEP]"]},
    },
}
BERT = {"type": "BertProcessing", "sep": ["[SEP]", 6], "cls": ["[CLS]", 4]}


def word_pieces(post_processor: dict[str, object] = TEMPLATE) -> dict[str, object]:
    """A tokenizer of the tokens above, as Hugging Face writes it."""
    named = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [i for i, token in enumerate(TOKENS) if token.startswith("[")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            {"id": i, "content": TOKENS[i], **named, "special": True} for i in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": post_processor,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(TOKENS)},
        },
    }


def written(folder: Path, content: dict[str, object]) -> str:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    return str(path)


@pytest.mark.parametrize("post_processor", [TEMPLATE, BERT])
def test_kept_tokens_are_cut_as_before_under_their_new_ids(
    tmp_path: Path, post_processor: dict[str, object]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    read = TokenizerFile.read(written(tmp_path, word_pieces(post_processor)))
    assert (read.ids["cat"], read.unknown, read.special_ids) == (3, 2, {0, 2, 4, 6})
    kept = sorted({*read.special_ids, *(read.ids[token] for token in ("cat", "##s", "the"))})
    text = read.reduced({old: new for new, old in enumerate(kept)})
    assert text is not None
    whole = tokenizers.Tokenizer.from_file(read.path).encode("the cats")
    small = tokenizers.Tokenizer.from_str(text)
    assert small.get_vocab_size() == len(kept)
    found = small.encode("the cats")
    assert found.tokens == whole.tokens == ["[CLS]", "the", "cat", "##s", "[SEP]", *["[PAD]"] * 3]
    assert [kept[i] for i in found.ids] == whole.ids
    assert small.encode("farther").tokens[1] == "[UNK]"


def test_tokens_that_are_made_of_others_do_not_leave(tmp_path: Path) -> None:
    merged = {**word_pieces(), "post_processor": None, "padding": None, "added_tokens": []}
    merged["model"] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    read = TokenizerFile.read(written(tmp_path, merged))
    assert (read.ids, read.unknown) == ({"a": 0, "b": 1, "ab": 2}, None)
    assert read.reduced({2: 0}) is None


def test_tokens_of_a_unigram_model_are_numbered_by_their_order(tmp_path: Path) -> None:
    listed = {**word_pieces(), "added_tokens": [], "post_processor": None, "padding": None}
    listed["model"] = {"type": "Unigram", "unk_id": 1, "vocab": [["x", -1.5], ["<unk>", 0.0]]}
    read = TokenizerFile.read(written(tmp_path, listed))
    assert (read.ids, read.unknown, read.special_ids) == ({"x": 0, "<unk>": 1}, 1, {1})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"vocab": 3}}', '{"model": 1}'])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=r"other\.json` is no tokenizer file"):
        TokenizerFile.read(str(path))
