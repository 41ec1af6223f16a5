"""What this machine is."""

import functools
import math
import os
import platform
import re
import subprocess
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CORES = Path("/sys/devices/system/cpu")
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
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


def usable_memory_mib() -> int:
    """The memory that this process may take, in MiB: what control groups leave it of the machine's."""
    return memory_limit_mib() or memory_mib()


def cpu_quota() -> float | None:
    """How many cores' time control groups leave this process; None where that bounds its cores no further.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst; scheduler/sched-bwc.rst of version 1.
    """
    told = [tuple(line.split()) for line in _stated("", "cpu.max")]
    told += zip(_stated("cpu", "cpu.cfs_quota_us"), _stated("cpu", "cpu.cfs_period_us"), strict=True)
    bounded = [int(quota) / int(period) for quota, period in told if quota not in ("max", "-1")]
    least = min(bounded, default=math.inf)
    return least if least < len(cores()) else None


def usable_cores() -> int:
    """How many cores this process may keep busy: those that it may run on, or that its quota pays for in
    full; one at the least."""
    return max(1, int(cpu_quota() or len(cores())))


def memory_limit_mib() -> int | None:
    """The memory that control groups leave this process, in MiB; None where it is the machine's.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst.
    """
    told = [*_stated("", "memory.max"), *_stated("memory", "memory.limit_in_bytes")]
    least = min((int(most) // 2**20 for most in told if most != "max"), default=memory_mib())
    return least if least < memory_mib() else None


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


def boot() -> str:
    """Tells this machine from others of its kind, and is the same in all of its containers, until it is
    started again; its name where the system gives no such number."""
    return _BOOT.read_text().strip() if _BOOT.exists() else platform.node()


def system() -> str:
    """Operating system, its release and the architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _stated(controller: str, file: str) -> list[str]:
    """What a file says of this process' control group, and of those above it; "" stands for version 2."""
    rows = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    found = [path for _, held, path in (row.split(":", 2) for row in rows) if controller in held.split(",")]
    root = _GROUPS / controller
    groups = [group for path in found for group in (Path(path), *Path(path).parents)]
    paths = [root / group.relative_to("/") / file for group in groups]
    return [path.read_text().strip() for path in paths if path.is_file()]
