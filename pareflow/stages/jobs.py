"""The child side of the stages: what runs in a process of its own. Arguments and results are JSON."""

import itertools
import json
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import pareflow  # noqa: F401  (fills the catalog)
from pareflow import graph_file, network
from pareflow.catalog import TECHNIQUES, Member, find, installed_version, members
from pareflow.comparison import TOLERANCE
from pareflow.compiler.backend import Backend, backend_of
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import EnvironmentUnfitError, NodeError, TransientError, WorkloadError
from pareflow.hardware.counters import counted
from pareflow.measuring import arena, breakdown, operators
from pareflow.measuring.contestant import of_each_shape, peak_memory_mib
from pareflow.measuring.graph_report import graph_report
from pareflow.measuring.network_facts import network_facts
from pareflow.measuring.quality import (
    BATCH,
    Answers,
    Metric,
    check_metric,
    check_targets,
    commonest,
    evaluate_quality,
    mixes_samples,
    predict,
    quality_of,
    slice_rows,
)
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.remote_store import opened
from pareflow.serving import halves
from pareflow.serving.executable import seconds
from pareflow.serving.model import MISSING, as_json, holds_missing, kind_of, write_manifest
from pareflow.stages import processing
from pareflow.store import MANIFEST, Store
from pareflow.variant import Recipe, Step, Variant, digest
from pareflow.workload import SPLITS, Arrays, LoadedWorkload, Samples, SplitName, code_files, load

log = logging.getLogger(__name__)

GOLDEN = 8
GOLDEN_NUMBERS = 2**18
"""Samples that a package must repeat its answers to wherever it is opened: fewer where inputs and outputs are
more numbers than so many, which take 5 MB as JSON; but two, which show sizes that vary."""

PLAIN: tuple[Form, ...] = ("torch", "onnx")
"""The forms that become an ONNX graph as they are."""

PREFLIGHT = 64
"""Samples of each split that a recipe is tried on before hours are spent on it."""

TOGETHER = 32
"""Samples that a network answers together where it is only to be known about how long it takes."""

FEEDS, VARIED = 32, 512
"""Batches of real inputs that a measurement cycles through: more where they differ in size, for what takes
long may be rare then, and quantiles are those of these inputs."""
VARIED_MIB = 64
"""Of which no more are taken once they are this large."""

SPLIT_FEEDS = 4
"""Batches of real inputs that the halves of a split network are measured with."""


def describe(
    reference: Mapping[str, Any], folder: str, metric: str | None, lengths: Sequence[int] = ()
) -> dict[str, Any]:
    """What `WorkloadFacts` holds; checks the splits, and that metric, lengths and distributions exist."""
    workload = load(reference, Path(folder))
    _check_installed(workload.definition.serving_requires)
    named = Metric.named(metric or workload.definition.metric, Path(folder))
    with _users_code("`at_length()` must give a workload"):
        for length in lengths:
            workload.definition.at_length(length)
    kind_of(workload.split("calibration").samples)  # else the winner alone would tell
    with _users_code("`preprocess()` must give named arrays"):
        example = workload.example(1)
        tokens = all(array.dtype.kind == "i" for array in example.values())
        arena.storable(example)
        varied = differ(list(workload.feeds("search", 1, FEEDS)))
    with _users_code("`check()` must find nothing, or raise a WorkloadError"):
        workload.definition.check(example)
    with _users_code("`check_labels()` must find nothing, or raise a WorkloadError"):
        check_targets(named, workload)
    with _users_code("`slices()` must give parts of a split"):
        slices = slice_rows(named, workload, "search")
    with _users_code("`students()` must give networks by name"):
        students = sorted(workload.definition.students())
    return {
        "digest": workload.digest,
        "data_digest": workload.data_digest,
        "sizes": {name: len(getattr(workload.splits, name)) for name in SPLITS},
        "metric": workload.definition.metric,
        "scale": named.scale,
        "higher_is_better": named.higher_is_better,
        "commonest": commonest(named, workload),
        "sliced": bool(slices),
        "seed": workload.definition.seed,
        "serving_requires": list(workload.definition.serving_requires),
        "tokens": tokens,
        "varied": varied,
        "memory_mib": round(peak_memory_mib()),
        "students": students,
    }


def train(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    named: str | None = None,
    threads: int | None = None,
) -> None:
    """The original: train it (or take it as it comes), and store it.

    `named` is the digest that another process gave the workload; training takes so many `threads`, whatever
    the data are loaded with. Raises: WorkloadError.
    """
    workload, store = _loaded(reference, folder, root)
    if named not in (None, workload.digest):
        raise _unlike("here it has another digest than where the run began")
    variant = original(workload.digest)

    def write(into: Path) -> None:
        definition = workload.definition
        must = "`network()` and `train()` must give a network that answers"
        with _users_code(must):
            made = definition.network()
            form = network.form_of_network(made)
            if form == "torch":
                _take(threads)
                made = _trained(made, workload)
        network.save(made, form, into)  # a full disk is no fault of theirs
        with _users_code(must):
            network.check_outputs(network.runner(into)(workload.example(2)), samples=2)

    store.ensure(variant.id, write)


def answering(reference: Mapping[str, Any], folder: str, root: str, threads: int) -> float:
    """Milliseconds that the network takes for a sample of many at once, as it is made, before any training;
    a torch module on so many `threads`.

    Raises: WorkloadError.
    """
    workload, _ = _loaded(reference, folder, root)
    with _users_code("`network()` must give a network that answers"), tempfile.TemporaryDirectory() as into:
        made = workload.definition.network()
        form = network.form_of_network(made)
        if form == "torch":
            from pareflow import torch_network

            _take(threads)
            made = torch_network.as_stored(made, list(workload.example(1)))
        network.save(made, form, Path(into))
        run, feeds = network.runner(Path(into)), workload.example(TOGETHER)
        return 1000 * seconds(lambda: run(feeds)) / TOGETHER


def _trained(made: Any, workload: LoadedWorkload) -> Any:
    """A torch network, trained, as the store keeps it. Raises: WorkloadError, before training if it can."""
    from pareflow import torch_network

    inputs = list(workload.example(1))
    torch_network.check(made, inputs)
    trained = workload.definition.train(made, workload.split("train"))
    return torch_network.as_stored(trained, inputs)


def _take(threads: int | None) -> None:
    """Let torch compute on so many threads from here on; None leaves it as it is."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def first_answers(
    reference: Mapping[str, Any], folder: str, root: str, key: str, metric: str, tried: str
) -> None:
    """What the original's first answers tell: whether they depend on those beside them. That it answers the
    verdict split, and that the metric takes this, is kept as `tried`, and nothing else of it.

    Raises: MetricError, WorkloadError, BadOutputError.
    """
    workload, store = _loaded(reference, folder, root)
    source = _original(workload, store)
    run, form = network.runner(source), network.form_of(source)
    few = replace(workload, splits=workload.splits.first(BATCH))

    def write_tried(into: Path) -> None:
        check_metric(run, workload, metric)
        (into / "tried.json").write_text(json.dumps(metric))

    def write(into: Path) -> None:
        if form == "onnx":
            mixed = graph_file.mixes_samples(source / network.FILES["onnx"])
            tolerance = network.tolerance_of(source)
        else:
            mixed, tolerance = False, TOLERANCE
        mixed = mixed or mixes_samples(run, few, tolerance)
        (into / "answers.json").write_text(json.dumps({"mixes_samples": mixed}))

    store.ensure(tried, write_tried)
    store.ensure(key, write)


def _check_installed(distributions: Sequence[str]) -> None:
    """Raises: WorkloadError where one is not, or by another name: requirements name its version."""
    lacking = [name for name in distributions if installed_version(name) is None]
    if lacking:
        raise WorkloadError(
            "`serving_requires` must name distributions that are installed",
            f"{', '.join(lacking)} is not",
            "Install it, or give the name that `pip list` shows, which may differ from what is imported",
        )


def _original(workload: LoadedWorkload, store: Store) -> Path:
    """The original in the store. Raises: WorkloadError."""
    entry = store.find(original(workload.digest).id)
    if entry is None:
        raise _unlike("the store has no original of the digest that it has here")
    return entry


def _unlike(found: str) -> WorkloadError:
    return WorkloadError(
        "a workload must be the same in every process: its code, data and weights name what is made of it",
        found,
        "Seed what `data()` draws at random, sort what comes from a set or a folder, change nothing while "
        "a run goes on",
    )


@contextmanager
def _users_code(must: str) -> Iterator[None]:
    """Whatever the workload's own code raises is a WorkloadError, unless it says what is missing here."""
    try:
        yield
    except (WorkloadError, EnvironmentUnfitError, TransientError):
        raise
    except Exception as error:
        found = f"it raised {type(error).__name__}: {error}"
        raise WorkloadError(must, found, "Mend the workload; the log holds the stack trace") from error


def feeds(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    batch_size: int,
    length: int | None = None,
    own: str | None = None,
) -> None:
    """Real inputs of the search split for contestants to answer, all of one length where one is given.

    They are made by the processing that the store keeps as `own`, where it is given.
    """
    workload, store = _loaded(reference, folder, root)
    if own is not None:
        workload = processing.processed(workload, _kept(store, own))
    if length is not None:
        workload = replace(workload, definition=workload.definition.at_length(length))

    def write(into: Path) -> None:
        batches = workload.feeds("search", batch_size, VARIED * batch_size)
        found = list(_enough(b for b in batches if len(next(iter(b.values()))) == batch_size))
        arena.write_feeds(found or [workload.example(batch_size)], into / "feeds.npz")

    store.ensure(feeds_key(workload.digest, batch_size, length, own), write)


def _enough(batches: Iterator[Arrays]) -> Iterator[Arrays]:
    """As many of the batches as a measurement needs."""
    first = list(itertools.islice(batches, FEEDS))
    yield from first
    if not differ(first):
        return
    size = _bytes(first)
    for batch in itertools.islice(batches, VARIED - FEEDS):
        size += _bytes([batch])
        if size > VARIED_MIB * 2**20:
            return
        yield batch


def differ(batches: Sequence[Arrays]) -> bool:
    """Whether inputs differ in size."""
    return len(of_each_shape(batches)) > 1


def _bytes(batches: Sequence[Arrays]) -> int:
    return sum(array.nbytes for batch in batches for array in batch.values())


def calibration_inputs(reference: Mapping[str, Any], folder: str, root: str, limit: int) -> None:
    """What the network takes for each sample of the calibration split, at most `limit`: for monitoring."""
    workload, store = _loaded(reference, folder, root)

    def write(into: Path) -> None:
        arena.write_feeds(list(workload.feeds("calibration", 1, limit)), into / "feeds.npz")

    store.ensure(calibration_key(workload.digest, limit), write)


def takes(
    reference: Mapping[str, Any], folder: str, root: str, key: str, steps: Sequence[Mapping[str, Any]]
) -> None:
    """What each of these steps takes of the original; None where its technique does not tell."""
    workload, store = _loaded(reference, folder, root)
    source = _original(workload, store)

    def write(into: Path) -> None:
        given = network.load(network.form_of(source), source)
        found = [_taken(Step.from_json(step), given, workload) for step in steps]
        (into / "takes.json").write_text(json.dumps(found))

    store.ensure(key, write)


def _taken(step: Step, given: Any, workload: LoadedWorkload) -> Any:
    """What a step takes of a network of its form; None too where it would fail, which a row will tell."""
    technique = find(TECHNIQUES, step, "technique")
    assert isinstance(technique, Technique)
    if technique.unavailable() is not None:
        return None
    try:
        return technique.takes(given, workload)
    except Exception:  # what nobody foresaw of one technique must not lose what all others take
        log.warning("nothing tells what %s takes", step.name, exc_info=True)
        return None


def build(
    reference: Mapping[str, Any], folder: str, root: str, recipe: list[Any], limit_s: float | None = None
) -> None:
    """Make a variant, link by link, each from the store where it is there already.

    What trains stops as soon as it sees that it will not end within `limit_s`.
    """
    workload, store = _loaded(reference, folder, root)
    _built(Recipe.from_json(recipe), replace(workload, limit_s=limit_s), store)


def preflight(reference: Mapping[str, Any], folder: str, root: str, recipe: list[Any], key: str) -> None:
    """Run each step of a recipe on a few samples of each split, one pass each, and answer a few.

    What it makes is thrown away; the entry `key` stands for its having gone well.
    """
    workload, store = _loaded(reference, folder, root)
    few = replace(workload, splits=workload.splits.first(PREFLIGHT))
    made = Recipe.from_json(recipe)
    name, trained = original(workload.digest).id, _original(workload, store)
    with tempfile.TemporaryDirectory() as scratch:
        aside = Store(Path(scratch))
        aside.bring(name, trained)
        artifact = _built(made, few, aside)
        backend = backend_of(made.backend)
        network.check_outputs(backend.load(artifact).run(workload.example(2)), samples=2)

    def write(into: Path) -> None:
        (into / "preflight.json").write_text(json.dumps(made.to_json()))

    store.ensure(key, write)


def _built(made: Recipe, workload: LoadedWorkload, store: Store) -> Path:
    """The artifact of a recipe in a store."""
    *_, (source, variant) = _changed(made, workload, store)
    backend = backend_of(made.backend)
    source, variant = _in_form(backend.form, source, variant, workload, store)
    variant = _next(variant, backend)
    compiled_from = source
    return store.ensure(variant.id, lambda into: backend.compile(compiled_from, into))


def _changed(made: Recipe, workload: LoadedWorkload, store: Store) -> list[tuple[Path, Variant]]:
    """The original, and the network after each technique of a recipe, each made where it is not there."""
    variant, source = original(workload.digest), _original(workload, store)
    links = [(source, variant)]
    for step in made.techniques:
        technique = find(TECHNIQUES, step, "technique")
        assert isinstance(technique, Technique)
        source, variant = _in_form(technique.form, source, variant, workload, store)
        variant = _next(variant, technique)
        scratch = store.scratch(variant.id)
        with_places = replace(workload, scratch=scratch, shared=store.ensure)
        source = store.ensure(variant.id, _applying(technique, source, with_places))
        shutil.rmtree(scratch, ignore_errors=True)  # it is finished
        links.append((source, variant))
    return links


def facts(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    key: str,
    recipe: list[Any],
    batch_size: int,
    size_mib: float,
) -> None:
    """What one request of a variant costs, from the ONNX graph of its network.

    Where the executable's numbers are not that graph's (a backend that chooses the precision, a network that
    was changed in a later form), they are counted as the narrowest that they could be.
    """
    workload, store = _loaded(reference, folder, root)
    made = Recipe.from_json(recipe)
    backend = backend_of(made.backend)

    def write(into: Path) -> None:
        links = _changed(made, workload, store)
        source, variant = next(link for link in reversed(links) if network.form_of(link[0]) in PLAIN)
        graph, _ = _in_form("onnx", source, variant, workload, store)
        found = network_facts(network.load("onnx", graph), workload.example(batch_size))
        chooses = backend.form not in PLAIN or "precision" in type(backend).model_fields
        if chooses or source != links[-1][0]:
            found = found.narrowest(size_mib)
        (into / "facts.json").write_text(json.dumps(asdict(found)))

    store.ensure(key, write)


def make(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    recipe: list[Any],
    evaluation: Mapping[str, Any],
    limit_s: float,
) -> None:
    """Build a variant and evaluate it, in one process.

    Raises: NodeError where another variant was made than the flow's machine expects.
    """
    build(reference, folder, root, recipe, limit_s)
    if not opened(Path(root)).holds(evaluation["variant"]):
        raise NodeError(
            "the workload, its data and pareflow must be the same on every machine that builds",
            f"`{platform.node()}` makes other variants of them",
            "Copy the pipeline's folder there and install the same versions, or leave the machine out",
        )
    evaluate(reference, folder, root, **evaluation)


def evaluate(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    variant: str,
    backend: Mapping[str, Any],
    split: SplitName,
    metric: str,
    batch_size: int,
    key: str,
    own: str | None = None,
) -> None:
    """A variant's quality on the search split, or, for finalists, on the verdict split.

    Metrics of fidelity compare with the original's answers, which are kept for the next variant. Inputs and
    predictions are made by the processing that the store keeps as `own`, where it is given.
    """
    workload, store = _loaded(reference, folder, root)
    opened = workload.for_validation() if split == "verdict" else workload
    processed = None if own is None else processing.processed(opened, _kept(store, own))
    artifact = _kept(store, variant)
    member = backend_of(Step.from_json(backend))

    def write(into: Path) -> None:
        compared = _original_answers(opened, split, metric, store, batch_size)
        session = member.load(artifact)
        if processed is None:
            found = evaluate_quality(session, opened, split, variant, metric, compared, batch_size)
        else:
            outputs = Metric.named(metric, opened.definition.folder).compares_outputs
            answers = processing.answers(session.run, opened, processed, split, batch_size, outputs)
            found = quality_of(answers, opened, split, variant, metric, compared)
        (into / "quality.json").write_text(json.dumps(found.to_json()))

    store.ensure(key, write)


def _kept(store: Store, key: str) -> Path:
    """What an earlier job or stage put into the store."""
    entry = store.find(key)
    assert entry is not None  # it was put there before
    return entry


def _original_answers(
    workload: LoadedWorkload, split: SplitName, metric: str, store: Store, batch_size: int
) -> Answers | None:
    """What the original answers, where the metric compares with it."""
    named = Metric.named(metric, workload.definition.folder)
    if named.against is None:
        return None
    source, outputs = _original(workload, store), named.compares_outputs

    def write(into: Path) -> None:
        found = predict(network.runner(source), workload, split, batch_size, outputs=outputs)
        arrays = arena.storable({"predictions": found.predictions, "outputs": found.outputs})
        np.savez(into / "answers.npz", **arrays)  # type: ignore[arg-type]

    key = digest("answers", workload.digest, split, batch_size, outputs)
    with np.load(store.ensure(key, write) / "answers.npz") as stored:
        return Answers(stored["predictions"], stored["outputs"])


def profile(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    key: str,
    variant: str,
    backend: Mapping[str, Any],
    batch_size: int,
) -> None:
    """The request's breakdown on one variant, and what the processor counts and takes while it infers the
    example whose work `trace` counts."""
    workload, store = _loaded(reference, folder, root)

    def write(into: Path) -> None:
        artifact = store.find(variant)
        assert artifact is not None  # the baseline stage made it
        member = backend_of(Step.from_json(backend))
        session, example = member.load(artifact), workload.example(batch_size)
        found = {
            "stages": breakdown.breakdown(session, workload, batch_size),
            "counters": counted(lambda: session.run(example), breakdown.REQUESTS),
            "example_ms": breakdown.inference_ms(session, example),
        }
        (into / "stages.json").write_text(json.dumps(found))

    store.ensure(key, write)


def trace(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    key: str,
    runtime: str,
    variant: str,
    batch_size: int,
    threads: int,
) -> None:
    """What one runtime's profiler says of a variant; see `operators.profiled`."""
    workload, store = _loaded(reference, folder, root)

    def write(into: Path) -> None:
        source = store.find(variant)
        assert source is not None  # the baseline stage made it
        found = operators.profiled(runtime, source, workload.example(batch_size), threads)
        (into / "operators.json").write_text(json.dumps(found))

    store.ensure(key, write)


def graph(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    key: str,
    variant: str,
    batch_size: int,
    threads: int,
) -> None:
    """What graph optimization makes of the strong baseline's graph."""
    workload, store = _loaded(reference, folder, root)

    def write(into: Path) -> None:
        source = store.find(variant)
        assert source is not None  # the baseline stage made it
        found = graph_report(source, OnnxRuntime(threads=threads), workload.example(batch_size))
        (into / "graph.json").write_text(json.dumps(found.to_json()))

    store.ensure(key, write)


def package(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    key: str,
    variant: str,
    lineage: Mapping[str, Any],
) -> None:
    """The folder that is registered: see `pareflow/serving/model.py` for its files."""
    workload, store = _loaded(reference, folder, root)
    artifact = store.find(variant)
    assert artifact is not None  # it was judged
    backend = Recipe.from_json(lineage["recipe"]).backend

    def write(into: Path) -> None:
        shutil.copytree(artifact, into / "artifact", ignore=shutil.ignore_patterns(MANIFEST))
        (into / "workload").mkdir()
        packed = workload.definition.pack(into / "workload")
        if packed.name == "file":
            path = Path(folder) / packed.settings["path"]
            for name, source in code_files(path.parent).items():
                (into / "workload" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, into / "workload" / name)
            packed = Step("file", {**packed.settings, "path": path.name})
        golden = _golden(workload, backend, artifact)
        (into / "golden.json").write_text(json.dumps(golden))
        samples = workload.split("calibration").samples
        document = {
            **lineage,
            "backend": backend.to_json(),
            "workload": packed.to_json(),
            "samples": kind_of(samples),
            **({MISSING: True} if holds_missing(samples) else {}),
        }
        write_manifest(into, document)

    store.ensure(key, write)


def _golden(workload: LoadedWorkload, backend: Step, artifact: Path) -> dict[str, Any]:
    """A few calibration samples, and what the artifact answers to them."""
    session, split = backend_of(backend).load(artifact), workload.split("calibration")

    def answered(count: int) -> tuple[Samples, Arrays, Arrays]:
        samples = split.take(np.arange(count)).samples
        feeds = workload.definition.preprocess(samples)
        return samples, feeds, session.run(feeds)

    _, *one = answered(1)
    numbers = max(1, sum(array.size for arrays in one for array in arrays.values()))
    samples, _, outputs = answered(min(GOLDEN, len(split), max(2, GOLDEN_NUMBERS // numbers)))
    return {
        "samples": as_json(samples),
        "outputs": {name: array.tolist() for name, array in outputs.items()},
        "predictions": workload.definition.predicted(outputs).tolist(),
    }


_LOADED: dict[str, LoadedWorkload] = {}


def _loaded(reference: Mapping[str, Any], folder: str, root: str) -> tuple[LoadedWorkload, Store]:
    """The workload, loaded once per process, and the store."""
    key = digest(reference, folder)
    if key not in _LOADED:
        _LOADED[key] = load(reference, Path(folder))
    return _LOADED[key], opened(Path(root))


def original(workload_digest: str) -> Variant:
    """The variant that a workload with this digest trains."""
    return Variant.original(workload_digest, Step("original"))


def links(recipe: Recipe, workload_digest: str) -> list[Variant]:
    """The original, and what a recipe makes of it step by step, by lineage alone: nothing is made."""
    variants = [original(workload_digest)]
    for member in members(recipe):
        variants.append(_next(variants[-1], member))
    return variants


def _next(variant: Variant, member: Member) -> Variant:
    """What a member makes of a variant. Of what networks are converted for, the name depends on the converter
    too: once an exporter is mended, all of that is made anew."""
    assert isinstance(member, Technique | Backend)  # what recipes hold
    version = member.code_version()
    if member.form != "torch":
        version = digest(version, network.code_version(member.form))
    return variant.then(member.step, version)


def feeds_key(
    workload_digest: str, batch_size: int, length: int | None = None, own: str | None = None
) -> str:
    """Names the measuring inputs by their samples, their form, and the processing of a package's own."""
    return digest(
        "feeds", workload_digest, batch_size, length, FEEDS, VARIED, *([] if own is None else [own])
    )


def calibration_key(workload_digest: str, limit: int) -> str:
    """Names what `calibration_inputs` makes."""
    return digest("calibration inputs", workload_digest, limit)


def _in_form(
    form: Form, source: Path, variant: Variant, workload: LoadedWorkload, store: Store
) -> tuple[Path, Variant]:
    """The network in `form`, converted where it is in an earlier one."""
    if network.form_of(source) == form:
        return source, variant
    key = digest("form", form, variant.id, network.code_version(form))
    return store.ensure(key, lambda into: network.convert(source, form, workload, into)), variant


def _applying(technique: Technique, source: Path, workload: LoadedWorkload) -> Any:
    def write(into: Path) -> None:
        changed = technique.apply(network.load(technique.form, source), workload)
        network.save(changed, technique.gives, into)

    return write


def artifact_size_mib(artifact: Path) -> float:
    """The size of what must be shipped to run it."""
    files = (path for path in artifact.rglob("*") if path.is_file() and path.name != MANIFEST)
    return sum(path.stat().st_size for path in files) / 2**20


def cut(
    reference: Mapping[str, Any],
    folder: str,
    root: str,
    key: str,
    backend: Mapping[str, Any],
    batch_size: int,
    most: int,
) -> None:
    """The original's ONNX graph in two, at each layer that is worth it; see `serving/halves.py`."""
    workload, store = _loaded(reference, folder, root)
    variant, trained = original(workload.digest), _original(workload, store)
    source, _ = _in_form("onnx", trained, variant, workload, store)
    member = backend_of(Step.from_json(backend))
    batches = list(workload.feeds("search", batch_size, SPLIT_FEEDS * batch_size))
    whole = [b for b in batches if len(next(iter(b.values()))) == batch_size]
    given = [*(whole or [workload.example(batch_size)]), workload.example(batch_size + 1)]
    store.ensure(key, lambda into: halves.write_all(source, given, member, most, into))
