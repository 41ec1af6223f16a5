"""What torch's backends share: tensors in and out, and the settings of a CUDA device applied."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pareflow.compiler.cuda_graphs import graphed
from pareflow.compiler.cuda_streams import streamed
from pareflow.errors import EnvironmentUnfitError
from pareflow.hardware import accelerators
from pareflow.hardware.accelerators import Accelerated
from pareflow.workload import Arrays

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Call = Callable[[Tensors], Tensors]

HALVES = ("float16", "bfloat16")
"""The precisions that are types of torch's, and not fp32's; it calls them the same."""


def to_torch(feeds: Mapping[str, np.ndarray], device: str) -> "dict[str, torch.Tensor]":
    """Named arrays as tensors on `device`, with memory of their own."""
    from pareflow.torch_network import as_tensor

    return {name: as_tensor(array, device) for name, array in feeds.items()}


def from_torch(outputs: "Tensors") -> Arrays:
    """Named tensors as arrays; of half precisions as float32."""
    from pareflow.torch_network import as_array

    return {name: as_array(tensor) for name, tensor in outputs.items()}


def prepare(settings: Accelerated, threads: int) -> None:
    """Set what torch keeps per process: threads, TF32, and how device memory is pooled.

    cuDNN takes TF32 unless it is told not to; float32 here means float32.
    Raises: EnvironmentUnfitError. Source: PyTorch, "CUDA semantics", TensorFloat-32 and Memory management.
    """
    import torch

    torch.set_num_threads(threads)
    if settings.device == "cpu":
        return
    if accelerators.device() is None:
        raise EnvironmentUnfitError(
            "`device: cuda` must run where there is one", accelerators.NO_DEVICE, "Take `device: cpu`"
        )
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    torch.cuda.init()  # type: ignore[no-untyped-call]  # a pool is switched off once it is there
    torch.cuda.caching_allocator_enable(settings.memory_pool != "none")
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{settings.memory_pool == 'expandable'}")


def called(run: "Call", settings: Accelerated) -> "Call":
    """`run`, launched as the settings say: as one graph, or its batch in parts side by side."""
    if settings.cuda_graphs:
        return graphed(run)
    return streamed(run, settings.streams) if settings.streams > 1 else run
