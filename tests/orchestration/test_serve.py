"""`pareflow serve` as its users run it: a process, clients that others wrote, and a registry that moves."""

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.errors import PareflowError, StoreError
from pareflow.serving.executable import Release
from pareflow.serving.plan import ServingPlan
from pareflow.stages.run import Row
from tasks.promotion import promote, roll_back
from tasks.serving import RegistrySource, register_plan
from tasks.tracking import Tracker
from tests.orchestration.conftest import CHECKOUT, Judged, refused

http = pytest.importorskip("tritonclient.http")
Done = subprocess.CompletedProcess[str]
SWITCHES_WITHIN_S = 30
SWITCH_S = 1.5
"""About what a server takes to hear of another version, fetch it, open it and let it answer."""


class Server:
    """A running `pareflow serve`."""

    def __init__(self, command: list[str], **environment: str) -> None:
        variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
        self.process = subprocess.Popen(
            command, cwd=CHECKOUT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.communicate()[1]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())

    def version(self, model: str = "images") -> str:
        return str(self.get(f"/v2/models/{model}")["versions"][0])

    def becomes(self, version: str, within_s: float = SWITCHES_WITHIN_S) -> None:
        """Wait until this version answers."""
        until = time.monotonic() + within_s
        while self.version() != version:
            assert time.monotonic() < until, f"still {self.version()}, not {version}"
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        """Ask it to end; its exit status, and what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        written = self.process.communicate(timeout=60)[1]
        return self.process.returncode, written


Start = Callable[..., Server]


@pytest.fixture
def start(command: Callable[..., list[str]]) -> Iterator[Start]:
    """Start a server, which is stopped after the test."""
    started: list[Server] = []

    def begun(*arguments: object, **environment: str) -> Server:
        started.append(Server(command("serve", *arguments, "--port", 0), **environment))
        return started[-1]

    yield begun
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


def ask(server: Server, count: int = 3, seed: int = 0) -> np.ndarray:
    """The outputs for so many random images, by Triton's client."""
    images = np.random.default_rng(seed).random((count, 1, 8, 8), dtype=np.float32)
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    given = http.InferInput("images", images.shape, "FP32")
    given.set_data_from_numpy(images)
    with client:
        found: np.ndarray = client.infer("images", [given]).as_numpy("output")
    return found


INVALID = "WARNING Invalid HTTP request received."


@pytest.fixture(scope="module")
def images(command: Callable[..., list[str]], packaged: Callable[..., Path]) -> Iterator[Server]:
    """A server of the tiny images; it ends well, and had nothing to say but of what is no HTTP at all."""
    server = Server(command("serve", packaged("images"), "--port", 0))
    yield server
    try:
        status, written = server.end()
        assert (status, {*written.splitlines()} - {INVALID}) == (0, set())
    finally:
        server.process.kill()


def test_a_client_that_others_wrote_is_served(images: Server) -> None:
    """Triton's: health, metadata, tensors as JSON and raw; whole batches are those of single requests."""
    client = http.InferenceServerClient(images.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("images")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("images")["inputs"][0]["shape"] == [-1, 1, 8, 8]
    samples = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    answers = []
    for binary in (True, False):
        given = http.InferInput("images", samples.shape, "FP32")
        given.set_data_from_numpy(samples, binary_data=binary)
        wanted = [http.InferRequestedOutput("output", binary_data=binary)]
        answers.append(client.infer("images", [given], outputs=wanted, request_id="7"))
    assert [answer.get_response()["id"] for answer in answers] == ["7", "7"]
    assert np.allclose(answers[0].as_numpy("output"), answers[1].as_numpy("output"))
    assert np.allclose(answers[0].as_numpy("output"), ask(images, 4), atol=1e-5)
    with pytest.raises(http.InferenceServerException, match="a model must be one of images"):
        client.infer("other", [given])
    client.close()


def test_requests_made_from_the_openapi_document_are_answered_as_it_says(
    images: Server, tmp_path: Path
) -> None:
    """By schemathesis, but for one check: what the document allows and the model does not is refused."""
    tool = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{images.url}/openapi.json"]
    checks = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(
        [*tool, *checks, "--max-examples", "6", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


LINE, LARGE, GONE = 4, 120_000, 20
"""Large requests in a line, the samples of each, and the small ones that hang up behind them."""
Line = tuple[Server, list[Future[int]]]


@pytest.fixture
def line(start: Start, packaged: Callable[..., Path], tmp_path: Path) -> Iterator[Line]:
    """A server of one session, and large requests, all with the server: one is computed, the others wait."""
    plan = tmp_path / "plan.yaml"
    batching = {"dynamic_batching": {"max_batch_size": 1}}
    plan.write_text(json.dumps({"sessions": 1, "inline_ms": 0, "policies": [batching]}))
    server = start(packaged("images"), "--plan", plan)
    large = np.zeros((LARGE, 1, 8, 8), np.float32)
    head = json.dumps({"inputs": [{"name": "images", "datatype": "FP32", "shape": list(large.shape),
                                   "parameters": {"binary_data_size": large.nbytes}}],
                       "outputs": [{"name": "output", "parameters": {"binary_data": True}}]})  # fmt: skip
    headers, body = {"Inference-Header-Content-Length": str(len(head))}, head.encode() + large.tobytes()

    def post() -> int:
        request = urllib.request.Request(f"{server.url}/v2/models/images/infer", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            status: int = answer.status
            return status

    def all_there() -> bool:
        now = batched(server)
        return now["waiting"] > 0 and now["batches"] + now["waiting"] == LINE - 1

    with ThreadPoolExecutor(LINE) as pool:
        answers = [pool.submit(post) for _ in range(LINE)]
        until(all_there)
        yield server, answers


def batched(server: Server) -> dict[str, float]:
    """What the server's batching counts, by name."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = r'figure="(\w+)",model="images",policy="dynamic_batching"\} (\S+)'
    return {name: float(value) for name, value in re.findall(counts, text)}


def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + SWITCHES_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_end_answers_what_is_there(line: Line) -> None:
    """Requests that came before SIGTERM are answered after it, and later ones find nobody."""
    server, answers = line
    assert not all(answer.done() for answer in answers)
    status, _ = server.end()
    assert (status, [answer.result() for answer in answers]) == (0, [200] * LINE)
    with pytest.raises(urllib.error.URLError):
        server.get("/v2/health/live")


def test_nothing_is_computed_for_who_has_gone(line: Line) -> None:
    """Behind large requests stand twenty that hang up; of those who stay each is answered."""
    server, answers = line
    host, port = server.url.removeprefix("http://").split(":")
    small = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    body = json.dumps({"inputs": [small]}).encode()
    head = f"POST /v2/models/images/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with ExitStack() as connections:
        for _ in range(GONE):
            gone = connections.enter_context(socket.create_connection((host, int(port))))
            gone.sendall(head.encode() + body)
        until(lambda: batched(server)["waiting"] >= GONE)
    until(lambda: batched(server)["waiting"] < LINE)
    ask(server, 1)
    assert [answer.result() for answer in answers] == [200] * LINE
    assert batched(server)["samples"] == LINE * LARGE + 1


Register = Callable[[Row], str]


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path)


@pytest.fixture
def register(tracker: Tracker, judged: Judged) -> Register:
    """Register a row and make it champion; the number of its version."""

    def registered(row: Row) -> str:
        parent = tracker.begin(judged.run)
        version = str(tracker.register(judged.run, parent, judged.package(row), row).version)
        promote(tracker, judged.run, version, row)
        return version

    return registered


CHAMPION = "models:/images@champion"


def test_the_server_follows_promotions_and_rollbacks(
    start: Start, tracker: Tracker, register: Register, judged: Judged, tmp_path: Path
) -> None:
    """No request fails, and each is answered by one of the two versions."""
    first = register(judged.fp32)
    server = start(CHAMPION, "--data-dir", tmp_path, "--poll-s", 0.2)
    assert server.version() == first
    stop, outputs = threading.Event(), list[np.ndarray]()

    def keep_asking() -> None:
        while not stop.is_set():
            outputs.append(ask(server))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    before = ask(server)
    second = register(judged.int8)
    server.becomes(second)
    after = ask(server)
    roll_back(tracker, "images")
    server.becomes(first)
    stop.set()
    thread.join()
    assert not np.array_equal(before, after)
    assert len(outputs) > 10
    assert all(any(np.allclose(one, known, atol=1e-5) for known in (before, after)) for one in outputs)


def test_a_version_is_served_by_the_plan_that_was_tuned_for_it_here(
    start: Start, tracker: Tracker, register: Register, judged: Judged, tmp_path: Path
) -> None:
    """In this environment, and where no other plan is named; also without the registry."""
    version = register(judged.fp32)
    caching = ServingPlan(policies=({"exact_cache": {}},))
    register_plan(tmp_path, Release("images", version, judged.package(judged.fp32)), caching)
    for more in ({}, AWAY):
        server = start(CHAMPION, "--data-dir", tmp_path, **more)
        ask(server)
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            assert 'policy="exact_cache"' in answer.read().decode()
        server.end()


def test_without_the_registry_the_last_good_copy_is_served(
    start: Start, register: Register, judged: Judged, tmp_path: Path
) -> None:
    """Also where the server was killed."""
    version = register(judged.fp32)
    server = start(CHAMPION, "--data-dir", tmp_path)
    expected = ask(server)
    server.process.kill()
    server.process.communicate()
    again = start(CHAMPION, "--data-dir", tmp_path, **AWAY)
    assert again.version() == version
    assert np.array_equal(ask(again), expected)
    status, written = again.end()
    assert status == 0
    assert "serving version 1 of images, the last that came whole" in written


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("move", ["promotion", "rollback"])
def test_a_server_that_was_killed_amid_a_switch_serves_what_its_alias_named(
    start: Start, tracker: Tracker, register: Register, judged: Judged, tmp_path: Path, move: str, seed: int
) -> None:
    """At a moment that the seed draws: without the registry either version, with it the present one."""
    options = ("--data-dir", tmp_path, "--poll-s", 0.1, "--no-standby")
    first = register(judged.fp32)
    if move == "rollback":
        register(judged.int8)
    server = start(CHAMPION, *options)
    answers = {server.version(): ask(server)}
    now = register(judged.int8) if move == "promotion" else first
    if move == "rollback":
        roll_back(tracker, "images")
    time.sleep(random.Random(f"{move} {seed}").uniform(0, SWITCH_S))
    server.process.kill()
    server.process.communicate()
    alone = start(CHAMPION, *options, **AWAY)
    kept, answer = alone.version(), ask(alone)
    alone.end()
    again = start(CHAMPION, *options)
    assert again.version() == now
    answers[now] = ask(again)
    assert np.array_equal(answer, answers[kept])


def test_servers_of_one_folder_keep_what_each_of_them_served(
    register: Register, judged: Judged, tmp_path: Path
) -> None:
    """Two names of one version, asked for at one moment, again and again."""
    version = register(judged.fp32)
    names = (CHAMPION, f"models:/images/{version}")
    for turn in range(4):
        sources = [RegistrySource(name, tmp_path) for name in names]
        with ThreadPoolExecutor(len(names)) as pool:
            found = list(pool.map(RegistrySource.current, sources))
        assert [source.last() for source in sources] == found, f"in turn {turn}"
        shutil.rmtree(tmp_path / "served")


def test_a_full_disk_keeps_no_server_from_following_its_alias(
    tracker: Tracker,
    register: Register,
    judged: Judged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it serves is noted for a start without the registry: that it is not noted is said once."""

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{path}.{time.monotonic_ns()}")

    first = register(judged.fp32)
    RegistrySource(CHAMPION, tmp_path).current()
    second, source = register(judged.int8), RegistrySource(CHAMPION, tmp_path)
    monkeypatch.setattr("pareflow.store.replace", full)
    assert [source.current().version for _ in range(3)] == [second] * 3
    assert caplog.text.count("No space left") == 1
    roll_back(tracker, "images")
    assert source.current().version == first
    monkeypatch.undo()
    now, last = source.current(), source.last()
    assert last is not None
    for release in (now, last):
        assert (release, release.judged, release.registered) == (now, "promote", True)


def test_a_lock_that_cannot_be_made_keeps_no_server_from_answering(
    register: Register,
    judged: Judged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unmade(*_: object) -> None:
        raise StoreError("the locks must be there", "Read-only file system", "Name another with --data-dir")

    version = register(judged.fp32)
    package = RegistrySource(CHAMPION, tmp_path).current().package
    package.with_name("last.json").unlink()
    monkeypatch.setattr("tasks.serving.flocked", unmade)
    source = RegistrySource(CHAMPION, tmp_path)
    assert [source.current().version for _ in range(2)] == [version] * 2
    assert caplog.text.count("Read-only file system") == 1


def test_old_copies_go_when_a_new_version_comes(register: Register, judged: Judged, tmp_path: Path) -> None:
    """Not the one to go back to, nor a young one. What is only looked at is not remembered as served."""
    first = register(judged.fp32)
    champion = RegistrySource(CHAMPION, tmp_path).current().package
    assert RegistrySource(CHAMPION, tmp_path).copy(first) == champion
    assert RegistrySource(f"models:/images/{first}", tmp_path).last() is None
    old, young = (champion.with_name(name) for name in ("old", "young"))
    for copy in (old, young):
        copy.mkdir()
    for copy in (old, champion):
        os.utime(copy, (0, 0))
    register(judged.int8)
    assert RegistrySource(CHAMPION, tmp_path).current().package != champion
    assert [copy.exists() for copy in (old, young, champion)] == [False, True, True]


def test_a_copy_that_was_damaged_is_fetched_again(
    start: Start, register: Register, judged: Judged, tmp_path: Path
) -> None:
    register(judged.fp32)
    server = start(CHAMPION, "--data-dir", tmp_path)
    expected = ask(server)
    server.end()
    (graph,) = (tmp_path / "served" / "images").glob("*/artifact/model.onnx")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    again = start(CHAMPION, "--data-dir", tmp_path)
    assert np.array_equal(ask(again), expected)


AWAY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "said"),
    [
        (["models:/none@champion"], {}, 2, "models:/none@champion must be"),
        (["models:/none@champion"], AWAY, 4, "must be reachable"),
        (["models:none"], {}, 2, "must be named models:/NAME@ALIAS"),
        (["nowhere"], {}, 2, "nowhere must hold a whole pareflow package"),
        (["nowhere", "--plan", "none.yaml"], {}, 2, "a serving plan must be readable"),
    ],
)
def test_what_cannot_be_served_is_told(
    blank_mlflow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    status: int,
    said: str,
) -> None:
    data_dir = shutil.copytree(blank_mlflow, tmp_path / "data")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = refused(PareflowError, "serve", *arguments, "--port", 0, "--data-dir", data_dir)
    assert (error.exit_code, said in str(error)) == (status, True), error


def test_an_address_that_is_taken_is_told(
    packaged: Callable[..., Path], pareflow_command: Callable[..., Done]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = pareflow_command("serve", packaged("images"), "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "the address to serve on must be free" in done.stderr
