"""Make one variant and evaluate its quality: each in a process of its own, each once."""

import dataclasses
import json
from typing import Any

from pareflow.catalog import members
from pareflow.hardware.device import device_lock
from pareflow.hardware.needs import Needs
from pareflow.measurement import Quality
from pareflow.measuring.quality import BATCH, find_metric
from pareflow.model.technique import Technique
from pareflow.model.training import TrainedTechnique
from pareflow.search.training_space import briefly
from pareflow.stages import attempts
from pareflow.stages.jobs import artifact_size_mib, feeds_key, links, original
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Variant, digest, file_digest, sources
from pareflow.workload import SplitName


def variant_of(recipe: Recipe, workload_digest: str) -> Variant:
    """The variant that a recipe makes of the original, by its lineage alone: nothing is made."""
    return links(recipe, workload_digest)[-1]


def is_made(run: Run, row: Row) -> bool:
    """Whether the store holds what the row makes."""
    return run.store.holds(variant_of(row.recipe, run.facts.digest).id)


def make(run: Run, row: Row) -> Row:
    """The row built, and evaluated on the search split: one process for both.

    What it was made from is used too, and what its maker would go on from: other rows begin with it.
    Raises: VariantError, InputError.
    """
    made_from = links(row.recipe, run.facts.digest)
    variant = made_from[-1]
    store = run.store
    for link in made_from:
        store.use(link.id)
    named = dataclasses.replace(row, id=variant.id)
    evaluation = _asked(run, named, "search")

    def build() -> None:
        for member in members(row.recipe):
            member.prepare()
        arguments = {"recipe": row.recipe.to_json(), "evaluation": evaluation}
        with (
            device_lock(run.spec.target.device, exclusive=_measures(row.recipe)),
            attempts.timed(run, row.recipe, variant.id) as spent_s,
        ):
            limited = {**arguments, "limit_s": run.limits.seconds - spent_s}
            run.job("make", limited, f"make-{variant.id[:12]}", spent_s=spent_s)

    artifact = run.made(variant.id, build)
    attempts.recover(run, variant.id)
    size_mib, build_s = artifact_size_mib(artifact), attempts.seconds(run, variant.id)
    return _evaluated(run, dataclasses.replace(named, size_mib=size_mib, build_s=build_s), evaluation)


def _measures(recipe: Recipe) -> bool:
    """Whether timings decide what building makes: then nothing else may run beside it."""
    return any(isinstance(member, Technique) and member.measures for member in members(recipe))


def needs_of(run: Run, recipe: Recipe) -> Needs:
    """What building and evaluating a recipe takes: the memory that the pipeline allows one variant, else what
    the workload took by itself; as many threads as any variant; and the GPUs that its steps compute on: what
    trains takes one if there is one."""
    found = members(recipe)
    threads = max(int(recipe.backend.settings.get("threads", 1)), *run.threads)
    gpus = max(member.gpus() for member in found)
    trains = any(isinstance(member, TrainedTechnique) for member in found)
    memory_mib = run.spec.budget.memory_mib or run.facts.memory_mib
    return Needs(threads, gpus, memory_mib, gpu_if_any=trains)


def preflight(run: Run, row: Row) -> None:
    """Run each step of a recipe on one batch, for one pass, and answer one; kept in the store where it went
    well.

    Raises: what it died of, as `make` would.
    """
    brief = briefly(row.recipe)
    key = digest("preflight", variant_of(brief, run.facts.digest).id)
    if run.store.find(key) is None:
        for member in members(row.recipe):
            member.prepare()
        with device_lock(run.spec.target.device, exclusive=False):
            run.job("preflight", {"recipe": brief.to_json(), "key": key}, f"preflight-{key[:12]}")


def evaluate(run: Run, row: Row, split: SplitName) -> Row:
    """The built row with its quality on a split. Raises: VariantError, MetricError, WorkloadError."""
    return _evaluated(run, row, _asked(run, row, split))


def _asked(run: Run, row: Row, split: SplitName) -> dict[str, Any]:
    """What the job that evaluates is told; an evaluation that is to be done again is forgotten."""
    evaluation = _evaluation(run, row, split)
    return {**evaluation, "key": run.own_key(evaluation["key"])}


def _evaluated(run: Run, row: Row, evaluation: dict[str, Any]) -> Row:
    """The row with its quality, found out where the store lacks it."""

    def find_out() -> None:
        with device_lock(run.spec.target.device, exclusive=False):
            run.job("evaluate", evaluation, f"evaluate-{evaluation['split']}-{str(row.id)[:12]}")

    entry = run.made(evaluation["key"], find_out)
    found = Quality.from_json(json.loads((entry / "quality.json").read_text()))
    return dataclasses.replace(row, quality=found)


def feed(run: Run, row: Row) -> None:
    """The measuring inputs of a row that has its own processing, made where the store lacks them.

    Raises: VariantError where that processing does not run here.
    """
    batch_size = run.spec.sla.batch_size
    if row.processing is None:
        return
    if run.store.find(feeds_key(run.facts.digest, batch_size, own=row.processing)) is None:
        with device_lock(run.spec.target.device, exclusive=False):
            arguments = {"batch_size": batch_size, "own": row.processing}
            run.job("feeds", arguments, f"feeds-{str(row.id)[:12]}")


def _evaluation(run: Run, row: Row, split: SplitName) -> dict[str, Any]:
    """The arguments of the job that evaluates a row; `key` names all that the result depends on.

    The workload decides too: its slices, and its original, which metrics of fidelity compare with.
    """
    asked = {
        "variant": row.id,
        "backend": row.recipe.backend.to_json(),
        "split": split,
        "metric": run.metric,
        "batch_size": judged_batch_size(run, row.recipe) or BATCH,
    }
    instrument = [*sources("measuring/quality.py"), file_digest(find_metric(run.metric, run.folder))]
    if row.processing is not None:
        instrument += sources("stages/processing.py")
    about = (run.facts.digest, run.facts.data_digest, run.environment.fingerprint)
    return {
        **asked,
        "own": row.processing,
        "key": digest("quality", asked, row.processing, about, instrument),
    }


def judged_batch_size(run: Run, recipe: Recipe) -> int | None:
    """The samples in a batch that quality is judged in, where answers depend on their batch: the SLA's.

    None where they do not.
    """
    given = _original_mixes_samples(run)
    mixes = given or any(member.mixes_samples for member in members(recipe))
    return run.spec.sla.batch_size if mixes else None


def first_answers(run: Run) -> None:
    """What the original's first answers tell, found out where the store lacks it. Raises: as the job."""
    answers = {"key": first_answers_key(run), "tried": tried_metric_key(run)}
    if None in map(run.store.find, answers.values()):
        run.job("first_answers", {**answers, "metric": run.metric}, f"first-answers-{run.id}")


def first_answers_key(run: Run) -> str:
    """Names what they tell of the original."""
    return digest("first answers", run.facts.digest, *sources("measuring/quality.py"))


def tried_metric_key(run: Run) -> str:
    """Stands for the metric's having taken them."""
    return digest("tried metric", first_answers_key(run), file_digest(find_metric(run.metric, run.folder)))


def _original_mixes_samples(run: Run) -> bool:
    """As one may that reads the padding, or an ONNX file that was given quantized."""
    key = first_answers_key(run)
    entry = run.store.find(key)
    if entry is None:
        if run.store.find(original(run.facts.digest).id) is None:
            return False
        entry = run.made(key, lambda: first_answers(run))
    return bool(json.loads((entry / "answers.json").read_text())["mixes_samples"])
