"""An ONNX graph whose weights are packed: written with the package onnx, read with numpy alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pareflow.compiler import packing

if TYPE_CHECKING:
    import onnx

FILE = "model.packed"
LEAST_BYTES = 256
"""Smaller arrays stay in the graph, which is compressed as a whole."""


def write(source: Path, path: Path) -> None:
    """Pack the ONNX file `source`."""
    import onnx

    model = onnx.load_model(source)
    arrays = _taken_out(model)
    path.write_bytes(packing.pack(arrays, model.SerializeToString(deterministic=True)))


def read(path: Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """The graph of a packed file, and the arrays that it lacks, by name."""
    arrays, graph = packing.unpack(path.read_bytes())
    return graph, arrays


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
