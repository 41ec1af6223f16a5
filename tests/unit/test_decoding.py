"""Decoding of tiny Llamas of random weights: what is answered does not depend on how it was arrived at."""

import asyncio
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pareflow.errors import DeadlineError, InputError, SpecError, UnsuitableError
from pareflow.runtime import DeadlineRouting, Decoding, DynamicBatching, Generation
from pareflow.runtime.caching.accounts import Account
from pareflow.runtime.decoding import heard_by
from pareflow.runtime.decoding.prefixes import PrefixCache
from pareflow.runtime.endpoint import answered_within
from pareflow.workload import Arrays
from tests.llamas import CONTEXT, llama, see_the_last_token_alone

transformers = pytest.importorskip("transformers")

VOCABULARY = 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small wait for threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saying(shares: np.ndarray) -> Any:
    """A model whose next token has these shares, whatever came before."""
    model = llama(len(shares))
    see_the_last_token_alone(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(1, 16).expand(len(shares), 16))
        model.lm_head.weight[:, 0] = torch.tensor(np.log(shares)) / 4  # the norm makes 4 of 1 among 16
    return model


def like(model: Any, noise: float) -> Any:
    """Another model, that agrees with this one the less the more noise there is."""
    other, chance = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=chance)
    return other


@pytest.fixture(scope="module")
def target() -> Any:
    return llama(VOCABULARY)


@pytest.fixture(scope="module")
def drafts(target: Any) -> dict[str, Any]:
    return {"near": like(target, 0.02), "far": llama(VOCABULARY, seed=9)}


@pytest.fixture
def made() -> Iterator[Callable[..., Generation]]:
    """Makes a model with its settings, and closes it."""
    every: list[Generation] = []

    def make(model: Any, drafts: Any = None, clock: Any = None, **settings: Any) -> Generation:
        more = {} if clock is None else {"clock": clock}
        every.append(Generation(model, Decoding(**settings), drafts, **more))
        return every[-1]

    yield make
    for generation in every:
        generation.close()


def ask(generation: Generation, *requests: Mapping[str, Any]) -> list[Arrays]:
    """The answers to one request after the other."""

    async def all_of_them() -> list[Arrays]:
        endpoint = generation.endpoint("it")
        return [await endpoint.answer({k: np.asarray(v) for k, v in request.items()}) for request in requests]

    return asyncio.run(all_of_them())


def prompts(count: int, length: int = 12, vocabulary: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (count, length))


def taken(given: Any, named: Mapping[str, Any]) -> int:
    """How many tokens go into a pass of a model."""
    tokens = given[0] if given else named["input_ids"]
    return int(tokens.shape[1])


def passes(model: Any) -> list[int]:
    """How many tokens go into each pass of a model from now on."""
    sizes: list[int] = []
    watch = lambda _, given, named: sizes.append(taken(given, named))  # noqa: E731
    model.register_forward_pre_hook(watch, with_kwargs=True)
    return sizes


def by_hand(model: Any, tokens: list[int], count: int) -> list[int]:
    """The likeliest tokens, each from the whole text anew."""
    text = list(tokens)
    with torch.no_grad():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(tokens) :]


@pytest.mark.parametrize("prefix_mib", [0, 1])
@pytest.mark.parametrize("draft", [None, "near", "far", "prompt_lookup"])
def test_the_likeliest_tokens_are_those_of_the_target_alone(
    draft: str | None, prefix_mib: float, target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    rows = prompts(4)
    generation = made(target, drafts, draft=draft, prefix_mib=prefix_mib, automatic=False, draft_length=3)
    (first, again) = ask(generation, *[{"input_ids": rows, "max_new_tokens": [20] * 4}] * 2)
    expected = [by_hand(target, row.tolist(), 20) for row in rows]
    assert first["tokens"].tolist() == again["tokens"].tolist() == expected
    assert first["lengths"].tolist() == [20] * 4
    if draft is not None:
        assert generation.figures()["rounds"] > 0


def test_a_near_draft_is_accepted_and_a_far_one_is_not(
    target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    shares = {}
    for draft in drafts:
        generation = made(target, drafts, draft=draft, automatic=False, draft_length=3, prefix_mib=0)
        ask(generation, {"input_ids": prompts(6), "max_new_tokens": [40] * 6})
        shares[draft] = generation.figures()["accepted"] / generation.figures()["drafted"]
    assert shares["near"] > 0.5 > shares["far"]


@pytest.mark.parametrize("draft", ["near", "far", "prompt_lookup"])
def test_a_sample_is_fixed_by_its_seed_whatever_is_drafted(
    draft: str, target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    request = {
        "input_ids": np.repeat(prompts(1), 4, axis=0),
        "max_new_tokens": [24] * 4,
        "temperature": [0.8, 0.8, 0.8, 2.0],
        "seed": [3, 3, 4, 3],
    }
    (plain,) = ask(made(target, prefix_mib=0), request)
    (drafted,) = ask(made(target, drafts, draft=draft, automatic=False, draft_length=4), request)
    assert drafted["tokens"].tolist() == plain["tokens"].tolist()
    same, _, other, warmer = plain["tokens"].tolist()
    assert same == plain["tokens"][1].tolist()
    assert len({tuple(same), tuple(other), tuple(warmer)}) == 3


def test_samples_with_a_draft_are_distributed_as_the_target_says(made: Callable[..., Generation]) -> None:
    """Three tokens of a vocabulary of 4, beside their probabilities: softmax by softmax, 64 in all."""
    target, count, temperature = llama(4), 500, 3.0
    drafts = {"near": like(target, 0.3)}
    generation = made(target, drafts, draft="near", draft_length=2, automatic=False)
    prompt = [0, 3, 2, 1]
    ask(generation, {"input_ids": [prompt], "max_new_tokens": [20]})  # the steps that are plain at first
    seeds = np.arange(count)
    (answer,) = ask(
        generation,
        {
            "input_ids": np.repeat([prompt], count, axis=0),
            "max_new_tokens": np.full(count, 3),
            "temperature": np.full(count, temperature),
            "seed": seeds,
        },
    )
    assert 0.2 < generation.figures()["accepted"] / generation.figures()["drafted"] < 0.95
    texts = torch.tensor([[*prompt, *three] for three in itertools.product(range(4), repeat=3)])
    with torch.no_grad():
        logs = (target(texts).logits / temperature).log_softmax(-1)[:, len(prompt) - 1 : -1]
    expected = logs.double().gather(2, texts[:, len(prompt) :, None]).sum((1, 2)).exp().numpy()
    expected /= expected.sum()
    found = np.bincount(answer["tokens"] @ [16, 4, 1], minlength=64)
    rare = expected * count < 5
    observed = [*found[~rare], found[rare].sum()]
    wanted = [*(expected[~rare] * count), expected[rare].sum() * count]
    pairs = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 0]
    assert chisquare(*zip(*pairs, strict=True)).pvalue > 1e-3
    uniform = np.full(len(pairs), count / len(pairs))
    assert chisquare([o for o, _ in pairs], uniform).pvalue < 1e-6  # it would notice


@pytest.mark.parametrize("draft", [None, "near"])
@pytest.mark.parametrize(("left_out", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.7}, 3)])
def test_samples_keep_to_the_likeliest(
    made: Callable[..., Generation], draft: str | None, left_out: dict[str, float], kept: int
) -> None:
    """Of four tokens of shares 0.4, 0.25, 0.2 and 0.15: two, or the three that 0.7 needs, by their shares."""
    shares, count = np.array([0.15, 0.4, 0.2, 0.25]), 600
    target = saying(shares)
    options = {"draft": draft, "draft_length": 2, "automatic": False} if draft else {}
    generation = made(target, {"near": like(target, 0.3)}, prefix_mib=0, **options)
    request = {"input_ids": np.zeros((count, 1), int), "max_new_tokens": np.full(count, 3)}
    request |= {"temperature": np.ones(count), "seed": np.arange(count)}
    (answer,) = ask(generation, request | {name: np.full(count, v) for name, v in left_out.items()})
    found = np.bincount(answer["tokens"].ravel(), minlength=4)
    likeliest = np.argsort(-shares)[:kept]
    assert found[likeliest].sum() == found.sum() == 3 * count
    wanted = shares[likeliest] / shares[likeliest].sum() * 3 * count
    assert chisquare(found[likeliest], wanted).pvalue > 1e-3


@pytest.mark.parametrize("draft", [None, "near", "far", "prompt_lookup"])
def test_a_row_ends_with_the_token_that_ends_a_text(
    draft: str | None, target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    rows = prompts(4)
    whole = [by_hand(target, row.tolist(), 30) for row in rows]
    end = whole[0][9]
    model = copy.deepcopy(target)
    model.generation_config.eos_token_id = end
    generation = made(model, drafts, draft=draft, automatic=False, draft_length=4)
    ask(generation, {"input_ids": rows[1:2], "max_new_tokens": [12]})
    (answer,) = ask(generation, {"input_ids": rows, "max_new_tokens": [30] * 4})
    for tokens, length, row in zip(answer["tokens"], answer["lengths"], whole, strict=True):
        expected = row[: row.index(end) + 1] if end in row else row
        assert tokens[:length].tolist() == expected
        assert set(tokens[length:]) <= {end}
    assert min(answer["lengths"]) < 30


@pytest.mark.parametrize("draft", [None, "near"])
def test_the_defaults_of_a_checkpoint_change_nothing(
    draft: str | None, target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    """Many come with a penalty or a way of sampling; what is decoded is said by the request alone."""
    model = copy.deepcopy(target)
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=3.0)
    generation = made(model, drafts, draft=draft, automatic=False)
    (answer,) = ask(generation, {"input_ids": prompts(1), "max_new_tokens": [24]})
    assert answer["tokens"].tolist() == [by_hand(target, prompts(1)[0].tolist(), 24)]


def test_what_prompts_begin_alike_with_is_computed_once(
    made: Callable[..., Generation],
) -> None:
    model = llama(VOCABULARY)
    sizes, generation = passes(model), made(model)
    first = prompts(1, 20)[0]
    second = np.concatenate([first[:15], (first[15:] + 1) % VOCABULARY])
    ask(generation, {"input_ids": [first], "max_new_tokens": [4]})
    assert sizes == [20, 1, 1, 1]
    ask(generation, {"input_ids": [second], "max_new_tokens": [1]}, {"input_ids": [second]})
    assert sizes[4:6] == [5, 1]  # of an equal prompt the last token, whose logits are needed
    figures = generation.figures()
    assert (figures["prefix_hits"], figures["prefix_misses"]) == (2, 1)
    assert figures["prefix_tokens"] == 15 + 19


def test_a_conversation_goes_on_from_its_answers(
    made: Callable[..., Generation],
) -> None:
    """What it went on from is kept no longer: it is part of the longer text."""
    model = llama(VOCABULARY)
    sizes, generation = passes(model), made(model)
    text = prompts(1, 10)[0].tolist()
    for _ in range(3):
        (answer,) = ask(generation, {"input_ids": [text], "max_new_tokens": [6]})
        text += [*answer["tokens"][0].tolist(), 7]
    assert [size for size in sizes if size > 1] == [10, 2, 2]
    kept = 2 * 2 * 2 * 4 * 4 * (len(text) - 2)  # keys and values, layers, heads of size 4, 4 bytes
    assert generation.figures()["prefix_bytes"] == kept


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=2, max_size=8))
def test_answers_are_the_same_with_and_without_prefixes(
    target: Any, made: Callable[..., Generation], texts: list[list[int]]
) -> None:
    """Of two tokens only, so that many begin alike; the bound is so small that some go again."""
    requests = [{"input_ids": [text], "max_new_tokens": [6]} for text in texts]
    generation = made(target, prefix_mib=10_000 / 2**20)
    with_them = ask(generation, *requests)
    for text, answer in zip(texts, with_them, strict=True):
        assert answer["tokens"].tolist() == [by_hand(target, text, 6)]
    assert generation.figures()["prefix_bytes"] <= 10_000


def test_the_least_recently_used_prefix_goes_first() -> None:
    def past(length: int) -> Any:
        return transformers.DynamicCache([(torch.zeros(1, 1, length, 8),) * 2])

    one, two, three = (np.full(11, token) for token in (1, 2, 3))
    cache = PrefixCache(2 * 2 * 10 * 8 * 4)  # two texts of ten tokens
    cache.keep(one, past(10))
    cache.keep(two, past(10))
    assert cache.longest(one).get_seq_length() == 10
    cache.keep(three, past(10))
    lengths = [cache.longest(text).get_seq_length() for text in (one, two, three)]
    assert lengths == [10, 0, 10]
    cache.keep(np.full(22, 4), past(21))  # more than all
    assert cache.held_bytes == 2 * 2 * 10 * 8 * 4


def test_a_kept_prefix_is_not_changed_by_who_goes_on_from_it() -> None:
    past = transformers.DynamicCache([(torch.ones(1, 1, 6, 8), torch.ones(1, 1, 6, 8))])
    cache, text = PrefixCache(10_000), np.arange(7)
    cache.keep(text, past)
    cache.longest(text).update(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8), 0)
    assert past.get_seq_length() == 6
    found = cache.longest(text)
    assert found.get_seq_length() == 6
    found.layers[0].keys.zero_()
    assert cache.longest(text).layers[0].keys.min() == 1


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (range(6), {"hits": 0, "misses": 4, "skipped": 2, "on": 0, "times_off": 1}),
        ([0] * 6, {"hits": 5, "misses": 1, "tokens": 45, "skipped": 0, "on": 1}),
    ],
    ids=["all others", "one again and again"],
)
def test_prefixes_are_off_where_they_are_never_met_again(
    texts: Sequence[int], expected: Mapping[str, float]
) -> None:
    """By a clock on which looking up and keeping take a millisecond each, and a prompt of ten a second.

    Of two windows of two prompts the first is not judged.
    """
    ticks = itertools.count()
    cache = PrefixCache(2**20, Account(window=20, rest_s=60), lambda: next(ticks) / 1000)
    for token in texts:
        text = np.full(10, token)
        cache.longest(text)
        cache.keep(text, transformers.DynamicCache([(torch.zeros(1, 1, 10, 8),) * 2]))
        cache.computed(10, 1.0)
    figures = cache.figures()
    assert {name: figures[name] for name in expected} == expected
    assert (cache.longest(np.full(10, 0)).get_seq_length() > 0) == bool(expected["on"])  # it is kept


class Costs:
    """A clock that goes by passes: a target's pass over n tokens takes 1 + 0.1 (n - 1), a draft's `draft`."""

    def __init__(self, draft: float) -> None:
        self.seconds, self.drafted, self._draft = 0.0, 0, draft

    def __call__(self) -> float:
        return self.seconds

    def target(self, model: Any, given: Any, named: Mapping[str, Any]) -> None:
        self.seconds += 1 + 0.1 * (taken(given, named) - 1)

    def draft(self, model: Any, given: Any) -> None:
        self.seconds += self._draft
        self.drafted += 1


def counted(made: Callable[..., Generation], draft_cost: float, noise: float, rows: int, **more: Any) -> Any:
    """Seconds for each token of so many rows of 120, and how many tokens were drafted."""
    target = llama(VOCABULARY)
    draft, costs = like(target, noise) if noise else llama(VOCABULARY, seed=9), Costs(draft_cost)
    generation = made(target, {"it": draft}, costs, draft="it", prefix_mib=0, **more)
    target.register_forward_pre_hook(costs.target, with_kwargs=True)
    draft.register_forward_pre_hook(costs.draft)
    ask(generation, {"input_ids": prompts(rows, 2), "max_new_tokens": [120] * rows})
    return costs.seconds / (120 * rows), costs.drafted


def test_a_draft_that_always_loses_is_left_off(made: Callable[..., Generation]) -> None:
    """By counting passes: hardly slower than plain steps, though it was tried more than once."""
    each, drafted = counted(made, 0.9, 0, 8, max_loss=0.05)
    assert each < 1.05
    assert 16 <= drafted < 60
    each, drafted = counted(made, 0.9, 0, 3, automatic=False)
    assert each > 1.5
    assert drafted > 150


def test_a_draft_that_gains_is_used(made: Callable[..., Generation]) -> None:
    each, _ = counted(made, 0.1, 0.02, 8, max_loss=0.05)
    assert each < 1 / 1.3


def test_rows_of_unequal_length_are_answered_as_if_alone(
    target: Any, made: Callable[..., Generation]
) -> None:
    """Filled up by a batch before it, and masked."""
    rows = [prompts(1, length)[0] for length in (3, 9, 6)]

    async def together() -> list[Arrays]:
        batching = DynamicBatching(max_batch_size=8, pad_axis=1)
        answer = batching.wrap(made(target).endpoint("it")).answer
        requests = [{"input_ids": row[None], "attention_mask": np.ones((1, len(row)), int)} for row in rows]
        return await asyncio.gather(
            *(answer({**request, "max_new_tokens": np.array([5])}) for request in [*requests, *requests])
        )

    answers = asyncio.run(together())
    for answer, row in zip(answers, [*rows, *rows], strict=True):
        assert answer["tokens"].tolist() == [by_hand(target, row.tolist(), 5)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_ids": [[1] * CONTEXT]}, r"1 to 127 tokens, .* it has 128"),
        ({"input_ids": [[]]}, "it has float64|it has 0"),
        ({"input_ids": np.zeros((1, 0), int)}, "it has 0. Begin it"),
        ({"input_ids": [1, 2]}, r"shape \(n, tokens\), but it has int64 of shape \(2,\)"),
        ({"input_ids": [[0.5]]}, "whole numbers"),
        ({"input_ids": [[1, VOCABULARY]]}, "from 0 to 31, but the prompt holds 32"),
        ({"input_ids": [[-1, 1]]}, "the prompt holds -1"),
        ({"max_new_tokens": [CONTEXT]}, r"context of 128 tokens, but they are 2 \+ 128"),
        ({"max_new_tokens": [0]}, r"`max_new_tokens` must be 1 or more for each of 1 rows, but it is \[0\]"),
        ({"max_new_tokens": [1, 1]}, "for each of 1 rows"),
        ({"temperature": [-1.0]}, "0 or more"),
        ({"temperature": [float("nan")]}, "0 or more"),
        ({"temperature": [float("inf")]}, "0 or more"),
        ({"temperature": ["hot"]}, "0 or more"),
        ({"seed": [-1]}, "a whole number of 0 or more"),
        ({"seed": [0.5]}, "a whole number of 0 or more"),
        ({"attention_mask": [[1]]}, r"shape of `input_ids`, but it is \(1, 1\), not \(1, 2\)"),
        ({"attention_mask": [[0, 0]]}, "it has 0"),
        ({"top_k": [-1]}, "a whole number of 0 or more"),
        ({"top_p": [1.5]}, "`top_p` must be from 0 to 1"),
        ({"min_p": [0.1]}, "may hold attention_mask, .*, but it holds min_p"),
    ],
)
def test_request_that_cannot_be_answered_says_why(
    changes: dict[str, Any], said: str, target: Any, made: Callable[..., Generation]
) -> None:
    with pytest.raises(InputError, match=said):
        ask(made(target), {"input_ids": [[1, 2]], **changes})


def test_request_without_prompt_says_so(target: Any, made: Callable[..., Generation]) -> None:
    with pytest.raises(InputError, match="there is none"):
        ask(made(target), {"seed": [1]})


def test_an_answer_of_no_asked_length_ends_with_the_context(
    target: Any, made: Callable[..., Generation]
) -> None:
    (answer,) = ask(made(target, max_new_tokens=50), {"input_ids": [[1] * (CONTEXT - 3)]})
    assert answer["lengths"].tolist() == [3]


@pytest.mark.parametrize("draft", ["far", "prompt_lookup"])
def test_a_text_may_fill_the_context_to_its_end(
    draft: str, target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    generation = made(target, drafts, draft=draft, automatic=False, draft_length=8)
    (answer,) = ask(generation, {"input_ids": prompts(1, 90), "max_new_tokens": [CONTEXT - 90]})
    assert answer["tokens"].tolist() == [by_hand(target, prompts(1, 90)[0].tolist(), CONTEXT - 90)]


def test_draft_of_an_unknown_name_is_told(target: Any, drafts: Any) -> None:
    with pytest.raises(SpecError, match="unknown draft 'nearr'; did you mean 'near'"):
        Generation(target, Decoding(draft="nearr"), drafts)


def test_draft_of_another_vocabulary_is_told(target: Any) -> None:
    with pytest.raises(UnsuitableError, match="`small` has 16 tokens, not 32"):
        Generation(target, Decoding(draft="small"), {"small": llama(16)})


def test_model_whose_past_cannot_be_cut_is_told(made: Callable[..., Generation]) -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.MistralForCausalLM(config).eval()
    with pytest.raises(UnsuitableError, match="a layer of mistral looks back over a window only"):
        Generation(model)
    (answer,) = ask(made(model, prefix_mib=0), {"input_ids": [[1, 2, 3]], "max_new_tokens": [9]})
    assert answer["tokens"].tolist() == [by_hand(model, [1, 2, 3], 9)]


@pytest.mark.parametrize("draft", [None, "far"])
def test_decoding_ends_at_the_deadline(
    draft: str | None, target: Any, drafts: Any, made: Callable[..., Generation]
) -> None:
    """And the next request is answered as ever."""
    generation = made(target, drafts, draft=draft, automatic=False)
    request = {"input_ids": np.array([[1, 2]]), "max_new_tokens": np.array([20])}

    async def scenario() -> Arrays:
        with answered_within(0.0), pytest.raises(DeadlineError, match="it came while waiting"):
            await generation.answer(request)
        return await generation.answer(request)

    assert asyncio.run(scenario())["tokens"].tolist() == [by_hand(target, [1, 2], 20)]


def test_who_is_gone_is_not_decoded_for(
    made: Callable[..., Generation],
) -> None:
    model = llama(VOCABULARY)
    sizes, generation = passes(model), made(model)

    async def scenario() -> None:
        rows = {"input_ids": prompts(50, 2), "max_new_tokens": np.full(50, 100)}
        asked = asyncio.ensure_future(generation.answer(rows))
        while len(sizes) < 3 and not asked.done():
            await asyncio.sleep(0.001)
        asked.cancel()
        await generation.answer({"input_ids": np.array([[1, 2]]), "max_new_tokens": np.array([1])})

    asyncio.run(scenario())
    assert len(sizes) < 2500  # of 5000


def test_only_the_variant_that_answers_is_heard(
    made: Callable[..., Generation], target: Any, drafts: Any
) -> None:
    """The full model is passed over, and timed on a copy while the one that answers is still busy."""
    full, small = (made(model, max_new_tokens=8) for model in (target, drafts["far"]))
    below = replace(full.endpoint("full"), tiers={"small": small.endpoint("small")})
    heard: list[int] = []

    async def scenario() -> Arrays:
        routed = DeadlineRouting().wrap(below)
        router: Any = routed.answer
        full_lane, small_lane = router.__self__._lanes
        full_lane._time.observe(1, 1000.0)
        busy = asyncio.create_task(small_lane.answer({"input_ids": prompts(1)}))
        await asyncio.sleep(0)
        with answered_within(60), heard_by(heard.append):
            answer = await routed.answer({"input_ids": prompts(1)})
        await asyncio.gather(busy, *router.__self__._probes)
        assert routed.figures["deadline_routing"]()["probes_full"] == 1
        return answer

    assert heard == asyncio.run(scenario())["tokens"][0].tolist()


def test_what_is_heard_is_of_the_first_that_decodes(made: Callable[..., Generation], target: Any) -> None:
    generation, heard = made(target, max_new_tokens=4), list[int]()

    async def scenario() -> Arrays:
        with heard_by(heard.append):
            answer = await generation.answer({"input_ids": prompts(1)})
            await asyncio.gather(*(generation.answer({"input_ids": prompts(1)}) for _ in range(2)))
        return answer

    assert heard == asyncio.run(scenario())["tokens"][0].tolist()
