"""Cascades and routing by complexity: which variant answers which row, and what happens where one fails."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import CalibrationError, CrashedError, UnsuitableError
from pareflow.runtime import ComplexityRouting, ConfidenceCascade, Policy
from pareflow.runtime.calibration import ThresholdCalibration
from pareflow.runtime.complexity import SimplicityScore, features, name_of, train_score
from pareflow.runtime.confidence import Measure, confidence
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays

TINY, SMALL, FULL = 1000.0, 2000.0, 3000.0
"""Added to a row's number by the variant that answers it, so that an answer tells both."""


class Variant:
    """Answers row x with the number `mark + x`, and with logits that are as far apart as `x[1]` says."""

    def __init__(self, mark: float, error: Exception | None = None) -> None:
        self.mark, self.error = mark, error
        self.batches: list[list[float]] = []

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, f"variant {self.mark}")

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        x = feeds["x"]
        self.batches.append(x[:, 0].tolist())
        if self.error is not None:
            raise self.error
        return {"number": self.mark + x[:, 0], "logits": np.stack([x[:, 1], np.zeros(len(x))], axis=1)}


class Tiers:
    """A full model with a tiny and a small tier."""

    def __init__(self, tiny: Exception | None = None, small: Exception | None = None) -> None:
        self.tiny, self.small, self.full = Variant(TINY, tiny), Variant(SMALL, small), Variant(FULL)

    @property
    def endpoint(self) -> Endpoint:
        tiers = {"tiny": self.tiny.endpoint, "small": self.small.endpoint}
        return replace(self.full.endpoint, tiers=tiers)


def record(threshold: float, *names: str, score: str = "max_softmax") -> ThresholdCalibration:
    """A calibration by hand."""
    marks = {"tiny": TINY, "small": SMALL, "full": FULL}
    return ThresholdCalibration(
        variants={name: f"variant {marks[name]}" for name in (*names, "full")},
        max_drop=0.01,
        confidence=0.95,
        samples=500,
        drop=0,
        score=score,
        threshold=threshold,
        answered={},
    )


def cascade(threshold: float, *names: str) -> ConfidenceCascade:
    of = "max_softmax of logits"
    return ConfidenceCascade(output="logits", calibration=record(threshold, *names, score=of))


def ask(policy: Policy, below: Endpoint, rows: Sequence[tuple[float, float]]) -> np.ndarray:
    """Who answered which row: `mark + number` of each."""
    feeds = {"x": np.array(rows, dtype=np.float64).reshape(-1, 2)}

    async def answered() -> Arrays:
        return await policy.wrap(below).answer(feeds)

    return asyncio.run(answered())["number"]


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def test_confidence_by_hand() -> None:
    """Logits log 1, log 2, log 5: shares of 1/8, 2/8, 5/8."""
    outputs = {"logits": np.log([[1.0, 2.0, 5.0], [4.0, 4.0, 0.0 + 1e-300]])}
    assert confidence(outputs, "logits", "max_softmax") == pytest.approx([5 / 8, 1 / 2])
    assert confidence(outputs, "", "margin") == pytest.approx([3 / 8, 0])


def test_a_logit_that_is_no_number_is_no_confidence() -> None:
    outputs = {"logits": np.array([[np.nan, 1.0], [np.inf, 1.0], [100.0, -np.inf]], dtype=np.float32)}
    found = confidence(outputs, "", "max_softmax")
    assert np.isnan(found[:2]).all()
    assert found[2] == 1


@pytest.mark.parametrize(
    ("outputs", "output", "message"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, "", "`output` must name one of the outputs"),
        ({"a": np.zeros((2, 3))}, "b", "it is 'b', and there are a"),
        ({"a": np.zeros(2)}, "a", r"these have \(2,\)"),
        ({"a": np.zeros((2, 1))}, "a", r"these have \(2, 1\)"),
    ],
)
def test_what_holds_no_logits_is_told(outputs: Arrays, output: str, message: str) -> None:
    with pytest.raises(UnsuitableError, match=message):
        confidence(outputs, output, "margin")


def test_only_the_rows_that_need_it_go_on() -> None:
    """By hand, threshold 0.8: row 1 is sure at once; nothing that the tiny one doubts convinces the next."""
    tiers = Tiers()
    found = ask(cascade(0.8, "tiny", "small"), tiers.endpoint, [(0, 0), (1, logit(0.9)), (2, logit(0.7))])
    assert found.tolist() == [FULL, TINY + 1, FULL + 2]
    assert (tiers.tiny.batches, tiers.small.batches, tiers.full.batches) == ([[0, 1, 2]], [[0, 2]], [[0, 2]])


@pytest.mark.parametrize("measure", ["max_softmax", "margin"])
def test_a_confidence_at_the_threshold_is_enough(measure: Measure) -> None:
    policy = ConfidenceCascade(
        output="logits", measure=measure, calibration=record(0.0, "tiny", score=f"{measure} of logits")
    )
    assert ask(policy, Tiers().endpoint, [(4, 0)]).tolist() == [TINY + 4]


@given(
    rows=st.lists(st.floats(-8, 8), min_size=1, max_size=20),
    threshold=st.sampled_from([0.0, 0.5, 0.6, 0.75, 0.9, 0.99, 1.0, 2.0]),
)
def test_rows_keep_their_order_and_their_own_answers(rows: list[float], threshold: float) -> None:
    """The small one's where it is sure, else the full one's; at 0 all are the small one's, above 1 none."""
    found = ask(cascade(threshold, "small"), Tiers().endpoint, list(enumerate(rows)))
    assert (found % 1000).tolist() == list(range(len(rows)))
    sure = 1 / (1 + np.exp(-np.abs(rows))) >= threshold
    assert found.tolist() == [i + (SMALL if own else FULL) for i, own in enumerate(sure)]
    if threshold == 0:
        assert sure.all()
    if threshold > 1:
        assert not sure.any()


@pytest.mark.parametrize("policy", [ConfidenceCascade(), ComplexityRouting()], ids=lambda p: p.name)
def test_without_a_calibration_nobody_is_trusted(policy: Policy) -> None:
    tiers = Tiers()
    assert ask(policy, tiers.endpoint, [(0, 9), (1, 9)]).tolist() == [FULL, FULL + 1]
    assert tiers.tiny.batches == tiers.small.batches == []


def test_where_a_tier_fails_the_next_answers_and_it_is_counted() -> None:
    tiers = Tiers(tiny=CrashedError("it must run", "it died", "Mend it"), small=ValueError("by whatever"))
    policy = cascade(0.0, "tiny", "small")

    async def scenario() -> tuple[Arrays, Mapping[str, float]]:
        endpoint = policy.wrap(tiers.endpoint)
        answers = await endpoint.answer({"x": np.array([[5.0, 9.0]])})
        return answers, endpoint.figures[policy.name]()

    answers, figures = asyncio.run(scenario())
    assert answers["number"].tolist() == [FULL + 5]
    assert (figures["failed_tiny"], figures["failed_small"], figures["answered_full"]) == (1, 1, 1)


def test_a_tier_without_logits_answers_nothing() -> None:
    policy = ConfidenceCascade(
        output="missing", calibration=record(0.0, "tiny", score="max_softmax of missing")
    )
    assert ask(policy, Tiers().endpoint, [(0, 9)]).tolist() == [FULL]


def test_what_the_full_model_raises_is_the_callers() -> None:
    tiers = Tiers()
    tiers.full.error = CrashedError("it must run", "it died", "Mend it")
    assert ask(cascade(0.8, "tiny"), tiers.endpoint, [(0, 9)]).tolist() == [TINY]
    with pytest.raises(CrashedError):
        ask(cascade(0.8, "tiny"), tiers.endpoint, [(0, 9), (1, 0)])


def test_variants_that_answer_in_other_shapes_are_not_mixed() -> None:
    async def other(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"number": feeds["x"], "logits": feeds["x"]}

    below = replace(Tiers().endpoint, answer=other)
    with pytest.raises(UnsuitableError, match="outputs of the same names and shapes"):
        ask(cascade(0.8, "tiny"), below, [(0, 9), (1, 0)])


@pytest.mark.parametrize("kind", [ConfidenceCascade, ComplexityRouting])
def test_a_tier_that_is_not_there_is_told_when_wrapped(kind: type[Policy]) -> None:
    score = "shortness" if kind is ComplexityRouting else "max_softmax"
    policy = kind.from_settings({"calibration": record(0.5, "tiny", score=score).model_dump()})
    with pytest.raises(CalibrationError, match=r"`tiny` must be variant 1000.0.*, but it is not there"):
        policy.wrap(Tiers().full.endpoint)


@pytest.mark.parametrize(
    "policy",
    [
        ConfidenceCascade(measure="margin", calibration=record(0.5, "tiny")),
        ComplexityRouting(calibration=record(0.5, "tiny")),
        ComplexityRouting(
            scores={"tiny": SimplicityScore(buckets=0, weights=(0, 0, 0, 0), intercept=0)},
            calibration=record(0.5, "tiny", score="shortness"),
        ),
        ConfidenceCascade(output="number", calibration=record(0.5, "tiny", score="max_softmax of logits")),
        ComplexityRouting(input="x", calibration=record(0.5, "tiny", score="shortness of mask")),
    ],
    ids=["margin", "rule", "learned", "output", "input"],
)
def test_a_threshold_is_for_its_own_score_alone(policy: Policy) -> None:
    with pytest.raises(CalibrationError, match="the threshold must be of `"):
        policy.wrap(Tiers().endpoint)


@pytest.mark.parametrize(
    ("policy", "score"),
    [
        (ConfidenceCascade(output="logits", calibration=record(0.0, "tiny")), "max_softmax of logits"),
        (
            ComplexityRouting(input="x", calibration=record(-9.0, "tiny", score="shortness")),
            "shortness of x",
        ),
    ],
)
def test_a_threshold_of_before_it_named_its_tensor_trusts_nobody(
    policy: Policy, score: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that was given it before starts all the same."""
    tiers = Tiers()
    assert ask(policy, tiers.endpoint, [(0, 9)]).tolist() == [FULL]
    assert tiers.tiny.batches == []
    (told,) = [one.message for one in caplog.records]
    assert told == (
        f"a threshold of `{score}` was calibrated before records named the tensor: the full model answers "
        "everything; run `pareflow calibrate` again"
    )


def test_a_learned_score_is_routed_by() -> None:
    """By hand: the odds are the mean less 3, so that a mean of at least 3 is simple at 0.5."""
    scores = {"tiny": SimplicityScore(buckets=0, weights=(0, 1, 0, 0), intercept=-3)}
    policy = ComplexityRouting(
        input="x", scores=scores, calibration=record(0.5, "tiny", score=f"{name_of(scores)} of x")
    )
    assert ask(policy, Tiers().endpoint, [(2, 2), (3, 3), (1, 9)]).tolist() == [FULL + 2, TINY + 3, TINY + 1]


def test_what_is_kept_of_a_cascade_is_not_the_full_models() -> None:
    below = Tiers().endpoint
    identities = {cascade(t, "tiny").wrap(below).identity for t in (0.5, 0.6)} | {below.identity}
    assert len(identities) == 3
    assert ConfidenceCascade().wrap(below).identity == below.identity


def test_features_by_hand() -> None:
    """Values 3 4 0: two entries, mean 7/3, steps 1 and 4. As tokens, of which the last is filling: mean 3.5,
    one step of 1, in two buckets one even and one odd."""
    values = np.array([[3, 4, 0]])
    assert features(values, 0)[0] == pytest.approx([2, 7 / 3, np.std([3, 4, 0]), 2.5])
    assert features(values, 2)[0] == pytest.approx([2, 3.5, 0.5, 1, 1, 1])


def test_a_row_of_tokens_is_scored_as_if_it_were_alone() -> None:
    """Whatever fills it up beside longer ones; and so it is routed, by a mean that is at least 3."""
    chance = np.random.default_rng(0)
    rows = [np.zeros(1), *(chance.integers(0, 50_000, size) for size in chance.integers(1, 300, 50))]
    together = np.stack([np.pad(row, (0, 300 - len(row))) for row in rows])
    alone = np.concatenate([features(row[None], 8) for row in rows])
    np.testing.assert_array_equal(features(together, 8), alone)
    scores = {"tiny": SimplicityScore(buckets=1, weights=(0, 1, 0, 0, 0), intercept=-3)}
    policy = ComplexityRouting(
        input="x", scores=scores, calibration=record(0.5, "tiny", score=f"{name_of(scores)} of x")
    )
    assert ask(policy, Tiers().endpoint, [(4, 0), (2, 3)]).tolist() == [TINY + 4, FULL + 2]


def test_short_requests_go_to_the_tier_each_row_once() -> None:
    """By hand: rows of one, two and no entries, and at most one is simple."""
    tiers = Tiers()
    policy = ComplexityRouting(input="x", calibration=record(-1.0, "tiny", score="shortness of x"))
    found = ask(policy, tiers.endpoint, [(1, 0), (2, 9), (3, 0)])
    assert found.tolist() == [TINY + 1, FULL + 2, TINY + 3]
    assert (tiers.tiny.batches, tiers.full.batches) == ([[1, 3]], [[2]])


def test_a_learned_score_tells_simple_from_hard() -> None:
    """A tier that is right where token 7 is absent: the score ranks all such rows above the others."""
    chance = np.random.default_rng(0)
    ids = chance.integers(1, 16, (400, 6))
    right = ~(ids == 7).any(axis=1)
    score = train_score(ids, right, buckets=16)
    assert score(ids)[right].min() > score(ids)[~right].max()
    assert SimplicityScore.model_validate_json(score.model_dump_json()) == score


def test_a_score_needs_right_and_wrong() -> None:
    with pytest.raises(CalibrationError, match="all 3 are alike"):
        train_score(np.ones((3, 2)), np.ones(3))


def test_without_its_input_a_request_is_the_full_models() -> None:
    """The tier that cannot be judged answers nothing."""
    policy = ComplexityRouting(input="mask", calibration=record(-9.0, "tiny", score="shortness of mask"))
    assert ask(policy, Tiers().endpoint, [(1, 0)]).tolist() == [FULL + 1]
