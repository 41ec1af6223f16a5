"""The search: its space, its halving, its study; and whole searches of an invented landscape."""

import dataclasses
import errno
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pareflow import spec as specs
from pareflow.catalog import TECHNIQUES, complete, members
from pareflow.errors import SpecError, StoreError
from pareflow.hardware import probe
from pareflow.model.training import TrainedTechnique
from pareflow.search import Circumstances, Ended, Search, Trial, Wave, halving, space, training_space
from pareflow.search.effort import BUILD_MINUTES, Effort, epochs_of
from pareflow.search.search import PATIENCE
from pareflow.search.study import Study
from pareflow.search.trial import best, better, gained, nearest
from pareflow.variant import Recipe, Step

IMAGES = Circumstances((1,), transformer=False, students=("half", "quarter"))
RESIDUAL = dataclasses.replace(IMAGES, shortcuts=True)
TEXTS = Circumstances((1,), transformer=True)
PLAIN = Recipe((), Step("onnxruntime", {"threads": 1}))


@pytest.mark.parametrize("vnni", [True, False], ids=["VNNI", "no VNNI"])
def test_weights_keep_to_seven_bits_where_bytes_saturate(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "instruction_flags", lambda: ("avx512_vnni",) if vnni else ("avx2",))
    recipes = space.untrained(Circumstances((1, 2), transformer=True))
    steps = [step for recipe in recipes for step in recipe.techniques]
    narrow = [step.settings["reduce_range"] for step in steps if "reduce_range" in step.settings]
    assert len(narrow) == 6
    assert set(narrow) == {not vnni}


def test_the_space_without_training_asks_each_thread_count_and_makes_sense() -> None:
    recipes = space.untrained(Circumstances((1, 2), transformer=False))
    assert {recipe.backend.settings["threads"] for recipe in recipes} == {1, 2}
    assert_sensible(recipes)


@pytest.mark.parametrize("here", [IMAGES, RESIDUAL, TEXTS], ids=["images", "residual", "texts"])
def test_every_point_of_the_space_with_training_makes_sense(here: Circumstances) -> None:
    finish = Recipe((Step("static_int8"),), PLAIN.backend)
    for name, settings in training_space.families(here).items():
        assert_sensible(
            Recipe((training_space.step(name, chosen, 3), *finish.techniques), finish.backend)
            for chosen in training_space.grid(settings)
        )


def assert_sensible(recipes: Iterable[Recipe]) -> None:
    found = list(recipes)
    assert found
    assert len({recipe.label for recipe in found}) == len(found)
    for recipe in found:
        specs.check_recipe(recipe)
        assert members(recipe)


def test_the_user_says_which_techniques_train_and_which_values_they_take() -> None:
    chosen = dataclasses.replace(IMAGES, chosen={"low_rank": {"share": (0.3,)}, "born_again": {}})
    assert training_space.families(chosen) == {
        "low_rank": {**training_space.families(IMAGES)["low_rank"], "share": (0.3,)},
        "born_again": {},
    }
    assert training_space.families(dataclasses.replace(chosen, trainable=False)) == {}


def test_built_in_values_that_do_not_go_with_the_users_are_left_out() -> None:
    """Of embeddings nothing is multiplied: without `of: products` the budget is of parameters."""
    chosen = dataclasses.replace(IMAGES, chosen={"low_rank": {"embeddings": (True,)}})
    found = training_space.families(chosen)["low_rank"]
    built_in = training_space.families(IMAGES)["low_rank"]
    assert found == {**{k: v for k, v in built_in.items() if k != "of"}, "embeddings": (True,)}
    assert next(iter(found)) == "share"


def test_values_that_no_built_in_one_saves_are_bad_input() -> None:
    """A whole network is no smaller one; of texts it is the depth that makes it so."""
    chosen = dataclasses.replace(TEXTS, chosen={"distillation": {"depth": (1.0,)}})
    with pytest.raises(SpecError, match="must be below 1 where no student is named"):
        training_space.families(chosen)


def test_layers_go_where_shortcuts_lead_around_them_and_heads_where_there_are_tokens() -> None:
    whole = {"layer_pruning", "head_pruning"}
    offered = [whole & training_space.families(here).keys() for here in (IMAGES, RESIDUAL, TEXTS)]
    assert offered == [set(), {"layer_pruning"}, whole]


def test_a_network_that_came_as_a_graph_is_not_trained() -> None:
    assert training_space.families(dataclasses.replace(IMAGES, trainable=False)) == {}


def test_static_int8_is_repaired_by_other_ranges_by_floats_and_by_training() -> None:
    student = Step("distillation", {"student": "half"})
    recipe = Recipe((student, Step("static_int8", {"operators": "products"})), PLAIN.backend)
    found = space.repairs(recipe, IMAGES)
    assert all(repair.techniques[0] == student for repair in found)
    lasts = [repair.techniques[1] for repair in found]
    assert [step.name for step in lasts] == ["static_int8", "static_int8", "mixed_int8", "qat_int8"]
    assert [step.settings.get("method") for step in lasts[:3]] == ["entropy", "percentile", "minmax"]
    assert {step.settings.get("operators") for step in lasts[:3]} == {"products"}
    assert len(space.repairs(recipe, dataclasses.replace(IMAGES, trainable=False))) == 3
    assert space.repairs(Recipe((Step("fp16"),), PLAIN.backend), IMAGES) == ()


def test_dynamic_int8_is_repaired_by_floats_with_fixed_scales_and_by_training() -> None:
    """Attention is as it was before: what trains, or reverts layers, does not know it as one operator."""
    student = Step("distillation", {"student": "half"})
    steps = (student, Step("attention_fusion"), Step("dynamic_int8", {"per_channel": False}))
    here = dataclasses.replace(TEXTS, max_drop=0.03)
    found = space.repairs(Recipe(steps, PLAIN.backend), here)
    assert [[step.name for step in repair.techniques] for repair in found] == [
        ["distillation", "mixed_int8"],
        ["distillation", "qat_int8"],
    ]
    mixed = found[0].techniques[1].settings
    assert (mixed["operators"], mixed["per_channel"], mixed["max_drop"]) == ("products", False, 0.015)
    assert_sensible(found)
    assert len(space.repairs(Recipe(steps, PLAIN.backend), dataclasses.replace(here, trainable=False))) == 1


def test_mixed_precision_may_lose_half_of_what_the_sla_lets_be_lost() -> None:
    recipe = Recipe((Step("static_int8"),), PLAIN.backend)
    for allowed, expected in ((0.03, 0.015), (0.0, 0.0), (None, 0.005)):
        here = dataclasses.replace(IMAGES, max_drop=allowed)
        (mixed,) = [r for r in space.repairs(recipe, here) if r.techniques[0].name == "mixed_int8"]
        assert mixed.techniques[0].settings["max_drop"] == expected


@pytest.mark.parametrize("here", [IMAGES, TEXTS], ids=["images", "texts"])
def test_what_is_smaller_than_int8_makes_sense(here: Circumstances) -> None:
    assert_sensible(space.smaller(here))
    assert_sensible(space.smallest(here))
    graph = space.smaller(dataclasses.replace(here, trainable=False))
    assert "kmeans_sharing" not in {step.name for recipe in graph for step in recipe.techniques}


def test_other_settings_of_a_runtime_are_those_that_it_has_not() -> None:
    (paged,) = space.settings(PLAIN, IMAGES)
    assert paged.backend.settings == {"threads": 1, "huge_pages": True}
    assert space.settings(paged, IMAGES) == ()
    static = Recipe((), Step("openvino", {"static_shapes": True}))
    (both,) = space.settings(static, IMAGES)
    assert both.backend.settings == {"static_shapes": True, "huge_pages": True}
    assert len(space.settings(Recipe((), Step("openvino")), IMAGES)) == 3
    assert_sensible(space.settings(Recipe((), Step("openvino")), IMAGES))
    assert space.settings(Recipe((), Step("tvm")), IMAGES) == ()


def test_sums_and_normalizations_of_a_transformer_are_tried_apart() -> None:
    apart, paged, both = space.settings(PLAIN, TEXTS)
    assert apart.backend.settings == {"threads": 1, "without": ["skip_layer_norm"]}
    assert paged.backend.settings == {"threads": 1, "huge_pages": True}
    assert both.backend.settings == {**apart.backend.settings, "huge_pages": True}
    assert space.settings(both, TEXTS) == ()
    assert_sensible((apart, both))


def test_attention_is_tried_as_one_operator_where_there_is_attention() -> None:
    fused = [tuple(step.name for step in r.techniques) for r in space.untrained(TEXTS)]
    assert ("attention_fusion",) in fused
    assert ("attention_fusion", "dynamic_int8") in fused
    apart = [r.backend.settings["without"] for r in space.untrained(TEXTS) if "attention_fusion" in r.label]
    assert apart == [["skip_layer_norm"]] * 2
    images = space.untrained(IMAGES)
    assert "attention_fusion" not in {step.name for recipe in images for step in recipe.techniques}


def test_static_shapes_are_not_tried_where_inputs_differ_in_size() -> None:
    """Each size is compiled when it is met first, which timings of sizes that were met do not tell."""
    varied = dataclasses.replace(TEXTS, varied=True)
    (paged,) = space.settings(Recipe((), Step("openvino")), varied)
    assert paged.backend.settings == {"huge_pages": True}


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, (1,)), (2, (2,)), (3, (1, 3)), (8, (3, 8)), (27, (9, 27))]
)
def test_each_rung_trains_about_three_times_as_long(epochs: int, expected: tuple[int, ...]) -> None:
    assert halving.rungs(epochs) == expected


@pytest.mark.parametrize(
    ("epoch_minutes", "expected"), [(0.1, (3, 9)), (0.13, (3, 9)), (0.14, (2, 5)), (2, (1,))]
)
def test_how_long_a_pass_takes_decides_coarsely_for_how_many_it_trains(
    epoch_minutes: float, expected: tuple[int, ...]
) -> None:
    """Of 10 minutes an eighth: 12, 9, 8 and no pass would fit; allowed are 9, 9, 5, and the least."""
    assert halving.affordable(Effort(epoch_minutes), 10, 5) == expected


def test_both_rungs_train_for_passes_that_a_rung_may_train_for() -> None:
    assert all(set(halving.rungs(n)) <= set(halving.PASSES) for n in halving.PASSES)


def trial(cost: float | None, excess: float | None = 0.0, name: str = "") -> Trial:
    return Trial(Recipe((), Step(name or f"{cost} {excess}")), cost, excess)


def test_a_third_goes_on_of_those_that_could_be_the_best() -> None:
    """Of seven, three: the fastest that passes, then what is faster and nearest to passing."""
    rung = [
        trial(0.2, 0.3),
        trial(0.3),
        trial(0.495),
        trial(0.4),
        trial(0.1, 0.01),
        trial(None, None),
        trial(0.7),
    ]
    kept = halving.survivors(rung, [trial(1.0), trial(0.5)])
    assert [t.cost for t in kept] == [0.3, 0.1, 0.2]
    assert [t.cost for t in halving.survivors(rung, [trial(0.15)])] == [0.1]


@given(st.lists(st.tuples(st.floats(0.01, 2), st.floats(0, 1)), min_size=1, max_size=30), st.floats(0.1, 1))
def test_what_goes_on_is_few_faster_and_none_left_out_dominates_it(
    points: list[tuple[float, float]], leader: float
) -> None:
    rung = [trial(cost, excess) for cost, excess in points]
    known = [trial(leader)]
    kept = halving.survivors(rung, known)
    assert len(kept) <= -(-len(rung) // 3)
    assert all(better(t.cost, best(known)) or t is best([*known, *rung]) for t in kept)
    assert all(not t.passes for t in kept[1:])
    for left in (t for t in rung if t not in kept):
        assert not any(left.excess < t.excess and left.cost <= t.cost for t in kept)  # type: ignore[operator]


def test_better_is_noticeably_better_and_passing() -> None:
    assert best([trial(0.2, 0.1), trial(0.9), trial(0.5), trial(0.3, None)]) == trial(0.5)
    assert best([trial(0.2, 0.1)]) is None
    assert (better(0.49, trial(0.5)), better(0.495, trial(0.5)), better(0.49, None)) == (True, False, True)
    assert not better(None, None)


def test_effort_is_three_answers_per_sample_and_pass_and_learns_from_what_was_seen() -> None:
    """1,000 samples of 2 ms: 6 s a pass. Seen: builds of 0.2 and 0.4 minutes, 3 passes in 0.9: 0.2 each."""
    effort = Effort.of(1000, 2.0)
    assert effort.epoch_minutes == pytest.approx(0.1)
    two = Recipe((Step("distillation", {"student": "half", "epochs": 2}),), PLAIN.backend)
    assert effort.minutes(PLAIN) == BUILD_MINUTES
    assert effort.minutes(two) == pytest.approx(BUILD_MINUTES + 0.2)
    three = training_space.trained_for(two, 3)
    once = Trial(training_space.trained_for(two, 1), minutes=3.0)  # most of which was no pass
    seen = [dataclasses.replace(trial(1.0), minutes=m) for m in (0.2, 0.4)] + [
        Trial(three, minutes=0.9),
        once,
    ]
    found = effort.corrected(seen)
    assert found.build_minutes == pytest.approx(0.3)
    assert found.epoch_minutes == pytest.approx(0.2)


def test_what_a_built_recipe_begins_with_is_not_done_again() -> None:
    """27 passes in 3 minutes, 0.3 of them the build; then int8 of it in 0.3, and QAT's 2 passes in 0.5."""
    student = Recipe((Step("distillation", {"student": "half", "epochs": 27}),), PLAIN.backend)
    int8, qat = (Recipe((*student.techniques, Step(n)), PLAIN.backend) for n in ("static_int8", "qat_int8"))
    seen = [dataclasses.replace(trial(1.0), minutes=0.3), Trial(student, minutes=3.0)]
    first = Effort(1.0).corrected(seen)
    assert first.minutes(int8) == pytest.approx(0.3)
    assert first.minutes(qat) == pytest.approx(0.5)
    assert first.minutes(training_space.trained_for(int8, 26)) == pytest.approx(0.3 + 26 * 0.1)
    seen += [Trial(int8, minutes=0.3), Trial(qat, minutes=0.5)]
    assert Effort(1.0).corrected(seen).epoch_minutes == pytest.approx(0.1)


def test_a_subnet_takes_its_share_of_what_a_build_was_seen_to_take() -> None:
    """10 subnets of 0.4 builds each: 5 builds of 0.3 minutes in all, and twice 2 passes of 0.1."""
    search = training_space.step("architecture_search", {"max_latency_share": 0.5, "trials": 10}, 2)
    recipe = Recipe((search,), PLAIN.backend)
    effort = Effort(0.1).corrected([dataclasses.replace(trial(1.0), minutes=0.3)])
    assert effort.minutes(recipe) == pytest.approx(1.9)
    assert effort.corrected([Trial(recipe, minutes=2.3)]).minutes(recipe) == pytest.approx(2.3)


def test_passes_of_all_steps_count_a_supernets_twice() -> None:
    search = training_space.step("architecture_search", {"max_latency_share": 0.5, "trials": 24}, 4)
    assert epochs_of(Recipe((search, Step("qat_int8")), PLAIN.backend)) == 10
    assert epochs_of(PLAIN) == 0


@pytest.mark.parametrize(
    ("name", "settings", "passes"),
    [
        ("channel_pruning", {"steps": 4}, 12),
        ("lottery_ticket", {"rounds": 3, "rewind_epochs": 2}, 11),
        ("born_again", {"generations": 2}, 6),
        ("unstructured_pruning", {"steps": 4}, 3),
    ],
)
def test_passes_of_all_trainings_of_a_technique_count(
    name: str, settings: dict[str, int], passes: int
) -> None:
    assert epochs_of(Recipe((training_space.step(name, settings, 3),), PLAIN.backend)) == passes


def test_what_was_stopped_in_many_passes_bars_nothing_that_takes_fewer(tmp_path: Path) -> None:
    often, once = (
        Recipe((training_space.step("channel_pruning", {"steps": n}, 9),), PLAIN.backend) for n in (4, 1)
    )
    ours = search(tmp_path, known=[Trial(PLAIN, 1.0, 0.0), Trial(often, reason="slow", stopped=True)])
    assert (ours._too_slow(often), ours._too_slow(once)) == (True, False)


def test_the_study_begins_with_each_technique_and_each_student_and_asks_nothing_twice() -> None:
    study = Study(training_space.families(IMAGES), [PLAIN], 0)
    asked = study.ask(12)
    starts = [recipe.techniques[0] for recipe in asked[:5]]
    pruned, thin, half, quarter, searched = (step.name for step in starts)
    assert (pruned, thin, searched) == ("channel_pruning", "low_rank", "architecture_search")
    assert half == quarter == "distillation"
    assert [step.settings["student"] for step in starts[2:4]] == ["half", "quarter"]
    assert len({recipe.label for recipe in asked}) == 12


def test_the_study_goes_one_step_on_from_the_best() -> None:
    """By hand: of shares 0.2 to 0.5 the best is 0.4, trained for longer since; next are 0.5 and 0.3."""
    shares = (0.2, 0.3, 0.4, 0.5)
    families = {"low_rank": {"share": shares, "learning_rate": (1e-3, 4e-3, 1e-2)}}
    study = Study(families, [PLAIN], 0)
    (first,) = study.ask(1)
    assert first.techniques[0].settings["share"] == 0.4
    found = study.beside(training_space.trained_for(first, 9))
    assert [recipe.techniques[0].settings["share"] for recipe in found] == [0.5, 0.3]
    assert {recipe.techniques[0].settings["learning_rate"] for recipe in found} == {4e-3}
    assert study.beside(found[0]) == []  # nothing is beyond the last value, and 0.4 was asked
    assert study.beside(PLAIN) == []  # what does not train has no neighbours


def test_a_step_back_takes_less_away() -> None:
    """A ratio is of what goes, a share of what stays; of students nobody knows."""
    families: dict[str, Any] = {
        "channel_pruning": {"ratio": (0.25, 0.5, 0.75)},
        "low_rank": {"share": (0.2, 0.3, 0.4)},
        "unstructured_pruning": {"sparsity": (0.5, 0.7, 0.9)},
        "distillation": {"student": ("half", "quarter")},
    }
    study = Study(families, [PLAIN], 0)
    pruned, thin, sparse, half, quarter = study.ask(5)
    (less,) = study.milder(sparse, 2)
    assert less.techniques[0].settings["sparsity"] == 0.5
    (less,) = study.milder(training_space.trained_for(pruned, 9), 2)
    assert less.techniques[0].settings["ratio"] == 0.25
    (less,) = study.milder(thin, 2)
    assert less.techniques[0].settings["share"] == 0.4
    for none in (half, quarter, less, pruned, PLAIN):  # nothing beyond; it was asked; it does not train
        assert study.milder(none, 2) == []


def test_a_step_back_trains_more_gently_too() -> None:
    """A network that forgot too much may have been trained at too high a rate: the same is asked at a lower
    one, beside what takes less away; of who is pruned together, nobody knows which loses less."""
    settings = {"ratio": (0.25, 0.5), "scope": ("global", "layer"), "learning_rate": (1e-4, 3e-4, 1e-3)}
    study = Study({"channel_pruning": settings}, [PLAIN], 0)
    (half,) = study.ask(1)

    def told(recipes: Sequence[Recipe]) -> list[tuple[float, float]]:
        of = [recipe.techniques[0].settings for recipe in recipes]
        assert {each["scope"] for each in of} <= {"layer"}  # its middle
        return [(each["ratio"], each["learning_rate"]) for each in of]

    assert told([half]) == [(0.5, 3e-4)]
    back = study.milder(half, 2)
    assert told(back) == [(0.25, 3e-4), (0.5, 1e-4)]
    assert told(study.milder(back[0], 2)) == [(0.25, 1e-4)]
    assert study.milder(back[1], 2) == []  # its only step back was asked just now
    assert study.beside(half) == []  # in both directions of what is taken away alone


def test_a_step_back_that_is_not_taken_is_asked_later(tmp_path: Path) -> None:
    """Of six points each loses too much: the first round's two lossy ones have more neighbours than it takes,
    and none of the six is lost."""
    families = {"channel_pruning": {"ratio": (0.25, 0.5, 0.75), "learning_rate": (1e-4, 3e-4)}}
    study = Study(families, [PLAIN], 0)
    (first,) = study.ask(1)
    assert len(study.milder(first, 1)) == 1
    assert len(study.ask(9)) == 4


def test_where_a_pass_may_take_longer_than_is_left_one_recipe_shows_how_long_it_takes(tmp_path: Path) -> None:
    """Estimated at 100 minutes each, passes take half of one: a whole round follows. Where none is begun, the
    time that is left is told."""
    ours = search(tmp_path, effort=Effort(100.0), minutes=60.0, recipe_minutes=5.0)
    waves, _ = run(ours, landscape, lambda recipe: 0.1 + 0.5 * epochs_of(recipe))
    first, second, *_ = (wave for wave in waves if wave.words.startswith("trained"))
    assert (len(first.recipes), len(second.recipes) > 1) == (1, True)
    short = dataclasses.replace(ours, recipe_minutes=100.0, known=[Trial(PLAIN, 1.0, 0.0)])
    waves, ended = run(short, landscape)
    assert not any(wave.words.startswith("trained") for wave in waves)
    assert ended.words == "what comes next takes about 100 minutes, and 60 are left"


def test_of_what_loses_too_much_the_least_lossy_is_repaired_of_what_can_be(tmp_path: Path) -> None:
    ours = search(tmp_path)
    plain = Trial(PLAIN, 1.0, 0.0)
    float_one = Trial(Recipe((Step("fp16"),), PLAIN.backend), 0.1, 0.001, lost=0.001)
    hopeless, lossy, near = (
        Trial(Recipe((Step("static_int8", {"samples": n}),), PLAIN.backend), 0.1 * n, lost, lost=lost)
        for n, lost in ((1, 0.3), (2, 0.2), (3, 0.002))
    )
    ours.known = [plain, float_one, hopeless, lossy, near]
    found = ours._repairs()
    samples = [step.settings.get("samples") for recipe in found for step in recipe.techniques]
    assert [n for n in dict.fromkeys(samples) if n in (1, 2, 3)] == [3, 2]


def test_of_many_values_steps_are_long_first_and_then_half_as_long() -> None:
    """By hand, of 17 from 0.2 to 0.52: the middle; four on each side, two, one, and then none is left."""
    ratios = tuple(round(0.2 + 0.02 * n, 2) for n in range(17))
    study = Study({"channel_pruning": {"ratio": ratios, "learning_rate": (1e-3,)}}, [PLAIN], 0)

    def asked(recipes: Sequence[Recipe]) -> list[float]:
        return [recipe.techniques[0].settings["ratio"] for recipe in recipes]

    (middle,) = study.ask(1)
    assert asked([middle]) == [0.36]
    assert [asked(study.beside(middle)) for _ in range(4)] == [[0.44, 0.28], [0.4, 0.32], [0.38, 0.34], []]
    assert len(study.ask(17)) == 10


def of_six_blocks(families: Mapping[str, training_space.Settings]) -> dict[str, Any]:
    """What each ratio takes of six blocks: at a half and at five eighths three."""
    return {
        taker.label: int(6 * taker.settings["ratio"])
        for taker in training_space.takers(families)
        if taker.name == "layer_pruning"
    }


def test_what_makes_the_same_network_is_asked_once_and_stepped_over() -> None:
    """By hand: ratios 0.5 and 0.625 are one, asked as the middle; next to it are 0.75 and 0.25."""
    rates = (1e-4, 1e-3)
    families = {"layer_pruning": {"ratio": (0.25, 0.5, 0.625, 0.75), "learning_rate": rates}}

    def asked(recipes: Sequence[Recipe]) -> list[tuple[float, float]]:
        of = [recipe.techniques[0].settings for recipe in recipes]
        return [(each["ratio"], each["learning_rate"]) for each in of]

    ours, other = (Study(families, [PLAIN], 0, of_six_blocks(families)) for _ in range(2))
    (first,) = ours.ask(1)
    assert asked([first]) == [(0.625, 1e-3)]
    steps = ours.beside(training_space.trained_for(first, 9))
    assert asked(steps) == [(0.75, 1e-3), (0.25, 1e-3)]
    left = ours.ask(9)
    whole = [(int(6 * ratio), rate) for ratio, rate in asked([first, *steps, *left])]
    assert sorted(whole) == sorted(itertools.product((1, 3, 4), rates))
    assert asked(other.milder(other.ask(1)[0], 2)) == [(0.25, 1e-3), (0.625, 1e-4)]


def test_a_search_trains_no_network_twice_by_other_ratios(tmp_path: Path) -> None:
    """Four networks, at each of three rates and by each of two finishes: not five."""
    here = dataclasses.replace(TEXTS, chosen={"layer_pruning": {}})
    takes = of_six_blocks(training_space.families(here))

    def asked() -> list[list[str]]:
        waves, _ = run(search(tmp_path, here, takes=lambda: takes), improving())
        first = [wave.recipes for wave in waves if wave.words.startswith("trained for 9 of")]
        return [[training_space.named(recipe, takes) for recipe in recipes] for recipes in first]

    names = list(itertools.chain(*asked()))
    assert len(names) == len(set(names)) == 4 * 3 * 2
    assert asked() == asked()


@pytest.mark.parametrize("trainable", [True, False])
def test_what_settings_take_is_found_out_right_before_anything_trains(
    trainable: bool, tmp_path: Path
) -> None:
    """But for the preflight, which tries each technique on a batch."""
    seen = list[str]()

    def takes() -> dict[str, Any]:
        seen.append("takes")
        return {}

    def outcome(recipe: Recipe) -> tuple[float, float]:
        searched = {step.name for step in recipe.techniques} & training_space.families(here).keys()
        seen.append("searched" if searched else "plain")
        return 0.9, 0.0

    here = dataclasses.replace(IMAGES, trainable=trainable)
    run(search(tmp_path, here, takes=takes), outcome)
    phases = [phase for phase, _ in itertools.groupby(seen)]
    assert phases[:4] == (["searched", "plain", "takes", "searched"] if trainable else ["plain"])
    assert seen.count("takes") == trainable


def improving() -> Callable[[Recipe], tuple[float, float]]:
    """Whatever comes next is better: a search goes on until nothing is left."""
    costs = itertools.count(1)
    return lambda _: (0.9 ** next(costs), 0.0)


def test_what_may_lose_less_is_said_of_settings_that_there_are() -> None:
    trained = [technique for technique in TECHNIQUES.values() if issubclass(technique, TrainedTechnique)]
    known = {setting for technique in trained for setting in technique.model_fields}
    assert {*training_space.LOSES_MORE, *training_space.LOSES_LESS} <= known


def test_a_study_that_is_told_the_same_asks_the_same() -> None:
    def asked() -> list[str]:
        study = Study(training_space.families(TEXTS), [PLAIN], 3)
        found = []
        for _ in range(4):
            for recipe in study.ask(5):
                found.append(recipe.label)
                cost, excess = landscape(recipe)
                study.tell(recipe, Trial(recipe, cost, excess))
        return found

    assert asked() == asked()


def test_a_space_that_is_used_up_gives_no_more() -> None:
    study = Study({"low_rank": {"share": (0.2, 0.3)}}, [PLAIN], 0)
    assert len(study.ask(9)) == 2
    assert study.ask(9) == []


def test_a_technique_whose_settings_are_all_fixed_has_no_steps_beside_it() -> None:
    study = Study({"qat_int8": {}}, [PLAIN], 0)
    (only,) = study.ask(2)
    assert study.beside(only) == []


def test_two_studies_of_one_file_do_not_touch_each_other(tmp_path: Path) -> None:
    """Two runs of one pipeline: the file is whole, and of the one that wrote it last."""
    file = tmp_path / "run" / "study.log"
    ours, theirs = (Study(training_space.families(IMAGES), [PLAIN], seed) for seed in (0, 1))
    asked = [study.ask(count) for study, count in ((ours, 3), (theirs, 5))]
    for study in (theirs, ours):
        study.write(file)
    ours.tell(asked[0][0], Trial(asked[0][0], 0.5, 0.0))
    theirs.tell(asked[1][0], Trial(asked[1][0], 0.5, 0.0))
    shown = optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(file))))
    assert len(shown.trials) == 3
    assert [path.name for path in file.parent.iterdir()] == ["study.log"]


def test_a_full_disk_is_the_stores_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(StoreError, match="the disk is full"):
        Study(training_space.families(IMAGES), [PLAIN], 0).write(tmp_path / "study.log")


def landscape(recipe: Recipe) -> tuple[float, float]:
    """An invented cost and excess: int8 halves the cost, a student too; little training loses much."""
    cost, excess = 1.0, 0.0
    for step in recipe.techniques:
        if step.name in ("static_int8", "nncf_int8"):
            cost *= 0.5
        elif "epochs" in step.settings:
            kept = (
                step.settings.get("share")
                or step.settings.get("depth")
                or 1 - step.settings.get("ratio", 0.5)
            )
            cost *= kept
            excess += max(0.0, 0.3 - kept + 0.2 / step.settings["epochs"])
        else:
            cost *= 1.5
    return cost, excess


def run(
    search: Search,
    outcome: Callable[[Recipe], tuple[float, ...] | str],
    minutes: Callable[[Recipe], float] = lambda _: 0.1,
) -> tuple[list[Wave], Ended]:
    """A whole search of a landscape: cost, excess, and what of it is quality, where that is not all of it; a
    text is what a recipe fails of."""
    waves, seen = search.waves(), list[Wave]()
    told: dict[str, Trial] | None = None
    try:
        while True:
            wave = next(waves) if told is None else waves.send(told)
            seen.append(wave)
            found = [(recipe, outcome(recipe)) for recipe in wave.recipes]
            told = {
                r.label: Trial(r, reason=f, stopped=f == "TimedOutError")
                if isinstance(f, str)
                else Trial(r, f[0], f[1], lost=f[-1], minutes=minutes(r))
                for r, f in found
                if not wave.preflight or isinstance(f, str)
            }
    except StopIteration as end:
        return seen, end.value


def search(tmp_path: Path, here: Circumstances = TEXTS, **changes: Any) -> Search:
    given = {
        "here": here,
        "effort": Effort(0.01),
        "minutes": 60.0,
        "minutes_left": lambda: 60.0,
        "seed": 0,
        "file": tmp_path / "study.log",
        "known": [Trial(PLAIN, 1.0, 0.0)],
    }
    return Search(**{**given, **changes})


def test_a_round_leaves_time_for_one_that_goes_on_from_its_best(tmp_path: Path) -> None:
    """Not all five beginnings fit into half of the time; of what follows something is beside the best."""
    left = 20.0

    def spending(recipe: Recipe) -> tuple[float, float]:
        nonlocal left
        ratio = next((s.settings["ratio"] for s in recipe.techniques if "ratio" in s.settings), None)
        left -= 1.0 if "epochs" in str(recipe.to_json()) else 0.0
        return (1 - ratio if ratio else 0.9, -0.1)

    ours = search(tmp_path, IMAGES, minutes=20.0, minutes_left=lambda: left, effort=Effort(1.0, 0.0))
    waves, _ = run(ours, spending)
    first, *others = [w for w in waves if w.words.startswith("trained")]
    assert len(first.recipes) < 5
    ratios = {
        s.settings["ratio"] for w in others for r in w.recipes for s in r.techniques if "ratio" in s.settings
    }
    assert 0.625 in ratios  # one step on from 0.5
    leader = best(ours.known)
    assert leader is not None
    assert leader.recipe.techniques[0].settings["ratio"] > 0.5


def test_a_round_goes_back_from_what_loses_too_much(tmp_path: Path) -> None:
    """Half of the channels are too many, and nothing that trains passes yet: fewer are tried next."""

    def outcome(recipe: Recipe) -> tuple[float, float]:
        settings = recipe.techniques[0].settings if recipe.techniques else {}
        if "ratio" not in settings:
            return (0.9, 0.0)
        return (1 - settings["ratio"], max(0.0, settings["ratio"] - 0.4))

    ours = search(tmp_path, IMAGES)
    waves, _ = run(ours, outcome)
    asked = [
        step.settings["ratio"]
        for wave in waves
        if wave.words.startswith("trained")
        for recipe in wave.recipes
        for step in recipe.techniques
        if "ratio" in step.settings
    ]
    assert list(dict.fromkeys(asked))[:2] == [0.5, 0.375]
    leader = best(ours.known)
    assert leader is not None
    assert leader.recipe.techniques[0].settings["ratio"] == 0.375


def too_large(recipe: Recipe) -> tuple[float, float, float]:
    """The size is exceeded by what stays of the channels, and a little quality goes with the others."""
    ratios = [s.settings["ratio"] for s in recipe.techniques if s.name == "channel_pruning"]
    return (0.9, 10 * (1 - ratios[0]) + 0.01, 0.01) if ratios else (0.9, 10.0, 0.0)


def test_where_nothing_passes_the_search_goes_on_from_what_is_nearest(tmp_path: Path) -> None:
    """More of the channels go: steps back from a little lost quality would only miss the size by more."""
    here = dataclasses.replace(IMAGES, chosen={"channel_pruning": {"learning_rate": (1e-3,)}})
    waves, ended = run(search(tmp_path, here, known=[Trial(PLAIN, 1.0, 10.0)], minutes=0.5), too_large)
    first, _, second = [
        [r.techniques[0].settings["ratio"] for r in wave.recipes]
        for wave in waves
        if wave.words.startswith("trained")
    ][:3]
    assert second[0] > max(first)
    assert "rounds of training in a row brought nothing nearer to the limits of the SLA" in ended.words


def test_coming_nearer_is_a_gain_where_nothing_passes() -> None:
    far, near, passing = trial(0.5, 1.0), trial(0.9, 0.9), trial(0.95)
    assert nearest([far, near, trial(0.1, None)]) is near
    assert nearest([far, near, passing]) is passing
    assert gained(near, far)
    assert gained(passing, near)
    assert gained(trial(0.9), passing)
    assert not gained(trial(0.5, 0.99), far)
    assert not gained(far, far)
    assert not gained(passing, passing)


def test_a_search_goes_from_cheap_to_trained_and_finds_both_together(tmp_path: Path) -> None:
    ours = search(tmp_path)
    waves, ended = run(ours, landscape)
    assert [r.techniques[0].name for r in waves[0].recipes] == ["architecture_search"]  # it takes long:
    assert waves[0].preflight  # two subnets of it are tried on one batch
    assert waves[0].recipes[0].techniques[0].settings["trials"] == 2
    trained = [any("epochs" in s.settings for s in r.techniques) for w in waves[1:] for r in w.recipes]
    assert trained == sorted(trained)  # what is cheap comes first
    leader = best(ours.known)
    assert leader is not None
    assert {step.name for step in leader.recipe.techniques} & {"static_int8", "nncf_int8"}
    assert any("epochs" in step.settings for step in leader.recipe.techniques)
    assert leader.cost is not None
    assert leader.cost <= 0.2
    assert ended.words == "2 rounds of training in a row brought nothing better"


def test_a_devices_other_runtimes_come_after_what_is_quick_to_build(tmp_path: Path) -> None:
    pi = specs.read_profile(Path(__file__).parents[2] / "configs" / "devices" / "pi5.yaml")
    recipes = search(tmp_path, here=dataclasses.replace(IMAGES, profile=pi))._cheap()
    names = [recipe.backend.name for recipe in recipes]
    quick = [name in ("onnxruntime", "openvino") for name in names]
    assert quick == sorted(quick, reverse=True)
    assert "litert" in names


def test_the_second_rung_of_a_round_keeps_a_third(tmp_path: Path) -> None:
    waves, _ = run(search(tmp_path), landscape)
    first = next(i for i, wave in enumerate(waves) if wave.words.startswith("trained for 9 of"))
    assert len(waves[first].recipes) == 9
    assert len(waves[first + 1].recipes) <= 3
    assert [wave.words.split()[2] for wave in waves[first : first + 2]] == ["9", "27"]


def test_a_search_told_the_same_asks_the_same(tmp_path: Path) -> None:
    assert run(search(tmp_path), landscape) == run(search(tmp_path), landscape)


def test_what_was_asked_before_the_time_was_up_is_told_and_what_would_be_next(tmp_path: Path) -> None:
    left = iter([9.0] * 2 + [0.0] * 100)
    waves, ended = run(search(tmp_path, minutes_left=lambda: next(left)), landscape)
    assert ended.words == "the budget of 60 minutes was used up"
    assert ended.following
    asked = {recipe.label for wave in waves for recipe in wave.recipes}
    assert not asked & {recipe.label for recipe in ended.following}


def test_what_would_not_be_done_in_time_is_not_begun(tmp_path: Path) -> None:
    """An architecture search takes 24 subnets of 3.6 s, a minute and a half: more than is left. Where nothing
    loses too much, no round goes back, and each technique has its turn."""

    def lossless(recipe: Recipe) -> tuple[float, float]:
        return landscape(recipe)[0], 0.0

    waves, ended = run(search(tmp_path, minutes_left=lambda: 1.0), lossless)
    begun = {r.techniques[0].name for w in waves if w.words.startswith("trained") for r in w.recipes}
    assert "distillation" in begun
    assert "architecture_search" not in begun
    assert ended.words == "2 rounds of training in a row brought nothing better"


def test_long_training_is_tried_on_one_batch_first_and_what_fails_is_left_out(tmp_path: Path) -> None:
    def outcome(recipe: Recipe) -> tuple[float, float] | str:
        return (
            "UnsuitableError"
            if recipe.techniques[:1] and recipe.techniques[0].name == "low_rank"
            else (0.5, 0)
        )

    waves, _ = run(search(tmp_path, effort=Effort(5.0)), outcome)
    assert waves[0].preflight
    assert {recipe.techniques[0].name for recipe in waves[0].recipes} == set(training_space.families(TEXTS))
    assert [r.techniques[0].settings["share"] for r in waves[1].recipes] == [
        0.5
    ]  # once more, as mild as it goes
    later = {step.name for wave in waves[2:] for recipe in wave.recipes for step in recipe.techniques}
    assert "low_rank" not in later
    assert "distillation" in later


def test_what_fails_on_one_batch_with_its_middle_setting_may_yet_suit_with_its_mildest(
    tmp_path: Path,
) -> None:
    def outcome(recipe: Recipe) -> tuple[float, float] | str:
        settings = recipe.techniques[0].settings if recipe.techniques else {}
        return "UnsuitableError" if 0.4 in settings.values() or "depth" in settings else (0.5, 0)

    waves, _ = run(search(tmp_path, effort=Effort(5.0)), outcome)
    again = [(r.techniques[0].name, r.techniques[0].settings) for r in waves[1].recipes]
    assert waves[1].preflight
    assert [name for name, _ in again] == ["low_rank", "distillation"]
    assert (again[0][1]["share"], again[1][1]["depth"]) == (0.5, 0.75)
    later = {step.name for wave in waves[2:] for recipe in wave.recipes for step in recipe.techniques}
    assert "low_rank" in later
    assert "distillation" not in later


def test_training_takes_its_share_of_the_budget_at_most(tmp_path: Path) -> None:
    """An eighth of 40 minutes is 5: five passes of a minute, after two of them."""
    waves, _ = run(search(tmp_path, effort=Effort(1.0), minutes=40.0), lambda r: (*landscape(r),))
    trained = [wave for wave in waves if wave.words.startswith("trained")]
    assert trained[0].words.endswith("of 5 passes")


@pytest.mark.parametrize(("a_pass", "expected"), [(1.5, 3), (3.5, 2), (5.0, None)])
def test_what_is_slow_to_train_goes_as_far_as_its_limit_allows(
    a_pass: float, expected: int | None, tmp_path: Path
) -> None:
    """Of rungs of 1 and 3 passes: a recipe is stopped after 10 minutes, and may be expected to take 8."""

    def minutes(recipe: Recipe) -> float:
        return 0.1 + epochs_of(recipe) * (a_pass if is_student(recipe) else 1.0)

    def outcome(recipe: Recipe) -> tuple[float, float]:
        return (0.01, 0.0) if is_student(recipe) else landscape(recipe)

    ours = search(tmp_path, IMAGES, effort=Effort(1.8), recipe_minutes=10.0)
    waves, _ = run(ours, outcome, minutes)
    first, second = (
        [r for w in waves if w.words == f"trained for {n} of 3 passes" for r in w.recipes] for n in (1, 3)
    )
    assert {epochs_of(r) for r in first if is_student(r)} == {1}
    assert {epochs_of(r) for r in second if is_student(r)} == ({expected} if expected else set())


def test_what_was_stopped_by_its_limit_is_not_begun_again_with_other_settings(tmp_path: Path) -> None:
    """One student is stopped in the first rung: it alone is left out, and so is each architecture search."""

    def outcome(recipe: Recipe) -> tuple[float, float] | str:
        settings = recipe.techniques[0].settings if recipe.techniques else {}
        slow = settings.get("trials") == training_space.TRIALS or settings.get("student") == "half"
        return "TimedOutError" if slow else landscape(recipe)

    waves, _ = run(search(tmp_path, IMAGES, seed=1), outcome)
    rungs = [
        {(r.techniques[0].name, r.techniques[0].settings.get("student")) for r in wave.recipes}
        for wave in waves
        if wave.words.startswith("trained for 9")
    ]
    for stopped in (("architecture_search", None), ("distillation", "half")):
        assert sum(stopped in rung for rung in rungs) == 1
        assert stopped not in rungs[-1]
    assert ("distillation", "quarter") in set.union(*rungs[1:])


def test_a_search_goes_on_though_a_runtime_was_stopped_by_its_limit(tmp_path: Path) -> None:
    def outcome(recipe: Recipe) -> tuple[float, float] | str:
        return landscape(recipe) if recipe.techniques else "TimedOutError"

    waves, _ = run(search(tmp_path, IMAGES), outcome)
    assert any(wave.words.startswith("trained for") for wave in waves)


def is_student(recipe: Recipe) -> bool:
    return any(step.name == "distillation" for step in recipe.techniques)


@pytest.mark.parametrize(("openvino", "tried"), [(0.28, {"onnxruntime", "openvino"}), (0.4, {"onnxruntime"})])
def test_settings_are_tried_of_every_runtime_that_comes_near_the_best(
    openvino: float, tried: set[str], tmp_path: Path
) -> None:
    """Timings vary: what is first by a little may not be first with the best settings of both."""

    def outcome(recipe: Recipe) -> tuple[float, float]:
        names = [step.name for step in recipe.techniques]
        return ({"nncf_int8": openvino, "static_int8": 0.25}.get(names[0], 1.0) if names else 1.0, 0.0)

    waves, _ = run(search(tmp_path, IMAGES), outcome)
    (settings,) = [wave.recipes for wave in waves if wave.words.startswith("with other settings")]
    assert {recipe.backend.name for recipe in settings} == tried
    assert {recipe.techniques[0].name for recipe in settings} <= {"static_int8", "nncf_int8"}


def test_each_near_way_gets_its_runtimes_settings_and_training_goes_on_with_two_ways(tmp_path: Path) -> None:
    """OpenVINO's bf16 is first, with static shapes more so; int8 by the same runtime is another way."""
    static = {"static_shapes": True, "huge_pages": True}

    def outcome(recipe: Recipe) -> tuple[float, float]:
        settings, names = recipe.backend.settings, [step.name for step in recipe.techniques]
        cost = 0.2 if settings.get("precision") == "bf16" else 0.25 if names[-1:] == ["nncf_int8"] else 1.0
        return cost * (0.8 if static.items() <= settings.items() else 1.0), 0.0

    waves, _ = run(search(tmp_path, IMAGES), outcome)
    (settings,) = [wave.recipes for wave in waves if wave.words.startswith("with other settings")]
    tried = [([step.name for step in r.techniques], r.backend.settings.get("precision")) for r in settings]
    assert tried == [([], "bf16"), (["nncf_int8"], "f32"), ([], "bf16"), ([], "bf16")]
    assert [static.items() <= r.backend.settings.items() for r in settings] == [True, True, False, False]
    trained = [r for wave in waves if wave.words.startswith("trained") for r in wave.recipes]
    assert {r.backend.settings.get("precision") for r in trained} == {"bf16", "f32"}
    assert all(static.items() <= r.backend.settings.items() for r in trained)


def test_settings_take_a_quarter_of_the_time_left(tmp_path: Path) -> None:
    """Of 4.5 minutes: two builds of half a minute."""
    ours = search(tmp_path, IMAGES, effort=Effort(0.01, 0.5), minutes_left=lambda: 4.5)
    waves, _ = run(ours, lambda _: (0.5, 0.0), minutes=lambda _: 0.5)
    (settings,) = [wave.recipes for wave in waves if wave.words.startswith("with other settings")]
    assert len(settings) == 2


def test_lossy_but_fast_is_repaired(tmp_path: Path) -> None:
    def outcome(recipe: Recipe) -> tuple[float, float]:
        return (0.4, 0.2) if [s.name for s in recipe.techniques] == ["static_int8"] else (0.9, 0.0)

    waves, _ = run(search(tmp_path, here=dataclasses.replace(IMAGES, trainable=False)), outcome)
    (repairs,) = [wave for wave in waves if wave.words == "to give back the quality that was lost"]
    assert {recipe.techniques[0].name for recipe in repairs.recipes} == {"static_int8", "mixed_int8"}


def test_a_repair_needs_the_time_of_what_it_does_anew(tmp_path: Path) -> None:
    """Its student was trained for 27 passes of 0.1 minutes: half a minute suffices for each repair."""
    lossy = Recipe((*trained(27).techniques, Step("static_int8")), PLAIN.backend)
    known = [
        Trial(PLAIN, 1.0, 0.0),
        Trial(trained(27), 0.8, 0.0, minutes=2.8),
        Trial(lossy, 0.4, 0.1, 0.1, 0.1),
    ]
    ours = search(tmp_path, IMAGES, known=known, minutes_left=lambda: 0.5)
    repairs = ours._repairs()
    assert {r.techniques[-1].name for r in repairs} == {"static_int8", "mixed_int8", "qat_int8"}
    assert ours._in_time(repairs[-1:]) == repairs[-1:]


def test_first_repairs_keep_to_half_of_the_time_left_and_to_the_limit_of_one(tmp_path: Path) -> None:
    """Two ways are fast and lossy, and a pass takes 10 minutes: QAT of 2 passes fits once, or never; what
    does not train does. What its limit alone keeps out is told with its minutes, and not as what more time
    would try."""

    def outcome(recipe: Recipe) -> tuple[float, float]:
        lossy = [s.name for s in recipe.techniques] in (["static_int8"], ["nncf_int8"])
        return (0.4, 0.2) if lossy else (0.9, 0.0)

    for minutes, qats in ((math.inf, 1), (5.0, 0)):
        ours = search(tmp_path, IMAGES, effort=Effort(10.0), recipe_minutes=minutes)
        waves, ended = run(ours, outcome, lambda recipe: 0.1 + 10 * epochs_of(recipe))
        (repairs,) = [w.recipes for w in waves if w.words == "to give back the quality that was lost"]
        names = [r.techniques[-1].name for r in repairs]
        assert names.count("qat_int8") == qats
        assert names.count("mixed_int8") == 1
    long = [(r.backend.name, needed) for r, needed in ended.too_long if r.techniques[-1].name == "qat_int8"]
    assert [name for name, _ in long] == ["onnxruntime", "openvino"]
    assert [needed for _, needed in long] == pytest.approx([20.1, 20.1])
    assert "qat_int8" not in [s.name for r in ended.following for s in r.techniques]


@pytest.mark.parametrize("pruned", [True, False])
def test_what_was_put_off_is_named_where_nothing_better_than_what_it_improves_has_come(
    pruned: bool, tmp_path: Path
) -> None:
    """There is no time for repairs of int8 and for settings. In the one case a pruned network comes in time,
    four times as fast."""

    def outcome(recipe: Recipe) -> tuple[float, float]:
        names = [step.name for step in recipe.techniques]
        if "channel_pruning" in names:
            return 0.1, 0.0
        return (0.4, 0.2) if names == ["static_int8"] else (0.9, 0.0)

    looks = itertools.chain([60.0, 0.0, 0.0, 0.0], itertools.repeat(60.0 * pruned))
    ours = search(tmp_path, IMAGES, minutes_left=lambda: next(looks))
    _, ended = run(ours, outcome)
    named = {recipe.label for recipe in ended.following}
    of_int8 = {label for label in ours._put_off if "qat_int8" in label or "mixed_int8" in label}
    assert len(of_int8) == 2
    assert named & set(ours._put_off) == (set() if pruned else set(ours._put_off))


@pytest.mark.parametrize(("minutes", "limit", "passes"), [(60.0, 5.0, 1), (60.0, 10.0, 2), (10.0, 10.0, 1)])
def test_a_repair_trains_for_as_many_passes_as_fit_and_is_not_asked_for_again(
    minutes: float, limit: float, passes: int, tmp_path: Path
) -> None:
    """A pass is expected to take 3 minutes: two exceed a limit of 5, and half of 10 that are left. They take
    half of one, and so two fit in the end: what was repaired by one pass is not tried by two."""
    costs = {"static_int8": (0.4, 0.2), "qat_int8": (2.0, 0.0)}

    def outcome(recipe: Recipe) -> tuple[float, float]:
        names = [step.name for step in recipe.techniques]
        return costs.get(names[0], (0.9, 0.0)) if len(names) == 1 else (0.9, 0.0)

    ours = search(tmp_path, IMAGES, effort=Effort(3.0), minutes_left=lambda: minutes, recipe_minutes=limit)
    waves, _ = run(ours, outcome, lambda recipe: 0.1 + 0.5 * epochs_of(recipe))
    taught = [[s.settings["epochs"] for s in r.techniques] for w in waves for r in w.recipes if repaired(r)]
    assert taught == [[passes]]


def repaired(recipe: Recipe) -> bool:
    return [step.name for step in recipe.techniques] == ["qat_int8"]


def test_of_a_repair_as_many_passes_are_named_as_its_limit_allows(tmp_path: Path) -> None:
    """Of 3 minutes each two exceed the limit of 5, and there is no time for one."""
    lossy = Trial(Recipe((Step("static_int8"),), PLAIN.backend), 0.4, 0.1, 0.1)
    changes: dict[str, Any] = {"effort": Effort(3.0), "recipe_minutes": 5.0, "minutes_left": lambda: 2.0}
    ours = search(tmp_path, IMAGES, known=[Trial(PLAIN, 1.0, 0.0), lossy], **changes)
    ours._in_time(ours._repairs(), briefer=space.in_fewer_passes)
    ended = ours._ended("so it is")
    assert [r.techniques[0].settings["epochs"] for r in ended.following if repaired(r)] == [1]
    assert ended.too_long == ()


def test_what_the_time_cuts_off_is_named_as_far_as_its_limit_allows(tmp_path: Path) -> None:
    """One pass took 3.5 minutes: of three, two are expected to end in 8 of 10."""
    ours = search(tmp_path, effort=Effort(1.8), recipe_minutes=10.0, minutes_left=lambda: 0.0)
    waves = ours._halved([trained(1)])
    (short,) = next(waves).recipes
    with pytest.raises(StopIteration):
        waves.send({short.label: Trial(short, 0.5, 0.0, minutes=3.6)})
    assert [epochs_of(recipe) for recipe in ours._cut_off] == [2]


@pytest.mark.parametrize(("beside", "begun"), [(1, 1), (2, 2), (4, 4)])
def test_what_is_built_side_by_side_takes_as_long_as_the_longest_of_it(
    beside: int, begun: int, tmp_path: Path
) -> None:
    """By hand: each takes 10 minutes, and 15 are left, in a round and elsewhere."""
    ours = search(tmp_path, effort=Effort(10.0, 0.0), beside=beside, minutes_left=lambda: 15.0)
    rates = (1e-3, 2e-3, 3e-3, 4e-3)
    steps = [training_space.step("distillation", {"depth": 0.5, "learning_rate": r}, 1) for r in rates]
    asked = [Recipe((step,), PLAIN.backend) for step in steps]
    assert ours._fitting(asked) == (asked[:begun], asked[begun:])
    assert ours._in_time(asked) == asked[:begun]
    assert ours._together([10.0, 2.0, 3.0, 4.0, 1.0]) == {1: 20.0, 2: 15.0, 4: 11.0}[beside]


def test_survivors_that_the_time_cuts_off_are_named(tmp_path: Path) -> None:
    left = 60.0

    def outcome(recipe: Recipe) -> tuple[float, float]:
        nonlocal left
        left = 0.0 if epochs_of(recipe) == 9 else left
        return landscape(recipe)

    waves, ended = run(search(tmp_path, minutes_left=lambda: left), outcome)
    assert not any(w.words == "trained for 27 of 27 passes" for w in waves)
    assert 27 in {s.settings.get("epochs") for r in ended.following for s in r.techniques}


def test_a_round_without_hope_does_not_end_the_search(tmp_path: Path) -> None:
    """Of two recipes a round the first two prune, which can speed up nothing: others may yet."""
    shares = {"pruning": 0.0, "compiler": 0.0}
    ours = search(tmp_path, effort=Effort(1.0), minutes=2.0, families=shares)
    waves, ended = run(ours, lambda r: (2.0 if r.techniques else 0.9, 0.0))
    begun = {r.techniques[0].name for w in waves if w.words.startswith("trained") for r in w.recipes}
    assert "low_rank" in begun
    assert {r.techniques[0].name for r, _ in ended.hopeless} >= {"channel_pruning", "layer_pruning"}


@pytest.mark.parametrize(
    ("changes", "excess", "tried"),
    [
        ({"smallest_wins": True}, 0.0, True),
        ({"size_bounded": True}, 0.1, True),
        ({"size_bounded": True}, 0.0, False),
        ({}, 0.1, False),
    ],
    ids=["it wins", "nothing is small enough", "the baseline is", "nobody asks"],
)
def test_fewer_bits_are_tried_where_size_matters(
    changes: dict[str, Any], excess: float, tried: bool, tmp_path: Path
) -> None:
    here, known = dataclasses.replace(IMAGES, **changes), [Trial(PLAIN, 1.0, excess)]
    waves, _ = run(search(tmp_path, here, known=known), lambda _: (0.9, excess, 0.0))
    recipes = [recipe for wave in waves for recipe in wave.recipes]
    names = {(s.name, r.backend.settings.get("packed")) for r in recipes for s in r.techniques}
    few = {("int4", True), ("int4", False), ("kmeans_sharing", True), ("static_int8", True)}
    assert names & few == (few if tried else set())


def test_what_is_too_large_is_not_repaired_as_if_it_were_lossy(tmp_path: Path) -> None:
    def outcome(recipe: Recipe) -> tuple[float, float, float]:
        return (0.4, 0.2, 0.0) if [s.name for s in recipe.techniques] == ["static_int8"] else (0.9, 0.0, 0.0)

    waves, _ = run(search(tmp_path, here=IMAGES), outcome)
    assert not any("quality" in wave.words for wave in waves)


def test_what_training_made_fast_and_lossy_is_repaired_too(tmp_path: Path) -> None:
    """A pruned network in int8 is fastest, and loses too much until it learns how it is rounded."""

    def outcome(recipe: Recipe) -> tuple[float, float]:
        match [step.name for step in recipe.techniques]:
            case ["channel_pruning", "static_int8"]:
                return 0.2, 0.1
            case ["static_int8"]:
                return 0.5, 0.0
        return 0.9, 0.0

    waves, _ = run(search(tmp_path, here=IMAGES), outcome)
    (mended,) = [w for w in waves if w.words == "to give back the quality that training has lost"]
    assert [[s.name for s in r.techniques][1:] for r in mended.recipes[-1:]] == [["qat_int8"]]
    assert {r.techniques[0].name for r in mended.recipes} == {"channel_pruning"}


def test_a_repair_that_did_not_help_is_not_asked_for_again(tmp_path: Path) -> None:
    def outcome(recipe: Recipe) -> tuple[float, float]:
        return (0.4, 0.2) if [s.name for s in recipe.techniques] == ["static_int8"] else (0.9, 0.0)

    waves, _ = run(search(tmp_path, here=IMAGES), outcome)
    asked = [recipe.label for wave in waves if not wave.preflight for recipe in wave.recipes]
    assert len(asked) == len(set(asked))


def test_other_seeds_are_trained_as_far_as_the_time_goes_and_named_else(tmp_path: Path) -> None:
    """The clock stands still but for the last look, at seeds: then one of two fits, or none."""
    ours = search(tmp_path)
    run(ours, landscape)
    each = ours._effort_now().minutes(ours._by_other_seeds()[0])
    for left, done in ((2.5 * each, 2), (1.5 * each, 1), (0.5 * each, 0)):
        ours.minutes_left = lambda left=left: left  # type: ignore[misc]
        assert len(ours._in_time(ours._by_other_seeds())) == done
    waves, ended = run(search(tmp_path, minutes_left=lambda: 0.0), landscape)
    assert not any("seeds" in wave.words for wave in waves)
    ours = search(
        tmp_path, known=[Trial(PLAIN, 1.0, 0.0), Trial(trained(9), 0.1, 0.0)], minutes_left=lambda: 0.0
    )
    _, ended = run(ours, lambda r: (0.9, 0.0))
    seeds = [[s.settings.get("seed") for s in r.techniques] for r in ended.following]
    assert [1] in seeds
    assert [2] in seeds
    paged = [r for r in ended.following if r.backend.settings.get("huge_pages")]
    seeds_of_best = [s.settings.get("seed") for r in paged for s in r.techniques]
    assert seeds_of_best == [None, None]  # normalizations merged, and apart


def test_a_way_is_what_decides_the_answers() -> None:
    """Rewritten graphs, pages and passes are not part of it; a precision is."""
    dynamic, fused = Step("dynamic_int8"), Step("attention_fusion")
    paged = Recipe((fused, dynamic), Step("onnxruntime", {"huge_pages": True}))
    assert space.way_of(paged) == space.way_of(Recipe((dynamic,), Step("onnxruntime", {"threads": 1})))
    narrow = Recipe((), Step("openvino", {"precision": "bf16", "threads": 1}))
    assert space.way_of(narrow) == Recipe((), Step("openvino", {"precision": "bf16"}))


REFUSED = "UnsuitableError: `attention_fusion` needs a self-attention of a known pattern, but none was found"
FUSED = Recipe((Step("attention_fusion"), Step("dynamic_int8")), PLAIN.backend)


@pytest.mark.parametrize(
    ("reasons", "fused"),
    [
        ([REFUSED], False),
        (["OutOfMemoryError: `make` must have room"], True),
        (["UnsuitableError: some width must be free to shrink, but none is"], True),
        ([REFUSED, None], True),
        ([None, REFUSED], True),
    ],
    ids=["refused", "out of memory", "its technique refuses", "refused, then fused", "fused, then refused"],
)
def test_attention_is_left_as_it_is_only_where_fusing_it_was_refused_and_never_went(
    reasons: list[str | None], fused: bool
) -> None:
    study = Study({"low_rank": {"share": (0.2, 0.3, 0.4)}}, [FUSED], 0)
    for reason, recipe in zip(reasons, study.ask(len(reasons)), strict=True):
        study.tell(recipe, Trial(recipe, reason=reason) if reason else Trial(recipe, 0.5, 0.0))
    (following,) = study.ask(1)
    assert ("attention_fusion" in [step.name for step in following.techniques]) is fused


def test_what_fails_when_trained_longer_is_told_as_it_was_timed_before(tmp_path: Path) -> None:
    waves = search(tmp_path)._halved([trained(1)])
    (short,) = next(waves).recipes
    timed = Trial(short, 0.5, 0.0)
    (longer,) = waves.send({short.label: timed}).recipes
    with pytest.raises(StopIteration) as end:
        waves.send({longer.label: Trial(longer, reason="OutOfMemoryError")})
    assert end.value.value == {trained(1).label: timed}


def test_what_fails_where_attention_is_fused_is_asked_again_without(tmp_path: Path) -> None:
    """Of factors none can be fused: that is seen once, and what was trained goes on without."""

    def outcome(recipe: Recipe) -> tuple[float, float] | str:
        names = [step.name for step in recipe.techniques]
        if not {"attention_fusion", "dynamic_int8"} <= set(names):
            return (0.9, 0.0) if names else (1.0, 0.0)
        return REFUSED if "low_rank" in names else (0.5, 0.0)

    waves, _ = run(search(tmp_path), outcome)
    asked = [[[s.name for s in r.techniques] for r in wave.recipes] for wave in waves if not wave.preflight]
    fused, plain = ["low_rank", "attention_fusion", "dynamic_int8"], ["low_rank", "dynamic_int8"]
    (failed,) = [i for i, names in enumerate(asked) if fused in names]
    assert plain in [names for wave in asked[failed + 1 :] for names in wave]
    assert ["head_pruning", "attention_fusion", "dynamic_int8"] in asked[failed]


def trained(epochs: int) -> Recipe:
    step = training_space.step("distillation", {"depth": 0.5, "learning_rate": 1e-3}, epochs)
    return Recipe((step,), PLAIN.backend)


def test_the_best_one_is_trained_by_other_seeds_if_it_is_trained(tmp_path: Path) -> None:
    ours = search(tmp_path, seed=5)
    waves, _ = run(ours, landscape)
    seeds = [
        [s.settings.get("seed") for s in r.techniques if "epochs" in s.settings] for r in waves[-1].recipes
    ]
    assert seeds == [[6], [7]]
    leader = best(trial for trial in ours.known if trial.recipe not in waves[-1].recipes)
    assert leader is not None
    alike = training_space.seedless(leader.recipe)
    assert all(training_space.seedless(recipe) == alike for recipe in waves[-1].recipes)
    waves, _ = run(search(tmp_path), lambda r: (0.5, 0.0) if len(r.techniques) < 2 else (0.9, 0.0))
    assert not any("seeds" in wave.words for wave in waves)  # what is best needs no training


def test_what_amdahl_lets_become_no_faster_than_the_best_is_left_out_and_named(tmp_path: Path) -> None:
    """Distillation can touch half of the time: int8 is faster already than twice."""
    shares = {"distillation": 0.5, "quantization": 0.0}
    ours = search(tmp_path, families=shares)
    waves, ended = run(ours, lambda r: (0.4, 0.0) if len(r.techniques) == 1 else (0.9, 0.0))
    begun = {r.techniques[0].name for w in waves if w.words.startswith("trained") for r in w.recipes}
    assert not begun & {"distillation", "architecture_search"}
    assert {r.techniques[0].name for r, _ in ended.hopeless} == {"distillation", "architecture_search"}
    assert all(at_most == pytest.approx(2) for _, at_most in ended.hopeless)


def test_what_another_runtime_may_still_speed_up_is_not_left_out(tmp_path: Path) -> None:
    """As above, but what is best runs by OpenVINO: of the whole, the baseline's profile bounds nothing."""
    ours = search(tmp_path, families={"distillation": 0.5, "quantization": 0.0, "compiler": 1.0})
    waves, ended = run(ours, lambda r: (0.4 if r.backend.name == "openvino" else 0.9, 0.0))
    begun = {r.techniques[0].name for w in waves if w.words.startswith("trained") for r in w.recipes}
    assert "distillation" in begun
    assert all(recipe.backend.name != "openvino" for recipe, _ in ended.hopeless)


def test_the_rates_of_the_device_bound_nothing_that_is_timed_here(tmp_path: Path) -> None:
    """On a Pi bytes multiply 4 times as fast as floats; here int8 alone is 5 times as fast."""
    pi = specs.read_profile(Path(__file__).parents[2] / "configs" / "devices" / "pi5.yaml")
    here = dataclasses.replace(IMAGES, profile=pi)
    ours = search(tmp_path, here, families={"pruning": 0.1, "low rank": 0.1, "distillation": 0.1})
    int8 = {"static_int8", "dynamic_int8"}
    _, ended = run(ours, lambda r: (0.2 if {s.name for s in r.techniques} & int8 else 0.9, 0.0))
    assert all(recipe.techniques[1:] == () for recipe, _ in ended.hopeless)


def test_recipes_that_are_complete_are_what_they_were() -> None:
    """The stage completes recipes to name them; training more must not change what else they say."""
    for recipe in Study(training_space.families(IMAGES), [PLAIN], 0).ask(8):
        whole = complete(training_space.trained_for(recipe, 9))
        assert whole == complete(training_space.trained_for(complete(recipe), 9))


def test_a_search_that_still_gets_better_goes_on(tmp_path: Path) -> None:
    """Every recipe is better than all before it: nothing but the time ends it, in the tenth round."""
    costs, asked = itertools.count(2), itertools.count()
    rounds = 10

    def outcome(recipe: Recipe) -> tuple[float, float]:
        return 0.9 ** next(costs), 0.0

    waves, ended = run(
        search(tmp_path, effort=Effort(7.5), minutes_left=lambda: 60.0 * (next(asked) < 2 * rounds)), outcome
    )
    assert ended.words == "the budget of 60 minutes was used up"
    assert len(waves) > 2 * PATIENCE
