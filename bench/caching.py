"""The caches: what a hit takes beside hashing, and how often a semantic hit is false on held-out requests.

Semantic hits are judged on two data sets of `../shared/data`, embedded by all-MiniLM-L6-v2. On Banking77 a
hit is false where the intent of the request is not that of the kept one: half of the training texts are kept,
the other half calibrates, the test texts are asked, through the policy itself. Calibration promises its limit
for requests that come as its pairs did; the test texts do not (40 of each intent, where training has 35 to
187), so that it is shown for half the limit too. On STS-B, whose pairs are
given, a pair is a hit where its cosine reaches the threshold, and a false one where people scored it below 4
of 5 (4: mostly equivalent, but some unimportant details differ).
"""

import asyncio
import csv
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from claims import Claim, main

from pareflow.intervals import share_interval
from pareflow.runtime import ExactCache, SemanticCache
from pareflow.runtime.caching.calibration import calibrate, pairs_needed
from pareflow.runtime.caching.index import ExactIndex
from pareflow.runtime.caching.keys import request_key
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays

CONFIG = Path(__file__).parents[1] / "configs" / "intent" / "pipeline.yaml"
DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
LIMIT, CONFIDENCE = 0.01, 0.95
SCORES: Sequence[tuple[Literal["margin", "similarity"], float]] = (
    ("margin", LIMIT),
    ("margin", LIMIT / 2),
    ("similarity", LIMIT),
)
EQUIVALENT = 4
"""Of 5: from which score on one answer does for both sentences."""


def latency(quick: bool) -> Sequence[Claim]:
    """Medians of interleaved hits and hashes: inputs of 512 bytes, answers of 4 KiB."""
    rounds = 2000 if quick else 20_000
    with tempfile.TemporaryDirectory() as folder:
        memory, _ = asyncio.run(_hit_us("memory", rounds))
        sqlite, thread = asyncio.run(_hit_us(f"sqlite:{folder}/cache.db", rounds))
    image = os.urandom(602_112)
    digests = [_us(lambda: hashlib.blake2b(image).digest()), _us(lambda: hashlib.sha256(image).digest())]
    note = "what was computed: an answer of 4 KiB"
    return [
        Claim("exact hit in memory, beside hashing", 20, memory, "µs", rounds, "at most", note=note),
        Claim("exact hit in SQLite, beside hashing", 100, sqlite, "µs", rounds, "at most", note=note),
        Claim(
            "the same, over the way to a thread and back",
            1,
            sqlite / thread,
            "×",
            rounds,
            "at most",
            note=f"{thread:.1f} µs: why it is read on the event loop",
        ),
        Claim(
            "blake2b over sha256, 602 KB",
            1,
            digests[0] / digests[1],
            "×",
            100,
            "at least",
            note=f"{digests[0]:.0f} and {digests[1]:.0f} µs: why keys are sha256",
        ),
    ]


async def _hit_us(store: str, rounds: int) -> tuple[float, float]:
    """Medians in µs: a hit less its key, and a call in a thread."""
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)}

    async def compute(_: Mapping[str, np.ndarray]) -> Arrays:
        await asyncio.sleep(0.005)  # a network that is worth it
        return {"y": np.zeros((1, 1024), np.float32)}

    endpoint = ExactCache(store=store).wrap(Endpoint(compute, "it"))
    await endpoint.answer(feeds)
    await asyncio.sleep(0.5)  # until it is written
    hits, keys, threads = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        times = [time.perf_counter()]
        await endpoint.answer(feeds)
        times.append(time.perf_counter())
        request_key(b"s" * 32, feeds)
        times.append(time.perf_counter())
        await asyncio.to_thread(int)
        times.append(time.perf_counter())
        for taken, s in zip((hits, keys, threads), np.diff(times), strict=True):
            taken.append(s)
    assert endpoint.figures["exact_cache"]()["hits"] == rounds
    await endpoint.close()
    return 1e6 * float(np.median(hits) - np.median(keys)), 1e6 * float(np.median(threads))


def _us(call: Callable[[], object]) -> float:
    """The median of 100 calls."""
    times = []
    for _ in range(100):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e6 * float(np.median(times))


def semantic(quick: bool) -> Sequence[Claim]:
    """False hits on held-out requests; `quick` takes a quarter of the texts."""
    if not DATA.exists():
        reason = f"{DATA} is not there"
        names = ("Banking77, by margin", "Banking77, by cosine", "STS-B, by cosine")
        return [_claim(name, None, 0, 0, reason) for name in names]
    embed = _encoder()
    share = 4 if quick else 1
    return [*_banking(embed, share), _sentences(embed, share)]


Embed = Callable[[Sequence[str]], np.ndarray]


def _encoder() -> Embed:
    """MiniLM with mean pooling, one thread: texts to vectors of length 1."""
    import torch

    from pareflow import spec
    from pareflow.huggingface.checkpoint import quiet
    from pareflow.workload import define

    torch.set_num_threads(1)
    workload: Any = define(spec.read(CONFIG).workload, CONFIG.parent)
    with quiet() as transformers:
        model = transformers.AutoModel.from_pretrained(
            workload.checkpoint_folder, local_files_only=True
        ).eval()

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
        by_length = np.argsort([len(text) for text in texts])
        for start in range(0, len(texts), 64):
            rows = by_length[start : start + 64]
            inputs = {
                name: torch.from_numpy(a) for name, a in workload.encoder([texts[i] for i in rows]).items()
            }
            with torch.inference_mode():
                states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None].float()
                pooled = (states * mask).sum(1) / mask.sum(1)
                vectors[rows] = torch.nn.functional.normalize(pooled).numpy()
        return vectors

    return embed


def _banking(embed: Embed, share: int) -> list[Claim]:
    """Kept: the first half of the shuffled training texts; calibrated on the second; asked: the test."""
    (texts, intents), (asked, wanted) = (_intents(part, share) for part in ("train", "test"))
    names = sorted(set(intents) | set(wanted))
    kinds = np.array([names.index(one) for one in [*intents, *wanted]])
    vectors = embed([*texts, *asked])
    half, end = len(texts) // 2, len(texts)
    index = ExactIndex(vectors.shape[1])
    for i in range(half):
        index.add(i, vectors[i], int(kinds[i]))
    near = index.nearest(vectors[half:end])
    same = np.array([kinds[one.slot] for one in near]) == kinds[half:end]
    claims = []
    for score, limit in SCORES:
        found = calibrate([getattr(one, score) for one in near], same, limit, CONFIDENCE)
        by = "cosine" if score == "similarity" else score
        name = f"Banking77, by {by}, calibrated to {limit:.1%}"
        if found.threshold is None:
            claims.append(_strictest(name, np.array([one.similarity for one in near]), same, found.reason))
            continue
        policy = SemanticCache(
            encoder="encoder", score=score, threshold=found.threshold, rerun_share=1e-9, max_mib=256
        )
        hits, false_hits = asyncio.run(_asked(policy, vectors, kinds, half, end))
        note = (
            f"{hits / len(asked):.1%} of {len(asked)} requests hit, at a {score} of {found.threshold:.4f}; "
            f"calibrated on {found.pairs} pairs: {found.false_hits} of {found.hits} hits false"
        )
        claims.append(_claim(name, false_hits, hits, len(asked), note))
    return claims


async def _asked(
    policy: SemanticCache, vectors: np.ndarray, kinds: np.ndarray, half: int, end: int
) -> tuple[int, int]:
    """Hits and false hits of the requests from `end` on, those before `half` being kept."""

    async def truth(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"intent": kinds[feeds["request"][:, 0]]}

    async def encoder(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"vector": vectors[feeds["request"][:, 0]]}

    known = Endpoint(truth, "truth", tiers={"encoder": Endpoint(encoder, "encoder")})
    endpoint = policy.model_copy(update={"window": 10**9}).wrap(known)  # nothing to gain from a table
    await endpoint.answer({"request": np.arange(half)[:, None]})  # at once, so that none hits another
    wrong = 0
    for i in range(end, len(vectors)):
        answer = await endpoint.answer({"request": np.array([[i]])})
        wrong += int(answer["intent"][0] != kinds[i])
    return int(endpoint.figures[policy.name]()["hits"]), wrong


def _sentences(embed: Embed, share: int) -> Claim:
    """STS-B: calibrated on the pairs of train and dev, judged on those of test."""
    pairs = {part: _pairs(part, share) for part in ("train", "dev", "test")}
    scored = {part: (_cosines(embed, rows), _equivalent(rows)) for part, rows in pairs.items()}
    cosines, same = (np.concatenate([scored[part][i] for part in ("train", "dev")]) for i in (0, 1))
    found = calibrate(cosines, same, LIMIT, CONFIDENCE)
    if found.threshold is None:
        return _strictest("STS-B, by cosine", cosines, same, found.reason, scored["test"])
    hit = scored["test"][0] >= found.threshold
    note = f"{hit.mean():.1%} of {len(hit)} pairs hit, at a cosine of {found.threshold:.4f}"
    return _claim("STS-B, by cosine", int((hit & ~scored["test"][1]).sum()), int(hit.sum()), len(hit), note)


def _strictest(
    name: str,
    scores: np.ndarray,
    same: np.ndarray,
    reason: str,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> Claim:
    """No threshold is good: what the strictest that could have been shown to be would have given."""
    needed = pairs_needed(LIMIT, CONFIDENCE)
    threshold = np.sort(scores)[-min(needed, len(scores))]
    scores, same = held_out or (scores, same)
    hit = scores >= threshold
    note = f"refused, so 0 % hit: {reason}. Shown: the {needed} nearest pairs, at {threshold:.3f}"
    return _claim(name, int((hit & ~same).sum()), int(hit.sum()), len(hit), note)


def _claim(name: str, false_hits: int | None, hits: int, samples: int, note: str) -> Claim:
    interval = share_interval(false_hits, hits, CONFIDENCE) if false_hits is not None and hits else None
    return Claim(
        f"semantic false hits, {name}",
        LIMIT,
        None if interval is None else interval.estimate,
        "share of hits",
        samples,
        "at most",
        None if interval is None else interval.low,
        None if interval is None else interval.high,
        note,
    )


def _intents(part: str, share: int) -> tuple[list[str], list[str]]:
    with (DATA / "banking77" / f"{part}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    rows = rows[: len(rows) // share]
    return [row["text"] for row in rows], [row["category"] for row in rows]


def _pairs(part: str, share: int) -> list[list[str]]:
    with (DATA / "stsb_en" / f"stsb-en-{part}.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    random.Random(0).shuffle(rows)
    return rows[: len(rows) // share]


def _cosines(embed: Embed, rows: Sequence[Sequence[str]]) -> np.ndarray:
    first, second = (embed([row[column] for row in rows]) for column in (0, 1))
    cosines: np.ndarray = (first * second).sum(axis=1)
    return cosines


def _equivalent(rows: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([float(row[2]) >= EQUIVALENT for row in rows])


if __name__ == "__main__":
    main("caching", {"latency": latency, "semantic": semantic})
