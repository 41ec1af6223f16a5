"""A deadline holds wherever a request waits: before a session, or for another's answer."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from pareflow.runtime import pool
from pareflow.serving.model import PackagedModel
from pareflow.session import Session
from pareflow.workload import Arrays
from tests.unit.conftest import INFER, Serve, Served

PATIENCE_S = 20
Line = Callable[..., Future[Any]]


class Door:
    """Who comes to it while it is shut waits until it is opened."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def passed(self) -> None:
        if not self._open.is_set():
            self.waiting.release()
            self._open.wait(PATIENCE_S)

    def shut(self) -> None:
        self._open.clear()

    def opened(self) -> None:
        self._open.set()


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Before every session."""
    made, load = Door(), PackagedModel.load_session

    def load_session(model: PackagedModel) -> Session:
        session = load(model)
        run = session.run

        def held(feeds: Mapping[str, np.ndarray]) -> Arrays:
            made.passed()
            return run(feeds)

        monkeypatch.setattr(session, "run", held)
        return session

    monkeypatch.setattr(PackagedModel, "load_session", load_session)
    yield made
    made.opened()


@pytest.fixture
def processing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Before raw samples become inputs, which takes so long that it is done in a thread."""
    made, preprocess = Door(), PackagedModel.preprocess

    def held(model: PackagedModel, samples: Any, *, finite: bool = False) -> Arrays:
        time.sleep(0.005)
        made.passed()
        return preprocess(model, samples, finite=finite)

    monkeypatch.setattr(PackagedModel, "preprocess", held)
    yield made
    made.opened()


@pytest.fixture
def asked() -> Iterator[Line]:
    """Ask in a thread of its own: what a server answers to one of the golden samples."""
    with ThreadPoolExecutor(8) as threads:

        def ask(served: Served, timeout_ms: float | None = None) -> Future[Any]:
            more = {} if timeout_ms is None else {"parameters": {"timeout": int(1000 * timeout_ms)}}
            body = json.dumps({"inputs": [served.input(1)], **more})
            return threads.submit(served.client.post, INFER, content=body)

        yield ask


@pytest.mark.parametrize("policies", [(), ("exact_cache",)], ids=["no policy", "who waits for the same"])
def test_what_waits_is_told_when_its_deadline_is_over(
    serve: Serve, door: Door, asked: Line, policies: tuple[str, ...]
) -> None:
    """Behind a request without a deadline, which keeps its session, and gets its answer."""
    served = serve(plan={"inline_ms": 0, "sessions": 1, "policies": policies})
    door.shut()
    first = asked(served)
    assert door.waiting.acquire(timeout=PATIENCE_S)
    late = asked(served, timeout_ms=50).result(PATIENCE_S / 2)
    assert (late.status_code, "retry-after" in late.headers) == (408, True)
    assert "must be answered before its deadline" in late.json()["error"]
    assert not first.done()
    door.opened()
    assert first.result(PATIENCE_S).status_code == 200
    assert asked(served, timeout_ms=10_000).result(PATIENCE_S).status_code == 200


@pytest.mark.parametrize(
    "policies",
    [(), ({"deadline_routing": {}},), ({"dynamic_batching": {"max_waiting": 1}},)],
    ids=["no policy", "routing", "batching"],
)
def test_who_comes_to_a_full_line_is_told_to_come_again(
    serve: Serve, door: Door, asked: Line, monkeypatch: pytest.MonkeyPatch, policies: Any
) -> None:
    """One is computed, one waits, and the third is refused at once; the two are answered."""
    monkeypatch.setattr(pool, "MAX_WAITING", 1)
    served = serve(plan={"inline_ms": 0, "sessions": 1, "policies": policies})
    door.shut()
    first = asked(served)
    assert door.waiting.acquire(timeout=PATIENCE_S)
    others = [asked(served), asked(served)]
    (refused,), (waits,) = wait(others, PATIENCE_S, return_when=FIRST_COMPLETED)
    answer = refused.result()
    assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
    assert answer.json()["error"].startswith("at most 1 requests may wait, but the line is full")
    door.opened()
    assert {one.result(PATIENCE_S).status_code for one in (first, waits)} == {200}


def test_a_server_without_policies_tells_how_many_wait(serve: Serve, door: Door, asked: Line) -> None:
    """One is computed, and two wait."""
    served = serve(plan={"inline_ms": 0, "sessions": 1, "policies": ()})
    door.shut()
    asking = [asked(served) for _ in range(3)]
    two = 'pareflow_policy_total{figure="waiting",model="images",policy="sessions"} 2.0'
    until = time.monotonic() + PATIENCE_S
    while two not in served.client.get("/metrics").text and time.monotonic() < until:
        time.sleep(0.01)
    assert two in served.client.get("/metrics").text
    door.opened()
    assert {one.result(PATIENCE_S).status_code for one in asking} == {200}
    assert two.replace("2.0", "0.0") in served.client.get("/metrics").text


def test_a_network_on_the_event_loop_is_not_waited_for_where_its_processing_takes_too_long(
    serve: Serve, processing: Door
) -> None:
    served = serve(plan={"inline_ms": 1e9, "deadline_ms": 100, "policies": ()})
    processing.shut()
    with ThreadPoolExecutor(1) as client:
        body = {"inputs": served.golden["samples"][:1]}
        asked = client.submit(served.client.post, "/invocations", json=body)
        assert asked.result(PATIENCE_S / 2).status_code == 503
