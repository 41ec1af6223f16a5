"""What quantizing needs: a network that still computes with floats."""

from typing import TYPE_CHECKING

from pareflow import graph_file
from pareflow.errors import UnsuitableError

if TYPE_CHECKING:
    import onnx
    import openvino


def check_floats(model: "onnx.ModelProto", technique: str) -> None:
    """Raises: UnsuitableError where the graph is quantized already: its scales are whoever chose them's."""
    found = graph_file.quantized(model.graph)
    if found is not None:
        raise _quantized_already(technique, graph_file.called(found))


def check_openvino_floats(model: "openvino.Model", technique: str) -> None:
    """As `check_floats`, of an OpenVINO model: quantizers, or weights that are unpacked from integers."""
    for node in model.get_ordered_ops():
        narrow = node.get_type_name() == "Constant" and node.get_element_type().to_string() in _NARROW
        if node.get_type_name() == "FakeQuantize" or (narrow and len(node.shape) > 1):
            raise _quantized_already(technique, f"{node.get_type_name()} `{node.get_friendly_name()}`")


_NARROW = ("i8", "u8", "i4", "u4")


def _quantized_already(technique: str, found: str) -> UnsuitableError:
    return UnsuitableError(
        f"`{technique}` needs a network that computes with floats",
        f"this one is quantized already: {found}",
        "Run it as it is, or quantize the float network that it was made from",
    )
