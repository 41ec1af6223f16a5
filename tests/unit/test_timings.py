"""What a technique measured is kept: a second time it is read, not measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pareflow.model.timings import FILE, Timings
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]


def never() -> float:
    raise AssertionError("it was measured before")


def test_a_number_is_measured_once_and_survives_the_process(load_tiny: Load, tmp_path: Path) -> None:
    workload = replace(load_tiny("images"), scratch=tmp_path / "scratch")
    assert Timings(workload).of("conv1", lambda: 1.25) == 1.25
    again = Timings(workload)
    assert again.of("conv1", never) == 1.25
    assert again.of("conv2", lambda: 2.5) == 2.5
    assert Timings(workload).known == {"conv1": 1.25, "conv2": 2.5}
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [FILE]


def test_without_a_scratch_folder_it_is_known_for_as_long_as_it_lives(load_tiny: Load) -> None:
    timings = Timings(load_tiny("images"))
    timings.of("conv1", lambda: 1.25)
    assert timings.of("conv1", never) == 1.25
    with pytest.raises(AssertionError, match="measured before"):
        Timings(load_tiny("images")).of("conv1", never)
