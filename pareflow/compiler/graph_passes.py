"""The graph optimizations of ONNX Runtime, by what they do.

Its own names, as `disabled_optimizers` takes them (1.32 writes each to its log when it runs).
"""

from typing import Literal

Pass = Literal["fusion", "skip_layer_norm", "folding", "elimination", "layout", "planning"]

PASSES: dict[Pass, tuple[str, ...]] = {
    "fusion": (
        "AttentionFusion",
        "BiasDropoutFusion",
        "BiasGeluFusion",
        "BiasSoftmaxFusion",
        "ConvActivationFusion",
        "ConvAddActivationFusion",
        "ConvAddFusion",
        "ConvBNFusion",
        "ConvMulFusion",
        "DQMatMulNBitsFusion",
        "DivMulFusion",
        "DynamicQuantizeMatMulFusion",
        "EmbedLayerNormFusion",
        "FastGeluFusion",
        "FuseFp16InitializerToFp32NodeTransformer",
        "GatherSliceToSplitFusion",
        "GatherToSliceFusion",
        "GeluFusionL1",
        "GeluFusionL2",
        "GemmActivationFusion",
        "GemmSumFusion",
        "GemmTransposeFusion",
        "GroupQueryAttentionFusion",
        "GroupQueryAttentionPreNormFusion",
        "LabelEncoderFusion",
        "LayerNormFusionL1",
        "LayerNormFusionL2",
        "MatMulActivationFusion",
        "MatMulAddFusion",
        "MatMulIntegerToFloatFusion",
        "MatMulNBitsFusion",
        "MatMulScaleFusion",
        "MatMul_BatchNormalization_Fusion",
        "MatmulTransposeFusion",
        "NotWhereFusion",
        "Pad_Fusion",
        "QuickGeluFusion",
        "ReshapeFusion",
        "SimplifiedLayerNormFusion",
        "SliceConcatToSpaceToDepthFusion",
        "SwiGluFusion",
    ),
    "skip_layer_norm": ("BiasSkipLayerNormFusion", "SkipLayerNormFusion"),
    "folding": ("ConstantFolding", "ConstantSharing"),
    "elimination": (
        "CastChainElimination",
        "CastElimination",
        "CommonSubexpressionElimination",
        "EliminateDropout",
        "EliminateIdentity",
        "EliminateSlice",
        "ExpandElimination",
        "NoopElimination",
        "PreShapeNodeElimination",
        "UnsqueezeElimination",
    ),
    "layout": (
        "NchwcTransformer",
        "NhwcTransformer",
        "TransposeOptimizer",
        "TransposeOptimizer_CPUExecutionProvider",
    ),
    "planning": (),  # no graph pass: the session plans memory
}

NEEDED = (
    "Avx2WeightS8ToU8Transformer",
    "CastFloat16Transformer",
    "DoubleQDQPairsRemover",
    "EnsureUniqueDQForNodeUnit",
    "FreeDimensionOverrideTransformer",
    "GqaValueLayoutTransformer",
    "InsertCastTransformer",
    "Level1_RuleBasedTransformer",
    "Level2_RuleBasedTransformer",
    "MemcpyTransformer",
    "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "RemoveDuplicateCastTransformer",
    "WeightBiasQuantization",
    "WhereDummyDq",
)
"""What no switch turns off: how quantized graphs reach integer kernels, and what makes a graph run at all."""


def switched_off(passes: tuple[Pass, ...]) -> list[str]:
    """ONNX Runtime's names of these passes."""
    return [name for each in passes for name in PASSES[each]]
