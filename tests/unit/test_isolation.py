"""A function in a process of its own: what comes back, what it may use, and how its death is told."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from pareflow.errors import (
    CrashedError,
    KilledError,
    OutOfMemoryError,
    PareflowError,
    SpecError,
    StepFailedError,
    TimedOutError,
    TransientError,
)
from pareflow.hardware.device import INTERRUPTED, lock_folder
from pareflow.hardware.waits import noted
from pareflow.isolation import Child, Limits, _death, interruptible, run_isolated
from pareflow.store import Store
from tests.processes import gone, started

MODULE = "isolated_functions"
CHECKOUT = Path(__file__).parents[2]
IMPORTED = ("mailbox", "there_is_no_such_module")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}:{Path(__file__).parent}")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


Call = Callable[..., Any]


@pytest.fixture(params=[(), IMPORTED], ids=["new", "forked"])
def imported(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What the process finds imported: nothing, or what a nursery has."""
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture
def call(log: Path, imported: tuple[str, ...]) -> Call:
    """What one of `isolated_functions.py` returns, from a process of either kind."""

    def called(function: str, limits: Limits = Limits(seconds=60), **arguments: Any) -> Any:  # noqa: B008
        return run_isolated(f"{MODULE}:{function}", arguments, limits, log, imported=imported)

    return called


def test_result_comes_back_from_a_process_that_leads_its_group(call: Call) -> None:
    found = call("double", x=[1, 2])
    assert found["doubled"] == [2, 4]
    assert found["pid"] == found["group"] != os.getpid()


def test_log_holds_what_python_and_native_code_print(call: Call, log: Path) -> None:
    assert call("talk") is None
    assert sorted(log.read_text().splitlines()) == ["a warning", "from Python", "from a native library"]


@pytest.mark.parametrize("threads", [1, 3])
def test_native_thread_pools_are_bounded(call: Call, threads: int) -> None:
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    limits = Limits(threads=threads)
    assert call("environment", limits, names=names) == dict.fromkeys(names, str(threads))


@pytest.mark.parametrize(
    ("kind", "expected", "said"),
    [
        ("foreign", StepFailedError, "it raised ZeroDivisionError: by zero (isolated_functions.py:"),
        ("own", StepFailedError, "law, but finding. way out"),
        ("transient", TransientError, "law, but finding. way out"),
        ("spec", SpecError, "  - one\n  - two"),
        ("memory", OutOfMemoryError, "must fit into this machine's memory"),
        ("native memory", OutOfMemoryError, "must fit into this machine's memory"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_error_of_the_child_is_raised_here(
    call: Call, log: Path, kind: str, expected: type[PareflowError], said: str
) -> None:
    with pytest.raises(PareflowError) as caught:
        call("fail", kind=kind)
    assert type(caught.value) is expected
    assert said in str(caught.value)
    assert "Traceback" in log.read_text()


def test_pages_of_a_library_are_told_by_their_ends(call: Call, log: Path) -> None:
    """They stand in tables, reports and the clock; what they were is in the log."""
    with pytest.raises(StepFailedError) as caught:
        call("fail", kind="verbose")
    assert caught.value.found.startswith("it raised ValueError: begin")
    assert "end (isolated_functions.py:" in caught.value.found
    assert len(caught.value.found) < 1100
    assert "x" * 100_000 in log.read_text()


def test_segfault_is_told_with_the_end_of_the_log(call: Call, log: Path) -> None:
    with pytest.raises(CrashedError, match="it died of SIGSEGV") as caught:
        call("segfault")
    assert "about to read address 0" in str(caught.value)


def test_a_death_is_told_by_the_end_of_a_log_however_long_that_is(tmp_path: Path) -> None:
    """Of processes that run for months: 64 MiB here, of which a few KiB are read."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(2**26)
        file.seek(2**26)
        file.write("the laßt word\n".encode())
    tracemalloc.start()
    try:
        told = _death("work", 3, Limits(), log, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert told.remedy.endswith("the laßt word\n")


def test_temporary_files_of_the_killed_go_with_them(call: Call, tmp_path: Path) -> None:
    with pytest.raises(CrashedError):
        call("litter", told=str(tmp_path / "told"))
    ours, theirs = (tmp_path / "told").read_text().split()
    assert not Path(ours).exists()
    assert not Path(theirs).exists()


def test_locks_and_compiled_kernels_stay_where_others_find_them(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAREFLOW_LOCK_DIR")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    locks, kernels = call("lasting_folders")
    assert locks == str(lock_folder())
    assert [locks, kernels] == call("lasting_folders")
    assert kernels == default_cache_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert call("lasting_folders")[1] == "/elsewhere"


@pytest.mark.parametrize("status", [0, 3])
def test_exit_without_an_answer_is_a_crash(call: Call, status: int) -> None:
    with pytest.raises(CrashedError, match=f"it exited with status {status}.*is empty"):
        call("leave", status=status)


def test_answer_that_is_no_json_is_a_crash_with_its_reason(call: Call) -> None:
    with pytest.raises(CrashedError, match="set is not JSON serializable"):
        call("answer_with_a_set")


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux's kernel that ends processes")
def test_where_memory_runs_out_a_child_goes_first(call: Call) -> None:
    before = Path("/proc/self/oom_score_adj").read_text()
    assert call("read", path="/proc/self/oom_score_adj") == "1000\n"
    assert Path("/proc/self/oom_score_adj").read_text() == before


def test_memory_limit_holds_and_is_named(call: Call) -> None:
    limits = Limits(memory_mib=300)
    assert call("hoard", limits, mib=100) == 100 * 2**20
    with pytest.raises(OutOfMemoryError, match=r"must fit into 300 MiB, .*budget\.memory_mib"):
        call("hoard", limits, mib=400)


def test_hang_ends_at_the_limit_with_all_its_processes(
    log: Path, imported: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = {"begun": str(tmp_path / "begun")}
    with Child(f"{MODULE}:hang", arguments, Limits(seconds=60), log, imported=imported) as child:
        pids = started(tmp_path / "begun")
        with pytest.raises(TimedOutError, match=r"must finish in 0\.1 s"):
            child.result(seconds=0.1)
    assert [gone(pid) for pid in pids] == [True, True]


def test_what_killed_attempts_took_is_of_the_same_limit(
    log: Path, imported: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = {"begun": str(tmp_path / "begun")}
    limits = Limits(60, spent=61)
    with (
        Child(f"{MODULE}:hang", arguments, limits, log, imported=imported) as child,
        pytest.raises(TimedOutError, match="must finish in 60 s"),
    ):
        child.result()


def test_waiting_for_what_another_holds_is_none_of_its_time(
    log: Path, imported: tuple[str, ...], tmp_path: Path
) -> None:
    """Its limit passes more than once while it waits."""
    store = Store(tmp_path / "store")
    arguments = {"root": str(store.root), "key": "key"}
    with (
        store.lock("key"),
        Child(f"{MODULE}:wait_for", arguments, Limits(seconds=60), log, imported=imported) as child,
        ThreadPoolExecutor(1) as threads,
    ):
        while not noted(child._answer.with_name("waits.json")):
            time.sleep(0.01)
        found = threads.submit(child.result, seconds=0.05)
        time.sleep(0.3)
        child.kill()
        with pytest.raises(CrashedError):  # and not that it was stopped
            found.result()


@pytest.fixture
def parent(log: Path, imported: tuple[str, ...], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for a child which hangs."""
    code = (
        "import sys; from pathlib import Path; from pareflow.isolation import Limits, run_isolated\n"
        f"arguments, imported = {{'begun': sys.argv[1]}}, {imported}\n"
        f"run_isolated('{MODULE}:hang', arguments, Limits(), Path(sys.argv[2]), imported=imported)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "begun"), str(log)]) as process:
        yield process
        process.kill()


def test_child_dies_with_its_parent(
    parent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, grandchild = started(tmp_path / "begun")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(pid)
    os.kill(grandchild, signal.SIGKILL)  # its own children are beyond the kernel's promise


BUILDS = """
import sys
from pathlib import Path
from prefect import task
from pareflow.hardware.device import device_lock
from pareflow.isolation import Limits, run_isolated
from tasks.execution import Plain

@task
def build(begun):
    with device_lock("cpu", exclusive=sys.argv[1] == "1"):
        run_isolated("isolated_functions:hang", {"begun": begun}, Limits(), Path(begun + ".log"))

try:
    Plain().each(build, [(begun,) for begun in sys.argv[2:]], [])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("at_once", [2, 1], ids=["side by side", "one waits for the device"])
def test_ctrl_c_while_variants_are_built_ends_all_their_processes(tmp_path: Path, at_once: int) -> None:
    """Each hangs in a session of its own for ten minutes; threads wait for them."""
    begun = [tmp_path / "one", tmp_path / "two"]
    words = [sys.executable, "-c", BUILDS, str(at_once), *map(str, begun)]
    with subprocess.Popen(
        words,
        cwd=CHECKOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else it ignores what we ignore
    ) as process:
        try:
            pids = [pid for file in _begun(begun, at_once) for pid in started(file)]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 130
        finally:
            process.kill()
    assert [gone(pid) for pid in pids] == [True] * 2 * at_once
    assert len(_begun(begun, 0)) == at_once


class Terminated(BaseException):
    """What an orchestrator makes of SIGTERM: no error, as its own is none."""


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, Terminated])
def test_what_begins_after_an_interruption_ends_at_once(
    log: Path, imported: tuple[str, ...], tmp_path: Path, ended_by: type[BaseException]
) -> None:
    """Until another run begins (`test_clock.py`)."""
    with pytest.raises(ended_by), interruptible():
        raise ended_by
    arguments = {"begun": str(tmp_path / "begun")}
    try:
        with pytest.raises(KilledError, match="it died of SIGKILL"):
            run_isolated(f"{MODULE}:hang", arguments, Limits(seconds=20), log, imported=imported)
    finally:
        INTERRUPTED.clear()


def test_an_error_ends_no_other_child(log: Path, imported: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="of one"), interruptible():
        raise ValueError("of one")
    assert run_isolated(f"{MODULE}:double", {"x": [2]}, Limits(), log, imported=imported)


def _begun(files: Sequence[Path], least: int) -> list[Path]:
    """Those that have begun, at least so many."""
    deadline = time.monotonic() + 60
    while len(found := [file for file in files if file.exists()]) < least:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_descriptors_stay_open_in_the_child(log: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as file:
        file.write("held")
        file.flush()
        arguments = {"descriptor": file.fileno()}
        held = run_isolated(
            f"{MODULE}:read_descriptor", arguments, Limits(), log, descriptors=(file.fileno(),)
        )
    assert held == "held"


def test_current_folder_is_not_searched_for_modules(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's `random.py` beside the pipeline must not stand in for the standard library's."""
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
    monkeypatch.chdir(tmp_path)
    assert call("double", x=[1])["doubled"] == [2]
