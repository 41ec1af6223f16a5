"""Parts of a batch side by side, each in a stream of its own.

On an H200 two streams took twice as long as one: launches cost more than overlap gains (`bench/gpu.py`).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Call = Callable[[Tensors], Tensors]


def streamed(run: "Call", streams: int) -> "Call":
    """`run` over at most `streams` parts of each batch, joined again in order.

    Kernels that leave a part of the device idle overlap with those of another stream.
    Source: PyTorch, "CUDA semantics", CUDA streams.
    """
    import torch

    sides = [torch.cuda.Stream() for _ in range(streams)]  # type: ignore[no-untyped-call]

    def run_in_parts(feeds: "Tensors") -> "Tensors":
        main = torch.cuda.current_stream()
        answers = []
        for side, part in zip(sides, parts(feeds, streams), strict=False):
            side.wait_stream(main)  # its inputs are made there
            with torch.cuda.stream(side):
                answers.append(run(part))
        for side in sides:
            main.wait_stream(side)
        for answer in answers:
            for tensor in answer.values():
                tensor.record_stream(main)  # its memory is not to be given away before it is read there
        return joined(answers)

    return run_in_parts


def parts(feeds: "Tensors", count: int) -> "list[Tensors]":
    """The samples of a batch in at most so many parts of nearly one size, none of them empty."""
    samples = min(len(tensor) for tensor in feeds.values())
    cuts = [tensor.tensor_split(min(count, samples)) for tensor in feeds.values()]
    return [dict(zip(feeds, part, strict=True)) for part in zip(*cuts, strict=True)]


def joined(answers: "list[Tensors]") -> "Tensors":
    """The answers to parts as the answer to the batch."""
    import torch

    return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
