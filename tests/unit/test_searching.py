"""The search of a run, on the tiny images: its waves as rows, what it is told, and what is said after."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pareflow import isolation
from pareflow.catalog import TECHNIQUES, find, members
from pareflow.errors import CrashedError, EnvironmentUnfitError, InputError, TimedOutError
from pareflow.gate import Check, Verdict
from pareflow.hardware.needs import Machine
from pareflow.isolation import Limits
from pareflow.measurement import Interval
from pareflow.model.pruning import LayerPruning
from pareflow.search import Ended
from pareflow.search.effort import Effort, level_of
from pareflow.search.training_space import briefly
from pareflow.search.trial import NOTICEABLE, Trial
from pareflow.sla import SLA, QualityClause, SizeClause
from pareflow.stages import (
    ablation,
    attempts,
    building,
    explaining,
    jobs,
    optimization,
    room,
    screening,
    searching,
    taking,
)
from pareflow.stages.clock import Meter
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step, digest

PLAIN = Step("onnxruntime", {"threads": 1})


def searched(run: Run, **changes: Any) -> Run:
    """The run with no candidates of its own."""
    update = {"candidates": None, **changes}
    return dataclasses.replace(run, spec=run.spec.model_copy(update=update))


def test_a_pipeline_that_names_its_candidates_is_asked_for_them_and_no_others(trained: Any) -> None:
    asking = searching.searching(trained.run, trained.rows, None)
    asked = next(asking)
    assert [row.label for row in asked.rows] == ["onnxruntime(graph_level=basic)"]
    with pytest.raises(StopIteration) as end:
        asking.send(list(asked.rows))
    assert end.value.value == Ended("the pipeline names its candidates")


def test_named_candidates_that_cannot_run_here_are_told_before_any_is_made(trained: Any) -> None:
    """They are the last of the list."""
    run = searched(trained.run, candidates=(["fp16", "onnxruntime"], [{"coreml": {}}], ["openvino"]))
    asking = searching.searching(run, trained.rows, None)
    absent = next(asking)
    assert [(row.label, row.status) for row in absent.rows] == [("coreml", "unavailable")]
    assert all(row.reason for row in absent.rows)
    able = asking.send(list(absent.rows))
    assert [(row.label, row.status) for row in able.rows] == [
        ("fp16 → onnxruntime", "ok"),
        ("openvino", "ok"),
    ]
    assert absent.listed is able.listed is True


def test_of_named_candidates_what_trains_long_and_fails_on_one_batch_is_left_out(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes a tenth of a minute: 60 of them long, one not."""
    monkeypatch.setattr(searching, "effort_of", lambda *_: Effort(0.1))
    steps = [
        [{"distillation": {"student": "narrow", "epochs": n, "alpha": alpha}}, "onnxruntime"]
        for n, alpha in ((60, 0.1), (60, 0.5), (1, 0.1))
    ]
    run = searched(trained.run, candidates=(*steps, ["fp16", "onnxruntime"]))
    asking = searching.searching(run, trained.rows, None)
    flown = next(asking)
    assert (flown.preflight, flown.listed) == (True, True)
    assert [row.recipe.techniques[0].settings["alpha"] for row in flown.rows] == [0.1, 0.5]
    assert {row.recipe.techniques[0].settings["epochs"] for row in flown.rows} == {60}
    monkeypatch.setattr(Run, "late", lambda *_: True)
    late = searching.searching(searched(run, candidates=steps), trained.rows, None)
    assert next(late).preflight is False  # each is left out where it would begin
    left = asking.send([dataclasses.replace(flown.rows[0], status="failed", reason="so")])
    assert (left.preflight, left.listed) == (False, True)
    assert left.rows == (flown.rows[1], *left.rows[1:])
    assert [row.label for row in left.rows[1:]] == [
        "distillation(epochs=1, student=narrow) → onnxruntime",
        "fp16 → onnxruntime",
    ]


def test_the_space_is_told_what_the_sla_says_of_size_and_quality(trained: Any) -> None:
    """Size is bounded in the tests' pipeline, and a fifth of the answers may be lost."""
    here = searching.circumstances(searched(trained.run))
    assert (here.smallest_wins, here.size_bounded, here.max_drop) == (False, True, 0.2)
    for objective in ("size", "peak_memory"):
        assert searching.circumstances(searched(trained.run, objective=objective)).smallest_wins


@pytest.mark.parametrize(("softmaxes", "attends"), [(0, False), (1, False), (2, True)])
def test_a_network_over_images_that_attends_is_a_transformer(
    trained: Any, softmaxes: int, attends: bool
) -> None:
    profile = {"graph": {"before": {"MatMul": 9, "Softmax": softmaxes}}}
    assert searching.circumstances(searched(trained.run), profile).transformer is attends


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("pruned", "no candidate was begun: the budget of 600 minutes was used up by the baseline; raise "),
        ("unavailable", "none of 1 candidates can run here; of the first: so it is"),
    ],
)
def test_where_nothing_was_tried_the_search_says_why_and_what_it_would_have_tried(
    trained: Any, status: Any, said: str
) -> None:
    asking = searching.searching(trained.run, trained.rows, None)
    (row,) = next(asking).rows
    with pytest.raises(StopIteration) as end:
        asking.send([dataclasses.replace(row, status=status, reason="so it is")])
    assert end.value.value.words.startswith(said)
    assert end.value.value.following == (row.recipe,)


def test_an_objective_that_is_not_measured_here_is_bad_input(trained: Any) -> None:
    run = searched(trained.run, objective="peak_memory")
    unknown = dataclasses.replace(trained.strong.measurement, peak_memory_mib=None)
    baselines = [dataclasses.replace(trained.strong, measurement=unknown)]
    with pytest.raises(InputError, match="`objective: peak_memory` must be measured here, but it is unknown"):
        next(searching.searching(run, baselines, None))


def test_a_disk_too_small_for_the_first_candidates_is_found_before_any_is_made(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = trained.run, trained.rows

    def disk(_: object) -> Any:
        return shutil._ntuple_diskusage(0, 0, 2**20 // 1024)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    with pytest.raises(
        EnvironmentUnfitError, match=r"room for the first \d+ candidates, but they take about"
    ):
        next(searching.searching(searched(run), rows, None))


def test_room_is_asked_for_each_network_once_whatever_runs_it(trained: Any) -> None:
    """What is not made yet takes twice the original; the baseline made the plain one for its runtimes."""
    backends = PLAIN, Step("onnxruntime", {"threads": 1, "graph_level": "none"}), Step("openvino")
    ways = [tuple(Step(name) for name in names) for names in ((), ("fp16",), ("dynamic_int8",))]
    rows = [Row(Recipe(techniques, backend)) for techniques in ways for backend in backends]
    twice = 2 * (screening.original_of(trained.rows).size_mib or 0)
    assert twice > 0
    assert room.needed_mib(trained.run, trained.rows, rows) == pytest.approx(5 * twice)
    assert room.needed_mib(trained.run, trained.rows, rows[:2]) == 0
    assert room.needed_mib(trained.run, trained.rows, rows[3:5]) == pytest.approx(twice)
    building.make(trained.run, rows[3])
    assert room.needed_mib(trained.run, trained.rows, rows[3:5]) == 0


def test_room_is_asked_for_what_can_run_here_and_one_that_trains(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = searched(trained.run)
    monkeypatch.setattr(
        searching, "unrunnable", lambda _, recipe: "so" if recipe.backend.name == "openvino" else None
    )
    first, sure = searching.first_rows(run, trained.rows), searching.sure_rows(run, trained.rows, None)
    assert {row.recipe.backend.name for row in first} == {"onnxruntime", "openvino"}
    assert {row.recipe.backend.name for row in sure} == {"onnxruntime"}
    levels = [[level_of(row.recipe) == "architecture" for row in rows] for rows in (first, sure)]
    assert [sum(trains) for trains in levels] == [len(levels[0]) - levels[0].index(True), 1]
    listed = searched(
        run, candidates=([{"distillation": {"student": "narrow"}}, "onnxruntime"], ["openvino"])
    )
    assert [row.label for row in searching.sure_rows(listed, trained.rows, None)] == [
        "distillation(student=narrow) → onnxruntime"
    ]


def test_shares_of_the_time_bound_nothing_but_times(trained: Any) -> None:
    families = [{"family": "distillation", "share": 0.5}, {"family": "quantization", "share": 0.25}]
    profile = {"graph": {"before": {}}, "advice": {"families": families}}
    for objective, expected in (("throughput", {"distillation": 1.0, "quantization": 0.5}), ("size", {})):
        run = searched(trained.run, objective=objective)
        assert searching.search_of(run, trained.rows, profile).families == expected


def test_what_settings_take_of_the_network_is_found_out_once_and_told_the_search(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight channels none goes at any ratio: eight is the least that is kept. A student does not tell."""
    run = searched(trained.run)
    found = taking.takes(run, searching.circumstances(run))
    channels = [taken for label, taken in found.items() if label.startswith("channel_pruning(")]
    assert channels == [{}] * 20
    assert [taken for taken in found.values() if taken != {}] == [None]
    monkeypatch.setattr(Run, "job", None)  # it is kept
    assert searching.search_of(run, trained.rows, None).takes() == found


def test_the_search_plans_for_as_many_side_by_side_as_the_machines_held_when_it_began(trained: Any) -> None:
    """Four on four times the processors that one takes, and also when it goes on where there is one."""
    run = searched(trained.with_budget(minutes=597))
    machines = [[Machine(n * max(run.threads), 0, 2**20)] for n in (4, 1)]
    four, still = (searching.search_of(run, trained.rows, None, some).beside for some in machines)
    assert (four, still, searching.search_of(run, trained.rows, None).beside) == (4, 4, 1)
    assert searching.search_of(run.anew(), trained.rows, None, machines[1]).beside == 1


def test_where_finding_that_out_dies_nothing_is_known_for_the_whole_run(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object, **__: object) -> None:
        raise CrashedError("`takes` must end", "it died of SIGSEGV", "")

    run = searched(trained.run)
    here = searching.circumstances(run)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "job", dying)
        assert taking.takes(run, here) == {}
    assert taking.takes(run, here) == {}
    assert len(taking.takes(run.anew(), here)) == 21


def test_what_nobody_foresaw_of_one_technique_there_is_logged_and_hides_nothing_of_the_others(
    trained: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError("an odd network")

    monkeypatch.setattr(LayerPruning, "takes", faulty)
    steps = [Step(name, {"ratio": 0.5}).to_json() for name in ("layer_pruning", "channel_pruning")]
    run = trained.run
    jobs.takes(run.spec.workload, str(run.folder), str(run.store.root), "takes", steps)
    assert json.loads((run.store.find("takes") / "takes.json").read_text()) == [None, {}]
    assert "nothing tells what layer_pruning takes" in caplog.text
    assert "an odd network" in caplog.text


def test_the_search_goes_on_from_the_best_that_it_was_told(trained: Any) -> None:
    """Told that dynamic int8 alone is fast and as good, it asks for a student that is quantized like that."""
    run = searched(trained.run)

    def told(row: Row) -> Row:
        """All fail but dynamic int8."""
        if row.label != "dynamic_int8 → onnxruntime":
            return dataclasses.replace(row, status="failed", reason="so")
        speedup = dataclasses.replace(trained.strong.speedup, estimate=2.0)
        known: Row = trained.strong
        return dataclasses.replace(known, recipe=row.recipe, role="candidate", speedup=speedup)

    asking = searching.searching(run, trained.rows, None)
    wave = next(asking)
    while not wave.words.startswith("trained for "):
        wave = asking.send([] if wave.preflight else [told(row) for row in wave.rows])
    finishes = {row.recipe.techniques[-1].name for row in wave.rows if len(row.recipe.techniques) > 1}
    assert finishes == {"dynamic_int8"}  # the others end in the strong baseline
    assert wave.rows[0].label.endswith("→ dynamic_int8 → onnxruntime")
    assert wave.rows[0].label.startswith("channel_pruning(")
    assert (run.output / "study.log").is_file()


def test_a_trial_is_the_rows_share_of_the_baseline_and_what_it_exceeds(trained: Any) -> None:
    """Twice as fast: 0.5. A limit of half its size is exceeded by 1, of its quality by what it lacks."""
    run, strong = searched(trained.run), trained.strong
    row = dataclasses.replace(
        strong, role="candidate", speedup=dataclasses.replace(strong.speedup, estimate=2.0), build_s=30.0
    )
    found = searching.trial_of(run, row, trained.rows)
    assert (found.cost, found.excess, found.lost, found.minutes) == (0.5, 0.0, 0.0, 0.5)
    size = SizeClause(max_mib=row.size_mib / 2)
    quality = QualityClause(min=row.quality.value + 0.01)
    sla = run.spec.sla.model_copy(update={"size": size, "quality": quality})
    found = searching.trial_of(searched(run, sla=sla), row, trained.rows)
    assert found.excess == pytest.approx(1 + 0.01)
    assert found.lost == pytest.approx(0.01)
    stopped = optimization.failed(row, TimedOutError("it must end in 600 s", "it did not", "Give it more"))
    hung, slow = stopped, dataclasses.replace(stopped, build_s=None)  # while it was timed, or built
    of = [searching.trial_of(run, one, trained.rows) for one in (row, hung, slow)]
    assert [one.stopped for one in of] == [False, False, True]
    unknown = dataclasses.replace(row, quality=None)
    assert searching.trial_of(run, unknown, trained.rows).excess is None


def test_a_bet_is_no_pass_and_loses_what_the_verdict_would_doubt(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: a drop of 0.015 and 0.004 more by the bound, of four times the samples half of that: 0.017."""
    run = searched(trained.run, sla=SLA(quality=QualityClause(max_drop=0.016)))
    facts = dataclasses.replace(run.facts, sizes={**run.facts.sizes, "verdict": 400})
    run = dataclasses.replace(run, facts=facts)
    check = Check("quality.max_drop", 0.016, 0.015, 0.011, 0.019, "inconclusive", "", 100, 0.95)
    found = list[Trial]()
    for estimate in (0.015, 0.0, -0.01):
        one = dataclasses.replace(check, estimate=estimate, high=estimate + 0.004)
        monkeypatch.setattr(searching, "checks_of", lambda *_, one=one: [one])
        found.append(searching.trial_of(run, trained.strong, trained.rows))
    assert [trial.lost for trial in found] == [pytest.approx(0.001), 0.0, 0.0]
    assert [trial.passes for trial in found] == [False, True, True]
    few = dataclasses.replace(run, facts=dataclasses.replace(facts, sizes={**facts.sizes, "verdict": 30}))
    monkeypatch.setattr(searching, "checks_of", lambda *_: [check])
    assert searching.trial_of(few, trained.strong, trained.rows).passes  # nothing could be shown to pass


def test_what_lost_its_race_and_has_fewer_blocks_is_a_trial_too(trained: Any) -> None:
    strong = trained.strong
    fewer = dataclasses.replace(strong.measurement, blocks_ms=strong.measurement.blocks_ms[:18])
    row = dataclasses.replace(strong, role="candidate", measurement=fewer)
    assert searching.trial_of(searched(trained.run), row, trained.rows).passes


def test_a_cost_is_of_the_first_baseline_whatever_the_threads(trained: Any) -> None:
    """A second baseline with two threads takes half the time; 1.5 times as fast as it is a third."""
    run, strong = searched(trained.run), trained.strong
    halves = tuple(tuple(ms / 2 for ms in block) for block in strong.measurement.blocks_ms)
    two = dataclasses.replace(
        strong,
        recipe=Recipe((), Step("onnxruntime", {"threads": 2})),
        measurement=dataclasses.replace(strong.measurement, blocks_ms=halves),
    )
    row = dataclasses.replace(
        two, role="candidate", speedup=dataclasses.replace(strong.speedup, estimate=1.5)
    )
    assert screening.cost_of(run, row, [strong, two]) == pytest.approx(1 / 3)
    contest = searching.Contest(run, [strong, two])
    assert contest.needed(row) == pytest.approx(1)  # to be as good as the second, which is the better one
    contest.ran(row)
    fp16 = dataclasses.replace(strong, recipe=Recipe((Step("fp16"),), strong.recipe.backend))
    assert contest.needed(fp16) == pytest.approx(3)
    assert contest.needed(strong) == pytest.approx(3 / NOTICEABLE)  # in one thread it would win a tie
    contest.ran(dataclasses.replace(row, status="failed", reason="so"))
    contest.ran(two)  # slower
    assert contest.needed(fp16) == pytest.approx(3)


def test_the_search_knows_the_baseline_of_each_thread_count_and_registers_none(trained: Any) -> None:
    """The second takes half the time."""
    run, (strong, eager) = searched(trained.run, objective="throughput"), trained.rows
    halves = tuple(tuple(ms / 2 for ms in block) for block in strong.measurement.blocks_ms)
    two = dataclasses.replace(
        strong,
        recipe=Recipe((), Step("onnxruntime", {"threads": 2})),
        measurement=dataclasses.replace(strong.measurement, blocks_ms=halves),
    )
    baselines = [strong, eager, two]
    known = searching.search_of(run, baselines, None).known
    assert [(trial.recipe, trial.cost) for trial in known] == [
        (strong.recipe, 1.0),
        (two.recipe, pytest.approx(0.5)),
    ]
    contest = searching.Contest(run, baselines)
    assert contest.leader == known[1]
    trains = Row(Recipe((Step("channel_pruning", {"ratio": 0.25, "epochs": 1}),), PLAIN))
    asked = searching.Asked("", (trains,))
    assert not searching.first_to_register(run, asked, contest)
    contest.leader = dataclasses.replace(known[1], cost=0.4)
    assert searching.first_to_register(run, asked, contest)


def test_throughput_is_a_cost_too_the_more_the_less(trained: Any) -> None:
    run, strong = searched(trained.run, objective="throughput"), trained.strong
    doubled = tuple(tuple(ms / 2 for ms in block) for block in strong.measurement.blocks_ms)
    row = dataclasses.replace(strong, measurement=dataclasses.replace(strong.measurement, blocks_ms=doubled))
    assert screening.cost_of(run, row, trained.rows) == pytest.approx(0.5)
    assert searching.Contest(run, trained.rows).needed(row) is None  # races are of median latencies


def test_a_preflight_runs_each_step_on_a_few_samples_and_keeps_nothing_but_that_it_did(trained: Any) -> None:
    """For one pass, however many the recipe asks for."""
    run = trained.run
    student = Row(Recipe((Step("distillation", {"student": "narrow", "epochs": 10**6}), Step("fp16")), PLAIN))
    before = set((run.store.root / "entries").iterdir())
    assert optimization.preflight(run, student) is student
    (kept,) = set((run.store.root / "entries").iterdir()) - before
    assert (kept / "preflight.json").is_file()
    unknown = Row(Recipe((Step("distillation", {"student": "nobody", "epochs": 1}),), PLAIN))
    failed = optimization.preflight(run, unknown)
    assert failed.status == "failed"
    assert "there is no `nobody`" in (failed.reason or "")


def test_a_preflight_asks_for_no_more_samples_than_it_has(trained: Any) -> None:
    """Nor for a loss that a few of them cannot show."""
    steps = tuple(
        find(TECHNIQUES, Step(name, settings), "technique").step
        for name, settings in (("static_int8", {"samples": 100}), ("mixed_int8", {"max_drop": 0.001}))
    )
    brief = briefly(Recipe(steps, PLAIN))
    assert brief.techniques[0].settings["samples"] == 32
    assert brief.techniques[1].settings["max_drop"] == 1
    assert [member.label for member in members(brief)]  # as they may be


def test_what_building_took_is_known_to_a_run_that_finds_it_ready(trained: Any) -> None:
    row = Row(Recipe((), Step("onnxruntime", {"graph_level": "none", "threads": 1})))
    first = building.make(trained.run, row)
    assert first.build_s
    assert building.make(trained.run, row).build_s == first.build_s


def test_what_building_took_counts_what_a_kill_left(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained.run
    recipe = Recipe((Step("distillation", {"student": "narrow", "epochs": 100}),), PLAIN)

    def kill_amid_training() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if list((run.store.root / "unfinished").glob("*/fit")):
                for child in tuple(isolation._LIVE):
                    child.kill()
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_amid_training, daemon=True)
    killer.start()
    with pytest.raises(CrashedError):
        building.make(run, Row(recipe))
    killer.join()
    asked: list[tuple[Limits, float]] = []

    def noted(function: str, arguments: dict[str, Any], limits: Limits, *others: Any, **named: Any) -> Any:
        asked.append((limits, arguments["limit_s"]))
        return isolation.run_isolated(function, arguments, limits, *others, **named)

    monkeypatch.setattr("pareflow.stages.run.run_isolated", noted)
    began = time.monotonic()
    made = building.make(run, Row(recipe))
    assert (made.build_s or 0) > time.monotonic() - began
    ((limits, left_s),) = asked
    assert left_s == limits.seconds - limits.spent < limits.seconds == run.limits.seconds
    assert building.make(run, Row(recipe)).build_s == made.build_s


@pytest.mark.parametrize(("left", "expected"), [(True, 110.0), (False, 10.0)], ids=["something", "nothing"])
def test_an_attempt_counts_if_something_of_it_is_left(
    left: bool, expected: float, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 100 s until a kill, then 10."""
    run, recipe, now = trained.run, Recipe((Step("fp16"),), Step("onnxruntime", {"threads": 3})), 1000.0
    first = jobs.links(recipe, run.facts.digest)[1]
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def killed() -> None:
        nonlocal now
        with attempts.timed(run, recipe, "name"):
            if left:
                run.store.scratch(first.id).mkdir(parents=True)
            now += 100
            raise CrashedError("it must end by itself", "it died", "Look")

    with pytest.raises(CrashedError):
        killed()
    with attempts.timed(run, recipe, "name") as before:
        now += 10
    assert (before, attempts.seconds(run, "name")) == (expected - 10, expected)


def test_a_run_that_begins_anew_gives_a_variant_that_was_stopped_its_whole_limit(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe, now = trained.run, Recipe((Step("fp16"),), Step("onnxruntime", {"threads": 4})), 1000.0
    first = jobs.links(recipe, run.facts.digest)[1]
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def stopped() -> None:
        nonlocal now
        with attempts.timed(run, recipe, "stopped") as before:
            assert before == 0
            run.store.scratch(first.id).mkdir(parents=True, exist_ok=True)
            now += 100
            raise TimedOutError("it must end in 100 s", "it did not", "Wait")

    with pytest.raises(TimedOutError):
        stopped()
    run.anew()
    with pytest.raises(TimedOutError):
        stopped()


def test_what_a_build_took_is_known_though_the_run_died_after_the_artifact_was_there(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 100 s until a kill, while what was built is evaluated."""
    run, strong, now = trained.run, trained.strong, 1000.0
    run.store.evict(digest("build seconds", strong.id))
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def killed() -> None:
        nonlocal now
        with attempts.timed(run, strong.recipe, strong.id):
            now += 100
            raise CrashedError("it must end by itself", "it died", "Look")

    with pytest.raises(CrashedError):
        killed()
    assert attempts.seconds(run, strong.id) is None
    assert [building.make(run, Row(strong.recipe)).build_s for _ in range(2)] == [100.0] * 2
    assert list((run.output / "building").iterdir()) == []


def test_the_winner_is_measured_without_each_of_its_steps(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.run
    recipe = Recipe((Step("fp16"),), Step("onnxruntime", {"graph_level": "basic", "threads": 1}))
    winner = optimization.make(run, Row(recipe))
    less = ablation.ablations(run, winner, trained.rows)
    assert [row.label for row in less] == ["onnxruntime(graph_level=basic)", "fp16 → onnxruntime"]
    made = [optimization.make(run, row) for row in less]
    assert {row.role for row in made} == {"ablation"}
    assert ablation.ablations(run, winner, made) == []
    found = ablation.contributions(run, winner, made)
    assert [step["step"] for step in found] == ["fp16", "onnxruntime(graph_level=basic)"]
    assert all(step["speedup"]["low"] <= step["speedup"]["estimate"] for step in found)
    assert found[0]["size"] < 0.9 < found[1]["size"] < 1.1  # halves of weights are half as large
    assert ablation.contributions(run, trained.strong, made) == []
    monkeypatch.setattr(optimization, "missing", lambda _: "so")
    (without, _) = ablation.contributions(run, winner, [])
    assert (without["speedup"], without["reason"]) == (None, "it cannot run here without this step")


def test_an_ablation_that_the_budget_has_no_time_to_train_is_not_measured_and_says_so(trained: Any) -> None:
    """Without its student int8 is trained anew; without int8 the student is there already."""
    student, learnt = Step("distillation", {"student": "narrow", "epochs": 1}), Step("qat_int8")
    made: Row = trained.strong
    winner = dataclasses.replace(
        made, recipe=Recipe((student, learnt), made.recipe.backend), role="candidate", build_s=60.0
    )
    known = [*trained.rows, winner]
    late = dataclasses.replace(trained.run, meter=Meter(float("-inf")))
    assert [row.label for row in ablation.ablations(trained.run.unhurried, winner, known)] == [
        "qat_int8 → onnxruntime",
        "distillation(epochs=1, student=narrow) → onnxruntime",
    ]
    (less,) = ablation.ablations(late, winner, known)
    assert less.label == "distillation(epochs=1, student=narrow) → onnxruntime"
    without, _ = ablation.contributions(late, winner, known)
    assert (without["step"], without["speedup"]) == ("distillation(epochs=1, student=narrow)", None)
    assert without["reason"].startswith("not measured: it would be trained anew")


def test_an_ablation_that_must_be_trained_is_not_begun_after_ctrl_c_whatever_is_left(trained: Any) -> None:
    student, learnt = Step("distillation", {"student": "narrow", "epochs": 1}), Step("qat_int8")
    made: Row = trained.strong
    winner = dataclasses.replace(
        made, recipe=Recipe((student, learnt), made.recipe.backend), role="candidate", build_s=60.0
    )
    asked = trained.run.clock.file.read_text() if trained.run.clock.file.exists() else ""
    (less,) = ablation.ablations(trained.run, winner, [*trained.rows, winner], stopped=True)
    assert less.label == "distillation(epochs=1, student=narrow) → onnxruntime"
    after = trained.run.clock.file.read_text() if trained.run.clock.file.exists() else ""
    assert after == asked  # the run that goes on asks what is left


def test_what_was_left_for_the_ablations_of_a_stopped_runs_winner_is_not_left_for_anothers(
    trained: Any,
) -> None:
    made: Row = trained.strong

    def winner(student: str) -> Row:
        steps = Step("distillation", {"student": student, "epochs": 1}), Step("qat_int8")
        recipe = Recipe(steps, made.recipe.backend)
        return dataclasses.replace(made, recipe=recipe, role="candidate", build_s=60.0)

    def trains(run: Run, winner: Row) -> bool:
        return "qat_int8 → onnxruntime" in [
            row.label for row in ablation.ablations(run, winner, [*trained.rows, winner])
        ]

    stopped = trained.with_budget(minutes=598)
    gone_on = dataclasses.replace(stopped, spent=600)
    found = [
        trains(stopped, winner("narrow")),
        trains(gone_on, winner("narrow")),
        trains(gone_on, winner("x")),
    ]
    assert found == [True, True, False]


def test_what_is_made_by_timings_is_made_alone(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lock(device: str, *, exclusive: bool) -> Any:
        asked.append(exclusive)
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "device_lock", lock)
    for name in ("mixed_int8", "dynamic_int8"):
        with pytest.raises(KeyboardInterrupt):
            building.make(trained.run, Row(Recipe((Step(name),), PLAIN)))
    assert asked == [True, False]


def rows_of(judged: Any) -> list[Row]:
    found: list[Row] = list(judged.finalists)
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "failed", "reason": "it crashed"}, "It is failed: it crashed."),
        ({"verdict": None, "speedup": Interval(0.5, 0.4, 0.625, 9)}, "It was not judged: it is 0.50 times "),
        ({"verdict": None, "measurement": None, "speedup": None}, "It was not judged: it was not timed."),
    ],
    ids=["failed", "slower", "not timed"],
)
def test_a_row_says_why_it_lost(judged: Any, changes: dict[str, Any], said: str) -> None:
    row = dataclasses.replace(judged.finalists[-1], **changes)
    winner = judged.finalists[0]
    assert explaining.explanation(judged.run, row, rows_of(judged), winner).startswith(said)


def test_a_row_that_won_or_missed_a_clause_says_so(judged: Any) -> None:
    *_, candidate = judged.finalists
    rows: Sequence[Row] = rows_of(judged)
    won = explaining.explanation(judged.run, candidate, rows, candidate)
    assert won.startswith("It won: it meets every clause, and is ")
    missed = Verdict.from_json({**candidate.verdict.to_json(), "decision": "reject"})
    checks = (dataclasses.replace(missed.checks[0], decision="reject", reason="0.5 is above 0.2"),)
    lost = dataclasses.replace(candidate, verdict=dataclasses.replace(missed, checks=checks))
    said = explaining.explanation(judged.run, lost, rows, rows[0])
    assert said == f"It did not pass: {missed.checks[0].clause}: 0.5 is above 0.2."


def test_a_row_is_told_by_what_was_minimised_and_plainly_where_it_is_slower(judged: Any) -> None:
    """Half the size, and half as fast; the other is judged, and has a quarter of it."""
    run = searched(judged.run, objective="size")
    strong, candidate = judged.finalists[0], judged.finalists[-1]
    half = dataclasses.replace(candidate.measurement, size_mib=strong.measurement.size_mib / 2)
    slow = dataclasses.replace(candidate.speedup, estimate=0.5, low=0.4, high=0.625)
    row = dataclasses.replace(candidate, verdict=None, measurement=half, speedup=slow)
    gained = {"clause": "do_no_harm", "estimate": 4.0, "low": 4.0, "high": 4.0}
    checks = (dataclasses.replace(candidate.verdict.checks[-1], **gained),)
    verdict = dataclasses.replace(candidate.verdict, checks=checks)
    quarter = dataclasses.replace(half, size_mib=strong.measurement.size_mib / 4)
    winner = dataclasses.replace(candidate, id="winner", measurement=quarter, verdict=verdict, speedup=slow)
    rows = [*rows_of(judged), winner]
    slower = "of the strong baseline and is 2.00 times (1.6 to 2.5) slower"
    assert explaining.explanation(run, winner, rows, winner) == (
        f"It won: it meets every clause, and has 0.25 times the size {slower}."
    )
    assert explaining.explanation(run, row, rows, winner) == (
        f"It was not judged: it has 0.50 times the size {slower}, and the winner 0.25 times."
    )


def test_a_winner_says_what_it_became_by_other_seeds(judged: Any) -> None:
    """Two others of the same recipe, of other seeds alone, and one that differs by more."""
    *_, candidate = judged.finalists

    def trained(speedup: float, value: float, **settings: Any) -> Row:
        step = Step("distillation", {"student": "narrow", "epochs": 1, **settings})
        base: Row = candidate
        return dataclasses.replace(
            base,
            recipe=Recipe((step,), PLAIN),
            speedup=dataclasses.replace(candidate.speedup, estimate=speedup),
            quality=dataclasses.replace(candidate.quality, value=value),
        )

    winner = trained(2.0, 0.9)
    others = [trained(2.125, 0.875, seed=1), trained(1.75, 0.9375, seed=2), trained(9.0, 0.0, epochs=2)]
    said = explaining.explanation(judged.run, winner, [winner, *others], winner)
    assert said.endswith(
        "Trained by 2 other seeds it is 1.75 to 2.12 times as fast, and its accuracy 0.8750 to 0.9375 on the "
        "search split, here 0.9000."
    )
    assert "seeds" not in explaining.explanation(judged.run, winner, [winner, others[-1]], winner)


def test_a_row_that_lost_too_much_on_the_search_split_names_the_clause_and_the_bound(judged: Any) -> None:
    *_, candidate = judged.finalists
    original = judged.baselines[-1].quality
    none_right = {"variant": str(candidate.id), "scores": (0,) * len(original.scores), "value": 0.0}
    wrong = dataclasses.replace(original, **none_right)
    rows = [*judged.baselines, dataclasses.replace(candidate, verdict=None, quality=wrong)]
    said = explaining.explanation(judged.run, rows[-1], rows, rows[0])
    assert said.startswith("It was not judged, since it missed clauses before: quality.max_drop: ")
    assert said.endswith(" is not at most 0.2, at 0.95 confidence.")


def test_two_students_ask_the_teacher_once(workloads: Path, tmp_path: Path) -> None:
    about = ({"file": {"path": "images.py"}}, str(workloads), str(tmp_path))
    jobs.train(*about)
    for width in (0.5, 0.25):
        student = Step("distillation", {"width": width, "epochs": 1})
        jobs.build(*about, Recipe((student,), Step("onnxruntime")).to_json())
    assert len(list(tmp_path.glob("entries/*/answers.npz"))) == 1
