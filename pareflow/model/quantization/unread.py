"""Weights that a rewritten graph needs no more."""

from typing import TYPE_CHECKING

from pareflow import graph_file

if TYPE_CHECKING:
    import onnx


def drop_unread(graph: "onnx.GraphProto") -> None:
    """Take out, in place, the initializers that are no output, and that no node or branch reads."""
    read = {name for node in graph_file.nodes(graph) for name in node.input}
    read |= {output.name for output in graph.output}
    for initializer in [i for i in graph.initializer if i.name not in read]:
        graph.initializer.remove(initializer)
