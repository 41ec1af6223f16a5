"""A named lock that the promoters of one registry share: MLflow has none, and its aliases no compare-and-set.

`flock` on a file of the data folder holds on one machine. Where several promote, `PAREFLOW_LOCK_DATABASE`
names a PostgreSQL database for them to meet in: a session advisory lock, which the server frees when its
holder's connection ends, however it ends. Name the database itself, or a pooler that keeps sessions apart.
"""

import asyncio
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pareflow.errors import InputError, StoreError, TrackingError, TransientError
from pareflow.hardware.device import lock_file, try_lock

if TYPE_CHECKING:
    import asyncpg

VARIABLE = "PAREFLOW_LOCK_DATABASE"
StillHeld = Callable[[], None]
"""Raises: TransientError where the lock was lost meanwhile; ask before what must not be done without it."""
_SESSION = {
    "application_name": "pareflow-lock",
    # A holder whose machine is gone says no goodbye: the server finds out in a minute, not in two hours.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_ANSWER_S = 30.0
"""Who asks a database that is there has its answer by then."""
_AGAIN_S = 0.2
"""Who waits asks so often: a wait in the database would not end where that is gone."""


class HeldError(TransientError):
    """Somebody else holds the lock, and it was not to be waited for."""


@contextmanager
def exclusive(folder: Path, name: str, *, wait: bool = True) -> Iterator[StillHeld]:
    """Hold the lock `name` alone among all that use `folder`, and the database, where one is named.

    Raises: TransientError where the database cannot be reached, TrackingError where it refuses; HeldError
    where somebody else holds it, and it is not to be waited for.
    """
    with flocked(folder, name, wait=wait):
        url = os.environ.get(VARIABLE)
        if url is None:
            yield lambda: None
        else:
            with _advisory(url, name, wait=wait) as still_held:
                yield still_held


@contextmanager
def flocked(folder: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold one named lock of this folder alone.

    Raises: InputError for a name that is none of a model's, StoreError where it cannot be made, HeldError.
    """
    if "/" in name:
        raise InputError(
            "what is locked must have a name without slashes",
            f"got `{name}`",
            "Name a model as `pareflow list versions` does",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(folder / f"{name}.lock")
    except OSError as error:
        raise StoreError(
            f"the locks in {folder} must be this user's to take",
            f"{error.strerror} ({error.filename})",
            "Name another with --data-dir",
        ) from error
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        elif not try_lock(descriptor, fcntl.LOCK_EX):
            raise _held(name)
        yield
    finally:
        os.close(descriptor)


def _held(name: str) -> HeldError:
    return HeldError(f"the lock `{name}` must be free", "another process holds it", "Wait until that ends")


def key_of(name: str) -> int:
    """The advisory lock's key: 64 bits of the name's digest, signed as PostgreSQL's bigint is."""
    return int.from_bytes(hashlib.sha256(f"pareflow:{name}".encode()).digest()[:8], signed=True)


@contextmanager
def _advisory(url: str, name: str, *, wait: bool) -> Iterator[StillHeld]:
    with asyncio.Runner() as runner:
        connection = runner.run(_locked(url, name, wait=wait))
        try:
            yield lambda: runner.run(_alive(connection))
        finally:
            connection.terminate()  # at once, and the server frees the lock: nothing is left to be said


async def _locked(url: str, name: str, *, wait: bool) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection that holds the lock."""
    import asyncpg

    try:
        connection = await asyncpg.connect(_dsn(url), timeout=_ANSWER_S, server_settings=_SESSION)
        try:
            asked = "SELECT pg_try_advisory_lock($1)"
            while not await connection.fetchval(asked, key_of(name), timeout=_ANSWER_S):
                if not wait:
                    raise _held(name)
                await asyncio.sleep(_AGAIN_S)
        except BaseException:  # Ctrl-C, too: it must not hold what it has just got
            connection.terminate()
            raise
        return connection
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise TransientError(
            f"the database that {VARIABLE} names must be reachable",
            f"it is not ({type(error).__name__})",
            "Start it, then run the same command again; nothing was moved",
        ) from error
    except asyncpg.PostgresError as error:
        raise TrackingError(
            f"the database that {VARIABLE} names must lend its advisory locks",
            f"it said {type(error).__name__}: {error}",
            f"Mend {VARIABLE}; nothing was moved",
        ) from error


async def _alive(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A session lock is held for as long as its session lives."""
    import asyncpg

    try:
        await connection.fetchval("SELECT 1", timeout=_ANSWER_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise TransientError(
            "the lock must be held until a promotion has ended",
            f"its database went away meanwhile ({type(error).__name__})",
            "Run the same command again; nothing was moved",
        ) from error


def _dsn(url: str) -> str:
    """SQLAlchemy's URL without its driver, as libpq has it. Raises: TrackingError for another database's."""
    if not re.match(r"postgres(ql)?(\+\w+)?://", url):
        raise TrackingError(
            f"{VARIABLE} must name a PostgreSQL database",
            f"it names {url.partition(':')[0]}",
            "Write postgresql://user@host/database, or unset it where one machine promotes",
        )
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
