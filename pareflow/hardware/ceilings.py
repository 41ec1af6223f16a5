"""What this machine can do at most: how fast it multiplies matrices, and how fast it copies memory."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pareflow.hardware import probe

SIZE = 1024
"""Rows and columns of the matrices: large enough for every library's full rate."""

TRIES = 30
BEYOND_CACHES = 8
LEAST_MIB, MOST_OF_MEMORY = 256, 1 / 8


def ceilings(threads: int) -> dict[str, Any]:
    """`matrix_gflops`, 10⁹ float32 operations per second, and `copy_gb_per_s`, 10⁹ bytes read and written.

    The best of several tries, as in STREAM, since what else runs can only lower a rate, by the faster of two
    libraries. A kernel that is better still passes them a little. To be called alone on the device, in a
    process of its own, since it sets the threads of torch.
    Source: McCalpin, 1995, "Memory bandwidth and machine balance in current high performance computers".
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        return {
            "threads": threads,
            "matrix_gflops": 2 * SIZE**3 / _multiply_s() / 1e9,
            "copy_gb_per_s": 2 * _copied_bytes() / _copy_s() / 1e9,
        }


def _multiply_s() -> float:
    """Seconds of one product of two matrices, by torch or by numpy."""
    import torch

    left, right = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE)
    product = torch.empty_like(left)
    arrays = left.numpy(), right.numpy(), product.numpy()
    by_torch = _best_s(lambda: torch.mm(left, right, out=product))
    return min(by_torch, _best_s(lambda: np.matmul(arrays[0], arrays[1], out=arrays[2])))


def _copy_s() -> float:
    """Seconds of one copy of an array of `_copied_bytes`."""
    import torch

    source = torch.ones(_copied_bytes() // 4)
    target = torch.zeros_like(source)
    return _best_s(lambda: target.copy_(source))


def _best_s(call: Callable[[], object]) -> float:
    """Seconds of the fastest of `TRIES` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(TRIES):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _copied_bytes() -> int:
    """Far more than the last cache holds, and no more than an eighth of the memory."""
    wanted = max(LEAST_MIB * 2**20, BEYOND_CACHES * (probe.cache_bytes() or 0))
    return min(wanted, int(probe.memory_mib() * 2**20 * MOST_OF_MEMORY))
