"""The collection: least recently used first, down to the limit, and nothing that is needed."""

import errno
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow import collection
from pareflow.collection import Collected, collect, holders, holding, items, leftovers, size
from pareflow.errors import StoreError
from pareflow.store import MANIFEST, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def entry(store: Store, key: str, kib: int, used: int) -> Path:
    """An entry of so many KiB in all, last used so many ns after the epoch."""

    def write(into: Path) -> None:
        (into / "file").write_bytes(b"")

    made = store.ensure(key, write)
    (made / "file").write_bytes(b"x" * (kib * 1024 - (made / MANIFEST).stat().st_size))
    os.utime(made / MANIFEST, ns=(used, used))
    return made


def scratch(store: Store, key: str, kib: int, used: int) -> Path:
    folder = store.scratch(key)
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_bytes(b"x" * (kib * 1024))
    for path in (folder, folder / "checkpoint"):
        os.utime(path, ns=(used, used))
    return folder


def left(store: Store) -> list[str]:
    return [item.key for item in items(store)]


def test_least_recently_used_goes_first_and_only_down_to_the_limit(store: Store) -> None:
    """1 + 2 + 3 + 4 = 10 KiB, used in the order 3, 1, 4, 2: below 6 KiB once 3 and 1 are gone."""
    for kib, used in ((1, 20), (2, 40), (3, 10), (4, 30)):
        entry(store, f"k{kib}", kib, used)
    assert left(store) == ["k3", "k1", "k4", "k2"]
    assert collect(store, 10 * 1024) == Collected(removed=0, freed=0, left=10 * 1024)
    assert collect(store, 6 * 1024) == Collected(removed=2, freed=4 * 1024, left=6 * 1024)
    assert left(store) == ["k4", "k2"]
    assert list((store.root / "making").iterdir()) == []


def test_a_folder_that_goes_while_it_is_looked_through_is_passed_over(tmp_path: Path) -> None:
    """A checkpoint is renamed every two seconds; whoever looks at the store looks at what is left."""
    for name in ("going", "staying"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    looked = collection._within(tmp_path)
    assert {next(looked).name, next(looked).name} == {"going", "staying"}
    shutil.rmtree(tmp_path / "going")
    assert list(looked) == [tmp_path / "staying" / "file"]


def test_finding_an_entry_saves_it_from_going_first(store: Store) -> None:
    entry(store, "found", 1, used=10)
    entry(store, "forgotten", 1, used=20)
    (store.root / "entries" / "found" / "file").write_bytes(b"")  # as it was sealed
    assert store.find("found") is not None
    assert left(store) == ["forgotten", "found"]


def test_what_is_needed_stays_even_above_the_limit(store: Store) -> None:
    for kib in (1, 2, 3):
        entry(store, f"k{kib}", kib, used=kib)
    assert collect(store, 0, {"k2"}) == Collected(removed=2, freed=4 * 1024, left=2 * 1024)
    assert left(store) == ["k2"]


def test_a_linked_file_counts_once_and_is_freed_with_its_last_link(store: Store) -> None:
    """4 KiB in one file, linked from two entries with manifests of 1 KiB each in their place."""
    first, second = entry(store, "first", 5, used=1), entry(store, "second", 5, used=2)
    (second / "file").unlink()
    (second / "file").hardlink_to(first / "file")
    manifest = (first / MANIFEST).stat().st_size
    assert size(items(store)) == 5 * 1024 + (second / MANIFEST).stat().st_size
    assert collect(store, 5 * 1024).freed == manifest
    assert left(store) == ["second"]


def test_scratch_of_killed_builds_goes_in_its_turn(store: Store) -> None:
    scratch(store, "old", 1, used=10)
    entry(store, "middle", 1, used=20)
    scratch(store, "new", 1, used=30)
    assert left(store) == ["old", "middle", "new"]
    assert collect(store, 1024) == Collected(removed=2, freed=2048, left=1024)
    assert left(store) == ["new"]


def test_what_was_never_sent_goes_in_its_turn(store: Store) -> None:
    """It was finished, and the remote was away; nobody asked for it again."""
    for key, used in (("unsent", 10), ("needed", 20)):
        entry(store, key, 1, used).rename(store.root / "unsent" / key)
    entry(store, "later", 1, used=30)
    assert left(store) == ["unsent", "needed", "later"]
    assert collect(store, 1024, {"needed"}) == Collected(removed=2, freed=2048, left=1024)
    assert left(store) == ["needed"]


@pytest.mark.parametrize("make", [entry, scratch])
def test_a_key_that_somebody_makes_is_left_alone(store: Store, make: Callable[..., Path]) -> None:
    folder = make(store, "key", 1, used=1)
    with store.lock("key"):
        assert collect(store, 0).removed == 0
    assert folder.exists()
    assert collect(store, 0).removed == 1


def test_what_killed_makers_left_goes_whatever_the_limit(store: Store) -> None:
    kept = entry(store, "kept", 1, used=1)
    making = store.root / "making"
    for name in ("dead.abc", "alive.abc"):
        (making / name).mkdir()
        (making / name / "half").write_text("half")
    (making / "version.abc").write_text("1")
    with store.lock("alive"):
        assert [path.name for path in sorted(leftovers(store))] == ["dead.abc", "version.abc"]
        collect(store, 2**40)
        assert [path.name for path in making.iterdir()] == ["alive.abc"]
    assert kept.exists()


def test_damaged_entry_without_a_manifest_can_go(store: Store) -> None:
    (entry(store, "damaged", 1, used=1) / MANIFEST).unlink()
    assert collect(store, 0).removed == 1


def test_what_is_used_after_a_run_began_stays_until_it_ends(store: Store) -> None:
    for key in ("before", "used"):
        store.ensure(key, lambda into: (into / "file").touch())
        os.utime(store.root / "entries" / key / MANIFEST, ns=(1, 1))
    with holding(store, "images"):
        assert store.find("used") is not None
        store.ensure("made", lambda into: (into / "file").touch())
        (holder,) = holders(store)
        assert (holder.what, holder.pid) == ("images", os.getpid())
        with holding(store, "later"):
            assert collect(store, 0).removed == 1
            assert left(store) == ["used", "made"]
            assert [holder.what for holder in holders(store)] == ["images", "later"]
    assert holders(store) == []
    assert collect(store, 0).left == 0
    assert left(store) == []


def test_dead_run_holds_nothing(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=hold_and_die, args=(store.root,))
    child.start()
    child.join()
    assert len(list((store.root / "running").iterdir())) == 1
    assert holders(store) == []
    entry(store, "key", 1, used=2**62)  # long after it began
    assert collect(store, 0).removed == 1
    assert list((store.root / "running").iterdir()) == []


def test_who_finds_no_room_to_say_who_he_is_holds_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor tries it again every minute: no descriptor and no lock may stay."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        with pytest.raises(StoreError, match="the disk is full"), holding(store, "monitor m"):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list((store.root / "running").iterdir()) == []


def hold_and_die(root: Path) -> None:
    with holding(Store(root), "dead"):
        os._exit(1)


def test_what_is_used_between_the_look_and_the_removal_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(store, "key", 1, used=1)
    seen = items(store)
    os.utime(store.root / "entries" / "key" / MANIFEST, ns=(2, 2))
    monkeypatch.setattr("pareflow.collection.items", lambda _: seen)
    assert collect(store, 0).removed == 0
    assert left(store) == ["key"]


SOME = st.lists(
    st.tuples(st.integers(1, 8), st.integers(1, 10**9), st.booleans(), st.booleans()), min_size=1, max_size=8
)


@given(SOME, st.integers(0, 40))
def test_never_above_the_limit_unless_all_that_is_left_is_needed(
    some: list[tuple[int, int, bool, bool]], kib: int
) -> None:
    """Each is (KiB, used, needed, scratch); what goes is the shortest run of the free in their order."""
    root = Path(tempfile.mkdtemp())
    try:
        store, needed, free, total = Store(root), set(), [], 0
        for position, (size_kib, used, is_needed, is_scratch) in enumerate(some):
            key = f"{position:064d}"
            (scratch if is_scratch else entry)(store, key, size_kib, used)
            total += size_kib
            if is_needed:
                needed.add(key)
            else:
                free.append((used, key, size_kib))
        going = []
        for _, key, size_kib in sorted(free):
            if total > kib:
                going.append(key)
                total -= size_kib
        done = collect(store, kib * 1024, needed)
        assert done.left == size(items(store)) == total * 1024
        assert done.left <= kib * 1024 or set(left(store)) == needed
        assert set(left(store)) == {f"{n:064d}" for n in range(len(some))} - set(going)
        assert done.removed == len(going)
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("act", ["find", "hold"])
def test_nobody_finds_or_begins_to_hold_while_a_collection_decides(store: Store, act: str) -> None:
    entry(store, "key", 1, used=1)

    def work() -> None:
        if act == "find":
            store.find("key")
        else:
            with holding(store, "later"):
                pass

    thread = threading.Thread(target=work)
    with store.uses_wait():
        thread.start()
        thread.join(0.5)  # were it not to wait, it would have ended by now
        assert thread.is_alive()
    thread.join()


def test_no_entry_goes_while_one_is_being_found(store: Store) -> None:
    path = entry(store, "key", 1, used=1)
    thread = threading.Thread(target=collect, args=(store, 0))
    with store.collections_wait():
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert path.exists()
    thread.join()
    assert not path.exists()
