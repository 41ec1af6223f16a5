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
from pareflow import collection  # noqa: E402
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
        traffics = steps.traffic(rollout.version)
        run = _opened(tracker, name, rollout.version, data_dir, config)
        rollouts.servers_answer(rollout)
        allowed = run.share_lost if steps.disagreement is None else steps.disagreement
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
            moved = _promoted(tracker, run, rollout.version)
            late = execution.call(rollouts.follow, rollout, SWITCHED_S) if _is_champion(moved) else []
            return _ended(rollout, done, {**moved, "behind": late})
        finally:
            rollouts.withdraw(tracker, name)


def _without_traffic(tracker: Tracker, name: str, data_dir: Path, config: Path | None) -> dict[str, Any]:
    """There is no champion to be compared with, or it is the challenger itself: the offline gate decides."""
    version = str(tracker.resolve(f"models:/{name}@challenger").version)
    run = _opened(tracker, name, version, data_dir, config)
    moved = _promoted(tracker, run, version)
    return _ended(Rollout(name, version, "", ()), [], {**moved, "behind": []})


def _opened(tracker: Tracker, name: str, version: str, data_dir: Path, config: Path | None) -> Run:
    """The run that judges the version. Raises: InputError where no run may promote that by itself."""
    described, path = pipelines.described(tracker, name, version, config)
    run = Run.open(described, path, data_dir)
    held = promotion.held_back(tracker, name, version, run.environment.fingerprint)
    if held and promotion.number(tracker, name, "champion") != version:
        raise InputError(
            f"a version of {name} must not be held back to be rolled out",
            held,
            f"Train another; `pareflow promote {name}` makes it champion all the same",
        )
    return run


def _promoted(tracker: Tracker, opened: Run, version: str) -> dict[str, Any]:
    """By the protocol of `tasks.promotion`: judged on the verdict split against the present champion; where
    the pipeline says so, a person is asked then.
    """
    name, store = opened.spec.name, Store(opened.data_dir / "store")
    with collection.holding(store, f"deploy {name}"), tempfile.TemporaryDirectory() as into:
        run = Run.open(opened.spec, opened.config, opened.data_dir)  # the traffic's time is not its budget's
        row = packaged_row(run, promotion.as_registered(tracker, name, version, Path(into)))
        promote = approval.ask if run.spec.promotion == "approval" else promotion.promote
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
