"""Versions that are let go of: what is closed, whatever fails, and what is removed of their answers."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette

from pareflow.errors import StoreError
from pareflow.serving.app import App
from pareflow.serving.executable import Executable, Release
from pareflow.serving.metrics import Metrics
from pareflow.serving.opening import opened
from pareflow.serving.plan import ServingPlan
from pareflow.serving.request_log import RequestLogSettings
from pareflow.serving.settings import Settings
from pareflow.serving.slot import Slot
from tests.unit.conftest import Shelf

IMAGE = {"images": np.zeros((1, 1, 8, 8), np.float32)}


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize("for_good", [False, True])
def test_a_store_that_does_not_close_leaves_no_session_loaded(
    two: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    away = StoreError("it must be there", "it is not", "Mend it")
    closed, close = list[str](), Executable.close

    def noted(one: Executable) -> None:
        closed.append(one.release.version)
        close(one)

    monkeypatch.setattr(Executable, "close", noted)

    async def scenario() -> None:
        hosted = opened({"": two[0]}, ServingPlan()).started()
        hosted.endpoint = replace(hosted.endpoint, flush=failing(away), close=failing(away))
        await hosted.retire(tuple if for_good else None)

    asyncio.run(scenario())
    assert closed == ["1"]


def test_whatever_does_not_close_the_log_of_requests_does(
    two: tuple[Release, Release], tmp_path: Path
) -> None:
    metrics = Metrics()
    slot = Slot(Shelf(two[0]), ServingPlan(), metrics)
    settings = Settings(poll_s=None, requests=RequestLogSettings(share=1), requests_folder=tmp_path)
    app = App([slot], settings, metrics)

    async def scenario() -> None:
        async with app._lifespan(Starlette()):
            slot.hosted.endpoint = replace(slot.hosted.endpoint, close=failing(ValueError("it will not")))

    with pytest.raises(ValueError, match="it will not"):
        asyncio.run(scenario())
    assert app._requests is not None
    assert not app._requests._thread.is_alive()


def test_what_a_version_kept_goes_with_its_last_copy(two: tuple[Release, Release], tmp_path: Path) -> None:
    """Under another plan the same version is opened anew, and answers from the same file."""
    first, second = two
    path = tmp_path / "cache.db"
    kept = ServingPlan(policies=({"exact_cache": {"store": f"sqlite:{path}"}},))
    source = Shelf(replace(first, plan=kept))

    async def taken_over(slot: Slot, release: Release) -> None:
        source.release = release
        await slot.refresh()
        assert slot.hosted.release == release
        await asyncio.gather(*slot._retiring)

    def entries() -> int:
        with closing(sqlite3.connect(path)) as file:
            (count,) = file.execute("SELECT count(*) FROM entries").fetchone()
        return int(count)

    async def scenario() -> None:
        slot = Slot(source, None, Metrics(), standby=False)
        slot.start()
        await slot.hosted.answer(IMAGE)
        await taken_over(slot, replace(first, plan=kept.model_copy(update={"sessions": 2})))
        await slot.hosted.answer(IMAGE)
        assert slot.hosted.figures["exact_cache"]()["hits"] == 1
        assert entries() == 1
        await taken_over(slot, second)
        assert entries() == 0
        await slot.close()

    asyncio.run(scenario())
