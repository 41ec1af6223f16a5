"""An ONNX graph changed at its edge: axes moved, inputs made constant, names changed. All of it in place."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pareflow import graph_file
from pareflow.errors import WorkloadError

if TYPE_CHECKING:
    import onnx


def rename(model: "onnx.ModelProto", port: str, inner: str) -> None:
    """Every node that reads or writes `port` uses `inner`, those of subgraphs too; the graph's ports stay."""
    for node in graph_file.nodes(model.graph):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == port:
                    names[i] = inner


def batch_first(model: "onnx.ModelProto", port: str, axis: int) -> None:
    """Let the input or output `port` have its batch first, where the graph has it at `axis`.

    Raises: WorkloadError where there is no such port or axis.
    """
    from onnx import helper

    value, is_input = _port(model, port)
    sizes = value.type.tensor_type.shape
    rank = len(sizes.dim)
    if not 0 <= axis < rank:
        raise WorkloadError(
            f"the batch of `{port}` must lie at one of its axes, 0 to {rank - 1}",
            f"`batch_axes` says {axis}",
            "Mend the YAML",
        )
    to_front = [axis, *(i for i in range(rank) if i != axis)]
    back = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
    inner = f"{port}_batch_at_{axis}"
    rename(model, port, inner)
    if is_input:
        model.graph.node.insert(0, helper.make_node("Transpose", [port], [inner], perm=back))
    else:
        model.graph.node.append(helper.make_node("Transpose", [inner], [port], perm=to_front))
    moved = [type(sizes.dim[0]).FromString(sizes.dim[i].SerializeToString()) for i in to_front]
    del sizes.dim[:]
    sizes.dim.extend(moved)


def constant(model: "onnx.ModelProto", port: str, value: Any) -> None:
    """Give the input `port` this value once for all, as the graph's kind of number, in the graph's shape.

    Raises: WorkloadError where there is no such input, or the value has not its shape.
    """
    from onnx import helper, numpy_helper

    given, _ = _port(model, port, inputs_only=True)
    kind = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    sizes = [dim.dim_value or -1 for dim in given.type.tensor_type.shape.dim]
    try:
        array = np.asarray(value, kind).reshape(sizes)
    except ValueError as error:
        raise WorkloadError(
            f"the constant of the input `{port}` must have its shape {tuple(sizes)}",
            f"it is {value}",
            "Mend `constants` in the YAML",
        ) from error
    model.graph.initializer.append(numpy_helper.from_array(array, port))
    model.graph.input.remove(given)


def _port(
    model: "onnx.ModelProto", name: str, inputs_only: bool = False
) -> "tuple[onnx.ValueInfoProto, bool]":
    """The input or output of this name, and whether it is an input. Raises: WorkloadError."""
    known = [(port, True) for port in model.graph.input]
    known += [] if inputs_only else [(port, False) for port in model.graph.output]
    for port, is_input in known:
        if port.name == name:
            return port, is_input
    raise WorkloadError(
        f"the YAML must name {'inputs' if inputs_only else 'inputs or outputs'} of the graph",
        f"there is no `{name}`",
        f"It has {', '.join(f'`{port.name}`' for port, _ in known)}",
    )
