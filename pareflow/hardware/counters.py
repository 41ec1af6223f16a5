"""What the processor counts while something runs: instructions, cycles, cache misses (`perf stat`)."""

import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVENTS = ("instructions", "cycles", "cache-misses")


def counted(call: Callable[[], object], requests: int) -> dict[str, Any]:
    """Per request, over `requests` calls in all threads of this process, and instructions per cycle (`ipc`).

    What could not be counted is None, and `reason` says why; it is None where all was.
    """
    found, reason = count(lambda: [call() for _ in range(requests)], EVENTS)
    rates = {name.replace("-", "_"): _over(found[name], requests) for name in EVENTS}
    return {**rates, "ipc": _over(found["instructions"], found["cycles"]), "reason": reason}


def count(work: Callable[[], object], events: Sequence[str]) -> tuple[dict[str, float | None], str | None]:
    """The sum of each event while `work` ran, and why one is None; `work` runs whatever perf does.

    Source: Linux, tools/perf/Documentation/perf-stat.txt: `-x`, `--control`.
    """
    unknown: dict[str, float | None] = dict.fromkeys(events)
    if shutil.which("perf") is None:
        work()
        return unknown, "perf is not installed"
    with tempfile.TemporaryDirectory(prefix="pareflow-") as folder:
        output = Path(folder) / "counts"
        with _counting(events, Path(folder), output) as refused:
            work()
        text = output.read_text() if output.exists() else ""
    found = unknown | read(text)
    return found, refused[0] if refused else _absent(found)


def read(text: str) -> dict[str, float | None]:
    """What `perf stat -x,` wrote: value, unit, event, …; None where the value is words such as
    `<not supported>`."""
    rows = (line.split(",") for line in text.splitlines() if line and not line.startswith("#"))
    return {row[2].partition(":")[0]: _number(row[0]) for row in rows if len(row) > 2}


@contextmanager
def _counting(events: Sequence[str], folder: Path, output: Path) -> Iterator[list[str]]:
    """Count in the body and nowhere else: perf starts disabled and is told over two named pipes.

    Gives a list that holds perf's own words if it would not count.
    """
    orders, answers = (_pipe(folder / name) for name in ("orders", "answers"))
    control = f"fifo:{folder / 'orders'},{folder / 'answers'}"
    command = ["perf", "stat", "-x,", "-D", "-1", "-e", ",".join(events), "-p", str(os.getpid())]
    perf = subprocess.Popen(
        [*command, "--control", control, "-o", str(output)],
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    refused: list[str] = []
    try:
        _tell(perf, orders, answers, b"enable\n", refused)
        yield refused
        _tell(perf, orders, answers, b"disable\n", refused)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.communicate()
        os.close(orders)
        os.close(answers)


def _tell(perf: "subprocess.Popen[str]", orders: int, answers: int, order: bytes, refused: list[str]) -> None:
    """Give an order and wait until perf has followed it, or has died."""
    if refused:
        return
    os.write(orders, order)
    while perf.poll() is None:
        if select.select([answers], [], [], 0.05)[0]:
            os.read(answers, 16)
            return
    assert perf.stdout is not None
    words = " ".join(perf.stdout.read().split())
    refused.append(f"perf would not count: {words[:200]}" if words else "perf would not count")


def _pipe(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDWR)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _absent(found: Mapping[str, float | None]) -> str | None:
    names = [name for name, value in found.items() if value is None]
    return f"this machine does not count {', '.join(names)}" if names else None


def _over(value: float | None, divisor: float | None) -> float | None:
    return None if value is None or not divisor else value / divisor
