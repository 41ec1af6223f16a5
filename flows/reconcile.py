"""The safety net: mark and resume what died, remove what was left behind, start what was not heard of."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from flows.environment import set_environment

set_environment()  # before prefect is imported

from prefect import flow  # noqa: E402
from rich.console import Console  # noqa: E402

from flows.triggers import RULES  # noqa: E402
from pareflow.errors import InputError, PareflowError, TransientError  # noqa: E402
from tasks import flow_runs, locking, reconciling, retention  # noqa: E402
from tasks import rules as rules_files  # noqa: E402
from tasks.looks import Looks  # noqa: E402
from tasks.ownership import WINDOW_S, beat_s  # noqa: E402
from tasks.reconciling import BEATS, Look  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402
from tasks.triggering import missed  # noqa: E402

CONFIRM_BEATS = 3
"""So many heartbeats long a suspect is watched before it is declared dead."""
P = ParamSpec("P")
R = TypeVar("R")


@flow(name="reconcile", persist_result=False, on_running=[flow_runs.claim])
def reconcile(
    rules: str | None = str(RULES), data_dir: str = ".pareflow", window_s: float = WINDOW_S
) -> dict[str, Any]:
    """Mend what a killed process, a lost event or a full disk left; what was found and done.

    Raises: TransientError at the end, when the rest is done, where something could not be looked at.
    """
    document = run_reconcile(None if rules is None else Path(rules), Path(data_dir), window_s)
    if document["problems"]:
        raise TransientError(
            "everything must be looked at", "; ".join(document["problems"]), "The next run tries again"
        )
    return document


def run_reconcile(rules: Path | None, data_dir: Path, window_s: float = WINDOW_S) -> dict[str, Any]:
    """The same as a plain function; `problems` says what could not be looked at, and why.

    What needs Prefect is None where no server is named, and `started` where there are no rules. Where another
    one is at it already, the document says so in `skipped`, and no more is done.
    Raises: InputError for a window in which a healthy run may be silent.
    """
    _must_be_wide(window_s)
    named = None if rules is None else rules_files.read(rules)
    each = _Each()
    leftovers = each(reconciling.leftovers, data_dir)  # first: the rest may need the room on the disk
    with ExitStack() as held:
        try:
            # Not a slot of Prefect's, which a dead one would keep: this is what gives those back.
            held.enter_context(locking.exclusive(data_dir / "locks", "reconcile", wait=False))
        except locking.HeldError as error:
            return {"skipped": str(error), "leftovers": leftovers, "problems": each.problems}
        except PareflowError as error:  # two at once do less harm than none
            each.problems.append(str(error))
        document = _looked(each, named, data_dir, window_s)
    return {**document, "leftovers": leftovers, "problems": each.problems}


def _looked(
    each: "_Each", named: rules_files.Rules | None, data_dir: Path, window_s: float
) -> dict[str, Any]:
    """What was found and done beside leftovers."""
    tracker = Tracker.open(data_dir)
    look = Look(Looks(data_dir / "looks.db"), time.time(), window_s, CONFIRM_BEATS * beat_s())
    owners = each(reconciling.dead_owners, look, tracker)
    judged = owners is not None and flow_runs.server_named()  # MLflow's word counts in Prefect's runs, too
    dead, alive = owners or (None, set[str]())
    document = {
        "dead_owners": dead,
        "dead_flow_runs": each(reconciling.dead_flow_runs, look, alive) if judged else None,
        "never_began": each(reconciling.never_began, look) if judged else None,
        "resumed": each(reconciling.resumed, look) if judged else None,
        "freed_slots": each(reconciling.leaked_slots, look) if judged else None,
        "pending": each(reconciling.pending_challengers, tracker, look.now),
        "expired": each(reconciling.expired_approvals, tracker),
        "silent_monitors": each(reconciling.silent_monitors, look, tracker),
        "outdated": each(retention.outdated, tracker, data_dir),
    }
    handled = each(missed, tracker, named) if named is not None and flow_runs.server_named() else None
    each.problems += [one.reason for one in handled or () if one.run_id is None]
    started = None if handled is None else [asdict(one) for one in handled if one.new]
    return {**document, "started": started}


class _Each:
    """Calls one part after another: the trouble of one is not that of the others."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, part: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R | None:
        """What it returns; None where it could not, and its problem is noted."""
        try:
            return part(*arguments, **named)
        except (PareflowError, OSError) as error:  # a full disk is told once
            self.problems += [] if str(error) in self.problems else [str(error)]
            return None


def _must_be_wide(window_s: float) -> None:
    least = BEATS * beat_s()
    if window_s < least:
        raise InputError(
            f"the window must be of {BEATS} heartbeats, {least} s, or more",
            f"it is {window_s:g} s",
            "Raise it: a healthy run would be declared dead",
        )


def reconciled(document: Mapping[str, Any], console: Console) -> None:
    """What was found and done, a line for each."""
    for what, found in document.items():
        count = len(found) if isinstance(found, list) else found
        said = "not looked at" if count is None else count
        line = f"{what.replace('_', ' ')}: {said}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        for one in found if isinstance(found, list) else ():
            told = one if isinstance(one, str) else ", ".join(f"{key} {value}" for key, value in one.items())
            console.print(f"  {told}", markup=False, highlight=False, soft_wrap=True)
