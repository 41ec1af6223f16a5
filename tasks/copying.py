"""A version carried to another registry: dev → staging → production, in plain files, checked on arrival.

MLflow's own `copy_model_version` stays within one registry, and copies a reference; here the files go, so
that the copy outlives its source. What it takes along is its lineage. Verdicts, approvals and plans belong to
environments and stay behind: the copy arrives as a challenger, and becomes champion where it is judged again
(law 8).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pareflow.errors import InputError, TrackingError
from pareflow.stages.registration import opened
from tasks import audit
from tasks.promotion import Promotion, as_registered, number
from tasks.registries import without_secrets
from tasks.tracking import CONFIG, CONTENT, DATA, FORMAT_TAG, RUN, VARIANT, WORKLOAD, Tracker, content_of

ORIGIN = "pareflow.origin"
"""Where a copy came from: the registry's address and the version there."""
LINEAGE = (
    CONTENT, FORMAT_TAG, VARIANT, WORKLOAD, CONFIG, RUN, DATA,
    "pareflow.recipe", "pareflow.seed", "pareflow.environment",
)  # fmt: skip


def copy(
    tracker: Tracker, uri: str, to: str, data_dir: Path, *, by: str | None = None, reason: str = ""
) -> dict[str, Any]:
    """A registered version (`models:/NAME@ALIAS`) made challenger in the registry at the address `to`.

    Copied again, it is the same version there. Raises: InputError where it is not what was registered;
    TrackingError where something else came back from there; TransientError, VariantError.
    """
    destination = Tracker.at(to, data_dir)
    if destination.registry_uri == tracker.registry_uri:
        raise InputError("a copy must go to another registry", "it is the same", "Name another with --to")
    source = tracker.resolve(uri)
    name, number_here = source.name, str(source.version)
    origin = f"{without_secrets(tracker.registry_uri)} models:/{name}/{number_here}"
    tags = {key: source.tags[key] for key in LINEAGE if key in source.tags} | {ORIGIN: origin}
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        package = as_registered(tracker, name, number_here, Path(ours))
        there = str(destination.add(name, package, tags).version)
        _check(destination, name, there, tags, Path(theirs), data_dir / "logs")
    address = f"{without_secrets(to)} models:/{name}/{there}"
    why = reason or f"copied from version {number_here}"
    move = audit.Move(name, "copied", number_here, by or audit.who(), why, before=origin, after=address)
    with (
        destination.moving(name),
        audit.recorded(tracker, move),
        audit.recorded(destination, _arriving(move, there, number(destination, name, "challenger"))),
    ):
        destination.set_alias(name, "challenger", there)
    told = f"it is what version {number_here} is here; it becomes champion where it is judged there"
    return {
        "name": name,
        "registry": without_secrets(to),
        **asdict(Promotion(there, "challenger", told)),
    }


def _arriving(move: audit.Move, there: str, challenger: str | None) -> audit.Move:
    """The same move, as the destination's record has it."""
    reason = f"{move.reason} of {move.before}"
    return audit.Move(move.model, "copied", there, move.by, reason, before=challenger, after=there)


def _check(
    tracker: Tracker, name: str, version: str, tags: Mapping[str, str], into: Path, logs: Path
) -> None:
    """READY proves nothing: the copy as it comes back is the same, opens, and repeats its golden outputs."""
    package = tracker.download(name, version, into)
    if content_of(package, tags) != tags[CONTENT]:
        raise TrackingError(
            f"the copy must come back from {without_secrets(tracker.uri)} as it was sent",
            f"version {version} of {name} there gives another digest",
            f"Delete version {version} there, mend its artifact store, and copy again",
        )
    opened(package, logs / f"copy-{tags[CONTENT][:12]}.log")
