"""`bench/ranking.py`: what the full model costs is measured on batches that it would really compute."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")


@pytest.fixture
def ranking(bench: Callable[[str], Any]) -> Any:
    return bench("ranking")


def test_a_sample_of_the_batches_is_put_together_again_as_they_were(ranking: Any) -> None:
    chance = random.Random(0)
    documents = ["x" * chance.randint(1, 500) for _ in range(1400)]
    batches = ranking._batches(documents)
    assert sorted(np.concatenate(batches)) == list(range(1400))
    sample = batches[3 :: ranking.EVERY]
    again = ranking._batches([documents[i] for i in np.concatenate(sample)])
    lengths = [[len(documents[i]) for i in batch] for batch in sample]
    assert [[len(documents[np.concatenate(sample)[i]]) for i in batch] for batch in again] == lengths
