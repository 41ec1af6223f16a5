"""The device lock: builds share a device, a timing has it alone.

A `flock` per device in a folder of the host, so that every process of every run and container sees it. The
kernel frees it when the last holder dies, and not before: the timing process inherits the descriptor, and
keeps the device locked even if its parent is killed.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def lock_folder() -> Path:
    """Where device locks lie: `PAREFLOW_LOCK_DIR`, else a folder that all users of the host share."""
    named = os.environ.get("PAREFLOW_LOCK_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / "pareflow-locks"


@contextmanager
def device_lock(device: str, *, exclusive: bool) -> Iterator[int]:
    """Hold `device` alone to time on it, or shared to build on it. Waits. Gives the descriptor to pass on."""
    folder = lock_folder()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{device}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)
