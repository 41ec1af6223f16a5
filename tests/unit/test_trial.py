"""A challenger beside the champion: its share of the requests, copies, and whatever it may do wrong."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from pareflow.errors import DeadlineError
from pareflow.runtime.endpoint import answered_within
from pareflow.serving import slot as slots
from pareflow.serving.app import _answered, _Question
from pareflow.serving.background import THREAD
from pareflow.serving.executable import Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.metrics import Metrics
from pareflow.serving.opening import opened
from pareflow.serving.plan import ServingPlan
from pareflow.serving.record import BLOCK
from pareflow.serving.slot import Challenge, Slot
from pareflow.serving.traffic import Traffic
from pareflow.serving.trial import Trial
from pareflow.variant import Step
from pareflow.workload import Arrays
from tests.unit.conftest import INFER, Linear, Packaged, Serve, Served, Shelf

MANY = 60
PATIENCE_S = 20.0


def challenge(release: Release, **traffic: Any) -> Challenge:
    return Challenge(release, Traffic(version=release.version, **traffic))


def ask(served: Served, client: str, **more: Any) -> Any:
    """One request of a client; the version that answered it."""
    body = json.dumps({"inputs": [served.input()], **more})
    answer = served.client.post(INFER, content=body, headers={"x-client-id": client})
    assert answer.status_code == 200, answer.text
    return answer.json()["model_version"]


def counts(served: Served, **wanted: int) -> dict[str, int]:
    """What the record counts, once it counts so much: copies are made in the background."""
    found: dict[str, int] = {}
    for _ in range(400):
        trial = served.observed()["trial"]
        found = {} if trial is None else trial["counts"]
        if all(found.get(name, 0) >= least for name, least in wanted.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{found}, not {wanted}")


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    return tmp_path / "mood"


@pytest.fixture
def moody(
    make_package: Callable[..., Path], workloads: Path, mood: Path, tmp_path: Path, rogues: None
) -> Release:
    """A challenger that does as the file `mood` says: the same network on a backend of its own."""
    backend = Step("moody", {"mood": str(mood)})
    package = make_package(
        {"file": {"path": "rogue_images.py"}}, workloads, tmp_path / "store", backend, "rogues"
    )
    return Release("images", "2", package)


@pytest.fixture
def trial(serve: Serve, packaged: Packaged) -> Callable[..., Served]:
    """Serve version 1 with a challenger beside it."""

    def begun(release: Release, **traffic: Any) -> Served:
        source = Shelf(Release("images", "1", packaged("images")))
        served = serve(source)
        source.tried = challenge(release, **traffic)
        served.refresh()
        return served

    return begun


def test_a_share_of_the_clients_is_answered_by_the_challenger_each_always_by_the_same(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    served = trial(two[1], canary=0.5)
    first = {f"client {number}": ask(served, f"client {number}") for number in range(MANY)}
    again = {client: ask(served, client) for client in first}
    assert first == again
    assert {"1", "2"} == set(first.values())
    assert first == {
        client: "2" if Traffic(version="2", canary=0.5).draws("canary", client.encode()) else "1"
        for client in first
    }
    lines = served.client.get("/metrics").text.splitlines()
    assert 'pareflow_challenger_share{kind="canary",model="images",version="2"} 0.5' in lines
    asked = 2.0 * sum(version == "2" for version in first.values())
    assert f'pareflow_challenger_total{{model="images",version="2",what="asked"}} {asked}' in lines


def test_without_a_client_the_request_itself_is_drawn_by(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    """Its id where it has one, else what it holds; and who names a version is answered by that one."""
    served = trial(two[1], canary=0.5)
    by_id = [served.infer(id=str(number)).json()["model_version"] for number in range(MANY)]
    assert by_id == [served.infer(id=str(number)).json()["model_version"] for number in range(MANY)]
    assert set(by_id) == {"1", "2"}
    assert len({served.infer().json()["model_version"] for _ in range(10)}) == 1
    named = f"{INFER.removesuffix('/infer')}/versions/1/infer"
    assert {served.infer(named, id=str(n)).json()["model_version"] for n in range(MANY)} == {"1"}


def test_copies_are_compared_and_never_given_back(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    served = trial(two[1], shadow=1)
    assert {ask(served, str(number)) for number in range(5)} == {"1"}
    found = counts(served, compared=1)
    assert found["agreed"] == found["compared"]
    assert found["failed"] == found["unsound"] == 0


def test_a_copy_of_the_challengers_answer_goes_to_the_champion(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    served = trial(two[1], shadow=1, canary=1)
    assert ask(served, "one") == "2"
    found = counts(served, compared=1)
    assert (found["asked"], found["agreed"]) == (1, 1)


def test_raw_samples_are_tried_too(trial: Callable[..., Served], two: tuple[Release, Release]) -> None:
    served = trial(two[1], shadow=1, canary=1)
    answer = served.client.post("/invocations", json={"inputs": served.golden["samples"]})
    assert answer.json() == {"predictions": served.golden["predictions"]}
    assert counts(served, compared=1)["agreed"] == 1


@pytest.mark.parametrize("name", ["x", "samples", None])
def test_an_output_that_is_called_predictions_is_tried_as_any_other(
    serve: Serve, linear: Linear, name: str | None
) -> None:
    """Given tensors the network's own, and given raw samples, by either route, what it predicts."""
    release = Release("images", "1", linear(scores="predictions"))
    source = Shelf(release, tried=challenge(replace(release, version="2"), shadow=1, canary=1))
    served = serve(source)
    served.refresh()
    images = np.full((2, 1, 8, 8), 0.5)
    if name is None:
        answer = served.client.post("/invocations", json={"inputs": images.tolist()})
    else:
        tensor = {"name": name, "datatype": "FP32", "shape": images.shape, "data": images.ravel().tolist()}
        answer = served.client.post(INFER, json={"inputs": [tensor]})
    assert answer.status_code == 200
    found = counts(served, asked=1, compared=1)
    assert (found["agreed"], found["unsound"]) == (1, 0)


@pytest.mark.parametrize(
    ("does", "counted"),
    [("raises", "failed"), ("hangs", "late"), ("loses rows", "unsound"), ("gives nan", "unsound")],
)
def test_what_the_challenger_cannot_answer_the_champion_does(
    trial: Callable[..., Served], moody: Release, mood: Path, does: str, counted: str
) -> None:
    served = trial(moody, canary=1, patience_ms=200)
    assert ask(served, "one") == "2"
    mood.write_text(does)
    expected = served.golden["outputs"]["output"][:2]
    answer = served.infer().json()
    mood.unlink()
    assert answer["model_version"] == "1"
    assert answer["outputs"][0]["data"] == pytest.approx([x for row in expected for x in row], abs=1e-4)
    found = counts(served, asked=2)
    assert {name: found[name] for name in ("failed", "late", "unsound")} == {
        **dict.fromkeys(("failed", "late", "unsound"), 0),
        counted: 1,
    }
    assert served.observed()["trial"]["troubles"][0].startswith(counted)


def test_a_request_that_is_wrong_is_no_fault_of_the_challenger(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    served = trial(two[1], canary=1)
    wrong = {**served.input(), "shape": [2, 64]}
    assert served.client.post(INFER, json={"inputs": [wrong]}).status_code == 400
    assert counts(served)["asked"] == 0


def test_other_answers_are_counted(trial: Callable[..., Served], moody: Release, mood: Path) -> None:
    served = trial(moody, shadow=1, canary=1)
    mood.write_text("answers otherwise")
    ask(served, "one")
    found = counts(served, compared=1)
    assert (found["compared"], found["agreed"]) == (1, 0)


@pytest.mark.parametrize(("does", "counted"), [("dies", "failed"), ("hangs", "late")])
def test_a_challenger_that_only_gets_copies_runs_in_a_process_of_its_own(
    trial: Callable[..., Served], moody: Release, mood: Path, does: str, counted: str
) -> None:
    """It may die there: no request is harmed, nor the server; and its end is that of the process."""
    served = trial(moody, shadow=1, patience_ms=200)
    assert served.slot.trial is not None
    assert served.slot.trial.challenger.main.apart
    ask(served, "one")
    counts(served, compared=1)
    mood.write_text(does)
    for number in range(3):
        assert ask(served, str(number)) == "1"
    counts(served, **{counted: 1})
    source = served.slot.source
    assert isinstance(source, Shelf)
    source.tried = None
    served.refresh()
    assert served.observed()["trial"] is None
    assert ask(served, "one") == "1"


def test_a_challenger_that_cannot_be_opened_is_told_and_changes_nothing(
    trial: Callable[..., Served], two: tuple[Release, Release], tmp_path: Path
) -> None:
    nowhere = replace(two[1], package=tmp_path / "nowhere")
    served = trial(nowhere, canary=1)
    assert ask(served, "one") == "1"
    observed = served.observed()
    assert observed["trial"] is None
    assert observed["refused"]["version"] == "2"
    assert "must hold a whole pareflow package" in observed["refused"]["reason"]


@pytest.mark.parametrize(
    ("traffic", "seconds"),
    [({"canary": 1}, 1.0), ({"shadow": 1}, 3.0)],  # a process imports torch before it hangs
    ids=["canary", "shadow"],
)
def test_a_challenger_that_hangs_as_it_is_opened_is_refused_and_the_next_is_tried(
    trial: Callable[..., Served],
    moody: Release,
    two: tuple[Release, Release],
    mood: Path,
    monkeypatch: pytest.MonkeyPatch,
    traffic: dict[str, Any],
    seconds: float,
) -> None:
    """A process of its own is killed; a thread is left behind, and closes what it made if it ever ends."""
    mood.write_text("hangs")
    monkeypatch.setattr(slots, "OPENS_S", seconds)
    served = trial(moody, **traffic)
    refused = served.observed()["refused"]
    assert refused["version"] == "2"
    assert f"must end within {seconds:g} s, but it has not" in refused["reason"]
    monkeypatch.setattr(slots, "OPENS_S", 600.0)
    assert isinstance(served.slot.source, Shelf)
    served.slot.source.tried = challenge(replace(two[1], version="3"), canary=1)
    served.refresh()
    assert ask(served, "one") == "3"
    if "canary" in traffic:
        mood.unlink()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_the_end_waits_for_no_version_that_hangs_as_it_is_opened(
    moody: Release, two: tuple[Release, Release], mood: Path
) -> None:
    mood.write_text("hangs")
    enough = threading.Timer(PATIENCE_S, mood.unlink)
    enough.start()

    async def scenario() -> None:
        slot = Slot(Shelf(two[0], tried=challenge(moody, canary=1)), ServingPlan(), Metrics(), standby=False)
        slot.start()
        await slot.refresh()
        await asyncio.sleep(1)
        await slot.close()

    asyncio.run(scenario())
    assert mood.exists()
    enough.cancel()
    mood.unlink()


def test_what_was_refused_is_not_opened_again_at_once_unless_it_was_judged_since(
    trial: Callable[..., Served], two: tuple[Release, Release], tmp_path: Path
) -> None:
    """Opening takes seconds of a core, and servers look every second."""
    release = replace(two[1], package=tmp_path / "package")
    served = trial(release, canary=1)
    source = served.slot.source
    assert isinstance(source, Shelf)
    shutil.copytree(two[1].package, release.package)
    served.refresh()
    assert served.observed()["trial"] is None
    source.tried = challenge(replace(release, judged="promote"), canary=1)
    served.refresh()
    assert served.observed()["refused"] is None
    assert ask(served, "one") == "2"


def test_another_traffic_begins_another_record_and_a_renewed_one_does_not(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    served = trial(two[1], canary=0.5, until=time.time() + 60)
    source, challenger = served.slot.source, served.slot.trial and served.slot.trial.challenger
    assert isinstance(source, Shelf)
    first = served.observed()["trial"]["record"]
    source.tried = challenge(two[1], canary=0.5, until=time.time() + 120)
    served.refresh()
    assert served.observed()["trial"]["record"] == first
    source.tried = challenge(two[1], canary=0.75, until=time.time() + 120)
    served.refresh()
    assert served.observed()["trial"]["record"] != first
    assert served.slot.trial is not None
    assert served.slot.trial.challenger is challenger  # it is not loaded again for that


def test_traffic_that_is_not_renewed_ends(trial: Callable[..., Served], two: tuple[Release, Release]) -> None:
    served = trial(two[1], canary=1, until=time.time() + 600)
    assert ask(served, "one") == "2"
    source, deadline = served.slot.source, time.monotonic() + PATIENCE_S
    assert isinstance(source, Shelf)
    source.tried = challenge(two[1], canary=1, until=time.time() + 0.3)
    served.refresh()
    while ask(served, "one") != "1":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_challenger_that_is_promoted_takes_over_as_it_is_loaded(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    """And the champion before stands ready: neither is loaded again, nor is it for the way back."""
    served = trial(two[1], canary=0.5)
    source, trial_before, champion = served.slot.source, served.slot.trial, served.slot.hosted
    assert isinstance(source, Shelf)
    assert trial_before is not None
    source.release, source.before = two[1], two[0]
    served.refresh()
    assert served.slot.hosted is trial_before.challenger
    assert served.slot.beside.standby is champion
    observed = served.observed()
    assert (observed["champion"], observed["ready"], observed["trial"]) == ("2", "1", None)
    source.release, source.before, source.tried = two[0], two[1], None
    served.refresh()
    assert served.slot.hosted is champion
    assert served.slot.beside.standby is trial_before.challenger
    assert ask(served, "one") == "1"


def test_the_previous_version_is_loaded_and_takes_over_at_once(
    serve: Serve, two: tuple[Release, Release]
) -> None:
    source = Shelf(two[1], before=two[0])
    served = serve(source)
    served.refresh()
    ready = served.slot.beside.standby
    assert ready is not None
    source.release, source.before = two[0], two[1]
    served.refresh()
    assert served.slot.hosted is ready
    assert served.infer().json()["model_version"] == "1"


def test_without_a_standby_the_version_before_is_let_go(two: tuple[Release, Release]) -> None:
    """It costs the memory of a model."""
    source = Shelf(two[0])
    slot = Slot(source, ServingPlan(), Metrics(), standby=False)

    async def scenario() -> None:
        slot.start()
        source.release, source.before = two[1], two[0]
        await slot.refresh()
        await slot.settled()
        assert slot.hosted.release == two[1]
        assert slot.beside.standby is None
        await slot.close()

    asyncio.run(scenario())


def test_copies_are_left_out_while_requests_wait(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    """More of them than sessions compute."""
    served = trial(two[1], shadow=1, canary=1)
    hosted, tried = served.slot.hosted, served.slot.trial
    assert tried is not None
    assert served.client.portal is not None

    def answer(by: Hosted) -> Awaitable[Arrays]:
        return by.answer({"images": np.zeros((1, 1, 8, 8), np.float32)})

    async def scenario() -> None:
        async with AsyncExitStack() as waiting:
            for _ in range(hosted.main.sessions + 1):
                await waiting.enter_async_context(hosted.asked())
            await tried.answered(hosted, b"one", 1, answer, answer)

    served.client.portal.call(scenario)
    assert counts(served, skipped=1)["compared"] == 0


def test_requests_for_which_there_are_sessions_make_no_copy_wait(two: tuple[Release, Release]) -> None:
    """Each counts once: two clients on two sessions want no more than there is."""
    plan = ServingPlan(sessions=2, inline_ms=0)
    champion, challenger = (opened({"": release}, plan) for release in two)
    rounds, clients = 2, 2

    async def stays() -> Any:
        await asyncio.Event().wait()

    async def scenario() -> Trial:
        trial = Trial(challenger.started(), champion.started(), Traffic(version="2", shadow=1), Metrics())
        together = asyncio.Barrier(clients)

        async def work(by: Hosted) -> Arrays:
            if by is champion:
                await together.wait()  # both are there as either ends
            return await by.answer({"images": np.zeros((1, 1, 8, 8), np.float32)})

        async def client(name: str) -> None:
            for _ in range(rounds):
                question = _Question(Request({"type": "http"}, stays), None, name.encode(), (1,))
                await _answered(question, champion, trial, work)

        await asyncio.gather(*(client(str(number)) for number in range(clients)))
        while trial._copies:
            await asyncio.gather(*trial._copies)
        return trial

    counts = asyncio.run(scenario()).record.counts
    assert (counts["skipped"], counts["compared"]) == (0, rounds * clients)
    for hosted in (champion, challenger):
        hosted.close()


@pytest.mark.parametrize("canary", [False, True])
def test_who_gave_up_has_waited_so_long_at_least(
    trial: Callable[..., Served], two: tuple[Release, Release], canary: bool
) -> None:
    """For the champion, and for the challenger: one whose clients do not wait for it would look quick."""
    served = trial(two[1], shadow=1, canary=1)
    hosted, tried = served.slot.hosted, served.slot.trial
    assert tried is not None
    assert served.client.portal is not None

    slow = tried.challenger if canary else hosted

    async def answer(by: Hosted) -> Arrays:
        if by is slow:
            await asyncio.sleep(0.01)
            raise ClientDisconnect
        raise ValueError("a challenger that fails at once")

    async def scenario() -> None:
        for number in range(BLOCK):
            with pytest.raises(ClientDisconnect):
                await tried.answered(hosted, b"%d" % number, 1, answer, answer)

    served.client.portal.call(scenario)
    waited = tried.record._open[canary]
    assert len(waited) == BLOCK
    assert min(waited) >= 10


def test_who_was_told_at_his_deadline_has_waited_so_long_at_least(
    trial: Callable[..., Served], two: tuple[Release, Release]
) -> None:
    """For the champion; who was refused as he came has not waited for anybody."""
    served = trial(two[1], canary=1)
    hosted, tried = served.slot.hosted, served.slot.trial
    assert tried is not None
    assert served.client.portal is not None

    async def answer(by: Hosted) -> Arrays:
        if by is hosted:
            await asyncio.sleep(0.01)
            raise DeadlineError("it must be in time", "it is not")
        raise ValueError("a challenger that fails at once")

    async def scenario() -> None:
        for seconds in (0, 1000):
            for number in range(BLOCK):
                with answered_within(seconds), pytest.raises(DeadlineError):
                    await tried.answered(hosted, b"%d" % number, 1, answer, answer)
            assert len(tried.record._open[False]) == BLOCK
        assert min(tried.record._open[False]) >= 10

    served.client.portal.call(scenario)


def test_what_stands_beside_has_gone_when_it_should_no_more(
    serve: Serve, two: tuple[Release, Release]
) -> None:
    source = Shelf(two[1], before=two[0])
    served = serve(source)
    served.refresh()
    source.before = None
    served.refresh()
    assert served.slot.beside.standby is None
    assert served.infer().json()["model_version"] == "2"
