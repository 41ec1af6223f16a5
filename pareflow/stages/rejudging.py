"""Measure a registered version again here, and say whether its verdict still holds (law 8)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pareflow.errors import VariantError
from pareflow.gate import Verdict
from pareflow.measuring.environment import of_verdict
from pareflow.serving.model import verified
from pareflow.stages import registration
from pareflow.stages.baseline import baseline
from pareflow.stages.building import feed
from pareflow.stages.fitting import fitted
from pareflow.stages.optimization import failed
from pareflow.stages.outcome import variant
from pareflow.stages.promotion import packaged_row
from pareflow.stages.run import Row, Run
from pareflow.stages.validation import validate
from pareflow.store import MANIFEST
from pareflow.variant import digest


def rejudge(run: Run, package: Path) -> dict[str, Any]:
    """The version's verdict then and now, what differs in the environment, and whether it holds.

    It holds where the gate promotes it here too, on the verdict split and beside this machine's baselines.
    Raises: InputError where the package is damaged.
    """
    lineage = verified(package)
    was = Verdict.from_json(lineage["verdict"])
    row = _judged(run, package)
    now, where = row.verdict, of_verdict(run.environment, row.recipe.backend.name)
    return {
        "pipeline": run.spec.name,
        "recipe": row.label,
        "environment_changes": _changes(lineage["environment"], where.to_json()),
        "was": was.to_json(),
        "now": None if now is None else now.to_json(),
        "reason": row.reason or _words(now),
        "measured": variant(row),
        "holds": now is not None and now.decision == "promote",
    }


def _judged(run: Run, package: Path) -> Row:
    """The version as a row with its verdict here; or failed, where it does not run as it did."""
    row = packaged_row(run, package)
    try:
        registration.check(package, run)
    except VariantError as error:
        return failed(row, error)
    baselines = baseline(run)
    itself = held(run, row, baselines)
    if itself is not None:
        silent = [replace(one, reason=None) for one in baselines]  # what they tell is no reason of a verdict
        return next(one for one in validate(run, silent) if one.id == itself.id)
    try:
        feed(run, row)
    except VariantError as error:
        return failed(row, error)
    *_, judged = validate(run, [*baselines, fitted(run, row)])
    return judged


def held(run: Run, packaged: Row, baselines: Sequence[Row]) -> Row | None:
    """The baseline that a package holds, or None: the same files on the same backend, fed as this run feeds.

    Beside itself as another variant it would have to be better than itself.
    """
    if packaged.processing is not None:
        return None
    found = _executable(run, packaged)
    return next((one for one in baselines if _executable(run, one) == found), None)


def _executable(run: Run, row: Row) -> tuple[str, str]:
    entry = run.held(str(row.id), f"the artifact of {row.label}")
    return (entry / MANIFEST).read_text(), digest(row.recipe.backend.to_json())


def _words(verdict: Verdict | None) -> str:
    if verdict is None:
        return "it could not be judged"
    return verdict.missed or "every clause is met here too"


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What differs between two environments, as `{name: {then, now}}`."""
    told = {*then, *now} - {"fingerprint"}
    differing = {name for name in told if then.get(name) != now.get(name)}
    return {name: {"then": then.get(name), "now": now.get(name)} for name in sorted(differing)}
