"""What the clock decided is kept: killed or not, and asked again, a run decides the same."""

import dataclasses
import fcntl
import math
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.pipeline import searched, side_by_side, tried
from pareflow.compiler import OnnxRuntime
from pareflow.errors import CrashedError, KilledError, TimedOutError, VariantError
from pareflow.hardware.device import INTERRUPTED, lock_folder
from pareflow.hardware.needs import Machine
from pareflow.hardware.waits import WAITS, Waits
from pareflow.isolation import interruptible
from pareflow.measurement import Measurement
from pareflow.measuring.arena import Protocol
from pareflow.search import Ended
from pareflow.stages import baseline, building, clock, jobs, optimization, searching, validation
from pareflow.stages.clock import Clock, Meter
from pareflow.stages.run import Row, Run
from pareflow.stages.searching import Contest, trial_of
from pareflow.variant import Recipe, Step
from tasks.execution import Plain
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


def test_a_line_that_is_cut_short_after_a_brace_is_no_whole_one(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock.jsonl")
    clock.first("make a", 3.0)
    whole = clock.file.read_text()
    clock.stop("make {b}", "it died")
    told = clock.file.read_text()
    clock.file.write_text(told[: told.index("}", len(whole)) + 1])
    assert (clock.known("make a"), clock.stopped("make {b}")) == (3.0, None)
    clock.stop("make {b}", "it died")
    assert clock.stopped("make {b}") == "it died"


def test_a_number_holds_as_it_was_first_settled_and_is_no_answer(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "runs" / "clock.jsonl")
    assert [clock.settled("a", 4), clock.settled("b", 2), clock.settled("a", 1)] == [4, 2, 4]
    assert (clock.known("a"), clock.least()) == (None, None)
    clock.forget()
    assert clock.settled("a", 1) == 1


def test_the_search_is_told_what_machines_there_are(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[Sequence[Machine]]()

    def asking(*given: Any) -> Generator[Any, Any, Ended]:
        told.append(given[-1])
        yield from ()
        return Ended("that was all")

    monkeypatch.setattr(searching, "searching", asking)
    searched(trained.run, None, "", Plain(), trained.rows, None)
    assert told == [Plain().machines()]


def test_what_failed_is_kept_beside_the_answers(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "runs" / "clock.jsonl")
    assert clock.stopped("make a") is None
    clock.first("make a", 3.0)
    clock.stop("make a", "TimedOutError: in 5 s")
    assert (clock.stopped("make a"), clock.stopped("make b")) == ("TimedOutError: in 5 s", None)
    assert (clock.known("make a"), clock.least()) == (3.0, 3.0)
    clock.forget()
    assert clock.stopped("make a") is None


def test_a_run_that_goes_on_is_told_what_failed_and_tries_once_more_what_was_killed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is stopped, one dies, one is killed from outside, one is stopped while it is timed, which says
    nothing of how long its training takes. What is asked for anew is tried anew, and so is what has other
    code since."""
    endings = {"none": TimedOutError, "basic": CrashedError, "layout": KilledError}
    made, timed = [], []

    def make(run: Run, row: Row) -> Row:
        made.append(level := row.recipe.backend.settings["graph_level"])
        if level in endings:
            raise endings[level]("it must end", f"{level} did not", "Wait")
        return dataclasses.replace(trained.rows[0], recipe=row.recipe)

    def measure(run: Run, rows: Sequence[Row], *_: object, **__: object) -> dict[str, Measurement]:
        timed.append(rows[1].recipe.backend.settings["graph_level"])
        raise TimedOutError("a request must be answered", "it was not", "Wait")

    monkeypatch.setattr(building, "make", make)
    monkeypatch.setattr(optimization, "measure", measure)
    levels = ("none", "basic", "extended", "layout")
    rows = [Row(Recipe((), Step("onnxruntime", {"graph_level": level}))) for level in levels]

    def told(run: Run) -> list[Row]:
        made.clear()
        timed.clear()
        return list(tried(None, "", Plain(), rows, Contest(run, trained.rows)))

    first = told(trained.run)
    everything = ["basic", "extended", "extended", "layout", "none"]
    assert [row.status for row in first] == ["failed"] * 4
    assert (sorted(made), timed) == (everything, ["extended"])
    stopped = [trial_of(trained.run, row, trained.rows).stopped for row in first]
    assert stopped == [True, False, False, False]
    assert told(trained.run) == first
    assert (sorted(made), timed) == (["extended", "layout"], [])
    assert told(trained.run) == first
    assert (sorted(made), timed) == (["extended"], [])
    assert told(trained.run.anew()) == first
    assert (sorted(made), timed) == (everything, ["extended"])
    monkeypatch.setattr(OnnxRuntime, "code_version", classmethod(lambda _: "another"))
    assert [row.status for row in told(trained.run)] == ["failed"] * 4
    assert (sorted(made), timed) == (everything, ["extended"])


@pytest.mark.parametrize(
    ("kind", "failures", "late", "times"),
    [
        pytest.param(CrashedError, 1, False, 2, id="once"),
        pytest.param(CrashedError, 2, False, 2, id="twice"),
        pytest.param(CrashedError, 1, True, 1, id="when the budget is used up"),
        pytest.param(TimedOutError, 1, False, 1, id="of its limit of time"),
    ],
)
def test_a_baseline_that_fails_while_a_candidate_is_timed_is_timed_once_more(
    kind: type[VariantError],
    failures: int,
    late: bool,
    times: int,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What fails in the end is kept, so that a run that goes on decides the same; not of another baseline."""
    run, strong, asked = trained.run, trained.strong, list[Sequence[Row]]()

    def measure(_: Run, rows: Sequence[Row], *__: object, **___: object) -> dict[str, Measurement]:
        asked.append(rows)
        if len(asked) <= failures:
            error = kind("it must end by itself", "it did not", "Look")
            error.variant = strong.id
            raise error
        return {str(row.id): strong.measurement for row in rows if strong.measurement is not None}

    monkeypatch.setattr(building, "make", lambda run, row: row)
    monkeypatch.setattr(optimization, "measure", measure)
    monkeypatch.setattr(Run, "late", lambda _, asked: late and asked.startswith("time again"))
    row = dataclasses.replace(strong, recipe=Recipe((), Step("onnxruntime", {"graph_level": "none"})), id="x")
    first = optimization.time(run, row, trained.rows)
    assert len(asked) == times
    if failures < times:
        assert first.status == "ok"
        return
    said = f"beside it onnxruntime failed: {kind.__name__}: it must end by itself, but it did not"
    assert (first.status, first.reason) == ("failed", said)
    assert optimization.time(run, row, trained.rows) == first
    assert len(asked) == times
    others = [dataclasses.replace(one, id=f"another {one.id}") for one in trained.rows]
    assert optimization.time(run, row, others).status == "ok"


def test_a_candidate_that_takes_its_worker_along_is_one_failed_row_that_is_not_tried_again(
    trained: Trained,
) -> None:
    asked = list[Row]()

    class Dying(Plain):
        def each(self, task: Any, calls: Any, needs: Any) -> Any:
            asked.extend(row for _, row in calls)
            return [CrashedError("it must end", "it died", "Look"), trained.rows[1]][: len(calls)]

        def machines(self) -> list[Machine]:
            return [Machine(8, 0, 8000)]

    rows = [Row(Recipe((), Step("onnxruntime", {"graph_level": level}))) for level in ("none", "basic")]
    first = list(side_by_side(trained.run, Dying(), "make", rows))
    assert [row.status for row in first] == ["failed", "ok"]
    assert first[0].reason == "CrashedError: it must end, but it died"
    again = list(side_by_side(trained.run, Dying(), "make", rows[:1]))
    assert (again, asked) == (first[:1], rows)


def test_what_was_killed_has_nothing_beside_it_when_it_is_made_again(trained: Trained) -> None:
    """The kernel may have killed it for what the others held, where nobody stated any memory."""
    asked = list[list[str]]()

    class Full(Plain):
        """A machine whose memory does not hold two of them."""

        def each(self, task: Any, calls: Any, needs: Any) -> Any:
            asked.append([row.recipe.backend.settings["graph_level"] for _, row in calls])
            killed = KilledError("it must end by itself", "it was killed", "Look")
            return [killed if len(calls) > 1 and row == rows[1] else trained.strong for _, row in calls]

        def machines(self) -> list[Machine]:
            return [Machine(8, 0, 2**20)]

    rows = [
        Row(Recipe((), Step("onnxruntime", {"graph_level": level}))) for level in ("none", "basic", "layout")
    ]
    told = [
        [row.status for row in side_by_side(trained.run, Full(), "make", rows)] for _ in ("first", "again")
    ]
    assert told == [["ok", "failed", "ok"], ["ok", "ok", "ok"]]
    assert asked == [["none", "basic", "layout"], ["none"], ["basic"], ["layout"]]


def test_a_preflight_that_a_time_limit_stopped_is_not_tried_again(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it pruned where the budget is used up: the search planned for it."""
    asked = []

    def preflight(run: Run, row: Row) -> None:
        asked.append(row)
        raise TimedOutError("it must end", "it did not", "Wait")

    monkeypatch.setattr(building, "preflight", preflight)
    over = dataclasses.replace(trained.run, meter=Meter(-math.inf))
    row = Row(Recipe((), Step("onnxruntime")))
    told = [list(side_by_side(over, Plain(), "preflight", [row])) for _ in range(2)]
    assert [(found.status, found.reason) for (found,) in told] == [
        ("failed", "TimedOutError: it must end, but it did not (on one batch, for one pass)")
    ] * 2
    assert asked == [row]


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
    measured_again = Run.open(first.spec, first.config, first.data_dir).aside()
    assert measured_again.spent == pytest.approx(10)
    again = second.anew()
    assert (again.remeasure, again.spent) == (True, 0)
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


def test_what_is_asked_again_gives_no_time_back(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, 10 minutes: `a` after 3, `b` after 9; a kill; 5 of asking again; `c` after half of one."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    spec = trained.with_budget(minutes=10).spec
    first = Run.open(spec, trained.run.config, trained.run.data_dir)
    now += 3 * 60
    assert first.left("a") == pytest.approx(7)
    now += 6 * 60
    assert first.left("b") == pytest.approx(1)
    now += 12
    assert [first.left(asked) for asked in "ab"] == pytest.approx([7, 1])
    assert first.minutes_left == pytest.approx(0.8)
    second = Run.open(spec, trained.run.config, trained.run.data_dir)
    now += 5 * 60
    assert [second.left(asked) for asked in "ab"] == pytest.approx([7, 1])
    now += 30
    assert [second.left(asked) for asked in "cabc"] == pytest.approx([0.5, 7, 1, 0.5])
    assert second.minutes_left == pytest.approx(0.5)


def test_waiting_for_what_another_run_holds_is_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 2 minutes of work, 3 of waiting for the device, and 4 of waiting beside a build of its own."""
    now, waits = 1000.0, Waits()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(clock, "WAITS", waits)
    meter = Meter()
    now += 2 * 60
    with waits.waiting():
        now += 3 * 60
        assert meter.minutes == pytest.approx(2)
        with waits.working():
            now += 4 * 60
    assert meter.minutes == pytest.approx(6)
    meter.restart()
    assert meter.minutes == 0


@pytest.mark.parametrize("what", ["the device", "training"])
def test_who_waits_for_another_run_counts_it_as_waiting(what: str, trained: Trained) -> None:
    """Another holds it until that is seen: by a descriptor of its own, as another process would."""
    run = trained.run
    key = jobs.original(run.facts.digest).id
    path = lock_folder() / "cpu.lock" if what == "the device" else run.store.root / "locks" / key
    before, deadline = WAITS.seconds, time.monotonic() + 20
    with ThreadPoolExecutor(1) as threads:
        with path.open("a") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            training = threads.submit(baseline.train, run)
            while (waited := WAITS.seconds - before) < 0.1 and time.monotonic() < deadline:
                time.sleep(0.01)
        training.result()
    assert waited >= 0.1


def test_a_run_begins_though_one_in_this_process_was_interrupted(trained: Trained) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise KeyboardInterrupt
    run = Run.open(trained.run.spec, trained.run.config, trained.run.data_dir)
    assert run.id == trained.run.id
    assert not INTERRUPTED.is_set()


@pytest.mark.parametrize(("minutes", "looks"), [(600, 4), (0.001, 2)], ids=["time left", "used up"])
def test_the_verdict_has_a_second_look_though_the_search_has_used_up_the_budget(
    minutes: float, looks: int, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = looking(monkeypatch)
    validation.validate(trained.with_budget(minutes=minutes), trained.rows)
    assert asked == list(range(1, looks + 1))


def test_what_a_stopped_run_had_left_for_its_finalists_is_not_left_for_others(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the budget is used up; for its own, it goes on as it began."""
    asked = looking(monkeypatch)
    stopped = trained.with_budget(minutes=599)
    gone_on = dataclasses.replace(stopped, spent=600)
    validation.validate(stopped, trained.rows)
    validation.validate(gone_on, trained.rows)
    assert asked == [1, 2, 3, 4] * 2
    validation.validate(gone_on, trained.rows, others=1)
    assert asked == [1, 2, 3, 4] * 2 + [1, 2]


def looking(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The looks that the verdict takes, where more could decide however much there is."""
    asked = []

    def measure(run: Run, rows: Sequence[Row], protocol: Protocol, **_: object) -> dict[str, Measurement]:
        asked.append(protocol.seed)
        return {str(row.id): row.measurement for row in rows if row.measurement is not None}

    monkeypatch.setattr(validation, "measure", measure)
    monkeypatch.setattr(validation, "_may_win", lambda *_: True)
    return asked
