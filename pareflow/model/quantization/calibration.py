"""Calibration data for techniques that look at activations: enough of it, and not all the same."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from pareflow import large_graphs
from pareflow.errors import UnsuitableError
from pareflow.ports import Ports, pieces
from pareflow.workload import Arrays, LoadedWorkload

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that multiply by weights: layers, as these techniques see them."""

MOST = 128

Samples = Annotated[
    int | None,
    Field(ge=1, description=f"how many calibration samples are looked at; all, at most {MOST}, by default"),
]


def count(workload: LoadedWorkload, asked: int | None) -> int:
    """How many calibration samples to look at. Raises: UnsuitableError where there are fewer than asked."""
    found = len(workload.split("calibration"))
    if asked is not None and found < asked:
        raise UnsuitableError(
            f"`calibration` must hold the {asked} samples that `samples` asks for",
            f"it holds {found}",
            "Lower `samples`, or cut a larger `calibration` split in `data()`",
        )
    return min(MOST if asked is None else asked, found)


def feeds(workload: LoadedWorkload, asked: int | None, ports: Ports) -> list[Arrays]:
    """One feed per calibration sample, of the graph's inputs; or per batch of the size that it is fixed to.

    They are preprocessed as one batch, so that texts have one length: histograms need equal shapes.
    Raises: UnsuitableError.
    """
    samples = count(workload, asked)
    batch = next(workload.feeds("calibration", samples, samples))
    return list(pieces({port.name: batch[port.name] for port in ports.ports}, ports.batch_size or 1))


def check_inputs_varied(feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """For tools that do not show their activations. Raises: UnsuitableError where all inputs are constant."""
    values = {name: np.unique(np.concatenate([feed[name].ravel() for feed in feeds])) for name in feeds[0]}
    if all(len(found) == 1 for found in values.values()):
        constants = ", ".join(f"`{name}` is {found[0]:g}" for name, found in values.items())
        raise UnsuitableError(
            "calibration samples must show the network a range of numbers",
            f"{constants} in all of {_samples(feeds)}",
            "Give `calibration` samples that differ, as real ones do",
        )


def check_varied(
    model: "onnx.ModelProto", feeds: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, tuple[float, float]]:
    """The lowest and the highest number of each activation that enters a layer.

    Raises: UnsuitableError where a layer sees one and the same number in every sample.
    """
    import onnxruntime

    seen = _layer_inputs(model)
    watched = copy.deepcopy(model)
    outputs = {output.name for output in model.graph.output}
    watched.graph.output.extend(
        type(model.graph.output[0])(name=name) for name in seen if name not in outputs
    )
    with large_graphs.openable(watched) as graph:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = list(seen)
    ranges = [[(array.min(), array.max()) for array in session.run(names, dict(feed))] for feed in feeds]
    found = np.asarray(ranges)
    lows, highs = found[..., 0].min(0).tolist(), found[..., 1].max(0).tolist()
    for name, low, high in zip(names, lows, highs, strict=True):
        if not low < high:
            raise UnsuitableError(
                "calibration samples must show every layer a range of numbers",
                f"`{seen[name]}` sees only {low:g} in `{name}`, in all of {_samples(feeds)} samples",
                "Give `calibration` samples that differ, as real ones do",
            )
    return dict(zip(names, zip(lows, highs, strict=True), strict=True))


def _samples(feeds: Sequence[Mapping[str, np.ndarray]]) -> int:
    """How many were looked at, those that fill up a batch among them."""
    return sum(len(next(iter(feed.values()))) for feed in feeds)


def layers(model: "onnx.ModelProto") -> list[str]:
    """The names of the nodes that multiply. Raises: UnsuitableError where there is none."""
    found = [node.name for node in model.graph.node if node.op_type in PRODUCTS]
    if not found:
        raise UnsuitableError(
            f"the graph must hold one of {', '.join(PRODUCTS)}",
            f"it holds {', '.join(sorted({node.op_type for node in model.graph.node})) or 'nothing'}",
            "Drop the candidate: there is nothing to quantize",
        )
    return found


def _layer_inputs(model: "onnx.ModelProto") -> dict[str, str]:
    """The activations that enter layers, and the name of a layer each enters."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return {
        name: node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS
        for name in node.input[:2]
        if name not in constants
    }
