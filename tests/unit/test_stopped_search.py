"""Ctrl-C in a search: what is timed already is judged; before that it ends the command."""

import dataclasses
import signal
from typing import Any

import pytest

from flows.pipeline import searched
from pareflow.hardware.device import INTERRUPTED
from pareflow.search import Ended
from pareflow.stages.run import Run
from tasks.execution import Plain
from tests.conftest import Trained


class Stopped(Plain):
    """Plain execution, in which Ctrl-C comes while this candidate, counted from 0, is timed."""

    def __init__(self, at: int) -> None:
        self.left = at

    def call(self, task: Any, *arguments: Any) -> Any:
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        self.left -= 1
        return super().call(task, *arguments)


@pytest.fixture
def listed(trained: Trained) -> Run:
    """A run with two candidates."""
    candidates = tuple([{"onnxruntime": {"graph_level": level}}] for level in ("basic", "extended"))
    return dataclasses.replace(
        trained.run, spec=trained.run.spec.model_copy(update={"candidates": candidates})
    )


def test_what_is_timed_already_goes_on_to_the_verdict(listed: Run, trained: Trained) -> None:
    try:
        rows, ended, _ = searched(listed, None, "", Stopped(1), trained.rows, None)
    except KeyboardInterrupt:  # it would end pytest
        pytest.fail("the search ended, though one candidate was timed")
    assert [row.label for row in rows] == ["onnxruntime(graph_level=basic)"]
    assert rows[0].measurement is not None
    assert ended == Ended("it was stopped by Ctrl-C; the same command goes on with it")
    assert not INTERRUPTED.is_set()  # else whatever is begun for the verdict would be ended at once


def test_before_anything_is_timed_it_ends_the_command(listed: Run, trained: Trained) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(listed, None, "", Stopped(0), trained.rows, None)
