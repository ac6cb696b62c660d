"""A `tokenizer.json` of Hugging Face: which id a token has, and the same file with fewer tokens.

Owns: the format of the file. Not here: tokenizing (see `runtime.samples.texts`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onnxslim.errors import UsageError

_WHOLE_WORDS: Final = ("WordPiece", "WordLevel")
"""Models whose tokens do not depend on other tokens, so that any of them may leave."""


@dataclass(frozen=True)
class TokenizerFile:
    """What a `tokenizer.json` says.

    Attributes:
        path: of the file.
        content: its JSON.
        ids: id by token, added tokens included.
        unknown: id of the token for what the vocabulary lacks; None where there is none.
    """

    path: str
    content: Mapping[str, Any]
    ids: Mapping[str, int]
    unknown: int | None

    @classmethod
    def read(cls, path: str) -> TokenizerFile:
        """The tokenizer in a file.

        Raises:
            UsageError: it cannot be read, or is no tokenizer.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            model = content["model"]
            entries = model["vocab"]
            if isinstance(entries, dict):
                ids = {str(token): int(number) for token, number in entries.items()}
            else:  # Unigram: tokens with their scores, in the order of their ids
                ids = {str(entry[0]): number for number, entry in enumerate(entries)}
            added = content.get("added_tokens") or []
            ids |= {str(token["content"]): int(token["id"]) for token in added}
            named = model.get("unk_token")
            unknown = model.get("unk_id") if named is None else ids.get(named)
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise UsageError(
                f"`{path}` is no tokenizer file: {error}. It is `tokenizer.json`, as "
                "`tokenizer.save` of Hugging Face writes it."
            ) from error
        return cls(path, content, ids, unknown)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that the tokenizer puts in itself: special tokens, padding, the unknown token."""
        added = self.content.get("added_tokens") or []
        found = {int(token["id"]) for token in added if token.get("special")}
        found |= {number for place in _places(self.content) for number in place.ids}
        return frozenset(found if self.unknown is None else found | {self.unknown})

    def reduced(self, new_ids: Mapping[int, int]) -> str | None:
        """The file with the tokens of `new_ids` alone, under their new ids.

        None where a token may be made of others, as in BPE: what is left would cut texts otherwise.
        Every special id must be in `new_ids`.
        """
        if self.content["model"].get("type") not in _WHOLE_WORDS:
            return None
        content = json.loads(json.dumps(self.content))  # a copy to edit
        vocabulary = self.content["model"]["vocab"].items()
        kept = ((new_ids[i], token) for token, i in vocabulary if i in new_ids)
        content["model"]["vocab"] = {token: number for number, token in sorted(kept)}
        content["added_tokens"] = [
            {**token, "id": new_ids[token["id"]]}
            for token in content.get("added_tokens") or []
            if token["id"] in new_ids
        ]
        for place in _places(content):
            place.renumber(new_ids.__getitem__)
        return json.dumps(content, ensure_ascii=False, indent=2)


@dataclass(frozen=True)
class _IdPlace:
    """Where a file names ids outside its vocabulary: entry `key` of `owner`."""

    owner: Any
    key: Any

    @property
    def ids(self) -> tuple[int, ...]:
        value = self.owner[self.key]
        return tuple(value) if isinstance(value, list) else (value,)

    def renumber(self, new: Callable[[int], int]) -> None:
        value = self.owner[self.key]
        self.owner[self.key] = [new(i) for i in value] if isinstance(value, list) else new(value)


def _places(content: Mapping[str, Any]) -> Iterator[_IdPlace]:
    if content.get("padding"):
        yield _IdPlace(content["padding"], "pad_id")
    stack = [content.get("post_processor")]
    while stack:
        processor = stack.pop()
        if not isinstance(processor, MutableMapping):
            continue
        stack += processor.get("processors") or []
        for token in (processor.get("special_tokens") or {}).values():  # TemplateProcessing
            yield _IdPlace(token, "ids")
        for name in ("sep", "cls"):  # BertProcessing and RobertaProcessing: [token, id]
            if name in processor:
                yield _IdPlace(processor[name], 1)
