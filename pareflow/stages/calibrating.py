"""The thresholds of a serving plan, calibrated on held-out samples for the versions that it serves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pareflow.isolation import run_isolated
from pareflow.serving.calibrating import Budget
from pareflow.serving.executable import Release
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
