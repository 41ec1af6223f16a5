"""The package that is registered: plain files that load without torch, with their lineage and verdict."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pareflow.catalog import BACKENDS, installed_version
from pareflow.errors import VariantError
from pareflow.isolation import Limits, run_isolated
from pareflow.measuring.environment import of_verdict
from pareflow.serving import model
from pareflow.stages import validation
from pareflow.stages.building import judged_batch_size
from pareflow.stages.optimization import failed
from pareflow.stages.run import Row, Run
from pareflow.variant import digest, sources


def packaged(run: Run, judged: Sequence[Row]) -> list[Row]:
    """The judged rows, of which the winner is packaged: one that cannot be is a failed row (law 7), and the
    next that passed wins.

    Raises: VariantError where that is a baseline.
    """
    rows = list(judged)
    while (best := validation.winner(run, rows)) is not None and best.role != "original":
        try:
            package(run, best)
            break
        except VariantError as error:
            if best.role != "candidate":
                raise
            lost = failed(dataclasses.replace(best, verdict=None), error)
            rows = [lost if row.id == best.id else row for row in rows]
    return rows


def package(run: Run, winner: Row) -> Path:
    """The package of the winner, in the store, opened and checked in a process of its own.

    Raises: VariantError if it does not repeat what it answered when it was packaged.
    """
    entry = made(run, winner)
    check(entry, run)
    return entry


def made(run: Run, winner: Row) -> Path:
    """The same, unchecked where it was there. Raises: VariantError."""
    assert winner.verdict is not None  # only judged rows win
    code, needed = sources("serving/model.py"), requirements(run, winner)
    batch = judged_batch_size(run, winner.recipe)
    where = of_verdict(run.environment, winner.recipe.backend.name)
    judged = (where.fingerprint, winner.verdict.to_json())
    key = digest("package", winner.id, run.facts.digest, judged, needed, batch, *code)
    lineage = {
        "pipeline": run.spec.name,
        "run": run.id,
        "variant": winner.id,
        "recipe": winner.recipe.to_json(),
        "data_digest": run.facts.data_digest,
        "workload_digest": run.facts.digest,
        "seed": run.facts.seed,
        "environment": {**where.to_json(), "fingerprint": where.fingerprint},
        "verdict": winner.verdict.to_json(),
        "requirements": needed,
        "judged_batch_size": batch,
    }
    arguments = {"key": key, "variant": winner.id, "lineage": lineage}
    return run.made(key, lambda: run.job("package", arguments, f"package-{str(winner.id)[:12]}"))


def check(package: Path, run: Run) -> dict[str, Any]:
    """Open a package elsewhere in a process of its own, and compare its golden outputs; what ran."""
    return opened(package, run.data_dir / "logs" / f"check-{package.name[:12]}.log", run.limits)


def opened(package: Path, log: Path, limits: Limits | None = None) -> dict[str, Any]:
    """The same, within other limits than a run's."""
    arguments = {"folder": str(package)}
    ran: dict[str, Any] = run_isolated("pareflow.serving.model:check", arguments, limits or Limits(), log)
    return ran


def requirements(run: Run, winner: Row) -> list[str]:
    """What a clean environment must hold to run the package, pinned to what ran here."""
    runtime = BACKENDS[winner.recipe.backend.name].requires
    names = ("numpy", "psutil", "pydantic", *runtime, *run.facts.serving_requires)
    return [f"{name}=={installed_version(name)}" for name in dict.fromkeys(names)]


def content_digest(package: Path, form: int) -> str:
    """Names a package by what it runs, whatever its verdict says: equal models have equal digests.

    `form` is the format of the registered version's tags: in format 1 the files alone name it.
    """
    document = model.verified(package)
    files = {name: sha256 for name, sha256 in document["files"].items() if name != "golden.json"}
    if form == 1:
        return digest(files)
    missing = [model.MISSING] if document.get(model.MISSING) else []
    return digest(files, [document.get(name) for name in ("backend", "workload", "samples")], *missing)


def golden(package: Path) -> dict[str, Any]:
    """The golden samples, outputs and predictions."""
    document: dict[str, Any] = json.loads((package / "golden.json").read_text())
    return document
