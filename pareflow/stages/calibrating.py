"""The thresholds of a serving plan, calibrated on held-out samples for the versions that it serves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pareflow.errors import InputError
from pareflow.isolation import run_isolated
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.cascade import ConfidenceCascade
from pareflow.runtime.complexity_routing import ComplexityRouting
from pareflow.serving.calibrating import Budget
from pareflow.serving.executable import Release
from pareflow.serving.model import network
from pareflow.serving.plan import ServingPlan
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


def may_lose(plan: ServingPlan, budget: Budget) -> float:
    """The most of the metric that a plan may lose, once it is calibrated, beside what its version lost.

    It is the budget of what chooses tiers, and every false hit of its semantic caches.
    """
    policies = plan.chosen()
    chooses = any(isinstance(policy, (ConfidenceCascade, ComplexityRouting)) for policy in policies)
    false_hits = (policy.max_false_hits for policy in policies if isinstance(policy, SemanticCache))
    return round((budget.max_drop if chooses else 0.0) + sum(false_hits), 9)


def left_by(release: Release) -> float | None:
    """How much more of the metric a version may lose by the SLA that it was judged by, surely.

    None where that asks for no quality; 0 where it does of the worst slice, which no calibration looks at.
    """
    verdict = network(release.package).get("verdict") or {"checks": []}
    left = [_left(check) for check in verdict["checks"] if check["clause"] in _BEARS_ON]
    return max(0.0, round(min(left), 9)) if left else None  # floats: 0.03 - 0.02 is less than 0.01


_BEARS_ON = ("quality.max_drop", "quality.min", "quality.worst_slice_max_drop")
"""The clauses that a loss may break."""


def _left(check: Mapping[str, Any]) -> float:
    if check["clause"] == "quality.max_drop" and check["high"] is not None:
        return float(check["limit"] - check["high"])
    if check["clause"] == "quality.min" and check["low"] is not None:
        return float(check["low"] - check["limit"])
    return 0.0


def require_kept(release: Release, plan: ServingPlan, budget: Budget) -> None:
    """Raises: InputError where a version and its plan may lose more, together, than the SLA lets them."""
    left, loses = left_by(release), may_lose(plan, budget)
    if left is not None and loses > left:
        raise InputError(
            "a registered plan must keep the SLA of its version, by what both may lose together",
            f"the SLA leaves {left:.4g} of the metric to version {release.version} of {release.name}, "
            f"and the plan may lose {loses:.4g}",
            "Give a smaller --max-drop or `max_false_hits`; or write the plan with --to, and `serve` by it",
        )
