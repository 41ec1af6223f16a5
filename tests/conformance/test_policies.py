"""What every policy keeps, before a backend on a convolutional network and on a transformer."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow.compiler import OnnxRuntime
from pareflow.network import Form
from pareflow.runtime import Policy
from pareflow.runtime.pool import SessionPool
from pareflow.session import Session
from pareflow.workload import Arrays, LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]

pytestmark = pytest.mark.parametrize("name", ["images", "texts"])


@pytest.fixture
def session(name: str, forms: Forms, tmp_path: Path) -> Session:
    OnnxRuntime().compile(forms(name)["onnx"], tmp_path)
    return OnnxRuntime().load(tmp_path)


@pytest.fixture
def pool(session: Session) -> Iterator[SessionPool]:
    pool = SessionPool([session])
    yield pool
    pool.close()


def answered(policy: Policy, pool: SessionPool, *requests: Arrays) -> list[Arrays]:
    """The answers to one request after the other, through the policy."""

    async def ask() -> list[Arrays]:
        endpoint = policy.wrap(pool.endpoint("it"))
        return [await endpoint.answer(feeds) for feeds in requests]

    return asyncio.run(ask())


def test_answers_are_those_of_the_session(
    policy: Policy, name: str, session: Session, pool: SessionPool, load_tiny: Load
) -> None:
    """Also where a request comes again, and whatever came between."""
    requests = [load_tiny(name).example(batch_size) for batch_size in (1, 6, 1, 3, 6)]
    for feeds, answers in zip(requests, answered(policy, pool, *requests), strict=True):
        expected = session.run(feeds)
        assert answers.keys() == expected.keys()
        for key, array in expected.items():
            assert answers[key].dtype == array.dtype
            assert np.allclose(answers[key], array, atol=1e-5 if policy.regroups else 0, rtol=0)


def test_answers_are_the_callers_to_keep_and_to_change(
    policy: Policy, name: str, session: Session, pool: SessionPool, load_tiny: Load
) -> None:
    feeds = load_tiny(name).example(3)
    given = {key: array.copy() for key, array in feeds.items()}
    expected = {key: array.copy() for key, array in session.run(feeds).items()}

    async def scenario() -> None:
        endpoint = policy.wrap(pool.endpoint("it"))
        for _ in range(3):
            answers = await endpoint.answer(feeds)
            assert all(np.array_equal(answers[key], array) for key, array in expected.items())
            for array in answers.values():
                array.fill(0)

    asyncio.run(scenario())
    assert all(np.array_equal(feeds[key], array) for key, array in given.items())


def test_requests_at_once_get_their_own_answers(
    policy: Policy, name: str, session: Session, pool: SessionPool, load_tiny: Load
) -> None:
    """Computed in whichever batches: rounding may differ, and no more."""
    whole = load_tiny(name).example(8)
    requests = [{key: array[i : i + 1] for key, array in whole.items()} for i in range(8)]

    async def scenario() -> list[Arrays]:
        endpoint = policy.wrap(pool.endpoint("it"))
        return await asyncio.gather(*map(endpoint.answer, requests))

    for feeds, answers in zip(requests, asyncio.run(scenario()), strict=True):
        for key, array in session.run(feeds).items():
            assert np.allclose(answers[key], array, atol=1e-5)


def test_it_says_what_it_counts(policy: Policy, name: str, pool: SessionPool, load_tiny: Load) -> None:
    async def scenario() -> Mapping[str, float]:
        endpoint = policy.wrap(pool.endpoint("it"))
        await endpoint.answer(load_tiny(name).example(1))
        return endpoint.figures[policy.name]()

    assert any(asyncio.run(scenario()).values())
