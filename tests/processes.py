"""Whether processes have ended."""

import time

import psutil


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
