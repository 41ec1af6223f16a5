"""The device lock: builds share a device, a timing has it alone.

A `flock` per device in a folder of the host, so that every process of every run and container sees it. The
kernel frees it when the last holder dies, and not before: the timing process inherits the descriptor, and
keeps the device locked even if its parent is killed.
"""

import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pareflow.errors import BusyMachineError, EnvironmentUnfitError
from pareflow.hardware.waits import WAITS
from pareflow.troubles import Troubles

log = logging.getLogger(__name__)

INTERRUPTED = threading.Event()
"""Set while this process ends its work: no lock is waited for, and what is begun is ended."""

LOOK_S = 0.02
"""How often who waits for a lock looks whether it is free."""

SILENT_S = 10.0
"""For so long a lock is waited for without a word."""

_WAITED_FOR = Troubles()
"""Told once, whichever threads wait."""


def lock_folder() -> Path:
    """Where device locks lie: `PAREFLOW_LOCK_DIR`, else a folder that all users of the host share, whatever
    their `TMPDIR`."""
    return Path(os.environ.get("PAREFLOW_LOCK_DIR") or "/tmp/pareflow-locks")


@contextmanager
def device_lock(device: str, *, exclusive: bool, wait: bool = True) -> Iterator[int]:
    """Hold `device` alone to time on it, or shared to build on it. Gives the descriptor to pass on.

    Waits for it until it is interrupted, or, with `wait=False`, not at all. Raises: BusyMachineError.
    """
    descriptor = _opened(lock_folder(), f"{device}.lock")
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        take_lock(
            descriptor, kind, f"the device `{device}`", "another process builds or times on it", wait=wait
        )
        with WAITS.working():
            yield descriptor
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, kind: int, what: str, held: str, *, wait: bool = True) -> None:
    """Take a `flock` of this kind; waits for it as `device_lock` does. A long wait is told, and its end.

    Raises: BusyMachineError, which says what must be free, and who has it.
    """
    began, told = time.monotonic(), False
    with WAITS.waiting():
        while not try_lock(descriptor, kind):
            if not wait or INTERRUPTED.is_set():
                _WAITED_FOR.over(what)
                raise BusyMachineError(
                    f"{what} must be free", held, "Run the command again when that has ended"
                )
            if time.monotonic() - began >= SILENT_S and _WAITED_FOR.is_new(what, held):
                log.warning("waiting for %s: %s%s", what, held, _holders(descriptor))
                told = True
            time.sleep(LOOK_S)
    if told:
        log.warning("%s was free after %.0f s", what, time.monotonic() - began)
        _WAITED_FOR.over(what)


def try_lock(descriptor: int, kind: int) -> bool:
    """Whether a `flock` of this kind could be had at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holders(descriptor: int) -> str:
    """Who holds a `flock` on the file, in brackets; nothing where the system does not tell."""
    file = os.fstat(descriptor)
    name = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with suppress(OSError):
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        pids = [lock[4] for lock in locks if lock[1] == "FLOCK" and lock[5] == name]
        return f" ({', '.join(map(_process, pids))})" if pids else ""
    return ""


def _process(pid: str) -> str:
    """A process by its id, and whose it is where that is known."""
    with suppress(OSError, KeyError):
        return f"process {pid} of {Path('/proc', pid).owner()}"
    return f"process {pid}"


def _opened(folder: Path, name: str) -> int:
    """A lock file that every user of the host may take, whatever the umask of the one who made it.

    Raises: EnvironmentUnfitError, also where something else lies in its place: another user may have put it.
    """
    try:
        if not folder.exists():
            folder.mkdir(mode=0o1777, parents=True, exist_ok=True)
            folder.chmod(0o1777)
        descriptor = lock_file(folder / name)
    except OSError as error:
        raise _unusable(folder, f"{error.strerror} ({error.filename})") from error
    held = os.fstat(descriptor)
    if not stat.S_ISREG(held.st_mode) or held.st_nlink != 1:
        os.close(descriptor)
        raise _unusable(folder, f"{name} there is no file of its own")
    return descriptor


def lock_file(path: Path) -> int:
    """A file to lock, which every user may, opened, and made where it lacks.

    Raises: OSError, also where a link lies there: its target is neither opened nor made.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW
    with suppress(FileNotFoundError):
        # Without O_CREAT, which kernels refuse on another user's file (fs.protected_regular).
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another one was quicker
        return os.open(path, flags)
    with suppress(PermissionError):  # a file system that lets nobody say so
        os.fchmod(descriptor, 0o666)
    return descriptor


def _unusable(folder: Path, found: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"the folder of device locks {folder} must be usable", found, "Name another with PAREFLOW_LOCK_DIR"
    )
