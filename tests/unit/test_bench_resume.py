"""`bench/resume.py`: which kills count, and what is compared with what."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def resume(bench: Callable[[str], Any]) -> Any:
    return bench("resume")


@pytest.mark.parametrize(("code", "hits"), [("import time; time.sleep(60)", True), ("", False)])
def test_a_kill_counts_where_it_ended_the_command(code: str, hits: bool, resume: Any, tmp_path: Path) -> None:
    command = SimpleNamespace(words=[sys.executable, "-c", code], data_dir=tmp_path)
    lost = resume._killed(command, 0.5 if hits else 60)
    assert lost == (0.0 if hits else None)


def test_what_a_killed_process_left_is_no_step_of_the_next_one(resume: Any, tmp_path: Path) -> None:
    (tmp_path / "store" / "making" / "key.left").mkdir(parents=True)
    command = SimpleNamespace(words=[sys.executable, "-c", "import time; time.sleep(60)"], data_dir=tmp_path)
    assert resume._killed(command, 0.5) == 0.0


def rows(resume: Any, monkeypatch: pytest.MonkeyPatch, winners: str, kills: list[float | None]) -> list[Any]:
    """The claims where the whole run, the killed one and the one asked again chose so; what kills lost."""
    documents = iter(
        ({"winner": one, "variants": [{"id": one, "recipe": f"recipe {one}"}]}, 10.0) for one in winners
    )
    lost = iter(kills)
    monkeypatch.setattr(resume, "KILLS", 3)
    monkeypatch.setattr(resume, "_finished", lambda _: next(documents))
    monkeypatch.setattr(resume, "_killed", lambda *_: next(lost))
    return list(resume.measure(False))


def test_the_killed_run_is_held_against_one_that_was_not_killed_and_against_itself(
    resume: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, again, *_ = rows(resume, monkeypatch, "abb", [1.0, 2.0, 3.0])
    assert (own.met, again.met) == (False, True)
    assert own.note == "recipe b, and recipe a; 3 of 3 kills hit"
    own, again, *_ = rows(resume, monkeypatch, "aab", [1.0, 2.0, 3.0])
    assert (own.met, again.met) == (True, False)


def test_only_kills_that_hit_count(resume: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, work, once = rows(resume, monkeypatch, "aaa", [1.0, 2.0, None])
    assert (work.measured, once.measured) == (pytest.approx(1.3), pytest.approx(1.15))
    assert work.samples == 2
    assert "2 of 3 kills hit" in work.note


def test_where_no_kill_hit_nothing_is_measured(resume: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row.met for row in rows(resume, monkeypatch, "aaa", [None])] == [None] * 4
