"""The version that is registered while the search goes on, in MLflow."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from pareflow.sla import QualityClause
from pareflow.stages import finalists, registration, validation
from pareflow.stages.run import Row
from tasks import steps
from tasks.execution import Plain
from tasks.tracking import WORKLOAD, Tracker, verdict_of
from tests.orchestration.conftest import Judged


def judged_first(judged: Judged, tracker: Tracker) -> steps.First:
    rows = [judged.fp32, judged.eager, judged.int8]
    return steps.first_version.fn(judged.run, tracker, tracker.begin(judged.run), rows)


def registered(judged: Judged, tracker: Tracker) -> dict[str, Any]:
    return judged_first(judged, tracker).to_json()


def test_it_is_a_version_with_its_verdict_that_no_alias_names(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    tracker = new_tracker(tmp_path)
    told = registered(judged, tracker)
    (version,) = tracker.versions("images")
    assert told["version"] == str(version.version)
    assert told["variant"] == version.tags["pareflow.variant"] == judged.int8.id
    assert verdict_of(judged.run, version.tags, judged.int8.recipe.backend.name) == "promote"
    assert tracker.alias("images", "challenger") is None


def test_the_same_winner_at_the_end_is_the_same_version(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    tracker = new_tracker(tmp_path)
    told = registered(judged, tracker)
    found = steps.register.fn(judged.run, tracker, tracker.begin(judged.run), judged.int8)
    assert found is not None
    assert found["version"] == told["version"]
    assert len(tracker.versions("images")) == 1


def test_what_misses_the_sla_is_not_registered(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """No drop at all is allowed, which so few samples cannot show."""
    tracker = new_tracker(tmp_path)
    strict = judged.run.spec.sla.model_copy(update={"quality": QualityClause(max_drop=0.0001)})
    spec = judged.run.spec.model_copy(update={"sla": strict})
    other = dataclasses.replace(judged, run=dataclasses.replace(judged.run, spec=spec))
    told = registered(other, tracker)
    assert told["version"] is None
    assert not tracker.versions("images")


def test_what_is_registered_already_keeps_its_lineage(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """Else a run that is killed now would have said of the champion that it was trained by this code."""
    tracker = new_tracker(tmp_path)
    older = dataclasses.replace(judged.run, facts=dataclasses.replace(judged.run.facts, digest="older"))
    package = judged_first(judged, tracker).row
    (made,) = tracker.versions("images")
    tracker.register(older, tracker.begin(older), registration.package(judged.run, package), package)
    before = tracker.version("images", str(made.version)).tags
    assert registered(judged, tracker)["version"] == str(made.version)
    assert tracker.version("images", str(made.version)).tags == before
    assert before[WORKLOAD] == "older"


def rejected(row: Row) -> Row:
    assert row.verdict is not None
    return dataclasses.replace(row, verdict=dataclasses.replace(row.verdict, decision="reject"))


def doubtful(row: Row) -> Row:
    assert row.verdict is not None
    return dataclasses.replace(row, verdict=dataclasses.replace(row.verdict, decision="inconclusive"))


@pytest.mark.parametrize(
    ("version", "again", "wins"),
    [
        ("1", None, True),
        (None, None, False),
        ("1", doubtful, True),
        ("1", rejected, False),
        ("1", lambda row: dataclasses.replace(row, status="failed", verdict=None), False),
    ],
    ids=["not judged again", "not registered", "in doubt later", "rejected later", "failed later"],
)
def test_where_no_candidate_wins_at_the_end_the_first_version_does(
    version: str | None, again: Callable[[Row], Row] | None, wins: bool, judged: Judged
) -> None:
    """Also where the baselines keep the SLA: it is better than they are."""
    first = steps.First(judged.int8, version, "")
    at_the_end = [judged.fp32, judged.eager, *([] if again is None else [again(judged.int8)])]
    found = first.among(judged.run, at_the_end)
    assert (validation.winner(judged.run, found) == judged.int8) is wins
    assert len({row.id for row in found}) == len(found)


def test_a_candidate_that_wins_at_the_end_comes_before_it(judged: Judged) -> None:
    better = dataclasses.replace(judged.int8, id="better")
    first = steps.First(judged.int8, "1", "")
    assert first.among(judged.run, [judged.fp32, better]) == [judged.fp32, better]


def test_a_run_of_which_only_the_first_version_passed_ends_with_it(
    judged: Judged,
    new_tracker: Callable[[Path], Tracker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where it is none of the finalists: it is registered already, and becomes champion. That the search
    was stopped is kept."""
    tracker = new_tracker(tmp_path)
    first = judged_first(judged, tracker)
    stopped = pipeline.Stopped("that was all")
    monkeypatch.setattr(pipeline, "searched", lambda *_: ([judged.int8], stopped, [first]))
    monkeypatch.setattr(finalists, "finalists", lambda *_: [judged.fp32, judged.eager])
    document = pipeline.optimized(judged.run, tracker, tracker.begin(judged.run), Plain())
    assert document["winner"] == judged.int8.id
    assert document["verdict"]["decision"] == "promote"
    assert (document["registered"]["version"], document["registered"]["alias"]) == (first.version, "champion")
    (row,) = [row for row in document["variants"] if row["id"] == judged.int8.id]
    assert row["finalist"]
    assert tracker.stopped(judged.run)
