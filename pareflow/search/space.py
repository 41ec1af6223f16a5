"""The space without training: which recipes a network, a processor and a device make sensible."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pareflow.catalog import BACKENDS
from pareflow.compiler import OnnxRuntime, OpenVino, TorchEager
from pareflow.compiler.graph_passes import Pass
from pareflow.compiler.onnxruntime import GraphLevel
from pareflow.hardware.device_profile import DeviceProfile
from pareflow.hardware.probe import has_vnni
from pareflow.model import (
    AttentionFusion,
    Distillation,
    DynamicInt8,
    Fp16,
    Int4,
    KmeansSharing,
    MixedInt8,
    NncfInt8,
    QatInt8,
    StaticInt8,
    Technique,
)
from pareflow.model.quantization.static_int8 import Method, Operators
from pareflow.variant import Recipe, Step

MILDER: tuple[Method, ...] = ("entropy", "percentile")
"""Other ways to choose ranges: as fast as the first, so that they are tried where that loses too much."""
LOWER_LEVELS: tuple[GraphLevel, ...] = ("extended", "layout")
"""Those that were ever as fast as the highest (docs/log.md)."""
APART: tuple[Pass, ...] = ("skip_layer_norm",)
"""What is left apart in a transformer: merged with the sum before it, a normalization takes three times as
long on processors (measured: docs/log.md)."""
OF_DROP = 1 / 2
"""Share of what the SLA lets be lost, that a repair stops at."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the space depends on. `trainable` says whether the original is a torch module, `shortcuts` whether
    its graph adds up what went beside each other, as residual networks do, `chosen` which techniques with
    training the user allows, with the values of settings that he gives; None allows all. `max_drop` is the
    share of right answers that the SLA lets be lost, where it says so; `smallest_wins` whether size or memory
    is what is minimised, `size_bounded` whether the SLA bounds one of them; `varied` whether inputs differ in
    size.
    """

    threads: tuple[int, ...]
    transformer: bool
    students: tuple[str, ...] = ()
    trainable: bool = True
    shortcuts: bool = False
    profile: DeviceProfile | None = None
    chosen: Mapping[str, Mapping[str, tuple[Any, ...]]] | None = None
    max_drop: float | None = None
    smallest_wins: bool = False
    size_bounded: bool = False
    varied: bool = False


def untrained(here: Circumstances) -> tuple[Recipe, ...]:
    """int8 dynamic and static, fp16, OpenVINO, lower graph levels; each thread count; the device's runtimes.

    Of a transformer only products are quantized with fixed scales: all operators lose most of its quality.
    Its attention is tried as one operator, too, and its sums and normalizations as two.
    Where the processor lacks VNNI, u8×s8 products saturate in 16 bits, and weights keep to 7 bits.
    Source: ONNX Runtime, Quantize ONNX models, "When and why do I need to try U8U8".
    """
    narrow, threads = not has_vnni(), here.threads
    operators: Operators = "products" if here.transformer else "all"
    levels = [Recipe((), OnnxRuntime(graph_level=level, threads=threads[0]).step) for level in LOWER_LEVELS]
    dynamic = DynamicInt8(reduce_range=narrow)
    ways: list[tuple[tuple[Technique, ...], tuple[Pass, ...]]] = [
        ((StaticInt8(operators=operators, reduce_range=narrow),), ()),
        ((dynamic,), ()),
        ((Fp16(),), ()),
    ]
    if here.transformer:
        ways += [((AttentionFusion(), dynamic), APART), ((AttentionFusion(),), APART)]
    recipes = [
        Recipe(_steps(techniques), OnnxRuntime(threads=n, without=without).step)
        for n, (techniques, without) in itertools.product(threads, ways)
    ]
    nncf = NncfInt8(model_type="transformer" if here.transformer else "general")
    for n in threads:
        recipes += [
            Recipe((nncf.step,), OpenVino(threads=n).step),
            Recipe((), OpenVino(threads=n).step),
            Recipe((), OpenVino(threads=n, precision="bf16").step),
        ]
    return (*recipes, *levels, *for_device(here.profile))


def for_device(profile: DeviceProfile | None) -> tuple[Recipe, ...]:
    """The plain network on each other runtime of the target's device, and quantized where it can do that."""
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


def smallest(here: Circumstances) -> tuple[Recipe, ...]:
    """What may yet fit where nothing does: students, in int8 and not; and what is smaller than int8."""
    students = [Distillation(student=name) for name in here.students] or [Distillation(width=0.25)]
    taught = [(student, *more) for more in ((_int8(here),), ()) for student in students]
    other = for_device(here.profile)
    return (
        *_packed_and_not(here, taught),
        *smaller(here),
        *(Recipe((student.step,), r.backend) for student in students for r in other),
    )


def smaller(here: Circumstances) -> tuple[Recipe, ...]:
    """The same network in fewer bits than int8 takes: four, codebooks, and packed files."""
    int8 = _int8(here)
    packed = Recipe((int8.step,), OnnxRuntime(packed=True, threads=here.threads[0]).step)
    codebooks: list[tuple[Technique, ...]] = [(KmeansSharing(), int8)] if here.trainable else []
    return (packed, *_packed_and_not(here, [*codebooks, (Int4(),)]))


def _packed_and_not(here: Circumstances, ways: Sequence[Sequence[Technique]]) -> tuple[Recipe, ...]:
    """Each way as a file that loads as it is, and as one that is decoded first."""
    return tuple(
        Recipe(_steps(way), OnnxRuntime(packed=packed, threads=here.threads[0]).step)
        for way in ways
        for packed in (False, True)
    )


def settings(recipe: Recipe, here: Circumstances) -> tuple[Recipe, ...]:
    """The recipe with other settings of its runtime: huge pages, static shapes, and a transformer's sums and
    normalizations left apart; all together come last.

    Static shapes are compiled one by one: where inputs differ in size, who sends the first of a size waits
    for that, and no measurement of sizes that were met before tells.
    """
    paged, static, apart = {"huge_pages": True}, {"static_shapes": True}, {"without": list(APART)}
    offered: dict[str, list[dict[str, Any]]] = {
        OnnxRuntime.name: [apart, paged, {**apart, **paged}] if here.transformer else [paged],
        OpenVino.name: [paged] if here.varied else [static, paged, {**static, **paged}],
    }
    backend = recipe.backend
    changed = [{**backend.settings, **more} for more in offered.get(backend.name, [])]
    new = [one for i, one in enumerate(changed) if one != backend.settings and one not in changed[:i]]
    return tuple(Recipe(recipe.techniques, Step(backend.name, one)) for one in new)


def way_of(recipe: Recipe) -> Recipe:
    """What decides what a recipe answers: its techniques but for one that rewrites the graph, and what runs
    it, in which precision. Recipes of one way pass or miss a clause of quality together."""
    kept = {name: value for name, value in recipe.backend.settings.items() if name == "precision"}
    return Recipe(unfused(recipe.techniques), Step(recipe.backend.name, kept))


def unfused(techniques: Sequence[Step]) -> tuple[Step, ...]:
    """The steps without what rewrites a graph and leaves its answers as they are."""
    return tuple(step for step in techniques if step.name != AttentionFusion.name)


def repairs(recipe: Recipe, here: Circumstances) -> tuple[Recipe, ...]:
    """What may give a recipe's lost quality back and keep most of its speed.

    int8: taught by the float network while its numbers are rounded. Static and dynamic int8 also: with fixed
    scales, sensitive layers reverted to float. Static int8 also: ranges chosen otherwise. Attention that was
    made one operator is left as it was.
    """
    last = recipe.techniques[-1] if recipe.techniques else None
    if last is None or last.name not in (StaticInt8.name, DynamicInt8.name, NncfInt8.name):
        return ()
    found: list[Technique] = []
    if last.name == StaticInt8.name:
        found += [StaticInt8.from_settings({**last.settings, "method": method}) for method in MILDER]
    if last.name != NncfInt8.name:
        products = {"operators": "products"} if last.name == DynamicInt8.name else {}
        found.append(MixedInt8.from_settings({**last.settings, **products, **_drop(here)}))
    if here.trainable:
        found.append(QatInt8())
    before = unfused(recipe.techniques[:-1])
    return tuple(Recipe((*before, repair.step), recipe.backend) for repair in found)


def in_fewer_passes(repair: Recipe) -> tuple[Recipe, ...]:
    """A repair that trains, in each number of passes below its own, the most first; of others nothing."""
    if not repair.techniques or repair.techniques[-1].name != QatInt8.name:
        return ()
    *before, last = repair.techniques
    fewer = range(QatInt8.from_settings(last.settings).epochs - 1, 0, -1)
    steps = (Step(last.name, {**last.settings, "epochs": n}) for n in fewer)
    return tuple(Recipe((*before, step), repair.backend) for step in steps)


def _drop(here: Circumstances) -> dict[str, float]:
    """How much a repair may lose: a part of what the SLA allows, since the verdict asks for confidence."""
    return {} if here.max_drop is None else {"max_drop": OF_DROP * here.max_drop}


def _int8(here: Circumstances) -> Technique:
    narrow = not has_vnni()
    return DynamicInt8(reduce_range=narrow) if here.transformer else StaticInt8(reduce_range=narrow)


def _steps(techniques: Sequence[Technique]) -> tuple[Step, ...]:
    return tuple(technique.step for technique in techniques)
