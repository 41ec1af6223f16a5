"""The promotion protocol: the better of two models is champion, in whatever order and company they come."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows import moves
from pareflow import spec as specs
from pareflow.errors import InputError, StepFailedError, TrackingError, TransientError
from pareflow.sla import LoadClause, SizeClause
from pareflow.stages.promotion import against_champion
from pareflow.stages.run import Row, Run
from tasks import audit, steps
from tasks.promotion import Promotion, challenge, promote, promote_challenger, roll_back
from tasks.serving import plan_tag
from tasks.tracking import CONTENT, Tracker, verdict_of
from tests.orchestration.conftest import CHECKOUT, Judged, judge, trigger_of

PROMOTE = """
import pickle, sys
from flows.environment import set_environment
set_environment()
from tasks.promotion import promote
print(promote(*pickle.load(open(sys.argv[1], "rb"))).alias)
"""


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path)


@pytest.fixture
def register(tracker: Tracker) -> Callable[[Judged, Row], str]:
    """Register a row; the number of its version."""

    def registered(judged: Judged, row: Row) -> str:
        parent = tracker.begin(judged.run)
        return str(tracker.register(judged.run, parent, judged.package(row), row).version)

    return registered


@pytest.fixture
def reigning(tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]) -> tuple[str, str]:
    """The fp32 row as champion, and the int8 one as a version beside it: their numbers."""
    champion, challenger = register(judged, judged.fp32), register(judged, judged.int8)
    promote(tracker, judged.run, champion, judged.fp32)
    return champion, challenger


def aliases(tracker: Tracker) -> dict[str, str]:
    found = {name: tracker.alias("images", name) for name in ("challenger", "champion", "previous")}
    return {name: str(version.version) for name, version in found.items() if version is not None}


def test_the_first_version_becomes_champion(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    version = register(judged, judged.fp32)
    challenge(tracker, judged.run, version)
    assert aliases(tracker) == {"challenger": version}
    moved = promote(tracker, judged.run, version, judged.fp32)
    assert moved == Promotion(version, "champion", "there was no champion")
    assert aliases(tracker) == {"challenger": version, "champion": version}


def test_a_new_challenger_starts_a_rollout_where_its_pipeline_leaves_the_champion_alone(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str], sent: list[Any]
) -> None:
    """Once that trigger is switched on: else the run that found the challenger promotes it, or asks."""
    version = register(judged, judged.fp32)
    for promotion in ("automatic", "manual"):
        spec = judged.run.spec.model_copy(update={"promotion": promotion})
        challenge(tracker, dataclasses.replace(judged.run, spec=spec), version)
        tracker.client.delete_registered_model_alias("images", "challenger")
    assert [trigger_of("rollout").covers(event) for event in sent] == [False, True]
    assert sent[-1].payload["name"] == "images"


def test_the_champion_promoted_again_stays(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    version = register(judged, judged.fp32)
    for _ in range(2):
        moved = promote(tracker, judged.run, version, judged.fp32)
    assert moved.reason == "it is the champion already"
    assert aliases(tracker) == {"champion": version}


def test_a_better_challenger_replaces_the_champion_and_can_be_rolled_back(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    old, new = register(judged, judged.fp32), register(judged, judged.int8)
    promote(tracker, judged.run, old, judged.fp32)
    tracker.set_alias("images", "challenger", new)
    moved = promote_challenger(tracker, judged.run)
    assert (moved["version"], moved["alias"]) == (new, "champion")
    assert aliases(tracker) == {"challenger": new, "champion": new, "previous": old}
    assert roll_back(tracker, "images")["version"] == old
    assert aliases(tracker) == {"challenger": new, "champion": old, "previous": new}


def test_a_larger_challenger_is_rejected_where_size_is_the_objective(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    champion, larger = register(judged, judged.int8), register(judged, judged.fp32)
    promote(tracker, judged.run, champion, judged.int8)
    moved = promote(tracker, judged.run, larger, judged.fp32)
    assert moved.alias == "challenger"
    assert moved.reason.startswith(f"version {champion} stays champion (reject: do_no_harm")
    assert aliases(tracker) == {"champion": champion}


@pytest.mark.slow
def test_a_slower_challenger_is_rejected_where_speed_is_the_objective(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    """Torch eager takes several times as long as ONNX Runtime for a network this small. The champion became
    so by another objective: beside itself it is no faster."""
    champion, slower = register(judged, judged.fp32), register(judged, judged.eager)
    promote(tracker, judged.run, champion, judged.fp32)
    moved = promote(tracker, judged.with_objective("latency_p50"), slower, judged.eager)
    assert moved.reason.startswith(f"version {champion} stays champion (reject: do_no_harm")
    assert aliases(tracker) == {"champion": champion}


@pytest.mark.slow
def test_a_challenger_of_worse_quality_is_rejected(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    """Smaller than the champion, but hardly trained; its own original is no better."""
    champion = register(judged, judged.fp32)
    promote(tracker, judged.run, champion, judged.fp32)
    untrained = judge(_with_training(judged.run, steps=1))
    worse = register(untrained, untrained.int8)
    moved = promote(tracker, untrained.run, worse, untrained.int8)
    assert moved.reason.startswith(f"version {champion} stays champion (reject: quality.max_drop")
    assert aliases(tracker) == {"champion": champion}


def _with_training(run: Run, steps: int) -> Run:
    reference = {"file": {"path": "images.py", "settings": {"steps": steps}}}
    spec = specs.parse({**run.spec.to_json(), "workload": reference}, "the tests' pipeline")
    return Run.open(spec, run.config, run.data_dir)


def test_a_verdict_by_another_sla_is_none(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    """A stricter one, by which the version is judged here and now, and refused; so is one of another
    objective."""
    version = register(judged, judged.fp32)
    tags = tracker.version("images", version).tags
    assert verdict_of(judged.run, tags, "onnxruntime") == "promote"
    assert verdict_of(judged.with_objective("latency_p50"), tags, "onnxruntime") is None
    sla = judged.run.spec.sla.model_copy(update={"size": SizeClause(max_mib=1e-6)})
    strict = dataclasses.replace(judged.run, spec=judged.run.spec.model_copy(update={"sla": sla}))
    assert verdict_of(strict, tags, "onnxruntime") is None
    moved = promote(tracker, strict, version, None)
    assert moved.alias == "challenger"
    assert moved.reason.startswith(f"version {version} is not made champion (reject: size.max_mib")
    assert aliases(tracker) == {}
    assert verdict_of(judged.run, tracker.version("images", version).tags, "onnxruntime") is None


def test_content_registered_again_by_another_sla_is_not_promoted_by_the_words_of_the_old_one(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    """The registry holds the first package, with its verdict; the tags are the second run's."""
    version = register(judged, judged.fp32)
    sla = judged.run.spec.sla.model_copy(update={"size": SizeClause(max_mib=50)})
    other = dataclasses.replace(judged.run, spec=judged.run.spec.model_copy(update={"sla": sla}))
    again = tracker.register(other, tracker.begin(other), judged.package(judged.fp32), judged.fp32)
    assert str(again.version) == version
    assert promote(tracker, other, version, judged.fp32).alias == "champion"
    assert audit.history(tracker, "images")[-1]["verdict"] == "promote"


@pytest.mark.slow
def test_a_champion_can_be_replaced_where_the_sla_has_a_load(judged: Judged) -> None:
    """The challenger is put under it beside the champion, where its row was not."""
    sla = judged.run.spec.sla.model_copy(update={"load": LoadClause(per_s=400, p99_ms=5000)})
    loaded = dataclasses.replace(judged.run, spec=judged.run.spec.model_copy(update={"sla": sla}))
    assert judged.int8.served is None
    verdict = against_champion(loaded, judged.int8, judged.package(judged.fp32))
    (load,) = [check for check in verdict.checks if check.clause == "load.p99_ms"]
    assert (load.decision, verdict.decision) == ("promote", "promote"), verdict.missed


def test_a_package_changed_in_the_registry_is_refused(
    tracker: Tracker, judged: Judged, reigning: tuple[str, str]
) -> None:
    champion, challenger = reigning
    for model in Path(str(tracker.artifacts)).rglob("package/artifact/*.onnx"):
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    with pytest.raises(InputError, match="as it was packaged"):
        challenge(tracker, judged.run, challenger)
    with pytest.raises(InputError, match="as it was packaged"):
        promote(tracker, judged.run, challenger, judged.int8)
    assert aliases(tracker) == {"champion": champion}


def test_a_champion_that_cannot_be_compared_with_is_passed_over_by_a_persons_word_alone(
    tracker: Tracker,
    judged: Judged,
    reigning: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its processing imports what is not there any more."""
    champion, challenger = reigning

    def gone(*_: object, **__: object) -> None:
        raise StepFailedError("its processing must run here", "there is no module `former`", "Install it")

    monkeypatch.setattr("pareflow.stages.promotion.against_champion", gone)
    stays = promote(tracker, judged.run, challenger, judged.int8)
    assert (stays.alias, aliases(tracker)) == ("challenger", {"champion": champion})
    assert "`pareflow promote images --over-champion" in stays.reason
    moved = promote(tracker, judged.run, challenger, judged.int8, by="ada", reason="by hand", over=True)
    assert (moved.alias, aliases(tracker)) == ("champion", {"champion": challenger, "previous": champion})
    last = audit.history(tracker, "images")[-1]
    assert (last["by"], last["reason"].startswith("by hand (version 1 was passed over")) == ("ada", True)


def test_a_challenger_that_fails_itself_passes_over_nobody(
    tracker: Tracker,
    judged: Judged,
    reigning: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    champion, challenger = reigning

    def fails(_: Run, row: Row, *__: object, **___: object) -> None:
        error = StepFailedError("it must answer", "it did not", "Look at it")
        error.variant = row.id
        raise error

    monkeypatch.setattr("pareflow.stages.promotion.against_champion", fails)
    moved = promote(tracker, judged.run, challenger, judged.int8, by="ada", reason="by hand", over=True)
    assert (moved.alias, "--over-champion" in moved.reason) == ("challenger", False)
    assert aliases(tracker) == {"champion": champion}


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_damaged_champion_can_be_passed_over(
    harm: str, tracker: Tracker, judged: Judged, reigning: tuple[str, str]
) -> None:
    """As it lies in the artifact store; the challenger is whole."""
    champion, challenger = reigning
    content = tracker.version("images", champion).tags[CONTENT][:16]
    (folder,) = Path(str(tracker.artifacts)).rglob(content)
    if harm == "gone":
        shutil.rmtree(folder)
        with pytest.raises(TrackingError):
            promote(tracker, judged.run, challenger, judged.int8)
    else:
        next(folder.rglob("artifact/*.onnx")).write_bytes(b"noise")
        stays = promote(tracker, judged.run, challenger, judged.int8)
        assert (stays.alias, "--over-champion" in stays.reason) == ("challenger", True)
    moved = promote(tracker, judged.run, challenger, judged.int8, by="ada", reason="by hand", over=True)
    assert (moved.alias, "was passed over" in moved.reason) == ("champion", True)


@pytest.mark.parametrize("promotion", ["manual", "automatic"])
def test_a_run_leaves_a_challenger_where_the_files_of_the_champion_are_gone(
    promotion: str, tracker: Tracker, judged: Judged, reigning: tuple[str, str], tmp_path: Path
) -> None:
    """And its thresholds with them. What then says that it cannot be judged names the way out."""
    champion, challenger = reigning
    content = tracker.version("images", champion).tags[CONTENT][:16]
    (folder,) = Path(str(tracker.artifacts)).rglob(content)
    shutil.rmtree(folder)
    tracker.tag_version("images", champion, plan_tag("onnxruntime"), "{}")
    shutil.copytree(judged.run.data_dir / "store", tmp_path / "store")
    spec = judged.run.spec.model_copy(update={"promotion": promotion})
    run = dataclasses.replace(judged.run, data_dir=tmp_path, spec=spec)
    parent = tracker.begin(run)
    if promotion == "manual":
        document = steps.register.fn(run, tracker, parent, judged.int8)
        assert document is not None
        assert (document["version"], document["alias"]) == (challenger, "challenger")
        assert "thresholds of version 1's plan were not calibrated again" in document["thresholds"]
    else:
        with pytest.raises(TrackingError, match="pareflow promote images --over-champion"):
            steps.register.fn(run, tracker, parent, judged.int8)
    assert aliases(tracker) == {"champion": champion, "challenger": challenger}
    moved = promote_challenger(tracker, run, by="ada", reason="by hand", over=True)
    assert (moved["version"], moved["alias"]) == (challenger, "champion")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"by": None, "reason": "by hand"}, "--by is missing"),
        ({"by": "ada", "reason": ""}, "--reason is missing"),
        ({"by": "ada", "reason": "by hand", "approve": True}, "--approve and --over-champion"),
    ],
)
def test_passing_over_the_champion_takes_a_person_and_a_reason(
    said: dict[str, Any], words: str, tmp_path: Path
) -> None:
    asked = {"approve": False, "reject": False, "to": None, "config": None, "data_dir": tmp_path, **said}
    with pytest.raises(InputError, match=words):
        moves.move("images", **asked, over_champion=True)


def test_a_rollback_waits_for_no_upload(
    tracker: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of another version of the same model, by another process of this data folder."""
    for row in (judged.fp32, judged.int8):
        promote(tracker, judged.run, register(judged, row), row)
    begun, ended = threading.Event(), threading.Event()

    def slowly(*_: object) -> str:
        begun.set()
        assert ended.wait(60)
        raise TransientError("the upload must end", "it was cut off", "Try again")

    monkeypatch.setattr(Tracker, "_upload", slowly)
    package = judged.package(judged.fp32)
    with ThreadPoolExecutor(1) as beside:
        upload = beside.submit(tracker.add, "images", package, {CONTENT: "of a third one"}, None)
        try:
            assert begun.wait(60)
            back = Tracker.open(tracker.locks.parent)
            assert roll_back(back, "images")["version"] == "1"
        finally:
            ended.set()
        assert isinstance(upload.exception(60), TransientError)


def test_without_a_challenger_there_is_nothing_to_promote(tracker: Tracker, judged: Judged) -> None:
    with pytest.raises(InputError, match="must have a challenger"):
        promote_challenger(tracker, judged.run)


def test_without_a_previous_champion_there_is_nothing_to_roll_back_to(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    promote(tracker, judged.run, register(judged, judged.fp32), judged.fp32)
    with pytest.raises(InputError, match="a previous one"):
        roll_back(tracker, "images")


@pytest.mark.slow
def test_of_two_promoters_at_once_the_better_one_wins(
    tracker: Tracker, judged: Judged, register: Callable[[Judged, Row], str], tmp_path: Path
) -> None:
    """Let go at the same moment, with no champion yet: the second must judge against the first."""
    run = dataclasses.replace(judged.run, data_dir=tmp_path)
    shutil.copytree(judged.run.data_dir / "store", tmp_path / "store")
    better, worse = register(judged, judged.int8), register(judged, judged.fp32)
    processes = []
    with tracker.locked("promotion-images"):
        for version, row in ((worse, judged.fp32), (better, judged.int8)):
            request = tmp_path / f"{version}.pickle"
            request.write_bytes(pickle.dumps((tracker, run, version, row)))
            command = [sys.executable, "-c", PROMOTE, str(request)]
            processes.append(subprocess.Popen(command, cwd=CHECKOUT, env=os.environ, stderr=subprocess.PIPE))
        for process in processes:
            while not _waits_for_a_lock(process.pid):
                assert process.poll() is None, "it did not wait for the promotion that is under way"
                time.sleep(0.05)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert aliases(tracker)["champion"] == better


def _waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel says so: `1: -> FLOCK ADVISORY WRITE 4711 …`."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(pid) in line.split() for line in lines)
