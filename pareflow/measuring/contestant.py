"""One contestant of the arena: a process that loads one executable and answers requests when told to."""

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import pareflow.compiler  # noqa: F401  (fills the catalog)
from pareflow import workload
from pareflow.catalog import BACKENDS
from pareflow.compiler.backend import Session, backend_of
from pareflow.measuring.stopwatch import device_memory_mib, stopwatch
from pareflow.network import check_outputs
from pareflow.variant import Step
from pareflow.workload import Arrays

SHIFT_BYTES = 2**22
"""At most so much is taken before a reload, so that it lies elsewhere: 4 MiB.

Source: Curtsinger and Berger, 2013, STABILIZER, section 3 (layouts at random).
"""


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
    """Load, report, then do what each line from `commands` says, until that pipe closes.

    `COUNT START` is that many requests to time, from that batch on; `reload` is the executable to load anew,
    elsewhere in memory. One line of JSON goes to `answers` after each load (what it took, the first request)
    and each COUNT: ms per request, processor time of all, and the peak of memory until the first reload.
    """
    os.sched_setaffinity(0, cores)
    batches = read_feeds(Path(feeds))
    loading = partial(load, Path(artifact), Step.from_json(backend), reference, Path(folder), batches)
    elsewhere: list[np.ndarray] = []
    peak_mib = None
    with os.fdopen(commands) as orders, os.fdopen(answers, "w", buffering=1) as reports:
        session, report = loading()
        reports.write(json.dumps(report) + "\n")
        for order in orders:
            if order.strip() == "reload":
                peak_mib = peak_mib or peak_memory_mib()  # from here on, what former loads left counts too
                del session
                elsewhere.append(np.ones(random.randrange(1, SHIFT_BYTES), dtype=np.uint8))
                session, report = loading()
                reports.write(json.dumps(report) + "\n")
                continue
            count, start = map(int, order.split())
            due = [batches[(start + i) % len(batches)] for i in range(count)]
            answer = timed(session, due, report["ran"])
            reports.write(json.dumps({"peak_memory_mib": peak_mib or peak_memory_mib(), **answer}) + "\n")


def timed(session: Session, due: Sequence[Arrays], ran: Mapping[str, Any]) -> dict[str, Any]:
    """The ms of each request, processor time of all, and the memory of the device that it `ran` on."""
    clock, workers = stopwatch(ran), _workers()
    spent = _cpu_s(workers)
    times = [clock(partial(session.run, feeds)) for feeds in due]
    cpu_ms = (_cpu_s(workers) - spent) * 1000
    allocated, reserved = device_memory_mib(ran)
    return {"ms": times, "cpu_ms": cpu_ms, "device_memory_mib": allocated, "device_reserved_mib": reserved}


def load(
    artifact: Path, step: Step, reference: Mapping[str, Any], folder: Path, batches: Sequence[Arrays]
) -> tuple[Session, dict[str, Any]]:
    """The executable, proven to answer, and what loading took and what ran. Raises: BadOutputError.

    It has met every shape of input once: some runtimes compile for each.
    """
    known = BACKENDS.get(step.name)
    if known is None or getattr(known, "form") == "torch":  # noqa: B009 (every backend has one)
        workload.define(reference, folder)  # it brings backends of its own, and the saved module's classes
    backend = backend_of(step)
    began = time.perf_counter()
    session = backend.load(artifact)
    load_s = time.perf_counter() - began
    first, shapes = batches[0], of_each_shape(batches)
    asked = time.perf_counter()
    outputs = session.run(first)
    first_ms = (time.perf_counter() - asked) * 1000
    check_outputs(outputs, samples=len(next(iter(first.values()))))
    for feeds in shapes:
        session.run(feeds)
    ran = session.ran()
    return session, {
        "load_s": load_s,
        "first_request_ms": first_ms,
        "shapes": len(shapes),
        "ran": {name: getattr(ran, name) for name in ran.__slots__},
    }


def of_each_shape(batches: Sequence[Arrays]) -> list[Arrays]:
    """A batch of every set of input shapes."""
    return list(
        {tuple((name, array.shape) for name, array in batch.items()): batch for batch in batches}.values()
    )


def peak_memory_mib() -> float:
    """The most memory that this process and its workers have held (VmHWM).

    Each at its own peak, and what they share counted in each: an upper bound where there are workers.
    """
    return sum(map(_peak_mib, [psutil.Process(), *_workers()]))


def _peak_mib(process: psutil.Process) -> float:
    """0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_info().rss) / 2**20
    return 0.0


def _workers() -> list[psutil.Process]:
    """The processes below this one, in which some backends compute (`compiler/worker.py`)."""
    return psutil.Process().children(recursive=True)


def _cpu_s(workers: Sequence[psutil.Process]) -> float:
    """Processor time of this process and of those of its workers that live."""
    spent = time.process_time()
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            times = worker.cpu_times()
            spent += times.user + times.system
    return spent


def read_feeds(path: Path) -> list[Arrays]:
    """The batches that `arena.write_feeds` wrote."""
    with np.load(path) as stored:
        batches: dict[int, Arrays] = {}
        for key in stored.files:
            index, _, name = key.partition("/")
            batches.setdefault(int(index), {})[name] = stored[key]
    return [batches[index] for index in sorted(batches)]
