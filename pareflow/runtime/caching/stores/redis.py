"""Answers in Redis or Valkey, which machines share. Room is bounded there, by `maxmemory` and its policy."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pareflow.errors import StoreError

PATIENCE_S, CONNECT_PATIENCE_S = 0.05, 0.25
"""How long an answer, and a connection, are waited for."""
CHUNK = 500
PASSWORD = "PAREFLOW_REDIS_PASSWORD"
"""The environment variable that holds it, and nothing else does: a plan is kept, and shown."""


class RedisBackend:
    """Values under `pareflow:<space>:<key>`, with Redis's own expiry."""

    def __init__(self, url: str, space: bytes, ttl_s: float | None) -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._client: Any = Redis.from_url(
            url,
            password=os.environ.get(PASSWORD) or None,
            socket_timeout=PATIENCE_S,
            socket_connect_timeout=CONNECT_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),  # another try is for later, and for another request
        )
        parts = urlsplit(url)
        self._where = parts.netloc.rpartition("@")[2] + parts.path
        self._prefix = f"pareflow:{space.hex()[:32]}:".encode()
        self._ttl_ms = None if ttl_s is None else max(1, round(1000 * ttl_s))

    @property
    def label(self) -> str:
        return f"Redis at {self._where}"

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._told():
            return list(await self._client.mget([self._prefix + key for key in keys]))

    async def write(self, items: Mapping[bytes, bytes]) -> None:
        with self._told():
            async with self._client.pipeline(transaction=False) as pipeline:
                for key, value in items.items():
                    pipeline.set(self._prefix + key, value, px=self._ttl_ms)
                await pipeline.execute()

    async def clear(self) -> None:
        with self._told():
            found = []
            async for key in self._client.scan_iter(match=self._prefix + b"*", count=CHUNK):
                found.append(key)
                if len(found) == CHUNK:
                    await self._client.unlink(*found)
                    found = []
            if found:
                await self._client.unlink(*found)

    async def close(self) -> None:
        with self._told():
            await self._client.aclose()

    def figures(self) -> Mapping[str, float]:
        return {}

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises: StoreError for whatever the client raises."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(
                f"Redis at {self._where} must answer within {PATIENCE_S} s",
                f"the client says: {error or type(error).__name__}",
                "Start it, give it room (`maxmemory-policy allkeys-lru`), or give another `store`",
            ) from error
