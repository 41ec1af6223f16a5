"""The thresholds of a serving plan, calibrated on held-out samples for the versions that it serves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pareflow.errors import InputError
from pareflow.isolation import run_isolated
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.cascade import ConfidenceCascade
from pareflow.runtime.complexity_routing import ComplexityRouting
from pareflow.runtime.routing import DeadlineRouting
from pareflow.serving.calibrating import Budget, as_json
from pareflow.serving.executable import Release
from pareflow.serving.model import network
from pareflow.serving.plan import ServingPlan
from pareflow.serving.standing import verdict_of_here
from pareflow.sla import SLA
from pareflow.stages.run import Run


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A plan with its thresholds, on how many samples, and per policy what was decided."""

    plan: ServingPlan
    samples: int
    found: list[dict[str, Any]]


def calibrate(
    run: Run,
    releases: Mapping[str, Release],
    plan: ServingPlan,
    budget: Budget,
    *,
    learn_scores: bool = False,
) -> Calibrated:
    """The plan for these versions: the main one, whose name is empty, and the plan's tiers by name.

    Raises: as `serving.calibrating.calibrated`; VariantError where a version does not run here.
    """
    told = {
        name: {"name": one.name, "version": one.version, "package": str(one.package)}
        for name, one in releases.items()
    }
    arguments = {
        "releases": told,
        "plan": plan.model_dump(mode="json"),
        "reference": run.spec.workload,
        "folder": str(run.folder),
        "metric": run.metric,
        "budget": asdict(budget),
        "learn_scores": learn_scores,
    }
    log = run.data_dir / "logs" / f"calibrate-{releases[''].package.name[:12]}.log"
    done = run_isolated("pareflow.serving.calibrating:calibrated", arguments, run.limits, log)
    return Calibrated(ServingPlan(**done["plan"]), done["samples"], done["found"])


def may_lose(plan: ServingPlan, budget: Budget) -> float | None:
    """The most of the metric that a plan may lose, once it is calibrated, beside what its version lost.

    It is the budget of what chooses tiers, and every false hit of its semantic caches. None where nothing
    bounds it: tiers that answer where time is short.
    """
    policies = plan.chosen()
    if plan.tiers and any(isinstance(policy, DeadlineRouting) for policy in policies):
        return None
    chooses = any(isinstance(policy, (ConfidenceCascade, ComplexityRouting)) for policy in policies)
    false_hits = (policy.max_false_hits for policy in policies if isinstance(policy, SemanticCache))
    return round((budget.max_drop if chooses else 0.0) + sum(false_hits), 9)


def again(run: Run, releases: Mapping[str, Release], plan: ServingPlan, budget: Budget) -> Calibrated:
    """A plan that was calibrated for other versions, calibrated by the same budget for these; scores that
    were learned are learned again, since those of others may have seen what is held out now.

    Raises: InputError where it may lose more than the SLA leaves; as `calibrate`.
    """
    require_kept(releases[""], plan, budget, run.spec.sla)
    policies = plan.chosen()
    learned = any(isinstance(policy, ComplexityRouting) and policy.scores for policy in policies)
    asked = [
        policy.model_copy(update={"scores": {}}) if isinstance(policy, ComplexityRouting) else policy
        for policy in policies
    ]
    described = plan.model_copy(update={"policies": tuple(map(as_json, asked))})
    return calibrate(run, releases, described, budget, learn_scores=learned)


def promised(plan: ServingPlan) -> Budget | None:
    """What all thresholds of a calibrated plan keep to, as was asked for; None where it has none."""
    policies = plan.chosen()
    shares = [
        policy.calibration
        for policy in policies
        if isinstance(policy, (ConfidenceCascade, ComplexityRouting)) and policy.calibration is not None
    ]
    if shares:
        error = sum(1 - share.confidence for share in shares)
        return Budget(sum(share.max_drop for share in shares), 1 - error)
    hits = [policy.calibration for policy in policies if isinstance(policy, SemanticCache)]
    sure = [record.confidence for record in hits if record is not None]
    return Budget(confidence=max(sure)) if sure else None


def left_by(release: Release, sla: SLA) -> float | None:
    """How much more of the metric a version may lose by the SLA, surely; None where that asks for no quality.

    By the bounds of its verdict: 0 where that is of another environment (law 8), or says nothing of a clause;
    and where the SLA bounds the worst slice, which no calibration looks at.
    """
    asked = {} if sla.quality is None else sla.quality.model_dump(exclude_none=True)
    bounds = _bounds(release.package)
    left = [
        _left(name, asked[name], bounds.get(f"quality.{name}", {})) for name in _BEARS_ON if name in asked
    ]
    return max(0.0, round(min(left), 9)) if left else None  # floats: 0.03 - 0.02 is less than 0.01


_BEARS_ON = ("max_drop", "min", "worst_slice_max_drop")
"""The limits that a loss may break."""


def _bounds(package: Path) -> dict[str, Mapping[str, Any]]:
    """The checks of a package's verdict by their clauses; none where it was not given in this environment."""
    verdict = verdict_of_here(network(package)) or {"checks": ()}
    return {check["clause"]: check for check in verdict["checks"]}


def _left(name: str, limit: float, check: Mapping[str, Any]) -> float:
    if name == "max_drop" and check.get("high") is not None:
        return float(limit - check["high"])
    if name == "min" and check.get("low") is not None:
        return float(check["low"] - limit)
    return 0.0


def require_kept(release: Release, plan: ServingPlan, budget: Budget, sla: SLA) -> None:
    """Raises: InputError where a version and its plan may lose more, together, than the SLA lets them."""
    left, loses = left_by(release, sla), may_lose(plan, budget)
    if left is not None and (loses is None or loses > left):
        loss = "any share of it: `deadline_routing` has no bound" if loses is None else f"{loses:.4g}"
        raise InputError(
            "a registered plan must keep the SLA of its version, by what both may lose together",
            f"the SLA leaves {left:.4g} of the metric to version {release.version} of {release.name}, by its "
            f"verdict of this environment, and the plan may lose {loss}",
            "Give a smaller --max-drop or `max_false_hits`; or write the plan with --to, and `serve` by it",
        )
