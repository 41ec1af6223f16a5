"""The main job: baseline → profile → optimize → validate → serve → register."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from flows.environment import set_environment

set_environment()  # before prefect is imported

from prefect import flow  # noqa: E402

from flows.endings import ended  # noqa: E402
from flows.progress import shown  # noqa: E402
from pareflow import collection, spec  # noqa: E402
from pareflow.errors import PareflowError, VariantError  # noqa: E402
from pareflow.hardware.device import INTERRUPTED  # noqa: E402
from pareflow.hardware.needs import Needs, held  # noqa: E402
from pareflow.isolation import interrupt  # noqa: E402
from pareflow.search import Ended  # noqa: E402
from pareflow.stages import (  # noqa: E402
    ablation,
    fitting,
    optimization,
    outcome,
    screening,
    searching,
    serving_plans,
    validation,
)
from pareflow.stages.building import needs_of  # noqa: E402
from pareflow.stages.machine import check_machine  # noqa: E402
from pareflow.stages.run import Row, Run  # noqa: E402
from pareflow.store import Store  # noqa: E402
from tasks import collecting, flow_runs, steps  # noqa: E402
from tasks.execution import Execution, of_the_flow  # noqa: E402
from tasks.heartbeat import owned  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402


@flow(name="pipeline", flow_run_name="{config}", persist_result=False, on_running=[flow_runs.claim])
def pipeline(
    config: str, data_dir: str = ".pareflow", remeasure: bool = False, target: str | None = None
) -> dict[str, Any]:
    """Optimize what `config` (a pipeline YAML) describes, for the device of the file `target` where one is
    named; the document of the outcome."""
    device = None if target is None else Path(target)
    return ended(
        run_pipeline(Path(config), Path(data_dir), of_the_flow(), remeasure=remeasure, target=device)
    )


def run_pipeline(
    config: Path,
    data_dir: Path,
    execution: Execution,
    *,
    remeasure: bool = False,
    target: Path | None = None,
) -> dict[str, Any]:
    """The pipeline by this execution, recorded in MLflow."""
    described = spec.read(config, target)
    with collection.holding(Store(data_dir / "store"), f"optimize {described.name}"):
        run = Run.open(described, config, data_dir, target=target)
        check_machine(run)
        run = run.anew() if remeasure else run
        tracker = Tracker.open(data_dir)
        document = optimize(run, tracker, execution)
        bound_store(data_dir, described.budget.store_gib)
    return document


def bound_store(data_dir: Path, max_gib: float | None) -> None:
    """Shrink a bounded store, while the run holds what it used. Its trouble is not a finished run's."""
    if max_gib is None:
        return
    try:
        done = collecting.collect(data_dir, max_gib)
        left = f"{done['removed']} entries removed, {done['left_mib']:.0f} MiB left"
        shown.get().note(f"the store: {left}; {done['needed_too_much'] or f'at most {max_gib:g} GiB'}")
    except PareflowError as error:
        shown.get().note(f"the store was not collected: {error}")


def optimize(run: Run, tracker: Tracker | None, execution: Execution) -> dict[str, Any]:
    """Every step of one run, in order. What is in the store already is not made again."""
    if tracker is None:
        return optimized(run, None, "", execution)
    parent = tracker.begin(run)
    with owned(tracker, parent) as owner:
        return optimized(run, owner, parent, execution)


def optimized(run: Run, tracker: Tracker | None, parent: str, execution: Execution) -> dict[str, Any]:
    """The steps, recorded under the run `parent` of MLflow's."""
    progress = shown.get()
    progress.stage("baseline")
    if run.samples_lacking is not None:
        progress.note(run.samples_lacking)
    baselines = execution.call(steps.measure_baseline, run, tracker, parent)
    progress.rows(baselines)
    if (doubt := screening.guessing(run, baselines)) is not None:
        progress.note(doubt)
    if (slow := validation.too_slow(run, baselines)) is not None:
        progress.note(slow)

    progress.stage("profile")
    profile, told = execution.call(steps.profile, run, baselines)
    progress.note(told)

    rows, ended, firsts = searched(run, tracker, parent, execution, baselines, profile)
    progress.note(f"the search ended: {ended.words}")
    stopped = isinstance(ended, Stopped)
    if stopped and tracker is not None:
        tracker.stop(parent)

    progress.stage("validate")
    screened = fitting.with_nearest([*baselines, *rows])
    first = firsts[-1] if firsts else None
    judged = execution.call(steps.validate, run, tracker, parent, screened, first)
    winner = validation.winner(run, judged)
    finals = {row.label: row for row in judged}
    table = [finals.get(row.label, row) for row in screened]

    swept: list[dict[str, Any]] = []
    if run.spec.sweep is not None:
        progress.stage("sweep")
        swept = execution.call(steps.sweep, run, judged, winner)

    serving = serving_plans.NO_LOAD
    if run.spec.sla.load is not None:
        progress.stage("serve")
        serving = execution.call(steps.tune_plan, run, judged, winner)
        progress.note(serving["reason"])

    registered = None
    if winner is not None and winner.role != "original":
        progress.stage("register")
        registered = execution.call(steps.register, run, tracker, parent, winner, serving)

    progress.stage("explain")
    wanted = ablation.ablations(run, winner, screened, stopped=stopped)
    contest = searching.Contest(run.unhurried, baselines)
    less = list(tried(tracker, parent, execution, wanted, contest))
    given = execution.call(steps.contributions, run, winner, [*screened, *less])

    rows, as_screened = [*table, *less], [*screened, *less]
    document = outcome.document(
        run,
        rows,
        as_screened,
        winner,
        profile,
        registered,
        swept,
        ended,
        given,
        serving,
        no_profile=told if profile is None else None,
        firsts=[one.to_json() for one in firsts],
    )
    execution.call(steps.record_outcome, run, tracker, parent, document, stopped)
    return document


class Stopped(Ended):
    """Why the search ended: by Ctrl-C or SIGTERM, so that it can go on."""


def searched(
    run: Run,
    tracker: Tracker | None,
    parent: str,
    execution: Execution,
    baselines: Sequence[Row],
    profile: Mapping[str, Any] | None,
) -> tuple[list[Row], Ended, list[steps.First]]:
    """All rows that the search asked for, wave by wave, why it ended, and what was judged before that.
    Ctrl-C or SIGTERM ends it where one is timed: what is there is judged."""
    asking, rows = searching.searching(run, baselines, profile, execution.machines()), list[Row]()
    contest = searching.Contest(run, baselines)
    done: list[Row] | None = None
    firsts: list[steps.First] = []
    with stoppable(lambda: any(row.measurement is not None for row in rows)) as stopped:
        try:
            while not stopped.is_set():
                asked = next(asking) if done is None else asking.send(done)
                failed = [one.row.recipe for one in firsts if not one.passed]
                wanted = len(failed) == len(firsts)
                if wanted and searching.first_to_register(run, asked, contest, failed):
                    shown.get().stage("first version")
                    left = [row for row in rows if not searching.of_ways(failed, row.recipe)]
                    first = execution.call(steps.first_version, run, tracker, parent, [*baselines, *left])
                    firsts.append(first)
                    shown.get().note(_of_the_first(run, first))
                if stopped.is_set():  # while the search thought, or the first version was judged
                    break
                shown.get().stage("optimize", len(asked.rows))
                shown.get().note(asked.words)
                done = []
                for row in _attempted(tracker, parent, execution, asked, contest):
                    if stopped.is_set():
                        break  # it was ended, or what it was timed beside
                    done.append(row)
                    if row.status != "pruned" or asked.listed:
                        rows.append(row)
        except StopIteration as end:
            return rows, end.value, firsts
        except PareflowError:  # of what was ended
            if not stopped.is_set():
                raise
    again = "the same command without --remeasure" if run.remeasure else "the same command"
    return rows, Stopped(f"it was stopped; {again} goes on with it"), firsts


def _of_the_first(run: Run, first: steps.First) -> str:
    """What became of the first version, in a line."""
    if first.version is None:
        return f"nothing is registered yet: {first.row.label}: {first.reason}"
    where = f"models:/{run.spec.name}/{first.version}"
    return f"{where} meets the SLA, and is registered: {first.row.label}; the search goes on"


@contextmanager
def stoppable(worth: Callable[[], bool]) -> Iterator[threading.Event]:
    """Within, the first Ctrl-C sets the event and ends what is built and timed, where that is `worth` it: an
    exception amid an orchestrator's own work would end more than that. Else, and from then on, it is as ever;
    so it is where Ctrl-C is ignored, as by what a script began with `&`. SIGTERM is as Ctrl-C, unless
    somebody else minds it, as an orchestrator does.
    """
    stopped = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stopped.is_set() or not worth():
            signal.default_int_handler(number, frame)
        stopped.set()
        interrupt()
        shown.get().note("stopping: what was found so far is judged; the same again ends the command")

    before = {number: signal.signal(number, ask) for number in _ours()}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stopped.is_set():
            INTERRUPTED.clear()  # what comes now is not interrupted, unless it is again


def _ours() -> Iterator[signal.Signals]:
    """The signals that may stop a search, where they are for this thread to mind."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield signal.SIGINT
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        yield signal.SIGTERM


def _attempted(
    tracker: Tracker | None,
    parent: str,
    execution: Execution,
    asked: searching.Asked,
    contest: searching.Contest,
) -> Iterator[Row]:
    """The rows as they became, one by one; of a preflight those that failed."""
    if not asked.preflight:
        yield from tried(tracker, parent, execution, asked.rows, contest)
        return
    failed = [
        row for row in side_by_side(contest.run, execution, "preflight", asked.rows) if row.status != "ok"
    ]
    if failed and not INTERRUPTED.is_set():  # what was ended is tried again
        execution.call(steps.record_failed, contest.run, tracker, parent, failed)
    shown.get().rows(failed)
    yield from failed


def tried(
    tracker: Tracker | None,
    parent: str,
    execution: Execution,
    candidates: Sequence[Row],
    contest: searching.Contest,
) -> Iterator[Row]:
    """The candidates, built side by side and timed one by one, each for as long as it may win the contest."""
    run = contest.run
    for row in side_by_side(run, execution, "make", candidates):
        needed = contest.needed(row)
        timed = execution.call(steps.time_variant, run, tracker, parent, row, contest.baselines, needed)
        contest.ran(timed)
        shown.get().rows([timed])
        yield timed


def side_by_side(
    run: Run, execution: Execution, work: Literal["preflight", "make"], candidates: Sequence[Row]
) -> Iterator[Row]:
    """The candidates as the work leaves them, in their order, as many at a time as the machines hold.

    One that no machine can hold is unavailable. Between two of them nothing runs, and may be timed. Once
    interrupted, none is begun.
    """
    task = steps.make_variant if work == "make" else steps.preflight
    waiting = [(row, _needs(run, row, work)) for row in candidates]
    while waiting and not INTERRUPTED.is_set():
        machines = execution.machines()
        count = held([needs for _, needs in waiting], machines)
        wave, waiting = waiting[:count], waiting[count:]
        rows = [optimization.placed(run, row, machines, execution.where) for row, _ in wave]
        rows = [optimization.begun(run, row, work) if row.status == "ok" else row for row in rows]
        able = [(row, needs) for row, (_, needs) in zip(rows, wave, strict=True) if row.status == "ok"]
        found = execution.each(task, [(run, row) for row, _ in able], [needs for _, needs in able])
        done = iter(
            optimization.failed(row, one) if isinstance(one, VariantError) else one
            for (row, _), one in zip(able, found, strict=True)
        )
        yield from [optimization.kept(run, next(done), work) if row.status == "ok" else row for row in rows]


def _needs(run: Run, row: Row, work: Literal["preflight", "make"]) -> Needs:
    """What the work takes: the whole machine where it was killed before, as the kernel kills for memory."""
    return dataclasses.replace(needs_of(run, row.recipe), alone=optimization.killed(run, row, work))
