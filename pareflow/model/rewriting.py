"""A graph that another tool rewrites, held to the one that it came from."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pareflow import comparison, network
from pareflow.errors import UnsuitableError
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx

WAY_OUT = "Leave this technique out"


def rewritten(
    graph: "onnx.ModelProto", rewrite: "Callable[[onnx.ModelProto], onnx.ModelProto]", must: str
) -> "onnx.ModelProto":
    """What a tool makes of a copy. Raises: UnsuitableError, with what the tool `must` be able to do."""
    try:
        return rewrite(copy.deepcopy(graph))
    except Exception as error:
        found = f"it raised {type(error).__name__}: {comparison.first_line(error)}"
        raise UnsuitableError(must, found, WAY_OUT) from error


def check_same(
    before: "onnx.ModelProto", after: "onnx.ModelProto", workload: LoadedWorkload, technique: str
) -> None:
    """Raises: UnsuitableError, which names the technique, where two graphs answer real inputs otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name, graph in (("before", before), ("after", after)):
            (into := Path(folder) / name).mkdir()
            network.save(graph, "onnx", into)
            runs.append(network.runner(into))
        source, made = runs
        found = comparison.mismatch(source, made, comparison.real_inputs(workload))
    if found:
        must = f"`{technique}` must give a graph that agrees with its source within {comparison.TOLERANCE:g}"
        raise UnsuitableError(must, found, WAY_OUT)
