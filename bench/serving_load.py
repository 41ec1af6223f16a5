"""Servers as processes, and what asks them: wrk in a closed loop, one lone caller, or LoadGen at random.

wrk (github.com/wg/wrk; Debian: `apt install wrk`) costs so little that both cores are the server's.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from serving_models import package, rows

from pareflow.errors import EnvironmentUnfitError
from pareflow.measuring.load import Said
from pareflow.serving.load import Post
from pareflow.workload import Arrays

SERVERS = Path(__file__).parent / "servers"
READY_S = 120
TYPES = {"int64": "INT64", "float32": "FP32"}
"""The protocol's names of what is asked with."""
_LUA = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
{headers}
"""
_LUA_VARIED = """
local bodies = {{{bodies}}}
for i, path in ipairs(bodies) do
    local file = io.open(path, "rb")
    bodies[i] = file:read("*a")
    file:close()
end
function request() return wrk.format("POST", nil, nil, bodies[math.random(#bodies)]) end
"""


@dataclass(frozen=True)
class Server:
    """A running server: its processes, where it answers, and how it is asked."""

    process: psutil.Process
    posts: tuple[Post, ...]
    start_s: float

    def cpu_s(self) -> float:
        """Processor seconds of all its processes until now."""
        total = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Its processes stopped: some servers take a good part of a core while nobody asks."""
        whole = [self.process, *self.process.children(recursive=True)]
        for one in whole:
            one.suspend()
        try:
            yield
        finally:
            for one in whole:
                one.resume()

    def memory_mib(self) -> float:
        """Memory of all its processes, shared pages divided among them."""
        processes = (self.process, *self.process.children(recursive=True))
        return sum(one.memory_full_info().pss for one in processes) / 2**20


@dataclass(frozen=True)
class Rate:
    """What a server did in a closed loop."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of the server per request."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@contextmanager
def running(command: Sequence[object], url: str, posts: Sequence[Post]) -> Iterator[Server]:
    """A server until it is left; ready when its first post is answered."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        try:
            _await(process, posts[0], url)
            yield Server(psutil.Process(process.pid), tuple(posts), time.perf_counter() - began)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-2000:])
            raise
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    try:
        whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        whole = []
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
    for one in whole:
        if one.is_running():
            one.kill()
    process.wait()


def _await(process: "subprocess.Popen[bytes]", post: Post, url: str) -> None:
    until = time.monotonic() + READY_S
    while True:
        try:
            ask(post)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if process.poll() is not None or time.monotonic() > until:
                raise EnvironmentUnfitError(
                    "a server must answer", f"{url} does not ({error})", "See its output above"
                ) from error
        time.sleep(0.02)


def ask(post: Post) -> bytes:
    """One request on a connection of its own."""
    request = urllib.request.Request(post.url, post.body, dict(post.headers))
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def closed_loop(server: Server, seconds: float, connections: int = 16, *, varied: bool = False) -> Rate:
    """wrk: each connection asks again as soon as it is answered, with the first post.

    Where `varied`, with any by chance: they differ in their bodies alone. Raises: EnvironmentUnfitError.
    """
    if shutil.which("wrk") is None:
        raise EnvironmentUnfitError("`wrk` must be installed", "it is not", "Run `apt install wrk`")
    post = server.posts[0]
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body", Path(folder) / "post.lua"
        body.write_bytes(post.body)
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in post.headers.items())
        lua = _LUA.format(body=body, headers=headers)
        if varied:
            paths = [Path(folder) / f"body-{i}" for i in range(len(server.posts))]
            for path, one in zip(paths, server.posts, strict=True):
                path.write_bytes(one.body)
            lua += _LUA_VARIED.format(bodies=", ".join(f'"{path}"' for path in paths))
        script.write_text(lua)
        options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), post.url]
        before = server.cpu_s()
        done = subprocess.run(["wrk", *options], capture_output=True, text=True, check=True).stdout
        used = server.cpu_s() - before
    if "Non-2xx" in done or "Socket errors" in done:
        raise EnvironmentUnfitError("every request must be answered", done.strip(), "See the server's output")
    count = int(_found(r"(\d+) requests in", done))
    return Rate(
        per_s=float(_found(r"Requests/sec:\s+([\d.]+)", done)),
        p50_ms=_ms(_found(r"50%\s+([\d.]+\w+)", done)),
        p99_ms=_ms(_found(r"99%\s+([\d.]+\w+)", done)),
        cpu_ms=1000 * used / count,
    )


def unusable(said: Said) -> str:
    """Why a run's latencies tell nothing, in LoadGen's words; empty where they do."""
    if said.trouble:
        return f"LoadGen: {'; '.join(said.trouble)}"
    return "" if said.valid else f"LoadGen calls it invalid: {said.early_stopping}"


def _found(pattern: str, text: str) -> str:
    matched = re.search(pattern, text)
    assert matched is not None  # wrk's output of this version
    return matched.group(1)


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[unit]


@contextmanager
def pareflow(name: str, *, raw: bool = True, **plan: object) -> Iterator[Server]:
    """`pareflow serve` with a plan, asked by raw tensors, or by nested lists as other servers are."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(json.dumps(plan))
        file.flush()
        command = [sys.executable, "-m", "flows.cli", "serve", package(name), "--port", port]
        url = f"http://127.0.0.1:{port}/v2/models/{name}/infer"
        posts = [(binary if raw else listed)(url, feeds) for feeds in rows(name)]
        with running([*command, "--plan", file.name], url, posts) as server:
            yield server


def binary(url: str, feeds: Arrays) -> Post:
    """A request of the protocol with raw tensors, answered raw."""
    tensors = [
        _tensor(name, array, parameters={"binary_data_size": array.nbytes}) for name, array in feeds.items()
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Post(url, head + b"".join(array.tobytes() for array in feeds.values()), headers)


def listed(url: str, feeds: Arrays) -> Post:
    """A request of the protocol as JSON, answered so."""
    tensors = [_tensor(name, array, data=array.tolist()) for name, array in feeds.items()]
    return Post(url, json.dumps({"inputs": tensors}).encode(), {"Content-Type": "application/json"})


def _tensor(name: str, array: np.ndarray, **told: object) -> dict[str, object]:
    return {"name": name, "datatype": TYPES[array.dtype.name], "shape": list(array.shape), **told}


def as_json(url: str, feeds: Mapping[str, np.ndarray], key: str | None = None) -> Post:
    """Arrays by name as nested lists; below one key where one is given."""
    lists = {name: array.tolist() for name, array in feeds.items()}
    body = json.dumps(lists if key is None else {key: lists}).encode()
    return Post(url, body, {"Content-Type": "application/json"})
