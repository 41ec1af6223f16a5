"""Judge a winner against the model that serves now, measured side by side in this environment."""

import shutil
from dataclasses import replace
from pathlib import Path

from pareflow.gate import Evidence, Verdict, judge
from pareflow.serving.model import verified
from pareflow.stages.baseline import train
from pareflow.stages.building import evaluate
from pareflow.stages.jobs import artifact_size_mib
from pareflow.stages.loading import under_load
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure
from pareflow.stages.validation import final
from pareflow.variant import Recipe, digest


def against_champion(run: Run, winner: Row, package: Path, *, retrained: bool = False) -> Verdict:
    """The verdict on the winner with the champion in the place of the original and of the baseline.

    `package` is the champion's, as the registry gave it back; it is kept in the store to be measured. By the
    objective a winner that was `retrained` may be worse by the pipeline's margin, any other not at all.
    Raises: InputError where the package is damaged; VariantError where the champion does not run here.
    """
    train(run)  # a collection of the store may have removed what both are asked
    champion = packaged_row(run, package)
    if winner.quality is None or winner.quality.split != "verdict":
        winner = evaluate(run, winner, "verdict")
    champion = evaluate(run, champion, "verdict")
    protocol = final(run, 1, 1)
    measured = measure(run, [champion, winner], protocol)
    if winner.served is None:
        winner = under_load(run, replace(winner, measurement=measured[str(winner.id)]), protocol)
    evidence = Evidence(
        variant=str(winner.id),
        objective=run.spec.objective,
        quality=winner.quality,
        original=champion.quality,
        measurement=measured[str(winner.id)],
        baseline=measured[str(champion.id)],
        served=winner.served,
    )
    margin = run.spec.retraining.objective_margin if retrained else 0.0
    return judge(run.spec.sla, evidence, least_gain=1 - margin)


def packaged_row(run: Run, package: Path) -> Row:
    """A registered model as a row of this run, its artifact copied into the store."""
    document = verified(package)
    artifact = {name: sha for name, sha in document["files"].items() if name.startswith("artifact/")}
    key = digest("packaged", artifact, document["backend"])

    def write(into: Path) -> None:
        for file in (package / "artifact").iterdir():
            shutil.copy2(file, into / file.name)

    entry = run.store.ensure(key, write)
    recipe = Recipe.from_json(document["recipe"])
    return Row(recipe, "candidate", id=key, size_mib=artifact_size_mib(entry))
