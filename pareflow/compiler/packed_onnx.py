"""An ONNX graph whose weights are packed: written with the package onnx, read with numpy alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pareflow.compiler import packing
from pareflow.errors import StepFailedError

if TYPE_CHECKING:
    import onnx

FILE = "model.packed"
LEAST_BYTES = 256
"""Smaller arrays stay in the graph, which is compressed as a whole."""


def write(source: Path, path: Path) -> None:
    """Pack the ONNX file `source`, read the result back, and compare bit for bit."""
    import onnx

    model = onnx.load_model(source)
    arrays = _taken_out(model)
    graph = model.SerializeToString(deterministic=True)
    content = packing.pack(arrays, graph)
    check(arrays, graph, content)
    path.write_bytes(content)


def read(path: Path, options: Any) -> tuple[bytes, list[Any]]:
    """The graph of a packed file, and its weights, which the session options are told of.

    ONNX Runtime reads the weights where they lie: they must outlive the session.
    """
    import onnxruntime

    arrays, graph = packing.unpack(path.read_bytes())
    weights = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), weights)
    return graph, weights


def check(arrays: Mapping[str, np.ndarray], rest: bytes, content: bytes) -> None:
    """Raises: StepFailedError unless `content` unpacks to just these bits."""
    found, other = packing.unpack(content)
    wrong = [name for name, array in arrays.items() if found[name].tobytes() != array.tobytes()]
    if wrong or other != rest:
        raise StepFailedError(
            "packed weights must come back bit for bit",
            f"{', '.join(wrong) or 'the graph'} did not",
            "Report it, and leave out `packed`",
        )


def _taken_out(model: "onnx.ModelProto") -> dict[str, np.ndarray]:
    """The graph's large arrays; in their place it keeps a note that they lie elsewhere."""
    import onnx
    from onnx import numpy_helper

    arrays = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes < LEAST_BYTES or array.dtype.kind not in "biuf":
            continue
        arrays[tensor.name] = array
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        bare.data_location = onnx.TensorProto.EXTERNAL
        bare.external_data.add(key="location", value=FILE)
        tensor.CopyFrom(bare)
    return arrays
