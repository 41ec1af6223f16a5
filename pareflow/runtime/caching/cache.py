"""What the policies that keep answers have in common: their settings, and the way past them."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from pydantic import ConfigDict, Field, field_validator, model_validator

from pareflow.catalog import installed_version
from pareflow.runtime.caching.accounts import Account
from pareflow.runtime.caching.keys import space_of
from pareflow.runtime.caching.lookups import Lookups
from pareflow.runtime.caching.stores import KINDS, open_store
from pareflow.runtime.caching.stores.redis import PASSWORD
from pareflow.runtime.endpoint import Endpoint, Handler
from pareflow.runtime.policy import Policy
from pareflow.workload import Arrays


class Cache(Policy):
    """A policy that keeps answers for as long as that pays: see `Account`."""

    requires: ClassVar[tuple[str, ...]] = ("cachetools",)

    max_mib: float = Field(default=16, gt=0, description="the most that the kept answers take")
    ttl_s: float | None = Field(default=None, gt=0, description="how long an answer is good; else for ever")
    window: int = Field(default=1000, ge=1, description="lookups after which gain and cost are compared")
    rest_s: float = Field(default=60, gt=0, description="how long it is off after a loss, the first time")


class KeyedCache(Cache):
    """A cache of what has equal bytes, in one of the stores.

    Keys hold what answers (registered version, processing, runtime, precision): after a promotion nothing
    that another version answered is found, in whichever store. `Endpoint.flush` removes it when that version
    is no longer loaded; one that stands by for a rollback keeps its own.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # it may hold the password that is refused

    store: str = Field(
        default="memory",
        description="`memory`, `sqlite:path`, or the URL of a Redis without its password "
        f"(`{PASSWORD}`); its own `maxmemory` bounds its room",
    )

    @field_validator("store")
    @classmethod
    def _is_known(cls, store: str) -> str:
        if ":" in store.partition("://")[2].rpartition("@")[0] or "password=" in store:
            raise ValueError(
                "a store must be named without its password, since plans are kept and shown, but its URL "
                f"holds one. Give it by {PASSWORD} in the environment"
            )
        if store != "memory" and not store.startswith(KINDS[1:]):
            raise ValueError(f"a store must be one of {', '.join(KINDS)}, but got {store!r}")
        return store

    @model_validator(mode="after")
    def _bounds_what_it_can(self) -> Self:
        if self._in_redis and self.max_mib != type(self).model_fields["max_mib"].default:
            raise ValueError(
                f"`max_mib` must be left out where the store is a Redis, but got {self.max_mib:g}. Bound its "
                "room there (`maxmemory`, with `maxmemory-policy allkeys-lru`)"
            )
        return self

    def unfit(self) -> str | None:
        return "not installed: redis" if self._in_redis and installed_version("redis") is None else None

    def wrap(self, below: Endpoint) -> Endpoint:
        space = space_of(self._kind(), below.identity)
        store = open_store(self.store, space, int(self.max_mib * 2**20), self.ttl_s)
        account = Account(self.window, self.rest_s)
        ask = self._asking(below, space, Lookups(store, account))

        async def answer(feeds: Mapping[str, np.ndarray]) -> Arrays:
            return await (ask(feeds) if account.on() else below.answer(feeds))

        def figures() -> Mapping[str, float]:
            return {**account.figures(), **store.figures()}

        return below.then(self.name, answer, figures, flush=store.flush, close=store.close)

    @property
    def _in_redis(self) -> bool:
        return self.store.startswith(KINDS[2:])

    def _kind(self) -> str:
        """What its keys mean, beside the inputs."""
        return self.name

    @abstractmethod
    def _asking(self, below: Endpoint, space: bytes, lookups: Lookups) -> Handler:
        """Answers a request from `lookups`, or from below."""
