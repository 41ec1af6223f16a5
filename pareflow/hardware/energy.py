"""Energy, where the machine counts it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


def processor_joules(powercap: Path = _POWERCAP) -> Callable[[], float] | None:
    """A counter of all joules that the processors' packages have used (RAPL), or None where none is readable.

    Differences of two readings count; a counter that wraps around adds its range.
    Source: Linux, Documentation/power/powercap/powercap.rst.
    """
    packages = [
        _Package(path)
        for path in sorted(powercap.glob("intel-rapl:*"))
        if path.name.count(":") == 1 and _readable(path)
    ]
    return partial(_total, packages) if packages else None


def device_joules(index: int = 0) -> Callable[[], float] | None:
    """A counter of the joules that an NVIDIA device has used (NVML), or None where there is none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError:  # no driver, no such device, or it does not count
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1000


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


def _readable(path: Path) -> bool:
    try:
        (path / "energy_uj").read_text()
        return bool((path / "max_energy_range_uj").read_text())
    except OSError:
        return False
