"""The cache by row: which samples are computed, in which batches, and how rows find their way back."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import BadOutputError, SpecError, UnsuitableError
from pareflow.runtime import EmbeddingCache
from pareflow.runtime.caching.keys import row_keys
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays
from tests.concurrency import run, settle


class Summing:
    """An encoder: the sum of each row's tokens; where it is `held`, when it is let."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[float]] = []
        self._turns = asyncio.Semaphore(0 if held else 10**6)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, "encoder")

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.batches.append(feeds["ids"][:, 0].tolist())
        await self._turns.acquire()
        if (feeds["ids"] < 0).any():
            raise BadOutputError("ids must not be negative", "one is", "Give another")
        return {"sum": feeds["ids"].sum(axis=1, keepdims=True) * feeds.get("scale", np.float64(1))}

    def let(self, batches: int) -> None:
        for _ in range(batches):
            self._turns.release()


def batch(*numbers: float, width: int = 2, filled: int = 0) -> Arrays:
    ids = np.tile(np.array(numbers, np.float64)[:, None], (1, width))
    mask = np.ones_like(ids)
    return {"ids": np.pad(ids, ((0, 0), (0, filled))), "mask": np.pad(mask, ((0, 0), (0, filled)))}


def sums(answer: Arrays) -> list[float]:
    values: list[float] = answer["sum"][:, 0].tolist()
    return values


def test_only_rows_that_were_never_seen_are_computed_and_equal_ones_once() -> None:
    async def scenario() -> None:
        below = Summing()
        endpoint = EmbeddingCache().wrap(below.endpoint)
        assert sums(await endpoint.answer(batch(1, 2))) == [2, 4]
        assert sums(await endpoint.answer(batch(3, 2, 3, 4))) == [6, 4, 6, 8]
        assert sums(await endpoint.answer(batch(4, 1))) == [8, 2]
        assert below.batches == [[1, 2], [3, 4]]

    run(scenario)


def test_rows_under_way_are_waited_for() -> None:
    async def scenario() -> None:
        below = Summing(held=True)
        endpoint = EmbeddingCache().wrap(below.endpoint)
        asked = [asyncio.ensure_future(endpoint.answer(batch(*rows))) for rows in ((1, 2), (2, 3), (3, 1))]
        await settle()
        below.let(2)
        assert [sums(answer) for answer in await asyncio.gather(*asked)] == [[2, 4], [4, 6], [6, 2]]
        assert below.batches == [[1, 2], [3]]

    run(scenario)


def test_one_bad_row_fails_its_own_request_alone() -> None:
    async def scenario() -> None:
        below = Summing(held=True)
        endpoint = EmbeddingCache().wrap(below.endpoint)
        bad, good = (asyncio.ensure_future(endpoint.answer(batch(*rows))) for rows in ((1, -1), (1, 2)))
        await settle()
        below.let(5)
        with pytest.raises(BadOutputError):
            await bad
        assert sums(await good) == [2, 4]
        assert below.batches == [[1, -1], [2], [1]]

    run(scenario)


def test_what_fills_rows_up_changes_no_key_where_a_mask_says_so() -> None:
    """Once answers of two widths have one shape."""

    async def scenario(mask: str | None) -> list[list[float]]:
        below = Summing()
        endpoint = EmbeddingCache(mask=mask).wrap(below.endpoint)
        for filled in (1, 2):
            await endpoint.answer(batch(9, filled=filled))
        for filled in (0, 3):
            assert sums(await endpoint.answer(batch(1, 2, filled=filled))) == [2, 4]
        return below.batches[2:]

    assert run(lambda: scenario("mask")) == [[1, 2]]
    assert run(lambda: scenario(None)) == [[1, 2], [1, 2]]


def test_an_answer_that_is_as_long_as_its_input_is_as_long_as_it_was_asked_for() -> None:
    """Each row alone, filled up otherwise than when it was kept; equal widths are found again."""

    async def scenario() -> None:
        computed = []

        async def doubled(feeds: Mapping[str, np.ndarray]) -> Arrays:
            computed.append(feeds["ids"].shape)
            return {"y": feeds["ids"] * 2}

        endpoint = EmbeddingCache(mask="mask").wrap(Endpoint(doubled, "doubled"))
        for filled in (2, 0, 1, 2, 0):
            answer = await endpoint.answer(batch(5, width=1, filled=filled))
            assert answer["y"].tolist() == [[10] + filled * [0]]
        assert computed == [(1, 3), (1, 1), (1, 2)]

    run(scenario)


def test_a_row_is_not_another_of_which_it_is_the_beginning() -> None:
    async def scenario() -> None:
        below = Summing()
        endpoint = EmbeddingCache(mask="mask").wrap(below.endpoint)
        short, long = batch(1, width=2, filled=1), batch(1, width=3)
        assert sums(await endpoint.answer(short)) == [2]
        assert sums(await endpoint.answer(long)) == [3]

    run(scenario)


def test_a_second_text_behind_the_mask_of_the_first_is_part_of_the_row() -> None:
    """Both are filled up to one length, and the first alone has the mask that is named."""

    def pair(*title: float, width: int = 4) -> Arrays:
        title_mask = np.ones((1, len(title)))
        texts = {"ids": np.array([[1.0, 2.0]]), "title_ids": np.array([title]), "title_mask": title_mask}
        filled = {name: np.pad(text, ((0, 0), (0, width - text.shape[1]))) for name, text in texts.items()}
        return {**filled, "query_mask": np.pad(np.ones((1, 2)), ((0, 0), (0, width - 2)))}

    def key(feeds: Arrays) -> bytes:
        return row_keys(b"it", feeds, "query_mask")[0]

    assert len({key(pair(*title)) for title in ((5, 6, 7, 8), (5, 6, 9, 9), (5, 6), (5, 6, 7))}) == 4
    assert key(pair(5, 6, width=6)) == key(pair(5, 6))


def test_rows_of_equal_bytes_and_other_shapes_or_types_differ() -> None:
    shapes: list[np.ndarray] = [
        np.zeros((1, 4)),
        np.zeros((1, 2, 2)),
        np.zeros((1, 4), np.int64),
        np.zeros((1, 8), np.float32),
    ]
    assert len({row_keys(b"it", {"x": array})[0] for array in shapes}) == 4
    assert row_keys(b"it", {"x": shapes[0]}) != row_keys(b"that", {"x": shapes[0]})


def test_an_input_without_rows_belongs_to_every_row() -> None:
    async def scenario() -> None:
        endpoint = EmbeddingCache().wrap(Summing().endpoint)
        for scale in (1.0, 10.0, 1.0):
            feeds = {**batch(1, 2), "scale": np.float64(scale) * np.ones(())}
            assert sums(await endpoint.answer(feeds)) == [2 * scale, 4 * scale]

    run(scenario)


def test_a_mask_that_is_no_input_is_told() -> None:
    endpoint = EmbeddingCache(mask="attention").wrap(Summing().endpoint)
    with pytest.raises(SpecError, match="mask: must be an input"):
        run(lambda: endpoint.answer(batch(1)))


def test_an_output_without_rows_is_told() -> None:
    async def total(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"total": feeds["ids"].sum()}

    endpoint = EmbeddingCache().wrap(Endpoint(total, "total"))
    with pytest.raises(UnsuitableError, match="`total` has shape \\(\\) for a batch of 2"):
        run(lambda: endpoint.answer(batch(1, 2)))


def test_rows_that_make_no_batch_are_computed_together() -> None:
    """An output as long as its batch was filled up, kept from two batches."""

    async def doubled(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"y": feeds["ids"] * 2}

    async def scenario() -> None:
        endpoint = EmbeddingCache(mask="mask").wrap(Endpoint(doubled, "doubled"))
        await endpoint.answer(batch(1))
        await endpoint.answer(batch(2, filled=2))
        assert (await endpoint.answer(batch(1, 2)))["y"].tolist() == [[2, 2], [4, 4]]

    run(scenario)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=12), st.booleans())
def test_rows_get_their_own_answers_in_whichever_batches(requests: list[list[int]], at_once: bool) -> None:
    async def scenario() -> None:
        below = Summing()
        endpoint = EmbeddingCache().wrap(below.endpoint)
        if at_once:
            answers = await asyncio.gather(*(endpoint.answer(batch(*rows)) for rows in requests))
        else:
            answers = [await endpoint.answer(batch(*rows)) for rows in requests]
        for rows, answer in zip(requests, answers, strict=True):
            assert sums(answer) == [2 * number for number in rows]
        computed = [number for rows in below.batches for number in rows]
        assert sorted(computed) == sorted({float(number) for rows in requests for number in rows})

    run(scenario)


def test_processes_that_come_later_find_the_rows(tmp_path: Path) -> None:
    async def scenario() -> list[list[float]]:
        below = Summing()
        endpoint = EmbeddingCache(store=f"sqlite:{tmp_path / 'rows.db'}").wrap(below.endpoint)
        assert sums(await endpoint.answer(batch(1, 2))) == [2, 4]
        await endpoint.close()
        return below.batches

    assert run(scenario) == [[1, 2]]
    assert run(scenario) == []
