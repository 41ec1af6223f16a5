"""Processes that find their imports done: forked from one that has done nothing else.

Importing torch takes most of the time of a small step. A nursery imports it once, opens no device, and forks
a process for each that is asked for. Variants that are compared do not come from here: theirs are new.
`python -m pareflow.nursery` is the nursery's side. Linux alone: elsewhere it is not safe to fork so late.
"""

import atexit
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Never

_PR_SET_PDEATHSIG = 1
_NUMBER = struct.Struct("i")
"""What a process tells of itself: its id, then how it ended, as `subprocess.Popen.returncode` says it."""
_MOST_DESCRIPTORS = 16
IDLE_S = 300.0
"""A nursery that is asked for nothing so long, and has no process at work, ends; who asks then makes another
one."""


def die_with(parent: int) -> None:
    """End this process when the process `parent`, which has just begun it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent died before this child began")


class Nursery:
    """Forks processes that call `entry` ("module:function"), with `modules` imported before.

    It ends with this process, and its own processes end with it. A module that is not installed is left out.
    """

    def __init__(self, entry: str, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self.busy = 0
        """How many of its processes have not been waited for."""
        self._asking, theirs = socket.socketpair()
        with theirs:
            told = [str(theirs.fileno()), str(IDLE_S), entry, *modules]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pareflow.nursery", *told],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what imports say is said again by a process with a log
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def fork(self, stdin: int, output: int, descriptors: Sequence[int] = ()) -> "Forked":
        """A process in a session of its own, with these as its input, and its output and errors.

        `descriptors` stay open in it. Raises: OSError where the nursery has died.
        """
        told, telling = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._asking, [b"."], [stdin, output, telling, *descriptors])
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(telling)
        return Forked(self, told)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def count(self, more: int) -> None:
        with self._lock:
            self.busy += more

    def close(self) -> None:
        """End it, and what is left of its processes."""
        self._asking.close()
        self._process.wait()


class Forked:
    """A nursery's process: as much of `subprocess.Popen` as is needed. Raises: OSError, stillborn."""

    def __init__(self, nursery: Nursery, told: int) -> None:
        self._nursery, self._told = nursery, told
        self._returncode: int | None = None
        pid = self._read()
        if pid is None:
            os.close(told)
            raise ChildProcessError("the nursery has died")
        self.pid = pid
        nursery.count(+1)

    def wait(self, timeout: float | None = None) -> int:
        """How it ended: its status, or the negative of the signal. Raises: subprocess.TimeoutExpired."""
        if self._returncode is None:
            if not _readable(self._told, timeout):
                assert timeout is not None
                raise subprocess.TimeoutExpired("a nursery's process", timeout)
            code = self._read()
            os.close(self._told)
            self._returncode = -signal.SIGKILL if code is None else code
            self._nursery.count(-1)
        return self._returncode

    def _read(self) -> int | None:
        """The next number that it tells; None where it has died."""
        found = os.read(self._told, _NUMBER.size)
        return int(_NUMBER.unpack(found)[0]) if found else None


def main() -> None:
    """The nursery: import, then fork whenever it is asked to, until its parent ends or nobody asks."""
    descriptor, idle_s, entry, *modules = sys.argv[1:]
    module, _, function = entry.partition(":")
    for name in (module, *modules):
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no collection writes to pages that are shared with what is forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who keep a process are not waited for
    asked, nursery = socket.socket(fileno=int(descriptor)), os.getpid()
    while True:
        while not _readable(asked.fileno(), float(idle_s)):
            if not _has_children():
                return
        message, descriptors, _, _ = socket.recv_fds(asked, 1, _MOST_DESCRIPTORS)
        if not message:
            return
        if os.fork() == 0:
            asked.close()
            _keep(nursery, descriptors)
            getattr(sys.modules[module], function)()
            _leave()
        for each in descriptors:
            os.close(each)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _readable(descriptor: int, seconds: float | None) -> bool:
    """Whether something is there to read, or the other side has ended, within so many seconds."""
    watched = select.poll()
    watched.register(descriptor, select.POLLIN)
    return bool(watched.poll(None if seconds is None else seconds * 1000))


def _keep(nursery: int, descriptors: Sequence[int]) -> None:
    """Fork once more, and return in the new process; tell of it here, and leave when it has ended."""
    stdin, output, telling, *held = descriptors
    die_with(nursery)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        for each in (stdin, output, *held):
            os.close(each)
        _tell_of(pid, telling)
    die_with(keeper)
    os.setsid()
    os.dup2(stdin, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.write(telling, _NUMBER.pack(os.getpid()))
    for each in (stdin, output, telling):
        os.close(each)


def _leave() -> Never:
    """End without taking apart what was imported."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tell_of(pid: int, telling: int) -> Never:
    _, status = os.waitpid(pid, 0)
    os.write(telling, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


if __name__ == "__main__":
    main()
