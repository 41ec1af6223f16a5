"""Stores of answers: what they give back, when they let go, and that processes may share them."""

import asyncio
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pareflow.errors import UnsuitableError
from pareflow.runtime.caching.stores import MemoryStore, SharedStore, Store, open_store
from pareflow.runtime.caching.stores.sqlite import SqliteBackend, entry_bytes
from pareflow.runtime.caching.tensors import packed, unpacked
from pareflow.workload import Arrays
from tests.concurrency import run

MIB = 2**20
SPACE = b"s" * 32


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a real server of our own; skips where none is installed."""
    pytest.importorskip("redis", reason="not installed: redis")
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("no redis-server or valkey-server is installed")
    command = [
        program,
        "--port",
        "0",
        "--unixsocket",
        str(folder / "socket"),
        "--save",
        "",
        "--dir",
        str(folder),
        *options,
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as probe:
                probe.connect(str(folder / "socket"))
                break
            time.sleep(0.05)
        yield f"unix://{folder / 'socket'}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        url: str = request.getfixturevalue("redis_url")
        return url
    return "memory" if request.param == "memory" else f"sqlite:{tmp_path / 'cache.db'}"


def answer(number: float, size: int = 8) -> Arrays:
    return {"y": np.full((1, size), number), "label": np.array([f"class {number}"])}


def same(one: Arrays | None, other: Arrays) -> bool:
    return one is not None and all(np.array_equal(one[name], array) for name, array in other.items())


async def settled(store: Store) -> None:
    if isinstance(store, SharedStore):
        await store.written()


def test_it_gives_what_was_put_at_once_and_later(where: str) -> None:
    async def scenario() -> None:
        store = open_store(where, SPACE, MIB, None)
        given_away = answer(1)
        store.put({b"1": given_away, b"2": answer(2)})
        given_away["y"].fill(0)
        for _ in range(2):
            one, nothing, two = await store.get([b"1", b"3", b"2"])
            assert nothing is None
            assert same(two, answer(2))
            assert one is not None
            assert same(one, answer(1))
            one["y"].fill(0)
            await settled(store)
        await store.close()

    run(scenario, seconds=30)


def test_it_forgets_after_its_time(where: str) -> None:
    async def scenario() -> None:
        store = open_store(where, SPACE, MIB, 0.3)
        store.put({b"1": answer(1)})
        await settled(store)
        assert (await store.get([b"1"]))[0] is not None
        await asyncio.sleep(0.35)
        assert (await store.get([b"1"]))[0] is None
        await store.close()

    run(scenario, seconds=30)


@pytest.mark.parametrize("user", ["", "default@"])
def test_the_password_of_a_redis_comes_from_the_environment(
    user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it nothing is kept there, and no request fails for that."""

    async def kept(url: str) -> bool:
        store = open_store(url, SPACE, MIB, None)
        store.put({b"1": answer(1)})
        await settled(store)
        other = open_store(url, SPACE, MIB, None)
        (found,) = await other.get([b"1"])
        await store.close()
        await other.close()
        return same(found, answer(1))

    with redis_server(tmp_path, "--requirepass", "a-secret") as url:
        named = url.replace("://", f"://{user}")
        assert not run(lambda: kept(named), seconds=30)
        monkeypatch.setenv("PAREFLOW_REDIS_PASSWORD", "a-secret")
        assert run(lambda: kept(named), seconds=30)
    assert "a-secret" not in caplog.text


def test_flush_takes_its_own_only(where: str) -> None:
    """Memory is no one else's anyway."""

    async def scenario() -> None:
        ours, theirs = (open_store(where, space, MIB, None) for space in (SPACE, b"t" * 32))
        ours.put({b"o": answer(1)})
        await settled(ours)
        theirs.put({b"t": answer(2)})
        await settled(theirs)
        await ours.flush()
        assert await ours.get([b"o"]) == [None]
        assert same((await theirs.get([b"t"]))[0], answer(2))
        await ours.close()
        await theirs.close()

    run(scenario, seconds=30)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 400)), max_size=30), st.integers(1, 12_000))
def test_memory_never_holds_more_than_it_may(puts: list[tuple[int, int]], limit: int) -> None:
    async def scenario() -> None:
        store = MemoryStore(limit, None)
        for number, size in puts:
            store.put({bytes([number]): answer(number, size)})
            assert store.figures()["held_bytes"] <= limit

    run(scenario, seconds=30)


def test_sqlite_never_holds_more_than_it_may_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    """Answers of 3 pages, room for 20 of them: 30 come, and the first is used all the time."""

    async def scenario() -> None:
        path = tmp_path / "cache.db"
        size = entry_bytes(packed(answer(0, 1200), b"00"))
        assert size == 3 * 4096
        store = SharedStore(SqliteBackend(path, SPACE, 20 * size, None))
        for number in range(30):
            store.put({b"%02d" % number: answer(number, 1200)})
            await store.written()
            assert same((await store.get([b"00"]))[0], answer(0, 1200))
            assert store.figures()["held_bytes"] <= 20 * size
        kept = await store.get([b"%02d" % number for number in range(30)])
        assert [i for i, one in enumerate(kept) if one is not None] == [0, *range(11, 30)]
        await store.close()
        assert path.stat().st_size <= 20 * size + 16 * 4096

    run(scenario, seconds=30)


def test_an_answer_that_never_fits_drops_no_other(where: str) -> None:
    if not where.startswith(("memory", "sqlite")):
        pytest.skip("Redis bounds its own room")

    async def scenario() -> None:
        store = open_store(where, SPACE, 20_000, None)
        store.put({b"1": answer(1), b"2": answer(2, 10_000)})
        await settled(store)
        await store.close() if where != "memory" else None
        again = store if where == "memory" else open_store(where, SPACE, 20_000, None)
        one, two = await again.get([b"1", b"2"])
        assert same(one, answer(1))
        assert two is None
        await again.close()

    run(scenario, seconds=30)


_WRITER = """
import asyncio, sys
import numpy as np
from pathlib import Path
from pareflow.runtime.caching.stores import open_store
async def main():
    store = open_store(f"sqlite:{sys.argv[1]}", b"s" * 32, 150_000, None)
    for number in range(150):
        key = b"%d" % (number % 50)
        (found,) = await store.get([key])
        assert found is None or found["y"][0] == number % 50, found
        store.put({key: {"y": np.full(100, number % 50)}})
        await asyncio.sleep(0)
    await store.written()
    figures = store.figures()
    assert figures["store_failures"] == figures["damaged"] == 0, figures
    await store.close()
asyncio.run(main())
"""


def test_processes_share_a_file_from_its_first_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "cache.db")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    with closing(sqlite3.connect(tmp_path / "cache.db")) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        told = file.execute("SELECT entries, bytes FROM held").fetchone()
        assert told == file.execute("SELECT count(*), sum(bytes) FROM entries").fetchone()
        assert told == (36, 36 * 4096)  # all that 150,000 bytes have room for


NAMED = st.dictionaries(
    st.text(max_size=8),
    arrays.arrays(
        st.one_of(
            arrays.scalar_dtypes(),
            arrays.unicode_string_dtypes(),
        ),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=3,
)


@given(NAMED, st.binary(max_size=40))
def test_arrays_come_back_from_their_bytes_as_they_were(named: Arrays, key: bytes) -> None:
    back = unpacked(packed(named, key), key)
    assert back.keys() == named.keys()
    for name, array in named.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.writeable


@given(NAMED, st.data())
def test_changed_bytes_and_those_of_another_key_are_told(named: Arrays, data: st.DataObject) -> None:
    whole = bytearray(packed(named, b"key"))
    with pytest.raises(ValueError, match="not those that were packed"):
        unpacked(bytes(whole), b"kez")
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="not those that were packed"):
        unpacked(bytes(whole), b"key")


def test_objects_are_refused_since_their_bytes_are_addresses() -> None:
    with pytest.raises(UnsuitableError, match="`x` has the type object"):
        packed({"x": np.array(["a"], dtype=object)}, b"")
