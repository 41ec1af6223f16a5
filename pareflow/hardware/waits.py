"""How long this process has done nothing but wait for what others hold: nobody is charged for that."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path


class Waits:
    """Time counts while somebody here waits for a lock, and nobody here holds a device: else who waits may
    wait for the other, who works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = self._working = 0
        self._seconds, self._since = 0.0, 0.0
        self._note: Path | None = None

    @property
    def seconds(self) -> float:
        """In all, until now."""
        with self._lock:
            return self._until(time.monotonic())

    def waiting(self) -> AbstractContextManager[None]:
        """Around a wait for a lock."""
        return self._counted(1, 0)

    def working(self) -> AbstractContextManager[None]:
        """Around what is done while a device is held."""
        return self._counted(0, 1)

    def note_in(self, file: Path) -> None:
        """Keep a file up to date, by which another process can tell with `noted`."""
        self._note = file

    @contextmanager
    def _counted(self, waiting: int, working: int) -> Iterator[None]:
        self._change(waiting, working)
        try:
            yield
        finally:
            self._change(-waiting, -working)

    def _change(self, waiting: int, working: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._seconds, self._since = self._until(now), now
            self._waiting += waiting
            self._working += working
            if self._note is not None:
                told = {"seconds": self._seconds, "since": now if self._counts else None}
                making = self._note.with_suffix(".making")
                with suppress(OSError):  # a full disk is told by who needs it
                    making.write_text(json.dumps(told))
                    making.replace(self._note)

    def _until(self, now: float) -> float:
        return self._seconds + (now - self._since if self._counts else 0.0)

    @property
    def _counts(self) -> bool:
        return self._waiting > 0 and self._working == 0


WAITS = Waits()
"""Of this process."""


def noted(file: Path) -> float:
    """The seconds that the process which keeps this file has waited; 0 where it never did."""
    with suppress(OSError, ValueError):
        told = json.loads(file.read_text())
        now = time.monotonic()  # the machine's, for all its processes
        return float(told["seconds"]) + (0.0 if told["since"] is None else now - float(told["since"]))
    return 0.0
