"""The original that was trained anew beside the champion: what the training itself won or lost."""

from pathlib import Path
from typing import Any

from pareflow.errors import VariantError
from pareflow.gate import decided, drop_interval
from pareflow.stages.baseline import baseline
from pareflow.stages.building import evaluate
from pareflow.stages.promotion import compares_with_original, packaged_row
from pareflow.stages.run import Run
from pareflow.stages.screening import original_of


def original_against(run: Run, package: Path) -> dict[str, Any]:
    """How much quality the new original loses against the champion, on the verdict split that both share.

    `decision` is that of the SLA's `max_drop` on the whole interval, None where there is no such clause. It
    explains, and decides nothing: the variant that may be promoted is judged against the champion itself.
    Where the metric compares with the original itself, there is nothing to tell.
    Raises: InputError where the champion's package is damaged.
    """
    if compares_with_original(run):
        return {"decision": None, "reason": f"{run.metric} compares with the original: it cannot tell of two"}
    clause, confidence = run.spec.sla.quality, run.spec.sla.confidence
    limit = None if clause is None else clause.max_drop
    original = evaluate(run, original_of(baseline(run)), "verdict")
    try:
        champion = evaluate(run, packaged_row(run, package), "verdict")
    except VariantError as error:
        return {"decision": None, "reason": f"the champion does not run on this workload: {error.found}"}
    drop = drop_interval(champion.quality, original.quality, confidence)
    assert (
        original.quality is not None and champion.quality is not None and drop is not None
    )  # just evaluated
    decision = None if limit is None else decided(drop, limit, upper=True)
    bounds = [None if bound is None else round(bound, 6) for bound in (drop.low, drop.high)]
    words = f"it loses {drop.estimate:.4g} ({bounds[0]} to {bounds[1]}) of {run.metric} to the champion"
    verdicts = {
        "promote": f"{words}, at most {limit}",
        "reject": f"{words}, which is more than {limit}: the new training is worse",
        "inconclusive": f"{words}: whether that is more than {limit} cannot be told",
        None: words,
    }
    return {
        "metric": run.metric,
        "original": original.quality.value,
        "champion": champion.quality.value,
        "drop": {"estimate": drop.estimate, "low": drop.low, "high": drop.high},
        "decision": decision,
        "reason": verdicts[decision],
    }
