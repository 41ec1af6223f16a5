"""The thresholds of the champion's plan, calibrated again for the version that is to follow it: what one
version earned is not another's."""

from pareflow.errors import InputError, TrackingError, TransientError, VariantError
from pareflow.serving.executable import Release
from pareflow.stages import calibrating
from pareflow.stages.run import Run
from tasks.serving import has_plans, keep_plan, plan_of, releases_of, source
from tasks.tracking import Tracker


def calibrate_again(run: Run, tracker: Tracker, new: Release, backend: str, tuned: bool) -> str | None:
    """What became of the champion's thresholds for the `new` version, in words; None where it has none.

    The plan is kept with the version, for this environment, before any server hears of it. One that was
    `tuned` for the SLA's load stays as it was tried. Where something is in the way, as where the champion
    cannot be brought, the version has no thresholds, and the full model answers.
    """
    champion = tracker.alias(new.name, "champion")
    if champion is None or str(champion.version) == new.version or not has_plans(champion):
        return None
    of = f"the thresholds of version {champion.version}'s plan"
    try:
        plan = source(f"models:/{new.name}@champion", run.data_dir).current().plan
        budget = None if plan is None else calibrating.promised(plan)
        if plan is None or budget is None:
            return None
        if tuned:
            return f"{of} were not calibrated again: the plan that was tuned for the SLA's load has none"
        if plan_of(tracker.version(new.name, new.version), backend) is not None:
            return f"{of} were calibrated again before"
        done = calibrating.again(run, releases_of(new, plan, run.data_dir), plan, budget)
    except (InputError, TrackingError, TransientError, VariantError) as error:
        return f"{of} were not calibrated again: {error}"
    keep_plan(tracker, new.name, new.version, backend, done.plan)
    return f"{of} were calibrated again, on {done.samples} samples"
