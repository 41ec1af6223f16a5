"""What this machine can do at most: how fast it multiplies matrices, and how fast it copies memory."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pareflow.hardware import probe

SIZE = 1024
"""Rows and columns of the matrices: large enough for every library's full rate."""

LEAST_TRIES, TRIES = 3, 30
ENOUGH_S = 1.0
"""No further call is timed after so many seconds: one copy beyond a large cache takes half of one."""
BEYOND_CACHES = 8
LEAST_MIB, MOST_OF_MEMORY = 256, 1 / 8


def ceilings(threads: int) -> dict[str, Any]:
    """`matrix_gflops`, 10⁹ float32 operations per second, and `copy_gb_per_s`, 10⁹ bytes read and written.

    `by_precision` holds 10⁹ operations per second for each precision, by torch; None where the processor has
    no instructions for it, so that its products would be emulated.

    The best of several tries, as in STREAM, since what else runs can only lower a rate, by the faster of two
    libraries. A kernel that is better still passes them a little. To be called alone on the device, in a
    process of its own, since it sets the threads of torch.
    Source: McCalpin, 1995, "Memory bandwidth and machine balance in current high performance computers".
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        float32 = _gops(_multiply_s())
        return {
            "threads": threads,
            "matrix_gflops": float32,
            "copy_gb_per_s": 2 * _copied_bytes() / _copy_s() / 1e9,
            "by_precision": {
                "float32": float32,
                "bfloat16": _gops(_multiply_bf16_s()) if probe.has_bf16() else None,
                "int8": _gops(_multiply_int8_s()) if probe.has_vnni() else None,
            },
        }


def _gops(seconds: float) -> float:
    return 2 * SIZE**3 / seconds / 1e9


def _multiply_s() -> float:
    """Seconds of one product of two matrices, by torch or by numpy."""
    import torch

    left, right = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE)
    product = torch.empty_like(left)
    arrays = left.numpy(), right.numpy(), product.numpy()
    by_torch = _best_s(lambda: torch.mm(left, right, out=product))
    return min(by_torch, _best_s(lambda: np.matmul(arrays[0], arrays[1], out=arrays[2])))


def _multiply_bf16_s() -> float:
    import torch

    left, right = (torch.rand(SIZE, SIZE).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    return _best_s(lambda: torch.mm(left, right, out=product))


def _multiply_int8_s() -> float:
    """Of signed bytes, summed in 32 bits."""
    import torch

    left, right = (torch.randint(-127, 127, (SIZE, SIZE), dtype=torch.int8) for _ in range(2))
    return _best_s(lambda: torch._int_mm(left, right))


def _copy_s() -> float:
    """Seconds of one copy of an array of `_copied_bytes`."""
    import torch

    source = torch.ones(_copied_bytes() // 4)
    target = torch.zeros_like(source)
    return _best_s(lambda: target.copy_(source))


def _best_s(call: Callable[[], object]) -> float:
    """Seconds of the fastest call, after one that is not counted."""
    call()
    times = list[float]()
    while len(times) < TRIES and (len(times) < LEAST_TRIES or sum(times) < ENOUGH_S):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _copied_bytes() -> int:
    """Far more than the last cache holds, and no more than an eighth of the memory that may be taken."""
    wanted = max(LEAST_MIB * 2**20, BEYOND_CACHES * (probe.cache_bytes() or 0))
    return min(wanted, int(probe.usable_memory_mib() * 2**20 * MOST_OF_MEMORY))
