"""Stores of answers that are gone, full, damaged, locked or silent: requests are answered without them."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.runtime import ExactCache
from pareflow.runtime.caching.stores import shared
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays

Mount = Callable[..., Any]


class Doubling:
    def __init__(self) -> None:
        self.asked = 0

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.asked += 1
        return {"y": feeds["x"] * 2}


class Served:
    """Requests through a cache in the store, each one checked."""

    def __init__(self, store: str) -> None:
        self.below = Doubling()
        self.endpoint = ExactCache(store=store).wrap(Endpoint(self.below.answer, "it"))

    async def ask(self, *numbers: int, size: int = 16) -> None:
        for number in numbers:
            answer = await self.endpoint.answer({"x": np.full((1, size), number)})
            assert answer["y"].tolist() == [[2 * number] * size]
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=1)  # until it is written, or not

    @property
    def figures(self) -> Mapping[str, float]:
        return self.endpoint.figures["exact_cache"]()


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "FIRST_REST_S", 0.2)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(60):
            return await scenario()

    return asyncio.run(within())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_store_that_cannot_be_opened_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        served = Served(f"sqlite:{tmp_path / 'no' / 'such' / 'folder' / 'cache.db'}")
        for number in (1, 2, 1):
            await served.ask(number)
        assert served.below.asked == 3
        assert served.figures["store_aside"] == 1
        failures = served.figures["store_failures"]
        await asyncio.sleep(0.25)
        await served.ask(3)
        assert served.figures["store_failures"] > failures
        assert served.figures["dropped"] >= 1
        await served.endpoint.close()

    run(scenario)
    told = warnings(caplog)
    assert len(told) == len(
        {text.split(" the cache ")[0] for text in told}
    )  # once of reading, once of writing
    assert all("left aside, requests are served without it" in text for text in told)


def test_a_store_that_comes_back_is_used_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        folder = tmp_path / "later"
        served = Served(f"sqlite:{folder / 'cache.db'}")
        await served.ask(1)
        folder.mkdir()
        await asyncio.sleep(0.25)
        await served.ask(2, 2)
        await asyncio.sleep(0.25)
        await served.ask(3, 3, 3)
        assert served.below.asked <= 5
        assert served.figures["hits"] >= 1
        assert served.figures["store_aside"] == 0
        await served.endpoint.close()

    run(scenario)
    assert any("works again" in text for text in warnings(caplog))


def test_a_file_that_is_removed_is_begun_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "cache.db"
        served = Served(f"sqlite:{path}")
        await served.ask(1, 2)
        for file in tmp_path.iterdir():
            file.unlink()
        await served.ask(3)
        assert path.exists()
        await served.ask(3, 1)
        assert served.below.asked == 4  # 1 is computed again, 3 is not
        assert served.figures["store_failures"] == 0
        await served.endpoint.close()

    run(scenario)


@pytest.mark.parametrize("begin", [100, 4096], ids=["the header's page", "the tables"])
def test_a_damaged_file_is_begun_anew(begin: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        path = tmp_path / "cache.db"
        before = Served(f"sqlite:{path}")
        await before.ask(*range(50))
        await before.endpoint.close()
        data = bytearray(path.read_bytes())
        data[begin:] = bytes(b ^ 0xA5 for b in data[begin:])
        path.write_bytes(data)
        served = Served(f"sqlite:{path}")
        await served.ask(1, 2)
        await asyncio.sleep(0.3)
        await served.ask(1, 2)
        await asyncio.sleep(0.3)
        asked = served.below.asked
        await served.ask(1, 2)
        assert served.below.asked == asked
        assert served.figures["store_failures"] >= 1
        await served.endpoint.close()

    run(scenario)
    assert any("left aside" in text for text in warnings(caplog))


def test_a_flipped_bit_in_an_answer_is_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        path = tmp_path / "cache.db"
        served = Served(f"sqlite:{path}")
        await served.ask(1)
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            (value,) = file.execute("SELECT value FROM entries").fetchone()
            flipped = value[:-3] + bytes([value[-3] ^ 4]) + value[-2:]
            file.execute("UPDATE entries SET value = ?", (flipped,))
        await served.ask(1)
        assert served.below.asked == 2
        assert served.figures["damaged"] == 1
        await served.ask(1)
        assert served.below.asked == 2
        await served.endpoint.close()

    run(scenario)
    assert any("damaged bytes, which are not used" in text for text in warnings(caplog))


@pytest.mark.parametrize("content", [b"my thesis " * 1000, None], ids=["no database", "of others"])
def test_a_file_of_others_is_never_touched(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.db"
    if content is None:
        with closing(sqlite3.connect(path)) as file:
            file.execute("CREATE TABLE theses (text)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()

    async def scenario() -> None:
        served = Served(f"sqlite:{path}")
        await served.ask(1)
        await served.ask(1)
        await asyncio.sleep(0.25)
        await served.ask(1)
        assert served.below.asked == 3
        assert served.figures["store_failures"] >= 2
        await served.endpoint.close()

    run(scenario)
    assert path.read_bytes() == before
    found = "the file of another application" if content is None else "file is not a database"
    assert all(found in text for text in warnings(caplog))


def test_a_full_disk_still_gives_what_it_has(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        disk = mount("size=2m")
        served = Served(f"sqlite:{disk.path / 'cache.db'}")
        await served.ask(1)
        disk.fill()
        for number in range(2, 60):
            await served.ask(number, size=4000)
        assert served.figures["dropped"] > 0
        asked = served.below.asked
        await served.ask(1, 1)
        assert served.below.asked == asked
        disk.empty()
        await asyncio.sleep(2)
        await served.ask(100)
        await served.ask(100)
        assert served.below.asked == asked + 1
        assert served.figures["store_aside"] == 0
        await served.endpoint.close()

    run(scenario)
    told = [text for text in warnings(caplog) if "left aside" in text]
    assert len(told) == 1
    assert "writing to the cache" in told[0]


def test_a_read_only_disk_is_served_without(mount: Mount) -> None:
    async def scenario() -> None:
        disk = mount("size=4m")
        served = Served(f"sqlite:{disk.path / 'cache.db'}")
        await served.ask(1)
        await served.endpoint.close()
        disk.write_protect()
        again = Served(f"sqlite:{disk.path / 'cache.db'}")
        await again.ask(1, 2, 2)
        assert again.figures["store_failures"] >= 1
        await again.endpoint.close()

    run(scenario)


def test_a_file_that_another_process_keeps_locked_holds_nobody_up(tmp_path: Path) -> None:
    """Readers need no lock; writers wait in a thread."""

    async def scenario() -> None:
        path = tmp_path / "cache.db"
        served = Served(f"sqlite:{path}")
        await served.ask(1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await served.ask(1, 2, 2)
            assert served.below.asked == 2  # 2 is found before it is written
            other.execute("ROLLBACK")
        await asyncio.sleep(0.3)
        await served.endpoint.close()
        later = Served(f"sqlite:{path}")
        await later.ask(1, 2)
        assert later.below.asked == 0
        await later.endpoint.close()

    run(scenario)


def test_a_redis_that_never_answers_costs_its_patience_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes connections and says nothing, for 50 requests: not 50 times the patience."""
    pytest.importorskip("redis", reason="not installed: redis")
    monkeypatch.setenv("PAREFLOW_REDIS_PASSWORD", "a-secret")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        served = Served(f"redis://127.0.0.1:{port}/0")
        for number in range(50):
            await served.endpoint.answer({"x": np.full((1, 1), number)})
        assert served.below.asked == 50
        assert served.figures["store_failures"] <= 4
        await served.endpoint.close()
        server.close()

    run(scenario)
    assert "a-secret" not in caplog.text
    assert sum("left aside" in text for text in warnings(caplog)) <= 2


def test_a_redis_that_is_not_there_fails_no_request() -> None:
    pytest.importorskip("redis", reason="not installed: redis")

    async def scenario() -> None:
        served = Served("redis://127.0.0.1:1/0")
        for number in (1, 2, 1):
            await served.ask(number)
        assert served.below.asked == 3
        await served.endpoint.close()

    run(scenario)
