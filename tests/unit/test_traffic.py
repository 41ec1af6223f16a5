"""A challenger's share of the traffic, and what is kept of it."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import InputError
from pareflow.serving.executable import Tensor
from pareflow.serving.record import BLOCK, BLOCKS, LARGEST, Record
from pareflow.serving.traffic import Traffic, read
from pareflow.serving.trial import agree, unsound

KEYS = [str(number).encode() for number in range(4000)]


@given(st.floats(0, 1), st.floats(0, 1), st.binary(max_size=64), st.sampled_from(["shadow", "canary"]))
def test_who_is_in_a_share_is_in_every_larger_one(one: float, other: float, key: bytes, kind: str) -> None:
    small, large = sorted((one, other))
    in_small = Traffic(version="2", **{kind: small}).draws(kind, key)  # type: ignore[arg-type]
    assert Traffic(version="2", **{kind: large}).draws(kind, key) or not in_small  # type: ignore[arg-type]


def test_a_share_is_that_of_the_keys_and_drawn_anew_for_each_version_and_kind() -> None:
    first = Traffic(version="1", canary=0.25, shadow=0.25)
    second = Traffic(version="2", canary=0.25, shadow=0.25)
    drawn = [
        {key for key in KEYS if one.draws(kind, key)}
        for one in (first, second)
        for kind in ("canary", "shadow")
    ]
    for keys in drawn:
        assert len(keys) / len(KEYS) == pytest.approx(0.25, abs=0.03)
    for position, keys in enumerate(drawn):  # a quarter of a quarter is in two of them by chance
        for others in drawn[position + 1 :]:
            assert len(keys & others) / len(KEYS) == pytest.approx(1 / 16, abs=0.02)


def test_all_and_none() -> None:
    every, none = Traffic(version="1", canary=1), Traffic(version="1", canary=0)
    assert all(every.draws("canary", key) for key in KEYS[:100])
    assert not any(none.draws("canary", key) for key in KEYS[:100])


def test_traffic_ends_by_itself() -> None:
    now = time.time()
    assert Traffic(version="1", canary=0.1, until=now + 60).flows()
    assert not Traffic(version="1", canary=0.1, until=now - 1).flows()
    assert not Traffic(version="1").flows()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": "1", "canary": 2}', "canary"),
        ('{"version": "1", "canry": 0.1}', "canary"),
        ('{"canary": 0.1}', "version"),
        ("no", "JSON"),
    ],
)
def test_traffic_that_cannot_be_is_told(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(text)


def test_blocks_hold_answers_of_both_versions_from_the_same_time() -> None:
    """Ten answers of the champion for one of the challenger; a block is full when both have enough."""
    record = Record("1", Traffic(version="2", canary=0.1))
    for number in range(3 * BLOCK):
        for _ in range(10):
            record.timed("1", 1.0)
        record.timed("2", float(number))
    blocks = record.to_json()["blocks_ms"]
    assert [len(block["challenger"]) for block in blocks] == [BLOCK] * 3
    assert all(BLOCK <= len(block["champion"]) <= LARGEST for block in blocks)
    assert blocks[1]["challenger"] == [float(number) for number in range(BLOCK, 2 * BLOCK)]


def test_what_is_kept_is_bounded() -> None:
    record = Record("1", Traffic(version="2", canary=0.5))
    for _ in range((BLOCKS + 10) * BLOCK):
        record.timed("1", 1.0)
        record.timed("2", 1.0)
    for number in range(100):
        record.trouble(f"{number}" * 1000)
    document = record.to_json()
    assert len(document["blocks_ms"]) == BLOCKS
    assert len(document["troubles"]) == 5
    assert max(map(len, document["troubles"])) <= 500


OUTPUTS = (Tensor("output", "FP32", (-1, 4)),)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"output": np.zeros((2, 4), np.float32)}, ""),
        ({"other": np.zeros((2, 4), np.float32)}, "there is no output `output`"),
        ({"output": np.zeros((1, 4), np.float32)}, "has shape (1, 4) for 2 rows"),
        ({"output": np.zeros((2, 5), np.float32)}, "has shape (2, 5)"),
        ({"output": np.zeros((2,), np.float32)}, "has shape (2,)"),
        ({"output": np.full((2, 4), np.nan, np.float32)}, "holds NaN"),
    ],
)
def test_what_cannot_be_an_answer_is_told_from_what_can(outputs: dict[str, np.ndarray], said: str) -> None:
    found = unsound(outputs, 2, OUTPUTS)
    assert said in found
    assert bool(said) == bool(found)


def test_predictions_agree_in_every_row_or_not() -> None:
    classes, none = np.array([1, 2, 3]), np.zeros(())
    assert agree(classes, classes.copy(), none)
    assert not agree(classes, np.array([1, 2, 0]), none)
    assert not agree(classes, classes[:2], none)
    values, far = np.array([100.0, 0.0]), np.array(50.0)
    assert agree(values, values + 2.4, far)  # 0.05 of the spread are 2.5
    assert not agree(values, values + 2.6, far)
    assert agree(np.zeros(2), np.zeros(2), none)
    assert not agree(np.ones(2), np.full(2, np.nan), far)
