"""What `pareflow list` lists, as rows."""

import json
from pathlib import Path
from typing import Any

from pareflow.catalog import BACKENDS, POLICIES, TECHNIQUES, WORKLOADS, Member
from pareflow.errors import InputError


def rows(what: str, data_dir: Path) -> list[dict[str, Any]]:
    """Members of a family, finished runs, or registered versions."""
    families: dict[str, dict[str, type[Member]]] = {
        "techniques": TECHNIQUES,
        "backends": BACKENDS,
        "policies": POLICIES,
        "workloads": WORKLOADS,
    }
    if what in families:
        return [member(cls) for cls in families[what].values()]
    if what == "runs":
        documents = (json.loads(p.read_text()) for p in sorted((data_dir / "runs").glob("*/run.json")))
        return [{key: d[key] for key in ("pipeline", "run_id", "winner", "report")} for d in documents]
    if what == "versions":
        from tasks.tracking import Tracker

        return Tracker.open(data_dir).registered()
    known = (*families, "runs", "versions", "audit")
    raise InputError(
        f"`pareflow list` must name one of {', '.join(known)}", f"got '{what}'", "Name one of them"
    )


def member(cls: type[Member]) -> dict[str, Any]:
    """A technique, backend, policy or workload: what it is, its settings, and why it is not there."""
    return {
        "name": cls.name,
        "what": (cls.__doc__ or "").strip().splitlines()[0],
        "settings": {key: field.description for key, field in cls.model_fields.items()},
        "unavailable": cls.unavailable(),
    }
