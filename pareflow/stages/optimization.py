"""The candidates: which there are, and what each one does on the search split."""

import dataclasses
import itertools
from collections.abc import Sequence

from pareflow.catalog import BACKENDS, complete, members
from pareflow.compiler.onnxruntime import GraphLevel, OnnxRuntime
from pareflow.compiler.openvino import OpenVino
from pareflow.compiler.torch_eager import TorchEager
from pareflow.errors import DoesNotFitError, MissingExtraError, PareflowError, TransientError
from pareflow.hardware.probe import has_vnni
from pareflow.intervals import speedup
from pareflow.model import (
    Distillation,
    DynamicInt8,
    Fp16,
    Int4,
    KmeansSharing,
    NncfInt8,
    StaticInt8,
    Technique,
)
from pareflow.model.quantization.static_int8 import Method, Operators
from pareflow.stages import building, fitting
from pareflow.stages.baseline import SCREENING
from pareflow.stages.run import Row, Run, Status
from pareflow.stages.timing import measure
from pareflow.variant import Recipe, Step


def candidates(run: Run, baselines: Sequence[Row]) -> list[Row]:
    """The YAML's recipes, or the built-in list; each once, and none that is a baseline."""
    wanted = run.spec.recipes()
    if wanted is None:
        wanted = built_in(run.threads, transformer=run.facts.tokens) + for_device(run)
    known = {row.label for row in baselines}
    rows = {row.label: row for row in map(Row, map(complete, wanted))}
    return [row for label, row in rows.items() if label not in known]


def built_in(threads: Sequence[int], *, transformer: bool) -> tuple[Recipe, ...]:
    """The first list: graph levels, int8 dynamic and static, fp16, and OpenVINO; each thread count.

    Of a transformer only products are quantized with fixed scales: all operators lose most of its quality.
    Where the processor lacks VNNI, u8×s8 products saturate in 16 bits, and weights keep to 7 bits.
    Source: ONNX Runtime, Quantize ONNX models, "When and why do I need to try U8U8".
    """
    narrow = not has_vnni()
    operators: Operators = "products" if transformer else "all"
    levels = [Recipe((), OnnxRuntime(graph_level=level, threads=threads[0]).step) for level in _LOWER_LEVELS]
    plain: list[tuple[Technique, ...]] = [
        *((StaticInt8(method=method, operators=operators, reduce_range=narrow),) for method in _METHODS),
        (DynamicInt8(reduce_range=narrow),),
        (Fp16(),),
    ]
    recipes = [
        Recipe(tuple(t.step for t in techniques), OnnxRuntime(threads=n).step)
        for n, techniques in itertools.product(threads, plain)
    ]
    nncf = NncfInt8(model_type="transformer" if transformer else "general")
    for n in threads:
        recipes += [
            Recipe((nncf.step,), OpenVino(threads=n).step),
            Recipe((), OpenVino(threads=n).step),
            Recipe((), OpenVino(threads=n, precision="bf16").step),
        ]
    return (*recipes, *levels)


def for_device(run: Run) -> tuple[Recipe, ...]:
    """The plain network on each other runtime of the target's device, and quantized where it can do that."""
    profile = run.spec.target.profile
    if profile is None:
        return ()
    found = []
    for name in profile.backends:
        cls = BACKENDS.get(name)
        if cls is None or name in (OnnxRuntime.name, OpenVino.name, TorchEager.name):
            continue  # not of this version, or in the list already
        precision = cls.model_fields.get("precision")
        known = getattr(precision.annotation, "__args__", ()) if precision is not None else ()
        found.append(Recipe((), Step(name)))
        found += [Recipe((), Step(name, {"precision": p})) for p in known if p in ("int8", "static_int8")]
    return tuple(found)


def last_resort(run: Run, rows: Sequence[Row]) -> list[Row]:
    """What may yet fit where nothing does: each student taught, in int8; codebooks; four bits; packed files.

    Only what the device runs and is available here, and none that is among `rows`.
    """
    narrow = not has_vnni()
    int8: list[tuple[Technique, ...]] = [(StaticInt8(reduce_range=narrow),)]
    if run.facts.tokens:
        int8 = [(DynamicInt8(reduce_range=narrow),)]
    students = [Distillation(student=name) for name in run.facts.students] or [Distillation(width=0.25)]
    network: list[tuple[Technique, ...]] = [
        *((student, *more) for student in students for more in int8),
        *((student,) for student in students),
        *((KmeansSharing(), *more) for more in int8),
        (Int4(),),
    ]
    recipes = [
        Recipe(tuple(t.step for t in techniques), OnnxRuntime(packed=packed, threads=run.threads[0]).step)
        for techniques in network
        for packed in (False, True)
    ]
    recipes += [Recipe((student.step,), r.backend) for student in students for r in for_device(run)]
    known = {row.label for row in rows}
    made = {row.label: row for row in map(Row, map(complete, recipes)) if unrunnable(run, row.recipe) is None}
    return [row for label, row in made.items() if label not in known]


_METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")
_LOWER_LEVELS: tuple[GraphLevel, ...] = ("none", "basic", "extended", "layout")


def make(run: Run, row: Row) -> Row:
    """The row built and evaluated on the search split; or failed, unavailable, pruned, with its reason.

    Raises: TransientError, EnvironmentUnfitError of the store: the run's trouble, not the variant's.
    """
    absent = unrunnable(run, row.recipe)
    if absent:
        return _ended(row, "unavailable", absent)
    if run.out_of_time:
        return _ended(row, "pruned", f"the budget of {run.spec.budget.minutes:g} minutes was used up")
    try:
        made = fitting.fitted(run, building.make(run, row))
    except PareflowError as error:
        return failed(row, error)
    try:
        fitting.check(made)
    except DoesNotFitError as error:
        return failed(made, error)
    return made


def time(run: Run, row: Row, baselines: Sequence[Row]) -> Row:
    """The row timed beside the strong baseline of its thread count; or failed, with its reason."""
    if row.status != "ok":
        return row
    if run.out_of_time:
        return _ended(row, "pruned", f"the budget of {run.spec.budget.minutes:g} minutes was used up")
    strong = strong_baseline(row, baselines)
    try:
        row = dataclasses.replace(building.make(run, row), fit=row.fit)  # again only if it has gone since
        measured = measure(run, [strong, row], SCREENING)
    except PareflowError as error:
        return failed(row, error)
    ours, theirs = measured[str(strong.id)], measured[str(row.id)]
    return dataclasses.replace(row, measurement=theirs, speedup=speedup(ours, theirs))


def strong_baseline(row: Row, baselines: Sequence[Row]) -> Row:
    """ONNX Runtime fp32 at full graph optimization with the same threads; the first where none has them."""
    strong = [baseline for baseline in baselines if baseline.role == "baseline"]
    return next((baseline for baseline in strong if baseline.threads == row.threads), strong[0])


def unrunnable(run: Run, recipe: Recipe) -> str | None:
    """Why a recipe is not tried: the target's device does not run it, or it cannot run here; or None."""
    return fitting.not_for(run, recipe) or missing(recipe)


def missing(recipe: Recipe) -> str | None:
    """Why a recipe cannot run here, or None."""
    reasons = (reason for member in members(recipe) for reason in (member.unavailable(), member.unfit()))
    return next((reason for reason in reasons if reason), None)


def failed(row: Row, error: PareflowError) -> Row:
    """A failed row (law 7); but what is the run's trouble and not the variant's goes on up."""
    if isinstance(error, MissingExtraError):
        return _ended(row, "unavailable", f"{error.must}, but {error.found}")
    if isinstance(error, TransientError) or error.exit_code == 4:
        raise error
    return _ended(row, "failed", f"{type(error).__name__}: {error.must}, but {error.found}")


def _ended(row: Row, status: Status, reason: str) -> Row:
    return dataclasses.replace(row, status=status, reason=reason)
