"""All the kernels of a request launched at once, as a CUDA graph."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Call = Callable[[Tensors], Tensors]
    Captured = tuple[torch.cuda.CUDAGraph, Tensors, Tensors]

WARM_UP = 3
MOST = 64
"""Sets of input shapes that a graph is kept for."""
_CAPTURING = threading.Lock()
"""torch can capture one graph at a time in a process."""


def graphed(run: "Call") -> "Call":
    """`run`, captured once per set of input shapes and replayed after; its tensors lie on the device.

    There are at most `MOST` graphs, each with memory of its own: further shapes are computed without. Answers
    are copies: a later request writes into the graph's own. Threads wait for each other.
    Source: PyTorch, "CUDA semantics", CUDA graphs; Ng and Gray, 2021, "Accelerating PyTorch with CUDA
    graphs".
    """
    graphs: dict[tuple[object, ...], Captured] = {}
    turn = threading.Lock()

    def replay(feeds: "Tensors") -> "Tensors":
        shapes = tuple((name, tensor.shape) for name, tensor in feeds.items())
        with turn:
            if shapes not in graphs and len(graphs) >= MOST:
                return run(feeds)
            if shapes not in graphs:
                with _CAPTURING:
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
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # what other threads allocate is theirs
        outputs = run(inputs)
    return graph, inputs, outputs
