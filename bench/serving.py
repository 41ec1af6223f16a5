"""`pareflow serve` beside the session that it serves, and beside other servers of the same network.

Every ratio is of turns on this machine, one after the other: ours, theirs, ours, theirs. Both cores are the
server's and its caller's; networks compute in one thread, MLflow's in one or two. What stands beside raw
`session.run` stands beside ONNX Runtime fp32 at full graph optimization. Names on the command line choose
parts.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from claims import Claim, main, of_turns
from peer_files import PeerEnvironment
from serving_endurance import endurance
from serving_load import SERVERS, Rate, Server, as_json, closed_loop, free_port, pareflow, running, unusable
from serving_models import BACKEND, FOLDER, graph, package, rows

from pareflow.catalog import BACKENDS, find
from pareflow.compiler.backend import Backend
from pareflow.measuring.load import Load
from pareflow.serving.load import under_load
from pareflow.session import Session
from pareflow.workload import Arrays

TURNS = 9
"""Of each contestant, one after the other."""
SECONDS = 4.0
"""Of one turn."""
BATCH = 8
LONE, LONE_TURNS = 20, 15
"""Requests of a lone caller in a turn, and its turns."""
SHARE_OF_PEAK = 0.7
"""Of the requests per second in a closed loop, that arrive at random in the open one."""
QUERIES = 3000
"""So many tell a p99 at 99 % confidence, some of them slow."""
START_S = 1.5
BATCHES = ((BATCH, 1), (BATCH, 2), (1, 2))
"""The largest batch and the workers, of servers that put requests together."""
THREADS = ((1, 1), (2, 1), (1, 2))
"""The workers, and the threads of each, of a server that does not."""
IMPORTS = "import flows.cli, flows.commands, onnxruntime, uvicorn, uvloop, httptools, pareflow.serving.app"
Made = Callable[[], AbstractContextManager[Server]]


def session(name: str) -> Session:
    """A network as the server loads it."""
    backend = find(BACKENDS, BACKEND, "backend")
    assert isinstance(backend, Backend)
    return backend.load(package(name) / "artifact")


def joined(name: str, count: int) -> Arrays:
    """So many samples in one batch."""
    chosen = rows(name)[:count]
    return {key: np.concatenate([row[key] for row in chosen]) for key in chosen[0]}


def raw_per_s(loaded: Session, feeds: Arrays, seconds: float) -> tuple[float, float]:
    """Samples per second of `session.run` alone, and its processor ms per sample."""
    count, cpu, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        loaded.run(feeds)
        count += len(next(iter(feeds.values())))
    return count / (time.perf_counter() - began), 1000 * (time.process_time() - cpu) / count


def overhead(quick: bool) -> Iterator[Claim]:
    """What the server takes beside the network."""
    turns = 2 if quick else TURNS
    loaded = session("bert")
    feeds = joined("bert", BATCH)
    shares = []
    with pareflow("bert", sessions=1, policies=[{"dynamic_batching": {"max_batch_size": BATCH}}]) as server:
        closed_loop(server, 1)
        for _ in range(turns):
            raw, _ = raw_per_s(loaded, feeds, SECONDS)
            shares.append(closed_loop(server, SECONDS, connections=2 * BATCH).per_s / raw)
        name = "BERT by raw tensors: one worker at saturation, over runs of a batch"
        yield of_turns(name, 0.95, shares, "×", "at least")
        yield from _lone(server, loaded)
        yield _idle(server)
    yield from _beside_a_route(turns)
    yield from _start(turns)


def _lone(server: Server, loaded: Session) -> Iterator[Claim]:
    """What a lone caller waits for, beyond the network's own time, before and after a burst."""
    one = joined("bert", 1)
    with _caller(server) as ask:
        for when in ("before", "after"):
            alone, beyond = [], []
            for _ in range(LONE_TURNS):
                alone.append(_median_ms(lambda: loaded.run(one)))
                beyond.append(_median_ms(ask) - alone[-1])
            name = (
                f"BERT: a lone request by raw tensors {when} a burst, beyond the network's "
                f"{statistics.median(alone):.2f} ms"
            )
            yield of_turns(name, 1.0, beyond, "ms", "at most")
            closed_loop(server, 2, connections=64)


@contextmanager
def _caller(server: Server) -> Iterator[Callable[[], object]]:
    """Asks the server once whenever it is called, by one connection."""
    import http.client
    from urllib.parse import urlsplit

    post = server.posts[0]
    address = urlsplit(post.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)

    def once() -> None:
        connection.request("POST", address.path, post.body, dict(post.headers))
        connection.getresponse().read()

    yield once
    connection.close()


def _median_ms(work: Callable[[], object]) -> float:
    return statistics.median(_ms(work) for _ in range(LONE))


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def _idle(server: Server) -> Claim:
    time.sleep(2)  # what the burst left in line
    before = server.cpu_s()
    time.sleep(10)
    return Claim(
        "processor while nobody asks", 0.01, (server.cpu_s() - before) / 10, "of a core", 1, "at most"
    )


def _beside_a_route(turns: int) -> Iterator[Claim]:
    """On a network that takes no time, beside a plain FastAPI route around it."""
    loaded = session("tiny")
    per_run = raw_per_s(loaded, joined("tiny", 1), 1)[1]
    ours, alike, theirs = list[Rate](), list[Rate](), list[Rate]()
    with ExitStack() as stack:
        made = (partial(pareflow, "tiny"), partial(pareflow, "tiny", raw=False), _route)
        servers = [stack.enter_context(one()) for one in made]
        for _ in range(turns):
            for server, rates in zip(servers, (ours, alike, theirs), strict=True):
                rates.append(closed_loop(server, SECONDS))
    beyond = statistics.median(rate.cpu_ms for rate in ours) - per_run
    note = (
        f"{statistics.median(rate.per_s for rate in ours):.0f} requests/s; the network takes {per_run:.4f} ms"
    )
    yield Claim(
        "tiny: processor time per request by raw tensors, beyond the network's",
        0.3,
        beyond,
        "ms",
        turns,
        "at most",
        note=note,
    )
    note = f"theirs {statistics.median(rate.per_s for rate in theirs):.0f}/s"
    for how, rates in (("both by JSON", alike), ("ours by raw tensors, theirs by JSON", ours)):
        ratios = [mine.per_s / other.per_s for mine, other in zip(rates, theirs, strict=True)]
        name = f"tiny: requests/s over a plain FastAPI route, {how}"
        yield of_turns(name, 1.3, ratios, "×", "at least", note)


@contextmanager
def _route() -> Iterator[Server]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/predict"
    command = [sys.executable, SERVERS / "fastapi_plain.py", graph("tiny"), port]
    with running(command, url, [as_json(url, feeds) for feeds in rows("tiny")]) as server:
        yield server


def _start(turns: int) -> Iterator[Claim]:
    """From the command to the first answer, without what Python takes to import."""
    seconds = []
    for _ in range(turns):
        imports = _ms(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True)) / 1000
        with pareflow("bert") as server:
            seconds.append(server.start_s - imports)
    note = "the command's own start, beside a process that imports the same"
    yield Claim(
        "BERT: ready after imports", START_S, statistics.median(seconds), "s", turns, "at most", note=note
    )


def at_random(quick: bool) -> Iterator[Claim]:
    """Requests that arrive at random, by LoadGen, at a share of what a closed loop gets.

    A run that LoadGen does not call valid, as where the line only grows, measures nothing.
    """
    with pareflow("bert", policies=[{"dynamic_batching": {"max_batch_size": BATCH}}]) as server:
        peak = closed_loop(server, 2 if quick else 2 * SECONDS).per_s
        load = Load("Server", SHARE_OF_PEAK * peak, 100, queries=700 if quick else QUERIES)
        log = under_load(server.posts, load, service_s=0.006)
    p50, p99 = np.quantile(log.latencies_ms, [0.5, 0.99])
    doubt = unusable(log.said)
    said = f"peak {peak:.0f}/s; {doubt or 'LoadGen calls it valid'}"
    note = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms at {load.per_s:.0f}/s; {said}"
    name = f"BERT: p99 over p50 at {SHARE_OF_PEAK:.0%} of the peak, Poisson arrivals"
    ratio = None if doubt else float(p99 / p50)
    yield Claim(name, 2, ratio, "×", len(log.latencies_ms), "at most", note=note)


def batching(quick: bool) -> Iterator[Claim]:
    """What computing together gains, in requests/s of one session."""
    turns = 2 if quick else TURNS
    with ExitStack() as stack:
        plans = ([{"dynamic_batching": {"max_batch_size": most}}] for most in (BATCH, 1))
        servers = [stack.enter_context(pareflow("bert", sessions=1, policies=plan)) for plan in plans]
        ratios = []
        for _ in range(turns):
            together, alone = (closed_loop(server, SECONDS).per_s for server in servers)
            ratios.append(together / alone)
    note = "a processor gains little; a GPU is not measured"
    yield of_turns("BERT: batches of 8 over none", 2, ratios, "×", "at least", note)


def peers(quick: bool) -> Iterator[Claim]:
    """The same BERT behind other servers, each at the best of its settings, by the same caller."""
    turns = 2 if quick else TURNS
    yield from _over("LitServe", 1.3, _best(_litserve, BATCHES), turns)
    yield from _over("`mlflow models serve`", 2, _best(_mlflow, THREADS), turns)
    yield from _over("Ray Serve", 2.5, _best(_ray, BATCHES), turns)


def _over(name: str, claimed: float, made: Made, turns: int) -> Iterator[Claim]:
    """Requests/s and p99 beside one other server, which is stopped while the first has its turn."""
    ours, theirs = list[Rate](), list[Rate]()
    plan = [{"dynamic_batching": {"max_batch_size": BATCH}}]
    with ExitStack() as stack:
        ours_by_json = pareflow("bert", raw=False, policies=plan)
        mine, other = (stack.enter_context(one) for one in (ours_by_json, made()))
        for server in (mine, other):
            closed_loop(server, 1)
        for _ in range(turns):
            with other.paused():
                ours.append(closed_loop(mine, SECONDS))
            with mine.paused():
                theirs.append(closed_loop(other, SECONDS))
        costs = (f"{one.memory_mib():.0f} MiB, start {one.start_s:.1f} s" for one in (other, mine))
        note = "; ours ".join(costs)
    rates = [mine.per_s / other.per_s for mine, other in zip(ours, theirs, strict=True)]
    mean = statistics.median(rate.per_s for rate in theirs)
    note = f"theirs {mean:.0f}/s; {note}"
    yield of_turns(f"BERT: requests/s over {name}'s", claimed, rates, "×", "at least", note)
    tails = [mine.p99_ms / other.p99_ms for mine, other in zip(ours, theirs, strict=True)]
    note = f"theirs {statistics.median(rate.p99_ms for rate in theirs):.0f} ms"
    yield of_turns(f"BERT: p99 over {name}'s", 1, tails, "×", "at most", note)


def _best(
    made: Callable[[int, int], AbstractContextManager[Server]], settings: Sequence[tuple[int, int]]
) -> Made:
    """The server at the best of its settings, by two seconds of each."""
    found = {}
    for setting in settings:
        with made(*setting) as server:
            closed_loop(server, 1)
            found[setting] = closed_loop(server, 2).per_s
    best = max(found, key=lambda setting: found[setting])
    return lambda: made(*best)


@contextmanager
def _litserve(most: int, workers: int) -> Iterator[Server]:
    python = PeerEnvironment("litserve").ensure()
    with _script(python, "litserve_server.py", most, workers) as server:
        yield server


@contextmanager
def _ray(most: int, replicas: int) -> Iterator[Server]:
    python = PeerEnvironment("ray_serve").ensure()
    with _script(python, "ray_server.py", most, replicas) as server:
        yield server


@contextmanager
def _script(python: Path, name: str, *settings: object) -> Iterator[Server]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/predict"
    posts = [as_json(url, feeds) for feeds in rows("bert")]
    with running([python, SERVERS / name, graph("bert"), port, *settings], url, posts) as server:
        yield server


def _mlflow_model(threads: int) -> Path:
    """MLflow's own flavour of the same file, in so many threads, which do not spin: nor do others'."""
    import mlflow
    import onnx

    folder = FOLDER / f"mlflow-bert-threads-{threads}"
    if not folder.exists():
        options = {
            "intra_op_num_threads": threads,
            "extra_session_config": {"session.intra_op.allow_spinning": "0"},
        }
        mlflow.onnx.save_model(onnx.load(graph("bert")), folder, onnx_session_options=options)
    return folder


@contextmanager
def _mlflow(workers: int, threads: int) -> Iterator[Server]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/invocations"
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"  # it calls uvicorn by its name
    command = [
        "env",
        path,
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        _mlflow_model(threads),
        "--env-manager",
        "local",
    ]
    posts = [as_json(url, feeds, key="inputs") for feeds in rows("bert")]
    with running([*command, "--port", port, "--workers", workers], url, posts) as server:
        yield server


PARTS = {
    "overhead": overhead,
    "random": at_random,
    "batching": batching,
    "peers": peers,
    "endurance": endurance,
}

if __name__ == "__main__":
    main(str(__doc__).splitlines()[0], PARTS)
