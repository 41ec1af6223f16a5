"""Which candidates are judged: rows of the tiny images with invented answers and latencies."""

import dataclasses
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.gate import Check
from pareflow.measurement import Interval, Quality
from pareflow.sla import SLA
from pareflow.stages import explaining, finalists
from pareflow.stages.finalists import _kept, expected
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step

SAMPLES = 700
VERDICT = 3000


@pytest.fixture
def run(judged: Any) -> Run:
    """At most a point may be lost, and two candidates are judged."""
    return promising(judged.run, quality={"metric": "accuracy", "max_drop": 0.01})


def promising(run: Run, **clauses: Any) -> Run:
    sla = SLA.model_validate(clauses)
    changed = run.spec.model_copy(update={"sla": sla, "finalists": 2, "objective": "latency_p50"})
    facts = dataclasses.replace(run.facts, sizes={**run.facts.sizes, "verdict": VERDICT})
    return dataclasses.replace(run, spec=changed, facts=facts)


def answering(
    row: Row, wrong: int, right_instead: int = 0, *, times: float = 1.0, name: str = "", mib: float = 1.0
) -> Row:
    """The row `times` as fast, wrong on the first samples, and right on some that the original misses; with a
    `name`, of a network of its own."""
    assert row.measurement is not None
    assert row.speedup is not None
    scores = [0] * wrong + [1] * (SAMPLES - 20 - wrong) + [1] * right_instead + [0] * (20 - right_instead)
    value = sum(scores) / SAMPLES
    quality = Quality(name, "accuracy", "search", "invented", value, SAMPLES, tuple(scores))
    blocks = tuple(tuple(ms / times for ms in block) for block in row.measurement.blocks_ms)
    measurement = dataclasses.replace(row.measurement, blocks_ms=blocks, size_mib=mib)
    speedup = dataclasses.replace(row.speedup, estimate=row.speedup.estimate * times)
    recipe = dataclasses.replace(row.recipe, techniques=(Step(name),)) if name else row.recipe
    named = dataclasses.replace(row, id=name or row.id, recipe=recipe, quality=quality)
    return dataclasses.replace(named, measurement=measurement, speedup=speedup)


def in_huge_pages(recipe: Recipe) -> Recipe:
    """The same network in one more setting of its runtime."""
    settings = {**recipe.backend.settings, "huge_pages": True}
    return dataclasses.replace(recipe, backend=Step(recipe.backend.name, settings))


def chosen(run: Run, judged: Any, candidates: Sequence[Row]) -> list[str]:
    baselines = [answering(row, 0) for row in judged.baselines]
    found = finalists.finalists(run, [*baselines, *candidates])
    return [str(row.id) for row in found if row.role == "candidate"]


def test_what_is_expected_is_the_best_that_passes() -> None:
    """2 in 5 that it is a quarter; else 9 in 10 that it is half; else nothing."""
    assert expected([(0.5, 0.5)], 1.0) == pytest.approx(0.75)
    assert expected([(0.5, 0.9), (0.25, 0.4)], 1.0) == pytest.approx(0.4 * 0.25 + 0.6 * 0.9 * 0.5 + 0.06)
    assert expected([(3.0, 1.0)], 1.0) == 1.0


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1)), max_size=4), st.floats(0.01, 5), st.floats(0, 1)
)
def test_one_more_finalist_makes_nothing_expected_worse(
    options: list[tuple[float, float]], cost: float, passes: float
) -> None:
    assert expected([*options, (cost, passes)], 1.0) <= expected(options, 1.0) + 1e-12


def test_chance_counts_the_error_of_both_splits_and_the_verdict_s_margin() -> None:
    """700 samples bound a drop of 0.002 by 0.008, at 0.975; 2800 will be half as wide: what they find must be
    below 0.007, and errs by 0.00306 of the one split and half of that of the other."""
    check = Check("quality.max_drop", 0.01, 0.002, -0.004, 0.008, "promote", "", 700, 0.975)
    assert _kept(check, 2800) == pytest.approx(NormalDist().cdf((0.007 - 0.002) / 0.003423), abs=1e-3)
    least = dataclasses.replace(check, clause="quality.min", limit=0.89, estimate=0.9, low=0.894, high=0.906)
    assert _kept(least, 2800) == pytest.approx(NormalDist().cdf((0.9 - 0.893) / 0.003423), abs=1e-3)
    gained = dataclasses.replace(check, estimate=-0.004, high=0.002)
    assert _kept(gained, 2800) == pytest.approx(NormalDist().cdf((0.007 - 0.0) / 0.003423), abs=1e-3)


def test_a_bet_takes_a_place_beside_one_that_is_none(run: Run, judged: Any) -> None:
    """20 answers lost and 20 won are no loss, but 700 samples cannot tell that from two points."""
    fast, faster = (answering(judged.candidate, 20, 20, times=t, name=f"bet {t}") for t in (5.0, 6.0))
    safe = [answering(judged.candidate, 0, times=t, name=f"safe {t}") for t in (2.0, 3.0)]
    assert chosen(run, judged, [fast, faster, *safe]) == ["bet 6.0", "safe 3.0"]
    assert chosen(run, judged, [fast, faster]) == ["bet 6.0", "bet 5.0"]


def test_the_same_network_in_other_settings_is_no_bet_of_its_own(run: Run, judged: Any) -> None:
    """All of them miss where one does: another network takes the second place, though it is slower."""
    plain, other = (
        answering(judged.candidate, 4, times=t, name=n) for t, n in ((6.0, "plain"), (5.0, "other"))
    )
    recipe = in_huge_pages(plain.recipe)
    paged = dataclasses.replace(answering(plain, 4, times=1.03, name="paged"), recipe=recipe)
    fused = dataclasses.replace(recipe, techniques=(Step("attention_fusion"), *recipe.techniques))
    rewritten = dataclasses.replace(answering(plain, 4, times=1.06, name="rewritten"), recipe=fused)
    assert chosen(run, judged, [plain, paged, rewritten, other]) == ["rewritten", "other"]
    assert chosen(run, judged, [plain, paged, rewritten]) == ["rewritten", "paged"]


def test_of_settings_that_are_as_fast_the_fewest_are_judged(run: Run, judged: Any) -> None:
    """Which of them is the fastest, the next run would find otherwise; another network is judged beside."""
    plain, other = (
        answering(judged.candidate, 4, times=t, name=n) for t, n in ((6.0, "plain"), (5.0, "other"))
    )
    paged = dataclasses.replace(
        answering(plain, 4, times=1.005, name="paged"), recipe=in_huge_pages(plain.recipe)
    )
    assert chosen(run, judged, [plain, paged]) == ["plain"]
    assert chosen(run, judged, [plain, paged, other]) == ["plain", "other"]
    rows = [*(answering(row, 0) for row in judged.baselines), plain, paged]
    assert explaining.explanation(run, paged, rows, plain).endswith(
        " with fewer settings: what gains less than 2% is left out."
    )
    assert "fewer settings" not in explaining.explanation(run, other, [*rows, other], plain)


def test_what_is_less_likely_to_pass_stands_for_no_tie(run: Run, judged: Any) -> None:
    """A limit lies between two that are as fast: with the plain one alone nothing might pass."""
    plain = answering(judged.candidate, 6, times=6.0, name="plain")
    recipe = in_huge_pages(plain.recipe)
    paged = dataclasses.replace(answering(plain, 0, times=1.01, name="paged"), recipe=recipe)
    assert chosen(run, judged, [plain, paged]) == ["paged", "plain"]


def test_a_likelier_twin_is_judged_beside_the_one_that_stands_for_a_tie(run: Run, judged: Any) -> None:
    """The plain one is the best, and half as sure to pass."""
    plain = answering(judged.candidate, 6, times=6.0, name="plain")
    recipe = in_huge_pages(plain.recipe)
    paged = dataclasses.replace(answering(plain, 0, times=0.99, name="paged"), recipe=recipe)
    assert chosen(run, judged, [plain, paged]) == ["plain", "paged"]


def test_a_setting_that_gains_and_was_less_likely_to_pass_is_no_tie(judged: Any) -> None:
    """5 % faster, and larger than the SLA surely lets it be: that is why it was not judged."""
    run = promising(judged.run, quality={"metric": "accuracy", "max_drop": 0.01})
    plain = answering(judged.candidate, 0, times=6.0, name="plain")
    recipe = in_huge_pages(plain.recipe)
    paged = dataclasses.replace(answering(plain, 6, times=1.05, name="paged"), recipe=recipe, verdict=None)
    rows = [*(answering(row, 0) for row in judged.baselines), plain, paged]
    said = explaining.explanation(run, paged, rows, plain)
    assert said.startswith("It was not judged: it was less likely to keep quality.max_drop")


def test_what_loses_too_much_by_its_estimate_takes_the_place_of_none_that_does_not(
    run: Run, judged: Any
) -> None:
    """700 samples do not rule out that it keeps the SLA; such took places of a run's (docs/log.md)."""
    lossy = [answering(judged.candidate, 12, times=t, name=f"lossy {t}") for t in (5.0, 6.0)]
    safe = [answering(judged.candidate, 0, times=t, name=f"safe {t}") for t in (2.0, 3.0)]
    assert chosen(run, judged, [*lossy, *safe]) == ["safe 3.0", "safe 2.0"]


def test_a_gain_on_the_split_that_chose_it_makes_no_bet_safe(run: Run, judged: Any) -> None:
    """Two points better on the search split. Pruned networks were so, and none passed (docs/log.md)."""
    lucky = [answering(judged.candidate, 5, 20, times=t, name=f"lucky {t}") for t in (5.0, 6.0)]
    safe = answering(judged.candidate, 0, times=3.0, name="safe")
    assert chosen(run, judged, [*lucky, safe]) == ["lucky 6.0", "safe"]


def test_one_that_gains_nothing_takes_no_place(run: Run, judged: Any) -> None:
    bets = [answering(judged.candidate, 20, 20, times=t, name=f"bet {t}") for t in (50.0, 60.0)]
    slow = answering(judged.candidate, 0, times=0.001, name="slow")
    assert chosen(run, judged, [*bets, slow]) == ["bet 60.0", "bet 50.0"]


def test_the_best_ones_are_judged_where_one_of_them_is_no_bet(run: Run, judged: Any) -> None:
    safe = [answering(judged.candidate, 0, times=t, name=f"safe {t}") for t in (3.0, 2.0)]
    bet = answering(judged.candidate, 20, 20, times=6.0, name="bet 6.0")
    assert chosen(run, judged, [*safe, bet]) == ["bet 6.0", "safe 3.0"]


@pytest.mark.parametrize(
    ("clauses", "many"),
    [({"size": {"max_mib": 2}}, 0), ({"quality": {"min": 0.9}}, 100), ({"size": {"max_mib": 9}}, 100)],
    ids=["size", "min", "nothing said of quality"],
)
def test_what_misses_a_clause_already_takes_no_place(clauses: Any, many: int, judged: Any) -> None:
    """Three are fast, and too large or wrong too often: the slower one that keeps the clause is judged."""
    run = promising(judged.run, **clauses)
    missing = [answering(judged.candidate, many, times=t, name=f"{t}", mib=8.0) for t in (40.0, 50.0, 60.0)]
    keeping = answering(judged.candidate, 0, times=20.0, name="keeping", mib=1.3)
    assert chosen(run, judged, [*missing, keeping]) == ["keeping"]


def test_where_all_miss_a_clause_the_best_are_judged_all_the_same(judged: Any) -> None:
    """The baselines too: nothing can win, and the verdict says by how much each misses."""
    run = promising(judged.run, size={"max_mib": 0.5})
    rows = [answering(judged.candidate, 0, times=t, name=f"{t}") for t in (20.0, 30.0, 40.0)]
    assert chosen(run, judged, rows) == ["40.0", "30.0"]


def test_a_time_that_few_samples_bound_makes_no_bet_of_what_keeps_its_quality(judged: Any) -> None:
    """A p99 at the verdict's confidence takes more samples than the search does: its estimate keeps it."""
    quality = {"metric": "accuracy", "max_drop": 0.01}
    run = promising(judged.run, quality=quality, latency={"p99_ms": 10000})
    bets = [answering(judged.candidate, 20, 20, times=t, name=f"bet {t}") for t in (5.0, 6.0)]
    few = answering(judged.candidate, 0, times=2.0, name="few")
    assert few.measurement is not None
    blocks = tuple(block[:1] for block in few.measurement.blocks_ms)
    few = dataclasses.replace(few, measurement=dataclasses.replace(few.measurement, blocks_ms=blocks))
    assert chosen(run, judged, [*bets, few]) == ["bet 6.0", "few"]


def test_finalists_are_ranked_beside_the_baseline_that_they_were_timed_with(run: Run, judged: Any) -> None:
    """The machine was twice as slow while the better ones were timed: their medians are longer, not their
    share of the baseline's."""
    worse = answering(judged.candidate, 0, times=20.0, name="worse")
    better = [answering(judged.candidate, 0, times=t, name=f"better {t}") for t in (22.0, 24.0)]
    slowly = [dataclasses.replace(row, measurement=slowed(row)) for row in better]
    assert chosen(run, judged, [worse, *slowly]) == ["better 24.0", "better 22.0"]


def slowed(row: Row) -> Any:
    assert row.measurement is not None
    blocks = tuple(tuple(2 * ms for ms in block) for block in row.measurement.blocks_ms)
    return dataclasses.replace(row.measurement, blocks_ms=blocks)


def test_where_no_candidate_is_left_the_baselines_are_judged_alone(run: Run, judged: Any) -> None:
    assert chosen(run, judged, []) == []


def test_a_faster_one_that_was_not_judged_says_which_clause_it_was_less_likely_to_keep(
    run: Run, judged: Any
) -> None:
    """Twice as fast as the winner, and six of 700 wrong, where a point may be lost."""
    safe = answering(judged.candidate, 0, times=20.0, name="safe")
    bet = answering(judged.candidate, 6, times=40.0, name="bet")
    sure = answering(judged.candidate, 0, times=40.0, name="sure")
    rows = [*(answering(row, 0) for row in judged.baselines), safe, bet, sure]
    rows = [dataclasses.replace(row, verdict=None) for row in rows]
    *_, safe, bet, sure = rows
    for winner in (safe, None):
        assert explaining.explanation(run, bet, rows, winner).startswith(
            "It was not judged: it was less likely to keep quality.max_drop: on the search split the limit "
            "0.01 lies inside the interval; 700 samples cannot tell"
        )
    assert explaining.explanation(run, sure, rows, safe) == "It was not judged: others promised more."
    assert explaining.explanation(run, safe, rows, sure).startswith("It was not judged: it is ")


def test_what_a_plainer_twin_stands_for_says_so_though_that_lost(run: Run, judged: Any) -> None:
    """Pages make it 1 % faster, which is nobody's reason to judge it; another one won then."""
    plain = answering(judged.candidate, 0, times=40.0)
    paged = answering(judged.candidate, 0, times=40.4)
    paged = dataclasses.replace(paged, recipe=in_huge_pages(plain.recipe), id="paged")
    safe = answering(judged.candidate, 0, times=20.0, name="safe")
    rows = [*(answering(row, 0) for row in judged.baselines), safe, plain, paged]
    rows = [dataclasses.replace(row, verdict=None) for row in rows]
    *_, safe, plain, paged = rows
    assert explaining.explanation(run, paged, rows, safe) == (
        f"It was not judged: {plain.label} stands for it, which is as fast within 2% in fewer settings."
    )
    assert explaining.explanation(run, plain, rows, safe) == "It was not judged: others promised more."
    early = [{"variant": plain.id, "version": "3", "reason": "it meets the SLA"}]
    assert explaining.explanation(run, plain, rows, safe, early) == (
        "It was judged while the search went on, and is version 3: it meets the SLA."
    )


def test_rows_on_other_threads_are_compared_beside_one_baseline(run: Run, judged: Any) -> None:
    """By hand: on two threads the baseline takes half as long. Twice as fast as that is a quarter of the
    first's median; three times as fast as the first, on one thread, is a third."""
    strong, *others = (answering(row, 0) for row in judged.baselines)
    recipe = Recipe((), Step("onnxruntime", {"threads": 2}))
    two = dataclasses.replace(answering(strong, 0, times=2.0), id="two", recipe=recipe)

    def gaining(row: Row, times: float, **changes: Any) -> Row:
        speedup = Interval(times, times, times, 100)
        found = answering(judged.candidate, 0)
        return dataclasses.replace(found, verdict=None, speedup=speedup, recipe=row.recipe, **changes)

    slower, winner = gaining(strong, 3.0, id="slower"), gaining(two, 2.0, id="winner")
    assert explaining.explanation(run, slower, [strong, *others, two, slower, winner], winner) == (
        f"It was not judged: its p50 latency is 0.33 times that of {strong.label}, "
        "and the winner's 0.25 times."
    )
