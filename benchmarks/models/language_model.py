"""A small trained decoder as ONNX, and text that it was not trained on.

    python -m benchmarks.models.language_model train

Trains on the sources of the standard library (some minutes on one core; needs the extra `train`):
2,048 byte pair tokens, three layers of 128 channels, the head tied to the table of tokens. On
unseen files its perplexity is about 52: a poor model, but its weights, logits and margins are those
of training. The graph is what the TorchScript exporter writes, with dynamic batch and length. One
file in eight is held back.
"""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.models.zoo import cache_folder

if TYPE_CHECKING:
    import torch

VOCABULARY: Final = 2048
LENGTH: Final = 64  # tokens of a sample
WIDTH, LAYERS, HEADS = 128, 3, 4
BATCH: Final = 32
STEPS: Final = 1200
WARM_UP: Final = 50
RATE: Final = 2e-3
HELD_ONE_IN: Final = 8
SMALLEST, LARGEST = 2_000, 200_000  # bytes of a file


def model_file() -> Path:
    """The trained decoder.

    Raises:
        FileNotFoundError: it was not trained here yet.
    """
    target = cache_folder() / "language_model" / "decoder.onnx"
    if not target.exists():
        raise FileNotFoundError(
            f"{target} is missing; train it: python -m benchmarks.models.language_model train"
        )
    return target


def samples(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Windows of files that are held back, each a batch of one, in random order."""
    windows = [
        np.array(window, np.int64)[None]
        for file in _files(held=True)
        for window in _windows(_tokenizer().encode(_text(file)).ids)
    ]
    order = np.random.default_rng(seed).permutation(len(windows))[:count]
    return [{"input_ids": windows[k], "attention_mask": np.ones_like(windows[k])} for k in order]


def perplexity(logits: Sequence[np.ndarray], fed: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Of the tokens of samples, given the logits (1, L, V) of a model for each sample."""
    nats: list[float] = []
    for scores, sample in zip(logits, fed, strict=True):
        rows, wanted = scores[0, :-1].astype(np.float64), sample["input_ids"][0, 1:]
        rows -= rows.max(axis=1, keepdims=True)
        own = rows[np.arange(len(wanted)), wanted]
        nats.extend(np.log(np.exp(rows).sum(axis=1)) - own)
    return float(np.exp(np.mean(nats)))


def _windows(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids) - LENGTH + 1, LENGTH):
        yield ids[start : start + LENGTH]


def _files(*, held: bool) -> list[Path]:
    """The sources of the standard library, without its tests: those held back, or the others."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(
        file
        for file in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "encodings", "idle_test"} & set(file.parts)
        and SMALLEST <= file.stat().st_size <= LARGEST
    )
    return [file for number, file in enumerate(found) if (number % HELD_ONE_IN == 0) == held]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _tokenizer() -> Any:
    """The tokens, learnt from the files that are not held back when they are first needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    target = cache_folder() / "language_model" / "tokenizer.json"
    if not target.exists():
        tokens = Tokenizer(models.BPE())
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokens.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokens.train_from_iterator(map(_text, _files(held=False)), trainer)
        target.parent.mkdir(parents=True, exist_ok=True)
        tokens.save(str(target))
    return Tokenizer.from_file(str(target))


# ---------------------------------------------------------------------------- training


def train() -> None:
    """Train the decoder and write it."""
    import torch

    torch.manual_seed(0)
    encode = _tokenizer().encode
    text = np.array([i for file in _files(held=False) for i in encode(_text(file)).ids], np.int64)
    model = _decoder()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1)
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for step in range(STEPS):
        share = (step - WARM_UP) / (STEPS - WARM_UP)
        rate = step / WARM_UP if share < 0 else 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate
        starts = rng.integers(0, len(text) - LENGTH - 1, BATCH)
        rows = torch.from_numpy(np.stack([text[s : s + LENGTH + 1] for s in starts]))
        logits = model(rows[:, :-1], torch.ones(BATCH, LENGTH, dtype=torch.int64))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            sys.stderr.write(
                f"step {step}: {loss.item():.3f} nats, {time.perf_counter() - began:.0f} s\n"
            )
    _export(model.eval())


def _export(model: torch.nn.Module) -> None:
    import torch

    target = cache_folder() / "language_model" / "decoder.onnx"
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        model,
        (torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)),
        str(target),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in (*names, "logits")},
        opset_version=17,
        dynamo=False,
    )


def _decoder() -> torch.nn.Module:
    """A decoder as GPT-2's (Radford et al. 2019), its attention written out."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """Attention and a feed-forward layer, each behind a normalisation."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mixed, self.joined = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            shape = (batch, length, HEADS, WIDTH // HEADS)
            parts = self.mixed(self.before(x)).split(WIDTH, dim=2)
            query, key, value = (part.reshape(shape).transpose(1, 2) for part in parts)
            scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + bias
            rows = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)
            x = x + self.joined(rows)
            return x + self.narrow(nn.functional.gelu(self.wide(self.between(x))))

    class Decoder(nn.Module):
        """Tokens to the logits of the tokens that follow them."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, WIDTH)
            self.places = nn.Embedding(LENGTH, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.last = nn.LayerNorm(WIDTH)
            for table in (self.words, self.places):
                nn.init.normal_(table.weight, std=0.02)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            places = torch.arange(length, device=input_ids.device)
            seen = (places[:, None] >= places[None])[None, None]  # (1, 1, L, L)
            seen = seen & attention_mask[:, None, None].bool()
            bias = torch.where(seen, 0.0, -1e4)
            x = self.words(input_ids) + self.places(places)
            for block in self.blocks:
                x = block(x, bias)
            return nn.functional.linear(self.last(x), self.words.weight)

    return Decoder()


if __name__ == "__main__":
    if sys.argv[1:] != ["train"]:
        sys.exit(__doc__)
    train()
