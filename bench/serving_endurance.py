"""Ten minutes of load while versions change and the cache's store breaks: no failed or wrong answer."""

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from claims import Claim
from serving_load import Server, binary, closed_loop, free_port, pareflow, running
from serving_models import BACKEND, package, rows

from flows.environment import set_environment
from pareflow.catalog import BACKENDS, find
from pareflow.compiler.backend import Backend
from pareflow.measuring.load import Load
from pareflow.serving.load import Seen, under_load
from pareflow.stages.registration import content_digest

NAME = "bert"
SECONDS = 600
SHARE_OF_PEAK = 0.8
KEPT_MIB = 0.004
"""Of the cache: some fifty of the 128 answers, so that most requests are computed."""
CLOSE = 1e-4
"""A batch of other requests changes the rounding."""


def endurance(quick: bool) -> Iterator[Claim]:
    """Load at a share of the peak, with a promotion, a broken cache store and a rollback in the middle."""
    set_environment()
    seconds = 30 if quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        point = registered(Path(folder), NAME)
        cache = Path(folder) / "answers.db"
        with pareflow(NAME) as uncached:  # wrk repeats one request, which a cache would answer
            peak = closed_loop(uncached, 4).per_s
        with _serving(Path(folder), cache) as server:
            versions, wrong, memory = set[str](), list[str](), list[float]()
            seen = _checked(versions, wrong)
            stop = threading.Event()
            watch = threading.Thread(target=_watch, args=(server, stop, memory, seconds / 60))
            events = [
                lambda: point("champion", "2"),
                lambda: _broken(cache),
                lambda: point("champion", "1"),
            ]
            change = threading.Thread(target=_in_turn, args=(events, seconds / 4))
            for thread in (watch, change):
                thread.start()
            load = Load("Server", SHARE_OF_PEAK * peak, 1000, queries=1000, seconds=seconds)
            log = under_load(server.posts, load, service_s=0.006, seen=seen)
            stop.set()
            for thread in (watch, change):
                thread.join()
    count = len(log.latencies_ms)
    p50, p99 = np.quantile(log.latencies_ms, [0.5, 0.99])
    note = f"{load.per_s:.0f}/s for {seconds} s, p50 {p50:.1f} ms, p99 {p99:.1f} ms; " + "; ".join(wrong[:1])
    yield Claim("failed or wrong answers", 0, len(wrong), "answers", count, "at most", note=note)
    yield Claim("versions that answered", 2, len(versions), "versions", count, "at least")
    early, late = memory[len(memory) // 6 : len(memory) // 3], memory[-len(memory) // 6 :]
    grown = statistics.median(late) / statistics.median(early) - 1
    note = f"{statistics.median(early):.0f} MiB, then {statistics.median(late):.0f}"
    yield Claim(
        "memory that grew from the second minute to the last",
        0.05,
        grown,
        "share",
        len(memory),
        "at most",
        note=note,
    )


def registered(folder: Path, name: str) -> Callable[[str, str], None]:
    """Two versions of one package in a registry of their own, the first champion; what moves an alias."""
    from tasks.tracking import CONTENT, FORMAT, FORMAT_TAG, Tracker

    tracker = Tracker.open(folder)
    source = folder / "model" / "data" / "package"
    source.parent.mkdir(parents=True)
    shutil.copytree(package(name), source)
    tracker.client.create_registered_model(name)
    for _ in range(2):
        tags = {CONTENT: content_digest(package(name), FORMAT), FORMAT_TAG: str(FORMAT)}
        tracker.client.create_model_version(name, (folder / "model").as_uri(), tags=tags)
    tracker.set_alias(name, "champion", "1")
    return lambda alias, version: tracker.set_alias(name, alias, version)


@contextmanager
def _serving(data_dir: Path, cache: Path) -> Iterator[Server]:
    port, plan = free_port(), data_dir / "plan.yaml"
    kept = {"store": f"sqlite:{cache}", "max_mib": KEPT_MIB}
    plan.write_text(json.dumps({"policies": [{"exact_cache": kept}, {"dynamic_batching": {}}]}))
    command = [sys.executable, "-m", "flows.cli", "serve", f"models:/{NAME}@champion", "--port", port]
    url = f"http://127.0.0.1:{port}/v2/models/{NAME}/infer"
    posts = [binary(url, feeds) for feeds in rows(NAME)]
    with running([*command, "--data-dir", data_dir, "--plan", plan, "--poll-s", 1], url, posts) as server:
        yield server


def _checked(versions: set[str], wrong: list[str]) -> Seen:
    """Notes which version answered, and every answer that is not the network's."""
    backend = find(BACKENDS, BACKEND, "backend")
    assert isinstance(backend, Backend)
    session = backend.load(package(NAME) / "artifact")
    expected = [session.run(feeds)["logits"].ravel() for feeds in rows(NAME)]

    def check(index: int, status: int, content: bytes) -> None:
        if status != 200:
            wrong.append(f"{status} {content[:100]!r}")
            return
        head = len(content) - expected[index].nbytes
        try:
            document = json.loads(content[:head])
        except ValueError:
            wrong.append(f"answer {index} has another size: {content[:100]!r}")
            return
        versions.add(document["model_version"])
        found = np.frombuffer(content[head:], "<f4")
        if found.shape != expected[index].shape or not np.allclose(found, expected[index], atol=CLOSE):
            wrong.append(f"answer {index} differs by {np.abs(found - expected[index]).max():g}")

    return check


def _in_turn(events: list[Callable[[], None]], every_s: float) -> None:
    for event in events:
        time.sleep(every_s)
        event()


def _broken(cache: Path) -> None:
    """The file of the store is overwritten, as a full or failing disk leaves it."""
    size = cache.stat().st_size if cache.exists() else 4096
    cache.write_bytes(os.urandom(size))


def _watch(server: Server, stop: threading.Event, memory: list[float], every_s: float) -> None:
    while not stop.wait(min(every_s, 5)):
        memory.append(server.memory_mib())
