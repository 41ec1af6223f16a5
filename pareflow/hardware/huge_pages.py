"""Pages of 2 MiB in place of 4 KiB, for memory that this process holds already: weights, above all.

A processor looks up where a page lies in a small table; weights in 4 KiB pages fill it many times over.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

from pareflow.hardware.topology import huge_pages

PAGE = 2 * 2**20
_MAPS = Path("/proc/self/maps")
_ADVISE, _COLLAPSE = 14, 25
"""MADV_HUGEPAGE: wanted from now on; MADV_COLLAPSE: done now, since Linux 6.1.

Source: Linux, include/uapi/asm-generic/mman-common.h; Documentation/admin-guide/mm/transhuge.rst.
"""


def unfit() -> str | None:
    """Why memory cannot be put in huge pages here, or None if it can."""
    chosen = huge_pages()
    return (
        None if chosen in ("always", "madvise") else f"huge pages are `{chosen or 'unknown'}` on this system"
    )


def collapse() -> float:
    """Put this process's private memory in huge pages, as far as the kernel does; the MiB done at once.

    Kernels older than 6.1 do it in the background: then none.
    """
    libc, done = ctypes.CDLL(None, use_errno=True), 0
    for start, length in _regions(_MAPS.read_text()):
        where = (ctypes.c_void_p(start), ctypes.c_size_t(length))
        libc.madvise(*where, _ADVISE)
        done += length * (libc.madvise(*where, _COLLAPSE) == 0)
    return done / 2**20


def _regions(maps: str) -> Iterator[tuple[int, int]]:
    """Start and length of what is private, writable and backed by no file, cut to whole huge pages."""
    for line in maps.splitlines():
        span, rights, _, _, _, *name = line.split()
        if not rights.startswith("rw-p") or name not in ([], ["[heap]"]):
            continue
        low, high = (int(edge, 16) for edge in span.split("-"))
        start, end = -(-low // PAGE) * PAGE, high // PAGE * PAGE
        if end > start:
            yield start, end - start
