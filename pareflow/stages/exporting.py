"""The offline bundle of a package: one archive that runs where there is no pareflow and no network."""

import json
import tempfile
from pathlib import Path
from typing import Any

from pareflow.errors import InputError, TransientError
from pareflow.gate import Verdict
from pareflow.isolation import Limits, run_isolated
from pareflow.serving import archive, bundle
from pareflow.stages import registration
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, file_digest


def export(package: Path, to: Path, logs: Path) -> dict[str, Any]:
    """Write the archive `to` from a package, self-tested; what it holds.

    Raises: InputError where the package is damaged, its backend cannot go offline, or `to` cannot be written;
    as `bundle.assemble`.
    """
    archive.check_target(to)
    bundle.check_backend(package)
    log = logs / f"export-{package.name[:12]}.log"
    described = run_isolated("pareflow.serving.bundle:describe", {"folder": str(package)}, Limits(), log)
    with tempfile.TemporaryDirectory(prefix="pareflow-") as folder:
        made = Path(folder)
        about = bundle.assemble(package, described, made)
        archive.write(made, to, about["name"])
        files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
        pins = (made / "requirements.txt").read_text().split()
        licences = json.loads((made / "licences.json").read_text())
    return {
        "archive": str(to),
        "sha256": file_digest(to),
        "size_mib": to.stat().st_size / 2**20,
        **about,
        "requirements": pins,
        "licences": licences,
        "files": files,
    }


def winner_package(run: Run) -> Path:
    """The package of the last run's winner, from the store. Raises: InputError, TransientError."""
    path = run.output / "run.json"
    if not path.is_file():
        raise InputError(
            "an export needs a finished run", f"there is none at {path}", f"`pareflow optimize {run.config}`"
        )
    document = json.loads(path.read_text())
    row = next((row for row in document["variants"] if row["id"] == document["winner"]), None)
    if row is None or row["verdict"] is None:
        reason = (document["verdict"] or {"reason": "no variant could be judged"})["reason"]
        raise InputError("an export needs a winner", reason, "Relax the SLA, or export a registered version")
    if run.store.find(row["id"]) is None:
        raise TransientError(
            f"the artifact of {row['recipe']} must be in the store",
            "it is gone or damaged",
            f"`pareflow optimize {run.config}` makes it again",
        )
    winner = Row(
        Recipe.from_json(row["steps"]), row["role"], id=row["id"], verdict=Verdict.from_json(row["verdict"])
    )
    return registration.package(run, winner)
