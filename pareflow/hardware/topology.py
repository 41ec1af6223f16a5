"""How this machine is built inside: caches, memory nodes, huge pages, and which allocators are at hand."""

import ctypes.util
import re
from pathlib import Path
from typing import Any

_CORES = Path("/sys/devices/system/cpu")
_NODES = Path("/sys/devices/system/node")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

ALLOCATORS = ("jemalloc", "tcmalloc", "tcmalloc_minimal", "mimalloc")
"""Libraries that may take the place of glibc's malloc by LD_PRELOAD, where they are installed."""


def caches() -> list[dict[str, Any]]:
    """`level`, `kind` (Data, Instruction, Unified), `kib`, and the `cores` that share it, of the first core.

    Empty where the system does not tell. Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu.
    """
    return [
        {
            "level": int(_read(folder / "level")),
            "kind": _read(folder / "type"),
            "kib": _bytes(_read(folder / "size")) // 1024,
            "cores": _read(folder / "shared_cpu_list"),
        }
        for folder in sorted(_CORES.glob("cpu0/cache/index*"))
        if (folder / "size").exists()
    ]


def memory_nodes() -> list[dict[str, Any]]:
    """`cores` and `mib` of each NUMA node; empty where the system does not tell."""
    found = []
    for folder in sorted(_NODES.glob("node[0-9]*")):
        total = re.search(r"MemTotal:\s+(\d+) kB", _read(folder / "meminfo"))
        mib = int(total[1]) // 1024 if total else None
        found.append({"node": int(folder.name[4:]), "cores": _read(folder / "cpulist"), "mib": mib})
    return found


def huge_pages() -> str | None:
    """`always`, `madvise` or `never`: who gets pages of 2 MiB unasked; None where the system does not tell.

    Source: Linux, Documentation/admin-guide/mm/transhuge.rst.
    """
    chosen = re.search(r"\[(\w+)\]", _read(_HUGE_PAGES))
    return chosen[1] if chosen else None


def allocators() -> dict[str, str | None]:
    """The library of each allocator that could be preloaded, or None where it is not installed."""
    return {name: ctypes.util.find_library(name) for name in ALLOCATORS}


def _bytes(text: str) -> int:
    """`48K` as 49152."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text or 0)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
