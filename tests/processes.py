"""Whether processes have begun, and have ended."""

import subprocess
import time
from pathlib import Path
from typing import Any

import psutil


def wait_for(begun: Path, process: "subprocess.Popen[Any] | None" = None) -> None:
    """Until the path is there, for a minute at most, and while the process lives that should make it."""
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(begun: Path, process: "subprocess.Popen[Any] | None" = None) -> list[int]:
    """The ids that a process wrote into a file when it had begun; waits for them."""
    wait_for(begun, process)
    return [int(pid) for pid in begun.read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended; waits a little, for signals take effect in their own time."""
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
