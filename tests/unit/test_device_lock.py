"""The device lock: alone to time, shared to build, and every user of the host sees it."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pareflow.errors import BusyMachineError, EnvironmentUnfitError
from pareflow.hardware import device
from pareflow.hardware.device import device_lock, lock_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAREFLOW_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


def free(folder: Path, device: str, *, exclusive: bool) -> bool:
    """Whether somebody else could hold the device now."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{device}.lock").open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_timing_has_its_device_alone(folder: Path) -> None:
    with device_lock("cpu", exclusive=True):
        assert not free(folder, "cpu", exclusive=True)
        assert not free(folder, "cpu", exclusive=False)
        assert free(folder, "cuda0", exclusive=True)
    assert free(folder, "cpu", exclusive=True)


def test_builds_share_a_device(folder: Path) -> None:
    with device_lock("cpu", exclusive=False), device_lock("cpu", exclusive=False):
        assert free(folder, "cpu", exclusive=False)
        assert not free(folder, "cpu", exclusive=True)


def test_who_does_not_wait_is_told_that_the_device_is_busy(folder: Path) -> None:
    busy = pytest.raises(BusyMachineError, match="another process builds or times on it")
    with device_lock("cpu", exclusive=False), busy, device_lock("cpu", exclusive=True, wait=False):
        pass
    with device_lock("cpu", exclusive=True, wait=False):
        assert not free(folder, "cpu", exclusive=False)


def test_lock_is_freed_when_the_work_raises(folder: Path) -> None:
    with pytest.raises(RuntimeError), device_lock("cpu", exclusive=True):
        raise RuntimeError
    assert free(folder, "cpu", exclusive=True)


def test_descriptor_is_the_lock(folder: Path) -> None:
    with device_lock("cpu", exclusive=True) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), (folder / "cpu.lock").stat())
        kept = os.dup(descriptor)
    assert not free(folder, "cpu", exclusive=True)
    os.close(kept)
    assert free(folder, "cpu", exclusive=True)


def test_folder_is_of_the_host_unless_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock_folder() == folder
    monkeypatch.delenv("PAREFLOW_LOCK_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))  # a run's own, which no other run looks into
    assert lock_folder() == Path("/tmp/pareflow-locks")


def test_users_with_a_careful_umask_leave_locks_that_others_can_take(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with device_lock("cpu", exclusive=True):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
            assert stat.S_IMODE((folder / "cpu.lock").stat().st_mode) == 0o666
    finally:
        os.umask(before)


@pytest.mark.usefixtures("as_root")
def test_another_user_takes_the_same_lock(folder: Path, checkout: Path) -> None:
    """As `nobody`, with what the host gives it: the folder and the file that root made."""
    with device_lock("cpu", exclusive=False):
        pass
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH:
            parent.chmod(0o711)
    code = (
        "import os; from pareflow.hardware.device import device_lock\n"
        "os.setgroups([]); os.setuid(65534)\n"
        "with device_lock('cpu', exclusive=True) as held: print(os.fstat(held).st_uid, os.getuid())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "65534"]


def test_folder_that_cannot_be_made_is_an_unfit_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAREFLOW_LOCK_DIR", str(tmp_path / "file" / "locks"))
    with (
        pytest.raises(EnvironmentUnfitError, match="PAREFLOW_LOCK_DIR"),
        device_lock("cpu", exclusive=True),
    ):
        pytest.fail("the lock was given")


def refused(said: str) -> None:
    with pytest.raises(EnvironmentUnfitError, match=said), device_lock("cpu", exclusive=True):
        pytest.fail("the lock was given")


def test_a_link_in_the_place_of_a_lock_is_refused_and_its_target_not_made(
    folder: Path, tmp_path: Path
) -> None:
    folder.mkdir()
    (folder / "cpu.lock").symlink_to(tmp_path / "victim")
    refused("PAREFLOW_LOCK_DIR")
    assert not (tmp_path / "victim").exists()


def test_another_name_of_somebodys_file_is_refused_and_its_rights_stay(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "victim").touch(mode=0o600)
    (folder / "cpu.lock").hardlink_to(tmp_path / "victim")
    refused("no file of its own")
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o600


@pytest.mark.usefixtures("as_root")
def test_a_folder_of_another_user_is_as_good(folder: Path) -> None:
    """Such as a group's, which is not sticky, or one that a container was given."""
    folder.mkdir(mode=0o770)
    os.chown(folder, 65534, 65534)
    with device_lock("cpu", exclusive=True):
        assert not free(folder, "cpu", exclusive=False)


def test_a_lock_is_taken_where_the_file_system_lets_nobody_set_rights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    folder.mkdir()
    monkeypatch.setattr(os, "fchmod", forbidden)
    with device_lock("cpu", exclusive=True):
        assert not free(folder, "cpu", exclusive=False)


def test_a_long_wait_and_its_end_are_told_once_with_who_holds_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two threads wait; where the device is free there is nothing to tell."""
    monkeypatch.setattr(device, "SILENT_S", 0.0)

    def build() -> None:
        with device_lock("cpu", exclusive=False):
            pass

    build()
    assert caplog.messages == []
    with ThreadPoolExecutor(2) as threads:
        with device_lock("cpu", exclusive=True):
            building = [threads.submit(build) for _ in range(2)]
            while not caplog.messages:
                time.sleep(device.LOOK_S)
            time.sleep(5 * device.LOOK_S)
            (told,) = caplog.messages
        for one in building:
            one.result()
    assert told == (
        "waiting for the device `cpu`: another process builds or times on it "
        f"(process {os.getpid()} of {Path('/proc/self').owner()})"
    )
    _, end = caplog.messages
    assert end.startswith("the device `cpu` was free after ")
