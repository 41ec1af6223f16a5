"""The candidates: which there are, and what each one does on the search split."""

import dataclasses
import itertools
from collections.abc import Sequence

from pareflow.catalog import complete, members
from pareflow.compiler.onnxruntime import GraphLevel, OnnxRuntime
from pareflow.compiler.openvino import OpenVino
from pareflow.errors import MissingExtraError, PareflowError, TransientError
from pareflow.hardware.probe import has_vnni
from pareflow.intervals import speedup
from pareflow.model import DynamicInt8, Fp16, NncfInt8, StaticInt8, Technique
from pareflow.model.quantization.static_int8 import Method, Operators
from pareflow.stages import building
from pareflow.stages.baseline import SCREENING
from pareflow.stages.run import Row, Run, Status
from pareflow.stages.timing import measure
from pareflow.variant import Recipe


def candidates(run: Run, baselines: Sequence[Row]) -> list[Row]:
    """The YAML's recipes, or the built-in list; each once, and none that is a baseline."""
    wanted = run.spec.recipes()
    if wanted is None:
        wanted = built_in(run.threads, transformer=run.facts.tokens)
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


_METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")
_LOWER_LEVELS: tuple[GraphLevel, ...] = ("none", "basic", "extended", "layout")


def make(run: Run, row: Row) -> Row:
    """The row built and evaluated on the search split; or failed, unavailable, pruned, with its reason.

    Raises: TransientError, EnvironmentUnfitError of the store: the run's trouble, not the variant's.
    """
    absent = missing(row.recipe)
    if absent:
        return _ended(row, "unavailable", absent)
    if run.out_of_time:
        return _ended(row, "pruned", f"the budget of {run.spec.budget.minutes:g} minutes was used up")
    try:
        return building.make(run, row)
    except PareflowError as error:
        return failed(row, error)


def time(run: Run, row: Row, baselines: Sequence[Row]) -> Row:
    """The row timed beside the strong baseline of its thread count; or failed, with its reason."""
    if row.status != "ok":
        return row
    if run.out_of_time:
        return _ended(row, "pruned", f"the budget of {run.spec.budget.minutes:g} minutes was used up")
    strong = strong_baseline(row, baselines)
    try:
        row = building.make(run, row)  # again only if it has gone since
        measured = measure(run, [strong, row], SCREENING)
    except PareflowError as error:
        return failed(row, error)
    ours, theirs = measured[str(strong.id)], measured[str(row.id)]
    return dataclasses.replace(row, measurement=theirs, speedup=speedup(ours, theirs))


def strong_baseline(row: Row, baselines: Sequence[Row]) -> Row:
    """ONNX Runtime fp32 at full graph optimization with the same threads; the first where none has them."""
    strong = [baseline for baseline in baselines if baseline.role == "baseline"]
    return next((baseline for baseline in strong if baseline.threads == row.threads), strong[0])


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
