"""A package for elsewhere: an offline bundle, a Triton model repository, a KServe InferenceService."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pareflow.errors import InputError, TransientError
from pareflow.gate import Verdict
from pareflow.isolation import Limits, run_isolated
from pareflow.serving import archive, bundle, kserve, triton
from pareflow.serving.executable import Tensor
from pareflow.serving.model import verified
from pareflow.serving.output import new_folder
from pareflow.serving.plan import ServingPlan
from pareflow.stages import registration
from pareflow.stages.run import Row, Run
from pareflow.store import MANIFEST
from pareflow.variant import Recipe, Step, file_digest


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


def export_triton(package: Path, plan: ServingPlan, to: Path, logs: Path) -> dict[str, Any]:
    """Write a Triton model repository into the folder `to`; what it holds, and what of the plan it lacks.

    Raises: InputError where Triton cannot read the variant's files; as `new_folder`, for the model in `to`.
    """
    log = logs / f"triton-{package.name[:12]}.log"
    found = run_isolated("pareflow.serving.triton:describe", {"folder": str(package)}, Limits(), log)
    inputs, outputs = ([Tensor.from_json(one) for one in found[side]] for side in ("inputs", "outputs"))
    name = verified(package)["pipeline"]
    left_out = triton.write(package, plan, inputs, outputs, to)
    return {"to": str(to), "files": _files(to / name, to), "left_out": left_out}


def export_kserve(
    package: Path, plan: ServingPlan, to: Path, *, image: str, storage_uri: str, memory_mib: int
) -> dict[str, Any]:
    """Write an InferenceService, and beside it what its `storageUri` must hold; the files, and what of the
    plan the pod cannot do. Of sessions that the plan leaves open it has one.

    Raises: as `new_folder`.
    """
    document = verified(package)
    plan, left_out = _alone(plan)
    sessions = plan.sessions or 1  # left open, they would be as many as the node has cores for
    threads = int(Step.from_json(document["backend"]).settings.get("threads", 1))
    service = kserve.inference_service(
        document["pipeline"],
        image=image,
        storage_uri=storage_uri,
        cores=sessions * threads,
        memory_mib=memory_mib,
    )
    with new_folder(to) as made:
        shutil.copytree(package, made / "model", ignore=shutil.ignore_patterns(MANIFEST))
        plan.model_copy(update={"sessions": sessions}).write(made / "model" / kserve.PLAN_FILE)
        (made / "inferenceservice.yaml").write_text(yaml.safe_dump(service, sort_keys=False))
    return {"to": str(to), "files": _files(to, to), "left_out": left_out}


def _alone(plan: ServingPlan) -> tuple[ServingPlan, list[str]]:
    """The plan without what asks for other versions, which one package has not; and that, in words."""
    settings = ("calibration", "encoder", "tiers")
    bound = [one for one in plan.chosen() if any(getattr(one, name, None) for name in settings)]
    if not (bound or plan.tiers):
        return plan, []
    pairs = zip(plan.policies, plan.chosen(), strict=True)
    kept = {"tiers": {}, "policies": tuple(told for told, one in pairs if one not in bound)}
    left_out = [f"`{one.name}`" for one in bound] + [f"the tier `{name}`" for name in plan.tiers]
    words = "asks for registered versions, and the pod has one package"
    return plan.model_copy(update=kept), [f"{what} {words}" for what in left_out]


def _files(folder: Path, root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in folder.rglob("*") if path.is_file())


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
