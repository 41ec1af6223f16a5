"""Gemm nodes as MatMul and Add: what ONNX Runtime has four-bit kernels for."""

from typing import TYPE_CHECKING

import numpy as np

from pareflow.model.quantization.unread import drop_unread

if TYPE_CHECKING:
    import onnx


def gemm_as_matmul(model: "onnx.ModelProto") -> None:
    """Rewrite, in place, every Gemm that is x·W + b with a constant W."""
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    for gemm in [node for node in model.graph.node if node.op_type == "Gemm" and _plain(node)]:
        if gemm.input[1] in constants:
            _replace(model.graph, gemm, constants[gemm.input[1]])
    drop_unread(model.graph)


def _replace(graph: "onnx.GraphProto", gemm: "onnx.NodeProto", stored: "onnx.TensorProto") -> None:
    """MatMul, and Add where there is a bias, in the place of `gemm`; its weight with a column per output."""
    from onnx import helper, numpy_helper

    weight, bias = f"{gemm.output[0]}_weight", gemm.input[2:3]
    array = numpy_helper.to_array(stored)
    columns = np.ascontiguousarray(array.T) if _attribute(gemm, "transB", 0) else array
    graph.initializer.append(numpy_helper.from_array(columns, weight))
    product = f"{gemm.output[0]}_product" if bias else gemm.output[0]
    nodes = [helper.make_node("MatMul", [gemm.input[0], weight], [product], name=gemm.name)]
    if bias:
        nodes.append(helper.make_node("Add", [product, *bias], [gemm.output[0]]))
    position = list(graph.node).index(gemm)
    graph.node.remove(gemm)
    for offset, node in enumerate(nodes):
        graph.node.insert(position + offset, node)


def _plain(gemm: "onnx.NodeProto") -> bool:
    scaled = any(_attribute(gemm, name, 1) != 1 for name in ("alpha", "beta"))
    return not scaled and not _attribute(gemm, "transA", 0)


def _attribute(node: "onnx.NodeProto", name: str, default: float) -> float:
    from onnx import helper

    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else float(helper.get_attribute_value(found))
