"""A challenger on live traffic: a server process, clients that ask all the time, a registry that moves."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows.deployment import run_deployment
from flows.rollout import Steps
from flows.tables import operating
from pareflow.errors import InputError, TransientError
from pareflow.measuring.environment import environment
from pareflow.serving.slot import Challenge
from pareflow.serving.traffic import Traffic
from pareflow.stages.deployment import Tolerance
from pareflow.stages.registration import content_digest
from pareflow.variant import Step
from tasks import deployment as rollouts
from tasks.execution import Plain
from tasks.promotion import challenge, promote, refused_tag, roll_back
from tasks.serving import source
from tasks.tracking import CONFIG, CONTENT, FORMAT, FORMAT_TAG, LEFT, TRAFFIC, Tracker
from tests.orchestration.conftest import PATIENCE_SECONDS, PIPELINE, Judged
from tests.orchestration.test_serve import Server
from tests.replies import replying
from tests.terminal import rendered

QUICK = Steps(shadow=1.0, canary=(0.5,), minutes=2, slowdown=10)
"""Times are not what is tested here."""
NOBODY = "http://127.0.0.1:9"


@dataclass
class Story:
    """A registry with a champion, version 1, and a challenger, version 2, the same again."""

    tracker: Tracker
    data_dir: Path
    config: Path
    command: list[str]

    @functools.cached_property
    def server(self) -> Server:
        """The server of the champion, begun where it is first asked for."""
        return Server(self.command)

    @property
    def mood(self) -> Path:
        return self.data_dir / "mood"

    def register(self, package: Path) -> str:
        """The number of a new version with this package."""
        model = Path(tempfile.mkdtemp(dir=self.data_dir))
        shutil.copytree(package, model / "data" / "package")
        content = content_digest(package, FORMAT)
        tags = {CONTENT: content, FORMAT_TAG: str(FORMAT), CONFIG: str(self.config)}
        version = self.tracker.client.create_model_version("images", model.as_uri(), tags=tags)
        return str(version.version)

    def deploy(self, steps: Steps = QUICK, url: str | None = None) -> dict[str, Any]:
        urls = [url or self.server.url]
        return run_deployment("images", urls, self.data_dir, Plain(), steps, None)

    def turns(self, mood: str) -> None:
        """Change the challenger's mood once it was asked something, long before it is judged."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            trial = self.server.get("/v2/models/images/trial")["trial"]
            if trial is not None and trial["counts"]["asked"]:
                break
            assert time.monotonic() < until
            time.sleep(0.02)
        self.mood.write_text(mood)

    def traffic(self) -> str | None:
        model = self.tracker.model("images")
        assert model is not None
        found: str | None = model.tags.get(TRAFFIC)
        return found


@pytest.fixture(scope="module")
def told() -> Iterator[list[Story]]:
    """The module's story, once it is begun."""
    begun: list[Story] = []
    yield begun
    for story in begun:
        if "server" in vars(story):
            story.server.process.kill()
            story.server.process.communicate()


@pytest.fixture
def story(
    told: list[Story],
    packaged: Callable[..., Path],
    workloads: Path,
    command: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    if not told:
        data_dir = tmp_path_factory.mktemp("story")
        config = workloads / "story.yaml"
        config.write_text(json.dumps(PIPELINE))  # JSON is YAML
        where = ("--data-dir", data_dir, "--port", 0, "--poll-s", 0.2)
        served = command("serve", "models:/images@champion", *where)
        told.append(Story(Tracker.open(data_dir), data_dir, config, served))
        told[0].tracker.client.create_registered_model("images")
        for _ in range(2):
            told[0].register(packaged("images"))
        told[0].tracker.set_alias("images", "champion", "1")
    (found,) = told
    found.mood.unlink(missing_ok=True)
    found.tracker.set_alias("images", "challenger", "2")
    found.tracker.tag_version("images", "2", LEFT, None)
    yield found
    rollouts.withdraw(found.tracker, "images")


@pytest.fixture
def moody(story: Story, rogues: None, make_package: Callable[..., Path], workloads: Path) -> str:
    """The challenger, a version that does as the file `mood` says."""
    backend = Step("moody", {"mood": str(story.mood)})
    rogue = {"file": {"path": "rogue_images.py"}}
    package = make_package(rogue, workloads, story.data_dir / "rogues", backend, "rogues")
    version = story.register(package)
    story.tracker.set_alias("images", "challenger", version)
    return version


@dataclass
class Clients:
    """What those who asked without a pause were answered."""

    versions: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def go_on(self, url: str, number: int, stop: threading.Event) -> None:
        images = np.random.default_rng(number)
        count = 0
        while not stop.is_set():
            count += 1
            image = images.random((1, 1, 8, 8), dtype=np.float32)
            tensor = {
                "name": "images",
                "datatype": "FP32",
                "shape": [1, 1, 8, 8],
                "data": image.ravel().tolist(),
            }
            body = json.dumps({"id": f"{number}-{count}", "inputs": [tensor]}).encode()
            try:
                with urllib.request.urlopen(f"{url}/v2/models/images/infer", body, timeout=30) as answer:
                    version = json.loads(answer.read())["model_version"]
                self.versions[version] = self.versions.get(version, 0) + 1
            except (OSError, ValueError) as error:
                self.failed.append(str(error))
            time.sleep(0.005)


@contextmanager
def clients(url: str, count: int = 3) -> Iterator[Clients]:
    found, stop = Clients(), threading.Event()
    threads = [threading.Thread(target=found.go_on, args=(url, number, stop)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_nothing_seen_is_doubt_and_does_not_pass(story: Story) -> None:
    """Nobody asks: the step's time is over, and the traffic is taken back."""
    document = story.deploy(Steps(shadow=1.0, minutes=0.03))
    assert document["decision"] == "inconclusive"
    assert "no server asked the challenger anything" in document["reason"]
    assert story.traffic() is None


def test_traffic_is_given_at_once_on_a_host_that_has_just_started(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose clock begins at 0."""
    monkeypatch.setattr(rollouts, "time", SimpleNamespace(monotonic=lambda: 1.0, time=time.time))
    rollout = rollouts.Rollout("images", "2", "1", (NOBODY,))
    step = rollouts.watch.fn(story.tracker, rollout, Traffic(version="2", shadow=1), Tolerance(0.01), 0)
    assert step.decision == "inconclusive"
    assert story.traffic() is not None


def test_a_rollout_is_the_only_one_of_its_model(story: Story) -> None:
    with rollouts.alone(story.tracker, "images"), pytest.raises(InputError, match="once at a time"):
        story.deploy(url=NOBODY)


@pytest.mark.parametrize(
    "steps", [Steps(shadow=0), Steps(canary=(0.5, 0.1)), Steps(canary=(1.0,)), Steps(canary=(0.0, 0.1))]
)
def test_shares_that_cannot_be_are_refused(story: Story, steps: Steps) -> None:
    with pytest.raises(InputError, match="growing shares"):
        story.deploy(steps, NOBODY)
    assert story.traffic() is None


def test_what_was_rolled_back_from_is_not_rolled_out_again(story: Story) -> None:
    story.tracker.tag_version("images", "2", LEFT, "Bob: customers call")
    with pytest.raises(InputError, match=r"version 2 was rolled back from \(Bob: customers call\)"):
        run_deployment("images", [NOBODY], story.data_dir, Plain(), QUICK, story.config)


@pytest.mark.parametrize("champion", ["1", None])
def test_what_its_own_run_refused_is_told_before_anything_begins(
    story: Story, champion: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it goes through shadow and canary, and is turned down by the promotion after them."""
    monkeypatch.setattr(Tracker, "alias", no_champion(Tracker.alias) if champion is None else Tracker.alias)
    fingerprint = environment().fingerprint
    story.tracker.tag_version("images", "2", refused_tag(fingerprint), "the load is not kept")
    try:
        with pytest.raises(InputError, match=r"version 2 refused it \(the load is not kept\)"):
            story.deploy(url=NOBODY)
    finally:
        story.tracker.tag_version("images", "2", refused_tag(fingerprint), None)
    assert story.traffic() is None


def no_champion(alias: Callable[..., Any]) -> Callable[..., Any]:
    """A registry that has none yet."""
    return lambda tracker, name, one: None if one == "champion" else alias(tracker, name, one)


def test_a_server_that_does_not_answer_is_told_before_anything_begins(story: Story) -> None:
    with pytest.raises(TransientError, match="must answer"):
        story.deploy(url=NOBODY)
    assert story.traffic() is None


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 500\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"starting": {}}',
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_a_server_that_restarts_or_whose_ingress_answers_ends_no_rollout(reply: bytes) -> None:
    """It is asked again; where it goes on, nothing is seen there, and whoever waits for it says so."""
    with replying(reply) as url:
        rollout = rollouts.Rollout("images", "2", "1", (url,), pause_s=0)
        with pytest.raises(TransientError):
            rollouts.ask(rollout, url)
        silent = Counter[str]()
        seen, refused = rollouts._seen(rollout, Traffic(version="2", shadow=1), silent)
        assert (seen.asked, refused, silent[url]) == (0, None, 1)
        assert rollouts.follow.fn(rollout, seconds=0) == [url]


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"404 Not Found"])
def test_a_server_that_says_no_ends_a_rollout(status: bytes) -> None:
    """Also where the rest of its refusal is lost."""
    reply = b"HTTP/1.1 " + status + b"\r\nContent-Length: 500\r\n\r\nno"
    with replying(reply) as url, pytest.raises(InputError, match=r"it says 40[14]: no"):
        rollouts.ask(rollouts.Rollout("images", "2", "1", (url,)), url)


def test_what_the_registry_says_of_a_challenger_is_what_the_server_is_given(story: Story) -> None:
    """By the tag of the model; a version that is named by its number has nothing beside it."""
    champion = source("models:/images@champion", story.data_dir)

    def challenger() -> Challenge | None:
        champion.current()
        return champion.challenger()

    assert challenger() is None
    rollouts.give(story.tracker, "images", Traffic(version="2", canary=0.25), seconds=60)
    found = challenger()
    assert found is not None
    assert (found.release.version, found.traffic.canary) == ("2", 0.25)
    assert found.traffic.until == pytest.approx(time.time() + 60, abs=30)
    assert source("models:/images/1", story.data_dir).challenger() is None
    rollouts.give(story.tracker, "images", Traffic(version="2", canary=0.25), seconds=-1)
    assert challenger() is None
    story.tracker.tag_model("images", TRAFFIC, "no traffic")
    with pytest.raises(InputError, match="the traffic of a challenger"):
        challenger()


def test_a_rollback_takes_the_challengers_traffic_back(story: Story) -> None:
    rollouts.give(story.tracker, "images", Traffic(version="2", canary=0.25), seconds=60)
    story.tracker.set_alias("images", "champion", "2")
    story.tracker.set_alias("images", "previous", "1")
    roll_back(story.tracker, "images")
    assert story.traffic() is None
    story.tracker.client.delete_registered_model_alias("images", "previous")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mood", "clause"),
    [("answers otherwise", "live.disagreement"), ("dies", "live.failures|died of SIGSEGV")],
)
def test_a_bad_challenger_is_rejected_in_the_shadow(story: Story, moody: str, mood: str, clause: str) -> None:
    """Nobody got an answer of it, and nobody none."""
    with clients(story.server.url) as asked:
        story.mood.write_text("")
        turning = threading.Thread(target=story.turns, args=[mood])
        turning.start()
        document = story.deploy()
        turning.join()
    assert document["decision"] == "reject"
    assert re.search(clause, document["reason"])
    assert (asked.failed, moody in asked.versions) == ([], False)
    assert story.traffic() is None


def turned_in_the_canary(story: Story, version: str, mood: str) -> tuple[dict[str, Any], Clients]:
    """The document of a rollout whose challenger turns once it has answered somebody; what clients saw."""
    done: list[dict[str, Any]] = []
    with clients(story.server.url) as asked:
        thread = threading.Thread(target=lambda: done.append(story.deploy()))
        thread.start()
        until = time.monotonic() + PATIENCE_SECONDS
        while version not in asked.versions:
            assert time.monotonic() < until, (asked.versions, done)
            time.sleep(0.05)
        story.mood.write_text(mood)
        thread.join()
    (document,) = done
    return document, asked


@pytest.mark.slow
def test_a_challenger_that_fails_in_the_canary_harms_nobody(story: Story, moody: str) -> None:
    """It passed the shadow; of its own requests those that it fails are the champion's."""
    document, asked = turned_in_the_canary(story, moody, "raises")
    assert [step["decision"] for step in document["steps"]] == ["promote", "reject"]
    assert "live.failures" in document["reason"]
    assert asked.failed == []


@pytest.mark.slow
def test_a_server_that_ends_in_the_canary_ends_the_rollout(story: Story, moody: str) -> None:
    """The challenger computes in the server's own process then: no other server is to follow."""
    document, _ = turned_in_the_canary(story, moody, "dies")
    assert [step["decision"] for step in document["steps"]] == ["promote", "inconclusive"]
    assert "stopped answering" in document["reason"]
    assert story.traffic() is None
    story.server.process.communicate()
    del story.server


@pytest.mark.slow
def test_a_rollout_ends_where_the_challenger_becomes_another(story: Story) -> None:
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(story.deploy()))
    thread.start()
    until = time.monotonic() + 60
    while story.traffic() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    story.tracker.set_alias("images", "challenger", "1")
    thread.join()
    assert done[0]["decision"] == "gone"
    assert story.traffic() is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_watches_may_die(
    story: Story, command: Callable[..., list[str]], number: signal.Signals
) -> None:
    """Told to end, it takes the traffic back; killed, it leaves traffic that ends by itself."""
    words = ("deploy", "images", "--url", story.server.url, "--data-dir", story.data_dir, "--no-orchestrator")
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, env=os.environ, text=True)
    until = time.monotonic() + 60
    while story.traffic() is None:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate()
    left = story.traffic()
    if number == signal.SIGTERM:
        assert left is None
    else:
        assert left is not None
        assert Traffic.model_validate_json(left).until == pytest.approx(time.time() + 60, abs=61)
        with rollouts.alone(story.tracker, "images"):  # the same command may begin again
            pass


def test_a_rollout_asks_where_the_pipeline_wants_approval(
    judged: Judged,
    pipeline_file: Callable[..., Path],
    new_tracker: Callable[[Path], Tracker],
    tmp_path: Path,
) -> None:
    """Without a champion there is no traffic to try it on: the gate's word alone made it champion."""
    tracker = new_tracker(tmp_path)
    shutil.copytree(judged.run.data_dir / "store", tmp_path / "store")
    package = judged.package(judged.fp32)
    version = str(tracker.register(judged.run, tracker.begin(judged.run), package, judged.fp32).version)
    challenge(tracker, judged.run, version)
    config = pipeline_file("approved", promotion="approval")
    document = run_deployment("images", [], tmp_path, Plain(), QUICK, config)
    assert (document["decision"], document["promotion"]["alias"]) == ("inconclusive", "challenger")
    assert "awaiting approval" in document["reason"]
    assert f"version {version} is not promoted: " in rendered(operating.rolled_out, document)
    assert tracker.alias("images", "champion") is None


@pytest.mark.slow
def test_a_good_challenger_passes_through_shadow_and_canary_and_is_promoted_to_all(
    judged: Judged,
    command: Callable[..., list[str]],
    new_tracker: Callable[[Path], Tracker],
    tmp_path: Path,
) -> None:
    """The int8 file beside the fp32 one, then in its place; a rollback brings that back."""
    tracker, run = new_tracker(tmp_path), judged.run
    parent = tracker.begin(run)
    first, second = (
        str(tracker.register(run, parent, judged.package(row), row).version)
        for row in (judged.fp32, judged.int8)
    )
    promote(tracker, run, first, judged.fp32)
    challenge(tracker, run, second)
    server = Server(command("serve", "models:/images@champion", "--data-dir", tmp_path, "--port", 0))
    try:
        with clients(server.url) as asked:
            document = run_deployment("images", [server.url], tmp_path, Plain(), QUICK, None)
            assert document["decision"] == "promote", document
            assert document["promotion"]["behind"] == []
            assert server.version() == second
            assert server.get("/v2/models/images/trial")["ready"] == first
            roll_back(tracker, "images")
            server.becomes(first)
        assert asked.failed == []
        assert set(asked.versions) == {first, second}
        assert [step["decision"] for step in document["steps"]] == ["promote", "promote"]
    finally:
        server.end()
