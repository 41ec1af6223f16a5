"""Where fake quantizers go, so that ONNX Runtime runs int8 kernels between them. Imported where QAT begins.

Its QLinearConv needs quantized inputs, weights and outputs; its MatMul and Gemm can give floats.
"""

from typing import ClassVar

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

_KEY = "quantization_annotation"
aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding)
"""Those called `padding` are told "same" or "valid"."""
LINEAR = aten.linear.default
_EMBEDDING = aten.embedding.default
_RELUS = (aten.relu.default, aten.relu_.default)
_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_PASSING = (aten.max_pool2d.default, aten.flatten.using_ints)
"""What gives some of the numbers that it takes, so that they keep their scale."""


class Int8Placement(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """Activations u8 with one scale, weights s8 with one scale per output channel.

    Convolutions with the ReLU behind them, sums of what is quantized, linear layers (which give floats), and
    embedding tables (u8, one scale); all else stays float.
    """

    activation: ClassVar[QuantizationSpec] = QuantizationSpec(
        torch.uint8,
        FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
    )
    weight: ClassVar[QuantizationSpec] = QuantizationSpec(
        torch.int8,
        FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
        ),
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.target is LINEAR:
                _take(node, {node.args[0]: self.activation, node.args[1]: self.weight})
            elif node.target in CONVOLUTIONS:
                _take(node, {node.args[0]: self.activation, node.args[1]: self.weight})
                _give(_end(node), self.activation)
            elif node.target is _EMBEDDING or (node.target in _PASSING and _quantized(node.args[0])):
                _take(node, {node.args[0]: self.activation})
                _give(node, SharedQuantizationSpec((node.args[0], node)))
            elif node.target in _SUMS and all(map(_quantized, node.args)):
                _take(node, dict.fromkeys(node.args, self.activation))
                _give(_end(node), self.activation)
        return model

    def validate(self, model: GraphModule) -> None:
        """There is nothing that one graph could break and another not."""


def _annotation(node: Node) -> QuantizationAnnotation:
    annotation: QuantizationAnnotation = node.meta.setdefault(_KEY, QuantizationAnnotation(_annotated=True))
    return annotation


def _take(node: Node, inputs: dict[Node, QuantizationSpec]) -> None:
    _annotation(node).input_qspec_map = inputs


def _give(node: Node, output: QuantizationSpec) -> None:
    _annotation(node).output_qspec = output


def _quantized(value: object) -> bool:
    """Whether it is the output of a node that gives quantized numbers."""
    return isinstance(value, Node) and _KEY in value.meta and value.meta[_KEY].output_qspec is not None


def _end(node: Node) -> Node:
    """The ReLU that alone reads the node, or the node itself."""
    (reader, *others) = node.users
    return reader if reader.target in _RELUS and not others else node
