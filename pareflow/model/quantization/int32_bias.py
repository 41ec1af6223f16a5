"""Biases of quantized layers in int32, without which ONNX Runtime's QGemm does not run."""

from typing import TYPE_CHECKING

import numpy as np

from pareflow.model.quantization.unread import drop_unread

if TYPE_CHECKING:
    import onnx


def biases_as_int32(model: "onnx.ModelProto") -> None:
    """Store, in place, each bias of a quantized Conv or Gemm as an integer of the product's own scale.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 2.4, equation 11.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {initializer.name: initializer for initializer in graph.initializer}
    scales = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in [n for n in graph.node if n.op_type in ("Conv", "Gemm") and len(n.input) > 2]:
        parts = [scales.get(node.input[0]), scales.get(node.input[1]), node.input[2]]
        if any(part not in constants for part in parts):
            continue
        ours, theirs, bias = (numpy_helper.to_array(constants[str(part)]) for part in parts)
        name, product = (
            f"{node.output[0]}_bias",
            np.broadcast_to(ours * theirs.astype(np.float64), bias.shape),
        )
        steps = np.rint(bias / product)
        stored = {
            f"{name}_int32": steps.clip(-(2**31), 2**31 - 1).astype(np.int32),
            f"{name}_scale": product.astype(np.float32),
            f"{name}_zero": np.zeros(bias.shape, np.int32),
        }
        graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in stored.items())
        dequantize = helper.make_node("DequantizeLinear", list(stored), [name], axis=0)
        graph.node.insert(list(graph.node).index(node), dequantize)
        node.input[2] = name
    drop_unread(graph)
