"""Law 9: every number can be measured again with one command and its seed."""

import dataclasses
from typing import Any

import pytest

from pareflow.measuring.race import Race
from pareflow.stages import building
from pareflow.stages.baseline import SCREENING, baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure, measuring_key


def test_asked_to_the_run_measures_again_what_it_does_not_build_again(trained: Any) -> None:
    kept = measure(trained.run, trained.rows, SCREENING)
    assert {key: found.blocks_ms for key, found in kept.items()} == {
        row.id: row.measurement.blocks_ms for row in trained.rows
    }
    answered = evaluated(trained.run, trained.strong)
    again = baseline(dataclasses.replace(trained.run, remeasure=True))
    assert evaluated(trained.run, trained.strong) != answered
    for old, new in zip(trained.rows, again, strict=True):
        assert (new.id, new.quality, new.size_mib) == (old.id, old.quality, old.size_mib)
        assert new.measurement is not None
        assert old.measurement is not None
        assert new.measurement.blocks_ms != old.measurement.blocks_ms
        assert new.measurement.environment == old.measurement.environment
    assert baseline(trained.run) == again


def evaluated(run: Run, row: Row) -> int:
    """Tells an evaluation from one that was done anew."""
    entry = run.store.find(building._evaluation(run, row, "search")["key"])
    assert entry is not None
    return (entry / "quality.json").stat().st_mtime_ns


def test_a_question_that_is_asked_beside_the_run_leaves_the_runs_own_quality(trained: Any) -> None:
    answered = evaluated(trained.run, trained.strong)
    aside = building.evaluate(trained.run.aside(), trained.strong, "search")
    assert aside.quality == trained.strong.quality
    assert evaluated(trained.run, trained.strong) == answered


def test_what_is_asked_beside_the_run_is_answered_by_this_machine(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that machines share an equal machine's answer would be fetched, where it asks just now."""
    here, key = trained.run.aside().own_key("asked"), trained.run.own_key("asked")
    assert here == trained.run.aside().own_key("asked")
    monkeypatch.setattr("pareflow.hardware.probe.boot", lambda: "another machine's")
    assert trained.run.aside().own_key("asked") != here
    assert trained.run.own_key("asked") == key  # the run itself goes on wherever it was killed


def test_a_whole_measurement_serves_every_race(trained: Any) -> None:
    """What is known in full is not timed again, however fast its row must be; and what a race timed in full
    is known in full."""
    strong, eager = trained.rows
    before = measure(trained.run, trained.rows, SCREENING)
    asked = Race(str(eager.id), str(strong.id), 1e9)
    assert measure(trained.run, trained.rows, SCREENING, race=asked) == before
    few = dataclasses.replace(SCREENING, blocks=2)
    raced = measure(trained.run, trained.rows, few, race=Race(str(eager.id), str(strong.id), 1e-9))
    assert measure(trained.run, trained.rows, few) == raced


def test_seed_and_protocol_are_part_of_the_question(trained: Any) -> None:
    keys = {
        measuring_key(trained.run, trained.rows, protocol)
        for protocol in (
            SCREENING,
            dataclasses.replace(SCREENING, seed=1),
            dataclasses.replace(SCREENING, blocks=13),
        )
    }
    assert len(keys) == 3
    assert measuring_key(trained.run, trained.rows, SCREENING) in keys
