"""The arena: contestants in processes of their own, pinned, timed in interleaved blocks.

All contestants of an arena are loaded and warm before the first block; then each block times every one of
them once, on the same inputs, so that drift of the machine hits all alike and ratios are paired by block.
Where in the inputs a block begins is drawn. The order is shuffled for every other block, and reversed for
the next: whoever comes first is no faster for it. Where a process and its load lie in memory makes it
lastingly faster or slower: all processes lie alike, and after some blocks all load their executables anew.
Only one runs at a time, the others wait on a pipe; the caller holds the device lock.
"""

import json
import os
import random
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pareflow.errors import PareflowError, TimedOutError, WorkloadError
from pareflow.hardware import layout, probe
from pareflow.hardware.energy import device_joules, processor_joules
from pareflow.hardware.noise import Noise, await_quiet
from pareflow.isolation import Child, Limits
from pareflow.measurement import Measurement, Ran
from pareflow.measuring.race import Race
from pareflow.variant import Step
from pareflow.workload import Arrays

BRIEF_MS = 0.05
"""Of what takes less, where its process lies in memory is a part that counts."""

LONG_MS = 1000
"""No block of requests that are slow need take longer."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """What enters the arena: a compiled artifact and the backend that loads it.

    `feeds` and `workload` are its own, where it is fed otherwise than the others: the same samples, made into
    inputs by what it was packaged with.
    """

    variant: str
    artifact: Path
    backend: Step
    size_mib: float
    feeds: Path | None = None
    workload: tuple[Mapping[str, Any], Path] | None = None

    @property
    def threads(self) -> int:
        return int(self.backend.settings.get("threads", 1))

    def arguments(self, feeds: Path, workload: tuple[Mapping[str, Any], Path]) -> dict[str, Any]:
        """What a process that runs it is told: its own feeds and workload, else these."""
        reference, folder = self.workload or workload
        return {
            "artifact": str(self.artifact),
            "backend": self.backend.to_json(),
            "reference": dict(reference),
            "folder": str(folder),
            "feeds": str(self.feeds or feeds),
        }


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the arena measures; part of a measurement's key.

    Each block lasts about `block_ms` per contestant: as many requests as fit, between `least` and `most`;
    where inputs differ in shape, as many for all as fit for the slowest. Where `least` would take longer than
    `LONG_MS` it is as many as take that, `fewest` at the least.
    Warm-up runs until the median of a block is within 5 % of the one before it, at most 10 blocks; after each
    reload it is one block.
    """

    blocks: int = 30
    blocks_per_load: int = 6
    block_ms: float = 25
    fewest: int = 5
    least: int = 5
    most: int = 100
    seed: int = 0

    def requests(self, ms: float) -> int:
        """Of a block, where one takes so long."""
        least = np.clip(LONG_MS / max(ms, 1e-6), self.fewest, self.least)
        return int(np.clip(self.block_ms / max(ms, 1e-6), least, self.most))

    def minutes(self, ms: float) -> float:
        """About how long a contestant is timed whose requests take so long, with two blocks of warm-up."""
        reloads = (self.blocks - 1) // self.blocks_per_load
        return (2 + self.blocks + reloads) * self.requests(ms) * ms / 60_000


class Arena:
    """A context in which contestants are loaded; they end with it.

    `failures` holds the error of each contestant that could not be loaded, or died while being timed.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        *,
        feeds: Path,
        batch_size: int,
        environment: str,
        workload: tuple[Mapping[str, Any], Path],
        limits: Limits,
        logs: Path,
        descriptors: Sequence[int] = (),
        patience_s: float = 300,
    ) -> None:
        self._patience_s = patience_s
        self._contestants = list(contestants)
        self._feeds, self._batch_size, self._environment = feeds, batch_size, environment
        self._workload, self._limits, self._logs = workload, limits, logs
        self._descriptors = descriptors
        self._stack = ExitStack()
        self._running: dict[str, _Running] = {}
        self.failures: dict[str, PareflowError] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # whatever interrupts the loading, no contestant is left behind
            for contestant in self._contestants:
                try:
                    self._running[contestant.variant] = stack.enter_context(self._start(contestant))
                    self._running[contestant.variant].begin()
                except PareflowError as error:
                    self._drop(contestant.variant, error)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def measure(self, protocol: Protocol, race: Race | None = None) -> dict[str, Measurement]:
        """Warm up, then time every contestant block by block. Those that fail are missing, see `failures`.

        It ends before all blocks are timed where `race` is lost.
        Raises: BusyMachineError where the machine does not become quiet enough.
        """
        noise = await_quiet(self._patience_s)
        counts = self._counts(protocol)
        for running in self._running.values():
            running.forget()  # what warming up took is not the requests' own
        drawn = random.Random(protocol.seed)
        blocks: dict[str, list[tuple[float, ...]]] = {variant: [] for variant in self._running}
        order: list[str] = []
        for block in range(protocol.blocks):
            if block and block % protocol.blocks_per_load == 0:
                if race is not None and race.lost(blocks, protocol.blocks_per_load):
                    break
                self._reload(counts)
            order = order[::-1] if block % 2 else drawn.sample(list(blocks), len(blocks))
            start = drawn.randrange(2**31)
            for variant in filter(self._running.__contains__, order):
                blocks[variant].append(self._block(variant, counts[variant], start))
        return {
            variant: running.measurement(
                tuple(blocks[variant]),
                blocks_per_load=protocol.blocks_per_load,
                batch_size=self._batch_size,
                environment=self._environment,
                noise=self._noise(noise, running, blocks[variant]),
            )
            for variant, running in self._running.items()
        }

    def _noise(self, noise: Noise, running: "_Running", blocks: Sequence[Sequence[float]]) -> str:
        words = noise.words(running.contestant.threads, len(probe.cores()))
        if running.alike or np.median(np.concatenate(blocks)) > BRIEF_MS:
            return words
        chance = "its process lies in memory at random, which moves microseconds by some hundredths"
        return f"{words}, {chance}" if words else chance

    def _counts(self, protocol: Protocol) -> dict[str, int]:
        """Warm up; the number of requests of a block, by contestant.

        Where inputs differ in shape it is the same for all, so that medians are of the same inputs.
        """
        warm = {variant: self._warm(variant, protocol) for variant in list(self._running)}
        counts = {variant: warm[variant] for variant in self._running}
        if any(running.shapes > 1 for running in self._running.values()):
            return dict.fromkeys(counts, min(counts.values()))
        return counts

    def _warm(self, variant: str, protocol: Protocol) -> int:
        """Run until steady; the number of requests that fill a block."""
        before = float("nan")  # equal to nothing, so that at least two blocks run
        count = protocol.fewest
        for _ in range(10):
            times = self._block(variant, count)
            if not times:
                return 0
            median = float(np.median(times))
            count = protocol.requests(median)
            if abs(median - before) <= 0.05 * before:
                break
            before = median
        return count

    def _reload(self, counts: Mapping[str, int]) -> None:
        """All load anew, each followed by a block that does not count."""
        for variant in list(self._running):
            try:
                self._running[variant].reload()
                self._running[variant].time(counts[variant])
            except PareflowError as error:
                self._drop(variant, error)

    def _block(self, variant: str, count: int, start: int = 0) -> tuple[float, ...]:
        """The ms of `count` requests; nothing, and the contestant dropped, where it fails."""
        try:
            return self._running[variant].time(count, start)
        except PareflowError as error:
            self._drop(variant, error)
            return ()

    def _drop(self, variant: str, error: PareflowError) -> None:
        self.failures[variant] = error
        dropped = self._running.pop(variant, None)
        if dropped is not None:
            dropped.__exit__()  # now: one that hangs would disturb the others

    def _start(self, contestant: Contestant) -> "_Running":
        told = contestant.arguments(self._feeds, self._workload)
        return _Running(contestant, told, self._limits, self._logs, tuple(self._descriptors))


class _Running:
    """A contestant's process and the two pipes to it."""

    def __init__(
        self,
        contestant: Contestant,
        told: Mapping[str, Any],
        limits: Limits,
        logs: Path,
        descriptors: tuple[int, ...],
    ) -> None:
        self.contestant, self._limits = contestant, limits
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        allowed = probe.cores()
        arguments = {
            **told,
            "cores": list(allowed[-contestant.threads :]),
            "commands": commands_read,
            "answers": answers_write,
        }
        limits = Limits(limits.seconds, limits.memory_mib, contestant.threads)
        log = logs / f"arena-{contestant.variant[:12]}.log"
        passed = (*descriptors, commands_read, answers_write)
        with layout.alike() as self.alike:
            self._child = Child("pareflow.measuring.contestant:serve", arguments, limits, log, passed)
        os.close(commands_read)
        os.close(answers_write)
        self._pipes = [self._commands, self._answers]
        self._buffer = b""
        self._report: dict[str, Any] = {}
        self._peak_memory_mib: float | None = None
        self._device_memory_mib: float | None = None
        self._device_reserved_mib: float | None = None
        self._joules: Callable[[], float] | None = None
        self.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipes:  # else it was dropped before
            while self._pipes:
                os.close(self._pipes.pop())
            self._child.__exit__()

    def begin(self) -> None:
        """Wait until it is loaded and has answered its first request. Raises: what it died of."""
        self._report = self._read()
        on_device = self._report["ran"]["device"].lower().startswith("cuda")
        self._joules = device_joules() if on_device else processor_joules()

    @property
    def shapes(self) -> int:
        """How many sets of shapes its inputs have."""
        return int(self._report["shapes"])

    def reload(self) -> None:
        """Load the executable anew, elsewhere in memory. Raises: what it died of."""
        self._tell("reload")
        self._read()

    def forget(self) -> None:
        """Count processor time and energy from here on."""
        self._requests, self._cpu_ms, self._energy_j = 0, 0.0, 0.0

    def time(self, count: int, start: int = 0) -> tuple[float, ...]:
        """The ms of `count` requests, from batch `start` on and round. Raises: what it died of."""
        before, began = self._joules() if self._joules else 0.0, time.perf_counter()
        self._tell(f"{count} {start}")
        answer = self._read()
        joules = self._joules() - before if self._joules else 0.0
        answering = sum(answer["ms"]) / (1000 * (time.perf_counter() - began))
        self._peak_memory_mib = answer["peak_memory_mib"]
        self._device_memory_mib = answer["device_memory_mib"]
        self._device_reserved_mib = answer["device_reserved_mib"]
        self._requests += count
        self._cpu_ms += answer["cpu_ms"]
        self._energy_j += joules * min(answering, 1.0)  # the rest went to telling and being told
        return tuple(answer["ms"])

    def _tell(self, command: str) -> None:
        try:
            os.write(self._commands, f"{command}\n".encode())
        except BrokenPipeError:
            self._child.result(seconds=10)

    def measurement(self, blocks: tuple[tuple[float, ...], ...], **protocol: Any) -> Measurement:
        requests = max(self._requests, 1)
        return Measurement(
            variant=self.contestant.variant,
            ran=Ran(**self._report["ran"]),
            blocks_ms=blocks,
            load_s=self._report["load_s"],
            first_request_ms=self._report["first_request_ms"],
            peak_memory_mib=self._peak_memory_mib,
            size_mib=self.contestant.size_mib,
            cpu_ms=self._cpu_ms / requests,
            energy_j=self._energy_j / requests if self._joules else None,
            device_memory_mib=self._device_memory_mib,
            device_reserved_mib=self._device_reserved_mib,
            **protocol,
        )

    def _read(self) -> Any:
        """The next line of JSON. Raises: what the process died of, or TimedOutError."""
        deadline = time.monotonic() + self._limits.seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimedOutError(
                    f"a contestant must answer within {self._limits.seconds:g} s",
                    "it was still busy and was stopped",
                    "Raise `budget.variant_minutes`, or drop the candidate",
                )
            chunk = os.read(self._answers, 2**20)
            if not chunk:
                self._child.result(seconds=10)
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


def write_feeds(batches: Sequence[Arrays], path: Path) -> None:
    """Save batches of named arrays for contestants to read, so that no timing includes preprocessing."""
    arrays = {f"{i}/{name}": array for i, batch in enumerate(batches) for name, array in batch.items()}
    np.savez(path, **storable(arrays))  # type: ignore[arg-type]


def storable(arrays: Arrays) -> Arrays:
    """The arrays as numpy stores them without pickling; objects must be texts. Raises: WorkloadError."""
    objects = {name: array for name, array in arrays.items() if array.dtype.hasobject}
    return {**arrays, **{name: _of_texts(name, array) for name, array in objects.items()}}


def _of_texts(name: str, array: np.ndarray) -> np.ndarray:
    if not all(isinstance(value, str) for value in array.flat):
        raise WorkloadError(
            "inputs and predictions must be arrays of numbers or texts, whose rows have one shape",
            f"`{name}` holds objects of other types",
            "Give each array a dtype, such as float32",
        )
    return array.astype(str)
