"""ONNX graphs of more weights than a protobuf holds: saved with these beside, and read from there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pareflow import graph_file
from pareflow.errors import UnsuitableError

if TYPE_CHECKING:
    import onnx

LARGE_BYTES = 2**30
"""Of an ONNX graph's weights: more lie in a file beside it, since a protobuf holds 2 GiB."""
SMALL_BYTES = 2**10
"""Of a weight: one of fewer stays in the graph where others lie beside it."""


def weight_bytes(model: "onnx.ModelProto") -> int:
    """What the weights of a graph take that could lie beside it."""
    return sum(len(weight.raw_data) for weight in graph_file.weights(model.graph))


def is_large(model: "onnx.ModelProto") -> bool:
    """Whether its weights lie beside it where it is saved."""
    return weight_bytes(model) > LARGE_BYTES


def save(model: "onnx.ModelProto", path: Path) -> None:
    """Write a graph, a large one in two files; in memory it stays as it is."""
    import onnx

    if not is_large(model):
        onnx.save_model(model, path)
        return
    save_beside(model, path)
    onnx.load_external_data_for_model(model, str(path.parent))


def save_beside(model: "onnx.ModelProto", path: Path) -> None:
    """Write a graph, and its weights into one file of its name beside it. It loses them in memory.

    onnx by itself refuses where the *working directory* has a file of that name (1.23.2).
    """
    import onnx
    from onnx.external_data_helper import set_external_data

    for weight in graph_file.weights(model.graph):
        if len(weight.raw_data) >= SMALL_BYTES:
            set_external_data(weight, f"{path.name}.data")
    onnx.save_model(model, path)


@contextmanager
def openable(model: "onnx.ModelProto") -> Iterator[Path | bytes]:
    """What ONNX Runtime makes a session from: the graph's bytes; of a large one a file, while inside."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="pareflow-") as folder:
        path = Path(folder) / "graph.onnx"
        save(model, path)
        yield path


def inferred(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with the shapes that onnx infers; a large one without its weights."""
    import onnx

    if not is_large(model):
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    with openable(model) as path:
        assert isinstance(path, Path)  # it is large
        onnx.shape_inference.infer_shapes_path(path, data_prop=True)
        return onnx.load_model(path, load_external_data=False)


def check_one_protobuf(model: "onnx.ModelProto", technique: str) -> None:
    """For what reads a graph in one piece. Raises: UnsuitableError where it is too large for that."""
    found = weight_bytes(model)
    if found > graph_file.LARGEST_BYTES:
        raise UnsuitableError(
            f"`{technique}` takes graphs of 2 GiB at most: it reads them as one protobuf",
            f"this one's weights take {found / 2**30:.1f} GiB",
            "Take static_int8, dynamic_int8 or fp16, which read weights beside the graph",
        )
