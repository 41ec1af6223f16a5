"""Whether processes have begun, and have ended."""

import time
from pathlib import Path

import psutil


def started(begun: Path) -> list[int]:
    """The ids that a process wrote into a file when it had begun; waits for them."""
    while not begun.exists():
        time.sleep(0.05)
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
