"""All the kernels of a request launched at once, as a CUDA graph."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Call = Callable[[Tensors], Tensors]
    Captured = tuple[torch.cuda.CUDAGraph, Tensors, Tensors]

WARM_UP = 3


def graphed(run: "Call") -> "Call":
    """`run`, captured once per set of input shapes and replayed after; its tensors lie on the device.

    Answers are copies: a later request writes into the graph's own. Source: PyTorch, "CUDA semantics", CUDA
    graphs; Ng and Gray, 2021, "Accelerating PyTorch with CUDA graphs".
    """
    graphs: dict[tuple[object, ...], Captured] = {}

    def replay(feeds: "Tensors") -> "Tensors":
        shapes = tuple((name, tensor.shape) for name, tensor in feeds.items())
        if shapes not in graphs:
            graphs[shapes] = _captured(run, feeds)
        graph, inputs, outputs = graphs[shapes]
        for name, tensor in feeds.items():
            inputs[name].copy_(tensor)
        graph.replay()
        return {name: tensor.clone() for name, tensor in outputs.items()}

    return replay


def _captured(run: "Call", feeds: "Tensors") -> "Captured":
    import torch

    inputs = {name: tensor.clone() for name, tensor in feeds.items()}
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(inputs)
    return graph, inputs, outputs
