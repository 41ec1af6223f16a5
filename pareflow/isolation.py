"""Run one function in a process of its own, with a time limit and a memory limit.

A crash, a hang or too much memory in whatever native library costs that process and no more (law 7). The
child leads a process group, which is killed as a whole, and dies with its parent. Arguments and result are
JSON. `python -m pareflow.isolation` is the child's side, or `answer` in a process of a nursery.
"""

import atexit
import errno
import getpass
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pareflow import errors
from pareflow.errors import (
    CrashedError,
    KilledError,
    OutOfMemoryError,
    PareflowError,
    StepFailedError,
    StoreError,
    TimedOutError,
)
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.probe import disk_is_full
from pareflow.hardware.waits import WAITS, noted
from pareflow.nursery import Forked, Nursery, die_with


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. `memory_mib` bounds its data segment (RLIMIT_DATA); None is all that there is.

    Of the seconds, `spent` were used by attempts that were killed, from which it goes on.
    """

    seconds: float = 600
    memory_mib: int | None = None
    threads: int | None = None
    spent: float = 0


_FULL = (errno.ENOSPC, errno.EDQUOT)
_END = 500
"""Characters that are kept of either end of what a child found."""
_NOTE = "waits.json"
"""Beside its answer a child tells how long it waited for what other processes hold."""
_LOOK_S = 0.1
"""How often it is looked at, once the limit has passed."""

_FIRST_TO_GO = "1000"
"""Where memory runs out the kernel ends a child, and not the run that waits for it."""

_LIVE: set["Child"] = set()
"""The children that have not ended."""

_NURSERIES: dict[tuple[frozenset[tuple[str, str]], tuple[str, ...]], Nursery] = {}
"""By the environment in which it began, and what it has imported."""

_BEGINNING = threading.Lock()
"""Held by who looks for a nursery."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C within, or whatever else is no error (Prefect makes such of SIGTERM), ends every child at once,
    whatever thread waits for it, and each that begins after it, in this run: children lead sessions of their
    own, which the terminal does not tell."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        interrupt()
        raise


def interrupt() -> None:
    """End every child, and each that begins from now on, until `INTERRUPTED` is cleared."""
    INTERRUPTED.set()
    for child in tuple(_LIVE):
        child.kill()


class Child:
    """A function that runs in a process of its own. Use as a context: its process group ends with it.

    `log` gets all that the child and its native libraries print. `descriptors` stay open in the child, so
    that a device lock is held until the last of the two ends. `imported` names modules that it may find
    imported: it is forked from a nursery then. Its temporary files go when it ends.
    Raises: StoreError where there is no room for its arguments.
    """

    def __init__(
        self,
        function: str,
        arguments: Mapping[str, Any],
        limits: Limits,
        log: Path,
        descriptors: Sequence[int] = (),
        imported: Sequence[str] = (),
    ) -> None:
        self.function, self.limits, self.log = function, limits, log
        self._folder = tempfile.TemporaryDirectory(prefix="pareflow-", ignore_cleanup_errors=True)
        self._answer = Path(self._folder.name) / "answer.json"
        request = {
            "function": function,
            "arguments": dict(arguments),
            "answer": str(self._answer),
            "memory_mib": limits.memory_mib,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._process = self._begun(json.dumps(request), tuple(imported), descriptors)
        except OSError as error:
            self._folder.cleanup()
            if error.errno in _FULL:
                raise _no_room(function, str(error.filename or self._folder.name)) from error
            raise
        _LIVE.add(self)
        if INTERRUPTED.is_set():
            self.kill()

    def _begun(
        self, request: str, imported: tuple[str, ...], descriptors: Sequence[int]
    ) -> "subprocess.Popen[bytes] | Forked":
        """A process that answers: of a nursery, where something may be imported before; else a new one."""
        path, environment = Path(self._folder.name) / "request.json", _environment(self.limits.threads)
        path.write_text(request)
        with path.open("rb") as stdin, self.log.open("wb") as output:
            if imported and sys.platform == "linux":
                with _BEGINNING, suppress(OSError):  # a nursery that has died costs its time, and no more
                    born = _nursery(environment, imported)
                    return born.fork(stdin.fileno(), output.fileno(), descriptors)
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "pareflow.isolation", str(os.getpid())],  # -P: no local module
                stdin=stdin,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=tuple(descriptors),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        _LIVE.discard(self)
        self.kill()
        self._process.wait()
        self._folder.cleanup()

    def kill(self) -> None:
        """End its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def result(self, seconds: float | None = None) -> Any:
        """What the function returned, within `seconds` (default: what is left of the limit) besides what it
        waited for locks.

        Raises: the child's own PareflowError; StepFailedError, CrashedError, TimedOutError, OutOfMemoryError.
        """
        limit, spent = (self.limits.seconds, self.limits.spent) if seconds is None else (seconds, 0)
        try:
            returncode = self._ended(max(limit - spent, 0))
        except subprocess.TimeoutExpired as error:
            raise TimedOutError(
                f"`{self.function}` must finish in {limit:g} s",
                "it was still running and was stopped",
                f"Raise `budget.variant_minutes`, or look at {self.log}",
            ) from error
        if not self._answer.exists():
            raise _death(self.function, returncode, self.limits, self.log, self._answer.parent)
        document = json.loads(self._answer.read_text())
        if "error" in document:
            raise _revived(document["error"])
        return document["result"]

    def _ended(self, seconds: float) -> int:
        """Its status. Raises: subprocess.TimeoutExpired after so many seconds of its own."""
        began, timeout = time.monotonic(), seconds
        while True:
            try:
                return self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                own = time.monotonic() - began - noted(self._answer.with_name(_NOTE))
                if own >= seconds:
                    raise
                timeout = max(seconds - own, _LOOK_S)


def run_isolated(
    function: str,
    arguments: Mapping[str, Any],
    limits: Limits,
    log: Path,
    descriptors: Sequence[int] = (),
    imported: Sequence[str] = (),
) -> Any:
    """What `module:function` returns for these keyword arguments, computed in a `Child`.

    Raises: as `Child` and its `result`.
    """
    with Child(function, arguments, limits, log, descriptors, imported) as child:
        return child.result()


def _nursery(environment: Mapping[str, str], imported: tuple[str, ...]) -> Nursery:
    """The one that began in this environment. Others end as soon as they are not needed."""
    wanted = frozenset(environment.items()), imported
    for key, one in tuple(_NURSERIES.items()):
        if not one.busy and (key != wanted or not one.alive):
            _NURSERIES.pop(key).close()
    if wanted not in _NURSERIES:
        _NURSERIES[wanted] = Nursery("pareflow.isolation:answer", imported, environment)
    return _NURSERIES[wanted]


@atexit.register
def _close() -> None:
    for one in _NURSERIES.values():
        one.close()


def _death(what: str, returncode: int, limits: Limits, log: Path, answers: Path) -> PareflowError:
    """The error that says how a process died, from its exit status and the end of its log."""
    for folder in (answers, log.parent):
        if disk_is_full(folder):
            return _no_room(what, str(folder))
    tail = _end_of(log)
    shown = f"The end of its log {log}:\n{tail}" if tail.strip() else f"Its log {log} is empty"
    if _tells_of_memory(tail):
        return _out_of_memory(what, limits)
    if returncode < 0:
        must, name = f"`{what}` must end by itself", signal.Signals(-returncode).name
        if -returncode == signal.SIGKILL:
            return KilledError(must, f"it died of {name} (often: out of memory)", shown)
        return CrashedError(must, f"it died of {name}", shown)
    return CrashedError(f"`{what}` must give an answer", f"it exited with status {returncode}", shown)


def _end_of(log: Path, size: int = 2000) -> str:
    """The last characters of a log, which may be longer than memory."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * size))
        return file.read().decode(errors="replace")[-size:]


def _tells_of_memory(text: str) -> bool:
    """Whether a native library's words mean that memory ran out: few of them raise MemoryError."""
    signs = ("bad_alloc", "MemoryError", "can't allocate memory", "not enough memory")
    return any(sign in text for sign in signs)


def _out_of_memory(what: str, limits: Limits) -> OutOfMemoryError:
    limit = "this machine's memory" if limits.memory_mib is None else f"{limits.memory_mib} MiB"
    return OutOfMemoryError(
        f"`{what}` must fit into {limit}",
        "it asked for more",
        "Raise `budget.memory_mib`, or drop the candidate",
    )


def _no_room(what: str, where: str) -> StoreError:
    remedy = "Free some space, then run the same command again; what is finished is kept"
    return StoreError(f"`{what}` must have room for what it writes", f"the disk is full ({where})", remedy)


def _environment(threads: int | None) -> dict[str, str]:
    """The parent's environment with this checkout importable, and native thread pools bounded.

    Waiting threads sleep: threads that spin at a barrier stall each other when the machine is shared.
    """
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}
    if threads is not None:
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return environment


def _revived(error: Mapping[str, Any]) -> PareflowError:
    if error["class"] == "SpecError":
        return errors.SpecError(*error["parts"])
    made: PareflowError = getattr(errors, error["class"])(*error["parts"])
    return made


def _described(function: str, error: BaseException, limits: Limits) -> dict[str, Any]:
    """An exception as JSON: a PareflowError whole, anything else as the StepFailedError it amounts to.

    A class of the user's own is told as the class of `pareflow.errors` that it derives from.
    """
    if not isinstance(error, PareflowError) and _tells_of_memory(f"{type(error).__name__}: {error}"):
        error = _out_of_memory(function, limits)
    if isinstance(error, OSError) and error.errno in _FULL:
        error = _no_room(function, str(error.filename or tempfile.gettempdir()))
    if isinstance(error, errors.SpecError):
        return {"class": "SpecError", "parts": [error.source, error.problems]}
    if not isinstance(error, PareflowError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        error = StepFailedError(
            f"`{function}` must finish",
            f"it raised {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})",
            "The log holds the stack trace",
        )
    known = next(cls for cls in type(error).__mro__ if vars(errors).get(cls.__name__) is cls)
    return {"class": known.__name__, "parts": [error.must, _bounded(error.found), error.remedy]}


def _bounded(found: str) -> str:
    """Its ends, where a library says pages: tables and reports show it, and the log has the whole."""
    return found if len(found) <= 2 * _END else f"{found[:_END]} … {found[-_END:]}"


def main() -> None:
    """The child, as a new process."""
    die_with(int(sys.argv[1]))
    answer()


def answer() -> None:
    """The child: read a request from stdin, call the function, write the answer."""
    request = json.load(sys.stdin)
    with suppress(OSError):  # another system than Linux
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    _keep_temporary_files_in(Path(request["answer"]).parent)
    WAITS.note_in(Path(request["answer"]).with_name(_NOTE))
    if request["memory_mib"] is not None:
        size = request["memory_mib"] * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    module, _, name = request["function"].partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(**request["arguments"])
        document = {"result": result}
    except Exception as error:
        with suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        limits = Limits(memory_mib=request["memory_mib"])
        document = {"error": _described(request["function"], error, limits)}
    partial = Path(request["answer"] + ".partial")
    partial.write_text(json.dumps(document))
    partial.rename(request["answer"])


def _keep_temporary_files_in(folder: Path) -> None:
    """Temporary files of this process and of those it begins go there: the parent removes the folder, however
    this process ends. What others find again stays where it was: kernels of torch.compile.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_kernels()))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _kernels() -> Path:
    """Where torch.compile keeps kernels if nobody says where."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


if __name__ == "__main__":
    main()
