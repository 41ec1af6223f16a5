"""A kept share of what a server was asked and what it answered: redacted, bounded, never pickled.

A file is `MILLISECONDS-PROCESS-NUMBER.npz`, some requests each; it appears whole. Files of a quarter of an
hour share a folder, so that none holds too many. Its entry `about` is JSON, one document per request: id,
model, version, when it was answered, and the digests of what is kept as such only.
Request 3's tensors are `3.in.NAME` and `3.out.NAME`. Texts are kept as numpy's unicode.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pareflow.errors import InputError
from pareflow.serving.hosting import PREDICTIONS, SAMPLES
from pareflow.serving.model import holds_text, padded_bytes
from pareflow.spec import read_part
from pareflow.troubles import Troubles
from pareflow.workload import Arrays, are_lists

log = logging.getLogger("pareflow.serving")

SUFFIX = ".npz"
DAY_S = 86_400.0
KEEP_DAYS = 30.0
"""Where nobody has said how long."""
NOTE = "keep_days"
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

    @property
    def hidden(self) -> frozenset[str]:
        """The tensors that are not kept as they are."""
        return frozenset((*self.left_out, *self.digest_only))

    def check(self, known: Collection[str]) -> None:
        """Raises: InputError where it names none of these tensors: nothing would be hidden by that."""
        if unknown := self.hidden - {*known, SAMPLES, PREDICTIONS}:
            raise InputError(
                f"what a request log hides must be tensors of what is served: {', '.join(sorted(known))}, "
                f"`{SAMPLES}` or `{PREDICTIONS}`",
                f"got `{min(unknown)}`",
                "Mend the settings of the request log",
            )


def read(path: Path) -> RequestLogSettings:
    """The settings in a YAML file. Raises: InputError if it cannot be read, SpecError with every problem."""
    return read_part(
        RequestLogSettings, path, "the settings of a request log", "See configs/monitoring/requests.yaml"
    )


@dataclass(frozen=True, slots=True)
class Names:
    """Of tensors: what the version that answered takes, and all that is served takes or gives."""

    takes: Collection[str]
    known: Collection[str]


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


@dataclass(frozen=True, slots=True)
class _Taken:
    """An exchange in the line, as it was asked and answered: it is redacted where it is written."""

    id: str
    model: str
    version: str
    answered_s: float
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    size: int


class RequestLog:
    """Takes exchanges from the event loop, and writes them in a thread of its own.

    `take` never blocks: what finds no room in the queue is dropped and counted.
    """

    def __init__(self, settings: RequestLogSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._most = settings.queue_mib * 2**20
        self._key = os.urandom(32)
        self._waiting: queue.SimpleQueue[_Taken | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bytes = 0
        self._counts = dict.fromkeys(("kept", "dropped", "unkeepable", "failed", "removed_files"), 0)
        self._swept = 0.0
        self._troubles = Troubles()
        self._odd = ""
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
        size: int,
        names: Names,
    ) -> None:
        """Keep one exchange, if there is room; `size` is about the bytes that its inputs take.

        None is kept where a tensor to hide is of nothing that is served. Raw samples hold every input: they
        are left out where one is hidden, unless the settings name them.
        """
        try:
            self._settings.check(names.known)
        except InputError as error:
            self._refuse(str(error))
            return
        hidden = self._settings.hidden
        if inputs.keys() == {SAMPLES} and SAMPLES not in hidden and not hidden.isdisjoint(names.takes):
            inputs = {}
        size += 256 + sum(getattr(tensor, "nbytes", 0) for tensor in outputs.values())
        with self._lock:
            if self._bytes + size > self._most:
                self._counts["dropped"] += 1
                return
            self._bytes += size
        self._waiting.put(_Taken(identity, model, version, time.time(), inputs, outputs, size))

    def figures(self) -> Mapping[str, float]:
        """Counts since the start, for `/metrics`."""
        with self._lock:
            return {**self._counts, "waiting_bytes": self._bytes}

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _exchange(self, taken: "_Taken") -> Exchange | None:
        """What may be kept of it; None where no plain array holds it: rows of different lengths, records of
        different fields, texts of which the longest makes all others too large."""
        digests: dict[str, str] = {}
        try:
            inputs, outputs = (self._redacted(each, digests) for each in (taken.inputs, taken.outputs))
        except (MemoryError, LookupError, TypeError, ValueError) as error:
            self._odd = f"{type(error).__name__}: {error}"
            self._count("unkeepable")
            return None
        except Exception:  # the next one may go well: the thread must outlive what nobody thought of
            log.exception("request %s could not be kept", taken.id)
            self._count("failed")
            return None
        return Exchange(taken.id, taken.model, taken.version, taken.answered_s, inputs, outputs, digests)

    def _redacted(self, tensors: Mapping[str, Any], digests: dict[str, str]) -> Arrays:
        """Without predictions that are lists, as detections are: they are made again of the outputs.

        Raises: LookupError, TypeError, ValueError where no plain array holds a tensor.
        """
        kept: Arrays = {}
        for name, tensor in tensors.items():
            detections = name == PREDICTIONS and isinstance(tensor, np.ndarray) and are_lists(tensor)
            if detections or name in self._settings.left_out:
                continue
            array = _plain(tensor, self._most)
            if name in self._settings.digest_only:
                digests[name] = self._digest(array)
            else:
                kept[name] = array
        return kept

    def _digest(self, array: np.ndarray) -> str:
        """Equal tensors have equal ones for as long as this server runs; nobody can try inputs out later."""
        content = f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
        return hashlib.blake2b(content, key=self._key, digest_size=16).hexdigest()

    def _refuse(self, why: str) -> None:
        """Keep none, and say so once."""
        if self._troubles.is_new("settings", why):
            log.warning("requests are not kept: %s", why)
        self._count("unkeepable")

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

    def _batch(self) -> tuple[list["_Taken"], bool]:
        """What has come within `flush_s`, or a file full; and whether the end was asked for."""
        batch: list[_Taken] = []
        until = time.monotonic() + self._settings.flush_s
        while len(batch) < self._settings.requests_per_file:
            try:
                taken = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return batch, False
            if taken is None:
                return batch, True
            batch.append(taken)
        return batch, False

    def _write(self, batch: Sequence["_Taken"]) -> None:
        """One file, or more where texts take much more room than they did in the line."""
        try:
            for kept in self._files_of(batch):
                self._write_file(kept)
        finally:
            with self._lock:
                self._bytes -= sum(taken.size for taken in batch)
        if self._odd and not self._counts["kept"] and self._troubles.is_new("kept", "none"):
            log.warning("no request is kept so far, since no plain array holds them: %s", self._odd)

    def _files_of(self, batch: Sequence["_Taken"]) -> Iterator[list[Exchange]]:
        """What may be kept, in parts of about as many bytes as may wait."""
        part, size = list[Exchange](), 0
        for one in filter(None, map(self._exchange, batch)):
            part.append(one)
            size += sum(array.nbytes for array in (*one.inputs.values(), *one.outputs.values()))
            if size > self._most:
                yield part
                part, size = [], 0
        if part:
            yield part

    def _write_file(self, kept: Sequence[Exchange]) -> None:
        """Whole or not at all; a disk that is full costs what is in it, and no answer."""
        try:
            self._place(kept)
            self._count("kept", len(kept))
        except OSError as error:
            log.warning("%d requests could not be kept: %s", len(kept), error)
            self._count("failed", len(kept))
        except Exception:  # the next file may go well: the thread must outlive what nobody thought of
            log.exception("%d requests could not be kept", len(kept))
            self._count("failed", len(kept))

    def _place(self, kept: Sequence[Exchange]) -> None:
        """Raises: OSError."""
        self._files += 1
        placed = place(self._folder, f"{name_of(time.time())}-{os.getpid()}-{self._files:06d}{SUFFIX}")
        partial = placed.with_name(f".{placed.name}")
        try:
            placed.parent.mkdir(exist_ok=True, mode=0o700)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **_arrays(kept))  # type: ignore[arg-type]
            partial.replace(placed)
        except OSError:
            with suppress(OSError):  # the folder may be what is wrong
                partial.unlink(missing_ok=True)
            raise

    def _sweep(self) -> None:
        """Remove what is too old, and the oldest of what is too much."""
        self._swept = time.monotonic()
        try:
            note_days(self._folder, self._settings.keep_days)
            removed = retain(self._folder, self._settings.keep_days, self._settings.keep_mib)
        except Exception:  # the next time it may go well: requests must be kept until then
            log.exception("old kept requests could not be removed from %s", self._folder)
        else:
            self._count("removed_files", removed)


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
    """Remove files older than so many days, then the oldest until the rest fits; how many went.

    Other servers may write into the folder and remove from it meanwhile.
    """
    room, removed = keep_mib * 2**20, 0
    for path in reversed(files(folder)):  # the newest first
        with suppress(FileNotFoundError):
            stat = path.stat()
            room -= stat.st_size
            if room < 0 or stat.st_mtime < time.time() - keep_days * DAY_S:
                path.unlink()
                removed += 1
    for partial in folder.glob(f"*/.*{SUFFIX}"):  # of a server that was killed
        with suppress(FileNotFoundError):
            if partial.stat().st_mtime < time.time() - _ABANDONED_S:
                partial.unlink()
    for shared in folder.glob("[0-9]*"):
        with suppress(OSError):  # it is not empty
            shared.rmdir()
    return removed


def note_days(folder: Path, days: float) -> None:
    """Write down for how long what a folder holds is kept, for whoever removes it once nobody writes."""
    (folder / NOTE).write_text(f"{days:g}\n")


def noted_days(folder: Path) -> float:
    """For how long what a folder holds is kept."""
    try:
        return float((folder / NOTE).read_text())
    except (OSError, ValueError):
        return KEEP_DAYS


def expire(folder: Path) -> int:
    """Remove what is too old where no server keeps requests any more, and one did before; how many went."""
    if not (folder / NOTE).exists():
        return 0
    return retain(folder, noted_days(folder), math.inf)


async def expiring(folder: Path) -> None:
    """The same, for ever."""
    while True:
        with suppress(OSError):  # the next time it may go well
            await asyncio.to_thread(expire, folder)
        await asyncio.sleep(_SWEEP_S)


def exchanges(path: Path) -> Iterator[Exchange]:
    """What a file holds. Raises: OSError, ValueError where it is damaged or gone, or a later version's."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            tensors: list[tuple[Arrays, Arrays]] = [({}, {}) for _ in about]
            for key in stored.files:
                number, _, name = key.partition(".")
                if number.isdecimal():
                    side, _, tensor = name.partition(".")
                    tensors[int(number)][side == "out"][tensor] = stored[key]
        pairs = zip(about, tensors, strict=True)
        found = [Exchange(**told, inputs=inputs, outputs=outputs) for told, (inputs, outputs) in pairs]
    except (EOFError, LookupError, TypeError, BadZipFile) as error:
        raise ValueError(f"it holds no exchanges: {type(error).__name__}: {error}") from error
    yield from found


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


def _plain(tensor: Any, most: float) -> np.ndarray:
    """An array of numbers, of texts, or of records of both, whose texts take so many bytes at most.

    Raises: LookupError, TypeError, ValueError.
    """
    if isinstance(tensor, list) and tensor and all(isinstance(one, Mapping) for one in tensor):
        return _records(tensor, most)
    texts = not isinstance(tensor, np.ndarray) and holds_text(tensor)
    array = np.asarray(tensor, dtype=object if texts else None)
    if array.dtype.kind == "O" and padded_bytes(array) > most:
        raise ValueError("the longest text is too long for that many")
    if texts:
        array = np.asarray(tensor)
    elif array.dtype.kind == "O" and isinstance(tensor, list):
        array = array.astype(float)  # None among numbers is one that is missing
    if array.dtype.kind == "O":
        if not all(isinstance(value, str) for value in array.ravel()):
            raise TypeError("neither numbers nor texts")
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise TypeError(f"{array.dtype} is not kept")
    return array


def _records(rows: Sequence[Mapping[str, Any]], most: float) -> np.ndarray:
    """One structured array, a field for each value of a record."""
    columns = {name: _plain([row[name] for row in rows], most) for name in rows[0]}
    found = np.empty(len(rows), [(name, column.dtype, column.shape[1:]) for name, column in columns.items()])
    for name, column in columns.items():
        found[name] = column
    return found
