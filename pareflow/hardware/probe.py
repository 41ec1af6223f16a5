"""What this machine is."""

import functools
import os
import platform
import re
import subprocess
from pathlib import Path

_CORES = Path("/sys/devices/system/cpu")
_RELEVANT = re.compile(r"^(avx\w*|amx\w*|fma|sse4_\d|f16c|neon|asimd\w*|sve\w*|i8mm|bf16|dotprod)$")


@functools.cache
def processor() -> str:
    """The processor's name, with family and model where the name alone is vague (as virtual ones are)."""
    fields = _cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


@functools.cache
def instruction_flags() -> tuple[str, ...]:
    """The instruction sets that numeric kernels choose between, sorted."""
    fields = _cpuinfo()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return tuple(sorted(flag for flag in flags if _RELEVANT.match(flag)))


def has_vnni() -> bool:
    """Whether products of bytes are summed in 32 bits; without it u8×s8 sums saturate in 16."""
    return any("vnni" in flag or flag in ("i8mm", "asimddp") for flag in instruction_flags())


def has_bf16() -> bool:
    """Whether bfloat16 products have instructions of their own."""
    return any(flag in ("avx512_bf16", "amx_bf16", "bf16") for flag in instruction_flags())


def cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def memory_mib() -> int:
    """The memory of the machine, in MiB."""
    import psutil  # bundles do without it

    return psutil.virtual_memory().total // 2**20


def cache_bytes() -> int | None:
    """The size of the largest cache that the first core sees; None where the system does not tell."""
    units = {"K": 2**10, "M": 2**20}
    sizes = [path.read_text().strip() for path in _CORES.glob("cpu0/cache/index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=None)


def governor() -> str | None:
    """How the cores' frequency is governed (`performance`, `powersave`, …); None where it is not told.

    Where cores differ, every one that occurs. Source: Linux, Documentation/admin-guide/pm/cpufreq.rst.
    """
    paths = [_CORES / f"cpu{core}/cpufreq/scaling_governor" for core in cores()]
    found = {path.read_text().strip() for path in paths if path.exists()}
    return ", ".join(sorted(found)) or None


@functools.cache
def accelerators() -> tuple[str, str] | None:
    """The names of the NVIDIA devices and their driver's version, or None where `nvidia-smi` finds none.

    Not measured: no such device was at hand.
    """
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # not installed, no driver, no device, or it hangs
        return None
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    if not rows:
        return None
    return ", ".join(sorted(name.strip() for name, _, _ in rows)), rows[0][2].strip()


def gpus() -> int:
    """How many NVIDIA devices `nvidia-smi` names."""
    found = accelerators()
    return 0 if found is None else len(found[0].split(", "))


def disk_is_full(path: Path) -> bool:
    """Whether there is no room (less than 1 MiB, or no inode) where `path` lies: native code does not say."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize < 2**20 or (disk.f_files > 0 and disk.f_favail == 0)


def system() -> str:
    """Operating system, its release and the architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
