"""A variant on one core, in no more memory than a device has: the nearest thing to a device not at hand."""

import importlib
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import pareflow.compiler  # noqa: F401  (fills the catalog)
from pareflow.catalog import BACKENDS
from pareflow.measuring.contestant import load, peak_memory_mib, read_feeds
from pareflow.measuring.stopwatch import stopwatch
from pareflow.variant import Step

REQUESTS = 30


def confined(
    artifact: str,
    backend: Mapping[str, Any],
    reference: Mapping[str, Any],
    folder: str,
    feeds: str,
    memory_mib: float | None,
    core: int,
) -> dict[str, Any]:
    """`held_mib`, the most that lay in memory besides Python and its libraries, and `p50_ms`, on `core`.

    `memory_mib` bounds the data that come to what the libraries have (RLIMIT_DATA), if given. What a worker's
    process holds is not seen: then `held_mib` is None. To be called in a process of its own.
    Raises: what a runtime raises that gets too little memory.
    """
    os.sched_setaffinity(0, [core])
    batches = read_feeds(Path(feeds))
    step = Step.from_json(backend)
    step = Step(step.name, {**step.settings, "threads": 1})
    for name in BACKENDS[step.name].requires:
        with suppress(ImportError):
            importlib.import_module(name.replace("-", "_"))
    _forget_peak()
    before = peak_memory_mib()
    if memory_mib is not None:
        limit = int(_data_bytes() + memory_mib * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    session, report = load(Path(artifact), step, reference, Path(folder), batches)
    clock = stopwatch(report["ran"])
    times = [clock(partial(session.run, batches[i % len(batches)])) for i in range(REQUESTS)]
    alone = not psutil.Process().children()
    return {
        "held_mib": max(peak_memory_mib() - before, 0.0) if alone else None,
        "p50_ms": float(np.median(times)),
        "ran": report["ran"],
    }


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: VmData of proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


def _forget_peak() -> None:
    """Let VmHWM begin anew. Source: proc(5), /proc/pid/clear_refs, 5."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
