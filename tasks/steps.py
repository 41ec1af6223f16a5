"""The workflow's steps as Prefect tasks: a stage, its retry policy, and its record in MLflow.

Only a TransientError is tried again. Nothing is cached by Prefect: the store is the truth, and finds what is
finished. Every stage does its heavy work in processes of their own, with time limits that really end them.
"""

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from pareflow.errors import TransientError, VariantError
from pareflow.reporting import page
from pareflow.serving.executable import Release
from pareflow.serving.plan import ServingPlan
from pareflow.stages import (
    ablation,
    baseline,
    finalists,
    loading,
    node,
    optimization,
    profiling,
    registration,
    searching,
    serving_plans,
    sweeping,
    validation,
)
from pareflow.stages.run import Row, Run
from pareflow.store import replace, writing
from tasks import approval, events, promotion, retraining
from tasks.serving import keep_plan
from tasks.thresholds import calibrate_again
from tasks.tracking import Tracker


async def _is_transient(task: "Task[..., Any]", task_run: TaskRun, state: "State[Any]") -> bool:
    result: Any = state.result(raise_on_failure=False)
    return isinstance(await result if inspect.isawaitable(result) else result, TransientError)


_POLICY: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _is_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(task_run_name="baseline", **_POLICY)
def measure_baseline(run: Run, tracker: Tracker | None, parent: str) -> list[Row]:
    """The strong baselines and the original, measured."""
    rows = baseline.baseline(run)
    _record(run, tracker, parent, rows)
    return rows


@task(task_run_name="train", **_POLICY)
def train(run: Run) -> None:
    """The original, by the workload's own training."""
    baseline.train(run)


@task(task_run_name="profile", **_POLICY)
def profile(run: Run, baselines: Sequence[Row]) -> tuple[dict[str, Any] | None, str]:
    """Where a request's time goes, and that in a line; None and the reason where it cannot be told."""
    return profiling.attempt(run, baselines)


@task(task_run_name="preflight {row.label}", **_POLICY)
def preflight(run: Run, row: Row) -> Row:
    """One candidate, tried on one batch."""
    return optimization.preflight(node.here(run), row)


@task(task_run_name="record what failed on one batch", **_POLICY)
def record_failed(run: Run, tracker: Tracker | None, parent: str, rows: Sequence[Row]) -> None:
    """The rows that a preflight has ended."""
    _record(run, tracker, parent, rows)


@task(task_run_name="make {row.label}", **_POLICY)
def make_variant(run: Run, row: Row) -> Row:
    """One candidate, built and evaluated on the search split."""
    return optimization.make(node.here(run), row)


@task(task_run_name="time {row.label}", **_POLICY)
def time_variant(
    run: Run,
    tracker: Tracker | None,
    parent: str,
    row: Row,
    baselines: Sequence[Row],
    needed: float | None = None,
) -> Row:
    """One candidate, timed beside the strong baseline for as long as it may be `needed` times as fast."""
    timed = optimization.time(run, row, baselines, needed)
    _record(run, tracker, parent, [timed])
    return timed


@dataclasses.dataclass(frozen=True)
class First:
    """What was judged while the search went on, its version where that is registered, and why or why not."""

    row: Row
    version: str | None
    reason: str
    passed: bool = True
    """Whether the gate promotes it and it can be packaged: else another one is worth a try."""

    def to_json(self) -> dict[str, Any]:
        found = {"variant": self.row.id, "recipe": self.row.label}
        return {**found, "version": self.version, "reason": self.reason}

    def among(self, run: Run, judged: Sequence[Row]) -> list[Row]:
        """The rows that were judged at the end, with this one where it is registered and no candidate of them
        wins: it passed by its own share of the error. Not where it failed then, or a clause spoke against it.
        """
        best = validation.winner(run, judged)
        if self.version is None or (best is not None and best.role == "candidate"):
            return list(judged)
        again = [row for row in judged if row.id == self.row.id]
        if any(row.verdict is None or row.verdict.decision == "reject" for row in again):
            return list(judged)
        return [*(row for row in judged if row not in again), self.row]


@task(task_run_name="first version", **_POLICY)
def first_version(run: Run, tracker: Tracker | None, parent: str, rows: Sequence[Row]) -> First:
    """The most promising of the rows, judged and registered while the search goes on: however that ends, a
    version that meets the SLA is there.

    The search is told nothing of it (law 5), and the verdict at the end shares its error. No alias names it:
    what follows those is told of one version a run, the best. A version that has this content already stays
    as it was registered, with its own lineage.
    """
    chosen = finalists.finalists(run, rows, 1)
    others = run.spec.finalists + searching.EARLY - 1
    *_, row = validation.validate(run, chosen, others, "the first version")
    if validation.winner(run, [row]) is None:
        reason = row.reason or "the gate does not promote it on the verdict split"
        return First(row, None, reason, passed=False)
    try:
        package = registration.package(run, row)
    except VariantError as error:
        return First(row, None, str(error), passed=False)
    if tracker is None:
        return First(row, None, "nothing is registered without MLflow")
    version = tracker.holding(run.spec.name, package) or tracker.register(run, parent, package, row)
    return First(row, str(version.version), "it meets the SLA; the search went on")


@task(task_run_name="validate", **_POLICY)
def validate(
    run: Run, tracker: Tracker | None, parent: str, rows: Sequence[Row], first: First | None = None
) -> list[Row]:
    """The finalists, judged on the verdict split, and the winner packaged; where that fails, the next wins.

    And how high a load it holds, where the SLA has one. The `first` was judged before: it wins where it is
    registered, and no finalist does.
    """
    judged = validation.validate(run, finalists.finalists(run, rows), 0 if first is None else searching.EARLY)
    judged = registration.packaged(run, judged)
    judged = judged if first is None else first.among(run, judged)
    judged = loading.with_highest_load(run, judged, validation.winner(run, judged))
    _record(run, tracker, parent, judged)
    return judged


@task(task_run_name="sweep", **_POLICY)
def sweep(run: Run, judged: Sequence[Row], winner: Row | None) -> list[dict[str, Any]]:
    """The winner beside the strong baseline, over the batch sizes and lengths of the YAML."""
    return sweeping.sweep(run, judged, winner)


@task(task_run_name="serve", **_POLICY)
def tune_plan(run: Run, judged: Sequence[Row], winner: Row | None) -> dict[str, Any]:
    """The winner's serving plan, tuned for the SLA's load; winner and baseline through the server."""
    return serving_plans.tuned(run, judged, winner)


@task(task_run_name="register", **_POLICY)
def register(
    run: Run,
    tracker: Tracker | None,
    parent: str,
    winner: Row,
    serving: Mapping[str, Any] = serving_plans.NO_LOAD,
) -> dict[str, Any] | None:
    """The winner as a model version with its plan, or the champion's thresholds calibrated again; challenger,
    and champion where the pipeline promotes by itself and the server keeps the SLA's load.

    Where a person must approve, it ends with the request. Whoever follows is told of the version each time
    it is registered, also where the registry had it.
    """
    package = registration.made(run, winner)  # it was checked when it won
    if tracker is None:
        return None
    version = str(tracker.register(run, parent, package, winner).version)
    profile, backend = run.spec.target.profile, winner.recipe.backend.name
    told = {"config": str(run.config), "variant": winner.id, "run": run.id}
    events.emit("model.registered", run.spec.name, version, told, role="optimized")
    if serving["plan"] is not None:
        keep_plan(tracker, run.spec.name, version, backend, ServingPlan(**serving["plan"]))
    refused = serving["reason"] if serving["kept"] is False else None
    if profile is not None:
        refused = f"it was judged here, not on {profile.name}: `pareflow check` judges it there"
    thresholds = None
    if refused is None:
        new, tuned = Release(run.spec.name, version, package), serving["plan"] is not None
        thresholds = calibrate_again(run, tracker, new, backend, tuned)
    promotion.challenge(tracker, run, version, refused)
    if refused is not None:
        moved = promotion.Promotion(version, "challenger", refused)
    elif run.spec.promotion == "approval":
        moved = approval.ask(tracker, run, version, winner)
    elif run.spec.promotion == "manual":
        reason = "promotion is manual: `pareflow promote` makes it champion"
        moved = promotion.Promotion(version, "challenger", reason)
    else:
        moved = promotion.promote(tracker, run, version, winner)
    return {"name": run.spec.name, **dataclasses.asdict(moved), "thresholds": thresholds}


@task(task_run_name="compare with the champion", **_POLICY)
def compare_original(run: Run, tracker: Tracker, champion: str | None) -> dict[str, Any] | None:
    """What the new training itself won or lost against the version that was champion."""
    return retraining.beside_champion(tracker, run, champion)


@task(task_run_name="decide on {name}", **_POLICY)
def decide(
    name: str, run: Run | None, tracker: Tracker, decision: str, by: str, reason: str
) -> dict[str, Any]:
    """A person's word on the challenger that waits: promoted, if the gate agrees, or declined."""
    if decision == "reject":
        return approval.decline(tracker, name, by, reason)
    assert run is not None  # who approves has it judged
    return approval.approve(tracker, run, by, reason)


@task(task_run_name="explain", **_POLICY)
def contributions(run: Run, winner: Row | None, made: Sequence[Row]) -> list[dict[str, Any]]:
    """What each step of the winner gives, measured beside itself without it."""
    return ablation.contributions(run, winner, made)


@task(task_run_name="report", **_POLICY)
def record_outcome(
    run: Run, tracker: Tracker | None, parent: str, document: Mapping[str, Any], stopped: bool = False
) -> None:
    """The report and its documents, beside the run and in MLflow, where it is kept whether the search was
    `stopped`."""
    with run.store.lock(f"outcome-{run.id}"):  # two commands may be ending the same run
        page.write(document, Path(document["report"]))
        with writing(run.data_dir):
            replace(Path(document["report"]).with_name("run.json"), json.dumps(document, indent=1))
        if tracker is not None:
            tracker.finish(run, parent, document, stopped=stopped)


def _record(run: Run, tracker: Tracker | None, parent: str, rows: Sequence[Row]) -> None:
    if tracker is not None:
        for row in rows:
            tracker.variant(run, parent, row)
