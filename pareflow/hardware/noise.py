"""How busy the machine is with other things: a timing taken on it is as good as it is quiet."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pareflow.errors import BusyMachineError

WATCH_S = 0.25
PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Noise:
    """What a watch of a quarter second saw.

    `share` is how much of a core one busy thread got, `steal` how much of the machine's time its host took
    away, `busy_cores` how many cores others kept busy, `spread` p90 over p10 of a reference kernel's times.
    Steal and busy cores are None where the system does not tell.
    """

    share: float
    spread: float
    steal: float | None
    busy_cores: float | None

    @property
    def unfit(self) -> bool:
        """Whether timings would say more of the machine than of the model."""
        return self.share < 0.4 or self.spread > 5 or (self.steal or 0) > 0.5

    def words(self, threads: int, cores: int) -> str:
        """What disturbs, or nothing where the machine is quiet enough for `threads` threads."""
        found = []
        if self.busy_cores is not None and self.busy_cores + threads > cores + 0.2:
            found.append(f"others keep {self.busy_cores:.1f} of {cores} cores busy")
        if self.share < 0.95:
            found.append(f"a busy thread gets {self.share:.0%} of a core")
        if (self.steal or 0) > 0.05:
            found.append(f"the host takes {self.steal:.0%} of the time")
        if self.spread > 1.5:
            found.append(f"a reference kernel's p90 is {self.spread:.1f} times its p10")
        return ", ".join(found)


def await_quiet(patience_s: float) -> Noise:
    """The noise, once the machine is fit to time on. Raises: BusyMachineError after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while (noise := watch()).unfit:
        if time.monotonic() + PAUSE_S > deadline:
            raise BusyMachineError(
                "the machine must be quiet enough to time on",
                noise.words(threads=1, cores=os.cpu_count() or 1),
                "Stop what else runs, or wait longer with `budget.quiet_minutes`; what is finished is kept",
            )
        time.sleep(PAUSE_S)
    return noise


def watch() -> Noise:
    """Keep one thread busy for a quarter second and see what it gets."""
    before, cpu, began = _machine_times(), time.process_time(), time.perf_counter()
    times = np.asarray(list(_kernel_times(until=began + WATCH_S)))
    wall, own = time.perf_counter() - began, time.process_time() - cpu
    after = _machine_times()
    low, high = np.quantile(times, [0.1, 0.9])
    steal = busy = None
    if before is not None and after is not None:
        passed = {name: after[name] - before[name] for name in after}
        total = sum(passed.values()) or 1
        steal = passed["steal"] / total
        idle = passed["idle"] + passed["iowait"] + passed["steal"]
        busy = max(0.0, (total - idle) / os.sysconf("SC_CLK_TCK") - own) / wall
    return Noise(min(1.0, own / wall), float(high / low), steal, busy)


def _kernel_times(until: float) -> Iterator[float]:
    """Seconds of one hash of 64 KiB, again and again: it fits the cache and no library threads it."""
    block = bytes(2**16)
    while (began := time.perf_counter()) < until:
        hashlib.sha256(block).digest()
        yield time.perf_counter() - began


def _machine_times() -> dict[str, int] | None:
    """Clock ticks of all cores since boot, by kind (proc(5)); None where there is no /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return {name: int(value) for name, value in zip(names, fields, strict=False)}
