"""Each self-attention as one operator."""

from typing import TYPE_CHECKING, ClassVar

from pareflow.errors import UnsuitableError
from pareflow.model.quantization.floats import check_floats
from pareflow.model.rewriting import WAY_OUT, check_same, rewritten
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx

DOMAIN, FUSED = "com.microsoft", "Attention"
"""ONNX Runtime's own operator."""


class AttentionFusion(Technique):
    """Three projections, their products and the softmax become ONNX Runtime's one operator `Attention`.

    Its own pass at load does not know the patterns that exporters write today. What it saves counts where
    texts are short and products are in int8: `dynamic_int8` after it quantizes the operator whole. Only ONNX
    Runtime runs it. Normalizations are left apart: merged with the sums before them they take three times
    as long on processors (measured: docs/log.md). The result is held to the graph it came from.
    Source: ONNX Runtime, Transformers Model Optimization Tool.
    """

    name: ClassVar[str] = "attention_fusion"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        check_floats(network, self.name)
        must = f"`{self.name}` needs a graph that ONNX Runtime's optimizer of transformers can read"
        fused = rewritten(network, _optimized, must)
        if not any((node.domain, node.op_type) == (DOMAIN, FUSED) for node in fused.graph.node):
            raise UnsuitableError(
                f"`{self.name}` needs a self-attention of a pattern that ONNX Runtime knows",
                "none was found",
                WAY_OUT,
            )
        if all(opset.domain != DOMAIN for opset in fused.opset_import):
            fused.opset_import.add(domain=DOMAIN, version=1)
        check_same(network, fused, workload, self.name)
        return fused


def _optimized(graph: "onnx.ModelProto") -> "onnx.ModelProto":
    """Attention alone: what else could be fused ONNX Runtime fuses at load. Padding may be at either side."""
    from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False
    options.enable_embed_layer_norm = options.enable_bias_gelu = False
    options.attention_mask_format = AttentionMaskFormat.AttentionMask
    made: onnx.ModelProto = optimize_model(graph, "bert", opt_level=0, optimization_options=options).model
    return made
