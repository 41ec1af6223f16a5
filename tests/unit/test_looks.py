"""How long something has been as it is, by looks at it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.looks import Looks


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    return Looks(tmp_path / "looks.db")


def test_the_first_look_sees_nothing_unchanged(looks: Looks) -> None:
    assert looks.unchanged_s("owner", "a", "1", 1000) == 0


def test_the_time_counts_from_the_first_look_that_saw_it_so(looks: Looks, tmp_path: Path) -> None:
    looks.unchanged_s("owner", "a", "1", 1000)
    looks.unchanged_s("owner", "a", "1", 1100)
    assert Looks(tmp_path / "looks.db").unchanged_s("owner", "a", "1", 1250) == 250
    assert looks.unchanged_s("owner", "a", "2", 1300) == 0
    assert looks.unchanged_s("owner", "a", "2", 1310) == 10


def test_kinds_and_names_do_not_mix(looks: Looks) -> None:
    looks.unchanged_s("owner", "a", "1", 1000)
    assert looks.unchanged_s("slot", "a", "1", 1100) == 0
    assert looks.unchanged_s("owner", "b", "1", 1100) == 0


def test_a_clock_that_went_back_begins_anew(looks: Looks) -> None:
    looks.unchanged_s("owner", "a", "1", 1000)
    assert looks.unchanged_s("owner", "a", "1", 400) == 0
    assert looks.unchanged_s("owner", "a", "1", 450) == 50


def test_what_a_look_did_not_see_is_forgotten(looks: Looks) -> None:
    looks.unchanged_s("owner", "a", "1", 1000)
    looks.unchanged_s("owner", "b", "1", 1100)
    looks.forget("owner", 1100)
    assert looks.unchanged_s("owner", "a", "1", 1200) == 0
    assert looks.unchanged_s("owner", "b", "1", 1200) == 100


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), min_size=1, max_size=12))
def test_a_beat_between_two_looks_is_never_counted_as_silence(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float]]
) -> None:
    """Whatever the looks: the silence is at most the time since the last one that saw another beat."""
    looks, now, beat, since = Looks(tmp_path_factory.mktemp("looks") / "l.db"), 1000.0, 0, None
    for beats, seconds in steps:
        now, beat = now + seconds, beat + beats
        if since is None or beats:
            since = now
        assert looks.unchanged_s("owner", "a", str(beat), now) == pytest.approx(now - since)
