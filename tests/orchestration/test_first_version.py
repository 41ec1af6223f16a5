"""The version that is registered while the search goes on, in MLflow."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pareflow.sla import QualityClause
from tasks import steps
from tasks.tracking import Tracker, verdict_of
from tests.orchestration.conftest import Judged


def registered(judged: Judged, tracker: Tracker) -> dict[str, Any]:
    rows = [judged.fp32, judged.eager, judged.int8]
    found: dict[str, Any] = steps.first_version.fn(judged.run, tracker, tracker.begin(judged.run), rows)
    return found


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
