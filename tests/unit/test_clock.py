"""What the clock decided is kept: killed or not, and asked again, a run decides the same."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.stages.clock import Clock, Meter
from pareflow.stages.run import Run
from tests.conftest import Trained


def test_the_first_answer_holds(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "runs" / "clock.jsonl")
    assert clock.least() is None
    assert clock.first("make a", 3.0) == 3.0
    assert clock.first("make b", -0.5) == -0.5
    assert Clock(clock.file).first("make a", 2.0) == 3.0
    assert clock.least() == -0.5
    clock.forget()
    assert clock.least() is None
    assert clock.first("make a", 2.0) == 2.0


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5), st.data())
def test_a_line_that_a_kill_cut_short_costs_that_answer_alone(lefts: list[float], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(Path(folder) / "clock.jsonl")
        for number, left in enumerate(lefts):
            clock.first(str(number), left)
        whole = clock.file.read_bytes()
        lines = whole.splitlines(keepends=True)
        cut = data.draw(st.integers(len(whole) - len(lines[-1]), len(whole) - 2))
        clock.file.write_bytes(whole[:cut])
        assert [clock.first(str(number), math.pi) for number in range(len(lefts) - 1)] == lefts[:-1]
        assert clock.first(str(len(lefts) - 1), math.pi) == math.pi
        assert Clock(clock.file).first(str(len(lefts) - 1), 0.0) == math.pi


def test_a_run_that_goes_on_decides_what_it_decided(trained: Trained) -> None:
    """Late once is late for ever, and in time too, whatever the clock says by then."""
    run = trained.run
    over = dataclasses.replace(run, meter=Meter(-math.inf))
    assert (run.late("make a"), over.late("make b")) == (False, True)
    assert (over.late("make a"), run.late("make b")) == (False, True)
    assert run.unhurried.left("make b") == math.inf


def test_a_run_that_goes_on_has_what_was_left_of_its_budget(trained: Trained, tmp_path: Path) -> None:
    first = Run.open(trained.run.spec, trained.run.config, tmp_path / "new")
    assert first.spent == 0
    minutes = first.spec.budget.minutes
    first.clock.first("make a", minutes - 10)
    second = Run.open(first.spec, first.config, first.data_dir)
    assert second.spent == pytest.approx(10)
    assert second.minutes_left == pytest.approx(minutes - 10, abs=1)
    again = Run.open(first.spec, first.config, first.data_dir, remeasure=True)
    assert again.spent == 0
    assert not again.clock.file.exists()


def test_what_was_decided_before_costs_nothing_again(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: `make a` after 3 minutes; a kill 2 later; then 5 of asking again, and 1 that is new."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    minutes = trained.run.spec.budget.minutes

    def opened() -> Run:
        return Run.open(trained.run.spec, trained.run.config, trained.run.data_dir)

    trained.run.clock.forget()
    first = opened()
    now += 3 * 60
    assert first.left("make a") == pytest.approx(minutes - 3)
    now += 2 * 60
    second = opened()
    now += 5 * 60
    assert second.left("make a") == pytest.approx(minutes - 3)
    now += 60
    assert second.left("make b") == pytest.approx(minutes - 4)
    assert opened().minutes_left == pytest.approx(minutes - 4)
