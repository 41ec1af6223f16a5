"""Decoding: kept keys and values beside none, and drafted tokens beside plain steps, on one thread.

The target is a Llama of 23 million parameters that holds stories260K in a corner of random weights: what a
token costs is real, how often the two agree is chosen, and noted. stories260K itself is the good draft, one
of random weights the bad one. Prompts are 64 tokens of the plays of Shakespeare.
"""

import asyncio
import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import story_models
import torch
from claims import Claim, main

from pareflow import spec, workload
from pareflow.runtime import Decoding, Generation

CONFIG = Path(__file__).parents[1] / "configs" / "stories" / "pipeline.yaml"
WIDTH, LAYERS, NOISE = 512, 8, 0.25
PLAIN = Decoding(prefix_mib=0)
Way = Callable[[np.ndarray], list[int]]
"""A prompt's tokens to those of its answer."""


def cached(quick: bool) -> Iterator[Claim]:
    """96 tokens behind 64: by ours, and by transformers' own loop with a cache, and without.

    Without one each token is computed from the whole text.
    """
    small, large, rows = _setting()
    wide = story_models.inside(_network(), 1024, LAYERS, NOISE)
    for model, claimed in ((wide, 5.0), (large, 5.0), (small, 1.0)):
        name = f"{model.num_parameters() / 1e6:.3g} M parameters"
        theirs = {
            way: functools.partial(_stock, model, 96, use_cache=use)
            for way, use in (("none", False), ("stock", True))
        }
        ways: dict[str, Way] = {**theirs, "ours": functools.partial(_ask, Generation(model, PLAIN), 96)}
        seconds, answers = _answered(ways, rows[: 2 if quick else 8])
        gain = seconds[:, 0].sum() / seconds[:, 1].sum()
        note = f"transformers' own with one over none: {gain:.2f}"
        title = f"our KV cache over transformers' without one, {name}"
        yield _ratio(title, claimed, seconds[:, 0], seconds[:, 2], note)
        yield _same("equal answers", answers, *ways)


def prefixes(quick: bool) -> Iterator[Claim]:
    """Prompts that begin alike for 448 tokens, 8 more, and 8 tokens answered."""
    _, large, rows = _setting()
    shared, kept = rows[:7].ravel(), Generation(large)
    _ask(kept, 1, shared)
    prompts = [np.concatenate([shared, row[1:9]]) for row in rows[7 : 12 if quick else 37]]
    ways = {
        "none": functools.partial(_ask, Generation(large, PLAIN), 8),
        "kept": functools.partial(_ask, kept, 8),
    }
    seconds, answers = _answered(ways, prompts)
    yield _ratio("a prefix of 448 tokens met again over none", 2, seconds[:, 0], seconds[:, 1])
    yield _same("equal answers", answers, "none", "kept")


def drafted(quick: bool) -> Iterator[Claim]:
    """48 tokens behind each prompt, by each draft and without; also while nothing is known of a draft yet."""
    small, large, rows = _setting()
    drafts = {
        "good draft": (small, "it"),
        "bad draft": (_random(), "it"),
        "prompt lookup": (small, "prompt_lookup"),
    }
    made = {
        name: Generation(large, Decoding(prefix_mib=0, draft=draft), {"it": model})
        for name, (model, draft) in drafts.items()
    }
    ways: dict[str, Way] = {"none": functools.partial(_ask, Generation(large, PLAIN), 48)}
    ways |= {name: functools.partial(_ask, generation, 48) for name, generation in made.items()}
    seconds, answers = _answered(ways, rows[: 20 if quick else 200])
    for place, (name, claimed) in enumerate(zip(made, (1.3, 0.97, 0.97), strict=True), 1):
        note = _figures(made[name])
        yield _ratio(f"{name} over none", claimed, seconds[:, 0], seconds[:, place], note)
        yield _same(f"{name}: equal answers", answers, "none", name)


def sampled(quick: bool) -> Iterator[Claim]:
    """The same at temperature 1 by the good draft, with a seed for each prompt, once it is known."""
    small, large, rows = _setting()
    good = Generation(large, Decoding(prefix_mib=0, draft="it"), {"it": small})
    plain, count = Generation(large, PLAIN), 10 if quick else 50

    def by(generation: Generation, row: np.ndarray) -> list[int]:
        return _ask(generation, 64, row, temperature=np.array([1.0]), seed=row[-1:])

    for row in rows[-8:]:
        by(good, row)
    ways = {"none": functools.partial(by, plain), "good": functools.partial(by, good)}
    seconds, answers = _answered(ways, rows[:count])
    yield _ratio("good draft over none, sampled", 1.1, seconds[:, 0], seconds[:, 1], _figures(good))
    yield _same("sampled: equal answers", answers, "none", "good")


def assisted(quick: bool) -> Iterator[Claim]:
    """Beside transformers' own assisted generation at the draft length that was tuned to."""
    small, large, rows = _setting()
    good = Generation(large, Decoding(prefix_mib=0, draft="it"), {"it": small})
    for row in rows[-10:]:
        _ask(good, 64, row)
    small.generation_config.num_assistant_tokens = length = int(good.figures()["draft_length"]) or 4
    small.generation_config.num_assistant_tokens_schedule = "constant"
    small.generation_config.assistant_confidence_threshold = 0.0
    stock = functools.partial(_stock, large, 64, assistant_model=small)
    ways = {
        "none": functools.partial(_stock, large, 64),
        "stock": stock,
        "ours": functools.partial(_ask, good, 64),
    }
    seconds, answers = _answered(ways, rows[: 8 if quick else 40])
    gain = seconds[:, 0].sum() / seconds[:, 1].sum()
    note = f"length {length}; transformers' own over none: {gain:.2f}"
    yield _ratio("ours over transformers' assisted generation", 1, seconds[:, 1], seconds[:, 2], note)
    yield _same("equal answers", answers, "none", "stock", "ours")


def _setting() -> tuple[Any, Any, np.ndarray]:
    """stories260K, the target, and 200 prompts (200, 64)."""
    torch.set_num_threads(1)
    large = story_models.inside(_network(), WIDTH, LAYERS, NOISE)
    return story_models.plain(_network()), large, np.asarray(_loaded().split("search").samples)


@functools.cache
def _loaded() -> workload.LoadedWorkload:
    return workload.load(spec.read(CONFIG).workload, CONFIG.parent)


def _network() -> Any:
    return _loaded().definition.network()


def _random() -> Any:
    """A draft as dear as stories260K that knows nothing."""
    model, _, _ = _setting()
    torch.manual_seed(1)
    return type(model)(model.config).eval()


def _answered(
    ways: Mapping[str, Way], rows: Sequence[np.ndarray] | np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Seconds (rows, ways) and the answers of each row; the ways take turns in an order by chance."""
    seconds, answers, chance = np.zeros((len(rows), len(ways))), list[dict[str, Any]](), random.Random(0)
    for number, row in enumerate(rows):
        answers.append({})
        for place in chance.sample(range(len(ways)), len(ways)):
            name = list(ways)[place]
            began = time.perf_counter()
            answers[-1][name] = ways[name](row)
            seconds[number, place] = time.perf_counter() - began
    return seconds, answers


def _ask(generation: Generation, count: int, row: np.ndarray, **more: np.ndarray) -> list[int]:
    feeds = {"input_ids": row[None], "max_new_tokens": np.array([count]), **more}
    answer: list[int] = asyncio.run(generation.answer(feeds))["tokens"][0].tolist()
    return answer


def _stock(model: Any, count: int, row: np.ndarray, **more: Any) -> list[int]:
    ids = torch.from_numpy(row)[None]
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **more
    )
    answer: list[int] = text[0, len(row) :].tolist()
    return answer


def _ratio(name: str, claimed: float, base: np.ndarray, other: np.ndarray, note: str = "") -> Claim:
    """Of the whole times, since what it costs to find out falls on few prompts; the median is noted."""
    drawn = np.random.default_rng(0).integers(len(base), size=(2000, len(base)))
    low, high = np.quantile(base[drawn].sum(1) / other[drawn].sum(1), (0.05, 0.95))
    note = f"median {np.median(base / other):.2f}; {note}".removesuffix("; ")
    measured = float(base.sum() / other.sum())
    return Claim(name, claimed, measured, "×", len(base), "at least", float(low), float(high), note)


def _same(name: str, answers: Sequence[Mapping[str, Any]], *names: str) -> Claim:
    count = sum(all(answer[other] == answer[names[0]] for other in names) for answer in answers)
    return Claim(name, len(answers), count, "prompts", len(answers), "at least")


def _figures(generation: Generation) -> str:
    found = generation.figures()
    share = found["accepted"] / max(1, found["drafted"])
    return f"{share:.2f} of {found['drafted']:.0f} drafted right, {found['probes']:.0f} probes"


if __name__ == "__main__":
    main(
        "decoding",
        {
            "drafted": drafted,
            "cached": cached,
            "prefixes": prefixes,
            "sampled": sampled,
            "assisted": assisted,
        },
    )
