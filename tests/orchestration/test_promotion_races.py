"""Two promoters at once, a hundred times: the better one is champion, by `flock` and by PostgreSQL's lock."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from pareflow.errors import InputError, TrackingError, TransientError
from tasks import audit, locking
from tasks.promotion import number, settle
from tasks.tracking import Tracker
from tests.orchestration.contenders import bout, enter

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
JUDGING_SECONDS = 0.05
"""How long either judges: far longer than between the starts of the two."""
PATIENCE_SECONDS = 60.0


def promoter(pipe: Connection, data_dir: Path, name: str) -> None:
    """Promote what comes through the pipe, the moment that it comes, until nothing does."""
    tracker = Tracker.open(data_dir)
    pipe.send("ready")
    while True:
        model, version = pipe.recv()
        if not model:
            return
        with tracker.moving(model) as still_held:
            contender = bout(tracker, version, model=model, seconds=JUDGING_SECONDS, by=name)
            pipe.send(settle(tracker, contender, still_held).alias)


@pytest.fixture
def data_dir(blank_mlflow: Path, tmp_path: Path) -> Path:
    return shutil.copytree(blank_mlflow, tmp_path / "data")


@pytest.fixture
def tracker(data_dir: Path) -> Tracker:
    return Tracker.open(data_dir)


def races(tracker: Tracker, folders: tuple[Path, Path], count: int) -> None:
    """Let two processes go at once, `count` times: at a champion that both beat, or at none."""
    context, pipes, processes = get_context("spawn"), [], []
    for folder, name in zip(folders, ("Ada", "Bob"), strict=True):
        ours, theirs = context.Pipe()
        process = context.Process(target=promoter, args=(theirs, folder, name), daemon=True)
        process.start()
        theirs.close()  # so that one that dies is noticed
        pipes.append(ours)
        processes.append(process)
    assert [pipe.recv() for pipe in pipes] == ["ready", "ready"]
    for race in range(count):
        model = f"race{race}"
        old, worse, better = (enter(tracker, score, model) for score in range(3))
        if race % 2:
            tracker.set_alias(model, "champion", old)
        entries = (worse, better) if race % 4 < 2 else (better, worse)
        for pipe, version in zip(pipes, entries, strict=True):
            pipe.send((model, version))
        told = dict(zip(entries, [pipe.recv() for pipe in pipes], strict=True))
        consistent(tracker, model, told, (worse, better), old if race % 2 else None)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(("", ""))
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0


def consistent(
    tracker: Tracker, model: str, told: dict[str, str], entries: tuple[str, str], old: str | None
) -> None:
    """The better is champion, whoever came first; aliases and records say how that came about."""
    worse, better = entries
    first = worse if told[worse] == "champion" else better
    assert told[better] == "champion", f"{model}: the better one was refused"
    assert number(tracker, model, "champion") == better, f"{model}: the worse one won"
    assert number(tracker, model, "previous") == (worse if first == worse else old)
    moves = [(row["action"], row["version"], row["before"]) for row in audit.history(tracker, model)]
    second = ("promoted", better, worse) if first == worse else ("rejected", worse, better)
    assert moves == [("promoted", first, old), second]


@pytest.mark.slow
def test_in_a_hundred_races_the_better_is_champion(tracker: Tracker, data_dir: Path) -> None:
    races(tracker, (data_dir, data_dir), 100)


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[str, Path]]:
    """The URL of a PostgreSQL server of our own, and its data folder."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed here")
    # a short path, which a server's own user may enter
    with tempfile.TemporaryDirectory(prefix="pareflow-races-", dir="/tmp") as made:
        folder = Path(made)
        as_server = []
        if os.getuid() == 0:  # whom PostgreSQL refuses
            shutil.chown(folder, "postgres")
            as_server = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        with socket.create_server(("127.0.0.1", 0)) as bound:
            port = bound.getsockname()[1]
        data, binaries = folder / "data", BINARIES[-1]
        subprocess.run(
            [*as_server, binaries / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"],
            check=True,
            capture_output=True,
        )
        settings = [
            f"port={port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={folder}",
            "fsync=off",
        ]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*as_server, binaries / "postgres", "-D", data, *(f"-c{setting}" for setting in settings)],
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "ready to accept" not in (folder / "log").read_text():
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", data
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(PATIENCE_SECONDS)


@pytest.mark.slow
def test_promoters_that_share_a_database_and_no_folder_take_turns(
    tracker: Tracker,
    data_dir: Path,
    tmp_path: Path,
    database: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two data folders, as on two machines: neither sees the other's `flock`."""
    monkeypatch.setenv(locking.VARIABLE, database[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    races(tracker, (tmp_path / "here", tmp_path / "there"), 100)


def test_a_lock_whose_database_went_away_is_not_held(
    tracker: Tracker, database: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backends are ended while the version is judged: somebody else may hold the lock now."""
    monkeypatch.setenv(locking.VARIABLE, database[0])
    version = enter(tracker, 1)
    with tracker.moving("contended") as still_held:
        still_held()
        for pid in _sessions(database[1]):
            os.kill(pid, signal.SIGTERM)
        with pytest.raises(TransientError, match="nothing was moved"):
            settle(tracker, bout(tracker, version, seconds=0.5), still_held)
    assert number(tracker, "contended", "champion") is None


def _sessions(data: Path) -> list[int]:
    """The server's processes that serve clients: they are called after user, database and address."""
    server = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    return [child.pid for child in server.children() if "127.0.0.1" in " ".join(child.cmdline())]


def test_who_waits_for_a_lock_whose_database_answers_no_more_is_told(
    database: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host vanished: there comes neither an answer nor an end of the connection."""
    monkeypatch.setenv(locking.VARIABLE, database[0])
    monkeypatch.setattr(locking, "_ANSWER_S", 2.0)

    def wait() -> None:
        with locking.exclusive(tmp_path / "there", "x"):
            pass

    with ThreadPoolExecutor(1) as pool, locking.exclusive(tmp_path / "here", "x"):
        waiting, deadline = pool.submit(wait), time.monotonic() + PATIENCE_SECONDS
        while len(sessions := _sessions(database[1])) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)  # by now it waits
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TransientError, match="must be reachable"):
                waiting.result(30)
        finally:
            for pid in sessions:
                os.kill(pid, signal.SIGCONT)


def test_who_is_not_to_wait_is_told_that_the_lock_is_held(
    database: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another data folder, as that of another machine, or by the same one."""
    monkeypatch.setenv(locking.VARIABLE, database[0])
    with locking.exclusive(tmp_path / "here", "x"):
        for folder in ("here", "there"):
            with pytest.raises(locking.HeldError, match="another process holds it"):
                locking.exclusive(tmp_path / folder, "x", wait=False).__enter__()
    with locking.exclusive(tmp_path / "there", "x", wait=False) as still_held:
        still_held()


def test_a_holder_that_dies_frees_the_lock(database: tuple[str, Path], tmp_path: Path) -> None:
    holds = (
        "import sys, time; from pathlib import Path; from tasks.locking import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, locking.VARIABLE: database[0]}
    command = [sys.executable, "-c", holds, str(tmp_path / "there")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(locking.VARIABLE, database[0])
        with locking.exclusive(tmp_path / "here", "x") as still_held:
            still_held()


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("sqlite:///locks.db", TrackingError, "must name a PostgreSQL database"),
        ("postgresql://ada:secret@127.0.0.1:1/none", TransientError, "must be reachable"),
    ],
)
def test_a_database_that_cannot_lock_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setenv(locking.VARIABLE, url)
    with pytest.raises(error, match=said) as raised, locking.exclusive(tmp_path, "x"):
        pytest.fail("it is held")
    assert "secret" not in str(raised.value)


def test_a_model_that_a_flow_is_given_by_more_than_its_name_is_told(tmp_path: Path) -> None:
    """Flows are started from Prefect's pages, too, where no command reads the name."""
    with pytest.raises(InputError, match="models:/x@champion"):
        locking.exclusive(tmp_path, "promotion-models:/x@champion").__enter__()


def test_keys_are_those_of_postgres_bigint() -> None:
    """2^63 does not fit: the digest's 64 bits are read as signed."""
    keys = {locking.key_of(f"promotion-{name}") for name in map(str, range(1000))}
    assert len(keys) == 1000
    assert min(keys) < 0 < max(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
