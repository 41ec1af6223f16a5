"""Law 8 where a model is served: its verdict counts in its environment, and elsewhere it is asked again."""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import EnvironmentUnfitError
from pareflow.serving.executable import Release
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.serving.slot import FolderSource, Slot
from pareflow.serving.standing import here
from pareflow.session import Session
from pareflow.workload import Arrays
from tests.unit.conftest import Packaged, Serve, Shelf

Judged = Callable[..., Path]
PATIENCE_S = 60.0
"""How long what must come is waited for: a bound for a busy machine."""


class Watched:
    """A session that notes how many are in it at once; while `held`, the first stays there."""

    def __init__(self, session: Session) -> None:
        self._session, self._inside, self._lock = session, 0, threading.Lock()
        self.most, self.entered, self.goes_on = 0, threading.Event(), threading.Event()
        self.goes_on.set()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            first = self._inside == 1
        self.entered.set()
        try:
            assert not first or self.goes_on.wait(PATIENCE_S)
            return self._session.run(feeds)
        finally:
            with self._lock:
                self._inside -= 1

    def held(self) -> None:
        self.goes_on.clear()
        self.entered.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every session that is loaded, watched."""
    found: list[Watched] = []
    load = PackagedModel.load_session

    def watched(model: PackagedModel) -> Watched:
        found.append(Watched(load(model)))
        return found[-1]

    monkeypatch.setattr(PackagedModel, "load_session", watched)
    return found


@pytest.fixture
def judged(packaged: Packaged, tmp_path: Path) -> Judged:
    """A package with a verdict: its decision, where it was made, and limits by clause."""

    def made(decision: str, fingerprint: str, limits: Mapping[str, float] | None = None) -> Path:
        folder = tmp_path / f"package-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(packaged("images"), folder)
        path = folder / "model.json"
        document = json.loads(path.read_text())
        checks = [{"clause": clause, "limit": limit} for clause, limit in (limits or {}).items()]
        document["verdict"] = {"decision": decision, "checks": checks}
        document["environment"] = {"fingerprint": fingerprint}
        path.write_text(json.dumps(document))
        return folder

    return made


def slot(source: Any, **settings: Any) -> Slot:
    return Slot(source, ServingPlan(), Metrics(), **settings)


def test_a_verdict_of_this_environment_is_taken_at_its_word(judged: Judged) -> None:
    assert slot(FolderSource(judged("promote", here("onnxruntime")))).hosted.standing == "here"
    with pytest.raises(EnvironmentUnfitError, match="the gate rejected it in this environment"):
        slot(FolderSource(judged("reject", here("onnxruntime"))))


def test_a_verdict_made_with_another_runtime_of_its_backend_was_made_elsewhere(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = here("onnxruntime")
    monkeypatch.setattr(OnnxRuntime, "requires", ("onnxruntime", "onnx"))
    now = here("onnxruntime")
    standings = [slot(FolderSource(judged("promote", where))).hosted.standing for where in (now, before)]
    assert standings == ["here", "elsewhere"]


def test_what_the_registry_knows_of_this_environment_counts_before_the_package(judged: Judged) -> None:
    """A version is judged here after it was packaged elsewhere."""
    package = judged("promote", "another")
    accepted, rejected = (Release("images", "1", package, judged=word) for word in ("promote", "reject"))
    assert slot(Shelf(accepted)).hosted.standing == "here"
    with pytest.raises(EnvironmentUnfitError, match="the gate rejected it in this environment"):
        slot(Shelf(rejected))


def test_the_package_of_a_registered_version_is_not_asked_for_its_verdict(judged: Judged) -> None:
    """No digest covers what it says: only the registry's word counts."""
    silent = Release("images", "1", judged("promote", here("onnxruntime")), registered=True)
    assert slot(Shelf(silent)).hosted.standing == "elsewhere"
    with pytest.raises(EnvironmentUnfitError, match="it has no verdict of this environment"):
        slot(Shelf(silent), unjudged="refuse")
    promoted = replace(silent, judged="promote")
    assert slot(Shelf(promoted), unjudged="refuse").hosted.standing == "here"


def test_a_version_judged_elsewhere_is_served_and_said_to_be(
    judged: Judged, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    source = Shelf(Release("images", "1", judged("promote", "another", {"latency.p50_ms": 10_000})))
    served = serve(source)
    assert served.observed()["judged"] == "elsewhere"
    assert "was judged in another environment: `pareflow check` judges it here" in caplog.text
    told = 'pareflow_model_judged_here{{model="images",version="1"}} {}'
    assert told.format("0.0") in served.client.get("/metrics").text
    assert isinstance(source.release, Release)
    source.release = Release("images", "1", source.release.package, judged="promote")
    served.refresh()
    assert served.observed()["judged"] == "here"
    assert told.format("1.0") in served.client.get("/metrics").text


@pytest.mark.parametrize("before", [None, "promote"])
def test_a_version_that_answers_is_not_timed_on_its_session_however_it_is_judged_since(
    judged: Judged, serve: Serve, sessions: list[Watched], before: str | None
) -> None:
    """A session answers one request at a time: a second one in it gets the answer of the first."""
    package = judged("promote", "another", {"latency.p50_ms": 10_000})
    source = Shelf(Release("images", "1", package, judged=before))
    served = serve(source, plan={"sessions": 1, "inline_ms": 0})
    (session,) = sessions
    session.held()
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(served.infer)
        assert session.entered.wait(PATIENCE_S)
        source.release = Release("images", "1", package, judged="inconclusive")
        served.refresh()
        session.goes_on.set()
        assert asked.result(PATIENCE_S).status_code == 200
    assert [one.most for one in sessions] == [1]
    assert served.observed()["judged"] == "inconclusive"


def test_times_that_were_promised_elsewhere_are_measured_before_the_first_request(judged: Judged) -> None:
    """Nothing answers within a nanosecond."""
    package = judged("promote", "another", {"latency.p99_ms": 1e-6})
    with pytest.raises(EnvironmentUnfitError, match=r"no verdict of this .*, and here latency.p99_ms is"):
        slot(FolderSource(package))


def test_who_wants_a_verdict_of_this_environment_gets_no_other(judged: Judged, packaged: Packaged) -> None:
    for package, said in (
        (judged("promote", "another"), "it has no verdict of this environment"),
        (judged("inconclusive", here("onnxruntime")), "its verdict of this environment is inconclusive"),
        (packaged("images"), "it has no verdict of this environment"),
    ):
        with pytest.raises(EnvironmentUnfitError, match=said):
            slot(FolderSource(package), unjudged="refuse")
    promoted = FolderSource(judged("promote", here("onnxruntime")))
    assert slot(promoted, unjudged="refuse").hosted.standing == "here"


def test_a_switch_to_a_version_that_breaks_its_promise_here_leaves_the_present_one(
    judged: Judged, packaged: Packaged, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    source = Shelf(Release("images", "1", packaged("images")))
    served = serve(source)
    assert served.observed()["judged"] == "unknown"
    source.release = Release("images", "2", judged("promote", "another", {"latency.p50_ms": 1e-6}))
    served.refresh()
    assert served.infer().json()["model_version"] == "1"
    assert "the new version is refused, and 1 stays" in caplog.text


def test_a_version_in_doubt_here_is_served_and_said_to_be(
    judged: Judged, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Its verdict is of this environment: it was not judged elsewhere (law 3)."""
    served = serve(FolderSource(judged("inconclusive", here("onnxruntime"))))
    assert served.observed()["judged"] == "inconclusive"
    assert "the verdict is inconclusive" in caplog.text
    metrics = served.client.get("/metrics").text
    assert 'pareflow_model_standing{judged="inconclusive",model="images"' in metrics


def test_a_version_that_is_rejected_while_it_answers_goes_on_and_is_said_to_be(
    judged: Judged, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """No server ends the service of its only version by itself."""
    source = Shelf(Release("images", "1", judged("promote", here("onnxruntime")), judged="promote"))
    served = serve(source)
    assert isinstance(source.release, Release)
    source.release = replace(source.release, judged="reject")
    for _ in range(2):
        served.refresh()
    assert served.infer().status_code == 200
    assert served.observed()["judged"] == "rejected"
    assert served.client.get("/v2/models/images/ready").json()["judged"] == "rejected"
    metrics = served.client.get("/metrics").text
    assert 'pareflow_model_judged_here{model="images",version="1"} 0.0' in metrics
    standings = [line for line in metrics.splitlines() if line.startswith("pareflow_model_standing{")]
    assert standings == ['pareflow_model_standing{judged="rejected",model="images",version="1"} 1.0']
    told = [one for one in caplog.records if "was rejected in this environment" in one.message]
    assert [one.levelname for one in told] == ["ERROR"]


def test_a_rollback_to_a_version_that_was_rejected_since_leaves_the_present_one(
    judged: Judged, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it stands ready: what begins to answer must not be rejected here."""
    first = Release("images", "1", judged("promote", here("onnxruntime")), judged="promote")
    second = replace(first, version="2")
    source = Shelf(first)
    served = serve(source)
    source.release, source.before = second, first
    served.refresh()
    source.release, source.before = replace(first, judged="reject"), second
    served.refresh()
    assert served.infer().json()["model_version"] == "2"
    assert "the new version is refused, and 2 stays" in caplog.text
    source.release, source.before = second, first
    served.refresh()
    source.release, source.before = first, second
    served.refresh()
    assert served.infer().json()["model_version"] == "1"
