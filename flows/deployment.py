"""A challenger brought before live traffic: shadow → canary, step by step → promotion to all, or back."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.environment import api_key, set_environment

set_environment()  # before prefect is imported

from prefect import flow  # noqa: E402

from flows.progress import shown  # noqa: E402
from flows.rollout import Steps  # noqa: E402
from pareflow import collection, spec  # noqa: E402
from pareflow.errors import InputError  # noqa: E402
from pareflow.stages.deployment import Tolerance  # noqa: E402
from pareflow.stages.promotion import packaged_row  # noqa: E402
from pareflow.stages.run import Run  # noqa: E402
from pareflow.store import Store  # noqa: E402
from tasks import approval, flow_runs, pipelines, promotion  # noqa: E402
from tasks import deployment as rollouts  # noqa: E402
from tasks.deployment import Rollout, Step  # noqa: E402
from tasks.events import emit  # noqa: E402
from tasks.execution import Execution, of_the_flow  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402

DISAGREEMENT = 0.01
"""Tolerated where the pipeline's SLA says nothing of a drop."""
SWITCHED_S = 60.0
"""How long servers may take to follow a promotion."""


@flow(name="deployment", flow_run_name="{name}", persist_result=False, on_running=[flow_runs.claim])
def deployment(
    name: str,
    urls: list[str],
    data_dir: str = ".pareflow",
    config: str | None = None,
    shadow: float = Steps.shadow,
    canary: tuple[float, ...] = Steps.canary,
    minutes: float = Steps.minutes,
    disagreement: float | None = None,
    slowdown: float = Steps.slowdown,
) -> dict[str, Any]:
    """Bring the model's challenger before the traffic of the servers at `urls`; the document of what came."""
    steps = Steps(shadow, tuple(canary), minutes, disagreement, slowdown)
    path = None if config is None else Path(config)
    return run_deployment(name, urls, Path(data_dir), of_the_flow(), steps, path)


def run_deployment(
    name: str, urls: Sequence[str], data_dir: Path, execution: Execution, steps: Steps, config: Path | None
) -> dict[str, Any]:
    """The rollout by this execution. Raises: InputError, TransientError before anything has changed."""
    tracker = Tracker.open(data_dir)
    with rollouts.alone(tracker, name):
        rollout = rollouts.begin(tracker, name, urls, api_key())
        if rollout is None:
            return _without_traffic(tracker, name, data_dir, config)
        if left := promotion.left_behind(tracker, name, rollout.version):
            raise InputError(
                f"a version of {name} must not have been rolled back from to be rolled out",
                left,
                f"Train another; `pareflow promote {name}` makes it champion all the same",
            )
        traffics = steps.traffic(rollout.version)
        rollouts.servers_answer(rollout)
        described, path = pipelines.described(tracker, name, rollout.version, config)
        allowed = steps.disagreement
        if allowed is None:
            allowed = Run.open(described, path, data_dir).share_lost
        tolerance = Tolerance(DISAGREEMENT if allowed is None else allowed, slowdown=steps.slowdown)
        done = list[Step]()
        try:
            for traffic in traffics:
                shown.get().note(f"shadow {traffic.shadow:g}, canary {traffic.canary:g}")
                done.append(
                    execution.call(rollouts.watch, tracker, rollout, traffic, tolerance, 60 * steps.minutes)
                )
                shown.get().note(f"{done[-1].decision}: {done[-1].reason}")
                if done[-1].decision != "promote":
                    return _ended(rollout, done, None)
            rollouts.withdraw(tracker, name)  # nobody watches while it is judged
            moved = _promoted(tracker, name, rollout.version, data_dir, described, path)
            late = execution.call(rollouts.follow, rollout, SWITCHED_S) if _is_champion(moved) else []
            return _ended(rollout, done, {**moved, "behind": late})
        finally:
            rollouts.withdraw(tracker, name)


def _without_traffic(tracker: Tracker, name: str, data_dir: Path, config: Path | None) -> dict[str, Any]:
    """There is no champion to be compared with, or it is the challenger itself: the offline gate decides."""
    version = str(tracker.resolve(f"models:/{name}@challenger").version)
    described, path = pipelines.described(tracker, name, version, config)
    moved = _promoted(tracker, name, version, data_dir, described, path)
    return _ended(Rollout(name, version, "", ()), [], {**moved, "behind": []})


def _promoted(
    tracker: Tracker, name: str, version: str, data_dir: Path, described: spec.PipelineSpec, path: Path
) -> dict[str, Any]:
    """By the protocol of `tasks.promotion`: judged on the verdict split against the present champion; where
    the pipeline says so, a person is asked then.
    """
    store = Store(data_dir / "store")
    with collection.holding(store, f"deploy {name}"), tempfile.TemporaryDirectory() as into:
        run = Run.open(described, path, data_dir)
        row = packaged_row(run, promotion.as_registered(tracker, name, version, Path(into)))
        promote = approval.ask if described.promotion == "approval" else promotion.promote
        return asdict(promote(tracker, run, version, row))


def _ended(rollout: Rollout, done: Sequence[Step], moved: dict[str, Any] | None) -> dict[str, Any]:
    """The document, and an event of what came of it."""
    promoted = moved is not None and _is_champion(moved)
    reason = moved["reason"] if moved is not None else done[-1].reason
    judged = done[-1].decision if moved is None else "inconclusive" if moved["awaiting"] else "reject"
    decision = "promote" if promoted else judged
    document = {
        "name": rollout.name,
        "version": rollout.version,
        "champion": rollout.champion or None,
        "decision": decision,
        "reason": reason,
        "steps": [step.to_json() for step in done],
        "promotion": moved,
    }
    event = "deployed" if promoted else "rollout_ended"
    emit(event, rollout.name, rollout.version, {"reason": reason}, decision=decision)
    return document


def _is_champion(moved: dict[str, Any]) -> bool:
    return bool(moved["alias"] == "champion")
