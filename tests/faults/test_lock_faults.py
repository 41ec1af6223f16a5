"""The device lock between real processes: never two at once, freed by death, kept by who inherits it."""

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TAKE_TURNS = """
import os, sys, time
from pareflow.hardware.device import device_lock

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(20):
    with device_lock("cpu", exclusive=True):
        os.write(log, f"{os.getpid()} in\\n".encode())
        time.sleep(0.002)
        os.write(log, f"{os.getpid()} out\\n".encode())
"""
HOLD = """
import subprocess, sys, time
from pathlib import Path
from pareflow.hardware.device import device_lock

with device_lock("cpu", exclusive=True) as descriptor:
    kept = (descriptor,) if sys.argv[2] == "inherited" else ()
    heir = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], pass_fds=kept)
    Path(sys.argv[1]).write_text(str(heir.pid))
    time.sleep(1000)
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAREFLOW_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks" / "cpu.lock"


@pytest.fixture
def start(checkout: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, cwd=checkout, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False, capture_output=True)
        process.wait()


def free(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def becomes_free(lock: Path) -> bool:
    return _free_within(lock, tries=100)


def test_two_processes_never_hold_a_device_at_once(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert [process.wait(60) for process in [start(TAKE_TURNS, log) for _ in range(3)]] == [0, 0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 3 * 20 * 2
    assert len({pid for pid, _ in lines}) == 3
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert (entered[1], left[1]) == ("in", "out")
        assert entered[0] == left[0]


def holder(start: Start, tmp_path: Path, kind: str) -> tuple[subprocess.Popen[bytes], int]:
    process = start(HOLD, tmp_path / "heir", kind)
    while not ((tmp_path / "heir").exists() and (tmp_path / "heir").read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    return process, int((tmp_path / "heir").read_text())


def test_lock_is_freed_when_its_holder_is_killed(start: Start, tmp_path: Path, locks: Path) -> None:
    process, _ = holder(start, tmp_path, "alone")
    assert not free(locks)
    process.kill()
    process.wait()
    assert becomes_free(locks)


def test_lock_is_held_until_the_last_who_inherited_it_ends(start: Start, tmp_path: Path, locks: Path) -> None:
    """A timing whose parent was killed still has the device alone."""
    process, heir = holder(start, tmp_path, "inherited")
    process.kill()
    process.wait()
    assert not becomes_free_soon(locks)
    subprocess.run(["kill", "-KILL", str(heir)], check=True)
    assert becomes_free(locks)


def becomes_free_soon(lock: Path) -> bool:
    return _free_within(lock, tries=10)


def _free_within(lock: Path, tries: int) -> bool:
    for _ in range(tries):
        if free(lock):
            return True
        time.sleep(0.05)
    return False
