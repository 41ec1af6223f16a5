"""Keep the store under a size: what was used least recently goes first, and nothing that is needed.

What a running run needs is what was used since the oldest running run began: `holding` locks a file of its
own with `flock`, which the kernel frees when the holder dies, and `Store.find` sets the time of what it
finds. What registered models need is named by the caller, who can ask a registry. All times are the kernel's
of one file system, so that they compare whoever set them.

An entry is renamed into `making/` before it is deleted, under its key's lock: a reader sees it whole or not
at all. What a killed collection leaves there is a leftover like a killed maker's, which the next one removes.
"""

import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pareflow.store import MANIFEST, UNSENT, Store, writing


@dataclass(frozen=True, slots=True)
class Item:
    """An entry, also one that was never sent, or a killed build's scratch folder; `files`: bytes by inode."""

    key: str
    path: Path
    used_ns: int
    files: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Holder:
    """A command that runs on the store now, and since when."""

    what: str
    pid: int
    began_ns: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, in bytes; where `left` is above the limit, all of it is needed."""

    removed: int
    freed: int
    left: int


@contextmanager
def holding(store: Store, what: str) -> Iterator[None]:
    """Until the end, or until this process dies: no collection removes what is used from now on."""
    folder = store.root / "running"
    with ExitStack() as held:
        with writing(store.root):
            with store.collections_wait():
                folder.mkdir(exist_ok=True)
                descriptor, name = tempfile.mkstemp(prefix=f"{os.getpid()}.", dir=folder)
                held.callback(os.close, descriptor)
                held.callback(Path(name).unlink, missing_ok=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, json.dumps({"what": what, "pid": os.getpid()}).encode())
        yield


def holders(store: Store) -> list[Holder]:
    """Who holds the store now; the oldest first."""
    found = [_holder(path) for path in (store.root / "running").glob("*")]
    return sorted((holder for holder in found if holder), key=lambda holder: holder.began_ns)


def items(store: Store) -> list[Item]:
    """All that a limit may remove; what was used least recently comes first."""
    folders = (store.root / "entries", store.root / UNSENT, store.root / "unfinished")
    found = [_item(path) for folder in folders for path in folder.glob("*")]
    return sorted(found, key=lambda item: (item.used_ns, item.key))


def size(some: Iterable[Item]) -> int:
    """The bytes of all their files; one that is linked from several counts once."""
    return sum({inode: size for item in some for inode, size in item.files.items()}.values())


def leftovers(store: Store) -> list[Path]:
    """What killed makers and killed collections left, whose keys nobody holds."""
    found = []
    for path in (store.root / "making").glob("*.*"):
        with store.lock_if_free(_key(path)) as free:
            if free:
                found.append(path)
    return found


def collect(store: Store, limit: float, needed: Collection[str] = ()) -> Collected:
    """Remove leftovers, then entries and scratch folders until at most `limit` bytes are left.

    The keys in `needed` stay, and what a running run has used. Raises: StoreError where it cannot write.
    """
    with writing(store.root):
        for path in leftovers(store):
            _delete(path)
        found = items(store)
        links = Counter(inode for item in found for inode in item.files)
        before = left = size(found)
        removed = 0
        for item in found:
            if left <= limit:
                break
            if item.key not in needed and _removed(store, item):
                removed += 1
                links.subtract(item.files.keys())
                left -= sum(size for inode, size in item.files.items() if not links[inode])
    return Collected(removed, before - left, left)


def _removed(store: Store, item: Item) -> bool:
    """Remove it, unless somebody makes it, has used it in the meantime, or holds what he used."""
    with store.lock_if_free(item.key) as free:
        if not free:
            return False
        with store.uses_wait():
            if not item.path.exists() or _used_ns(item.path) != item.used_ns:
                return False
            _forget_the_dead(store)
            running = holders(store)
            if running and item.used_ns >= running[0].began_ns:
                return False
            away = store.root / "making" / f"{item.key}.{uuid.uuid4().hex}"
            item.path.rename(away)  # a new folder for it would need room, and the disk may be full
        _delete(away)
    return True


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _key(making: Path) -> str:
    """The key that a folder of `making/` is of."""
    return making.name.rsplit(".", 1)[0]


def _item(path: Path) -> Item:
    files = {}
    for file in _within(path):
        with suppress(FileNotFoundError):  # somebody else has just removed it
            status = file.lstat()
            if not file.is_dir():
                files[status.st_ino] = status.st_size
    return Item(path.name, path, _used_ns(path), files)


def _used_ns(path: Path) -> int:
    """When an entry was last found, or a scratch folder last written to; 0 where it has just gone."""
    with suppress(OSError):
        return (path / MANIFEST).stat().st_mtime_ns
    times = [0]
    for file in (path, *_within(path)):
        with suppress(FileNotFoundError):
            times.append(file.stat().st_mtime_ns)
    return max(times)


def _within(path: Path) -> Iterator[Path]:
    """All that is in a folder; a folder in it that goes meanwhile is passed over (`Path.rglob` raises)."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            yield Path(folder, name)


def _holder(path: Path) -> Holder | None:
    """Who holds the file, or None: nobody."""
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            began_ns, said = os.fstat(file.fileno()).st_mtime_ns, file.read()
            document: dict[str, Any] = json.loads(said or "{}")  # it has not said yet
            return Holder(document.get("what", "a command"), document.get("pid", 0), began_ns)
    return None


def _forget_the_dead(store: Store) -> None:
    """Unlink what killed holders left; with `uses_wait`: nobody is between making and locking his."""
    for path in (store.root / "running").glob("*"):
        if _holder(path) is None:
            path.unlink(missing_ok=True)
