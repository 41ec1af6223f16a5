"""NVTX ranges, by which Nsight Systems shows the stages of a request beside the kernels they start."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

Mark = Callable[[str], AbstractContextManager[Any]]


def marker() -> Mark:
    """A range by name; it does nothing where there is no CUDA device.

    Not measured: no such device was at hand.
    """
    import torch

    if not torch.cuda.is_available():
        return lambda name: nullcontext()
    return lambda name: torch.cuda.nvtx.range(f"pareflow: {name}")
