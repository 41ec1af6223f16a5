"""Ctrl-C and SIGTERM in a search: what is timed already is judged; before that it ends the command."""

import dataclasses
import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest

from flows.pipeline import Stopped, searched, stoppable
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.needs import Machine
from pareflow.search import Ended
from pareflow.stages import searching
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step
from tasks.execution import Plain
from tests.conftest import Trained

BASIC = Row(Recipe((), Step("onnxruntime", {"graph_level": "basic"})))
OTHERS = tuple(Row(Recipe((Step(name),), Step("onnxruntime"))) for name in ("fp16", "static_int8"))


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """Tests may be run where Ctrl-C is ignored, as by nohup."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    INTERRUPTED.clear()


class Interrupted(Plain):
    """Plain execution, in which a signal comes while this candidate, counted from 0, is timed."""

    def __init__(self, at: int, number: signal.Signals = signal.SIGINT) -> None:
        self.left, self.number = at, number

    def call(self, task: Any, *arguments: Any) -> Any:
        if self.left == 0:
            signal.raise_signal(self.number)
        self.left -= 1
        return super().call(task, *arguments)


@pytest.fixture
def listed(trained: Trained) -> Run:
    """A run with two candidates."""
    candidates = tuple([{"onnxruntime": {"graph_level": level}}] for level in ("basic", "extended"))
    return dataclasses.replace(
        trained.run, spec=trained.run.spec.model_copy(update={"candidates": candidates})
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_timed_already_goes_on_to_the_verdict(
    number: signal.Signals, listed: Run, trained: Trained
) -> None:
    """SIGTERM comes of `docker stop`, and of a machine that is taken away."""
    try:
        rows, ended, _ = searched(listed, None, "", Interrupted(1, number), trained.rows, None)
    except KeyboardInterrupt:  # it would end pytest
        pytest.fail("the search ended, though one candidate was timed")
    assert [row.label for row in rows] == ["onnxruntime(graph_level=basic)"]
    assert rows[0].measurement is not None
    assert ended == Stopped("it was stopped; the same command goes on with it")
    assert not INTERRUPTED.is_set()  # else whatever is begun for the verdict would be ended at once


def test_before_anything_is_timed_it_ends_the_command(listed: Run, trained: Trained) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(listed, None, "", Interrupted(0), trained.rows, None)


class InWaves(Plain):
    """Plain execution on a machine that holds one at a time, which notes what is tried, and how often each
    task is called. Ctrl-C comes while this one is tried."""

    def __init__(self, at: Row | None = None) -> None:
        self.at, self.tried, self.called = at, list[str](), list[str]()

    def machines(self) -> Sequence[Machine]:
        return [Machine(1, 0, 4096)]

    def call(self, task: Any, *arguments: Any) -> Any:
        self.called.append(task.name)
        return super().call(task, *arguments)

    def each(self, task: Any, calls: Any, needs: Any) -> Any:
        done = super().each(task, calls, needs)
        now = [row.label for _, row in calls]
        self.tried += now
        if self.at is not None and self.at.label in now:
            signal.raise_signal(signal.SIGINT)
        return done


def asks(monkeypatch: pytest.MonkeyPatch, *waves: searching.Asked, stopped_before: int | None = None) -> None:
    """The search asks for these; Ctrl-C comes while it thinks about the one of this number."""

    def asking(*_: Any) -> Generator[searching.Asked, Any, Ended]:
        for number, wave in enumerate(waves):
            if number == stopped_before:
                signal.raise_signal(signal.SIGINT)
            yield wave
        return Ended("that was all")

    monkeypatch.setattr(searching, "searching", asking)


@pytest.mark.parametrize(("remeasure", "again"), [(False, ""), (True, " without --remeasure")])
def test_stopped_while_the_search_thinks_nothing_more_is_built(
    remeasure: bool, again: str, listed: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --remeasure, the same command would forget what there is."""
    run = dataclasses.replace(listed, remeasure=remeasure)
    asks(monkeypatch, searching.Asked("one", (BASIC,)), searching.Asked("more", OTHERS), stopped_before=1)
    execution = InWaves()
    rows, ended, _ = searched(run, None, "", execution, trained.rows, None)
    assert execution.tried == [BASIC.label]
    assert [row.label for row in rows] == [BASIC.label]
    assert ended.words == f"it was stopped; the same command{again} goes on with it"


@pytest.mark.usefixtures("worth_a_first_version")
def test_stopped_while_the_first_version_is_judged_nothing_more_is_built(
    listed: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither a verdict that was cut short nor what comes after it is taken for one."""
    asks(monkeypatch, searching.Asked("one", (BASIC,)), searching.Asked("more", OTHERS))
    execution = InWaves()
    call = execution.call

    def stop(task: Any, *arguments: Any) -> Any:
        if task.name == "first_version":
            signal.raise_signal(signal.SIGINT)
        return call(task, *arguments)

    monkeypatch.setattr(execution, "call", stop)
    _, ended, firsts = searched(listed, None, "", execution, trained.rows, None)
    assert execution.tried == [BASIC.label]
    assert firsts == []
    assert ended.words.startswith("it was stopped")


@pytest.fixture
def worth_a_first_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "first_to_register", lambda _run, asked, *_: asked.words == "more")


@pytest.mark.parametrize("preflight", [True, False], ids=["preflight", "make"])
def test_stopped_in_one_wave_the_next_does_not_begin(
    preflight: bool, listed: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks(monkeypatch, searching.Asked("one", (BASIC,)), searching.Asked("more", OTHERS, preflight))
    execution = InWaves(at=OTHERS[0])
    rows, ended, _ = searched(listed, None, "", execution, trained.rows, None)
    assert execution.tried == [BASIC.label, OTHERS[0].label]
    assert [row.label for row in rows] == [BASIC.label]
    assert ended.words.startswith("it was stopped")


def test_what_was_begun_with_ctrl_c_ignored_goes_on_ignoring_it() -> None:
    """As a script's `pareflow optimize a.yaml &`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable(lambda: True) as stopped:
        signal.raise_signal(signal.SIGINT)
    assert not stopped.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_signal_that_an_orchestrator_minds_is_left_to_it() -> None:
    told = list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with stoppable(lambda: True) as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM]
    assert not stopped.is_set()
