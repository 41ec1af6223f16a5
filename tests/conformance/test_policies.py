"""What every policy keeps, before a backend on a convolutional network and on a transformer."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow.compiler import OnnxRuntime
from pareflow.network import Form
from pareflow.runtime import Policy
from pareflow.session import Session
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]

pytestmark = pytest.mark.parametrize("name", ["images", "texts"])


@pytest.fixture
def session(name: str, forms: Forms, tmp_path: Path) -> Session:
    OnnxRuntime().compile(forms(name)["onnx"], tmp_path)
    return OnnxRuntime().load(tmp_path)


def test_answers_are_those_of_the_session(
    policy: Policy, name: str, session: Session, load_tiny: Load
) -> None:
    """Also where a request comes again, and whatever came between."""
    wrapped = policy.wrap(session)
    for batch_size in (1, 6, 1, 3, 6):
        feeds = load_tiny(name).example(batch_size)
        expected, answers = session.run(feeds), wrapped.run(feeds)
        assert answers.keys() == expected.keys()
        for key, array in expected.items():
            assert answers[key].dtype == array.dtype
            assert np.array_equal(answers[key], array)


def test_answers_are_the_callers_to_keep_and_to_change(
    policy: Policy, name: str, session: Session, load_tiny: Load
) -> None:
    wrapped, feeds = policy.wrap(session), load_tiny(name).example(3)
    given = {key: array.copy() for key, array in feeds.items()}
    expected = {key: array.copy() for key, array in session.run(feeds).items()}
    for _ in range(3):
        answers = wrapped.run(feeds)
        assert all(np.array_equal(answers[key], array) for key, array in expected.items())
        for array in answers.values():
            array.fill(0)
    assert all(np.array_equal(feeds[key], array) for key, array in given.items())


def test_what_ran_is_what_the_session_says(policy: Policy, name: str, session: Session) -> None:
    assert policy.wrap(session).ran() == session.ran()
