"""Where answers are kept: in memory, in a SQLite file, or in Redis."""

from pathlib import Path

from pareflow.runtime.caching.stores.memory import MemoryStore
from pareflow.runtime.caching.stores.shared import SharedStore
from pareflow.runtime.caching.stores.store import Store

__all__ = ["KINDS", "MemoryStore", "SharedStore", "Store", "open_store"]

KINDS = ("memory", "sqlite:", "redis://", "rediss://", "unix://")


def open_store(where: str, space: bytes, max_bytes: int, ttl_s: float | None) -> Store:
    """A store for the answers of one endpoint; nothing is opened before it is used.

    `where`: `memory`, `sqlite:path/to/file`, or a Redis URL. `space` is what the endpoint is called.
    """
    if where == "memory":
        return MemoryStore(max_bytes, ttl_s)
    if where.startswith("sqlite:"):
        from pareflow.runtime.caching.stores.sqlite import SqliteBackend

        return SharedStore(SqliteBackend(Path(where.removeprefix("sqlite:")), space, max_bytes, ttl_s))
    from pareflow.runtime.caching.stores.redis import RedisBackend

    return SharedStore(RedisBackend(where, space, ttl_s))
