"""A runtime in another interpreter: what crosses, what its death costs, and that it outlives nobody."""

import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import psutil
import pytest

from pareflow.catalog import BACKENDS
from pareflow.compiler.worker import Worker, WorkerSession
from pareflow.compiler.workers import serve, wire
from pareflow.errors import CrashedError, OutOfMemoryError, StepFailedError, UnsuitableError
from tests.processes import gone

PYTHON = Path(sys.executable)
START = ("-I", "-c", serve.BOOT, "echo", Path(serve.__file__).parent, Path(__file__).parents[1] / "workloads")
FEEDS = {"images": np.arange(6, dtype=np.float32).reshape(2, 3), "words": np.asarray(["a", "bc"])}
OWNER = """
import sys, threading, time
from pathlib import Path
import numpy as np
from pareflow.compiler.worker import Worker

worker = Worker("echo", Path(sys.executable), sys.argv[2:])
worker.call("load", sleep_s=float(sys.argv[1]))
print(worker.pid, flush=True)
worker.call("run", {"x": np.zeros(1)})
time.sleep(600)
"""


@pytest.fixture
def echo() -> Worker:
    return Worker("echo", PYTHON, START)


def test_it_gives_back_what_it_is_sent(echo: Worker) -> None:
    echo.call("load")
    _, answers = echo.call("run", FEEDS)
    assert list(answers) == list(FEEDS)
    assert all(np.array_equal(answers[name], array) for name, array in FEEDS.items())
    assert echo.call("ran")[0]["ran"]["runtime"] == "echo"


def test_requests_larger_than_the_pipe_cross(echo: Worker) -> None:
    echo.call("load")
    large = np.random.default_rng(0).random(2**21)  # 16 MiB
    assert np.array_equal(echo.call("run", {"x": large})[1]["x"], large)


def test_what_it_prints_goes_to_stderr(echo: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    loud = Worker("echo", PYTHON, START)  # it inherits the stderr that capfd reads
    loud.call("load", print_first="converting 3 operators")
    assert np.array_equal(loud.call("run", FEEDS)[1]["images"], FEEDS["images"])
    assert capfd.readouterr() == ("", "converting 3 operators\n")


def test_exception_is_told_with_its_place_and_the_next_request_is_answered(echo: Worker) -> None:
    with pytest.raises(StepFailedError, match=r"it raised ValueError: .*'dance' \(serve\.py:\d+\)"):
        echo.call("dance")
    echo.call("load")
    assert "images" in echo.call("run", FEEDS)[1]


def test_lacking_operator_is_named_with_its_node(echo: Worker) -> None:
    echo.call("load", lacks="Erf")
    with pytest.raises(UnsuitableError, match=re.escape("it lacks `Erf` (node `node_1`): ")):
        echo.call("run", FEEDS)


def test_too_much_memory_is_told_as_such(echo: Worker) -> None:
    echo.call("load", allocate=2**60)
    with pytest.raises(OutOfMemoryError, match="Unable to allocate"):
        echo.call("run", FEEDS)


def test_input_that_cannot_be_sent_costs_that_call_alone(echo: Worker) -> None:
    echo.call("load")
    with pytest.raises(TypeError, match="arrays of object cannot be sent"):
        echo.call("run", {"x": np.asarray([None])})
    assert "images" in echo.call("run", FEEDS)[1]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_worker_killed_amid_a_request_fails_that_call_and_nothing_else(echo: Worker, name: str) -> None:
    doomed = Worker("echo", PYTHON, START)
    doomed.call("load", sleep_s=600)
    threading.Timer(0.3, os.kill, (doomed.pid, signal.Signals[name])).start()
    with pytest.raises(CrashedError, match=f"it died of {name}"):
        doomed.call("run", FEEDS)
    with pytest.raises(CrashedError, match=f"it died of {name}"):
        doomed.call("run", FEEDS)  # nor does a dead one hang, or answer
    echo.call("load")
    assert "images" in echo.call("run", FEEDS)[1]


def test_worker_that_exits_says_its_status(tmp_path: Path) -> None:
    """An interpreter that ends before it greets: one that is broken."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(CrashedError, match="it exited with status 3"):
        Worker("echo", broken)


def test_absent_runtime_is_told_when_the_worker_greets() -> None:
    with pytest.raises(StepFailedError, match=r"ModuleNotFoundError: No module named 'workers\.no_such'"):
        Worker("no_such", PYTHON)


def test_other_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """This side is one version on: the number in its greeting does not fit, though the bytes do."""
    monkeypatch.setattr(wire, "PROTOCOL", wire.PROTOCOL + 1)
    with pytest.raises(CrashedError, match=r"speak protocol 2, but it is `echo` and speaks 1"):
        Worker("echo", PYTHON, START)


def test_other_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAGIC", b"pareflo\x02")
    with pytest.raises(CrashedError, match="must speak the protocol, but it began with b'pareflo"):
        Worker("echo", PYTHON, START)


def test_threads_wait_for_each_other(echo: Worker) -> None:
    """Each gets the answer to its own request, although all ask at once."""
    echo.call("load", sleep_s=0.002)
    wrong: list[int] = []

    def ask(number: int) -> None:
        for size in range(1, 20):
            sent = np.full(size, number)
            if not np.array_equal(echo.call("run", {"x": sent})[1]["x"], sent):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_tells_the_server_to_end_leaves_its_workers_to_it(name: str) -> None:
    """A terminal's Ctrl-C and systemd's SIGTERM reach all at once: requests under way are answered."""
    told = Worker("echo", PYTHON, START)
    told.call("load")
    pid = told.pid
    os.kill(pid, signal.Signals[name])
    assert "images" in told.call("run", FEEDS)[1]
    del told
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_worker_that_nobody_holds_ends_and_is_reaped() -> None:
    worker = Worker("echo", PYTHON, START)
    pid = worker.pid
    del worker
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_interrupted_request_does_not_answer_the_next(echo: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c(answers: IO[bytes]) -> wire.Message:
        select.select([answers], [], [])  # the answer is there, and unread
        raise KeyboardInterrupt

    echo.call("load")
    with monkeypatch.context() as patch:
        patch.setattr(wire, "read", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            echo.call("run", {"x": np.zeros(1)})
    with pytest.raises(CrashedError, match="it died of SIGKILL"):
        echo.call("run", {"x": np.ones(1)})


def loaded() -> Worker:
    worker = Worker("echo", PYTHON, START)
    worker.call("load")
    return worker


def test_worker_that_died_fails_one_request_and_another_one_answers_the_next() -> None:
    session = WorkerSession(loaded(), loaded)
    os.kill(session._worker.pid, signal.SIGKILL)
    with pytest.raises(CrashedError, match="it died of SIGKILL"):
        session.run(FEEDS)
    assert all("images" in session.run(FEEDS) for _ in range(20))
    assert session.ran().runtime == "echo"


def test_executable_of_a_backend_is_loaded_again(
    rogues: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend: Any = BACKENDS["unbuildable"]
    monkeypatch.setattr(backend, "worker", staticmethod(lambda: Worker("echo", PYTHON, START)))
    session = backend().load(tmp_path)
    session._worker.kill()
    with pytest.raises(CrashedError):
        session.run(FEEDS)
    assert "images" in session.run(FEEDS)


class Dying:
    """A worker that dies of every request."""

    def call(self, *_: Any) -> Any:
        raise CrashedError("the worker must answer", "it died", "Mend it")


def test_workers_that_die_at_once_are_begun_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once after the first, and again so once one had lived for longer than the longest pause."""
    now, begun = 0, list[int]()
    monkeypatch.setattr("pareflow.compiler.worker.time", SimpleNamespace(monotonic=lambda: now))

    def anew() -> Any:
        begun.append(now)
        return Dying()

    session = WorkerSession(anew(), anew)
    for moment in (*range(200), *range(1000, 1004)):
        now = moment
        with pytest.raises(CrashedError, match=r"it died(, and the next is begun in \d+\.0 s)?\. Mend it"):
            session.run(FEEDS)
    assert begun == [0, 1, 2, 4, 8, 16, 32, 64, 124, 184, 1000, 1001, 1003]


@pytest.fixture(params=["0", "600"], ids=["idle", "amid a request"])
def owner(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a worker, whose number it prints."""
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, request.param, *map(str, START)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        yield process
        process.kill()


def test_worker_ends_with_pareflow_however_that_ends(owner: "subprocess.Popen[str]") -> None:
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert psutil.pid_exists(pid)
    owner.send_signal(signal.SIGKILL)
    assert gone(pid)
