"""A worker: a runtime in an interpreter of its own, spoken to over a pipe.

It ends with this process, however this ends, and with the last reference to it. Time and memory limits are
those of `pareflow/isolation.py`'s child, which is killed with its whole group.
"""

import fcntl
import logging
import math
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any, ClassVar

import numpy as np

from pareflow.comparison import first_line
from pareflow.compiler.backend import Backend
from pareflow.compiler.environment import WorkerEnvironment
from pareflow.compiler.workers import serve, wire
from pareflow.errors import (
    CrashedError,
    KilledError,
    OutOfMemoryError,
    StepFailedError,
    UnsuitableError,
    VariantError,
)
from pareflow.measurement import Ran
from pareflow.variant import digest
from pareflow.workload import Arrays

log = logging.getLogger(__name__)

_FOLDER = Path(serve.__file__).parent
_SHARED = ("folding", "program", "serve", "wire")
_PIPE_BYTES = 2**20
"""What the pipes hold if the system lets them: a request of this size crosses without waiting."""
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0
"""After one that died the next worker is begun at once, and one after that no sooner than so long after it:
of one that dies again soon each pause is twice the last."""


class Worker:
    """One process that serves the runtime `name` with the interpreter `python`.

    `start` is what the interpreter is called with, where it is not to serve one of `workers/`.
    """

    def __init__(self, name: str, python: Path, start: Sequence[str | Path] | None = None) -> None:
        self._name, self._turn = name, threading.Lock()
        started = ("-I", "-c", serve.BOOT, name, _FOLDER) if start is None else start
        self._process = subprocess.Popen([python, *started], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        weakref.finalize(self, _end, self._process)
        for pipe in (self._requests, self._answers):
            _widen(pipe.fileno())
        hello, _ = self._said(lambda: wire.read(self._answers))
        self._greet(hello)
        self.versions: Mapping[str, str] = hello["versions"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it at once, whatever it does; who waits for its answer gets a CrashedError."""
        self._process.kill()

    def call(self, what: str, feeds: Mapping[str, np.ndarray] | None = None, **settings: Any) -> wire.Message:
        """One request and its answer; threads wait for each other.

        Raises: CrashedError, OutOfMemoryError, UnsuitableError, StepFailedError.
        """

        def exchange() -> wire.Message:
            wire.write(self._requests, {"call": what, "settings": settings}, feeds or {})
            return wire.read(self._answers)

        with self._turn:
            if self._answers.closed:
                raise self._death("it was interrupted")
            answer, outputs = self._said(exchange)
        if "error" in answer:
            raise _revived(self._name, answer["error"])
        return answer, outputs

    def _said(self, exchange: Callable[[], wire.Message]) -> wire.Message:
        try:
            return exchange()
        except wire.BrokenPipe as error:
            raise self._death(str(error)) from error
        except (KeyboardInterrupt, SystemExit):
            self._process.kill()
            self._answers.close()  # what it has answered already would be taken for the next one's
            raise

    def _death(self, found: str) -> CrashedError:
        try:
            status = self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return CrashedError(f"the worker `{self._name}` must speak the protocol", found, "Report it")
        how = f"died of {Signals(-status).name}" if status < 0 else f"exited with status {status}"
        kind = KilledError if status == -SIGKILL else CrashedError
        return kind(f"the worker `{self._name}` must answer", f"it {how}", "What it printed is in the log")

    def _greet(self, hello: Mapping[str, Any]) -> None:
        """Raises: what the worker failed with; CrashedError where it is not the one that was called."""
        if "error" in hello:
            raise _revived(self._name, hello["error"])
        if (hello["protocol"], hello["name"]) != (wire.PROTOCOL, self._name):
            raise CrashedError(
                f"the worker must be `{self._name}` and speak protocol {wire.PROTOCOL}",
                f"it is `{hello['name']}` and speaks {hello['protocol']}",
                "Install pareflow again: its parts are of different versions",
            )


class WorkerSession:
    """An executable that a worker has loaded.

    Where the worker has died, `anew` loads it in another one, which answers the next request; but not again
    and again where each dies at once. Without that all further requests fail.
    """

    def __init__(self, worker: Worker, anew: Callable[[], Worker] | None = None) -> None:
        self._worker, self._anew = worker, anew
        self._turn = threading.Lock()
        self._died: CrashedError | None = None
        self._not_before, self._rest_s = -math.inf, FIRST_REST_S

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return self._call("run", feeds)[1]

    def ran(self) -> Ran:
        return Ran(**self._call("ran")[0]["ran"])

    def _call(self, what: str, feeds: Mapping[str, np.ndarray] | None = None) -> wire.Message:
        """As the worker's; threads wait for each other. Raises: as that, and what `anew` does."""
        with self._turn:
            if self._died is not None and self._anew is not None:
                self._require_rest(self._died)
                self._worker, self._died = self._anew(), None
            try:
                return self._worker.call(what, feeds)
            except CrashedError as error:
                self._died = error
                raise

    def _require_rest(self, died: CrashedError) -> None:
        """Raises: CrashedError while it is too soon for another worker."""
        now = time.monotonic()
        if now < self._not_before:
            rest = f"the next is begun in {self._not_before - now:.1f} s"
            raise CrashedError(died.must, f"{died.found}, and {rest}", died.remedy)
        lived = now - self._not_before > LONGEST_REST_S
        self._rest_s = FIRST_REST_S if lived else min(2 * self._rest_s, LONGEST_REST_S)
        self._not_before = now + self._rest_s
        log.warning("another worker is begun: %s", died)


class WorkerBackend(Backend):
    """A backend whose runtime lives in the worker environment of its own name."""

    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    """What it needs in this interpreter."""
    runtime: ClassVar[tuple[str, ...]] = ()
    """The distributions of its environment that an executable runs on: what a bundle asks for."""
    parts: ClassVar[tuple[str, ...]] = ()
    """The worker's own files beside the one of its name."""

    @classmethod
    def environment(cls) -> WorkerEnvironment:
        return WorkerEnvironment(cls.name)

    @classmethod
    def unavailable(cls) -> str | None:
        """As of every member; or why its environment cannot be made here."""
        return super().unavailable() or cls.environment().unfit()

    @classmethod
    def files(cls) -> list[Path]:
        """What of `workers/` runs it."""
        return [_FOLDER / f"{name}.py" for name in (*_SHARED, *cls.parts, cls.name)]

    @classmethod
    def code_version(cls) -> str:
        """As of every member, and of the worker's files and the environment's lock."""
        files = [path.read_text() for path in cls.files()]
        return digest(super().code_version(), files, cls.environment().digest)

    @classmethod
    def prepare(cls) -> None:
        """The environment, whose making takes minutes. Raises: MissingExtraError."""
        cls.environment().ensure()

    @classmethod
    def worker(cls) -> Worker:
        """A new worker; its environment is made first where it is not there. Raises: MissingExtraError."""
        return Worker(cls.name, cls.environment().ensure())

    def compile(self, source: Path, into: Path) -> None:
        self.worker().call("compile", source=str(source), into=str(into), **self.model_dump(mode="json"))

    def load(self, artifact: Path) -> WorkerSession:
        def loaded() -> Worker:
            worker = self.worker()
            worker.call("load", artifact=str(artifact), **self.model_dump(mode="json"))
            return worker

        return WorkerSession(loaded(), loaded)


def _revived(name: str, error: Mapping[str, Any]) -> VariantError:
    """The worker's exception as one of ours; operator and node are named where they are known."""
    said = f"{error['type']}: {first_line(error['message'])}"
    if error["operator"] is not None:
        place = f" (node `{error['node']}`)" if error["node"] else ""
        return UnsuitableError(
            f"every operator must be one that {name} has",
            f"it lacks `{error['operator']}`{place}: {said}",
            "Take onnxruntime, which has the most, or rewrite this operator in the network",
        )
    if error["type"] == "MemoryError" or "bad_alloc" in said or "can't allocate memory" in said:
        return OutOfMemoryError(f"the worker `{name}` must fit into memory", said, "Drop the candidate")
    return StepFailedError(
        f"the worker `{name}` must do as it is asked",
        f"it raised {said} ({error['where']})",
        "The log holds the stack trace",
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipes, upon which a worker ends by itself, and reap it."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            continue  # it is dead already
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _widen(pipe: int) -> None:
    """A larger pipe, where the system knows such and this user may have one."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except PermissionError:
            return
