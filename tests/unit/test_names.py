"""The inputs and outputs that a plan names are the model's, or nothing is served."""

from pathlib import Path
from typing import Any

import pytest

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
        (
            {"semantic_cache": {"judged": "outputs"}},
            "semantic_cache.judged: unknown output 'outputs'; did you mean 'output'?",
        ),
    ],
)
def test_a_name_that_is_none_of_the_models_stops_the_start(
    packaged: Packaged, policy: Any, said: str
) -> None:
    with pytest.raises(SpecError, match="the serving plan of images must be valid") as refused:
        start(policy, main=packaged("images"))
    assert refused.value.problems == [said]


@pytest.mark.parametrize("policy", [{"semantic_cache": {"judged": "output"}}])
def test_the_models_own_names_are_taken(packaged: Packaged, policy: Any) -> None:
    start(policy, main=packaged("images"))
