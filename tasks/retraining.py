"""Whether there is anything to train anew, and what became of it beside the champion."""

import json
import tempfile
from pathlib import Path
from typing import Any

from pareflow.errors import InputError, TrackingError
from pareflow.stages import retraining
from pareflow.stages.run import Run
from tasks import approval
from tasks.promotion import against_tag, as_registered, left_behind, number
from tasks.tracking import DATA, RUN, WORKLOAD, Tracker


def news(tracker: Tracker, run: Run) -> dict[str, Any]:
    """What is new to the champion: `new` in words, or None and `why` where there is nothing to train on.

    The workload's digests tell: equal code, settings, data and seed give an equal network.
    """
    name = run.spec.name
    champion = tracker.alias(name, "champion")
    told: dict[str, Any] = {
        "champion": None if champion is None else str(champion.version),
        "data_digest": {"champion": None, "now": run.facts.data_digest},
        "new": "there is no champion",
        "why": None,
    }
    if champion is None:
        return told
    told["data_digest"]["champion"] = champion.tags.get(DATA)
    if tracker.stopped(run):  # what it had found may be champion by now
        return told | {"new": "its search was stopped, and goes on"}
    if champion.tags.get(WORKLOAD) == run.facts.digest:
        why = f"version {champion.version}, the champion, was trained on these data, by this code"
        return told | {"new": None, "why": why}
    known = _known_already(tracker, run, str(champion.version))
    if known is not None:
        return told | {"new": None, "why": known}
    new = "its data changed" if champion.tags.get(DATA) != run.facts.data_digest else "its workload changed"
    return told | {"new": new}


def beside_champion(tracker: Tracker, run: Run, champion: str | None) -> dict[str, Any] | None:
    """The new original against the version that was champion when it was trained; None where there was none.

    It only explains: where that version is damaged or gone, that is its reason.
    """
    if champion is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            package = as_registered(tracker, run.spec.name, champion, Path(folder))
            return retraining.original_against(run, package)
        except (InputError, TrackingError) as error:
            return {"decision": None, "reason": str(error)}


def _known_already(tracker: Tracker, run: Run, champion: str) -> str | None:
    """What this very run's version was told beside this very champion, where it was judged before."""
    version = number(tracker, run.spec.name, "challenger")
    if version is None:
        return None
    tags = tracker.version(run.spec.name, version).tags
    left = left_behind(tracker, run.spec.name, version)
    if tags.get(RUN) == run.id and left is not None:
        return f"{left}, and was trained on it"
    recorded = json.loads(tags.get(against_tag(run.environment.fingerprint), "{}"))
    if tags.get(RUN) != run.id or recorded.get("champion") != champion:
        return None
    asked = approval.requests(tracker, run.spec.name, version).get(run.environment.fingerprint[:12])
    if asked is not None and asked.stands(champion):
        return f"version {version} was trained on it: {approval.told(run.spec.name, version, asked).reason}"
    if recorded["decision"] == "promote":
        return None
    return f"version {version} was trained on it before: {recorded['reason']}"
