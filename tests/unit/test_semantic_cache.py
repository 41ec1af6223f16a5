"""The semantic cache: which requests share an answer, what is computed again, and what switches it off."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import BadOutputError, SpecError, UnsuitableError
from pareflow.runtime import SemanticCache
from pareflow.runtime.caching.calibration import HitCalibration
from pareflow.runtime.caching.index import ExactIndex, Index, UsearchIndex
from pareflow.runtime.caching.near_answers import NearAnswers
from pareflow.runtime.caching.pairs import pairs
from pareflow.runtime.caching.sameness import same
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays
from tests.concurrency import run

CLOSE = math.cos(math.radians(2))
"""Requests are angles; those within two degrees are near enough."""


class Compass:
    """Answers angles, in degrees, with the logits of their quarter; its encoder gives their directions."""

    def __init__(self, *, encoder_fails: bool = False) -> None:
        self.batches: list[list[float]] = []
        self._encoder_fails = encoder_fails

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, "compass", tiers={"encoder": Endpoint(self.embed, "encoder")})

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        angles = feeds["angle"][:, 0]
        self.batches.append(angles.tolist())
        return {"logits": np.eye(4)[(angles // 90).astype(int) % 4] * (1 + angles[:, None] / 360)}

    async def embed(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        if self._encoder_fails:
            raise BadOutputError("it must answer", "it does not", "Mend it")
        radians = np.radians(feeds["angle"][:, 0])
        return {"vector": np.stack([np.cos(radians), np.sin(radians)], axis=1)}


def angles(*values: float) -> Arrays:
    return {"angle": np.array(values, np.float64)[:, None]}


def quarters(answer: Arrays) -> list[int]:
    values: list[int] = answer["logits"].argmax(axis=1).tolist()
    return values


def semantic(**settings: Any) -> SemanticCache:
    by_cosine = {"score": "similarity", "threshold": CLOSE, "rerun_share": 1e-9}
    return SemanticCache(**{"encoder": "encoder", **by_cosine, **settings})


def test_near_requests_share_an_answer_row_by_row() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic().wrap(below.endpoint)
        assert quarters(await endpoint.answer(angles(10, 100))) == [0, 1]
        answer = await endpoint.answer(angles(101.9, 200, 9))
        assert quarters(answer) == [1, 2, 0]
        assert answer["logits"][0, 1] == 1 + 100 / 360  # what was kept
        assert quarters(await endpoint.answer(angles(12.1))) == [0]
        assert below.batches == [[10, 100], [200], [12.1]]
        figures = endpoint.figures["semantic_cache"]()
        assert (figures["hits"], figures["misses"], figures["entries"]) == (2, 4, 4)

    run(scenario, seconds=60)


def test_the_nearest_of_several_is_given() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic().wrap(below.endpoint)
        await endpoint.answer(angles(87))
        await endpoint.answer(angles(90.5))
        assert quarters(await endpoint.answer(angles(88.5))) == [0]
        assert quarters(await endpoint.answer(angles(89.1))) == [1]  # a false hit: 89.1 is of quarter 0

    run(scenario, seconds=60)


def test_a_margin_keeps_away_from_where_answers_change() -> None:
    """Nearest is 80; to 91, of another quarter, it is 2 degrees from 84 and 8 from 78."""

    async def scenario() -> None:
        below = Compass()
        margin = math.cos(math.radians(2)) - math.cos(math.radians(13)) - 1e-6
        endpoint = semantic(score="margin", threshold=margin).wrap(below.endpoint)
        await endpoint.answer(angles(80))
        assert quarters(await endpoint.answer(angles(80.5))) == [0]  # nothing is known beyond
        await endpoint.answer(angles(91))
        computed = len(below.batches)
        assert quarters(await endpoint.answer(angles(78))) == [0]
        assert len(below.batches) == computed
        assert quarters(await endpoint.answer(angles(84))) == [0]
        assert quarters(await endpoint.answer(angles(88))) == [0]
        assert below.batches == [[80], [80.5], [91], [84], [88]]

    run(scenario, seconds=60)


def test_what_is_nothing_like_it_is_no_hit_whatever_the_margin() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(score="margin", threshold=0.1).wrap(below.endpoint)
        await endpoint.answer(angles(10))
        await endpoint.answer(angles(190))
        await endpoint.answer(angles(75))
        assert len(below.batches) == 3

    run(scenario, seconds=60)


def test_values_are_searched_by_cosine_since_they_have_no_margin() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(score="margin", same="values").wrap(below.endpoint)
        await endpoint.answer(angles(10))
        assert quarters(await endpoint.answer(angles(11))) == [0]
        assert len(below.batches) == 1

    run(scenario, seconds=60)


def test_values_are_the_same_within_a_tolerance() -> None:
    """Of logits 1.25 and 1.253: 0.24 % of the largest."""
    first, second = ({"logits": np.array([[0, value]])} for value in (1.25, 1.253))
    assert same(first, second, classes=False, judged=None, tolerance=0.003)
    assert not same(first, second, classes=False, judged=None, tolerance=0.002)
    assert not same(first, {"logits": np.zeros((1, 3))}, classes=False, judged=None, tolerance=1)


def test_one_output_may_be_judged_alone() -> None:
    first, second = ({"label": np.array([3]), "score": np.array([score])} for score in (0.1, 0.2))
    assert same(first, second, classes=True, judged="label", tolerance=0)
    assert not same(first, second, classes=True, judged=None, tolerance=0)


@pytest.mark.parametrize("classes", [True, False])
def test_an_output_that_is_not_there_makes_no_two_answers_the_same(classes: bool) -> None:
    first, second = ({"logits": np.array([[0.0, value]])} for value in (1, -1))
    with pytest.raises(UnsuitableError, match="it is 'logit', and there are logits"):
        same(first, second, classes=classes, judged="logit", tolerance=0)


def test_hits_that_are_computed_again_are_compared_and_answered_afresh() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(rerun_share=1.0).wrap(below.endpoint)
        for angle in (89.5, 90.5, 10, 10.5):
            assert quarters(await endpoint.answer(angles(angle))) == [int(angle // 90)]
        figures = endpoint.figures["semantic_cache"]()
        assert (figures["hits"], figures["reruns"], figures["false_hits"]) == (2, 2, 1)
        assert figures["false_hit_rate"] == 0.5

    run(scenario, seconds=60)


def test_too_many_false_hits_switch_it_off_for_good() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(rerun_share=1.0).wrap(below.endpoint)
        for border in (90, 180, 270):
            await endpoint.answer(angles(border - 0.5))
            await endpoint.answer(angles(border + 0.5))
        figures = endpoint.figures["semantic_cache"]()
        assert figures["on"] == 0
        asked = len(below.batches)
        assert quarters(await endpoint.answer(angles(89.5))) == [0]
        assert len(below.batches) == asked + 1
        assert endpoint.figures["semantic_cache"]()["hits"] == figures["hits"]

    run(scenario, seconds=60)


def test_without_a_threshold_it_computes_everything_until_it_found_one() -> None:
    """Requests lie within a degree of those before, in the middle of quarters: all pairs agree."""

    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(threshold=None, shadow_pairs=400).wrap(below.endpoint)
        chance = np.random.default_rng(0)

        async def ask() -> None:
            angle = float(90 * chance.integers(4) + 45 + chance.uniform(-0.5, 0.5))
            assert quarters(await endpoint.answer(angles(angle))) == [int(angle // 90)]

        asked = 0
        while "threshold" not in endpoint.figures["semantic_cache"]():
            await ask()
            asked += 1
            assert len(below.batches) == asked
        assert 400 < asked < 420
        before = len(below.batches)
        for _ in range(100):
            await ask()
        assert len(below.batches) < before + 10
        assert endpoint.figures["semantic_cache"]()["hits"] > 90

    run(scenario, seconds=60)


def calibrated(held: tuple[int, int] | None, **settings: Any) -> SemanticCache:
    """By margin, with a record of so many answers of so many kinds."""
    policy = semantic(score="margin", threshold=None, **settings)
    answers, kinds = held or (None, None)
    record = HitCalibration(
        variants={"encoder": "encoder", "full": "compass"},
        score="margin",
        settings=policy.deciding,
        threshold=0.3,
        max_false_hits=0.01,
        confidence=0.95,
        pairs=500,
        hits=400,
        false_hits=0,
        held_answers=answers,
        held_kinds=kinds,
    )
    return policy.model_copy(update={"calibration": record})


@pytest.mark.parametrize(
    ("held", "computed"), [((500, 4), True), ((3, 2), True), ((2, 3), True), ((2, 2), False), (None, True)]
)
def test_a_margin_to_fewer_than_it_was_calibrated_on_is_no_hit(
    caplog: pytest.LogCaptureFixture, held: tuple[int, int] | None, computed: bool
) -> None:
    """91 is nearest to 40, of another quarter, by a margin of 0.79 to 190. Old records say no number."""

    async def scenario() -> None:
        below = Compass()
        endpoint = calibrated(held).wrap(below.endpoint)
        for angle in (40, 190, 91):
            await endpoint.answer(angles(angle))
        assert (below.batches == [[40], [190], [91]]) == computed

    run(scenario, seconds=60)
    assert [record.message for record in caplog.records if "calibrated before" in record.message] == (
        [
            "the semantic cache was calibrated before records said how many answers were held: it looks "
            "for a threshold of its own; run `pareflow calibrate` again"
        ]
        if held is None
        else []
    )


@pytest.mark.parametrize(("common", "rare", "kinds"), [(19, 1, 1), (18, 2, 2), (38, 2, 1), (0, 0, 0)])
def test_a_kind_that_one_of_twenty_answers_is_of_need_not_be_held(common: int, rare: int, kinds: int) -> None:
    async def scenario() -> None:
        kept = [angles(2 * i) for i in range(common)] + [angles(190 + 2 * i) for i in range(rare)]
        found = await pairs(semantic(), Compass().endpoint, kept, [])
        assert found.held == (common + rare, kinds)

    run(scenario)


def test_no_more_must_be_held_than_the_cache_has_room_for() -> None:
    """As many as it holds itself after the same requests."""

    async def scenario() -> None:
        policy, kept = semantic(max_mib=10_000 / 2**20), [angles(angle) for angle in range(0, 80, 2)]
        endpoint = policy.model_copy(update={"threshold": 2.0}).wrap(Compass().endpoint)
        for feeds in kept:
            await endpoint.answer(feeds)
        entries = endpoint.figures["semantic_cache"]()["entries"]
        assert 1 < entries < len(kept)
        assert (await pairs(policy, Compass().endpoint, kept, [])).held.answers == entries

    run(scenario)


def test_what_is_held_and_what_must_be_is_told() -> None:
    async def scenario() -> None:
        endpoint = calibrated((500, 4)).wrap(Compass().endpoint)
        await endpoint.answer(angles(40, 50, 190))
        figures = endpoint.figures["semantic_cache"]()
        assert (figures["entries"], figures["kinds"]) == (3, 2)
        assert (figures["needed_entries"], figures["needed_kinds"]) == (500, 4)

    run(scenario)


def test_room_for_fewer_than_it_was_calibrated_on_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        endpoint = calibrated((500, 4), max_mib=2000 / 2**20).wrap(Compass().endpoint)
        for angle in (40, 190, 91):
            await endpoint.answer(angles(angle))

    run(scenario, seconds=60)
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("the semantic cache must hold 500 answers for a hit, and has room for ")


def test_a_large_answer_among_few_says_nothing_of_the_room_for_others() -> None:
    """Of half a MiB, and 19 small ones: there is room for some 39 of the 20's mean."""
    kept = NearAnswers(ExactIndex, 2**20, None)
    vectors = np.eye(20, dtype=np.float32)
    kept.keep(vectors[0], {"y": np.zeros(2**16)}, None)
    assert kept.room == math.inf
    for vector in vectors[1:]:
        kept.keep(vector, {"y": np.zeros(1)}, None)
    assert 30 < kept.room < 40


def test_a_threshold_of_its_own_holds_for_as_many_as_it_was_found_among() -> None:
    """Half of the 400 pairs met about 180, with some so near that one replaced the other. All agree."""

    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(score="margin", threshold=None, shadow_pairs=400).wrap(below.endpoint)
        chance = np.random.default_rng(0)

        async def ask(count: int) -> int:
            """How many of so many were computed."""
            before = len(below.batches)
            for _ in range(count):
                await endpoint.answer(angles(90 * chance.integers(4) + 45 + chance.uniform(-20, 20)))
            return len(below.batches) - before

        await endpoint.answer(angles(45, 135, 225, 315))
        assert await ask(450) == 400
        await endpoint.flush()
        await endpoint.answer(angles(45, 135, 225, 315))
        assert await ask(150) == 150
        await ask(100)
        assert await ask(50) == 0

    run(scenario, seconds=60)


def test_an_encoder_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        below = Compass(encoder_fails=True)
        endpoint = semantic().wrap(below.endpoint)
        for _ in range(3):
            assert quarters(await endpoint.answer(angles(10))) == [0]
        assert endpoint.figures["semantic_cache"]()["unembedded"] == 3

    run(scenario, seconds=60)
    assert [record.message for record in caplog.records] == [
        "requests that cannot be embedded are computed: it must answer, but it does not. Mend it"
    ]


@pytest.mark.parametrize(
    ("encoder_fails", "settings"),
    [
        (True, {}),
        (False, {"threshold": None, "min_similarity": 1}),  # no pair ever forms
        (False, {"threshold": None}),
    ],
)
def test_embedding_without_hits_is_a_loss_as_any(encoder_fails: bool, settings: dict[str, Any]) -> None:
    """No vectors, or no threshold: after two windows the encoder rests."""

    async def scenario() -> None:
        below = Compass(encoder_fails=encoder_fails)
        endpoint = semantic(window=5, **settings).wrap(below.endpoint)
        for number in range(30):
            await endpoint.answer(angles(10 + number))
        figures = endpoint.figures["semantic_cache"]()
        assert (figures["on"], figures["misses"], figures["skipped"]) == (0, 10, 20)
        assert len(below.batches) == 30

    run(scenario, seconds=60)


def test_keeping_an_answer_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = NearAnswers.keep

    def slowly(self: NearAnswers, vector: np.ndarray, answer: Arrays, kind: int | None) -> None:
        time.sleep(0.05)
        kept(self, vector, answer, kind)

    monkeypatch.setattr(NearAnswers, "keep", slowly)

    async def scenario() -> None:
        endpoint = semantic().wrap(Compass().endpoint)
        await endpoint.answer(angles(10, 100))
        assert endpoint.figures["semantic_cache"]()["cost_ms"] >= 100

    run(scenario, seconds=60)


def test_an_encoder_that_is_no_tier_is_told() -> None:
    with pytest.raises(SpecError, match=r"encoder: must be one of the tiers \(encoder\)"):
        SemanticCache(encoder="encodr").wrap(Compass().endpoint)


def test_answers_are_forgotten_after_their_time_and_by_a_flush() -> None:
    async def scenario() -> None:
        below = Compass()
        endpoint = semantic(ttl_s=0.05).wrap(below.endpoint)
        await endpoint.answer(angles(10))
        await asyncio.sleep(0.06)
        await endpoint.answer(angles(10))
        await endpoint.flush()
        assert endpoint.figures["semantic_cache"]()["entries"] == 0
        await endpoint.answer(angles(10))
        assert len(below.batches) == 3

    run(scenario, seconds=60)


def test_what_is_outdated_goes_at_once_and_what_is_younger_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than calls may be nested."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kept = NearAnswers(ExactIndex, 2**30, ttl_s=1)
    directions = np.random.default_rng(0).standard_normal((2001, 8)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for vector in directions[:2000]:
        now += 1e-4
        kept.keep(vector, {"y": np.zeros(1)}, None)
    now += 1.1
    kept.keep(directions[2000], {"y": np.ones(1)}, None)
    near = kept.nearest(directions[:2])
    assert [one and one.answer["y"].tolist() for one in near] == [[1], [1]]
    assert len(kept) == 1
    now += 1.1
    assert kept.nearest(directions[:2]) == [None, None]
    assert len(kept) == 0


@given(st.lists(st.floats(0, 359), min_size=1, max_size=30), st.integers(0, 6))
def test_an_answer_is_that_of_a_near_request_and_memory_is_bounded(asked: list[float], entries: int) -> None:
    async def scenario() -> None:
        below = Compass()
        mib = (entries * 800 + 1) / 2**20
        endpoint = semantic(max_mib=mib).wrap(below.endpoint)
        for angle in asked:
            answer = await endpoint.answer(angles(angle))
            given_for = (answer["logits"].max() - 1) * 360
            assert min(abs(given_for - angle), 360 - abs(given_for - angle)) <= 2.01
            assert endpoint.figures["semantic_cache"]()["held_bytes"] <= mib * 2**20

    run(scenario, seconds=60)


@pytest.mark.parametrize("kind", [ExactIndex, UsearchIndex])
def test_an_index_finds_the_nearest_of_what_is_in_it(kind: Callable[[int], Index]) -> None:
    """Beside looking at each, while vectors come and go."""
    if kind is UsearchIndex:
        pytest.importorskip("usearch", reason="not installed: usearch")
    chance = np.random.default_rng(0)
    index, kept = kind(8), dict[int, np.ndarray]()
    assert index.nearest(np.eye(8)[:1]) == []
    for slot in range(300):
        vector = chance.normal(size=8).astype(np.float32)
        kept[slot] = vector / np.linalg.norm(vector)
        index.add(slot, kept[slot], slot % 2)
        if slot % 3 == 0:
            gone = int(chance.choice(list(kept)))
            index.remove(gone)
            del kept[gone]
        if kept:
            query = np.eye(8, dtype=np.float32)[slot % 8]
            best = max(kept, key=lambda slot: float(kept[slot] @ query))
            others = [float(kept[other] @ query) for other in kept if other % 2 != best % 2]
            (found,) = index.nearest(query[None])
            assert found.slot == best
            assert found.similarity == pytest.approx(float(kept[best] @ query), abs=1e-5)
            margin = found.similarity - max(others) if others else 0
            assert found.margin == pytest.approx(margin, abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 64, 100])
@pytest.mark.parametrize("kind", [ExactIndex, UsearchIndex])
def test_nobody_knows_how_far_an_answer_reaches_before_there_is_another(
    kind: Callable[[int], Index], count: int
) -> None:
    """However many are kept of one kind; and again when the only other one has gone."""
    if kind is UsearchIndex:
        pytest.importorskip("usearch", reason="not installed: usearch")
    vectors = np.random.default_rng(0).normal(size=(count + 1, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = kind(8)
    for slot, vector in enumerate(vectors[:count]):
        index.add(slot, vector, 1)
    query = np.eye(8, dtype=np.float32)[:1]
    assert [near.margin for near in index.nearest(query)] == [0]
    index.add(count, vectors[count], 2)
    assert index.nearest(query)[0].margin != 0
    index.remove(count)
    assert [near.margin for near in index.nearest(query)] == [0]
