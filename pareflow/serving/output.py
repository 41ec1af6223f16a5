"""What a command writes where it was told to: whole, or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pareflow.errors import InputError, StoreError
from pareflow.hardware.probe import disk_is_full


def check_new(folder: Path) -> None:
    """Raises: InputError unless there is no such folder, or an empty one."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("an output must not overwrite", f"{folder} is there already", "Name another folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside it to be filled, which takes its place at the end.

    What is raised meanwhile passes through, and leaves nothing behind. Raises: as `check_new`, `writing`.
    """
    check_new(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.parent / f".{folder.name}.{uuid4().hex}"  # `mkdtemp` would keep others out
        partial.mkdir()
        try:
            yield partial
            partial.rename(folder)
        except OSError as error:
            if disk_is_full(partial):  # `copytree` keeps no errno
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the file system says while `path` is written. Raises: StoreError of a full disk, InputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found, remedy = f"the disk is full ({path.parent})", "Free some space, or name another disk"
            raise StoreError(f"there must be room for {path}", found, remedy) from error
        found = f"the system says: {error.strerror or error} ({error.filename or path})"
        raise InputError(f"{path} must be written", found, "Mend that, or name another path") from error
