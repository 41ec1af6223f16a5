"""Versions that are let go of: what is closed, whatever fails, and what is removed of their answers."""

import asyncio
from collections.abc import Awaitable, Callable
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
    away, closed, close = StoreError("it must be there", "it is not", "Mend it"), list[str](), Executable.close

    def noted(one: Executable) -> None:
        closed.append(one.release.version)
        close(one)

    monkeypatch.setattr(Executable, "close", noted)

    async def scenario() -> None:
        hosted = opened({"": two[0]}, ServingPlan()).started()
        hosted.endpoint = replace(hosted.endpoint, flush=failing(away), close=failing(away))
        await hosted.retire(for_good=for_good)

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
