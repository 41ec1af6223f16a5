"""What one request of a network costs, computed from its ONNX graph: weights, activations, operations."""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from pareflow import large_graphs
from pareflow.hardware.budget import NetworkFacts
from pareflow.hardware.device_profile import Precision
from pareflow.measuring.liveness import Node, dependent, peak_bytes
from pareflow.measuring.work import flops
from pareflow.workload import Arrays

if TYPE_CHECKING:
    import onnx

INTEGER = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "QAttention"}
Tensors = Mapping[str, tuple[tuple[int, ...], int]]
"""Shape and element type by name."""


def network_facts(model: "onnx.ModelProto", feeds: Arrays) -> NetworkFacts:
    """The facts of a graph that takes these inputs: of one request of their batch size.

    Shapes come from shape inference, and where it gives none from running the graph once. Subgraphs (`If`,
    `Loop`) are not looked into: what they need comes on top. Operators of other domains carry their domain.
    """
    found, graph = tensors(model, feeds), model.graph
    return NetworkFacts(
        weight_bytes=sum(_bytes(tuple(w.dims), w.data_type) for w in graph.initializer),
        activation_bytes=_activations(graph, found).planned_bytes,
        operations=_operations(graph, found, _weights(graph)),
        operators=tuple(sorted({called(node) for node in graph.node})),
    )


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of one request's activations: with memory used again, at least, and each in a place of its own.

    None where the size of one is not known.
    """

    planned_bytes: int | None
    separate_bytes: int | None


def activations(model: "onnx.ModelProto", feeds: Arrays) -> Activations:
    """What the activations of a graph take for these inputs."""
    return _activations(model.graph, tensors(model, feeds))


def _activations(graph: "onnx.GraphProto", found: Tensors) -> Activations:
    sizes = {name: _bytes(shape, kind) for name, (shape, kind) in found.items()}
    nodes = [Node(n.op_type, tuple(n.input), tuple(n.output)) for n in graph.node if n.op_type != "Constant"]
    weights = _weights(graph)
    inputs = [value.name for value in graph.input if value.name not in weights]
    each = [sizes.get(name) for name in dependent(nodes, inputs)]
    known = [size for size in each if size is not None]
    return Activations(
        peak_bytes(nodes, sizes, inputs, [value.name for value in graph.output]),
        sum(known) if len(known) == len(each) else None,
    )


def _weights(graph: "onnx.GraphProto") -> set[str]:
    """The names of all that is constant."""
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    return {weight.name for weight in graph.initializer} | constants


def tensors(model: "onnx.ModelProto", feeds: Arrays) -> Tensors:
    """Shape and element type of every tensor, by inference for these inputs, then by one run."""
    fixed = copy.deepcopy(model)
    for value in fixed.graph.input:
        if value.name in feeds:
            dimensions = value.type.tensor_type.shape.dim
            for dimension, size in zip(dimensions, feeds[value.name].shape, strict=True):
                dimension.dim_value = size
    del fixed.graph.value_info[:]  # of other shapes, maybe
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = large_graphs.inferred(fixed)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    found = {weight.name: (tuple(weight.dims), weight.data_type) for weight in model.graph.initializer}
    found |= {value.name: known for value in values if (known := _known(value)) is not None}
    absent = [n for node in model.graph.node for n in node.output if n and n not in found]
    return {**found, **_observed(fixed, feeds, absent)} if absent else found


def _observed(model: "onnx.ModelProto", feeds: Arrays, names: list[str]) -> dict[str, Any]:
    """Shape and element type of these tensors, from running the graph once, as it is."""
    import onnx
    import onnxruntime

    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    with large_graphs.openable(model) as graph:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    taken = {node.name for node in session.get_inputs()}
    arrays = session.run(names, {name: array for name, array in feeds.items() if name in taken})
    return {
        name: (array.shape, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in zip(names, arrays, strict=True)
    }


def _known(value: "onnx.ValueInfoProto") -> tuple[tuple[int, ...], int] | None:
    """Shape and element type, where every dimension is a number."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim), tensor.elem_type


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    import onnx

    narrow = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1)
    if kind in narrow:
        return ceil(prod(shape) / 2)
    return prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _operations(graph: "onnx.GraphProto", found: Tensors, weights: set[str]) -> dict[Precision, int]:
    """Multiplications and additions of matrix operators by the precision that they run in."""
    makers = {name: node for node in graph.node for name in node.output}
    counted: Counter[Precision] = Counter()
    for node in graph.node:
        shapes = [found[name][0] for name in node.input if name in found]
        outputs = [found[name][0] for name in node.output if name in found]
        count = flops(node.op_type, shapes, outputs)
        if count:
            counted[_precision(node, makers, found, weights)] += count
    return dict(counted)


def _precision(
    node: "onnx.NodeProto", makers: Mapping[str, "onnx.NodeProto"], found: Tensors, weights: set[str]
) -> Precision:
    """What a matrix operator computes in: bytes where both of its factors come from bytes.

    Weights of bytes alone are widened before they are multiplied.
    """
    import onnx

    if node.op_type in INTEGER:
        return "int8"
    factors = [makers.get(name) for name in node.input[:2]]
    quantized = [maker is not None and maker.op_type == "DequantizeLinear" for maker in factors]
    if (
        len(factors) == 2
        and all(quantized)
        and any(m is not None and m.input[0] not in weights for m in factors)
    ):
        return "int8"
    kinds: dict[int, Precision] = {
        onnx.TensorProto.FLOAT16: "float16",
        onnx.TensorProto.BFLOAT16: "bfloat16",
    }
    return kinds.get(found[node.output[0]][1], "float32") if node.output[0] in found else "float32"


def called(node: "onnx.NodeProto") -> str:
    """A node's operator; one of another domain than ONNX's carries it."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
