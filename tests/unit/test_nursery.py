"""Processes forked from one that has done its imports; what they share with new ones: `test_isolation.py`."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pareflow import nursery
from pareflow.errors import KilledError, TimedOutError
from pareflow.isolation import Child, Limits, run_isolated
from tests.processes import gone, started

CHECKOUT = Path(__file__).parents[2]
IMPORTED = ("mailbox",)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}:{Path(__file__).parent}")


def call(tmp_path: Path, function: str, imported: tuple[str, ...] = IMPORTED, **arguments: Any) -> Any:
    log = tmp_path / "child.log"
    return run_isolated(f"isolated_functions:{function}", arguments, Limits(60), log, imported=imported)


def nurseries() -> list[psutil.Process]:
    """This process's own."""
    return [one for one in psutil.Process().children() if "pareflow.nursery" in one.cmdline()]


def nursery_of(ancestors: list[int]) -> int:
    """The parent of who keeps the process."""
    return ancestors[1]


def test_modules_are_there_before_the_function_asks_for_them(tmp_path: Path) -> None:
    assert call(tmp_path, "has_imported", name="mailbox")
    assert not call(tmp_path, "has_imported", (), name="mailbox")


def test_one_nursery_serves_one_environment_and_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [nursery_of(call(tmp_path, "ancestors")) for _ in range(2)]
    assert first[0] == first[1]
    assert [one.pid for one in nurseries()] == [first[0]]
    monkeypatch.setenv("PAREFLOW_TESTED", "1")
    assert call(tmp_path, "environment", names=["PAREFLOW_TESTED"]) == {"PAREFLOW_TESTED": "1"}
    assert first[0] not in [one.pid for one in nurseries()]


def test_nursery_with_a_process_at_work_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "begun"
    arguments = {"begun": str(begun)}
    log = tmp_path / "hang.log"
    with Child("isolated_functions:hang", arguments, Limits(60), log, imported=IMPORTED) as child:
        monkeypatch.setenv("PAREFLOW_TESTED", "2")
        call(tmp_path, "ancestors")
        assert len(nurseries()) == 2
        with pytest.raises(TimedOutError):
            child.result(seconds=0.5)
    call(tmp_path, "ancestors")
    assert len(nurseries()) == 1


def test_nursery_that_was_killed_costs_its_time_alone(tmp_path: Path) -> None:
    killed = nursery_of(call(tmp_path, "ancestors"))
    os.kill(killed, signal.SIGKILL)
    found = [call(tmp_path, "ancestors") for _ in range(2)]
    assert killed not in [nursery_of(each) for each in found]


def test_nursery_killed_while_its_process_works_is_a_crash_and_leaves_nothing(tmp_path: Path) -> None:
    begun, log = tmp_path / "begun", tmp_path / "hang.log"
    arguments = {"begun": str(begun)}
    with Child("isolated_functions:hang", arguments, Limits(60), log, imported=IMPORTED) as child:
        pids, (only,) = started(begun), nurseries()
        only.kill()
        with pytest.raises(KilledError, match="it died of SIGKILL"):
            child.result()
    assert [gone(pid) for pid in pids] == [True, True]


def test_nursery_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pareflow.isolation import Limits, run_isolated\n"
        "asked = 'isolated_functions:ancestors', {}, Limits(), Path(sys.argv[1])\n"
        "found = run_isolated(*asked, imported=('mailbox',))\n"
        "print(found[1], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))


def test_lock_that_is_passed_on_is_held_as_long_as_the_process(tmp_path: Path) -> None:
    """And no longer: neither the nursery nor who keeps the process has it."""
    path = tmp_path / "lock"
    assert call(tmp_path, "ancestors")  # the nursery is there before the lock
    begun, log = tmp_path / "begun", tmp_path / "hang.log"
    with path.open("w") as held, path.open("w") as asked:
        fcntl.flock(held, fcntl.LOCK_EX)
        arguments, descriptors = {"begun": str(begun)}, (held.fileno(),)
        with Child("isolated_functions:hang", arguments, Limits(60), log, descriptors, IMPORTED):
            started(begun)
            held.close()
            with pytest.raises(BlockingIOError):
                fcntl.flock(asked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(asked, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_torch_computes_on_several_threads_after_a_fork(tmp_path: Path) -> None:
    found = call(tmp_path, "multiply", ("torch",), size=512, threads=2)
    assert found == {"right": True, "threads": 2}


def test_nursery_that_nobody_asks_ends_once_its_processes_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "IDLE_S", 0.3)
    begun, log = tmp_path / "begun", tmp_path / "hang.log"
    with Child("isolated_functions:hang", {"begun": str(begun)}, Limits(60), log, imported=IMPORTED):
        started(begun)
        (first,) = nurseries()
        time.sleep(1)
        assert not psutil.wait_procs([first], timeout=0)[0]
    assert gone(first.pid)
    assert nursery_of(call(tmp_path, "ancestors")) != first.pid
