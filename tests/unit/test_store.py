"""The store: whole entries or none, checked each time they are opened."""

import itertools
import os
import shutil
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest

from pareflow.errors import BusyMachineError, StoreError, VariantError
from pareflow.hardware.device import INTERRUPTED
from pareflow.store import MANIFEST, Store


def writer(text: str = "abc") -> Callable[[Path], None]:
    def write(into: Path) -> None:
        (into / "sub").mkdir()
        (into / "sub" / "file").write_text(text)

    return write


def never(into: Path) -> None:
    raise AssertionError("a finished entry was made again")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def leftovers(store: Store) -> list[Path]:
    return list((store.root / "making").iterdir())


def test_entry_is_made_once_and_found_again(store: Store) -> None:
    entry = store.ensure("key", writer())
    assert (entry / "sub" / "file").read_text() == "abc"
    assert store.ensure("key", never) == store.find("key") == entry
    assert Store(store.root).find("key") == entry
    assert leftovers(store) == []


def test_copy_of_an_entry_is_an_entry_with_a_manifest_of_its_own(store: Store) -> None:
    """As of a backend that takes the network as it is: everything of the folder is copied."""
    first = store.ensure("first", writer())
    second = store.ensure("second", partial(shutil.copytree, first, dirs_exist_ok=True))
    assert store.find("second") == second
    (second / "sub" / "file").write_text("abd")
    assert store.find("second") is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_entry_is_as_open_to_others_as_the_umask_leaves_it(store: Store, umask: int, mode: int) -> None:
    """Another user's run reads it, and so does the image's user where it is exported."""
    before = os.umask(umask)
    try:
        entry = store.ensure("key", writer())
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (entry, entry / "sub")] == [mode, mode]
    assert stat.S_IMODE((entry / "sub" / "file").stat().st_mode) == mode & 0o666


def test_entry_of_another_store_is_brought_once(store: Store, tmp_path: Path) -> None:
    entry = Store(tmp_path / "other").ensure("key", writer())
    brought = store.bring("key", entry)
    assert brought == store.find("key") != entry
    assert (brought / "sub" / "file").read_text() == "abc"
    shutil.rmtree(entry)
    assert store.bring("key", entry) == brought


def test_absent_entry_is_none(store: Store) -> None:
    assert store.find("key") is None


def test_failed_writer_leaves_nothing(store: Store) -> None:
    def write(into: Path) -> None:
        (into / "half").write_text("half")
        raise VariantError("it must work", "it does not", "Give up")

    with pytest.raises(VariantError):
        store.ensure("key", write)
    assert store.find("key") is None
    assert leftovers(store) == []
    assert store.ensure("key", writer()).exists()


def test_who_waits_for_a_key_can_be_interrupted(store: Store) -> None:
    """The descriptor is another's, as another process's would be."""
    with store.lock("key"):
        threading.Timer(0.1, INTERRUPTED.set).start()
        try:
            with pytest.raises(BusyMachineError, match="`key` must be free, but another process makes it"):
                store.ensure("key", never)
            store.ensure("other", writer())  # which is free
        finally:
            INTERRUPTED.clear()
    store.ensure("key", writer())


def test_evicted_entry_is_made_again(store: Store) -> None:
    store.ensure("key", writer("old"))
    store.evict("key")
    assert store.find("key") is None
    assert (store.ensure("key", writer("new")) / "sub" / "file").read_text() == "new"


def test_any_flipped_bit_is_noticed(store: Store) -> None:
    """Every bit of the file and of the manifest; only white space in the manifest means nothing."""
    entry = store.ensure("key", writer("ab"))
    for path in (entry / "sub" / "file", entry / MANIFEST):
        whole = path.read_bytes()
        for position, bit in itertools.product(range(len(whole)), range(8)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            if store.find("key") is not None:
                assert whole[position : position + 1].isspace(), (path.name, position, bit)
        path.write_bytes(whole)
    assert store.find("key") == entry


@pytest.mark.parametrize("name", ["sub/file", MANIFEST], ids=["file", "manifest"])
def test_deleted_file_is_noticed_and_only_that_entry_is_made_again(store: Store, name: str) -> None:
    store.ensure("whole", writer())
    damaged = store.ensure("damaged", writer())
    (damaged / name).unlink()
    assert store.find("damaged") is None
    assert store.ensure("damaged", writer()) == damaged
    assert store.ensure("whole", never)
    assert (damaged / "sub" / "file").read_text() == "abc"


@pytest.mark.parametrize("manifest", ["", "[]", "5", "{}", '{"files": 3}', '{"files": {"x": 5}}'], ids=repr)
def test_manifest_of_another_shape_is_damage(store: Store, manifest: str) -> None:
    entry = store.ensure("key", writer())
    (entry / MANIFEST).write_text(manifest)
    assert store.find("key") is None


def test_looking_never_changes_the_store(store: Store) -> None:
    """Two processes may look at a damaged entry while a third makes it anew; only the maker removes it."""
    entry = store.ensure("key", writer())
    (entry / "sub" / "file").write_text("other")
    before = sorted(store.root.rglob("*"))
    assert store.find("key") is None
    assert sorted(store.root.rglob("*")) == before


def test_what_a_killed_maker_left_is_swept(store: Store) -> None:
    (store.root / "making" / "key.abandoned").mkdir()
    (store.root / "making" / "other.abandoned").mkdir()
    store.ensure("key", writer())
    assert [path.name for path in leftovers(store)] == ["other.abandoned"]


class Cut:
    """A remote in the midst of whose taking an entry its maker is killed."""

    def fetch(self, key: str, into: Path) -> bool:
        return False

    def send(self, key: str, folder: Path) -> bool:
        os._exit(9)

    def forget(self, key: str) -> None: ...

    def alone(self, key: str) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_maker_finished_that_is_killed_while_it_sends_is_not_made_again(
    store: Store, damaged: bool
) -> None:
    """Only what is whole is taken; until then there is no entry."""
    if (child := os.fork()) == 0:
        with suppress(BaseException):  # of two processes one goes on here
            Store(store.root, Cut()).ensure("key", writer())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert store.find("key") is None
    if damaged:
        (store.root / "unsent" / "key" / "sub" / "file").write_text("other")
    made = store.ensure("key", writer("again") if damaged else never)
    assert (made / "sub" / "file").read_text() == ("again" if damaged else "abc")
    assert list((store.root / "unsent").iterdir()) == leftovers(store) == []


def test_foreign_trouble_passes_through(store: Store) -> None:
    """An error that is not about this store's space or rights is not called one."""

    def write(into: Path) -> None:
        raise PermissionError(13, "Permission denied", "/etc/somewhere/else")

    with pytest.raises(PermissionError):
        store.ensure("key", write)


def test_finding_an_entry_is_noted_and_looking_for_none_is_not(store: Store) -> None:
    manifest = store.ensure("key", writer()) / MANIFEST
    os.utime(manifest, ns=(7, 7))
    assert store.find("other") is None
    assert manifest.stat().st_mtime_ns == 7
    assert store.find("key") is not None
    assert manifest.stat().st_mtime_ns > 7


def test_store_says_its_format_and_one_from_before_is_taken_over(tmp_path: Path) -> None:
    old = Store(tmp_path / "store")
    entry = old.ensure("key", writer())
    (old.root / "version").unlink()
    new = Store(old.root)
    assert (new.root / "version").read_text() == "1\n"
    assert new.ensure("key", never) == entry
    assert leftovers(new) == []


@pytest.mark.parametrize("stated", [b"2\n", b"0", b"", b"\xff", b"one"], ids=repr)
def test_store_of_another_format_is_told_and_left_as_it_is(tmp_path: Path, stated: bytes) -> None:
    root = tmp_path / "store"
    root.mkdir()
    (root / "version").write_bytes(stated)
    with pytest.raises(StoreError) as caught:
        Store(root)
    assert caught.value.exit_code == 4
    assert "must be of format 1" in caught.value.must
    assert "that file says" in caught.value.found
    assert "--data-dir" in caught.value.remedy
    assert [path.name for path in root.iterdir()] == ["version"]
