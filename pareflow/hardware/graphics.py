"""The graphics processors of this machine: what they can, by their compute capability."""

import subprocess
from pathlib import Path
from typing import Any

TENSOR_CORES = (
    ((7, 0), "float16"),
    ((7, 5), "int8"),
    ((8, 0), "bfloat16"),
    ((8, 0), "tf32"),
    ((8, 9), "fp8"),
)
"""From which compute capability on tensor cores take which numbers.

Source: NVIDIA, CUDA C++ Programming Guide, "Compute capabilities", table of tensor core input types.
"""

_QUERY = "name,memory.total,compute_cap,driver_version"
_DRIVER = Path("/proc/driver/nvidia/version")


def graphics() -> list[dict[str, Any]]:
    """`name`, `memory_mib`, `compute_capability`, `tensor_cores` (numbers they take) and `driver` of each.

    By `nvidia-smi`, or by torch where a driver is there without it; empty where there is none.
    `memory_mib` is None where a device shares that of the machine.
    Not measured: no such device was at hand.
    """
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # not installed, no driver, no device, or it hangs
        return _by_torch() if _DRIVER.exists() else []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [
        described(name, float(memory) if memory.isdecimal() else None, capability, driver)
        for name, memory, capability, driver in (row for row in rows if len(row) == 4)
    ]


def described(name: str, memory_mib: float | None, capability: str, driver: str | None) -> dict[str, Any]:
    """One device, with what its tensor cores take."""
    major, _, minor = capability.partition(".")
    version = (int(major), int(minor))
    return {
        "name": name,
        "memory_mib": memory_mib,
        "compute_capability": capability,
        "tensor_cores": [number for least, number in TENSOR_CORES if version >= least],
        "driver": driver,
    }


def _by_torch() -> list[dict[str, Any]]:
    try:
        import torch
    except ImportError:
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        found.append(described(told.name, told.total_memory / 2**20, f"{told.major}.{told.minor}", None))
    return found
