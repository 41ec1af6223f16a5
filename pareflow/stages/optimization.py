"""One candidate: what it does on the search split, and how fast it is beside the strong baseline."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from pareflow.catalog import members
from pareflow.errors import (
    DoesNotFitError,
    EnvironmentUnfitError,
    KilledError,
    MissingExtraError,
    PareflowError,
    TimedOutError,
    TransientError,
    VariantError,
)
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.needs import Machine, lacking
from pareflow.intervals import speedup
from pareflow.measurement import Measurement
from pareflow.measuring.race import Race
from pareflow.stages import building, fitting
from pareflow.stages.baseline import SCREENING
from pareflow.stages.run import Row, Run, Status
from pareflow.stages.timing import measure
from pareflow.variant import Recipe

Work = Literal["preflight", "make", "time"]
"""What is done to a row."""


def make(run: Run, row: Row) -> Row:
    """The row built and evaluated on the search split; or failed, unavailable, with its reason.

    Raises: TransientError, StoreError, NodeError: the run's trouble, not the variant's.
    """
    absent = unrunnable(run, row.recipe)
    if absent:
        return _ended(row, "unavailable", absent)
    try:
        made = fitting.fitted(run, building.make(run, row))
    except PareflowError as error:
        return failed(row, error)
    try:
        fitting.check(made)
    except DoesNotFitError as error:
        return failed(made, error)
    return made


def preflight(run: Run, row: Row) -> Row:
    """The row as it is where its steps run on one batch of the data; else failed or unavailable, and why.

    Raises: TransientError, StoreError, NodeError.
    """
    absent = missing(row.recipe)  # it runs here, whatever the device runs
    if absent:
        return _ended(row, "unavailable", absent)
    try:
        building.preflight(run, row)
    except PareflowError as error:
        ended = failed(row, error)
        return dataclasses.replace(ended, reason=f"{ended.reason} (on one batch, for one pass)")
    return row


def time(run: Run, row: Row, baselines: Sequence[Row], needed: float | None = None) -> Row:
    """The row timed beside the strong baseline of its thread count; or failed, pruned, with its reason.

    Timing stops where it cannot be `needed` times as fast any more.
    """
    strong = strong_baseline(row, baselines)
    if row.status != "ok" or (row := begun(run, row, "time", strong)).status != "ok":
        return row
    try:
        once = dataclasses.replace(run, remeasure=False)
        row = dataclasses.replace(building.make(once, row), fit=row.fit)  # again only if it has gone since
        race = None if needed is None else Race(str(row.id), str(strong.id), needed)
        measured = _side_by_side(run, strong, row, race)
    except PareflowError as error:
        ended = failed(row, error)
        if _of_baseline(error, strong):
            ended = dataclasses.replace(ended, reason=f"beside it {strong.label} failed: {ended.reason}")
            return kept(run, ended, "time", strong)
        return kept(run, ended, "time")
    ours, theirs = measured[str(strong.id)], measured[str(row.id)]
    timed = dataclasses.replace(row, measurement=theirs, speedup=speedup(ours, theirs))
    if len(theirs.blocks_ms) == SCREENING.blocks:
        return timed
    return dataclasses.replace(timed, reason=f"no longer timed: it cannot be {needed:.3g} times as fast")


def _side_by_side(run: Run, strong: Row, row: Row, race: Race | None) -> dict[str, Measurement]:
    """The measurements of both; timed once more where the baseline failed, which is no fault of the row: but
    not where it took all of its limit of time, or the budget is used up."""
    try:
        return measure(run, [strong, row], SCREENING, race=race)
    except VariantError as error:
        hung = isinstance(error, TimedOutError)
        if hung or not _of_baseline(error, strong) or run.late(f"time again {row.label}"):
            raise
    return measure(run, [strong, row], SCREENING, race=race)


def _of_baseline(error: PareflowError, strong: Row) -> bool:
    return isinstance(error, VariantError) and error.variant == strong.id


def begun(run: Run, row: Row, work: Work, beside: Row | None = None) -> Row:
    """The row, where the work on it begins; else pruned, since the budget was used up, or failed, as in this
    run before.

    Asked on the flow's machine, which keeps the answers. A preflight takes little, and is not pruned.
    """
    if work != "preflight" and run.late(f"{work} {row.label}"):
        return _ended(row, "pruned", f"the budget of {run.spec.budget.minutes:g} minutes was used up")
    formers = (run.clock.stopped(_attempt(run, row, work, one)) for one in (None, beside))
    former = next(filter(None, formers), None)
    return row if former is None else _ended(row, "failed", former)


def kept(run: Run, row: Row, work: Work, beside: Row | None = None) -> Row:
    """The row as the work left it. What failed is kept, so that a run that goes on decides the same and fails
    of nothing twice.

    What was killed from outside is tried once more: somebody may have meant another, or the kernel killed it
    for what others held. Not kept is what is made and does not fit the device: that is seen at once. What is
    unavailable may have been installed since.
    """
    reason = row.reason if row.status == "failed" and not INTERRUPTED.is_set() else None
    if reason is not None and not reason.startswith(DoesNotFitError.__name__):
        attempt = _attempt(run, row, work, beside)
        first = KilledError.__name__ in reason and run.clock.stopped(_killed(attempt)) is None
        run.stop(_killed(attempt) if first else attempt, reason)
    return row


def killed(run: Run, row: Row, work: Work) -> bool:
    """Whether the work on the row was killed from outside, in this run before."""
    return run.clock.stopped(_killed(_attempt(run, row, work))) is not None


def _killed(attempt: str) -> str:
    return f"{attempt}, killed"


def _attempt(run: Run, row: Row, work: Work, beside: Row | None = None) -> str:
    """Names a piece of work by all that it depends on, code included: what was mended is tried again.

    What failed of the row `beside` it is named by that too.
    """
    made = f"{work} {row.label}, {building.variant_of(row.recipe, run.facts.digest).id}"
    return made if beside is None else f"{made} beside {beside.id}"


def strong_baseline(row: Row, baselines: Sequence[Row]) -> Row:
    """ONNX Runtime fp32 at full graph optimization with the same threads; the first where none has them."""
    strong = [baseline for baseline in baselines if baseline.role == "baseline"]
    return next((baseline for baseline in strong if baseline.threads == row.threads), strong[0])


def unrunnable(run: Run, recipe: Recipe) -> str | None:
    """Why a recipe is not tried: the target's device does not run it, or it cannot run here; or None."""
    return fitting.not_for(run, recipe) or missing(recipe)


def placed(run: Run, row: Row, machines: Sequence[Machine], where: str) -> Row:
    """The row, unavailable where none of the machines has what building it needs; `where` names them."""
    absent = lacking(building.needs_of(run, row.recipe), machines, where)
    return row if absent is None else _ended(row, "unavailable", absent)


def missing(recipe: Recipe) -> str | None:
    """Why a recipe cannot run here, or None."""
    reasons = (reason for member in members(recipe) for reason in (member.unavailable(), member.unfit()))
    return next((reason for reason in reasons if reason), None)


def failed(row: Row, error: PareflowError) -> Row:
    """A failed row (law 7), or an unavailable one where this machine lacks what it runs on; but what is the
    run's trouble and not the variant's goes on up."""
    if isinstance(error, MissingExtraError) or type(error) is EnvironmentUnfitError:
        return _ended(row, "unavailable", f"{error.must}, but {error.found}")
    if isinstance(error, TransientError) or error.exit_code == 4:
        raise error
    return _ended(row, "failed", f"{type(error).__name__}: {error.must}, but {error.found}")


def _ended(row: Row, status: Status, reason: str) -> Row:
    return dataclasses.replace(row, status=status, reason=reason)
