"""A kept share of what a server was asked and what it answered: redacted, bounded, never pickled.

A file is `MILLISECONDS-PROCESS-NUMBER.npz`, some requests each; it appears whole. Files of a quarter of an
hour share a folder, so that none holds too many. Its entry `about` is JSON, one document per request: id,
model, version, when it was answered, and the digests of what is kept as such only.
Request 3's tensors are `3.in.NAME` and `3.out.NAME`. Texts are kept as numpy's unicode.
"""

import hashlib
import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pareflow.spec import read_part
from pareflow.workload import Arrays

log = logging.getLogger("pareflow.serving")

SUFFIX = ".npz"
DAY_S = 86_400.0
_SWEEP_S = 600.0
_COMMON = 7
"""Digits of the time that files of one folder have in common: 10^6 ms."""
_ABANDONED_S = 3600.0


class RequestLogSettings(BaseModel):
    """Which requests are kept, what of them, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    folder: str | None = Field(default=None, description="left out, `requests` in the data folder")
    share: float = Field(default=0.05, gt=0, le=1, description="of the requests, drawn at random")
    left_out: tuple[str, ...] = Field(default=(), description="tensors that are never kept, by name")
    digest_only: tuple[str, ...] = Field(
        default=(), description="tensors of which only a digest is kept; its key is never written"
    )
    keep_days: float = Field(default=7, gt=0, description="older files are removed")
    keep_mib: float = Field(default=512, gt=0, description="of all files together; the oldest go first")
    queue_mib: float = Field(default=64, gt=0, description="that wait to be written; more are dropped")
    flush_s: float = Field(default=2, gt=0, description="the longest that a request waits to be written")
    requests_per_file: int = Field(default=256, ge=1)


def read(path: Path) -> RequestLogSettings:
    """The settings in a YAML file. Raises: InputError if it cannot be read, SpecError with every problem."""
    return read_part(
        RequestLogSettings, path, "the settings of a request log", "See configs/monitoring/requests.yaml"
    )


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, as they are kept."""

    id: str
    model: str
    version: str
    answered_s: float
    """By the clock of the server's machine, since 1970."""
    inputs: Arrays
    outputs: Arrays
    digests: Mapping[str, str]
    """Of the tensors that are kept as a digest only."""


class RequestLog:
    """Takes exchanges from the event loop, and writes them in a thread of its own.

    `take` never blocks: what finds no room in the queue is dropped and counted.
    """

    def __init__(self, settings: RequestLogSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._key = os.urandom(32)
        self._waiting: queue.SimpleQueue[Exchange | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bytes = 0
        self._counts = dict.fromkeys(("kept", "dropped", "unkeepable", "failed", "removed_files"), 0)
        self._swept = 0.0
        self._files = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def wants(self) -> bool:
        """Whether the next request is one of the share."""
        return random.random() < self._settings.share

    def take(
        self,
        identity: str,
        model: str,
        version: str,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> None:
        """Keep one exchange, redacted, if there is room."""
        digests: dict[str, str] = {}
        try:
            kept_in, kept_out = (self._redacted(tensors, digests) for tensors in (inputs, outputs))
        except (TypeError, ValueError):  # records, or rows of different lengths: no plain array holds them
            self._count("unkeepable")
            return
        exchange = Exchange(identity, model, version, time.time(), kept_in, kept_out, digests)
        size = _bytes(exchange)
        with self._lock:
            if self._bytes + size > self._settings.queue_mib * 2**20:
                self._counts["dropped"] += 1
                return
            self._bytes += size
        self._waiting.put(exchange)

    def figures(self) -> Mapping[str, float]:
        """Counts since the start, for `/metrics`."""
        with self._lock:
            return {**self._counts, "waiting_bytes": self._bytes}

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _redacted(self, tensors: Mapping[str, Any], digests: dict[str, str]) -> Arrays:
        """Raises: TypeError, ValueError where a tensor is no plain array."""
        kept: Arrays = {}
        for name, tensor in tensors.items():
            if name in self._settings.left_out:
                continue
            array = _plain(tensor)
            if name in self._settings.digest_only:
                digests[name] = self._digest(array)
            else:
                kept[name] = array
        return kept

    def _digest(self, array: np.ndarray) -> str:
        """Equal tensors have equal ones for as long as this server runs; nobody can try inputs out later."""
        content = f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
        return hashlib.blake2b(content, key=self._key, digest_size=16).hexdigest()

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def _write_all(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._batch()
            if batch:
                self._write(batch)
            if time.monotonic() - self._swept > _SWEEP_S or not self._swept:
                self._sweep()

    def _batch(self) -> tuple[list[Exchange], bool]:
        """What has come within `flush_s`, or a file full; and whether the end was asked for."""
        batch: list[Exchange] = []
        until = time.monotonic() + self._settings.flush_s
        while len(batch) < self._settings.requests_per_file:
            try:
                exchange = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return batch, False
            if exchange is None:
                return batch, True
            batch.append(exchange)
        return batch, False

    def _write(self, batch: Sequence[Exchange]) -> None:
        """One file, whole or not at all; a disk that is full costs what is in it, and no answer."""
        self._files += 1
        name = f"{name_of(time.time())}-{os.getpid()}-{self._files:06d}{SUFFIX}"
        placed = place(self._folder, name)
        partial = placed.with_name(f".{name}")
        try:
            placed.parent.mkdir(exist_ok=True, mode=0o700)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **_arrays(batch))
            partial.replace(placed)
            self._count("kept", len(batch))
        except OSError as error:
            log.warning("%d requests could not be kept: %s", len(batch), error)
            self._count("failed", len(batch))
            with suppress(OSError):  # the folder may be what is wrong
                partial.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._bytes -= sum(map(_bytes, batch))

    def _sweep(self) -> None:
        """Remove what is too old, and the oldest of what is too much."""
        self._swept = time.monotonic()
        self._count("removed_files", retain(self._folder, self._settings.keep_days, self._settings.keep_mib))


def name_of(at_s: float) -> str:
    """What names of files begin with that are written at this time: for comparison with them."""
    return f"{int(at_s * 1000):013d}"


def place(folder: Path, name: str) -> Path:
    """Where a file of this name lies in a log."""
    return folder / name[:_COMMON] / name


def files(folder: Path, after: str = "") -> list[Path]:
    """The whole files of a log, the oldest first; only those after the one of this name."""
    shared = sorted(path for path in folder.glob("[0-9]*") if path.name >= after[:_COMMON])
    found = (path for one in shared for path in one.glob(f"[0-9]*{SUFFIX}"))
    return sorted((path for path in found if path.name > after), key=lambda path: path.name)


def retain(folder: Path, keep_days: float, keep_mib: float) -> int:
    """Remove files older than so many days, then the oldest until the rest fits; how many went."""
    room, removed = keep_mib * 2**20, 0
    for path in reversed(files(folder)):  # the newest first
        stat = path.stat()
        room -= stat.st_size
        if room < 0 or stat.st_mtime < time.time() - keep_days * DAY_S:
            path.unlink(missing_ok=True)
            removed += 1
    for partial in folder.glob(f"*/.*{SUFFIX}"):  # of a server that was killed
        if partial.stat().st_mtime < time.time() - _ABANDONED_S:
            partial.unlink(missing_ok=True)
    for shared in folder.glob("[0-9]*"):
        with suppress(OSError):  # it is not empty
            shared.rmdir()
    return removed


def exchanges(path: Path) -> Iterator[Exchange]:
    """What a file holds. Raises: OSError, ValueError where it is damaged or gone."""
    with np.load(path, allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        tensors: list[tuple[Arrays, Arrays]] = [({}, {}) for _ in about]
        for key in stored.files:
            number, _, name = key.partition(".")
            if number.isdecimal():
                side, _, tensor = name.partition(".")
                tensors[int(number)][side == "out"][tensor] = stored[key]
    for told, (inputs, outputs) in zip(about, tensors, strict=True):
        yield Exchange(**told, inputs=inputs, outputs=outputs)


def logged(settings: RequestLogSettings | None, folder: Path) -> Callable[[], RequestLog | None]:
    """Makes the log where there is to be one, in `folder` unless the settings name another."""
    if settings is None:
        return lambda: None
    return lambda: RequestLog(settings, Path(settings.folder or folder))


def _arrays(batch: Sequence[Exchange]) -> Arrays:
    plain = ("id", "model", "version", "answered_s", "digests")
    about = [{name: getattr(one, name) for name in plain} for one in batch]
    found: Arrays = {"about": np.array(json.dumps(about))}
    for number, one in enumerate(batch):
        found |= {f"{number}.in.{name}": array for name, array in one.inputs.items()}
        found |= {f"{number}.out.{name}": array for name, array in one.outputs.items()}
    return found


def _plain(tensor: Any) -> np.ndarray:
    """An array of numbers or of texts. Raises: TypeError, ValueError."""
    array = np.asarray(tensor)
    if array.dtype.kind == "O":
        if not all(isinstance(value, str) for value in array.ravel()):
            raise TypeError("neither numbers nor texts")
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise TypeError(f"{array.dtype} is not kept")
    return array


def _bytes(exchange: Exchange) -> int:
    return 256 + sum(a.nbytes for tensors in (exchange.inputs, exchange.outputs) for a in tensors.values())
