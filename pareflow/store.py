"""Content-addressed files on disk: atomic, self-checking, shared by every run on the machine.

An entry is a folder of files under its key, with a manifest of the sha256 of each. It is written into a
temporary folder, synced, and renamed into place, so that it is there whole or not at all. It is verified
each time it is opened: with a missing file or a flipped bit the entry counts as absent, and the step that
made it runs again. A key is locked with `flock` while it is made: two runs share the work, and a killed one
frees it. When an entry was last found is the time of its manifest, which `collection.py` goes by.

Machines that share no folder exchange entries by a `Remote`.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from pareflow.errors import PareflowError, StoreError
from pareflow.hardware.device import take_lock, try_lock
from pareflow.hardware.probe import disk_is_full
from pareflow.variant import file_digest

MANIFEST = "manifest.json"
VERSION = "version"
FORMAT = 1
"""Of the store's folders and manifests. Stores from before the file `version` are of format 1 too."""
UNSENT = "unsent"
"""The folder of finished entries that have not yet been sent to the remote, each under its key."""


class Remote(Protocol):
    """Where machines without a shared folder exchange entries. Its methods raise PareflowError."""

    def fetch(self, key: str, into: Path) -> bool:
        """Whether there is such an entry; then it is in `into`, verified."""

    def send(self, key: str, folder: Path) -> bool:
        """Whether the sealed entry in `folder` is the one that all get: the first that was sent is."""

    def forget(self, key: str) -> None: ...

    def alone(self, key: str) -> AbstractContextManager[None]:
        """Hold the key alone among machines; waits."""


class Store:
    """Entries under `root/entries/<key>/`, and what is not there behind `remote`, where there is one.

    Raises: StoreError where `root` cannot be written, or is of another format.
    """

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.root, self.remote = root, remote
        with writing(root):
            stated = _stated_format(root)
            for name in ("entries", "making", "locks", UNSENT):
                (root / name).mkdir(parents=True, exist_ok=True)
            if stated is None:
                self._state_format()
            with tempfile.TemporaryFile(dir=root / "making"):
                pass  # proves that the store can be written before hours are spent

    def find(self, key: str) -> Path | None:
        """The verified entry's folder, or None. A damaged entry counts as absent; `ensure` replaces it.

        What only the remote has is brought here first, unless somebody makes it here just now.
        """
        entry = self._found(key)
        if entry is not None or self.remote is None:
            return entry
        with writing(self.root), self.lock_if_free(key) as free:
            return self._found(key) or self._fetched(key) if free else None

    def holds(self, key: str) -> bool:
        """Whether there is an entry, whole or damaged: as quick as the disk, and it does not count as use."""
        return (self.root / "entries" / key).exists()

    def use(self, key: str) -> None:
        """Count what there is of a key, finished or not, as used now: as quick as the disk, unread."""
        finished = (self.root / folder / key / MANIFEST for folder in ("entries", UNSENT))
        with self.collections_wait():
            for path in (*finished, self.scratch(key)):
                with suppress(OSError):  # there is none, or it is another user's
                    os.utime(path)

    def ensure(self, key: str, write: Callable[[Path], None]) -> Path:
        """The entry's folder, made by `write(folder)` if it is not there yet.

        What `write` raises passes through, and leaves nothing behind.
        Raises: StoreError if the disk is full or read-only; as `lock`.
        """
        with self.lock(key), writing(self.root):
            found = self._found(key) or self._fetched(key)
            if found is not None:
                return found
            self._sweep(key)
            with self.remote.alone(key) if self.remote else nullcontext():
                return self._fetched(key) or self._made(key, write)

    def bring(self, key: str, entry: Path) -> Path:
        """The entry's folder, a copy of another store's if it is not there yet. Raises: as `ensure`."""

        def write(into: Path) -> None:
            shutil.copytree(entry, into, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)

        return self.ensure(key, write)

    def evict(self, key: str) -> None:
        """Forget an entry, so that its step runs again."""
        with self.lock(key):
            if self.remote is not None:
                self.remote.forget(key)
            for folder in ("entries", UNSENT):
                shutil.rmtree(self.root / folder / key, ignore_errors=True)

    def scratch(self, key: str) -> Path:
        """Where the maker of a key leaves what it would go on from if it were killed; not verified."""
        return self.root / "unfinished" / key

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the key alone; waits. The kernel frees it when the holder dies, however it dies.

        Raises: BusyMachineError where it is interrupted while it waits.
        """
        with writing(self.root), (self.root / "locks" / key).open("w") as file:
            if not try_lock(file.fileno(), fcntl.LOCK_EX):
                entry = f"the store's entry `{key}`"
                take_lock(file.fileno(), fcntl.LOCK_EX, entry, "another process makes it")
            yield

    @contextmanager
    def lock_if_free(self, key: str) -> Iterator[bool]:
        """Whether nobody held the key; then it is held until the end."""
        with (self.root / "locks" / key).open("w") as file:
            yield try_lock(file.fileno(), fcntl.LOCK_EX)

    @contextmanager
    def collections_wait(self) -> Iterator[None]:
        """Meanwhile no collection takes an entry away. Short: there is one lock for all entries."""
        with self._entries_locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def uses_wait(self) -> Iterator[None]:
        """Meanwhile nobody finds an entry, and nobody begins to hold what he finds. As short."""
        with self._entries_locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _entries_locked(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self.root / "entries", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _found(self, key: str) -> Path | None:
        """What is here and whole."""
        entry = self.root / "entries" / key
        return entry if self._used(entry) and _intact(entry) else None

    def _fetched(self, key: str) -> Path | None:
        """What the remote has, brought here; the key is locked."""
        if self.remote is None:
            return None
        with self._making(key) as making:
            return self._kept(making, key) if self.remote.fetch(key, making) else None

    def _made(self, key: str, write: Callable[[Path], None]) -> Path:
        """The entry as `write` makes it, then sent to the remote; or the remote's, where that came first."""
        sealed = self._sealed(key, write)
        first = self.remote is None or self.remote.send(key, sealed)
        return self._kept(sealed, key) if first else self._fetched(key) or self._kept(sealed, key)

    def _sealed(self, key: str, write: Callable[[Path], None]) -> Path:
        """What `write` makes. It waits aside until it is sent: where the remote is away, or this process is
        killed meanwhile, it is sent the next time, and not made again (law 6)."""
        waiting = self.root / UNSENT / key
        if not _intact(waiting):
            with self._making(key) as making:
                _written(making, write)
                _seal(making)
                shutil.rmtree(waiting, ignore_errors=True)  # damaged
                making.rename(waiting)
        return waiting

    @contextmanager
    def _making(self, key: str) -> Iterator[Path]:
        """A new folder for the entry, as open as the umask leaves it: `mkdtemp` would keep others out."""
        folder = self.root / "making" / f"{key}.{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _kept(self, making: Path, key: str) -> Path:
        """The folder as the entry, on disk for good."""
        for path in [*making.rglob("*"), making]:
            _sync(path)
        entry = self.root / "entries" / key
        if entry.exists():
            shutil.rmtree(entry)  # damaged, or it had been found
        making.rename(entry)
        _sync(entry.parent)
        shutil.rmtree(self.root / UNSENT / key, ignore_errors=True)  # the remote had it first
        return entry

    def _used(self, entry: Path) -> bool:
        """Note that an entry is used now, before it is read; whether there is one."""
        with self.collections_wait():
            try:
                os.utime(entry / MANIFEST)
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError:
                pass  # read-only, or another user's: it can be read all the same
        return True

    def _state_format(self) -> None:
        with self.lock(VERSION):
            descriptor, name = tempfile.mkstemp(prefix=f"{VERSION}.", dir=self.root / "making")
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{FORMAT}\n")
            Path(name).rename(self.root / VERSION)

    def _sweep(self, key: str) -> None:
        """Remove what killed makers of this key left; nobody else can be making it, for it is locked."""
        for left in (self.root / "making").glob(f"{key}.*"):
            shutil.rmtree(left, ignore_errors=True)


def _stated_format(root: Path) -> str | None:
    """What the file `version` says; None where there is none. Raises: StoreError unless it is ours."""
    try:
        stated = (root / VERSION).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    if stated != str(FORMAT):
        raise StoreError(
            f"the store {root} must be of format {FORMAT}, or have no file `{VERSION}`",
            f"that file says `{stated[:40]}`",
            "Use the pareflow that wrote it, or name another folder with --data-dir",
        )
    return stated


def _written(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write`; what native code raises on a full disk becomes the OSError that it is."""
    try:
        write(folder)
    except (PareflowError, OSError):
        raise
    except Exception as error:
        if disk_is_full(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _intact(entry: Path) -> bool:
    try:
        files = json.loads((entry / MANIFEST).read_text())["files"]
        return all(file_digest(entry / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # also where the manifest is JSON of another shape


def _seal(folder: Path) -> None:
    """Write the manifest. That of another entry, of which this is a copy, is none of the files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    digests = {str(path.relative_to(folder)): file_digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps({"files": digests}, indent=1))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was, whoever else writes it; its folder is there."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


_FREE = (
    "Free some space (`pareflow collect --max-gib N` shrinks the store to N GiB, least recently used first), "
    "then run the same command again"
)


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the file system says about space, and about rights below `root`, into a StoreError."""
    try:
        yield
    except OSError as error:
        causes = {
            errno.ENOSPC: ("the disk is full", _FREE),
            errno.EDQUOT: ("the disk quota is used up", _FREE),
            errno.EROFS: ("it is on a read-only file system", "Name another with --data-dir"),
            errno.EACCES: ("this user may not write there", "Name another with --data-dir"),
            errno.ENOTDIR: ("a file stands in its way", "Name another with --data-dir"),
        }
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.errno not in causes or not (full or _below(root, error.filename)):
            raise
        found, remedy = causes[error.errno]
        raise StoreError(
            f"the store {root} must be writable",
            f"{found} ({error.filename or root})",
            f"{remedy}; what is finished is kept",
        ) from error


def _below(root: Path, filename: Any) -> bool:
    """Whether an OSError is about the store's own folders; a writer's trouble with others is its own."""
    if not isinstance(filename, str | Path):
        return False
    path, root = Path(filename).absolute(), root.absolute()
    return path.is_relative_to(root) or root.is_relative_to(path)
