"""A ready-made network, such as another tool or a colleague made, judged like any other variant."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow import graph_file, graph_surgery
from pareflow.errors import ExportError, InputError
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx

_SHAPING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class Given(Technique):
    """Put one of the workload's `given()` networks in the original's place.

    Where it takes or gives integers and the original floats, as whole-integer networks from TensorFlow Lite
    do, a QuantizeLinear with the network's own scale goes in front, and a DequantizeLinear behind.
    It may take scales of a whole batch as it comes: quality is evaluated in batches of the SLA's size.
    Source: whoever made the network; the scales' meaning: Jacob et al., 2018, arXiv:1712.05877, section 2.1.
    """

    name: ClassVar[str] = "given"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnx",)

    network: str = Field(min_length=1, description="its name in `given()`", examples=["simple"])

    @property
    def mixes_samples(self) -> bool:
        return True

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        import onnx

        known = workload.definition.given()
        if self.network not in known:
            raise InputError(
                "`given` must name a network of the workload's `given()`",
                f"there is no `{self.network}`",
                f"Known are {', '.join(known) or 'none'}",
            )
        ours = workload.definition.arranged(graph_file.read(known[self.network]))
        for theirs, port in zip(network.graph.input, list(ours.graph.input), strict=True):
            if _kind(port) != _kind(theirs):
                _quantize_input(ours, port, theirs)
        for theirs, port in zip(network.graph.output, list(ours.graph.output), strict=True):
            if _kind(port) != _kind(theirs):
                _dequantize_output(ours, port, theirs)
        onnx.checker.check_model(ours)
        return ours


def _kind(port: "onnx.ValueInfoProto") -> int:
    """The element type of an input or output, as ONNX numbers them."""
    return int(port.type.tensor_type.elem_type)


def _quantize_input(
    model: "onnx.ModelProto", port: "onnx.ValueInfoProto", like: "onnx.ValueInfoProto"
) -> None:
    """Let the input take floats: quantized by the scale that its DequantizeLinear undoes."""
    import onnx

    scale = _scale(model, "DequantizeLinear", port.name)
    inner = f"{port.name}_quantized"
    graph_surgery.rename(model, port.name, inner)
    model.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", [port.name, *scale], [inner]))
    port.type.tensor_type.elem_type = _kind(like)


def _dequantize_output(
    model: "onnx.ModelProto", port: "onnx.ValueInfoProto", like: "onnx.ValueInfoProto"
) -> None:
    """Let the output give floats: by the scale of the QuantizeLinear that made it."""
    import onnx

    scale = _scale(model, "QuantizeLinear", port.name)
    inner = f"{port.name}_quantized"
    graph_surgery.rename(model, port.name, inner)
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", [inner, *scale], [port.name]))
    port.type.tensor_type.elem_type = _kind(like)


def _scale(model: "onnx.ModelProto", kind: str, port: str) -> list[str]:
    """The names of scale and zero point at the edge of the graph, behind what only shapes.

    Raises: ExportError where the edge is of another kind.
    """
    name, node = port, None
    while node is None or node.op_type in _SHAPING:
        if kind == "DequantizeLinear":
            node = next((n for n in model.graph.node if n.input and n.input[0] == name), None)
            name = node.output[0] if node is not None else ""
        else:
            node = next((n for n in model.graph.node if name in n.output), None)
            name = node.input[0] if node is not None else ""
        if node is None:
            break
    if node is None or node.op_type != kind:
        raise ExportError(
            f"a network with integer inputs or outputs must have a {kind} there, which tells their scale",
            f"`{port}` meets {node.op_type if node is not None else 'nothing'}",
            "Export it with Q/DQ nodes, or with float inputs and outputs",
        )
    return list(node.input[1:3])
