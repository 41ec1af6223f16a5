"""Which serving plans are tried, how often the gate looks, and what it takes for one to be chosen."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import calibration, commands
from pareflow.errors import InputError, StepFailedError
from pareflow.hardware import probe
from pareflow.isolation import Limits
from pareflow.measuring import arena
from pareflow.serving import service_times
from pareflow.serving.plan import ServingPlan, default
from pareflow.stages import plan_space, tuning
from pareflow.stages.tuning import Ground, Promise, Tried, tune

PROMISE = Promise(per_s=100, p99_ms=20)
Answer = Callable[[Mapping[str, Any], Mapping[str, Any]], list[float]]
"""The ms of a run, by its plan and its load."""


def steady(plan: Mapping[str, Any], load: Mapping[str, Any]) -> list[float]:
    return [5.0] * load["queries"]


def late_thrice(plan: Mapping[str, Any], load: Mapping[str, Any]) -> list[float]:
    """At first 0.8 % take 30 ms, which may be 1 % of all; of twice as many it is 0.4, which surely is not."""
    return [30.0 if load["seed"] == 0 and i % 125 == 60 else 5.0 for i in range(load["queries"])]


def never(plan: Mapping[str, Any], load: Mapping[str, Any]) -> list[float]:
    return [50.0] * load["queries"]


class Known:
    """What was measured before, of every plan; the loads that were asked for."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, list[Mapping[str, Any]]()

    def __call__(self, what: str, conditions: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        if what == "service times":
            times = {str(size): 0.003 + 0.001 * size for size in conditions["sizes"]}
            return {str(count): times for count in conditions["sessions"]}
        self.asked.append(conditions)
        ms = self.answer(conditions["plan"], conditions["load"])
        return {"ms": ms, "said": {"valid": True}, "distinct": 8}


@pytest.fixture
def ground(packaged: Callable[..., Path], tmp_path: Path) -> Callable[..., Ground]:
    """Where plans are tried that are known already: no process is started."""

    def made(known: Known, **more: Any) -> Ground:
        return Ground(packaged("images"), Limits(), tmp_path, 0, known, **more)

    return made


@pytest.mark.parametrize("place", ["absent/plan.yaml", "."])
def test_where_no_plan_can_be_written_none_is_measured(tmp_path: Path, place: str) -> None:
    """Neither is there such a version, nor such a plan to calibrate: neither was looked for."""
    to, version = tmp_path / place, "models:/none@champion"
    with pytest.raises(InputError, match="must be written to a file in a folder"):
        commands.tune(version, tmp_path, {}, to, register=False)
    with pytest.raises(InputError, match="must be written to a file in a folder"):
        calibration.calibrate(version, tmp_path, tmp_path / "none.yaml", {}, to=to)


def served(tried: list[Tried]) -> list[Tried]:
    return [one for one in tried if one.check is not None]


def test_the_error_is_shared_by_the_plans_and_spent_over_the_looks() -> None:
    """5 % over 3 plans and looks that spend 1/2, 1/6, 1/12 of it: never more than 5 % in all."""
    errors = [1 - PROMISE.at_look(look) for look in (1, 2, 3)]
    assert errors == pytest.approx([0.05 / 6, 0.05 / 18, 0.05 / 36])
    assert [PROMISE.load(look, 0).queries for look in (1, 2, 3)] == [860, 860, 1720]
    assert len({PROMISE.load(look, 0).seed for look in (1, 2, 3)}) == 3


def test_a_busy_line_is_asked_for_longer() -> None:
    """573 are 1.2 times what bounds p99 at 99.17 %; half busy, 1.5 · 1.5 / 0.5² = 9 times as many."""
    assert Promise(100, 20, queries=300).load(1, 0).queries == 860
    assert Promise(100, 20, queries=300).load(1, 0.5).queries == 9 * 573
    assert Promise(100, 20, queries=300).load(1, 0.99) == Promise(100, 20, queries=300).load(1, 0.9)
    assert Promise(100, 20, queries=300).load(1, 1.2).queries == 573  # it only grows: soon told


def test_a_plan_that_keeps_it_is_chosen_after_one_look_at_each(ground: Callable[..., Ground]) -> None:
    known = Known(steady)
    best, *others = tune(ground(known), PROMISE)
    assert (best.decision, best.p50_ms) == ("promote", 5)
    assert len(known.asked) == len(served([best, *others])) == tuning.MEASURED
    assert {one.decision for one in others} == {"promote", "left out"}


def test_no_more_sessions_are_timed_than_cores_that_a_container_is_given(
    ground: Callable[..., Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, known = list[list[int]](), Known(steady)
    monkeypatch.setattr(probe, "cores", lambda: range(64))
    monkeypatch.setattr(probe, "cpu_quota", lambda: 2.0)

    def kept(what: str, conditions: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        if what == "service times":
            timed.append(conditions["sessions"])
        return known(what, conditions, make)

    tune(replace(ground(known), kept=kept), PROMISE)
    assert timed == [[1, 2]]


def test_what_a_look_cannot_tell_is_asked_again_at_other_times(ground: Callable[..., Ground]) -> None:
    known = Known(late_thrice)
    best, *_ = tune(ground(known), PROMISE)
    assert [one["load"]["seed"] for one in known.asked] == [0, 0, 0, 1, 1, 1]
    asked = [
        one["load"]["queries"] for one in known.asked if one["plan"] == best.plan.model_dump(mode="json")
    ]
    assert len(asked) == 2
    assert (best.decision, sum(map(len, best.blocks_ms))) == ("promote", sum(asked))


def test_what_nothing_keeps_is_not_asked_again(ground: Callable[..., Ground]) -> None:
    known = Known(never)
    tried = tune(ground(known), PROMISE)
    assert {one.decision for one in served(tried)} == {"reject"}
    assert len(known.asked) == tuning.MEASURED
    assert tried[0].reason is not None
    assert "50 is not at most 20" in tried[0].reason
    assert tried[0].reason.endswith(" (distinct requests: 8)")
    assert tried[0].to_json()["distinct_requests"] == 8


def test_requests_hold_the_inputs_that_are_given_and_else_golden_samples(
    ground: Callable[..., Ground], tmp_path: Path
) -> None:
    """Twenty images of 256 bytes; of golden samples there are eight."""
    images = np.random.default_rng(0).normal(size=(20, 1, 1, 8, 8)).astype(np.float32)
    arena.write_feeds([{"images": one} for one in images], tmp_path / "feeds.npz")
    golden = ground(Known(steady))
    asked = tuning._requests(replace(golden, feeds=tmp_path / "feeds.npz"), 1)
    found = [np.asarray(one["data"], np.float32) for (one,) in asked]
    assert np.array_equal(np.stack(found).reshape(images.shape), images)
    assert len(tuning._requests(golden, 1)) == tuning.POSTS


def test_given_inputs_are_those_that_json_holds_not_too_many_bytes_and_some_at_least() -> None:
    image = {"images": np.zeros((1, 2**17))}  # 1 MiB
    nan, large = {"images": np.full((1, 1), np.nan)}, {"images": np.zeros((1, 2**20))}
    assert service_times._some([nan, *[image] * 20], 8, False) == [image] * 16
    assert service_times._some([nan, *[image] * 20], 8, True)[0] is nan
    assert len(service_times._some([large] * 20, 8, False)) == 8
    assert len(service_times._some([large] * 5, 8, False)) == 5


def test_requests_lack_the_values_that_those_of_a_model_that_takes_missing_ones_do(
    with_gaps: Callable[..., Path], tmp_path: Path
) -> None:
    """Inputs that are given, and golden samples: else the times would be of other requests."""
    package, given, into = str(with_gaps()), tmp_path / "given.npz", tmp_path / "feeds.json"
    arena.write_feeds([{"x": np.array([[1, np.nan, 3, 2]], np.float32)}], given)
    service_times.feeds(package, str(into), 1, given=str(given))
    assert [one["data"] for (one,) in json.loads(into.read_text())] == [[1, None, 3, 2]]
    service_times.feeds(package, str(into), 8)
    assert any(None in one["data"] for (one,) in json.loads(into.read_text()))


def test_what_a_plan_answered_is_known_for_its_own_inputs_alone(
    ground: Callable[..., Ground], tmp_path: Path
) -> None:
    known, files = Known(steady), [tmp_path / name for name in ("some.npz", "others.npz")]
    for value, path in enumerate(files):
        arena.write_feeds([{"images": np.full((1, 1, 8, 8), value, np.float32)}], path)
    for feeds in (None, *files):
        tune(ground(known, feeds=feeds), PROMISE)
    told = {json.dumps(one, sort_keys=True) for one in known.asked}
    assert len(told) == len(known.asked) == 3 * tuning.MEASURED


def test_one_plan_is_served_whatever_the_time_and_the_others_if_it_lasts(
    ground: Callable[..., Ground],
) -> None:
    needed: list[float] = []

    def late(asked: str, minutes: float) -> bool:
        needed.append(minutes)
        return True

    tried = tune(ground(Known(late_thrice), late=late), PROMISE)
    assert len(served(tried)) == 1
    assert [one.reason for one in tried[1:3]] == ["too little of the budget was left"] * 2
    minutes = needed[0]
    assert needed == pytest.approx([minutes] * 3 + [2 * minutes])  # two plans, and two looks at the first
    assert tried[0].decision == "inconclusive"


def test_a_plan_that_fails_is_a_failed_row(ground: Callable[..., Ground]) -> None:
    def of_eight(plan: Mapping[str, Any], load: Mapping[str, Any]) -> list[float]:
        if _largest(ServingPlan(**plan)) == 8:  # what is served by default
            raise StepFailedError("every query must be answered", "9 were not", "Look at the log")
        return steady(plan, load)

    best, *others = tune(ground(Known(of_eight)), PROMISE)
    failed = [one for one in others if one.decision == "failed"]
    assert (best.decision, len(failed)) == ("promote", 1)
    assert failed[0].reason == "StepFailedError: every query must be answered, but 9 were not"


def test_batches_hold_whole_requests(ground: Callable[..., Ground]) -> None:
    """Of three samples each; what is served by default takes two of them together, as 8 samples hold."""
    tried = tune(ground(Known(steady)), Promise(100, 20, samples=3))
    sizes = {one.plan.chosen()[0].model_dump()["max_batch_size"] for one in tried}
    assert sizes == {3, 6, 12, 24, 48}
    assert any(_largest(one.plan) == 6 for one in served(tried))


def test_no_batch_is_tried_that_is_larger_than_answers_were_judged_in(
    ground: Callable[..., Ground], mixing: Path
) -> None:
    """Which their package says where they depend on it: two samples, and what is served by default, too."""
    tried = tune(replace(ground(Known(steady)), package=mixing), PROMISE)
    assert {_largest(one.plan) for one in tried} == {1, 2}
    assert any(_largest(one.plan) == 2 for one in served(tried))
    judged = default({"judged_batch_size": 2})
    assert plan_space.sizes(3, 2, judged) == [3]  # a request is whole, whatever was judged


def _largest(plan: ServingPlan) -> int:
    return int(plan.chosen()[0].model_dump()["max_batch_size"])


@given(judged=st.none() | st.integers(1, 100), samples=st.integers(1, 20))
def test_the_batch_of_the_default_plan_is_tried_whatever_was_judged(judged: int | None, samples: int) -> None:
    plan = default({} if judged is None else {"judged_batch_size": judged})
    sizes = plan_space.sizes(samples, judged, plan)
    assert _largest(plan_space.usual(plan, 1, samples)) in sizes
    assert sizes == sorted(set(sizes))
    assert max(sizes) <= max(samples, judged or max(sizes))


def test_what_serve_does_by_default_is_served_though_its_batch_is_none_of_the_usual_ones(
    ground: Callable[..., Ground], mixing: Path
) -> None:
    """Judged in batches of three, between two and four."""
    document = json.loads((mixing / "model.json").read_text())
    (mixing / "model.json").write_text(json.dumps({**document, "judged_batch_size": 3}))
    tried = tune(replace(ground(Known(steady)), package=mixing), PROMISE)
    assert {_largest(one.plan) for one in tried} == {1, 2, 3}
    assert any(_largest(one.plan) == 3 for one in served(tried))


@given(simulated=st.lists(st.integers(1, 8).map(float), min_size=1, max_size=12), data=st.data())
def test_what_is_served_without_tuning_always_competes(simulated: list[float], data: st.DataObject) -> None:
    """With the best of the others, of equal ones once."""
    ranked = [(ServingPlan(sessions=i + 1), ms) for i, ms in enumerate(sorted(simulated))]
    usual = data.draw(st.sampled_from(ranked))
    chosen = plan_space.worth_serving(ranked, usual[0], tuning.MEASURED)
    times = [ms for _, ms in chosen]
    assert len(chosen) == min(tuning.MEASURED, len(set(simulated)))
    assert times == sorted(set(times))
    assert times[0] == min(simulated)
    assert usual in chosen
