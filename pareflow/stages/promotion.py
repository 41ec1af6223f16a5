"""Judge a winner against the model that serves now, measured side by side in this environment."""

import shutil
from dataclasses import replace
from pathlib import Path

from pareflow.gate import QUALITY_HARM, Evidence, Verdict, judge
from pareflow.measurement import Measurement
from pareflow.measuring.quality import Metric
from pareflow.serving.model import network
from pareflow.stages import processing
from pareflow.stages.baseline import train
from pareflow.stages.building import evaluate, feed
from pareflow.stages.fitting import fitted
from pareflow.stages.jobs import artifact_size_mib
from pareflow.stages.loading import under_load
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure
from pareflow.stages.validation import LOOKS, extended, final, last, needs_time
from pareflow.variant import Recipe, digest

_DROPS = ("quality.max_drop", "quality.worst_slice_max_drop", QUALITY_HARM)
"""The clauses that compare the quality of two models."""


def against_champion(run: Run, winner: Row, package: Path, *, retrained: bool = False) -> Verdict:
    """The verdict on the winner with the champion in the place of the original and of the baseline.

    `package` is the champion's, as the registry gave it back; it is kept in the store to be measured. By the
    objective a winner that was `retrained` may be worse by the pipeline's margin, any other not at all.
    A champion of another workload is fed and read by the processing that it was packaged with, as it serves.
    Raises: InputError where the package is damaged; VariantError where the champion, or its processing, does
    not run here.
    """
    train(run)  # a collection of the store may have removed what both are asked
    champion = packaged_row(run, package)
    if winner.quality is None or winner.quality.split != "verdict":
        winner = evaluate(run, winner, "verdict")
    incomparable = retrained and compares_with_original(run)
    if not incomparable:
        champion = evaluate(run, champion, "verdict")
    for row in (champion, winner):
        feed(run, row)
    margin = run.spec.retraining.objective_margin if retrained else 0.0
    verdict = _side_by_side(run, champion, winner, 1 - margin)
    return _without_drops(run, verdict) if incomparable else verdict


def _side_by_side(run: Run, champion: Row, winner: Row, least_gain: float) -> Verdict:
    """The verdict on a pair, looked at again with more samples as finalists are.

    Requests of a load that the winner has answered already stay as its first look; all others are new ones.
    """
    measured: dict[str, Measurement] = {}
    fit = winner.fit or fitted(run, winner).fit
    for look in range(1, LOOKS + 1):
        protocol = final(run, 1, look)
        measured = extended(measured, measure(run, [champion, winner], protocol))
        winner = replace(winner, measurement=measured[str(winner.id)])
        if winner.served is None or look > 1:
            winner = under_load(run, winner, replace(protocol, seed=LOOKS + look))
        evidence = Evidence(
            variant=str(winner.id),
            objective=run.spec.objective,
            quality=winner.quality,
            original=champion.quality,
            measurement=winner.measurement,
            baseline=measured[str(champion.id)],
            served=winner.served,
            fit=fit,
        )
        verdict = judge(run.spec.sla, evidence, look=look, least_gain=least_gain)
        beside = f"{str(winner.id)[:12]} beside {str(champion.id)[:12]}"
        if not needs_time(verdict) or last(run, look, beside):
            break
    return verdict


def compares_with_original(run: Run) -> bool:
    """Whether the metric compares with the original's answers: it then says nothing of two originals."""
    return Metric.named(run.metric, run.folder).against is not None


def _without_drops(run: Run, verdict: Verdict) -> Verdict:
    """The verdict, saying why it has no interval for drops: the challenger would win by construction."""
    reason = f"{run.metric} compares both with the challenger's own original, so that it cannot tell"
    checks = [replace(check, reason=reason) if check.clause in _DROPS else check for check in verdict.checks]
    return replace(verdict, checks=tuple(checks))


def packaged_row(run: Run, package: Path) -> Row:
    """A registered model as a row of this run, its artifact copied into the store.

    Its processing too, where it was packaged with another workload than this run's: the same workload has the
    same, which its digest says. Raises: InputError where the package is damaged, or of another kind.
    """
    document = network(package)
    artifact = {name: sha for name, sha in document["files"].items() if name.startswith("artifact/")}
    key = digest("packaged", artifact, document["backend"], processing.key_of(document))

    def write(into: Path) -> None:
        for file in (package / "artifact").iterdir():
            shutil.copy2(file, into / file.name)

    entry = run.store.ensure(key, write)
    recipe = Recipe.from_json(document["recipe"])
    same = document.get("workload_digest") == run.facts.digest
    own = None if same else processing.keep(run.store, package, document)
    return Row(recipe, "candidate", id=key, size_mib=artifact_size_mib(entry), processing=own)
