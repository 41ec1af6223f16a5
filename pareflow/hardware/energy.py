"""Energy, where the machine counts it."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_POWERCAP = Path("/sys/class/powercap")


def processor_joules(powercap: Path = _POWERCAP) -> Callable[[], float] | None:
    """A counter of all joules that the processors' packages have used (RAPL), or None where none is readable.

    Differences of two readings count; a counter that wraps around adds its range.
    Source: Linux, Documentation/power/powercap/powercap.rst.
    """
    packages = [
        _Package(path)
        for path in sorted(powercap.glob("intel-rapl:*"))
        if path.name.count(":") == 1 and _is_package(path) and _readable(path)
    ]
    return partial(_total, packages) if packages else None


def device_joules() -> Callable[[], float] | None:
    """A counter of the joules that CUDA's first device has used (NVML), or None where it is not known."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        device = _first_device(pynvml)
        if device is None:
            return None
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError:  # no driver, no such device, or it does not count
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1000


def _first_device(nvml: Any) -> Any:
    """NVML's handle of CUDA's first device; None where its number may be another one's with NVML.

    NVML counts along the bus, CUDA from the fastest on, unless CUDA_DEVICE_ORDER says PCI_BUS_ID.
    Source: NVIDIA, CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if not first.isdecimal():
        return nvml.nvmlDeviceGetHandleByUUID(first)
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    if not by_bus and len(set(map(nvml.nvmlDeviceGetName, handles))) > 1:
        return None
    return nvml.nvmlDeviceGetHandleByIndex(int(first))


class _Package:
    """One package's counter in microjoules, unwrapped."""

    def __init__(self, path: Path) -> None:
        self._counter = path / "energy_uj"
        self._range = int((path / "max_energy_range_uj").read_text())
        self._last, self._total = int(self._counter.read_text()), 0

    def joules(self) -> float:
        now = int(self._counter.read_text())
        self._total += now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return self._total / 1e6


def _total(packages: list[_Package]) -> float:
    return sum(package.joules() for package in packages)


def _is_package(path: Path) -> bool:
    """Not so `psys`, which holds the packages and the rest of the machine."""
    try:
        return (path / "name").read_text().startswith("package")
    except OSError:
        return False


def _readable(path: Path) -> bool:
    try:
        (path / "energy_uj").read_text()
        return bool((path / "max_energy_range_uj").read_text())
    except OSError:
        return False
