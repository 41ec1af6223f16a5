"""The time of one request: on the wall for processors, by events for CUDA devices."""

import time
from collections.abc import Callable
from typing import Any

Stopwatch = Callable[[Callable[[], Any]], float]


def stopwatch(device: str) -> Stopwatch:
    """What times a call on `device` (as `Ran` names it), in ms."""
    return _on_cuda if device.lower().startswith("cuda") else _on_the_wall


def device_memory_mib(device: str) -> tuple[float | None, float | None]:
    """The most memory that this process has had allocated, and reserved, on `device`; None on processors."""
    if not device.lower().startswith("cuda"):
        return None, None
    import torch

    return torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20


def _on_the_wall(call: Callable[[], Any]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def _on_cuda(call: Callable[[], Any]) -> float:
    """Between two events in the device's queue, empty before and after: work is queued, not awaited."""
    import torch

    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    began.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended))
