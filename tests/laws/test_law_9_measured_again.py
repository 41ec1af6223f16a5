"""Law 9: every number can be measured again with one command and its seed."""

import dataclasses
from typing import Any

from pareflow.stages.baseline import SCREENING, baseline
from pareflow.stages.timing import measure, measuring_key


def test_asked_to_the_run_measures_again_what_it_does_not_build_again(trained: Any) -> None:
    kept = measure(trained.run, trained.rows, SCREENING)
    assert {key: found.blocks_ms for key, found in kept.items()} == {
        row.id: row.measurement.blocks_ms for row in trained.rows
    }
    again = baseline(dataclasses.replace(trained.run, remeasure=True))
    for old, new in zip(trained.rows, again, strict=True):
        assert (new.id, new.quality, new.size_mib) == (old.id, old.quality, old.size_mib)
        assert new.measurement is not None
        assert old.measurement is not None
        assert new.measurement.blocks_ms != old.measurement.blocks_ms
        assert new.measurement.environment == old.measurement.environment
    assert baseline(trained.run) == again


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
