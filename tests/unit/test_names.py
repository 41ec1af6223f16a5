"""What a plan names is the model's, and its tiers are, or nothing is served."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.catalog import POLICIES
from pareflow.errors import InputError, SpecError
from pareflow.serving.executable import Release
from pareflow.serving.opening import opened
from pareflow.serving.plan import ServingPlan
from tests.unit.conftest import Linear, Packaged


def start(policy: Any, **packages: Path) -> None:
    """Open the first package by this policy, with the others as tiers, and close all of it."""
    main, *tiers = packages
    releases = {name: Release("images", "1", packages[name]) for name in tiers}
    plan = ServingPlan(policies=(policy,))
    opened({"": Release("images", "1", packages[main]), **releases}, plan).close()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"semantic_cache": {"judged": "outputs"}}, ["judged: unknown output 'outputs'"]),
        (
            {"semantic_cache": {"encoder": "encoder", "embedding": "outputs"}},
            ["embedding: unknown output of the tier `encoder` 'outputs'"],
        ),
        ({"embedding_cache": {"mask": "image"}}, ["mask: unknown input 'image'"]),
        (
            {"dynamic_batching": {"pad_values": {"image": 1, "images": 1}, "padded_outputs": ["outputs"]}},
            ["pad_values: unknown input 'image'", "padded_outputs: unknown output 'outputs'"],
        ),
        ({"confidence_cascade": {"output": "outputs"}}, ["output: unknown output 'outputs'"]),
        ({"ranking_cascade": {"output": "outputs"}}, ["output: unknown output 'outputs'"]),
        ({"complexity_routing": {"input": "image"}}, ["input: unknown input 'image'"]),
    ],
)
def test_a_name_that_is_none_of_the_models_stops_the_start(
    packaged: Packaged, policy: Any, said: list[str]
) -> None:
    """Whatever policy names it, all of them at once, and each with the name that may be meant."""
    (name,) = policy
    with pytest.raises(SpecError, match="the serving plan of images must be valid") as refused:
        start(policy, main=packaged("images"), encoder=packaged("images"))
    meant = {"input": "images", "output": "output"}
    assert refused.value.problems == [
        f"{name}.{words}; did you mean '{meant[words.split()[2]]}'?" for words in said
    ]


@pytest.mark.parametrize(
    "policy",
    [
        {"semantic_cache": {"encoder": "encoder", "embedding": "output", "judged": "output"}},
        {"embedding_cache": {"mask": "images"}},
        {"dynamic_batching": {"pad_values": {"images": 1}, "padded_outputs": ["output"]}},
        {"confidence_cascade": {"output": "output"}},
        {"ranking_cascade": {"output": "output"}},
        {"complexity_routing": {"input": "images"}},
        *({name: {}} for name in sorted(POLICIES)),
    ],
    ids=str,
)
def test_the_models_own_names_are_taken_and_so_is_none(packaged: Packaged, policy: Any) -> None:
    start(policy, main=packaged("images"), encoder=packaged("images"))


def test_a_ranker_gives_scores_and_nothing_that_its_cascade_would_lose(linear: Linear) -> None:
    """Candidates that are let go are never seen by what gives the rest."""
    package = linear(again="explained")
    with pytest.raises(SpecError, match="but got `explained` FP32, `y` FP32"):
        start({"ranking_cascade": {"output": "y"}}, main=package)
    start({"confidence_cascade": {"output": "y"}}, main=package)


def embedding(*policies: Any) -> ServingPlan:
    cache = {"encoder": "encoder", "score": "similarity", "threshold": 0.99, "rerun_share": 1e-9}
    return ServingPlan(policies=(*policies, {"semantic_cache": cache}, {"dynamic_batching": {}}))


@pytest.fixture
def releases(packaged: Packaged, linear: Linear) -> dict[str, Release]:
    """Images, and a network of the same images with an output of its own as a tier."""
    main, encoder = packaged("images"), linear(image="images", scores="vector")
    return {"": Release("images", "1", main), "encoder": Release("linear", "1", encoder)}


def test_a_tier_that_only_embeds_has_outputs_of_its_own_and_answers_nobody(
    releases: dict[str, Release],
) -> None:
    hosted = opened(releases, embedding({"deadline_routing": {}}))
    feeds = {"images": np.full((1, 1, 8, 8), 0.5, np.float32)}

    async def scenario() -> None:
        endpoint = hosted.started().endpoint
        for _ in range(2):
            assert (await endpoint.answer(feeds)).keys() == {"output"}
        cache, routing = (endpoint.figures[name]() for name in ("semantic_cache", "deadline_routing"))
        assert (cache["hits"], cache["unembedded"]) == (1, 0)
        assert routing["answered_full"] == 2
        assert "answered_encoder" not in routing
        await hosted.retire()

    asyncio.run(scenario())


def test_a_tier_that_embeds_and_answers_must_have_the_models_outputs(releases: dict[str, Release]) -> None:
    with pytest.raises(InputError, match="the tier `encoder` must have the outputs of images: `output` FP32"):
        opened(releases, embedding({"deadline_routing": {"tiers": ["encoder"]}}))


def test_a_tier_that_embeds_takes_what_the_model_takes(packaged: Packaged, linear: Linear) -> None:
    releases = {"": Release("images", "1", packaged("images")), "encoder": Release("x", "1", linear())}
    with pytest.raises(InputError, match="the tier `encoder` must have the inputs of images: `images` FP32"):
        opened(releases, embedding())
