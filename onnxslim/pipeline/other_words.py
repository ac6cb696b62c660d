"""Words that people use elsewhere, and what the same is called here."""

from __future__ import annotations

from typing import Final

_INT8: Final = "quantize-int8"
_WEIGHTS: Final = "quantize-weights:bits=4"
_HALF: Final = "convert-fp16"
_CHANNELS: Final = "prune-channels"
_LOW_RANK: Final = "factorize-conv,factorize-dense"
_CODEBOOK: Final = "cluster-weights"
_SIMPLIFY: Final = "simplify"

PIPELINES: Final = {
    **dict.fromkeys(
        ("int8", "i8", "uint8", "quantize", "quantise", "quantization", "quantize-static", "static",
         "ptq", "qdq", "w8a8", "post-training-quantization", "quant"),
        _INT8,
    ),
    **dict.fromkeys(
        ("int4", "i4", "uint4", "w4", "w4a16", "4bit", "weight-only", "matmul4bits", "matmulnbits",
         "gptq", "awq", "rtn", "weights"),
        _WEIGHTS,
    ),
    **dict.fromkeys(
        ("w8", "w8a16", "8bit", "weight-only-int8", "dynamic", "quantize-dynamic"),
        "quantize-weights",
    ),
    **dict.fromkeys(
        ("fp16", "float16", "f16", "half", "half-precision", "mixed-precision", "to-fp16",
         "convert-float16", "convert-float-to-float16"),
        _HALF,
    ),
    **dict.fromkeys(
        ("prune", "pruning", "structured-pruning", "channel-pruning", "filter-pruning",
         "prune-filters", "prune-neurons", "prune-heads", "slim-channels", "width"),
        _CHANNELS,
    ),
    **dict.fromkeys(
        ("sparsify", "sparse", "sparsity", "magnitude", "unstructured", "unstructured-pruning",
         "wanda", "sparsegpt", "2:4"),
        "prune-weights",
    ),
    **dict.fromkeys(
        ("slicegpt", "slice-gpt", "residual", "residual-stream", "hidden-size", "embedding-size",
         "rotate", "quarot"),
        "prune-residual-stream",
    ),
    **dict.fromkeys(("depth", "layer-drop", "drop-layers", "prune-layers"), "prune-blocks"),
    **dict.fromkeys(
        ("vocabulary", "vocab", "prune-vocab", "trim-vocabulary", "trim-vocab", "shrink-vocabulary",
         "prune-embeddings", "prune-tokens"),
        "prune-vocabulary",
    ),
    **dict.fromkeys(
        ("low-rank", "lowrank", "svd", "factorize", "factorise", "decompose", "tucker", "cp"),
        _LOW_RANK,
    ),
    **dict.fromkeys(
        ("mobilenet", "mobilenet-v2", "separable", "depthwise-separable", "squeezenet", "fire",
         "shufflenet", "shuffle", "xception", "effnet", "substitute", "replace-blocks"),
        "substitute-blocks",
    ),
    **dict.fromkeys(
        ("cluster", "clustering", "kmeans", "k-means", "codebook", "palettize", "palettization",
         "weight-sharing", "lut"),
        _CODEBOOK,
    ),
    **dict.fromkeys(
        ("fine-tune", "fine-tuning", "finetuning", "retrain", "retraining", "train", "training",
         "distill", "distillation", "kd", "qat", "recover"),
        "finetune",
    ),
    **dict.fromkeys(("binarize", "binary", "bnn", "xnor"), "binarize-weights"),
    **dict.fromkeys(("ternarize", "ternary", "twn"), "ternarize-weights"),
    **dict.fromkeys(
        ("optimize", "optimise", "optimizer", "optimization", "sim", "simplifier", "slim",
         "fold", "fuse", "graph-optimization", "onnxsim", "clean", "cleanup", "o1", "o2", "o3"),
        _SIMPLIFY,
    ),
    **dict.fromkeys(("constant-folding", "fold-constant"), "fold-constants"),
    **dict.fromkeys(
        ("fuse-bn", "fuse-conv-bn", "fuse-batchnorm", "bn-fusion", "fold-bn"), "fuse-affine"
    ),
    **dict.fromkeys(("dce", "dead-code", "dead-code-elimination"), "eliminate-dead"),
    **dict.fromkeys(("cse", "common-subexpressions"), "dedup-nodes"),
    **dict.fromkeys(("early-exit", "early-exits", "exit", "branchy", "branchynet"), "inject-exits"),
    **dict.fromkeys(
        ("opset", "upgrade", "version-convert", "convert-version", "upgrade-opset"), "raise-opset"
    ),
    **dict.fromkeys(("smallest", "tiny", "deepcompression"), "deep-compression"),
    **dict.fromkeys(("inline", "inlining"), "inline-functions"),
}  # fmt: skip
"""Word, in lower case with `-` -> a pipeline."""

COMMANDS: Final = {
    **dict.fromkeys(("info", "show", "summary", "stats", "print", "dump", "ls"), "inspect"),
    **dict.fromkeys(("search", "autotune", "optuna", "autocompress", "budget"), "tune"),
    **dict.fromkeys(("diff", "verify", "validate", "accuracy"), "compare"),
    **dict.fromkeys(
        ("benchmark", "profile", "time", "latency", "perf", "perf-test", "measure"), "bench"
    ),
    **dict.fromkeys(("zip", "archive"), "pack"),
    **dict.fromkeys(("unzip", "decompress", "extract", "restore"), "unpack"),
    **dict.fromkeys(("list", "list-passes", "pass", "passes-list", "options"), "passes"),
    **dict.fromkeys(("run", "convert", "reduce", "shrink", "minify"), "compress"),
    **dict.fromkeys(("sensitivities", "analyze", "analyse", "sweep"), "sensitivity"),
    **dict.fromkeys(("example", "tutorial", "try"), "demo"),
    "why": "explain",
}
"""Word, in lower case with `-` -> a command."""


def pipeline_for(word: str) -> str | None:
    """The pipeline that does what `word` means elsewhere; None for words that are not known."""
    return PIPELINES.get(_folded(word))


def command_for(word: str) -> str | None:
    """The command that does what `word` means elsewhere; None for words that are not known."""
    return COMMANDS.get(_folded(word))


def _folded(word: str) -> str:
    return word.lower().replace("_", "-").lstrip("-")
