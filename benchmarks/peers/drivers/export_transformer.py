"""Export a transformer with seeded weights: `export_transformer.py NAME torchscript|dynamo OUTPUT`.

Shapes are those of the published models, made from configurations: nothing is downloaded. Weights
are what the model's own initialisation draws from seed 0; parameters that it leaves constant
(biases, gains of normalisations, tables of relative positions) get noise on top, as training gives
them: an export with biases of zero is another graph after simplification. Batch, length of the text
and length of the cache stay dynamic.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, masking_utils

OPSETS = {"torchscript": 14, "dynamo": 18}
BATCH, LENGTH, PAST = 2, 9, 5  # of the example that is traced
NOISE = 0.1  # of a constant parameter, as a share of it
ZERO_NOISE = 0.02  # of a parameter of zeros

Axes = Mapping[int, str]
TEXT: Axes = {0: "batch", 1: "length"}
PICTURE: Axes = {0: "batch"}


@dataclass(frozen=True)
class Subject:
    """A model to trace: its inputs in order, and which of their axes are dynamic."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    axes: Mapping[str, Axes]
    outputs: Mapping[str, Axes] = field(default_factory=dict)


class Outputs(nn.Module):
    """A model of a library as a function of tensors, and of one of its results."""

    def __init__(self, model: nn.Module, names: Sequence[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, tuple(names), output

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call the model by the names of its arguments."""
        named = dict(zip(self.names, tensors, strict=True))
        return self.model(**named, return_dict=True)[self.output]


class Decoder(nn.Module):
    """The decoder of an encoder-decoder and its head, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, states: Tensor, *mask: Tensor) -> Tensor:
        """Logits (N, L, V) of `ids` (N, L), given the encoder's `states` (N, S, C)."""
        named = {"attention_mask": mask[0]} if mask else {}
        return self.model(
            decoder_input_ids=ids, encoder_outputs=(states,), use_cache=False, **named
        ).logits


class Cached(nn.Module):
    """A decoder with the keys and values of the past as inputs and those of the present as outputs.

    Keys and values are (N, heads of keys, past, width of a head), a key and a value each layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor, *past: Tensor) -> tuple[Tensor]:
        """Logits, then the cache."""
        cache = DynamicCache.from_legacy_cache(tuple(zip(past[::2], past[1::2], strict=True)))
        found = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        present = found.past_key_values.to_legacy_cache()
        return (found.logits, *(tensor for layer in present for tensor in layer))


# ---------------------------------------------------------------------------- the models


def bert() -> Subject:
    """BERT-base, as a sentence encoder: hidden states."""
    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    return _encoder(model, model.config.vocab_size, "last_hidden_state", kinds=True)


def distilbert() -> Subject:
    """DistilBERT, as a classifier of texts with two classes."""
    model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig())
    subject = _encoder(model, model.config.vocab_size, "logits")
    return Subject(subject.module, subject.inputs, subject.axes, {"logits": {0: "batch"}})


def gpt2() -> Subject:
    """GPT-2 of 124 million parameters with its cache; the head is the table of words."""
    config = transformers.GPT2Config()
    model = transformers.GPT2LMHeadModel(config)
    return _cached(model, config.n_layer, config.n_head, config.n_embd // config.n_head)


def llama() -> Subject:
    """Four layers of a Llama: RoPE, grouped queries, RMSNorm, SwiGLU, a tied head, its cache."""
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    return _cached(model, config.num_hidden_layers, config.num_key_value_heads, 64)


def vit() -> Subject:
    """ViT-S/16 at 224 pixels, 1,000 classes."""
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    return _classifier(transformers.ViTForImageClassification(config))


def swin() -> Subject:
    """Swin-T at 224 pixels, 1,000 classes."""
    return _classifier(
        transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))
    )


def convnext() -> Subject:
    """ConvNeXt-T at 224 pixels, 1,000 classes; its layer scales as large as trained ones."""
    config = transformers.ConvNextConfig(num_labels=1000, layer_scale_init_value=0.3)
    return _classifier(transformers.ConvNextForImageClassification(config))


def whisper_encoder() -> Subject:
    """Whisper-tiny's encoder: 30 seconds of 80 mel bands to hidden states."""
    encoder = transformers.WhisperModel(_whisper()).encoder
    module = Outputs(encoder, ["input_features"], "last_hidden_state")
    features = {"input_features": torch.randn(BATCH, 80, 3000)}
    axes = {"input_features": PICTURE}
    return Subject(module, features, axes, {"last_hidden_state": PICTURE})


def whisper_decoder() -> Subject:
    """Whisper-tiny's decoder, without a cache: logits of 51,865 words."""
    config = _whisper()
    model = transformers.WhisperForConditionalGeneration(config)
    inputs = {
        "decoder_input_ids": _ids(config.vocab_size),
        "encoder_hidden_states": torch.randn(BATCH, 1500, config.d_model),
    }
    axes = {"decoder_input_ids": TEXT, "encoder_hidden_states": PICTURE}
    return Subject(Decoder(model), inputs, axes, {"logits": TEXT})


def t5_encoder() -> Subject:
    """T5-small's encoder: hidden states."""
    model = transformers.T5EncoderModel(_t5())
    return _encoder(model, model.config.vocab_size, "last_hidden_state")


def t5_decoder() -> Subject:
    """T5-small's decoder, without a cache: logits of 32,128 words."""
    config = _t5()
    model = transformers.T5ForConditionalGeneration(config)
    inputs = {
        "decoder_input_ids": _ids(config.vocab_size),
        "encoder_hidden_states": torch.randn(BATCH, LENGTH + 2, config.d_model),
        "encoder_attention_mask": torch.ones(BATCH, LENGTH + 2, dtype=torch.int64),
    }
    of_source = {0: "batch", 1: "source_length"}
    axes = {
        "decoder_input_ids": TEXT,
        "encoder_hidden_states": of_source,
        "encoder_attention_mask": of_source,
    }
    return Subject(Decoder(model), inputs, axes, {"logits": TEXT})


def _encoder(model: nn.Module, words: int, output: str, *, kinds: bool = False) -> Subject:
    inputs = {"input_ids": _ids(words), "attention_mask": _ones(LENGTH)}
    if kinds:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    module = Outputs(model, list(inputs), output)
    return Subject(module, inputs, dict.fromkeys(inputs, TEXT), {output: TEXT})


def _classifier(model: nn.Module) -> Subject:
    inputs = {"pixel_values": torch.randn(BATCH, 3, 224, 224)}
    axes = {"pixel_values": PICTURE}
    return Subject(Outputs(model, list(inputs), "logits"), inputs, axes, {"logits": PICTURE})


def _cached(model: nn.Module, layers: int, heads: int, width: int) -> Subject:
    inputs = {
        "input_ids": _ids(model.config.vocab_size),
        "attention_mask": _ones(PAST + LENGTH),
        "position_ids": torch.arange(PAST, PAST + LENGTH).repeat(BATCH, 1),
    }
    axes = {"input_ids": TEXT, "attention_mask": {0: "batch", 1: "total"}, "position_ids": TEXT}
    outputs = {"logits": TEXT}
    for layer in range(layers):
        for kind in ("key", "value"):
            name = f"past_key_values.{layer}.{kind}"
            inputs[name] = torch.randn(BATCH, heads, PAST, width)
            axes[name] = {0: "batch", 2: "past"}
            outputs[f"present.{layer}.{kind}"] = {0: "batch", 2: "total"}
    return Subject(Cached(model), inputs, axes, outputs)


def _whisper() -> transformers.WhisperConfig:
    return transformers.WhisperConfig(
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
    )


def _t5() -> transformers.T5Config:
    return transformers.T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8, d_kv=64)


def _ids(words: int) -> Tensor:
    return torch.randint(5, words, (BATCH, LENGTH))


def _ones(length: int) -> Tensor:
    return torch.ones(BATCH, length, dtype=torch.int64)


MODELS: Mapping[str, Callable[[], Subject]] = {
    "whisper_encoder": whisper_encoder,
    "vit": vit,
    "swin": swin,
    "convnext": convnext,
    "t5_encoder": t5_encoder,
    "whisper_decoder": whisper_decoder,
    "t5_decoder": t5_decoder,
    "distilbert": distilbert,
    "llama": llama,
    "bert": bert,
    "gpt2": gpt2,
}


# ---------------------------------------------------------------------------- the export


def unsettle(module: nn.Module) -> None:
    """Add noise to every parameter that the initialisation has left constant."""
    for parameter in module.parameters():
        first = float(parameter.data.flatten()[0])
        if bool((parameter.data == first).all()):
            deviation = NOISE * abs(first) or ZERO_NOISE
            parameter.data += deviation * torch.randn_like(parameter)


Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def broadcast(mask_function: Mask) -> Mask:
    """A mask (N or 1, 1, queries, keys) from a function of indices, without `torch.vmap`.

    TorchScript cannot trace the `vmap` of `transformers.masking_utils`; Optimum replaces it so.
    """

    def of(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_function(
            batch[:, None, None, None],
            head[None, :, None, None],
            query[None, None, :, None],
            key[None, None, None, :],
        )

    return of


def export(subject: Subject, exporter: str, target: str) -> None:
    """Write the model; weights inside."""
    module, tensors = subject.module.eval(), tuple(subject.inputs.values())
    common = {
        "input_names": list(subject.inputs),
        "output_names": list(subject.outputs),
        "opset_version": OPSETS[exporter],
    }
    with torch.no_grad():
        if exporter == "torchscript":
            masking_utils._vmap_for_bhqkv = broadcast
            masking_utils.TransformGetItemToIndex = contextlib.nullcontext  # is of `vmap` too
            # texts packed into one row are told by `aten::diff`, which has no translation
            masking_utils.find_packed_sequence_indices = lambda position_ids: None
            axes = {**subject.axes, **subject.outputs}
            axes = {name: dict(own) for name, own in axes.items()}
            torch.onnx.export(module, tensors, target, dynamo=False, dynamic_axes=axes, **common)
            return
        shapes = tuple(
            dict.fromkeys(subject.axes[name], torch.export.Dim.DYNAMIC) for name in subject.inputs
        )
        # tensors of `*arguments` come as one tuple
        shapes = (*shapes[: _named(module)], shapes[_named(module) :])
        shapes = shapes if shapes[-1] else shapes[:-1]
        torch.onnx.export(
            module,
            tensors,
            target,
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            **common,
        )


def _named(module: nn.Module) -> int:
    """How many arguments of `forward` have names of their own."""
    code = type(module).forward.__code__
    return code.co_argcount - 1  # without `self`


def main() -> None:
    """Write OUTPUT."""
    name, exporter, target = sys.argv[1:]
    torch.manual_seed(0)
    subject = MODELS[name]()
    unsettle(subject.module)
    export(subject, exporter, target)


if __name__ == "__main__":
    main()
