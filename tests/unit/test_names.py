"""The inputs and outputs that a plan names are the model's, or nothing is served."""

from pathlib import Path
from typing import Any

import pytest

from pareflow.catalog import POLICIES
from pareflow.errors import SpecError
from pareflow.serving.executable import Release
from pareflow.serving.opening import opened
from pareflow.serving.plan import ServingPlan
from tests.unit.conftest import Packaged


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
