"""The stages, one after the other, on the tiny images."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pareflow import spec as specs
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import TransientError, VariantError
from pareflow.gate import Evidence, gain
from pareflow.graph_file import mixes_samples
from pareflow.intervals import paired_share_drop
from pareflow.measurement import Interval, Measurement
from pareflow.measuring.arena import Protocol
from pareflow.search import space, training_space
from pareflow.search.effort import level_of
from pareflow.sla import SLA, Objective, QualityClause
from pareflow.stages import (
    building,
    finalists,
    optimization,
    outcome,
    registration,
    screening,
    searching,
    validation,
)
from pareflow.stages.baseline import SCREENING, baseline
from pareflow.stages.clock import Meter
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import guessing, original_of
from pareflow.variant import Recipe, Step, digest


def test_baseline_is_the_plain_export_and_the_original(trained: Any) -> None:
    strong, original = trained.rows
    assert (strong.role, strong.label) == ("baseline", "onnxruntime")
    assert (original.role, original.label) == ("original", "torch_eager")
    assert strong.quality.value == original.quality.value
    assert strong.quality.value > 0.9  # the tiny network learns its task
    assert len(strong.measurement.blocks_ms) == len(original.measurement.blocks_ms) == SCREENING.blocks
    assert strong.speedup == Interval(1.0, 1.0, 1.0, samples=SCREENING.blocks // SCREENING.blocks_per_load)
    assert original.speedup.estimate == pytest.approx(1 / strong.speedup_over_eager.estimate, rel=0.2)


def test_each_thread_count_has_its_pair() -> None:
    rows = [Row(Recipe((), Step("onnxruntime", {"threads": n})), "baseline") for n in (1, 2)]
    for threads, expected in ((1, 0), (2, 1), (4, 0)):
        row = Row(Recipe((), Step("openvino", {"threads": threads})))
        assert optimization.strong_baseline(row, rows) is rows[expected]


def test_candidates_of_the_yaml_are_completed_and_each_is_once(trained: Any) -> None:
    wanted = [["onnxruntime"], [{"onnxruntime": {"graph_level": "basic"}}], ["fp16", "onnxruntime"]] * 2
    run = with_candidates(trained.run, wanted)
    rows = searching.first_rows(run, trained.rows)
    assert [row.label for row in rows] == ["onnxruntime(graph_level=basic)", "fp16 → onnxruntime"]
    assert rows[0].recipe.backend == OnnxRuntime(graph_level="basic").step


def test_an_empty_list_means_none(trained: Any) -> None:
    assert searching.first_rows(with_candidates(trained.run, []), trained.rows) == []


def test_without_a_list_the_cheap_ones_and_where_the_search_for_trained_ones_starts(trained: Any) -> None:
    here = searching.circumstances(trained.run)
    levels = [level_of(row.recipe) for row in searching.first_rows(with_candidates(trained.run, None))]
    assert levels.count("architecture") == len(training_space.families(here))
    assert len(levels) - levels.count("architecture") == len(space.untrained(here))


def test_layers_may_go_where_the_profile_shows_shortcuts(trained: Any) -> None:
    run = with_candidates(trained.run, None)
    for sums, offered in (({"Conv": 3}, False), ({"Conv": 3, "Add": 1}, True)):
        rows = searching.first_rows(run, profile={"graph": {"before": sums}})
        assert any("layer_pruning" in row.label for row in rows) is offered


def with_candidates(run: Any, wanted: list[Any] | None) -> Any:
    spec = specs.parse({**run.spec.to_json(), "workload": "images.py", "candidates": wanted}, "here")
    return dataclasses.replace(run, spec=spec)


def test_candidate_is_built_evaluated_and_timed(judged: Any) -> None:
    row = judged.candidate
    assert (row.status, row.reason) == ("ok", None)
    assert row.quality.split == "search"
    assert row.size_mib > 0
    assert row.measurement.variant == row.id
    assert row.speedup.low <= row.speedup.estimate <= row.speedup.high


def test_nothing_is_begun_after_the_budget(trained: Any) -> None:
    run = dataclasses.replace(trained.run, meter=Meter(float("-inf")))
    row = Row(Recipe((), Step("onnxruntime", {"graph_level": "none"})))
    pruned = optimization.begun(run, row, "make")
    assert (pruned.status, pruned.reason) == ("pruned", "the budget of 600 minutes was used up")
    assert optimization.time(run, dataclasses.replace(row, id="v"), trained.rows).status == "pruned"


def test_finalists_are_the_baselines_and_the_best_candidates(
    judged: Any, measured: Callable[..., Measurement], scored: Callable[..., Any]
) -> None:
    """Of four: the fastest has lost its quality, one failed, one is slower than the one that goes on."""

    def row(ms: float, scores: list[int], status: str = "ok") -> Row:
        quality = dataclasses.replace(judged.candidate.quality, scores=tuple(scores))
        made: Row = dataclasses.replace(
            judged.candidate,
            id=str(ms),
            measurement=measured([ms]),
            speedup=dataclasses.replace(judged.candidate.speedup, estimate=1 / ms),
            quality=quality,
            status=status,
        )
        return made

    good, lost = [1] * 100, [0] * 100
    rows = [row(3.0, good), row(1.0, lost), row(2.0, good), row(0.5, good, "failed")]
    chosen = finalists.finalists(judged.run, [*judged.baselines, *rows])
    assert [r.id for r in chosen] == [*(b.id for b in judged.baselines), "2.0"]


def test_every_finalist_is_judged_on_the_verdict_split(judged: Any) -> None:
    clauses = ["quality.max_drop", "latency.p99_ms", "size.max_mib", "do_no_harm"]
    for row in judged.finalists:
        assert row.quality.split == "verdict"
        assert [check.clause for check in row.verdict.checks] == clauses
        assert row.verdict.environment == judged.run.environment.fingerprint
        assert len(row.measurement.samples_ms) >= 299


def test_winner_is_the_best_of_those_that_passed(judged: Any) -> None:
    winner = validation.winner(judged.run, judged.finalists)
    assert winner is not None
    assert winner.measurement is not None
    passed = [row for row in judged.finalists if row.verdict.decision == "promote"]
    assert judged.finalists[0] in passed  # the strong baseline meets these limits
    assert winner.measurement.quantile_ms(0.5) == min(r.measurement.quantile_ms(0.5) for r in passed)


@pytest.mark.parametrize(("gain", "wins"), [(1.019, "plain"), (1.03, "paged")])
def test_winner_of_settings_that_are_as_fast_is_the_one_with_the_fewest(
    judged: Any, measured: Callable[..., Measurement], gain: float, wins: str
) -> None:
    passed = next(row.verdict for row in judged.finalists if row.verdict.decision == "promote")
    plain, paged = (
        Row(
            Recipe((), OnnxRuntime(huge_pages=pages).step),
            id=name,
            verdict=passed,
            measurement=measured([ms] * 10, variant=name),
        )
        for name, pages, ms in (("plain", False, 1.0), ("paged", True, 1 / gain))
    )
    for rows in ([plain, paged], [paged, plain]):
        winner = validation.winner(judged.run, rows)
        assert winner is not None
        assert winner.id == wins
    open_ = dataclasses.replace(
        paged, verdict=dataclasses.replace(passed, decision="inconclusive", checks=())
    )
    assert validation._may_win(judged.run, open_, [plain, open_]) is (wins == "paged")


def test_of_a_tie_of_as_many_settings_the_fastest_wins(
    judged: Any, measured: Callable[..., Measurement]
) -> None:
    """In whichever order they were found. One of another way, which a tie's plainest is slower than, cannot
    win: it is not looked at again."""
    passed = next(row.verdict for row in judged.finalists if row.verdict.decision == "promote")
    rows = [
        Row(Recipe((), step), id=name, verdict=passed, measurement=measured([ms] * 10, variant=name))
        for name, step, ms in (
            ("slower", OnnxRuntime(graph_level="layout").step, 1.01),
            ("faster", OnnxRuntime(huge_pages=True).step, 1.0),
        )
    ]
    for found in (rows, rows[::-1]):
        winner = validation.winner(judged.run, found)
        assert winner is not None
        assert winner.id == "faster"
    doubt = dataclasses.replace(passed, decision="inconclusive", checks=())
    elsewhere = dataclasses.replace(
        rows[0],
        id="elsewhere",
        recipe=Recipe((), Step("openvino", {})),
        verdict=doubt,
        measurement=measured([1.005] * 10, variant="elsewhere"),
    )
    plain = dataclasses.replace(
        rows[0],
        id="plain",
        recipe=Recipe((), OnnxRuntime().step),
        measurement=measured([1.015] * 10, variant="plain"),
    )
    assert validation._may_win(judged.run, elsewhere, [rows[1], plain, elsewhere]) is False


@pytest.mark.parametrize("objective", get_args(Objective))
def test_objective_orders_the_rows(objective: Objective, measured: Callable[..., Measurement]) -> None:
    better = Row(Recipe((), Step("a")), measurement=measured([1.0, 2.0], size_mib=1.0, peak_memory_mib=10.0))
    worse = Row(Recipe((), Step("b")), measurement=measured([2.0, 4.0], size_mib=2.0, peak_memory_mib=20.0))
    assert screening.objective_value(objective, better) < screening.objective_value(objective, worse)
    assert gained(objective, better.measurement, worse.measurement) == 2.0


def gained(objective: Objective, ours: Measurement | None, baseline: Measurement | None) -> float | None:
    """How many times better, as the gate counts it."""
    assert ours is not None
    assert baseline is not None
    named = dataclasses.replace(baseline, variant="the baseline")
    found = gain(Evidence(ours.variant, objective, None, None, ours, named), 0.95)
    return None if found is None else found.estimate


def test_objective_that_is_unknown_is_told(measured: Callable[..., Measurement]) -> None:
    unknown = measured([1.0], peak_memory_mib=None)
    assert gained("peak_memory", unknown, measured([1.0])) is None
    with pytest.raises(VariantError, match="`peak_memory` must be measured"):
        screening.objective_value("peak_memory", Row(Recipe((), Step("a")), measurement=unknown))


def test_speedup_over_eager_is_against_the_same_threads(
    trained: Any, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., Measurement]
) -> None:
    rows = [
        dataclasses.replace(
            row, recipe=Recipe((), Step(row.recipe.backend.name, {"threads": n})), id=f"{i}{n}"
        )
        for n in (1, 2)
        for i, row in enumerate(trained.rows)
    ]
    ms = {"01": 2.0, "11": 8.0, "02": 1.0, "12": 6.0}
    found = {key: measured(*[[value]] * 12, variant=key) for key, value in ms.items()}
    monkeypatch.setattr(validation, "evaluate", lambda run, row, split: row)
    monkeypatch.setattr(validation, "measure", lambda run, rows, protocol: found)
    judged_rows = validation.validate(trained.run, rows)
    found_speedups = [row.speedup_over_eager.estimate for row in judged_rows if row.speedup_over_eager]
    assert found_speedups == pytest.approx([4, 1, 6, 1])


@pytest.mark.parametrize(
    ("fast", "slow", "looks"),
    [
        pytest.param(1.9, 2.09, 4, id="its median is better: it may win"),
        pytest.param(1.9, 2.11, 1, id="its median is worse: it cannot"),
    ],
)
def test_more_samples_are_bought_only_for_what_may_still_win(
    trained: Any,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[..., Measurement],
    fast: float,
    slow: float,
    looks: int,
) -> None:
    """The baseline takes 2 ms; the other is faster in half of its blocks, so that its gain stays open."""
    strong, eager = trained.rows
    asked = []

    def timed(run: Run, rows: list[Row], protocol: Protocol) -> dict[str, Measurement]:
        asked.append(protocol.blocks)
        other = [[fast] * 6 + [slow] * 4, [slow] * 6 + [fast] * 4] * (protocol.blocks // 2)
        blocks = {strong.id: [[2.0] * 10] * protocol.blocks, eager.id: other}
        return {key: measured(*found, variant=key) for key, found in blocks.items()}

    monkeypatch.setattr(validation, "evaluate", lambda run, row, split: row)
    monkeypatch.setattr(validation, "measure", timed)
    judged = validation.validate(trained.run, [strong, eager])[1]
    assert judged.verdict is not None
    assert judged.verdict.checks[-1].decision == "inconclusive"
    assert asked == [60, 60, 120, 240][:looks]


@pytest.mark.parametrize(("metric", "share"), [("accuracy", 0.02), ("f1_macro", None), ("rmse", None)])
def test_what_may_be_lost_is_a_share_of_predictions_by_some_metrics_alone(
    trained: Any, metric: str, share: float | None
) -> None:
    sla = SLA.model_validate({"quality": {"metric": metric, "max_drop": 0.02}})
    run = dataclasses.replace(trained.run, spec=trained.run.spec.model_copy(update={"sla": sla}))
    assert run.share_lost == share


@pytest.mark.parametrize(
    ("metric", "max_drop", "samples", "needed"),
    [
        ("accuracy", 0.01, 50, 299),
        ("accuracy", 0.05, 58, 59),
        ("accuracy", 0.05, 59, None),
        ("accuracy", 0.0, 50, None),
        ("f1_macro", 0.01, 50, None),
    ],
)
def test_too_few_samples_for_the_drop_are_told_with_how_many_it_takes(
    trained: Any, metric: str, max_drop: float, samples: int, needed: int | None
) -> None:
    """By the bound that the gate goes by: of as many, none of which was lost."""
    sla = SLA.model_validate({"quality": {"metric": metric, "max_drop": max_drop}})
    spec = trained.run.spec.model_copy(update={"sla": sla})
    facts = dataclasses.replace(trained.run.facts, sizes={"verdict": samples})
    told = dataclasses.replace(trained.run, spec=spec, facts=facts).samples_lacking
    if needed is None:
        assert told is None
        return
    assert told is not None
    assert f"`max_drop: {max_drop:g}` takes {needed} samples" in told
    assert f"it has {samples}" in told
    bounds = [paired_share_drop(0, 0, count).high for count in (needed - 1, needed)]
    assert [bound is not None and bound <= max_drop for bound in bounds] == [False, True]


@pytest.mark.parametrize(("beyond", "told"), [(-0.01, False), (0, True), (0.01, True)])
def test_original_that_is_no_better_than_its_commonest_answer_is_told(
    trained: Any, beyond: float, told: bool
) -> None:
    """As one is whose classes are numbered otherwise than its targets."""
    quality = original_of(trained.rows).quality
    assert quality is not None
    facts = dataclasses.replace(trained.run.facts, commonest=quality.value + beyond)
    found = guessing(dataclasses.replace(trained.run, facts=facts), trained.rows)
    assert (found is not None) == told
    assert guessing(trained.run, trained.rows) is None


def test_timing_that_takes_more_than_the_budget_is_told(
    trained: Any, measured: Callable[..., Measurement]
) -> None:
    """By hand, at 3 s: 36 requests to screen each of 4, which is 1.8 minutes; 71 blocks of 10 to judge each
    of 3, which is 35.5, twice."""
    slow = [dataclasses.replace(row, measurement=measured(*[[3000.0]] * 30)) for row in trained.rows]
    told = validation.too_slow(trained.with_budget(minutes=7), slow)
    assert told is not None
    assert told.startswith("a request takes 3 s: ")
    assert "takes about 7 minutes, another candidate 3.6, and the budget has 7; the verdict takes " in told
    assert "up to 213 beyond it. Raise " in told
    assert validation.too_slow(trained.with_budget(minutes=8), slow) is None
    assert validation.too_slow(trained.with_budget(minutes=1), trained.rows) is None


def test_harm_is_what_is_no_better_than_the_best_baseline_on_any_number_of_threads(
    trained: Any, measured: Callable[..., Measurement]
) -> None:
    """On two threads this network is slower: who makes that good there gains nothing. The speedup is quoted
    against the plain export on as many threads, and is no reason to be promoted."""
    one, two, eager = trained.rows[0], dataclasses.replace(trained.rows[0], id="two"), trained.rows[1]
    two = dataclasses.replace(two, recipe=Recipe((), OnnxRuntime(threads=2).step))
    made_good = dataclasses.replace(two, id="made good", role="candidate")
    faster = dataclasses.replace(made_good, id="faster")
    took = {one.id: 1.0, two.id: 1.3, eager.id: 3.0, made_good.id: 1.0, faster.id: 0.5}
    blocks = {key: [[ms + (n % 3) / 100] * 10 for n in range(60)] for key, ms in took.items()}
    blocks[made_good.id] = [[1.0 + (n % 5 - 1) / 100] * 10 for n in range(60)]  # a bit quicker, a bit slower
    arena = {key: measured(*found, variant=key) for key, found in blocks.items()}
    rows = [dataclasses.replace(row, quality=one.quality) for row in (one, two, eager, made_good, faster)]
    spec = trained.run.spec.model_copy(update={"sla": SLA.model_validate({"latency": {"p50_ms": 10}})})
    run = dataclasses.replace(trained.run, spec=spec)
    judged: dict[Any, Any] = {row.id: row for row in validation._judged(run, rows, arena, 1)}
    assert judged[made_good.id].speedup.estimate == pytest.approx(1.3, rel=0.01)
    said = {key: row.verdict.decision for key, row in judged.items()}
    assert said == {
        one.id: "promote",
        two.id: "reject",
        eager.id: "reject",
        made_good.id: "inconclusive",
        faster.id: "promote",
    }
    winner: Any = validation.winner(run, [row for row in judged.values() if row.id != faster.id])
    assert winner.id == one.id


def test_outcome_is_one_json_document(judged: Any) -> None:
    winner = validation.winner(judged.run, judged.finalists)
    assert winner is not None
    screened = [*judged.baselines, judged.candidate]
    document = json.loads(
        json.dumps(outcome.document(judged.run, judged.finalists, screened, winner, None, None))
    )
    assert document["winner"] == winner.id
    assert document["verdict"]["decision"] == "promote"
    assert document["verdict"]["reason"] == "every clause of the SLA is met"
    assert [variant["id"] for variant in document["variants"]] == [row.id for row in judged.finalists]
    assert document["baseline"] == document["variants"][0]
    assert document["environment"]["fingerprint"] == judged.run.environment.fingerprint


def test_shown_interval_of_the_median_holds_loads_that_differ(measured: Callable[..., Measurement]) -> None:
    """Within a load all is equal: its median alone would be known to a point."""
    found = outcome._measured(measured(*([load] * 100 for load in (1.0, 1.1, 1.2, 1.3, 1.4))))["latency_ms"]
    assert found["low"] <= 1.1 < found["p50"] == 1.2 < 1.3 <= found["high"]


def test_outcome_without_a_winner_says_what_the_closest_missed(judged: Any) -> None:
    sla = {"size": {"max_mib": 1e-6}}
    spec = judged.run.spec.model_copy(update={"sla": SLA.model_validate(sla)})
    run = dataclasses.replace(judged.run, spec=spec)
    rows = validation.validate(run, judged.baselines)
    assert validation.winner(run, rows) is None
    failed = dataclasses.replace(judged.candidate, status="failed", reason="it broke", measurement=None)
    document = outcome.document(run, [*rows, failed], judged.baselines, None, None, None)
    assert document["winner"] is None
    assert document["verdict"]["reason"].startswith(
        "nothing met the SLA; closest is onnxruntime: size.max_mib"
    )
    assert document["variants"][-1]["status"] == "failed"
    assert document["variants"][-1]["latency_ms"] is None


@pytest.mark.parametrize("times", [0, 1])
def test_what_another_run_forgets_before_it_is_found_is_made_once_more(
    trained: Any, tmp_path: Path, times: int
) -> None:
    """Two measure the same anew: one waits to forget it, and gets the lock when the other has made it."""
    run, made = dataclasses.replace(trained.run, data_dir=tmp_path), list[Path]()
    assert run.made("key", lambda: made.append(forgotten(run, times > len(made)))) == made[-1]
    assert len(made) == times + 1
    assert run.made("key", made.clear) == made[-1]
    assert (made[-1] / "file").exists()


def test_what_is_forgotten_again_ends_the_run_with_a_way_out(trained: Any, tmp_path: Path) -> None:
    run = dataclasses.replace(trained.run, data_dir=tmp_path)
    with pytest.raises(TransientError, match="the entry `key` must be in the store, but it is gone"):
        run.made("key", lambda: forgotten(run, True))


def forgotten(run: Run, at_once: bool) -> Path:
    """An entry that is made, and that another run may forget at once."""
    entry = run.store.ensure("key", lambda into: (into / "file").touch())
    if at_once:
        run.store.evict("key")
    return entry


def test_baseline_is_measured_once(trained: Any) -> None:
    """The same samples come back: nothing was timed again, and nothing made."""
    entries = sorted(path.name for path in (trained.run.store.root / "entries").iterdir())
    assert baseline(trained.run) == trained.rows
    assert sorted(path.name for path in (trained.run.store.root / "entries").iterdir()) == entries


@pytest.mark.parametrize(
    ("steps", "batch_size"), [((), 64), ((Step("static_int8"),), 64), ((Step("dynamic_int8"),), 3)]
)
def test_what_takes_scales_of_a_whole_batch_is_evaluated_in_the_slas_batches(
    trained: Any, steps: tuple[Step, ...], batch_size: int
) -> None:
    sla = SLA.model_validate({"latency": {"p99_ms": 5, "batch_size": 3}})
    run = dataclasses.replace(trained.run, spec=trained.run.spec.model_copy(update={"sla": sla}))
    row = building.make(run, Row(Recipe(steps, Step("onnxruntime"))))
    asked = building._evaluation(run, row, "search")
    assert asked["batch_size"] == batch_size
    assert run.store.find(asked["key"]) is not None
    graph = run.store.root / "entries" / str(row.id) / "model.onnx"
    assert mixes_samples(graph) == (batch_size == 3)
    assert building.judged_batch_size(run, row.recipe) == (3 if batch_size == 3 else None)


def test_network_that_was_given_may_have_such_scales_and_is_evaluated_so(trained: Any) -> None:
    """As another tool quantized it; whether it did is in its file, and no setting says it."""
    recipe = Recipe((Step("given", {"network": "simple"}),), Step("onnxruntime"))
    row = building.make(trained.run, Row(recipe))
    asked = building._evaluation(trained.run, row, "search")
    assert asked["batch_size"] == trained.run.spec.sla.batch_size == 1
    assert trained.run.store.find(asked["key"]) is not None


def test_original_that_was_given_with_such_scales_is_evaluated_so_with_all_its_variants(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_original_mixes_samples", lambda run: True)
    assert building._evaluation(trained.run, trained.strong, "search")["batch_size"] == 1
    (strong, _) = baseline(trained.run)
    assert "judged in batches of 1" in (strong.reason or "")


def test_winner_that_cannot_be_packaged_is_a_failed_row_and_the_next_wins(judged: Any, trained: Any) -> None:
    """Its files are gone; the other is packaged, and opened elsewhere."""
    passed = next(row.verdict for row in judged.finalists if row.verdict.decision == "promote")
    strong, candidate = (
        dataclasses.replace(
            row, verdict=passed, measurement=dataclasses.replace(row.measurement, size_mib=size)
        )
        for row, size in ((judged.finalists[0], 2.0), (judged.finalists[-1], 1.0))
    )
    spec = trained.run.spec.model_copy(update={"objective": "size"})
    run = dataclasses.replace(trained.run, spec=spec)
    run.store.evict(candidate.id)
    assert validation.winner(run, [strong, candidate]) == candidate
    rows = registration.packaged(run, [strong, candidate])
    assert (rows[1].status, rows[1].verdict) == ("failed", None)
    assert validation.winner(run, rows) == rows[0] == strong
    assert registration.made(run, strong).is_dir()


def test_document_says_which_way_a_metric_goes(trained: Any) -> None:
    """What the report needs to tell a limit on an error from one on an accuracy."""
    assert outcome.variant(trained.strong)["quality"]["higher_is_better"]
    quality = dataclasses.replace(trained.strong.quality, metric="mae", higher_is_better=False)
    row = dataclasses.replace(trained.strong, quality=quality)
    assert not outcome.variant(row)["quality"]["higher_is_better"]


def test_fidelity_is_taken_from_the_originals_answers_kept_once(trained: Any) -> None:
    """The plain export predicts what the original does; the answers are in the store for the next variant."""
    quality = QualityClause(metric="agreement", max_drop=0.01)
    spec = trained.run.spec.model_copy(update={"sla": SLA(quality=quality)})
    run = dataclasses.replace(trained.run, spec=spec)
    found = building.evaluate(run, trained.strong, "search").quality
    assert found is not None
    assert (found.metric, found.value, found.higher_is_better) == ("agreement", 1.0, True)
    answers = run.store.find(digest("answers", run.facts.digest, "search", 64, False))
    assert answers is not None
    with np.load(answers / "answers.npz") as stored:
        assert stored["predictions"].shape == (100,)
        assert stored["outputs"].shape == (0,)  # nobody asked for them


def test_outputs_of_the_original_are_kept_once_whatever_metric_compares_them(trained: Any) -> None:
    """Each output as a row of numbers, or as a row of classes: the same numbers."""
    for metric in ("output_cosine", "output_divergence"):
        quality = QualityClause(metric=metric, max_drop=0.01)
        spec = trained.run.spec.model_copy(update={"sla": SLA(quality=quality)})
        building.evaluate(dataclasses.replace(trained.run, spec=spec), trained.strong, "search")
    assert len(list(trained.run.store.root.glob("entries/*/answers.npz"))) == 1
