"""Whether a graph that was rewritten answers real inputs as before."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pareflow import comparison, network
from pareflow.errors import UnsuitableError
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


def check_same(before: "onnx.ModelProto", after: "onnx.ModelProto", workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError where two graphs answer real inputs otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name, graph in (("before", before), ("after", after)):
            (into := Path(folder) / name).mkdir()
            network.save(graph, "onnx", into)
            runs.append(network.runner(into))
        source, made = runs
        found = comparison.mismatch(source, made, comparison.real_inputs(workload))
    if found:
        raise UnsuitableError(
            f"a rewritten graph must agree with its source within {comparison.TOLERANCE:g}",
            found,
            "Leave this technique out",
        )
