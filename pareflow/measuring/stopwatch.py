"""The time of one request: by events where torch computes on a CUDA device, else on the wall.

Other runtimes answer once the device is done; whether this torch knows the device is no matter of theirs.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

Stopwatch = Callable[[Callable[[], Any]], float]


def stopwatch(ran: Mapping[str, Any]) -> Stopwatch:
    """What times a call, in ms, of a session that says that it `ran` so."""
    return _on_cuda if _by_torch_on_cuda(ran) else _on_the_wall


def device_memory_mib(ran: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The most memory that torch has had allocated, and reserved, on a device; None where it did not run."""
    if not _by_torch_on_cuda(ran):
        return None, None
    import torch

    return torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20


def _by_torch_on_cuda(ran: Mapping[str, Any]) -> bool:
    return bool(ran["runtime"].startswith("torch") and ran["device"].lower().startswith("cuda"))


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
