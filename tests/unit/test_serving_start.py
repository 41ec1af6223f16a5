"""What cannot be served is told before anybody is let in; and the end waits for no registry."""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pareflow.errors import InputError, SpecError
from pareflow.hardware import probe
from pareflow.serving.app import assembled
from pareflow.serving.executable import Executable, Release
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.serving.server import serve
from pareflow.serving.settings import Settings
from pareflow.serving.slot import FolderSource, Slot
from pareflow.session import Session
from tests.servers import free_port
from tests.unit.conftest import Packaged, Shelf

PATIENCE_S = 20.0
WRONG = ServingPlan(policies=({"semantic_cache": {"encoder": "absent"}},))
"""It can be read; that there is no such tier is seen where its policies are put in place."""


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The versions that were opened and those that were closed."""
    seen: dict[str, list[str]] = {"opened": [], "closed": []}
    begin, close = Executable.__init__, Executable.close

    def opened(one: Executable, *given: Any, **named: Any) -> None:
        begin(one, *given, **named)
        seen["opened"].append(one.release.version)

    def closed(one: Executable) -> None:
        seen["closed"].append(one.release.version)
        close(one)

    monkeypatch.setattr(Executable, "__init__", opened)
    monkeypatch.setattr(Executable, "close", closed)
    return seen


def test_policies_that_cannot_be_put_in_place_are_refused_once_and_all_is_closed(
    two: tuple[Release, Release], lives: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    source = Shelf(two[0])

    async def scenario() -> None:
        slot = Slot(source, None, Metrics(), standby=False)
        slot.start()
        source.release = replace(two[1], plan=WRONG)
        for _ in range(2):
            await slot.refresh()
        assert slot.hosted.release == two[0]
        assert lives == {"opened": ["1", "2"], "closed": ["2"]}
        await slot.close()

    asyncio.run(scenario())
    assert "the new version is refused, and 1 stays" in caplog.text


def test_what_was_opened_for_a_model_that_is_refused_is_closed(
    packaged: Packaged, lives: dict[str, list[str]]
) -> None:
    plan = ServingPlan(tiers={"other": str(packaged("texts"))})
    with pytest.raises(InputError, match="the tier `other` must have the inputs of images"):
        Slot(FolderSource(packaged("images")), plan, Metrics())
    assert len(lives["opened"]) == 2
    assert sorted(lives["opened"]) == sorted(lives["closed"])


@pytest.fixture
def handlers() -> Iterator[None]:
    """Whatever a server does with signals, the tests' own handlers come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Knocking(FolderSource):
    """Whoever loads from it knocks at the server's door first."""

    def __init__(self, package: Path, port: int) -> None:
        super().__init__(package)
        self._port = port
        self.found: list[str] = []

    def current(self) -> Release:
        try:
            socket.create_connection(("127.0.0.1", self._port), PATIENCE_S).close()
            self.found.append("let in")
        except ConnectionRefusedError:
            self.found.append("refused")
        return super().current()


def test_nobody_is_let_in_and_no_address_is_told_before_all_is_in_place(
    packaged: Packaged, handlers: None
) -> None:
    source, told = Knocking(packaged("images"), free_port()), list[str]()
    settings = Settings(port=source._port, poll_s=None)
    with pytest.raises(SpecError, match="encoder: must be one of the tiers"):
        serve([source], WRONG, settings, lambda target: FolderSource(Path(target)), told.append)
    assert (source.found, told) == (["refused"], [])


class Silent(Shelf):
    """After the first time it does not answer until it is told to."""

    asked, goes_on, answered = 0, threading.Event(), threading.Event()

    def current(self) -> Release:
        self.asked += 1
        if self.asked > 1:
            self.goes_on.wait(PATIENCE_S)
            self.answered.set()
        return super().current()


def test_the_end_does_not_wait_for_a_registry_that_does_not_answer(two: tuple[Release, Release]) -> None:
    source = Silent(two[0])

    async def scenario() -> None:
        slot = Slot(source, None, Metrics(), standby=False)
        slot.start()
        following = asyncio.create_task(slot.follow(1))
        while source.asked < 2:
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await slot.close()

    asyncio.run(scenario())
    assert not source.answered.is_set()
    source.goes_on.set()


def test_sessions_on_a_processor_are_made_side_by_side(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second and the third none is there before both have begun."""
    both, load = threading.Barrier(2), PackagedModel.load_session
    monkeypatch.setattr(probe, "cores", lambda: [0, 1, 2])

    def together(model: PackagedModel) -> Session:
        if hasattr(model, "session"):  # else it is the first, by which the others are planned
            both.wait(PATIENCE_S)
        return load(model)

    monkeypatch.setattr(PackagedModel, "load_session", together)
    plan = ServingPlan(sessions=3, inline_ms=0, policies=())
    executable = Executable(Release("images", "1", packaged("images")), plan)
    assert executable.sessions == 3
    executable.close()


def test_sessions_are_no_more_than_the_cores_that_a_container_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "cores", lambda: range(64))
    monkeypatch.setattr(probe, "cpu_quota", lambda: 2.0)
    assert ServingPlan().sessions_of(1) == 2
    assert ServingPlan().sessions_of(1, models=2) == ServingPlan().sessions_of(4) == 1


def test_models_of_one_server_share_its_cores(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five cores each of two models has two, at two threads one; and as many as its plan says."""
    monkeypatch.setattr(probe, "cores", lambda: [0, 1, 2, 3, 4])
    assert ServingPlan().sessions_of(1) == 5
    assert (ServingPlan().sessions_of(1, models=2), ServingPlan().sessions_of(2, models=2)) == (2, 1)
    assert ServingPlan().sessions_of(1, models=9) == 1
    assert ServingPlan(sessions=4).sessions_of(1, models=2) == 4
    sources = [FolderSource(packaged(name)) for name in ("images", "texts")]
    slots = assembled(sources, ServingPlan(inline_ms=0), Settings(), lambda _: sources[0])._slots.values()
    try:
        assert [slot.hosted.main.sessions for slot in slots] == [2, 2]
    finally:
        for slot in slots:
            slot.hosted.close()


def test_one_name_is_served_once_and_else_nothing_is_opened(
    two: tuple[Release, Release], lives: dict[str, list[str]]
) -> None:
    sources = [Shelf(release) for release in two]
    with pytest.raises(InputError, match="different names, but `images` is named more than once"):
        assembled(sources, None, Settings(), lambda _: sources[0])
    assert lives["opened"] == []


@pytest.mark.parametrize(("planned", "sessions"), [(None, 3), (4, 3), (2, 2)])
def test_a_process_with_few_processors_opens_no_more_sessions_than_it_is_told(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch, planned: int | None, sessions: int
) -> None:
    """As a replica on a node that has more cores."""
    monkeypatch.setattr(probe, "cores", lambda: [0, 1, 2, 3, 4])
    source, plan = FolderSource(packaged("images")), ServingPlan(sessions=planned, inline_ms=0)
    (slot,) = assembled([source], plan, Settings(), lambda _: source, most_sessions=3)._slots.values()
    try:
        assert slot.hosted.main.sessions == sessions
    finally:
        slot.hosted.close()
