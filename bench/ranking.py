"""A ranking cascade on Cranfield: BM25, the encoder on the first 64 tokens, the encoder on 256.

Documents are encoded when they are asked for, as a cross-encoder would have to read them, or as new documents
must be. Where their vectors are kept, the full model costs one encoding per question, and a cascade saves
nothing. The full model scores all 1,400 documents; what that costs is measured on every tenth batch of them,
as the encoder puts them together: by their lengths.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from claims import Claim
from cranfield import Bm25, Collection, ndcg
from encoders import BATCH_SIZE, Encoder
from scipy import stats

from pareflow.errors import CalibrationError
from pareflow.intervals import mean_interval
from pareflow.runtime import RankingCascade
from pareflow.runtime.calibration import FULL
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.ranking_calibration import RankingCalibration, calibrate_ranking
from pareflow.workload import Arrays

BUDGET = 0.05
"""Of nDCG@10: the least that half of 225 questions can guarantee without any loss is 0.0495."""
REPEATS = 200
EVERY = 10
SETTINGS = tuple(
    {"filter": keep, "coarse": max(10, keep // 4)} for keep in (int(1000 / 2 ** (i / 2)) for i in range(11))
)
"""Candidates let through, from 1000 and 250 down to 31 and 10, each 0.7 times the one before."""
UNFILTERED = tuple({"filter": one["filter"]} for one in SETTINGS)
"""The same without the coarse stage."""

TENFOLD = {"filter": 250, "coarse": 62}
"""Ten times as little by the encoder's cost per token: 250 documents of 64 tokens and 62 whole ones."""

Losses = Sequence[tuple[Mapping[str, int], np.ndarray]]
"""Per setting what each question loses."""

Score = Callable[[int, np.ndarray], np.ndarray]
"""Of a question by number, and documents by number: their scores."""


@dataclass(frozen=True)
class Rankers:
    """The three stages, each as scores computed now."""

    filtering: Score
    coarse: Score
    full: Score

    def endpoint(self) -> Endpoint:
        """A request holds the numbers of one question and of its candidates, shape (candidates, 1)."""
        tiers = {"filter": _endpoint("filter", self.filtering), "coarse": _endpoint("coarse", self.coarse)}
        return replace(_endpoint(FULL, self.full), tiers=tiers)


def _endpoint(name: str, score: Score) -> Endpoint:
    async def answer(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"score": score(int(feeds["question"][0, 0]), feeds["document"][:, 0])}

    return Endpoint(answer, name)


def request(question: int, documents: np.ndarray) -> Arrays:
    return {"question": np.full((len(documents), 1), question), "document": documents[:, None]}


def measure(quick: bool) -> Iterator[Claim]:
    """What the cascade saves and loses; `quick` times fewer questions."""
    collection = Collection.read()
    long, short = Encoder(256), Encoder(64)
    computed = _computed(collection, long, short)
    kept = _kept(collection, long, short)
    losses = [(one, _losses(kept, collection, one)) for one in SETTINGS]
    plain = [(one, _losses(kept, collection, one)) for one in UNFILTERED]
    everyone = np.arange(len(collection.questions))
    calibration, held_out = np.array_split(np.random.default_rng(0).permutation(everyone), 2)
    sharpest, without = (_calibrated(part, calibration).keep for part in (losses, plain))
    settings = {"ten times": TENFOLD, "the sharpest": sharpest, "no coarse stage": without}
    yield from _compute(collection, computed, settings, rounds=3 if quick else 10)
    full = np.array([ndcg(kept.full(q, _all(collection)), r) for q, r in enumerate(collection.relevant)])
    by_setting = {str(one): lost for one, lost in [*losses, *plain]}
    yield _lost("ten times", 0.0, by_setting[str(TENFOLD)], full)
    yield _lost("the sharpest", BUDGET, by_setting[str(sharpest)][held_out], full[held_out])
    yield _lost("no coarse stage", BUDGET, by_setting[str(without)][held_out], full[held_out])
    yield _violations(losses)


def _calibrated(losses: Losses, questions: np.ndarray) -> RankingCalibration:
    drawn = [(one, lost[questions]) for one, lost in losses]
    return calibrate_ranking(_identities(), drawn, max_drop=BUDGET)


def _identities() -> dict[str, str]:
    return {name: name for name in ("filter", "coarse", FULL)}


def _all(collection: Collection) -> np.ndarray:
    return np.arange(len(collection.documents))


def _computed(collection: Collection, long: Encoder, short: Encoder) -> Rankers:
    """Documents are encoded for each question."""
    texts, questions = collection.documents, collection.questions
    index = Bm25(texts)

    def by(encoder: Encoder) -> Score:
        return lambda q, d: encoder([texts[i] for i in d]) @ encoder([questions[q]])[0]

    return Rankers(lambda q, d: index.scores(questions[q])[d], by(short), by(long))


def _kept(collection: Collection, long: Encoder, short: Encoder) -> Rankers:
    """The same scores, looked up: each document is encoded once by each encoder."""
    index = Bm25(collection.documents)
    tables = [
        np.stack([index.scores(question) for question in collection.questions]),
        *(encoder(collection.questions) @ encoder(collection.documents).T for encoder in (short, long)),
    ]
    by_filter, by_coarse, by_full = ((lambda q, d, table=table: table[q, d]) for table in tables)
    return Rankers(by_filter, by_coarse, by_full)


def _policy(keep: Mapping[str, int]) -> RankingCascade:
    """The cascade with these numbers, before anything is known of it."""
    variants = {name: name for name in (*keep, FULL)}
    record = RankingCalibration(
        variants=variants, max_drop=BUDGET, confidence=0.95, samples=1, drop=0, keep=dict(keep)
    )
    return RankingCascade(calibration=record)


def _losses(rankers: Rankers, collection: Collection, keep: Mapping[str, int]) -> np.ndarray:
    """Of each question what the cascade loses of nDCG@10, by its own answers."""
    full = rankers.endpoint()
    cascade = _policy(keep).wrap(full)
    everyone = _all(collection)

    async def gains(endpoint: Endpoint) -> list[float]:
        found = []
        for question, relevant in enumerate(collection.relevant):
            answer = await endpoint.answer(request(question, everyone))
            found.append(ndcg(answer["score"], relevant))
        return found

    return np.subtract(asyncio.run(gains(full)), asyncio.run(gains(cascade)))


def _compute(
    collection: Collection, rankers: Rankers, settings: Mapping[str, Mapping[str, int]], *, rounds: int
) -> Iterator[Claim]:
    """Processor time per question: of the full model, from a sample of its batches, over the cascades'."""
    full = rankers.endpoint()
    policies = [_policy(keep).wrap(full) for keep in settings.values()]
    chance, batches = np.random.default_rng(2), _batches(collection.documents)
    spent = np.empty((rounds, 1 + len(policies)))
    for i in range(rounds):
        question = int(chance.integers(len(collection.questions)))
        sample = np.concatenate(batches[int(chance.integers(EVERY)) :: EVERY])
        asked = [(full, request(question, sample), len(collection.documents) / len(sample))]
        asked += [(policy, request(question, _all(collection)), 1.0) for policy in policies]
        for j in chance.permutation(len(asked)):
            endpoint, feeds, times = asked[j]
            began = time.process_time()
            asyncio.run(_answered(endpoint, feeds))
            spent[i, j] = times * (time.process_time() - began)
    seconds = np.median(spent, axis=0)
    for j, (name, keep) in enumerate(settings.items(), start=1):
        saved = mean_interval(spent[:, 0] / spent[:, j])
        note = f"{seconds[0]:.1f} to {seconds[j]:.2f} s per question; {dict(keep)}"
        title = f"cranfield, {name}: less processor time than the encoder on every document"
        yield Claim(title, 10, saved.estimate, "×", rounds, "at least", saved.low, saved.high, note)


def _batches(documents: Sequence[str]) -> list[np.ndarray]:
    """All documents as the encoder puts them together, those of about one length."""
    order = np.argsort([len(text) for text in documents], kind="stable")
    return [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]


async def _answered(endpoint: Endpoint, feeds: Arrays) -> Arrays:
    return await endpoint.answer(feeds)


def _lost(name: str, claimed: float, lost: np.ndarray, full: np.ndarray) -> Claim:
    """Student's interval, on questions that did not choose the setting."""
    half = float(stats.t.ppf(0.95, len(lost) - 1) * lost.std(ddof=1) / np.sqrt(len(lost)))
    mean = float(lost.mean())
    note = f"{full.mean():.4f} to {full.mean() - mean:.4f}"
    title = f"cranfield, {name}: nDCG@10 lost"
    return Claim(title, claimed, mean, "nDCG@10", len(lost), "at most", mean - half, mean + half, note)


def _violations(losses: Losses) -> Claim:
    """Of calibrations on as many questions, drawn with replacement: the 225 are the population."""
    broken = refused = 0
    chosen = list[Any]()
    questions = len(losses[0][1])
    for seed in range(REPEATS):
        drawn = np.random.default_rng(seed).integers(questions, size=(questions + 1) // 2)
        try:
            found = _calibrated(losses, drawn)
        except CalibrationError:
            refused += 1
            continue
        truth = next(lost for one, lost in losses if one == found.keep)
        broken += float(truth.mean()) > BUDGET
        chosen.append(found.keep["filter"])
    note = f"median filter {np.median(chosen):g}; refused {refused}; budget {BUDGET:g}"
    name = "cranfield: calibrations that break the budget"
    return Claim(name, 0.05, broken / REPEATS, "share", REPEATS, "at most", note=note)
