"""Floating point of eight bits."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pareflow import graph_file, large_graphs
from pareflow.hardware import accelerators
from pareflow.model.quantization.calibration import PRODUCTS, Samples, check_varied, feeds, layers
from pareflow.model.quantization.floats import check_floats
from pareflow.model.quantization.unread import drop_unread
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx

OPSET = 19
"""The first with fp8."""

HIGHEST = 448.0
"""The largest number of E4M3."""


class Fp8(Technique):
    """Store and compute products in E4M3 floats: Q/DQ nodes around them, one scale per tensor.

    For devices with fp8 units (NVIDIA from compute capability 8.9 on), by a runtime that fuses such nodes.
    Elsewhere the same graph rounds to fp8 and computes in fp32: its quality can be measured there, its speed
    cannot. Speed: not measured, no such device was at hand.
    Source: Micikevicius et al., 2022, arXiv:2209.05433, sections 3 and 4 (the largest magnitude becomes the
    format's). ReLU is written as Max: ONNX Runtime 1.32 drops a Relu in front of an fp8 QuantizeLinear as if
    that were unsigned (on the digits 0.22 right instead of 0.98, at graph levels above basic).
    """

    name: ClassVar[str] = "fp8"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "ml_dtypes")

    samples: Samples = None

    def unfit(self) -> str | None:
        found = accelerators.device()
        if found is not None and "float8" in found.precisions:
            return None
        return "no device here has fp8 units, so that int8 is as small and faster"

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        from onnx import version_converter

        large_graphs.check_one_protobuf(network, self.name)
        check_floats(network, self.name)
        layers(network)
        samples = feeds(workload, self.samples, graph_file.ports(network))
        changed: onnx.ModelProto = version_converter.convert_version(network, OPSET)
        changed.ir_version = max(changed.ir_version, 9)
        largest = {
            name: max(abs(low), abs(high)) for name, (low, high) in check_varied(changed, samples).items()
        }
        constants = {weight.name: weight for weight in changed.graph.initializer}
        rounded = dict[str, str]()
        for node in [node for node in changed.graph.node if node.op_type in PRODUCTS]:
            for place, name in enumerate(node.input[:2]):
                if name not in rounded:
                    rounded[name] = _round(
                        changed.graph, name, constants.get(name), largest.get(name, 0), node
                    )
                node.input[place] = rounded[name]
        drop_unread(changed.graph)
        _relu_as_max(changed.graph)
        return changed


def _relu_as_max(graph: "onnx.GraphProto") -> None:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "relu_zero"))
    for node in graph.node:
        if node.op_type == "Relu":
            node.op_type = "Max"
            node.input.append("relu_zero")


def _round(
    graph: "onnx.GraphProto",
    name: str,
    weight: "onnx.TensorProto | None",
    largest: float,
    before: "onnx.NodeProto",
) -> str:
    """Put Q and DQ on an activation, or DQ on a stored weight, before a node; the name of what results."""
    import ml_dtypes
    from onnx import helper, numpy_helper

    array = None if weight is None else numpy_helper.to_array(weight)
    scale = np.float32((np.abs(array).max() if array is not None else largest) / HIGHEST)
    stored = {f"{name}_scale": scale, f"{name}_zero": np.zeros((), ml_dtypes.float8_e4m3fn)}
    nodes = []
    if array is not None:
        stored[f"{name}_fp8"] = (array / scale).astype(ml_dtypes.float8_e4m3fn)
    else:
        nodes.append(
            helper.make_node("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_fp8"])
        )
    inputs = [f"{name}_fp8", f"{name}_scale", f"{name}_zero"]
    nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_rounded"]))
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), key) for key, a in stored.items())
    position = list(graph.node).index(before)
    for offset, node in enumerate(nodes):
        graph.node.insert(position + offset, node)
    return f"{name}_rounded"
