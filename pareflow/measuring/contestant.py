"""One contestant of the arena: a process that loads one executable and answers requests when told to."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import pareflow.compiler  # noqa: F401  (fills the catalog)
from pareflow import workload
from pareflow.catalog import BACKENDS, find
from pareflow.compiler.backend import Backend, Session
from pareflow.network import check_outputs
from pareflow.variant import Step
from pareflow.workload import Arrays


def serve(
    artifact: str,
    backend: Mapping[str, Any],
    reference: Mapping[str, Any],
    folder: str,
    feeds: str,
    cores: Sequence[int],
    commands: int,
    answers: int,
) -> None:
    """Load, report, then time as many requests as each line from `commands` says, until that pipe closes.

    One line of JSON goes to `answers` first (load and first request), then one list of ms per command.
    """
    os.sched_setaffinity(0, cores)
    batches = _read_feeds(Path(feeds))
    with os.fdopen(commands) as orders, os.fdopen(answers, "w", buffering=1) as reports:
        session, report = _load(Path(artifact), Step.from_json(backend), reference, Path(folder), batches[0])
        reports.write(json.dumps(report) + "\n")
        position = 0
        for order in orders:
            count = int(order)
            times = [_timed(session, batches[(position + i) % len(batches)]) for i in range(count)]
            position += count
            reports.write(json.dumps({"ms": times, "peak_memory_mib": _peak_memory_mib()}) + "\n")


def _load(
    artifact: Path, step: Step, reference: Mapping[str, Any], folder: Path, feeds: Arrays
) -> tuple[Session, dict[str, Any]]:
    known = BACKENDS.get(step.name)
    if known is None or getattr(known, "form") == "torch":  # noqa: B009 (every backend has one)
        workload.define(reference, folder)  # it brings backends of its own, and the saved module's classes
    backend = find(BACKENDS, step, "backend")
    assert isinstance(backend, Backend)
    began = time.perf_counter()
    session = backend.load(artifact)
    load_s = time.perf_counter() - began
    first_ms = _timed(session, feeds)
    outputs = session.run(feeds)
    check_outputs(outputs, samples=len(next(iter(feeds.values()))))
    ran = session.ran()
    return session, {
        "load_s": load_s,
        "first_request_ms": first_ms,
        "ran": {name: getattr(ran, name) for name in ran.__slots__},
    }


def _timed(session: Session, feeds: Arrays) -> float:
    """Milliseconds of one request."""
    began = time.perf_counter_ns()
    session.run(feeds)
    return (time.perf_counter_ns() - began) / 1e6


def _peak_memory_mib() -> float:
    """The most memory this process has held (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float(psutil.Process().memory_info().rss) / 2**20


def _read_feeds(path: Path) -> list[Arrays]:
    """The batches that `arena.write_feeds` wrote."""
    with np.load(path) as stored:
        batches: dict[int, Arrays] = {}
        for key in stored.files:
            index, _, name = key.partition("/")
            batches.setdefault(int(index), {})[name] = stored[key]
    return [batches[index] for index in sorted(batches)]
