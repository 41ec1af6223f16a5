"""What of a request is done on the event loop, and what beside it: large ones are in nobody's way."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pareflow.compiler.worker import WorkerSession
from pareflow.measurement import Ran
from pareflow.runtime import EmbeddingCache, ExactCache
from pareflow.runtime.aside import LARGE, aside
from pareflow.runtime.caching import embedding_cache, exact_cache
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import Policy
from pareflow.runtime.pool import SessionPool
from pareflow.serving.executable import Executable, Release
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.session import Session
from pareflow.workload import Arrays
from tests.concurrency import run
from tests.conftest import RAN
from tests.unit.conftest import Packaged

MANY = 100_000


class Noting:
    """A session that notes how many rows it computes on the event loop, and how many in a thread."""

    def __init__(self, session: Session | None = None) -> None:
        self.on_loop, self.in_thread = list[int](), list[int]()
        self._session = session

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        (array,) = feeds.values()
        (self.on_loop if _on_loop() else self.in_thread).append(len(array))
        return dict(feeds) if self._session is None or len(array) == MANY else self._session.run(feeds)

    def ran(self) -> Ran:
        return RAN if self._session is None else self._session.ran()


class OfAWorker(WorkerSession):
    """The same as a worker's."""

    def __init__(self, noting: Noting) -> None:
        self.noting = noting

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return self.noting.run(feeds)

    def ran(self) -> Ran:
        return self.noting.ran()


def _on_loop() -> bool:
    return threading.current_thread() is threading.main_thread()


def test_what_is_large_is_done_in_a_thread_and_what_is_small_at_once() -> None:
    async def scenario() -> None:
        assert await aside(LARGE, _on_loop)
        assert not await aside(LARGE + 1, _on_loop)

    asyncio.run(scenario())


def test_only_so_many_samples_are_computed_where_they_arrive() -> None:
    session = Noting()
    pool = SessionPool([session], inline_rows=8.5)

    async def scenario() -> None:
        for rows in (1, 8, 9, MANY):
            await pool.answer({"x": np.zeros((rows, 1))})

    run(scenario)
    assert (session.on_loop, session.in_thread) == ([1, 8], [9, MANY])
    pool.close()


def test_a_brief_network_computes_many_samples_in_a_thread(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of it takes more than a microsecond, and less than 100 ms."""
    load, noting = PackagedModel.load_session, list[Noting]()

    def noted(model: PackagedModel) -> Session:
        noting.append(Noting(load(model)))
        return noting[0]

    monkeypatch.setattr(PackagedModel, "load_session", noted)
    plan = ServingPlan(inline_ms=100, policies=())
    executable = Executable(Release("images", "1", packaged("images")), plan)
    (session,) = noting
    session.on_loop, session.in_thread = [], []

    async def scenario() -> None:
        for rows in (1, MANY):
            await executable.endpoint.answer({"images": np.zeros((rows, 1, 8, 8), np.float32)})

    run(scenario)
    assert (session.on_loop, session.in_thread) == ([1], [MANY])
    executable.close()


def test_a_brief_network_in_a_worker_computes_in_a_thread(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the worker dies, the next request begins another one, which takes seconds."""
    load, noting = PackagedModel.load_session, list[OfAWorker]()

    def noted(model: PackagedModel) -> Session:
        noting.append(OfAWorker(Noting(load(model))))
        return noting[0]

    monkeypatch.setattr(PackagedModel, "load_session", noted)
    plan = ServingPlan(inline_ms=1e9, policies=())
    executable = Executable(Release("images", "1", packaged("images")), plan)
    session = noting[0].noting
    session.on_loop = []

    async def scenario() -> None:
        for wanted in (True, False):
            executable.aside(wanted)
            await executable.endpoint.answer({"images": np.zeros((1, 1, 8, 8), np.float32)})

    run(scenario)
    assert (session.on_loop, session.in_thread[-2:], executable.sessions) == ([], [1, 1], 1)
    executable.close()


@pytest.mark.parametrize(
    ("cache", "module", "keys"),
    [(ExactCache(), exact_cache, "request_key"), (EmbeddingCache(), embedding_cache, "row_keys")],
)
def test_the_keys_of_many_samples_are_made_in_a_thread(
    cache: Policy, module: Any, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, on_loop = getattr(module, keys), list[bool]()

    def noted(*given: Any) -> Any:
        on_loop.append(_on_loop())
        return made(*given)

    async def answer(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"y": feeds["x"]}

    async def scenario() -> None:
        endpoint = cache.wrap(Endpoint(answer, "it"))
        for rows in (1, MANY):
            x = np.arange(rows, dtype=np.float32)[:, None]
            assert np.array_equal((await endpoint.answer({"x": x}))["y"], x)

    monkeypatch.setattr(module, keys, noted)
    run(scenario)
    assert on_loop == [True, False]
