"""Ten minutes of load while versions change and the cache's store breaks: no failed or wrong answer.

The versions are two networks, and each answer is held against that of the version that it names. The load is
a share of what this very server answers to these requests, its cache included.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from claims import Claim
from serving_load import Server, binary, closed_loop, free_port, running
from serving_models import BACKEND, OTHER, package, rows

from flows.environment import set_environment
from pareflow.catalog import BACKENDS, find
from pareflow.compiler.backend import Backend
from pareflow.measuring.load import Load
from pareflow.measuring.loadgen_log import Log
from pareflow.serving.load import Seen, under_load
from pareflow.stages.registration import content_digest

NAME = "bert"
SECONDS = 600
SHARE_OF_PEAK = 0.8
KEPT_MIB = 0.004
"""Of the cache: some fifteen of the 128 answers. Most requests are computed, and without it the load is still
less than the peak."""
CLOSE = 1e-4
"""A batch of other requests changes the rounding."""


def endurance(quick: bool) -> Iterator[Claim]:
    """Load at a share of the peak, with a promotion, a broken cache store and a rollback in the middle."""
    set_environment()
    seconds = 30 if quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        point = registered(Path(folder), NAME)
        cache = Path(folder) / "answers.db"
        with _serving(Path(folder), cache) as server:
            closed_loop(server, 2, varied=True)
            peak = closed_loop(server, 4, varied=True).per_s
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
    yield from _claims(log, load, wrong, versions, memory)


def _claims(
    log: Log, load: Load, wrong: Sequence[str], versions: Collection[str], memory: Sequence[float]
) -> Iterator[Claim]:
    """The rows; of a run that LoadGen has trouble with only what was wrong counts."""
    count, trouble = len(log.latencies_ms), "; ".join(log.said.trouble)
    p50, p99 = np.quantile(log.latencies_ms, [0.5, 0.99])
    note = f"{load.per_s:.0f}/s for {load.seconds:g} s, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    note = "; ".join(filter(None, (note, trouble, *wrong[:1])))
    failed = None if trouble and not wrong else len(wrong)
    yield Claim("failed or wrong answers", 0, failed, "answers", count, "at most", note=note)
    answered = None if trouble else len(versions)
    yield Claim("versions that answered", 2, answered, "versions", count, "at least", note=trouble)
    grown, note = (None, trouble) if trouble else _grown(memory)
    name = "memory that grew from the second minute to the last"
    yield Claim(name, 0.05, grown, "share", len(memory), "at most", note=note)


def _grown(memory: Sequence[float]) -> tuple[float, str]:
    """By which share from the second of ten minutes, before anything changes, to the last; the MiB."""
    tenth = len(memory) // 10
    early, late = (statistics.median(part) for part in (memory[tenth : 2 * tenth], memory[-tenth:]))
    return late / early - 1, f"{early:.0f} MiB, then {late:.0f}; at most {max(memory):.0f}"


def registered(folder: Path, name: str) -> Callable[[str, str], None]:
    """Two networks as versions in a registry of their own, the first champion; what moves an alias."""
    from tasks.tracking import CONTENT, FORMAT, FORMAT_TAG, Tracker

    tracker = Tracker.open(folder)
    tracker.client.create_registered_model(name)
    for version, network in versions_of(name).items():
        placed = folder / f"model-{version}" / "data" / "package"
        shutil.copytree(package(network), placed)
        tags = {CONTENT: content_digest(placed, FORMAT), FORMAT_TAG: str(FORMAT)}
        tracker.client.create_model_version(name, placed.parents[1].as_uri(), tags=tags)
    tracker.set_alias(name, "champion", "1")
    return lambda alias, version: tracker.set_alias(name, alias, version)


def versions_of(name: str) -> dict[str, str]:
    """By the version that is registered, the network behind it."""
    return {"1": name, "2": OTHER[name]}


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
    """Notes which version answered, and every answer that is not that version's network's."""
    expected = {version: _answers(network) for version, network in versions_of(NAME).items()}

    def check(index: int, status: int, content: bytes) -> None:
        if status != 200:
            wrong.append(f"{status} {content[:100]!r}")
            return
        head = len(content) - expected["1"][index].nbytes
        try:
            document = json.loads(content[:head])
        except ValueError:
            wrong.append(f"answer {index} has another size: {content[:100]!r}")
            return
        version = document["model_version"]
        versions.add(version)
        if version not in expected:
            wrong.append(f"answer {index} is of version {version}, which nobody registered")
            return
        right, found = expected[version][index], np.frombuffer(content[head:], "<f4")
        if not np.allclose(found, right, atol=CLOSE):
            far = np.abs(found - right).max()
            wrong.append(f"answer {index} differs by {far:g} from version {version}'s")

    return check


def _answers(network: str) -> list[np.ndarray]:
    """What a network answers to each request, by itself."""
    backend = find(BACKENDS, BACKEND, "backend")
    assert isinstance(backend, Backend)
    session = backend.load(package(network) / "artifact")
    return [session.run(feeds)["logits"].ravel() for feeds in rows(NAME)]


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
