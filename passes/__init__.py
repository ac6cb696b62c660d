"""All built-in passes: name -> `module:Class` in this package, imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping

from onnxslim.callable_package import make_callable

PASSES: Mapping[str, str] = {
    "binarize-weights": "binarize_weights:BinarizeWeights",
    "cluster-weights": "cluster_weights:ClusterWeights",
    "compress-weights": "compress_weights:CompressWeights",
    "convert-fp16": "convert_fp16:ConvertFp16",
    "convert-residual-sums": "convert_residual_sums:ConvertResidualSums",
    "dedup-constants": "dedup_constants:DedupConstants",
    "dedup-nodes": "dedup_nodes:DedupNodes",
    "deep-compression": "deep_compression:DeepCompression",
    "eliminate-dead": "eliminate_dead:EliminateDead",
    "eliminate-identity": "eliminate_identity:EliminateIdentity",
    "factorize-conv": "factorize_conv:FactorizeConv",
    "factorize-dense": "factorize_dense:FactorizeDense",
    "finetune": "finetune:Finetune",
    "fold-constants": "fold_constants:FoldConstants",
    "fold-if": "fold_if:FoldIf",
    "fold-shapes": "fold_shapes:FoldShapes",
    "fuse-activations": "fuse_activations:FuseActivations",
    "fuse-affine": "fuse_affine:FuseAffine",
    "fuse-attention": "fuse_attention:FuseAttention",
    "fuse-casts": "fuse_casts:FuseCasts",
    "fuse-concats": "fuse_concats:FuseConcats",
    "fuse-matmul-add": "fuse_matmul_add:FuseMatmulAdd",
    "fuse-pad": "fuse_pad:FusePad",
    "fuse-products": "fuse_products:FuseProducts",
    "fuse-quantization": "fuse_quantization:FuseQuantization",
    "fuse-reductions": "fuse_reductions:FuseReductions",
    "fuse-reshapes": "fuse_reshapes:FuseReshapes",
    "fuse-rotary": "fuse_rotary:FuseRotary",
    "fuse-slices": "fuse_slices:FuseSlices",
    "fuse-transposes": "fuse_transposes:FuseTransposes",
    "inject-exits": "inject_exits:InjectExits",
    "inline-functions": "inline_functions:InlineFunctions",
    "prune-blocks": "prune_blocks:PruneBlocks",
    "prune-channels": "prune_channels:PruneChannels",
    "prune-residual-stream": "prune_residual_stream:PruneResidualStream",
    "prune-vocabulary": "prune_vocabulary:PruneVocabulary",
    "prune-weights": "prune_weights:PruneWeights",
    "quantize-fixed-point": "quantize_fixed_point:QuantizeFixedPoint",
    "quantize-int8": "quantize_int8:QuantizeInt8",
    "quantize-power-of-two": "quantize_power_of_two:QuantizePowerOfTwo",
    "quantize-weights": "quantize_weights:QuantizeWeights",
    "raise-opset": "raise_opset:RaiseOpset",
    "retarget": "retarget:Retarget",
    "simplify": "simplify:Simplify",
    "strip-metadata": "strip_metadata:StripMetadata",
    "substitute-blocks": "substitute_blocks:SubstituteBlocks",
    "ternarize-weights": "ternarize_weights:TernarizeWeights",
}

make_callable(__name__)
